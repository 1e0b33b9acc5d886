//! CopyVolumes: a volume of the bytes that another one has at the call, beside it.

use diesel_async::AsyncConnection;
use sha2::{Digest, Sha256};

use crate::db::volumes::{self as rows, NewVolume, Volume};
use crate::db::{Conn, workflows};
use crate::ids::VolumeId;
use crate::state::VolumeState;
use crate::workers::copy_volume;

use super::create_volume::{MAX_TOKEN, NO_ROOM, admit_in, bytes, no_room, repeated};
use super::error::{ApiError, ApiResult};
use super::faults::{invalid_value, unsupported};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::snapshots::{await_cut, hold_source};
use super::tag_rules::{self, Tags};
use super::volume_types::{self, Asked, Shape};
use super::{Api, Call, tags, volumes};

/// What is asked for.
struct Request {
    source: VolumeId,
    size: Option<i32>,
    iops: Option<i32>,
    multi_attach: Option<bool>,
    encrypted: Option<bool>,
    shape: Shape,
    token: Option<String>,
    tags: Tags,
}

/// CopyVolumes. The plural is EC2's: it makes one.
pub async fn copy(api: &Api, call: &Call, params: Params) -> ApiResult<String> {
    let request = check(params)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let mut unknown = volumes::find(&mut conn, account, &request.source).await.err();
    if let Some(refusal) = unknown.take_if(|_| call.dry_run || request.token.is_none()) {
        return Err(refusal);
    }
    call.stop_if_dry_run()?;
    check_late(&request)?;
    let digest = request.token.as_ref().map(|_| request.digest());
    let earlier = async |conn: &mut Conn| match (&request.token, &digest) {
        (Some(token), Some(digest)) => repeated(conn, account, token, digest).await,
        _ => Ok(None),
    };
    let mut volume = earlier(&mut conn).await?;
    // What is asked for again was made, though its source is gone by now.
    if let (None, Some(refusal)) = (&volume, unknown) {
        return Err(refusal);
    }
    let mut made = false;
    if volume.is_none() {
        api.placement.ready().await?;
        let mut tried = make(api, &mut conn, account, &request, digest.as_deref()).await;
        if tried.as_ref().is_err_and(|refusal| refusal.code == NO_ROOM) {
            // No node is asked while a transaction is open.
            let zone = volumes::find(&mut conn, account, &request.source).await?.zone;
            api.placement.look(&api.storage_nodes_of(&zone)).await;
            tried = make(api, &mut conn, account, &request, digest.as_deref()).await;
        }
        volume = tried?;
        made = volume.is_some();
        if volume.is_none() {
            // Another try with the same token was faster.
            volume = earlier(&mut conn).await?;
        }
    }
    let volume = volume.ok_or_else(|| ApiError::unavailable("a client token came and went"))?;
    drop(conn);
    if made {
        api.wake.wake();
    }
    // Also when it was made by an earlier try, of which the caller has heard nothing.
    if volume.state == VolumeState::Creating {
        let is_cut =
            || async { Ok(!workflows::is_at_first_step(&mut *api.pool.get().await?, volume.id.as_str()).await?) };
        if !await_cut(is_cut).await {
            tracing::info!(volume = %volume.id, "answered before it was cut");
        }
    }
    Ok(render(api, call, &volume, &request))
}

fn check(mut params: Params) -> ApiResult<Request> {
    let source = params.text("SourceVolumeId");
    let (size, iops, throughput) = (params.integer("Size")?, params.integer("Iops")?, params.integer("Throughput")?);
    let volume_type = params.filled("VolumeType");
    let (multi_attach, encrypted) = (params.boolean("MultiAttachEnabled")?, params.boolean("Encrypted")?);
    let (kms_key, token) = (params.filled("KmsKeyId"), params.filled("ClientToken"));
    let specifications = params.tag_specifications()?;
    params.finish()?;
    let source = resource_id::required(source.as_deref(), Dialect::Volume)?;
    let shape = volume_types::check(Asked { volume_type: volume_type.as_deref(), size_gib: size, iops, throughput })?;
    if kms_key.is_some() && encrypted != Some(true) {
        return Err(ApiError::new(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        ));
    }
    if encrypted == Some(true) {
        return Err(unsupported("Encrypted volumes are not supported."));
    }
    let tags = tag_rules::from_specifications(specifications, "volume")?;
    Ok(Request { source, size, iops, multi_attach, encrypted, shape, token, tags })
}

