//! CreateVolume: checks in the order of EC2, then one transaction for the volume, its tags and its workflow.
//!
//! A client token makes the request safe to repeat. The token is a unique key of the row, so of many tries at once exactly one
//! inserts; the others wait for it in the database and then compare what they ask for with what it asked for.

use diesel_async::AsyncConnection;
use sha2::{Digest, Sha256};

use crate::db::gather::Batch;
use crate::db::volumes::{self as rows, Accept, NewVolume, Volume};
use crate::db::{Conn, snapshots};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::{SnapshotState, VolumeState};
use crate::workers::create_volume;

use super::error::{ApiError, ApiResult};
use super::faults::{incorrect_state, invalid_combination, invalid_value, missing, no_snapshot, unsupported};
use super::query::{Params, TagSpecification};
use super::region::Zone;
use super::resource_id::{self, Dialect};
use super::tag_rules::{self, Tags};
use super::volume_types::{self, Asked, Shape};
use super::{Api, Call, quotas, tags};

/// The most characters of a client token.
pub(super) const MAX_TOKEN: usize = 64;
/// How often a volume is inserted when its token is there: at the second try the first volume of the token is found, unless it
/// could not be made just then and gave its token back.
const TRIES: usize = 3;

/// EC2's code for a zone that cannot take the volume.
pub(super) const NO_ROOM: &str = "InsufficientVolumeCapacity";

/// The parameters as they came: what a token's digest is made of.
#[derive(Debug)]
struct Request {
    zone: Option<String>,
    zone_id: Option<String>,
    size: Option<i32>,
    volume_type: Option<String>,
    iops: Option<i32>,
    throughput: Option<i32>,
    snapshot: Option<String>,
    encrypted: Option<bool>,
    kms_key: Option<String>,
    multi_attach: Option<bool>,
    rate: Option<i32>,
    outpost: Option<String>,
    operator: Option<String>,
    token: Option<String>,
    /// Judged later than the rest.
    specifications: Vec<TagSpecification>,
}

impl Request {
    fn take(params: &mut Params) -> ApiResult<Self> {
        Ok(Self {
            zone: params.text("AvailabilityZone"),
            zone_id: params.text("AvailabilityZoneId"),
            size: params.integer("Size")?,
            volume_type: params.filled("VolumeType"),
            iops: params.integer("Iops")?,
            throughput: params.integer("Throughput")?,
            snapshot: params.filled("SnapshotId"),
            encrypted: params.boolean("Encrypted")?,
            kms_key: params.filled("KmsKeyId"),
            multi_attach: params.boolean("MultiAttachEnabled")?,
            rate: params.integer("VolumeInitializationRate")?,
            outpost: params.filled("OutpostArn"),
            operator: params.filled("Operator.Principal"),
            token: params.filled("ClientToken"),
            specifications: params.tag_specifications()?,
        })
    }

    /// Checks what needs no database.
    fn check(&self) -> ApiResult<Shape> {
        if self.size.is_none() && self.snapshot.is_none() {
            return Err(missing("size/snapshot"));
        }
        let shape = volume_types::check(Asked {
            volume_type: self.volume_type.as_deref(),
            size_gib: self.size,
            iops: self.iops,
            throughput: self.throughput,
        })?;
        if let Some(rate) = self.rate {
            if self.snapshot.is_none() {
                return Err(invalid_combination(
                    "You can't specify VolumeInitializationRate for volumes that are not created from a snapshot.",
                ));
            }
            if !(100..=300).contains(&rate) {
                return Err(invalid_value(
                    "The value specified for VolumeInitializationRate is not in the allowed range.",
                ));
            }
        }
        if self.kms_key.is_some() && self.encrypted != Some(true) {
            return Err(ApiError::new(
                "InvalidParameterDependency",
                "The parameter KmsKeyId requires the parameter Encrypted to be set.",
            ));
        }
        if self.encrypted == Some(true) {
            return Err(unsupported("Encrypted volumes are not supported."));
        }
        if self.outpost.is_some() || self.operator.is_some() {
            return Err(unsupported("Outposts and managed resources are not supported."));
        }
        Ok(shape)
    }

    /// Checks what EC2 checks after DryRun.
    fn check_late(&self, shape: &Shape) -> ApiResult<()> {
        volume_types::check_multi_attach(self.multi_attach, shape.volume_type)?;
        match &self.token {
            Some(token) if token.chars().count() > MAX_TOKEN => {
                Err(invalid_value(format!("Client token must be less than or equal to {MAX_TOKEN} characters.")))
            }
            _ => Ok(()),
        }
    }

