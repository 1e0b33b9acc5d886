//! DescribeSnapshots: what the caller owns, and what others share with them.

use crate::db::Conn;
use crate::db::describe_snapshots::{self as table, DescribedSnapshot, Own, Scope};
use crate::db::snapshot_permissions::EVERYBODY;
use crate::db::statement::{Condition, Subject};
use crate::ids::SnapshotId;

use super::error::{ApiError, ApiResult};
use super::faults::{self, clip_each};
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::Params;
use super::resource_id::{self, Dialect};
use super::xml::Xml;
use super::{Api, Call, tags};

const PAGES: PageRules = PageRules { ids_set: "snapshotIdsSet", kind: "snapshot", zero_is_none: true };

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

/// DescribeSnapshots.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("SnapshotId")?;
    let (owners, restorers) = (params.list("Owner")?, params.list("RestorableBy")?);
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let account = &*call.caller.account_id;
    let mut page = page.check(PAGES, !ids.is_empty())?;
    let ids: Vec<SnapshotId> = resource_id::list(&ids, Dialect::Snapshot)?;
    let scope = scope(account, &owners, &restorers)?;
    let filters = filters::check(filters, &FILTERS)?;
    let conditions: Vec<Condition> = filters.iter().map(condition).collect();
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    if !ids.is_empty() {
        let rows = named(&mut conn, account, &scope, &ids, &conditions).await?;
        xml.set("snapshotSet", &rows, item);
        return Ok(xml.finish());
    }
    if scope.is_empty() {
        xml.text("snapshotSet", "");
        return Ok(xml.finish());
    }
    xml.open("snapshotSet");
    let token = loop {
        let rows = table::page(&mut conn, &scope, page.after.as_deref(), page.fetch(), &conditions).await?;
        match page.write(&mut xml, rows, |row| row.id.to_string(), item).await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("snapshotSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

/// Those of the snapshots named that are asked for; refuses names of what the caller may not see.
async fn named(
    conn: &mut Conn,
    account: &str,
    scope: &Scope<'_>,
    ids: &[SnapshotId],
    conditions: &[Condition],
) -> ApiResult<Vec<DescribedSnapshot>> {
    let rows = if scope.is_empty() { vec![] } else { table::by_ids(conn, scope, ids, conditions).await? };
    if rows.len() == ids.len() {
        return Ok(rows);
    }
    // Asked at one instant: of one that is shared between two questions the answer would be that it is there, and nothing of it.
    let mut instant = conn.build_transaction().repeatable_read().read_only();
    let asked = instant.run(async |conn| {
        let rows = if scope.is_empty() { vec![] } else { table::by_ids(conn, scope, ids, conditions).await? };
        Ok::<_, ApiError>((rows, table::visible(conn, account, ids).await?))
    });
    let (rows, visible) = asked.await?;
    tags::refuse(ids, &visible, faults::no_snapshots)?;
    Ok(rows)
}

/// What `Owner.N` and `RestorableBy.N` select of what the caller may see. Of the owners that Amazon has names for none has
/// snapshots here. Another account's right to restore is told of the caller's own snapshots only.
fn scope<'a>(account: &'a str, owners: &[String], restorers: &[String]) -> ApiResult<Scope<'a>> {
    let owners = accounts(owners, account)?;
    let restorers = accounts(restorers, account)?;
    let mine = |list: &[String]| list.iter().any(|id| id == account);
    let (for_me, for_all) = match &restorers {
        None => (true, true),
        Some(list) => (mine(list), list.iter().any(|id| id == EVERYBODY)),
    };
    let own = match (&owners, restorers) {
        (Some(owners), _) if !mine(owners) => Own::None,
        (_, Some(list)) if !for_me => Own::SharedWith(list),
        _ => Own::All,
    };
    let others = owners.as_ref().is_none_or(|owners| owners.iter().any(|id| id != account));
    Ok(Scope { account_id: account, own, granted: for_me && others, public: for_all && others, owners })
}

