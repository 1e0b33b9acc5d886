//! The EC2 Query API: decode, authenticate, dispatch, render.
//!
//! A request is a form, signed by an access key; an answer is XML. [`Api::serve`] takes a request through all of it, and
//! whatever goes wrong anywhere comes out as the error document that EC2 clients understand. The form is decoded before
//! the signature is verified, because a refusal must already speak the dialect that the caller asked in; nothing is
//! done before both.
//!
//! To find an action: the table in [`actions`] names its function. A handler takes its parameters, checks them in the
//! order in which AWS does, and then runs one transaction: check, change, enqueue the workflow, commit.

mod account_attributes;
pub mod actions;
mod addresses;
mod attachments;
mod auth;
mod copy_snapshot;
mod copy_volumes;
mod create_snapshots;
mod create_volume;
mod describe_snapshots;
mod device;
mod ebs_direct;
pub mod error;
mod faults;
mod filters;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod instance_attributes;
mod instance_filters;
mod instance_status;
mod instance_types;
mod instances;
mod modify_volume;
mod paging;
mod query;
mod quotas;
mod region;
mod regions;
mod resource_id;
mod snapshot_attributes;
mod snapshots;
mod sts;
mod tag_rules;
mod tags;
mod throttle;
mod volume_attributes;
mod volume_modifications;
mod volume_status;
mod volume_types;
mod volumes;
mod xml;
mod zones;

use crate::config::{self, Config};
use crate::db::Pool;
use crate::db::describe_volumes::One;
use crate::db::gather::Gather;
use crate::db::volumes::Accept;
use crate::seal::Sealer;
use crate::sigv4;
use crate::workers::{Placement, Wake};

use auth::{Caller, Keys};
use error::{ApiError, ApiResult};
use query::Query;
use region::Region;
use throttle::Buckets;
use xml::Xml;

/// The content type of nearly every answer.
pub const XML: &str = "text/xml;charset=UTF-8";

/// What every request needs.
pub struct Api {
    pool: Pool,
    describe_one: Gather<One>,
    accept: Gather<Accept>,
    region: Region,
    keys: Keys,
    sealer: Sealer,
    wake: Wake,
    placement: Placement,
    /// What the names of targets start with.
    iqn_prefix: String,
    storage: Vec<StorageNode>,
    quotas: config::Quotas,
    throttle: Buckets,
}

/// What this module must know of a storage node.
struct StorageNode {
    name: String,
    zone: String,
}

/// A request that was understood and whose sender is known.
#[derive(Debug)]
pub struct Call {
    /// Who sent it.
    caller: Caller,
    /// Names it in the answer and in the log.
    request_id: String,
    /// The action, as the table has it.
    action: &'static str,
    /// The version of the API that the caller speaks.
    version: String,
    /// Whether it is only a trial.
    dry_run: bool,
    /// The host by which the caller reached us, with the port.
    host: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// XML; JSON for the EBS direct APIs.
    pub body: String,
}

impl Api {
    /// Makes the front of a gateway.
    pub fn new(config: &Config, pool: Pool, sealer: Sealer, wake: Wake, placement: Placement) -> Self {
        let storage = |node: &config::VolumeNode| StorageNode { name: node.name.clone(), zone: node.zone.clone() };
        Self {
            describe_one: Gather::new(pool.clone()),
            accept: Gather::new(pool.clone()),
            pool,
            region: Region::new(config),
            keys: Keys::new(sealer.clone(), config.gateway.sigv2),
            sealer,
            wake,
            placement,
            iqn_prefix: config.iqn_prefix.clone(),
            storage: config.volume_nodes.iter().map(storage).collect(),
            quotas: config.quotas.clone(),
            throttle: Buckets::new(config.gateway.throttle.clone()),
        }
    }

    /// The names of the storage nodes of a zone.
    fn storage_nodes_of(&self, zone: &str) -> Vec<&str> {
        self.storage.iter().filter(|node| node.zone == zone).map(|node| node.name.as_str()).collect()
    }

    /// Forgets what is remembered of access keys, because one was changed.
    pub fn forget_keys(&self) {
        self.keys.forget();
    }

    /// Takes a request through the whole pipeline. Never fails: a failure is an answer too.
    pub async fn serve(&self, request: sigv4::Request<'_>, request_id: &str) -> Reply {
        if let Some(operation) = ebs_direct::operation(&request) {
            let known = self.keys.authenticate(&self.pool, &request).await;
            let error = known.err().unwrap_or_else(|| ebs_direct::refusal(operation));
            note(&error, Some(operation));
            return ebs_direct::render(&error);
        }
        if !matches!(request.method, "GET" | "POST") {
            return refuse(&faults::method_not_allowed(), None, request_id);
        }
        let query = match Query::decode(request.query.as_bytes(), request.body) {
            Ok(query) => query,
            Err(error) => return refuse(&error, None, request_id),
        };
        let action = query.action.clone();
        match self.run(&request, query, request_id).await {
            Ok(body) => Reply { status: 200, content_type: XML, body },
            Err(error) => refuse(&error, action.as_deref(), request_id),
        }
    }

    async fn run(&self, request: &sigv4::Request<'_>, query: Query, request_id: &str) -> ApiResult<String> {
        let caller = self.keys.authenticate(&self.pool, request).await?;
        let Query { action, version, mut params } = query;
        let Some(asked) = action.filter(|action| !action.is_empty()) else { return Err(faults::missing_action()) };
        let Some(action) = actions::find(&asked) else { return Err(faults::no_handler(&asked)) };
        self.throttle.take(&caller.account_id, action.name)?;
        // STS has no such parameter.
        let dry_run = action.name != sts::ACTION && params.boolean("DryRun")?.unwrap_or(false);
        let host = request.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
        let call = Call { caller, request_id: request_id.to_owned(), action: action.name, version, dry_run, host };
        tracing::debug!(action = call.action, account = &*call.caller.account_id, "call");
        action.run(self, &call, params).await
    }
}

impl Call {
    /// Starts the answer.
    fn answer(&self) -> Xml {
        Xml::answer(self.action, &self.version, &self.request_id)
    }

    /// The answer of actions that have nothing to tell: `<return>true</return>`.
    fn done(&self) -> String {
        let mut xml = self.answer();
        xml.plain("return", true);
        xml.finish()
    }

    /// Ends a request that was only a trial. Each action does it at the point where AWS does.
    fn stop_if_dry_run(&self) -> ApiResult<()> {
        if self.dry_run { Err(faults::dry_run()) } else { Ok(()) }
    }
}

/// Logs what the client is not told of a failure. The server's span around it has the request's id.
fn note(error: &ApiError, action: Option<&str>) {
    if let Some(inside) = &error.inside {
        if error.status >= 500 {
            tracing::error!(action, code = error.code, inside, "failed");
        } else {
            tracing::info!(action, code = error.code, inside, "refused");
        }
    }
}

/// Renders a failure, and logs what the client is not told.
fn refuse(error: &ApiError, action: Option<&str>, request_id: &str) -> Reply {
    note(error, action);
    if action == Some(sts::ACTION) {
        let (status, body) = sts::render(error, request_id);
        return Reply { status, content_type: XML, body };
    }
    Reply { status: error.status, content_type: XML, body: error.render(request_id) }
}
