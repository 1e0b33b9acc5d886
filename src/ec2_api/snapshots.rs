//! CreateSnapshot, DeleteSnapshot and DescribeSnapshots.

use std::time::Duration;

use diesel_async::AsyncConnection;

use crate::db::describe_snapshots::{self as table, DescribedSnapshot};
use crate::db::snapshots::{self as rows, NewSnapshot, Snapshot};
use crate::db::statement::{Condition, Subject};
use crate::db::{describe_tags, volumes as volume_rows};
use crate::ids::{SnapshotId, VolumeId};
use crate::state::{SnapshotState, VolumeState};
use crate::workers::{create_snapshot, delete_snapshot};

use super::error::{ApiError, ApiResult};
use super::faults::{self, clip, incorrect_state, invalid_value, no_snapshot, no_volume, unsupported};
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::tag_rules::{self, Tags};
use super::xml::Xml;
use super::{Api, Call, quotas, tags, volumes};

const PAGES: PageRules = PageRules { ids_set: "snapshotIdsSet", kind: "snapshot", zero_is_none: true };
/// How long an answer waits for the cut; far from the time after which clients ask again.
const CUT_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const CUT_POLL: Duration = Duration::from_millis(10);
/// The most characters of a description.
const MAX_DESCRIPTION: usize = 255;

const FILTERS: [&str; 15] = [
    "description",
    "encrypted",
    "owner-alias",
    "owner-id",
    "progress",
    "snapshot-id",
    "start-time",
    "status",
    "storage-tier",
    "tag:",
    "tag-key",
    "tag-value",
    "transfer-type",
    "volume-id",
    "volume-size",
];

/// CreateSnapshot. Without a client token, as on EC2: the same request again makes a second snapshot.
pub async fn create(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let volume = params.text("VolumeId");
    let description = params.text("Description").unwrap_or_default();
    let elsewhere =
        params.filled("OutpostArn").is_some() | params.filled("Location").is_some_and(|at| at != "regional");
    let specifications = params.tag_specifications()?;
    params.finish()?;
    let volume: VolumeId = resource_id::required(volume.as_deref(), Dialect::Volume)?;
    let tags = tag_rules::from_specifications(specifications, "snapshot")?;
    if description.chars().count() > MAX_DESCRIPTION {
        return Err(invalid_value(format!(
            "Value ({}) for parameter description is invalid. It must be at most {MAX_DESCRIPTION} characters long.",
            clip(&description)
        )));
    }
    if elsewhere {
        return Err(unsupported("Outposts and local snapshots are not supported."));
    }
    let account = &*call.caller.account_id;
    let mut conn = api.pool.get().await?;
    volumes::find(&mut conn, account, &volume).await?;
    call.stop_if_dry_run()?;
    let row = conn
        .transaction(async |conn| {
            let source = volume_rows::hold(conn, &volume).await?.ok_or_else(|| no_volume(&volume))?;
            match source.state {
                VolumeState::Available | VolumeState::InUse => {}
                VolumeState::Deleting | VolumeState::Deleted => return Err(no_volume(&volume)),
                state => return Err(incorrect_state(format!("Volume '{volume}' is in the '{state}' state."))),
            }
            quotas::take_snapshots(api, conn, account, &[&volume]).await?;
            let new = NewSnapshot {
                id: &SnapshotId::generate(),
                account_id: account,
                volume_id: &volume,
                volume_size_gib: source.size_gib,
                node: &source.node,
                description: &description,
                state: SnapshotState::Pending,
            };
            let row = rows::insert(conn, &new).await?;
            describe_tags::insert(conn, account, "snapshot", row.id.as_str(), &tags).await?;
            create_snapshot::enqueue(conn, &row.id, &volume).await?;
            Ok(row)
        })
        .await?;
    api.wake.wake();
    drop(conn);
    await_cut(api, &row.id).await;
    Ok(render(call, &row, &tags))
}