/// Reads a list of accounts, of which `self` is the caller; `None` when there is no list. Names that are no account's are left
/// out, but for `all`.
fn accounts(list: &[String], account: &str) -> ApiResult<Option<Vec<String>>> {
    let (mut accounts, mut bad) = (Vec::with_capacity(list.len()), Vec::new());
    for name in list {
        match name.as_str() {
            "self" => accounts.push(account.to_owned()),
            "amazon" | "aws-marketplace" | "aws-backup-vault" => {}
            EVERYBODY => accounts.push(name.clone()),
            _ if is_account(name) => accounts.push(name.clone()),
            _ => bad.push(name.as_str()),
        }
    }
    if !bad.is_empty() {
        return Err(ApiError::new("InvalidUserID.Malformed", format!("Invalid user id: \"{}\"", clip_each(&bad))));
    }
    Ok(if list.is_empty() { None } else { Some(accounts) })
}

/// Whether the text has the form of an account's id.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// What a filter looks at.
fn condition(filter: &Filter) -> Condition {
    let expression = match filter.name.as_str() {
        "description" => "s.description",
        "encrypted" => "s.encrypted::text",
        "owner-alias" => "NULL::text",
        "owner-id" => "s.account_id",
        "progress" => "(CASE s.state WHEN 'pending' THEN least(s.progress, 99) ELSE s.progress END)::text || '%'",
        "snapshot-id" => "s.id",
        "start-time" => r#"to_char(s.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#,
        "status" => "s.state",
        "storage-tier" => "'standard'::text",
        "transfer-type" => "CASE WHEN s.completion_minutes IS NULL THEN 'standard' ELSE 'time-based' END",
        "volume-id" => "s.volume_id",
        "volume-size" => {
            "(CASE WHEN s.source_id IS NULL OR s.completed_at IS NOT NULL THEN s.volume_size_gib ELSE 0 END)::text"
        }
        _ => return tags::condition(filter),
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

fn item(xml: &mut Xml, row: &DescribedSnapshot) {
    let failed = row.state_reason.as_deref().map(|_| "The snapshot could not be taken.");
    xml.plain("snapshotId", &row.id)
        .plain("volumeId", &row.volume_id)
        .plain("status", row.state)
        .optional("statusMessage", row.status_message.as_deref().or(failed))
        .time("startTime", row.started_at)
        .plain("progress", format_args!("{}%", row.progress))
        .text("ownerId", &row.account_id)
        .plain("volumeSize", row.volume_size_gib)
        .text("description", &row.description)
        .plain("encrypted", row.encrypted);
    tags::set(xml, &row.tag_keys, &row.tag_values);
    xml.text("storageTier", "standard")
        .text("transferType", if row.completion_minutes.is_some() { "time-based" } else { "standard" })
        .optional_plain("completionDurationMinutes", row.completion_minutes);
    if let Some(at) = row.completed_at {
        xml.time("completionTime", at).optional_plain("fullSnapshotSizeInBytes", row.data_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "111111111111";
    const OTHER: &str = "222222222222";

    fn selected(owners: &[&str], restorers: &[&str]) -> (Own, bool, bool) {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let scope = scope(ME, &texts(owners), &texts(restorers)).unwrap();
        (scope.own, scope.granted, scope.public)
    }

    #[test]
    fn owners_and_restorers_narrow_what_the_caller_may_see() {
        let shared = |with: &[&str]| Own::SharedWith(with.iter().map(|text| (*text).to_owned()).collect());
        for (owners, restorers, expected) in [
            (&[][..], &[][..], (Own::All, true, true)),
            (&["self"], &[], (Own::All, false, false)),
            (&[ME], &[], (Own::All, false, false)),
            (&[OTHER], &[], (Own::None, true, true)),
            (&["self", OTHER], &[], (Own::All, true, true)),
            (&["amazon"], &[], (Own::None, false, false)),
            (&[], &["self"], (Own::All, true, false)),
            (&[], &["all"], (shared(&["all"]), false, true)),
            (&[], &[OTHER], (shared(&[OTHER]), false, false)),
            (&[], &[OTHER, "all"], (shared(&[OTHER, "all"]), false, true)),
            (&[OTHER], &["self"], (Own::None, true, false)),
            (&["self"], &[OTHER], (shared(&[OTHER]), false, false)),
        ] {
            assert_eq!(selected(owners, restorers), expected, "{owners:?} {restorers:?}");
        }
        assert_eq!(scope(ME, &["foo".into()], &[]).unwrap_err().code, "InvalidUserID.Malformed");
    }
}
