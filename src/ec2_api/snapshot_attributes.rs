//! DescribeSnapshotAttribute, ModifySnapshotAttribute and ResetSnapshotAttribute: who besides its owner may use a snapshot.
//!
//! A snapshot has one attribute that can be changed, the permission to make volumes of it. Clients of all ages ask for that
//! in two forms: `CreateVolumePermission.Add.N`, and `Attribute` with `OperationType` and lists of users and groups. Only the
//! owner may read or change it; for those with whom a snapshot is shared these actions do not find it.

use std::collections::BTreeSet;

use diesel_async::AsyncConnection;

use crate::db::snapshot_permissions::{self as rows, EVERYBODY};
use crate::db::snapshots::{self, Snapshot};
use crate::db::{self, Conn};
use crate::ids::SnapshotId;
use crate::state::SnapshotState;

use super::describe_snapshots::is_account;
use super::error::{ApiError, ApiResult};
use super::faults::{clip, invalid_combination, invalid_value, missing, no_snapshot};
use super::query::{Params, PermissionParam};
use super::resource_id::{self, Dialect};
use super::{Api, Call};

const PERMISSIONS: &str = "createVolumePermission";
const PRODUCT_CODES: &str = "productCodes";
/// The most accounts and groups of one change.
const MAX_CHANGE: usize = 500;
/// The most accounts that a snapshot is shared with. AWS names no end; an answer must have one.
const MAX_GRANTEES: i64 = 10_000;

/// DescribeSnapshotAttribute.
pub async fn describe(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (id, attribute) = (params.text("SnapshotId"), params.filled("Attribute"));
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: SnapshotId = resource_id::required(id.as_deref(), Dialect::Snapshot)?;
    let attribute = attribute.ok_or_else(|| missing("attribute"))?;
    if attribute != PERMISSIONS && attribute != PRODUCT_CODES {
        return Err(received_was_invalid());
    }
    let mut conn = api.pool.get().await?;
    own(snapshots::find(&mut conn, &id).await?, call, &id)?;
    let mut xml = call.answer();
    xml.plain("snapshotId", &id);
    if attribute == PERMISSIONS {
        xml.set(PERMISSIONS, rows::of(&mut conn, &id).await?, |xml, grantee| {
            xml.text(if grantee == EVERYBODY { "group" } else { "userId" }, &grantee);
        });
    } else {
        xml.text(PRODUCT_CODES, "");
    }
    Ok(xml.finish())
}

/// ModifySnapshotAttribute.
pub async fn modify(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let id = params.text("SnapshotId");
    let request = Request::take(&mut params)?;
    params.finish()?;
    let id: SnapshotId = resource_id::required(id.as_deref(), Dialect::Snapshot)?;
    let mut conn = api.pool.get().await?;
    own(snapshots::find(&mut conn, &id).await?, call, &id)?;
    call.stop_if_dry_run()?;
    let change = request.check()?;
    // Who owns it may use it anyway, and is not listed.
    let of_others = |grantees: BTreeSet<String>| -> Vec<String> {
        grantees.into_iter().filter(|grantee| *grantee != *call.caller.account_id).collect()
    };
    conn.transaction(async |conn| {
        hold(conn, call, &id).await?;
        match change {
            Change::Add(grantees) => {
                rows::grant(conn, &id, &of_others(grantees)).await?;
                if rows::count(conn, &id).await? > MAX_GRANTEES {
                    return Err(invalid_value(format!(
                        "A snapshot cannot be shared with more than {MAX_GRANTEES} accounts."
                    )));
                }
            }
            Change::Remove(grantees) => rows::revoke(conn, &id, &of_others(grantees)).await?,
        }
        Ok::<_, ApiError>(())
    })
    .await?;
    Ok(call.done())
}

