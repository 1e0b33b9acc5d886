//! CreateTags, DeleteTags and DescribeTags, and the form in which tags are shown.

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;

use diesel_async::AsyncConnection;

use crate::db::describe_tags::{self as table, DescribedTag};
use crate::db::statement::{Condition, Subject};
use crate::db::{Conn, describe_instances, describe_snapshots, describe_volumes};
use crate::ids::{Id, Instance, InstanceId, Kind, Snapshot, SnapshotId, VolumeId};

use super::error::{ApiError, ApiResult};
use super::faults::{self, clip, clip_each, invalid_value, missing};
use super::filters::{self, Filter};
use super::paging::{Onward, PageParams, PageRules};
use super::query::{Params, TagParam};
use super::tag_rules::{self, Tags};
use super::xml::Xml;
use super::{Api, Call};

const PAGES: PageRules = PageRules { ids_set: "resourceIdSet", kind: "tag", zero_is_none: false };
const FILTERS: [&str; 5] = ["key", "resource-id", "resource-type", "tag:", "value"];
/// The most resources of one request.
const MAX_RESOURCES: usize = 1_000;
/// The most tags of one DeleteTags.
const MAX_DOOMED: usize = 1_000;

/// The `tagSet` of a describe: absent when there are no tags, which is what boto3 takes for "no tags".
pub fn set(xml: &mut Xml, keys: &[String], values: &[String]) {
    if !keys.is_empty() {
        xml.set("tagSet", keys.iter().zip(values), |xml, (key, value)| {
            xml.text("key", key).text("value", value);
        });
    }
}

/// The `tagSet` of an action that made a resource: there even when it is empty.
pub fn asked(xml: &mut Xml, tags: &Tags) {
    xml.set("tagSet", tags, |xml, (key, value)| {
        xml.text("key", key).text("value", value);
    });
}

/// What the filters on tags look at: `tag:KEY`, `tag-key`, and `tag-value`, which AWS has without a word of it.
pub fn condition(filter: &Filter) -> Condition {
    let subject = match filter.name.as_str() {
        "tag-key" => Subject::AnyTagKey,
        "tag-value" => Subject::AnyTagValue,
        name => Subject::Tag(name.strip_prefix("tag:").unwrap_or(name).to_owned()),
    };
    Condition { subject, values: filter.values() }
}

/// DescribeTags.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let filters = params.filters()?;
    let page = PageParams::take(&mut params)?;
    params.finish()?;
    call.stop_if_dry_run()?;
    let mut page = page.check(PAGES, false)?;
    let filters = filters::check(filters, &FILTERS)?;
    let conditions: Vec<Condition> = filters.iter().map(tag_condition).collect();
    let mut conn = api.pool.get().await?;
    let mut xml = call.answer();
    xml.open("tagSet");
    let token = loop {
        let after = page.after.as_deref().and_then(|after| after.split_once('/'));
        let rows = table::page(&mut conn, &call.caller.account_id, after, page.fetch(), &conditions).await?;
        let onward = page.write(&mut xml, rows, |row| format!("{}/{}", row.resource_id, row.key), item);
        match onward.await? {
            Onward::Fetch => {}
            Onward::End => break None,
            Onward::Token(token) => break Some(token),
        }
    };
    xml.close("tagSet").optional("nextToken", token.as_deref());
    Ok(xml.finish())
}

fn item(xml: &mut Xml, row: &DescribedTag) {
    xml.text("resourceId", &row.resource_id)
        .text("resourceType", &row.resource_type)
        .text("key", &row.key)
        .text("value", &row.value);
}

fn tag_condition(filter: &Filter) -> Condition {
    let expression = match filter.name.as_str() {
        "key" => "g.key",
        "resource-id" => "g.resource_id",
        "resource-type" => "g.resource_type",
        "value" => "g.value",
        tag => {
            let key = tag.strip_prefix("tag:").unwrap_or(tag).to_owned();
            return Condition { subject: Subject::ListedTag(key), values: filter.values() };
        }
    };
    Condition { subject: Subject::Expression(expression), values: filter.values() }
}

/// CreateTags: all resources get all tags, or none gets any.
pub async fn create(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("ResourceId")?;
    let tags = params.tags()?;
    params.finish()?;
    let resources = Resources::read(&ids)?;
    if tags.is_empty() {
        return Err(missing("tagSet"));
    }
    let tags = tag_rules::from_params(tags)?;
    let mut conn = api.pool.get().await?;
    if call.dry_run {
        resources.check(&mut conn, call).await?;
    }
    call.stop_if_dry_run()?;
    conn.transaction(async |conn| {
        resources.hold(conn, &call.caller.account_id).await?;
        resources.check(conn, call).await?;
        for (resource_type, ids) in resources.by_type() {
            table::put(conn, &call.caller.account_id, resource_type, &ids, &tags).await?;
            if table::most(conn, &ids).await? > i64::try_from(tag_rules::MAX_TAGS).unwrap_or(i64::MAX) {
                return Err(tag_rules::too_many());
            }
        }
        Ok::<_, ApiError>(())
    })
    .await?;
    Ok(call.done())
}