    /// What must be equal for a token to be a repetition. A zone is the same by name and by id, a throughput left out is
    /// gp3's default; all else is compared as it was asked for, as EC2 does.
    fn digest(&self, zone: &Zone, shape: &Shape, tags: &Tags) -> Vec<u8> {
        let asked = serde_json::json!([
            zone.name,
            self.size,
            shape.volume_type,
            self.iops,
            shape.throughput,
            self.snapshot,
            self.encrypted,
            self.kms_key,
            self.multi_attach,
            self.rate,
            tags,
        ]);
        Sha256::digest(asked.to_string()).to_vec()
    }
}

/// CreateVolume.
pub async fn create(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let mut request = Request::take(&mut params)?;
    params.finish()?;
    let zone = api.region.choose(request.zone.as_deref(), request.zone_id.as_deref())?;
    let shape = request.check()?;
    let snapshot = request.snapshot.as_deref().map(|id| resource_id::read(id, Dialect::Snapshot)).transpose()?;
    let tags = tag_rules::from_specifications(std::mem::take(&mut request.specifications), "volume")?;
    call.stop_if_dry_run()?;
    request.check_late(&shape)?;
    let digest = request.token.as_ref().map(|_| request.digest(zone, &shape, &tags));
    let account = &*call.caller.account_id;
    let new = |size_gib: i32, node: String| {
        let id = VolumeId::generate();
        NewVolume {
            workflow: create_volume::workflow(&id),
            id,
            account_id: account.to_owned(),
            zone: zone.name.clone(),
            node,
            size_gib,
            volume_type: shape.volume_type,
            iops: shape.iops(size_gib),
            throughput: shape.throughput,
            initialization_rate: request.rate,
            multi_attach: request.multi_attach == Some(true),
            snapshot_id: snapshot.clone(),
            client_token: request.token.clone(),
            request_digest: digest.as_ref().map(hex::encode),
            tags: tags.clone(),
        }
    };
    let earlier = async || match (&request.token, &digest) {
        (Some(token), Some(digest)) => repeated(&mut *api.pool.get().await?, account, token, digest).await,
        _ => Ok(None),
    };
    // Before the snapshot is looked at, which may be gone by now.
    let mut volume = if snapshot.is_some() { earlier().await? } else { None };
    if snapshot.is_some() {
        api.placement.ready().await?;
    }
    let mut looked = false;
    for _ in 0..TRIES {
        if volume.is_some() {
            break;
        }
        volume = match &snapshot {
            None => match place(api, zone, &shape).await {
                Ok((size_gib, node)) => {
                    let new = new(size_gib, node.clone());
                    let made = if quotas::has_some(api, call) {
                        admit(api, account, &shape, new).await
                    } else {
                        api.accept.ask(new).await.map_err(ApiError::from)
                    };
                    if !matches!(made, Ok(Some(_))) {
                        api.placement.give_back(&node, bytes(size_gib));
                    }
                    made?
                }
                // A repetition needs no room.
                Err(refusal) => Some(earlier().await?.ok_or(refusal)?),
            },
            Some(id) => {
                let mut conn = api.pool.get().await?;
                let made = conn
                    .transaction(async |conn| {
                        let (size_gib, node) = place_beside(api, conn, account, zone, &shape, id).await?;
                        let made = admit_in(api, conn, account, &shape, new(size_gib, node.clone())).await;
                        if !matches!(made, Ok(Some(_))) {
                            api.placement.give_back(&node, bytes(size_gib));
                        }
                        made
                    })
                    .await;
                drop(conn);
                match made {
                    // No node is asked while a transaction is open.
                    Err(refusal) if refusal.code == NO_ROOM && !looked => {
                        looked = true;
                        api.placement.look(&api.storage_nodes_of(&zone.name)).await;
                        continue;
                    }
                    made => made?,
                }
            }
        };
        if volume.is_none() {
            // Another try with the same token was faster and has committed by now, unless its volume could not be made and
            // gave the token back.
            volume = earlier().await?;
        }
    }
    let volume = volume.ok_or_else(|| ApiError::unavailable("a client token came and went"))?;
    api.wake.wake();
    Ok(render(api, call, &volume, &tags))
}

/// Stores a volume that its account must have room for.
async fn admit(api: &Api, account: &str, shape: &Shape, new: NewVolume) -> ApiResult<Option<Volume>> {
    let mut conn = api.pool.get().await?;
    conn.transaction(async |conn| admit_in(api, conn, account, shape, new).await).await
}