/// ResetSnapshotAttribute: nobody but the owner.
pub async fn reset(api: &Api, call: &Call, mut params: Params) -> ApiResult<String> {
    let (id, attribute) = (params.text("SnapshotId"), params.filled("Attribute"));
    params.finish()?;
    call.stop_if_dry_run()?;
    let id: SnapshotId = resource_id::required(id.as_deref(), Dialect::ResetSnapshot)?;
    let attribute = attribute.ok_or_else(|| missing("attribute"))?;
    if attribute != PERMISSIONS {
        return Err(received_was_invalid());
    }
    let mut conn = api.pool.get().await?;
    conn.transaction(async |conn| {
        hold(conn, call, &id).await?;
        rows::revoke_all(conn, &id).await?;
        Ok::<_, ApiError>(())
    })
    .await?;
    Ok(call.done())
}

fn own(row: Option<Snapshot>, call: &Call, id: &SnapshotId) -> ApiResult<Snapshot> {
    row.filter(|row| row.account_id == *call.caller.account_id && row.state != SnapshotState::Deleting)
        .ok_or_else(|| no_snapshot(id))
}

/// Locks the caller's snapshot, so that changes of it come one after another.
async fn hold(conn: &mut Conn, call: &Call, id: &SnapshotId) -> ApiResult<()> {
    let row: db::Result<_> = snapshots::hold(conn, id).await;
    own(row?, call, id).map(drop)
}

fn received_was_invalid() -> ApiError {
    ApiError::new("InvalidRequest", "The request received was invalid.")
}

/// What ModifySnapshotAttribute was asked, in either form.
#[derive(Debug, Default)]
struct Request {
    attribute: Option<String>,
    add: Vec<PermissionParam>,
    remove: Vec<PermissionParam>,
    operation: Option<String>,
    users: Vec<String>,
    groups: Vec<String>,
}

/// What is to change.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Add(BTreeSet<String>),
    Remove(BTreeSet<String>),
}

impl Request {
    fn take(params: &mut Params) -> ApiResult<Self> {
        Ok(Self {
            attribute: params.filled("Attribute"),
            add: params.permissions("CreateVolumePermission.Add")?,
            remove: params.permissions("CreateVolumePermission.Remove")?,
            operation: params.filled("OperationType"),
            users: params.list("UserId")?,
            groups: params.list("UserGroup")?,
        })
    }

    /// One bad item of many, and nothing is changed.
    fn check(self) -> ApiResult<Change> {
        if self.attribute.as_deref().is_some_and(|attribute| attribute != PERMISSIONS) {
            return Err(invalid_value("Unrecognized attribute."));
        }
        let nothing = || invalid_combination("No attributes specified.");
        let adds = match (self.add.is_empty(), self.remove.is_empty(), self.operation.as_deref()) {
            (true, true, None) if self.attribute.is_some() => {
                return Err(invalid_combination(format!("No operation specified for {PERMISSIONS} attribute.")));
            }
            (true, true, Some(_)) if self.attribute.is_none() => return Err(nothing()),
            (true, true, None) => return Err(nothing()),
            (false, true, None | Some("add")) | (true, true, Some("add")) => true,
            (true, false, None | Some("remove")) | (true, true, Some("remove")) => false,
            (true, true, Some(other)) => {
                return Err(invalid_value(format!(
                    "Value ({}) for parameter operationType is invalid. Expected: 'add' or 'remove'.",
                    clip(other)
                )));
            }
            _ => {
                return Err(invalid_combination(
                    "One and only one operation type may be specified for createVolumePermissions",
                ));
            }
        };
        let items = if adds { self.add } else { self.remove };
        if items.len() + self.users.len() + self.groups.len() > MAX_CHANGE {
            return Err(invalid_value(format!("Modification size must not be greater than {MAX_CHANGE}.")));
        }
        let mut grantees = BTreeSet::new();
        for PermissionParam { user_id, group } in items {
            if let Some(group) = &group {
                grantees.insert(checked_group(group)?);
            }
            if group.is_none() || user_id.is_some() {
                let user = user_id.unwrap_or_default();
                grantees.insert(checked_user(&user, || format!("UserId {}", clip(&user)))?);
            }
        }
        for user in &self.users {
            grantees.insert(checked_user(user, || format!("UserId ({}) is invalid.", clip(user)))?);
        }
        for group in &self.groups {
            grantees.insert(checked_group(group)?);
        }
        if grantees.is_empty() {
            return Err(nothing());
        }
        Ok(if adds { Change::Add(grantees) } else { Change::Remove(grantees) })
    }
}