/// DeleteTags: by key; with a value, even an empty one, only where it is that; without tags, all. What is not there is
/// deleted already.
pub async fn delete(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let ids = params.list("ResourceId")?;
    let tags = params.tags()?;
    params.finish()?;
    let resources = Resources::read(&ids)?;
    let tags = tags.into_iter().map(doomed).collect::<ApiResult<BTreeSet<_>>>()?;
    if tags.len() > MAX_DOOMED {
        return Err(invalid_value(format!("At most {MAX_DOOMED} tags can be specified on a single call.")));
    }
    let mut conn = api.pool.get().await?;
    if call.dry_run {
        resources.check(&mut conn, call).await?;
    }
    call.stop_if_dry_run()?;
    conn.transaction(async |conn| {
        resources.hold(conn, &call.caller.account_id).await?;
        resources.check(conn, call).await?;
        for (_, ids) in resources.by_type() {
            if tags.is_empty() {
                table::remove_all(conn, &ids).await?;
            } else {
                table::remove(conn, &ids, &tags).await?;
            }
        }
        Ok::<_, ApiError>(())
    })
    .await?;
    Ok(call.done())
}

fn doomed(tag: TagParam) -> ApiResult<(String, Option<String>)> {
    match tag.key {
        Some(key) if tag_rules::is_reserved(&key) => {
            Err(invalid_value("Tag keys starting with 'aws:' are reserved for internal use"))
        }
        Some(key) if !key.is_empty() => Ok((key, tag.value)),
        _ => Err(invalid_value("Tag key must have a value")),
    }
}

/// The resources of a request, by kind.
#[derive(Debug, Default)]
struct Resources {
    volumes: Vec<VolumeId>,
    snapshots: Vec<SnapshotId>,
    instances: Vec<InstanceId>,
}

impl Resources {
    fn read(texts: &[String]) -> ApiResult<Self> {
        if texts.is_empty() {
            return Err(missing("resourceIdSet"));
        }
        if texts.len() > MAX_RESOURCES {
            return Err(invalid_value(format!("At most {MAX_RESOURCES} resources can be specified on a single call.")));
        }
        let mut resources = Self::default();
        let mut invalid = Vec::new();
        // The same resource twice is one: a statement cannot put the same tag twice.
        for text in texts.iter().collect::<BTreeSet<_>>() {
            let read = match text.split_once('-') {
                Some((Snapshot::PREFIX, _)) => Id::parse(text).map(|id| resources.snapshots.push(id)),
                Some((Instance::PREFIX, _)) => Id::parse(text).map(|id| resources.instances.push(id)),
                _ => Id::parse(text).map(|id| resources.volumes.push(id)),
            };
            if read.is_err() {
                invalid.push(text.as_str());
            }
        }
        match invalid.as_slice() {
            [] => Ok(resources),
            [one] => Err(ApiError::new("InvalidID", format!("The ID '{}' is not valid", clip(one)))),
            many => {
                let text = format!("The IDs '{}' are not valid", clip_each(many));
                Err(ApiError::new("InvalidID", text))
            }
        }
    }

    fn by_type(&self) -> Vec<(&'static str, Vec<&str>)> {
        fn texts<K: Kind>(ids: &[Id<K>]) -> Vec<&str> {
            ids.iter().map(Id::as_str).collect()
        }
        let all = [
            ("volume", texts(&self.volumes)),
            ("snapshot", texts(&self.snapshots)),
            ("instance", texts(&self.instances)),
        ];
        all.into_iter().filter(|(_, ids)| !ids.is_empty()).collect()
    }

    /// Holds the resources until the transaction ends, in one order for all, so that neither a deletion nor another change
    /// of their tags comes in between.
    async fn hold(&self, conn: &mut Conn, account: &str) -> ApiResult<()> {
        table::hold(conn, account, &self.volumes, &self.snapshots, &self.instances).await?;
        Ok(())
    }

    /// Refuses what the account does not have.
    async fn check(&self, conn: &mut Conn, call: &Call) -> ApiResult<()> {
        let account = &*call.caller.account_id;
        if !self.volumes.is_empty() {
            let there = describe_volumes::existing(conn, account, &self.volumes).await?;
            refuse(&self.volumes, &there, faults::no_volumes)?;
        }
        if !self.snapshots.is_empty() {
            let there = describe_snapshots::existing(conn, account, &self.snapshots).await?;
            refuse(&self.snapshots, &there, faults::no_snapshots)?;
        }
        if !self.instances.is_empty() {
            let there = describe_instances::existing(conn, account, &self.instances).await?;
            refuse(&self.instances, &there, faults::no_instances)?;
        }
        Ok(())
    }
}

/// Refuses the ids that are not there, if any.
pub fn refuse<K: Kind + Clone + Eq + Hash>(
    asked: &[Id<K>],
    there: &[Id<K>],
    fault: impl Fn(&[Id<K>]) -> ApiError,
) -> ApiResult<()> {
    let there: HashSet<&Id<K>> = there.iter().collect();
    let missing: Vec<Id<K>> = asked.iter().filter(|id| !there.contains(id)).cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(fault(&missing)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_that_is_none_is_named() {
        let refusal = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            Resources::read(&ids).unwrap_err().message
        };
        assert_eq!(refusal(&["vol-0123abcd", "ami-0123abcd"]), "The ID 'ami-0123abcd' is not valid");
        assert_eq!(refusal(&["x", "vol-0123abcd", "snap-1"]), "The IDs 'snap-1, x' are not valid");
        let many: Vec<String> = (10..40).map(|number| format!("vol-none{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(refusal(&many), format!("The IDs '{}' are not valid", many.join(", ")));
        assert_eq!(refusal(&[]), "The request must contain the parameter resourceIdSet");
    }
}