/// The same in a transaction that holds all the rows that it will. `None` for a token that is there: it is looked at before
/// the quota, since a repetition needs no room.
pub(super) async fn admit_in(
    api: &Api,
    conn: &mut Conn,
    account: &str,
    shape: &Shape,
    new: NewVolume,
) -> ApiResult<Option<Volume>> {
    let wanted = quotas::of_volume(shape.volume_type, new.iops, new.size_gib);
    if let Err(refusal) = quotas::take(api, conn, account, wanted).await {
        let known = match &new.client_token {
            Some(token) => rows::find_by_token(conn, account, token).await?.is_some(),
            None => false,
        };
        return if known { Ok(None) } else { Err(refusal) };
    }
    Ok(Accept::run(conn, &[new]).await?.into_iter().next().flatten())
}

/// The volume that an earlier request with this token made.
pub(super) async fn repeated(conn: &mut Conn, account: &str, token: &str, digest: &[u8]) -> ApiResult<Option<Volume>> {
    let Some((row, earlier)) = rows::find_by_token(conn, account, token).await? else { return Ok(None) };
    let mismatch = |text: &str| Err(ApiError::new("IdempotentParameterMismatch", text));
    if earlier.as_deref() != Some(digest) {
        return mismatch(
            "Parameters on this idempotent request are inconsistent with parameters used in previous request(s)",
        );
    }
    if matches!(row.state, VolumeState::Deleting | VolumeState::Deleted) {
        return mismatch(
            "The client token you have provided is associated with a resource that is already deleted. Please use a \
             different client token.",
        );
    }
    Ok(Some(row))
}

/// The size of an empty volume, and the storage node of the zone that gets it.
async fn place(api: &Api, zone: &Zone, shape: &Shape) -> ApiResult<(i32, String)> {
    let size = shape.size_gib.ok_or_else(|| missing("size/snapshot"))?;
    let node = api.placement.choose(&api.storage_nodes_of(&zone.name), bytes(size)).await?;
    Ok((size, node.ok_or_else(no_room)?))
}

/// The size of a volume from a snapshot, and the storage node of the zone that gets it. The snapshot stays until the transaction
/// ends, and then for as long as the volume is being made.
async fn place_beside(
    api: &Api,
    conn: &mut Conn,
    account: &str,
    zone: &Zone,
    shape: &Shape,
    id: &SnapshotId,
) -> ApiResult<(i32, String)> {
    let source = snapshots::find_usable(conn, id, account).await?.ok_or_else(|| no_snapshot(id))?;
    if source.state != SnapshotState::Completed {
        return Err(incorrect_state(format!("Snapshot is in invalid state - {}", source.state)));
    }
    let size = shape.size_gib.unwrap_or(source.volume_size_gib);
    if size < source.volume_size_gib {
        return Err(invalid_value(format!(
            "The size of a volume can't be smaller than the size of the snapshot ({} GiB) that it is created from.",
            source.volume_size_gib
        )));
    }
    volume_types::check_size(shape, size)?;
    let of_zone = api.storage_nodes_of(&zone.name);
    // The node that has it need not copy it from another.
    let (own, others): (Vec<_>, Vec<_>) = of_zone.into_iter().partition(|node| *node == source.node);
    let mut choices = [own, others].into_iter();
    let node = choices.find_map(|among| api.placement.take(&among, bytes(size)));
    Ok((size, node.ok_or_else(no_room)?))
}

/// GiB in bytes.
pub(super) fn bytes(size_gib: i32) -> u64 {
    u64::try_from(size_gib).unwrap_or(0) << 30
}

/// The refusal of a volume that its zone has no room for.
pub(super) fn no_room() -> ApiError {
    ApiError::new(
        NO_ROOM,
        "There is not enough capacity to fulfill your volume provision request. Retry with another zone, or later.",
    )
}

/// The answer: the fields of the volume at the top level; unlike a describe's, with `tagSet` even when it is
/// empty.
fn render(api: &Api, call: &Call, row: &Volume, asked: &Tags) -> String {
    let mut xml = call.answer();
    xml.plain("volumeId", &row.id)
        .plain("size", row.size_gib)
        .text("snapshotId", row.snapshot_id.as_ref().map_or("", |id| id.as_str()))
        .text("availabilityZone", &row.zone)
        .text("availabilityZoneId", api.region.zone_id(&row.zone))
        .plain("status", row.state)
        .second("createTime", row.created_at);
    tags::asked(&mut xml, asked);
    xml.plain("volumeType", &row.volume_type)
        .optional_plain("iops", row.iops)
        .plain("encrypted", row.encrypted)
        .plain("multiAttachEnabled", row.multi_attach)
        .optional_plain("throughput", row.throughput)
        .optional_plain("volumeInitializationRate", row.initialization_rate);
    xml.finish()
}