/// Waits, for a while, until the snapshot is cut: whoever froze a filesystem for it thaws it as soon as this call is
/// answered, and what is written then must not be in it. EC2 cuts at the call; we answer after the cut. The answer says
/// `pending` all the same, which is what clients expect.
async fn await_cut(api: &Api, id: &SnapshotId) {
    let cut = async {
        loop {
            let asked = async { create_snapshot::is_cut(&mut *api.pool.get().await?, id).await };
            // Whether it can be asked or not, the snapshot is accepted, and the answer must say so.
            if asked.await.unwrap_or(true) {
                return;
            }
            tokio::time::sleep(CUT_POLL).await;
        }
    };
    if tokio::time::timeout(CUT_PATIENCE, cut).await.is_err() {
        tracing::info!(snapshot = %id, "answered before it was cut");
    }
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

/// DescribeSnapshots. Snapshots cannot be shared here, so what a caller sees is what they own.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("SnapshotId")?;
    let (owners, restorers) = (params.list("Owner")?, params.list("RestorableBy")?);
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let account = &*call.caller.account_id;
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids = resource_id::list(&ids, Dialect::Snapshot)?;
    let selected = is_selected(&owners, account)? & is_selected(&restorers, account)?;
    let filters = filters::check(filters, &FILTERS)?;
    let conditions: Vec<Condition> = filters.iter().map(condition).collect();
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let mut rows = table::by_ids(&mut conn, account, &ids, &conditions).await?;
        if rows.len() < ids.len() {
            tags::refuse(&ids, &table::existing(&mut conn, account, &ids).await?, faults::no_snapshots)?;
        }
        rows.retain(|_| selected);
        xml.set("snapshotSet", &rows, |xml, row| item(xml, row, account));
        return Ok(xml.finish());
    }
    if !selected {
        xml.text("snapshotSet", "");
        return Ok(xml.finish());
    }
    xml.open("snapshotSet");
    let token = loop {
        let rows = table::page(&mut conn, account, page.after.as_deref(), page.fetch(), &conditions).await?;
        let onward = page.write(&mut xml, &rows, |row| row.id.to_string(), |xml, row| item(xml, row, account));
        match onward {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("snapshotSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// Whether the caller's own snapshots are among those of these owners (or restorable by these accounts).
fn is_selected(owners: &[String], account: &str) -> ApiResult<bool> {
    for owner in owners {
        let is_account = owner.len() == 12 && owner.bytes().all(|b| b.is_ascii_digit());
        if !is_account && !matches!(owner.as_str(), "self" | "amazon" | "aws-marketplace" | "aws-backup-vault" | "all")
        {
            return Err(ApiError::new("InvalidUserID.Malformed", format!("Invalid user id: \"{}\"", clip(owner))));
        }
    }
    Ok(owners.is_empty() || owners.iter().any(|owner| owner == "self" || owner == account))
}

/// What a filter looks at.
fn condition(filter: &Filter) -> Condition {
    let expression = match filter.name.as_str() {
        "description" => "s.description",
        "encrypted" => "s.encrypted::text",
        "owner-alias" => "NULL::text",
        "owner-id" => "s.account_id",
        "progress" => "s.progress::text || '%'",
        "snapshot-id" => "s.id",
        "start-time" => r#"to_char(s.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#,
        "status" => "s.state",
        "storage-tier" | "transfer-type" => "'standard'::text",
        "volume-id" => "s.volume_id",
        "volume-size" => "s.volume_size_gib::text",
        _ => return tags::condition(filter),
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

fn item(xml: &mut Xml, row: &DescribedSnapshot, account: &str) {
    xml.plain("snapshotId", &row.id)
        .plain("volumeId", &row.volume_id)
        .plain("status", row.state)
        .optional("statusMessage", row.state_reason.as_deref().map(|_| "The snapshot could not be taken."))
        .time("startTime", row.started_at)
        .plain("progress", format_args!("{}%", row.progress))
        .plain("ownerId", account)
        .plain("volumeSize", row.volume_size_gib)
        .text("description", &row.description)
        .plain("encrypted", row.encrypted);
    tags::set(xml, &row.tag_keys, &row.tag_values);
    xml.text("storageTier", "standard").text("transferType", "standard");
    if let Some(at) = row.completed_at {
        xml.time("completionTime", at).optional_plain("fullSnapshotSizeInBytes", row.data_bytes);
    }
}