fn check_late(request: &Request) -> ApiResult<()> {
    volume_types::check_multi_attach(request.multi_attach, request.shape.volume_type)?;
    match &request.token {
        Some(token) if token.chars().count() > MAX_TOKEN => {
            Err(invalid_value(format!("Client token must be less than or equal to {MAX_TOKEN} characters.")))
        }
        _ => Ok(()),
    }
}

impl Request {
    /// What must be equal for a token to be a repetition.
    fn digest(&self) -> Vec<u8> {
        let asked = serde_json::json!([
            "CopyVolumes",
            self.source,
            self.size,
            self.shape.volume_type,
            self.iops,
            self.shape.throughput,
            self.multi_attach,
            self.encrypted,
            self.tags,
        ]);
        Sha256::digest(asked.to_string()).to_vec()
    }
}

/// Stores the copy beside its source. `None` when its token is there already.
async fn make(
    api: &Api,
    conn: &mut Conn,
    account: &str,
    request: &Request,
    digest: Option<&[u8]>,
) -> ApiResult<Option<Volume>> {
    conn.transaction(async |conn| {
        let source = hold_source(conn, &request.source).await?;
        let size_gib = request.size.unwrap_or(source.size_gib);
        if size_gib < source.size_gib {
            return Err(invalid_value(format!(
                "The size of a volume can't be smaller than the size of the volume ({} GiB) that it is copied from.",
                source.size_gib
            )));
        }
        volume_types::check_size(&request.shape, size_gib)?;
        let node = api.placement.take(&[&source.node], bytes(size_gib)).ok_or_else(no_room)?;
        let id = VolumeId::generate();
        let new = NewVolume {
            workflow: copy_volume::workflow(&id, &source.id),
            id: id.clone(),
            account_id: account.to_owned(),
            zone: source.zone,
            node,
            size_gib,
            volume_type: request.shape.volume_type,
            iops: request.shape.iops(size_gib),
            throughput: request.shape.throughput,
            initialization_rate: None,
            multi_attach: request.multi_attach == Some(true),
            snapshot_id: None,
            client_token: request.token.clone(),
            request_digest: digest.map(hex::encode),
            tags: request.tags.clone(),
        };
        let placed = new.node.clone();
        let made = admit_in(api, conn, account, &request.shape, new).await;
        if !matches!(made, Ok(Some(_))) {
            api.placement.give_back(&placed, bytes(size_gib));
        }
        let made = made?;
        if made.is_some() {
            rows::set_copied_from(conn, &id, &source.id).await?;
            workflows::set_volume(conn, id.as_str(), &source.id).await?;
        }
        Ok(made)
    })
    .await
}

fn render(api: &Api, call: &Call, row: &Volume, request: &Request) -> String {
    let mut xml = call.answer();
    xml.set("volumeSet", [row], |xml, row| {
        xml.plain("volumeId", &row.id)
            .plain("sourceVolumeId", &request.source)
            .plain("size", row.size_gib)
            .text("snapshotId", "")
            .text("availabilityZone", &row.zone)
            .text("availabilityZoneId", api.region.zone_id(&row.zone))
            .plain("status", row.state)
            .second("createTime", row.created_at);
        tags::asked(xml, &request.tags);
        xml.plain("volumeType", &row.volume_type)
            .optional_plain("iops", row.iops)
            .plain("encrypted", row.encrypted)
            .plain("multiAttachEnabled", row.multi_attach)
            .optional_plain("throughput", row.throughput);
    });
    xml.finish()
}
