//! What goes over the wire between [`super::client`] and [`super::server`]: `POST /v1/VERB` with a JSON body, answered by a
//! JSON body: with status 200 the verb's result, with any other a [`DelegateError`]. Between storage nodes it is as
//! [`super::reading`] says.
//!
//! Requests are signed with our own `SigV4` under the node's key, the node's name being access key id and region at once. The
//! query, `life=…&nonce=…`, names the life of the delegate that the call is for and tells it from others of the same second, so
//! that it is taken once ([`super::replay`]). Answers are not signed, and CHAP secrets go as they are. Where others share the
//! network, `https` is what keeps them out.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use super::source::{Grant, RestoreSpec};
use super::{DelegateError, DiskSpec, ErrorKind, Generation};
use crate::config::{ConfigError, SecretSource};
use crate::ids::VolumeId;

/// The service in the signatures' scope.
pub const SERVICE: &str = "vbs-delegate";

/// What the paths start with; the verb follows.
pub const PATH: &str = "/v1/";

/// The query of a call.
pub fn query(life: &str, nonce: &str) -> String {
    format!("life={life}&nonce={nonce}")
}

/// The life that a query names.
pub fn life_of(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("life="))
}

/// The answer to a call for another life of the delegate, with status 421: what it says may be done by another try.
#[derive(Debug, Serialize, Deserialize)]
pub struct AnotherLife {
    /// The life that there is.
    pub life: String,
    /// The same as for one who does not know lives.
    #[serde(flatten)]
    pub error: DelegateError,
}

impl AnotherLife {
    /// Whether what came as a life's name can stand in a query.
    pub fn is_name(&self) -> bool {
        (1..=64).contains(&self.life.len()) && self.life.bytes().all(|b| b.is_ascii_hexdigit())
    }
}

/// The body of a verb that changes something.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call<T> {
    /// The caller's fencing token.
    pub generation: Generation,
    /// What shall be.
    pub spec: T,
}

/// The body of `ensure_not_exported`.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndExports {
    /// The caller's fencing token.
    pub generation: Generation,
    /// The volume whose exports shall end.
    #[serde(rename = "spec")]
    pub volume: VolumeId,
    /// The names of those that shall not.
    #[serde(default)]
    pub but: Vec<String>,
}

/// The specification of `ensure_detached`.
#[derive(Debug, Serialize, Deserialize)]
pub struct DetachSpec {
    /// The disk.
    pub disk: DiskSpec,
    /// Whether the guest is not asked.
    pub force: bool,
}

/// The specification of a hypervisor's `ensure_grown`.
#[derive(Debug, Serialize, Deserialize)]
pub struct GrowSpec {
    /// The disk.
    pub disk: DiskSpec,
    /// The size the volume has now, in bytes.
    pub size_bytes: u64,
}

/// The specification of `ensure_restored`.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreCall {
    /// The volume.
    pub restore: RestoreSpec,
    /// Where the snapshot is read.
    pub from: Grant,
}

/// The status that goes with an error, for those who read logs; the client reads the body.
pub fn status(error: &DelegateError) -> StatusCode {
    match error.kind {
        ErrorKind::Retry | ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Fatal => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::Stale => StatusCode::CONFLICT,
    }
}

/// The fewest bytes of a node's key: what a short one protects, patience opens.
const SHORTEST_KEY: usize = 16;

/// Fetches a node's key.
pub fn key(source: &SecretSource) -> Result<String, ConfigError> {
    let key = source.read()?;
    if key.len() < SHORTEST_KEY {
        return Err(ConfigError::Invalid(format!("a node's key has {SHORTEST_KEY} bytes at least ({source:?})")));
    }
    Ok(key)
}
