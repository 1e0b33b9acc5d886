//! The table of actions.

use std::future::Future;
use std::pin::Pin;

use super::error::ApiResult;
use super::query::Params;
use super::{
    Api, Call, attachments, copy_snapshot, copy_volumes, create_snapshots, create_volume, describe_snapshots,
    instances, snapshot_attributes, snapshots, sts, tags, volumes, zones,
};

/// What a handler comes down to.
type Answer<'a> = Pin<Box<dyn Future<Output = ApiResult<String>> + Send + 'a>>;

/// An action of the API.
pub struct Action {
    /// Its name on the wire.
    pub name: &'static str,
    run: for<'a> fn(&'a Api, &'a Call, Params) -> Answer<'a>,
}

/// Every action there is.
pub static ACTIONS: [Action; 21] = [
    Action { name: "AttachVolume", run: |api, call, params| Box::pin(attachments::attach(api, call, params)) },
    Action { name: "CopySnapshot", run: |api, call, params| Box::pin(copy_snapshot::copy(api, call, params)) },
    Action { name: "CopyVolumes", run: |api, call, params| Box::pin(copy_volumes::copy(api, call, params)) },
    Action { name: "CreateSnapshot", run: |api, call, params| Box::pin(snapshots::create(api, call, params)) },
    Action { name: "CreateSnapshots", run: |api, call, params| Box::pin(create_snapshots::create(api, call, params)) },
    Action { name: "CreateTags", run: |api, call, params| Box::pin(tags::create(api, call, params)) },
    Action { name: "CreateVolume", run: |api, call, params| Box::pin(create_volume::create(api, call, params)) },
    Action { name: "DeleteSnapshot", run: |api, call, params| Box::pin(snapshots::delete(api, call, params)) },
    Action { name: "DeleteTags", run: |api, call, params| Box::pin(tags::delete(api, call, params)) },
    Action { name: "DeleteVolume", run: |api, call, params| Box::pin(volumes::delete(api, call, params)) },
    Action {
        name: "DescribeAvailabilityZones",
        run: |api, call, params| Box::pin(async { zones::describe_availability_zones(api, call, params) }),
    },
    Action { name: "DescribeInstances", run: |api, call, params| Box::pin(instances::describe(api, call, params)) },
    Action {
        name: "DescribeRegions",
        run: |api, call, params| Box::pin(async { zones::describe_regions(api, call, params) }),
    },
    Action {
        name: "DescribeSnapshotAttribute",
        run: |api, call, params| Box::pin(snapshot_attributes::describe(api, call, params)),
    },
    Action {
        name: "DescribeSnapshots",
        run: |api, call, params| Box::pin(describe_snapshots::describe(api, call, params)),
    },
    Action { name: "DescribeTags", run: |api, call, params| Box::pin(tags::describe(api, call, params)) },
    Action { name: "DescribeVolumes", run: |api, call, params| Box::pin(volumes::describe(api, call, params)) },
    Action { name: "DetachVolume", run: |api, call, params| Box::pin(attachments::detach(api, call, params)) },
    Action {
        name: "ModifySnapshotAttribute",
        run: |api, call, params| Box::pin(snapshot_attributes::modify(api, call, params)),
    },
    Action {
        name: "ResetSnapshotAttribute",
        run: |api, call, params| Box::pin(snapshot_attributes::reset(api, call, params)),
    },
    Action { name: sts::ACTION, run: |_, call, params| Box::pin(async { sts::get_caller_identity(call, params) }) },
];

impl Action {
    /// Runs its handler.
    pub(super) fn run<'a>(&self, api: &'a Api, call: &'a Call, params: Params) -> Answer<'a> {
        (self.run)(api, call, params)
    }
}

/// The action of this name.
pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}
