//! The table of actions.

use std::future::Future;
use std::pin::Pin;

use super::error::ApiResult;
use super::query::Params;
use super::{Api, Call, sts, zones};

/// What a handler comes down to.
type Answer<'a> = Pin<Box<dyn Future<Output = ApiResult<String>> + Send + 'a>>;

/// An action of the API.
pub struct Action {
    /// Its name on the wire.
    pub name: &'static str,
    /// Its handler.
    pub(super) run: for<'a> fn(&'a Api, &'a Call, Params) -> Answer<'a>,
}

/// Every action there is, by name.
pub const ACTIONS: [Action; 3] = [
    Action {
        name: "DescribeAvailabilityZones",
        run: |api, call, params| Box::pin(async { zones::describe_availability_zones(api, call, params) }),
    },
    Action {
        name: "DescribeRegions",
        run: |api, call, params| Box::pin(async { zones::describe_regions(api, call, params) }),
    },
    Action { name: sts::ACTION, run: |_, call, _| Box::pin(async { Ok(sts::get_caller_identity(call)) }) },
];

/// The action of this name.
pub(super) fn find(name: &str) -> Option<&'static Action> {
    static TABLE: [Action; 3] = ACTIONS;
    TABLE.iter().find(|action| action.name == name)
}
