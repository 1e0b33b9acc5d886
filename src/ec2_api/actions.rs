//! The table of actions, and the names of those that EC2 has besides.
//!
//! An action of EC2 that vbs does not do is refused by its name, so that whoever reads the refusal knows that nothing is
//! misspelt; a name that EC2 does not have is a mistake.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::LazyLock;

use super::error::ApiResult;
use super::query::Params;
use super::{
    Api, Call, account_attributes, addresses, attachments, copy_snapshot, copy_volumes, create_snapshots,
    create_volume, describe_snapshots, instance_attributes, instance_status, instance_types, instances, modify_volume,
    regions, snapshot_attributes, snapshots, sts, tags, volume_attributes, volume_modifications, volume_status,
    volumes, zones,
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
pub static ACTIONS: &[Action] = &[
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
        name: "DescribeAccountAttributes",
        run: |_, call, params| Box::pin(async { account_attributes::describe(call, params) }),
    },
    Action { name: "DescribeAddresses", run: |_, call, params| Box::pin(async { addresses::describe(call, params) }) },
    Action {
        name: "DescribeAvailabilityZones",
        run: |api, call, params| Box::pin(async { zones::describe_availability_zones(api, call, params) }),
    },
    Action {
        name: "DescribeInstanceAttribute",
        run: |api, call, params| Box::pin(instance_attributes::describe(api, call, params)),
    },
    Action {
        name: "DescribeInstanceStatus",
        run: |api, call, params| Box::pin(instance_status::describe(api, call, params)),
    },
    Action {
        name: "DescribeInstanceTypes",
        run: |api, call, params| Box::pin(instance_types::describe(api, call, params)),
    },
    Action { name: "DescribeInstances", run: |api, call, params| Box::pin(instances::describe(api, call, params)) },
    Action {
        name: "DescribeRegions",
        run: |api, call, params| Box::pin(async { regions::describe_regions(api, call, params) }),
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
    Action {
        name: "DescribeVolumeAttribute",
        run: |api, call, params| Box::pin(volume_attributes::describe(api, call, params)),
    },
    Action {
        name: "DescribeVolumeStatus",
        run: |api, call, params| Box::pin(volume_status::describe(api, call, params)),
    },
    Action { name: "DescribeVolumes", run: |api, call, params| Box::pin(volumes::describe(api, call, params)) },
    Action {
        name: "DescribeVolumesModifications",
        run: |api, call, params| Box::pin(volume_modifications::describe(api, call, params)),
    },
    Action { name: "DetachVolume", run: |api, call, params| Box::pin(attachments::detach(api, call, params)) },
    Action {
        name: "EnableVolumeIO",
        run: |api, call, params| Box::pin(volume_attributes::enable_io(api, call, params)),
    },
    Action { name: sts::ACTION, run: |_, call, params| Box::pin(async { sts::get_caller_identity(call, params) }) },
    Action {
        name: "ModifyInstanceAttribute",
        run: |api, call, params| Box::pin(instance_attributes::modify(api, call, params)),
    },
    Action {
        name: "ModifySnapshotAttribute",
        run: |api, call, params| Box::pin(snapshot_attributes::modify(api, call, params)),
    },
    Action { name: "ModifyVolume", run: |api, call, params| Box::pin(modify_volume::modify(api, call, params)) },
    Action {
        name: "ModifyVolumeAttribute",
        run: |api, call, params| Box::pin(volume_attributes::modify(api, call, params)),
    },
    Action {
        name: "ResetSnapshotAttribute",
        run: |api, call, params| Box::pin(snapshot_attributes::reset(api, call, params)),
    },
];

impl Action {
    /// Runs its handler.
    pub(super) fn run<'a>(&self, api: &'a Api, call: &'a Call, params: Params) -> Answer<'a> {
        (self.run)(api, call, params)
    }
}

/// What EC2 calls its actions.
static EC2: LazyLock<HashSet<&str>> =
    LazyLock::new(|| include_str!("ec2_actions.txt").lines().filter(|line| !line.starts_with('#')).collect());

/// Whether EC2 has an action of this name, which vbs may not do.
pub fn is_known_to_ec2(name: &str) -> bool {
    EC2.contains(name)
}

/// The action of this name.
pub fn find(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_only_actions_of_ec2_and_the_one_of_sts() {
        assert!(ACTIONS.is_sorted_by_key(|action| action.name));
        for action in ACTIONS {
            assert!(is_known_to_ec2(action.name) || action.name == sts::ACTION, "{}", action.name);
        }
    }

    #[test]
    fn what_comes_later_is_known_by_name() {
        for name in ["EnableEbsEncryptionByDefault", "LockSnapshot", "ModifySnapshotTier", "RunInstances"] {
            assert!(is_known_to_ec2(name) && find(name).is_none(), "{name}");
        }
        for name in ["DescribeFoo", "", "lockSnapshot", "# The actions"] {
            assert!(!is_known_to_ec2(name), "{name}");
        }
    }
}
