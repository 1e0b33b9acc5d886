//! CreateSnapshot and DeleteSnapshot.

use std::future::Future;
use std::time::Duration;

use diesel_async::AsyncConnection;

use crate::db::snapshots::{self as rows, NewSnapshot, Snapshot};
use crate::db::volumes::{self as volume_rows, Volume};
use crate::db::{self, Conn, describe_tags};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::{SnapshotState, VolumeState};
use crate::workers::{create_snapshot, delete_snapshot};

use super::error::{ApiError, ApiResult};
use super::faults::{clip, incorrect_state, invalid_value, no_snapshot, no_volume, unsupported};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::tag_rules::{self, Tags};
use super::{Api, Call, quotas, tags, volumes};

/// How long an answer waits for the cut; far from the time after which clients ask again.
const CUT_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const CUT_POLL: Duration = Duration::from_millis(10);
/// The most characters of a description.
const MAX_DESCRIPTION: usize = 255;

/// CreateSnapshot. Without a client token, as on EC2: the same request again makes a second snapshot.
pub async fn create(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let volume = params.text("VolumeId");
    let description = params.text("Description").unwrap_or_default();
    let elsewhere = is_elsewhere(&mut params);
    let specifications = params.tag_specifications()?;
    params.finish()?;
    let volume: VolumeId = resource_id::required(volume.as_deref(), Dialect::Volume)?;
    let tags = tag_rules::from_specifications(specifications, "snapshot")?;
    check_description(&description)?;
    if elsewhere {
        return Err(outposts());
    }
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    volumes::find(&mut conn, account, &volume).await?;
    call.stop_if_dry_run()?;
    let row = conn
        .transaction(async |conn| {
            let source = hold_source(conn, &volume).await?;
            quotas::take_snapshots(api, conn, account, &[&volume]).await?;
            let new = NewSnapshot {
                id: &SnapshotId::generate(),
                account_id: account,
                volume_id: &volume,
                volume_size_gib: source.size_gib,
                node: &source.node,
                description: &description,
                state: SnapshotState::Pending,
                set_id: None,
            };
            let row = rows::insert(conn, &new).await?;
            describe_tags::insert(conn, account, "snapshot", row.id.as_str(), &tags).await?;
            create_snapshot::enqueue(conn, &row.id, &volume).await?;
            Ok::<_, ApiError>(row)
        })
        .await?;
    api.wake.wake();
    drop(conn);
    let is_cut = || async { create_snapshot::is_cut(&mut *api.pool.get().await?, &row.id).await };
    if !await_cut(is_cut).await {
        tracing::info!(snapshot = %row.id, "answered before it was cut");
    }
    Ok(render(call, &row, &tags))
}

/// Takes what says that the snapshot shall be on an Outpost or in a Local Zone.
pub(super) fn is_elsewhere(params: &mut Params) -> bool {
    params.filled("OutpostArn").is_some() | params.filled("Location").is_some_and(|at| at != "regional")
}

/// The refusal of that.
pub(super) fn outposts() -> ApiError {
    unsupported("Outposts and local snapshots are not supported.")
}

/// Refuses a description that is too long, or that goes beyond ASCII, as EC2 does.
pub(super) fn check_description(description: &str) -> ApiResult<()> {
    let why = if description.chars().count() > MAX_DESCRIPTION {
        format!("It must be at most {MAX_DESCRIPTION} characters long.")
    } else if !description.is_ascii() {
        "Character sets beyond ASCII are not supported.".to_owned()
    } else {
        return Ok(());
    };
    Err(invalid_value(format!("Value ({}) for parameter description is invalid. {why}", clip(description))))
}

/// The volume to take a snapshot of, held so that its state stays until the transaction ends.
pub(super) async fn hold_source(conn: &mut Conn, volume: &VolumeId) -> ApiResult<Volume> {
    let source = volume_rows::hold(conn, volume).await?.ok_or_else(|| no_volume(volume))?;
    match source.state {
        VolumeState::Available | VolumeState::InUse => Ok(source),
        VolumeState::Deleting | VolumeState::Deleted => Err(no_volume(volume)),
        state => Err(incorrect_state(format!("Volume '{volume}' is in the '{state}' state."))),
    }
}

/// Waits, for a while, until it is cut: whoever froze a filesystem for it thaws it as soon as this call is answered, and what
/// is written then must not be in it. EC2 cuts at the call; we answer after the cut. The answer says `pending` all the same,
/// which is what clients expect. Tells whether it was cut in time.
pub(super) async fn await_cut<F>(is_cut: impl Fn() -> F) -> bool
where
    F: Future<Output = db::Result<bool>>,
{
    let cut = async {
        // A database that does not answer has not said that it is cut.
        while !is_cut().await.unwrap_or(false) {
            tokio::time::sleep(CUT_POLL).await;
        }
    };
    tokio::time::timeout(CUT_PATIENCE, cut).await.is_ok()
}

/// The answer: `progress` is there but empty.
fn render(call: &Call, row: &Snapshot, asked: &Tags) -> String {
    let mut xml = call.answer();
    xml.plain("snapshotId", &row.id)
        .plain("volumeId", &row.volume_id)
        .plain("status", row.state)
        .time("startTime", row.started_at)
        .text("progress", "")
        .text("ownerId", &row.account_id)
        .plain("volumeSize", row.volume_size_gib)
        .text("description", &row.description)
        .plain("encrypted", row.encrypted);
    tags::asked(&mut xml, asked);
    xml.finish()
}

/// DeleteSnapshot. One that is still being taken may be deleted too.
pub async fn delete(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("SnapshotId");
    params.finish()?;
    let id: SnapshotId = resource_id::required(id.as_deref(), Dialect::Snapshot)?;
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    let row = rows::find(&mut conn, &id)
        .await?
        .filter(|row| row.account_id == account && row.state != SnapshotState::Deleting)
        .ok_or_else(|| no_snapshot(&id))?;
    call.stop_if_dry_run()?;
    conn.transaction(async |conn| {
        if delete_snapshot::start(conn, &id, &row.volume_id).await? { Ok(()) } else { Err(no_snapshot(&id)) }
    })
    .await?;
    api.wake.wake();
    Ok(call.done())
}
