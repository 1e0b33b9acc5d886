//! Quotas, in the words of EC2.
//!
//! AWS publishes the codes and not the texts. The numbers are [`crate::config::Quotas`], or the account's own.

use crate::db::modifications::NewModification;
use crate::db::quotas::{self, Counts, Full};
use crate::db::volumes::Volume;
use crate::db::{Conn, snapshots};
use crate::ids::VolumeId;

use super::error::{ApiError, ApiResult};
use super::{Api, Call};

/// What a volume takes of its account's quotas.
pub fn of_volume(volume_type: &str, iops: Option<i32>, size_gib: i32) -> Counts {
    let paid = if matches!(volume_type, "io1" | "io2") { iops.unwrap_or(0) } else { 0 };
    Counts { volumes: 1, gib: size_gib.into(), iops: paid.into(), snapshots: 0 }
}

/// Whether the caller's volumes have a quota at all.
pub fn has_some(api: &Api, call: &Call) -> bool {
    let all = &api.quotas;
    call.caller.own_quotas || all.volumes.is_some() || all.gib.is_some() || all.iops.is_some()
}

/// Takes room for one new snapshot of each of these volumes, in the transaction that makes them. To be called when it holds all
/// the rows that it will.
pub async fn take_snapshots(api: &Api, conn: &mut Conn, account: &str, volumes: &[&VolumeId]) -> ApiResult<()> {
    let most = i64::from(api.quotas.pending_snapshots);
    let mut full = Vec::new();
    for volume in volumes {
        if snapshots::count_pending(conn, volume).await? >= most {
            full.push(volume.as_str());
        }
    }
    if !full.is_empty() {
        let text = "Maximum allowed in-progress snapshots for a single volume exceeded";
        return Err(ApiError::new("ConcurrentSnapshotLimitExceeded", format!("{text} ({most}): {}.", full.join(", "))));
    }
    let wanted = Counts { snapshots: i64::try_from(volumes.len()).unwrap_or(i64::MAX), ..Counts::default() };
    take(api, conn, account, wanted).await
}

/// Takes of the account's quotas, in the transaction that makes what is wanted. To be called when it holds all the rows that it
/// will.
pub async fn take(api: &Api, conn: &mut Conn, account: &str, wanted: Counts) -> ApiResult<()> {
    refuse(quotas::take(conn, account, (&api.quotas).into(), wanted).await?)
}

/// Takes what a volume will have more than it has, in the transaction that begins its modification.
pub async fn take_growth(api: &Api, conn: &mut Conn, volume: &Volume, new: &NewModification) -> ApiResult<()> {
    let before = of_volume(&volume.volume_type, volume.iops, volume.size_gib);
    let after = of_volume(new.target_type, new.target_iops, new.target_size_gib);
    let wanted = Counts { gib: after.gib - before.gib, iops: after.iops - before.iops, ..Counts::default() };
    take(api, conn, &volume.account_id, wanted).await.map_err(|refusal| match refusal.code {
        "VolumeLimitExceeded" => ApiError { code: "VolumeModificationSizeLimitExceeded", ..refusal },
        _ => refusal,
    })
}

fn refuse(full: Option<Full>) -> ApiResult<()> {
    let (code, text) = match full {
        None => return Ok(()),
        Some(Full::Volumes(most)) => {
            ("VolumeLimitExceeded", format!("Maximum number of active volumes, '{most}', exceeded."))
        }
        Some(Full::Gib(most)) => {
            ("VolumeLimitExceeded", format!("Maximum number of active gigabytes, '{most}', exceeded."))
        }
        Some(Full::Iops(most)) => {
            ("MaxIOPSLimitExceeded", format!("Maximum number of provisioned IOPS, '{most}', exceeded."))
        }
        Some(Full::Snapshots(most)) => {
            ("SnapshotLimitExceeded", format!("Maximum number of active snapshots, '{most}', exceeded."))
        }
    };
    Err(ApiError::new(code, text))
}