fn checked_user(user: &str, words: impl Fn() -> String) -> ApiResult<String> {
    if is_account(user) { Ok(user.to_owned()) } else { Err(bad_item(words())) }
}

fn checked_group(group: &str) -> ApiResult<String> {
    if group == EVERYBODY { Ok(group.to_owned()) } else { Err(bad_item(format!("UserGroup {}", clip(group)))) }
}

/// The code speaks of images on AWS too.
fn bad_item(message: String) -> ApiError {
    ApiError::new("InvalidAMIAttributeItemValue", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2_api::query::Query;

    fn checked(form: &str) -> Result<Change, (&'static str, String)> {
        let mut params = Query::decode(b"", form.as_bytes()).unwrap().params;
        let request = Request::take(&mut params).unwrap();
        params.finish().unwrap();
        request.check().map_err(|error| (error.code, error.message))
    }

    #[test]
    fn both_forms_of_a_change_mean_the_same() {
        let both = || BTreeSet::from(["111111111111".to_owned(), "all".to_owned()]);
        for form in [
            "CreateVolumePermission.Add.1.UserId=111111111111&CreateVolumePermission.Add.2.Group=all",
            "Attribute=createVolumePermission&CreateVolumePermission.Add.1.UserId=111111111111\
             &CreateVolumePermission.Add.1.Group=all",
            "Attribute=createVolumePermission&OperationType=add&UserId.1=111111111111&UserId.2=111111111111&UserGroup.1=all",
        ] {
            assert_eq!(checked(form), Ok(Change::Add(both())), "{form}");
            let remove = form.replace("Add", "Remove").replace("=add", "=remove");
            assert_eq!(checked(&remove), Ok(Change::Remove(both())), "{remove}");
        }
    }

    #[test]
    fn each_fault_has_the_code_and_the_words_of_ec2() {
        let many: Vec<_> = (0..501).map(|n| format!("CreateVolumePermission.Add.{n}.UserId={n:012}")).collect();
        for (form, code, message) in [
            ("", "InvalidParameterCombination", "No attributes specified."),
            ("UserId.1=111111111111&OperationType=add", "InvalidParameterCombination", "No attributes specified."),
            (
                "Attribute=createVolumePermission",
                "InvalidParameterCombination",
                "No operation specified for createVolumePermission attribute.",
            ),
            (
                "CreateVolumePermission.Add.1.Group=all&CreateVolumePermission.Remove.1.Group=all",
                "InvalidParameterCombination",
                "One and only one operation type may be specified for createVolumePermissions",
            ),
            ("CreateVolumePermission.Add.1.UserId=123", "InvalidAMIAttributeItemValue", "UserId 123"),
            ("CreateVolumePermission.Add.1.UserId=", "InvalidAMIAttributeItemValue", "UserId "),
            ("CreateVolumePermission.Add.1.Group=everyone", "InvalidAMIAttributeItemValue", "UserGroup everyone"),
            (
                "Attribute=createVolumePermission&OperationType=add&UserId.1=123",
                "InvalidAMIAttributeItemValue",
                "UserId (123) is invalid.",
            ),
            ("Attribute=productCodes", "InvalidParameterValue", "Unrecognized attribute."),
            (&many.join("&"), "InvalidParameterValue", "Modification size must not be greater than 500."),
        ] {
            assert_eq!(checked(form), Err((code, message.to_owned())), "{form}");
        }
    }
}
