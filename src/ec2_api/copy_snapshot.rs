//! CopySnapshot: another snapshot of the same bytes, the caller's own, also of one that is only shared with them.
//!
//! There is one region, so source and destination are both this one. SDKs sign a request to the source region and add it as
//! `PresignedUrl`; nothing is ever fetched from there. As on EC2 a copy of what cannot be copied is accepted and then in `error`,
//! with the reason in its message; so nobody can tell another account's snapshot from one that does not exist.

use diesel_async::AsyncConnection;

use crate::db::quotas::{self as held, Counts};
use crate::db::snapshots::{self as rows, NO_VOLUME, NewCopy};
use crate::db::{Conn, describe_tags};
use crate::ids::SnapshotId;
use crate::state::SnapshotState;
use crate::workers::copy_snapshot;

use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_value, missing, unsupported};
use super::query::Params;
use super::snapshots::check_description;
use super::tag_rules::{self, Tags};
use super::{Api, Call, quotas, tags};

/// The most copies of an account that are being made at once, as on EC2.
const MAX_PENDING: i64 = 20;

/// What is asked for.
struct Request {
    source: SnapshotId,
    destination: Option<String>,
    description: String,
    minutes: Option<i32>,
    encrypted: Option<bool>,
    kms_key: Option<String>,
    elsewhere: bool,
    tags: Tags,
}

/// CopySnapshot.
pub async fn copy(api: &Api, call: &Call, params: Params) -> ApiResult<String> {
    let request = check(api, params)?;
    call.stop_if_dry_run()?;
    check_late(api, &request)?;
    let account = &*call.caller.account_id;
    let id = SnapshotId::generate();
    let mut conn = api.pool.get().await?;
    conn.transaction(async |conn| insert(api, conn, account, &request, &id).await).await?;
    api.wake.wake();
    let mut xml = call.answer();
    xml.plain("snapshotId", &id);
    tags::asked(&mut xml, &request.tags);
    Ok(xml.finish())
}

fn check(api: &Api, mut params: Params) -> ApiResult<Request> {
    let (source, region) = (params.text("SourceSnapshotId"), params.text("SourceRegion"));
    let destination = params.filled("DestinationRegion");
    let description = params.text("Description").unwrap_or_default();
    let minutes = params.integer("CompletionDurationMinutes")?;
    let (encrypted, kms_key) = (params.boolean("Encrypted")?, params.filled("KmsKeyId"));
    let elsewhere =
        params.filled("DestinationOutpostArn").is_some() | params.filled("DestinationAvailabilityZone").is_some();
    drop(params.text("PresignedUrl"));
    let specifications = params.tag_specifications()?;
    params.finish()?;
    let source = source.ok_or_else(|| missing("SourceSnapshotId"))?;
    let region = region.ok_or_else(|| missing("SourceRegion"))?;
    let source = SnapshotId::parse(&source).map_err(|_| invalid_value("The specified snapshotId is invalid"))?;
    if region != api.region.name {
        return Err(ApiError::new("InvalidRegion", format!("{} is not a valid region name", clip(&region))));
    }
    if minutes.is_some_and(|minutes| !(15..=2880).contains(&minutes) || minutes % 15 != 0) {
        return Err(invalid_value(
            "The value for parameter completionDurationMinutes is invalid. It must be a multiple of 15 from 15 to 2880.",
        ));
    }
    let tags = tag_rules::from_specifications(specifications, "snapshot")?;
    Ok(Request { source, destination, description, minutes, encrypted, kms_key, elsewhere, tags })
}

/// Checks what EC2 checks after DryRun.
fn check_late(api: &Api, request: &Request) -> ApiResult<()> {
    let own = &api.region.name;
    if let Some(other) = request.destination.as_ref().filter(|region| *region != own) {
        return Err(invalid_value(format!(
            "DestinationRegion '{}' does not match the current region ({own}).",
            clip(other)
        )));
    }
    check_description(&request.description)?;
    if request.kms_key.is_some() && request.encrypted != Some(true) {
        return Err(ApiError::new(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        ));
    }
    if request.encrypted == Some(true) {
        return Err(unsupported("Encrypted snapshots are not supported."));
    }
    if request.elsewhere {
        return Err(unsupported("Outposts and Local Zones are not supported."));
    }
    Ok(())
}

/// Takes one of the places that an account has for copies. Of requests that come together each counts those before it, so the
/// account's quotas are held.
async fn take_place(conn: &mut Conn, account: &str) -> ApiResult<()> {
    held::hold(conn, account).await?;
    if rows::count_copying(conn, account).await? < MAX_PENDING {
        return Ok(());
    }
    let text = format!("Too many snapshot copies in progress. The limit is {MAX_PENDING} for this destination region.");
    Err(ApiError::new("ResourceLimitExceeded", text))
}

async fn insert(api: &Api, conn: &mut Conn, account: &str, request: &Request, id: &SnapshotId) -> ApiResult<()> {
    let source = rows::find_usable(conn, &request.source, account).await?;
    let refusal = match &source {
        None => Some("Source snapshot is not found"),
        Some(source) if source.state != SnapshotState::Completed => Some("Source snapshot is not complete"),
        Some(_) => None,
    };
    take_place(conn, account).await?;
    quotas::take(api, conn, account, Counts { snapshots: 1, ..Counts::default() }).await?;
    let any_node = api.storage.first().map_or("", |node| &node.name);
    let new = NewCopy {
        id,
        account_id: account,
        volume_id: NO_VOLUME,
        volume_size_gib: source.as_ref().map_or(1, |source| source.volume_size_gib),
        node: source.as_ref().map_or(any_node, |source| &source.node),
        description: &request.description,
        state: if refusal.is_some() { SnapshotState::Error } else { SnapshotState::Pending },
        status_message: refusal,
        source_id: &request.source,
        completion_minutes: request.minutes,
    };
    rows::insert_copy(conn, &new).await?;
    describe_tags::insert(conn, account, "snapshot", id.as_str(), &request.tags).await?;
    if refusal.is_none() {
        copy_snapshot::enqueue(conn, id).await?;
    }
    Ok(())
}
