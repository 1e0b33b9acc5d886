//! Serves a node's delegate to the gateways, over HTTP signed as [`super::wire`] says.
//!
//! Who cannot sign learns nothing but that. Errors of the delegate are answers like others.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::check::{self, Checked, Rules};
use super::reading::{self, Granted, Question};
use super::replay::Replays;
use super::sources::Sources;
use super::wire::{self, AnotherLife, Call, DetachSpec, EndExports, GrowSpec, RestoreCall};
use super::{DelegateError, Result, VmmDelegate, VolumeDelegate};
use crate::config::{ConfigError, SecretSource};
use crate::ids::SnapshotId;
use crate::server::{Handler, Refusal, Request, Response};
use crate::sigv4;

/// The longest text of an error, in characters.
const MOST_WORDS: usize = 1000;

/// Serves a storage node.
pub struct StorageService {
    door: Door,
    rules: Rules,
    sources: Sources,
    delegate: Arc<dyn VolumeDelegate>,
}

/// Serves a hypervisor node.
pub struct VmmService {
    door: Door,
    rules: Rules,
    delegate: Arc<dyn VmmDelegate>,
}

impl StorageService {
    /// Serves the delegate of the node of this name to those who have the key.
    pub fn new(node: &str, key: &SecretSource, delegate: Arc<dyn VolumeDelegate>) -> Result<Self, ConfigError> {
        let (door, rules) = (Door::new(node, key)?, Rules::default());
        Ok(Self { door, rules, sources: Sources::Any { loopback: true }, delegate })
    }

    /// The same, held to rules.
    #[must_use]
    pub fn under(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The same, reading snapshots of these nodes only.
    #[must_use]
    pub fn reading_from(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    fn call<S: DeserializeOwned + Checked>(&self, body: &[u8]) -> Result<Call<S>> {
        let call: Call<S> = read(body)?;
        call.spec.check(&self.rules)?;
        Ok(call)
    }

    async fn answer(&self, verb: &str, body: &[u8]) -> Result<Vec<u8>> {
        let node = &*self.delegate;
        match verb {
            "snapshot_method" => written(node.snapshot_method().await),
            "ensure_volume" => {
                let call = self.call(body)?;
                written(node.ensure_volume(call.generation, &call.spec).await)
            }
            "ensure_restored" => {
                let call: Call<RestoreCall> = self.call(body)?;
                let source = Arc::new(Granted::new(&call.spec.from, &self.sources)?);
                written(node.ensure_restored(call.generation, &call.spec.restore, source).await)
            }
            "ensure_no_volume" => {
                let call = self.call(body)?;
                written(node.ensure_no_volume(call.generation, &call.spec).await)
            }
            "ensure_snapshot" => {
                let call = self.call(body)?;
                written(node.ensure_snapshot(call.generation, &call.spec).await)
            }
            "ensure_snapshot_copy" => {
                let call = self.call(body)?;
                written(node.ensure_snapshot_copy(call.generation, &call.spec).await)
            }
            "ensure_grown" => {
                let call = self.call(body)?;
                written(node.ensure_grown(call.generation, &call.spec).await)
            }
            "ensure_no_snapshot" => {
                let call = self.call(body)?;
                written(node.ensure_no_snapshot(call.generation, &call.spec).await)
            }
            "ensure_exported" => {
                let call = self.call(body)?;
                written(node.ensure_exported(call.generation, &call.spec).await)
            }
            "ensure_not_exported" => {
                let call: EndExports = read(body)?;
                call.check(&self.rules)?;
                written(node.ensure_not_exported(call.generation, &call.volume, &call.but).await)
            }
            "observe" => written(node.observe().await),
            _ => Err(unknown(verb)),
        }
    }
}

impl StorageService {
    /// Answers another node that reads a snapshot, by a grant.
    async fn read(&self, snapshot: &str, request: &Request) -> Response {
        let question = Question::of(&request.headers).filter(|_| request.method == Method::GET);
        let (Ok(snapshot), Some(question)) = (SnapshotId::parse(snapshot), question) else {
            return refused(StatusCode::BAD_REQUEST, "there is no such question");
        };
        match reading::answer(&*self.delegate, &snapshot, question).await {
            Ok(body) => Response::new(StatusCode::OK, "application/octet-stream", body),
            Err(error) => error_response(wire::status(&error), &error),
        }
    }
}

impl VmmService {
    /// Serves the delegate of the node of this name to those who have the key.
    pub fn new(node: &str, key: &SecretSource, delegate: Arc<dyn VmmDelegate>) -> Result<Self, ConfigError> {
        Ok(Self { door: Door::new(node, key)?, rules: Rules::default(), delegate })
    }

    /// The same, held to rules.
    #[must_use]
    pub fn under(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    fn call<S: DeserializeOwned + Checked>(&self, body: &[u8]) -> Result<Call<S>> {
        let call: Call<S> = read(body)?;
        call.spec.check(&self.rules)?;
        Ok(call)
    }

    async fn answer(&self, verb: &str, body: &[u8]) -> Result<Vec<u8>> {
        let node = &*self.delegate;
        match verb {
            "initiator_iqn" => {
                let machine: String = read(body)?;
                check::machine_name(&machine)?;
                written(node.initiator_iqn(&machine).await)
            }
            "ensure_connected" => {
                let call = self.call(body)?;
                written(node.ensure_connected(call.generation, &call.spec).await)
            }
            "ensure_disconnected" => {
                let call = self.call(body)?;
                written(node.ensure_disconnected(call.generation, &call.spec).await)
            }
            "ensure_attached" => {
                let call = self.call(body)?;
                written(node.ensure_attached(call.generation, &call.spec).await)
            }
            "ensure_detached" => {
                let call: Call<DetachSpec> = self.call(body)?;
                written(node.ensure_detached(call.generation, &call.spec.disk, call.spec.force).await)
            }
            "ensure_grown" => {
                let call: Call<GrowSpec> = self.call(body)?;
                written(node.ensure_grown(call.generation, &call.spec.disk, call.spec.size_bytes).await)
            }
            "ensure_paused" => {
                let call = self.call(body)?;
                written(node.ensure_paused(call.generation, &call.spec).await)
            }
            "ensure_resumed" => {
                let call = self.call(body)?;
                written(node.ensure_resumed(call.generation, &call.spec).await)
            }
            "observe" => written(node.observe().await),
            _ => Err(unknown(verb)),
        }
    }
}

impl Handler for StorageService {
    async fn handle(&self, request: Request) -> Response {
        if let Some(snapshot) = request.path().strip_prefix(reading::PATH) {
            return match self.door.check(&request, Utc::now()) {
                Ok(_) => self.read(snapshot, &request).await,
                Err(error) => refused(StatusCode::FORBIDDEN, &error.to_string()),
            };
        }
        match self.door.verb(&request) {
            Ok(verb) => respond(self.answer(verb, &request.body).await),
            Err(refusal) => *refusal,
        }
    }

    fn refuse(&self, _: &str, refusal: Refusal) -> Response {
        refused(refusal.status(), &refusal.to_string())
    }
}

impl Handler for VmmService {
    async fn handle(&self, request: Request) -> Response {
        match self.door.verb(&request) {
            Ok(verb) => respond(self.answer(verb, &request.body).await),
            Err(refusal) => *refusal,
        }
    }

    fn refuse(&self, _: &str, refusal: Refusal) -> Response {
        refused(refusal.status(), &refusal.to_string())
    }
}

/// Lets in who has the node's key.
struct Door {
    node: String,
    key: String,
    scope_end: String,
    replays: Replays,
}

impl Door {
    fn new(node: &str, key: &SecretSource) -> Result<Self, ConfigError> {
        Ok(Self {
            node: node.into(),
            key: wire::key(key)?,
            scope_end: format!("/{node}/{}/aws4_request", wire::SERVICE),
            replays: Replays::default(),
        })
    }

    /// The verb of a call that is signed for this life of this node, and has not come before.
    fn verb<'a>(&self, request: &'a Request) -> Result<&'a str, Box<Response>> {
        let forbidden = |why: &str| Box::new(refused(StatusCode::FORBIDDEN, why));
        let now = Utc::now();
        let mark = self.check(request, now).map_err(|error| forbidden(&error.to_string()))?;
        let verb = request.path().strip_prefix(wire::PATH).filter(|_| request.method == Method::POST);
        let verb = verb.ok_or_else(|| Box::new(refused(StatusCode::NOT_FOUND, "there is no such call")))?;
        if wire::life_of(request.query()) != Some(self.replays.life()) {
            return Err(Box::new(another_life(self.replays.life())));
        }
        match mark {
            Some(mark) if self.replays.is_first(mark.signed_at, mark.signature, now) => Ok(verb),
            Some(_) => Err(forbidden("this very request came before, or is too old to tell")),
            None => Err(forbidden("a call is signed in its headers")),
        }
    }

    /// Verifies the signature; gives what tells it from others.
    fn check(&self, request: &Request, now: DateTime<Utc>) -> Result<Option<sigv4::Mark>, sigv4::AuthError> {
        let signed = sigv4::Request {
            method: request.method.as_str(),
            path: request.path(),
            query: request.query(),
            headers: &request.headers,
            body: &request.body,
        };
        let presented = sigv4::parse(&signed)?;
        // A request signed for another service or node under the same key is not one for us; nor is one in SigV2, which
        // covers no path.
        if presented.is_v2() || presented.access_key_id != self.node || !presented.scope().ends_with(&self.scope_end) {
            return Err(sigv4::AuthError::Mismatch);
        }
        sigv4::verify(&signed, &presented, &self.key, now)?;
        Ok(presented.mark())
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| DelegateError::fatal(format!("the request cannot be read: {e}")))
}

fn written<T: Serialize>(result: Result<T>) -> Result<Vec<u8>> {
    serde_json::to_vec(&result?).map_err(|e| DelegateError::fatal(format!("the answer cannot be written: {e}")))
}

/// A gateway that is newer than this node asks for what it does not know: when the node is upgraded too, it will.
fn unknown(verb: &str) -> DelegateError {
    DelegateError::retry(format!("this node knows no verb {verb:?}"))
}

fn respond(result: Result<Vec<u8>>) -> Response {
    match result {
        Ok(body) => Response::new(StatusCode::OK, "application/json", body),
        Err(error) => error_response(wire::status(&error), &error),
    }
}

/// The answer to what never reached the delegate: once the cause is mended, another try will.
fn refused(status: StatusCode, why: &str) -> Response {
    error_response(status, &DelegateError::retry(why))
}

/// The answer to a call for a life that is over, or for none.
fn another_life(life: &str) -> Response {
    let error = DelegateError::retry("the call is for another life of this delegate");
    let body = serde_json::to_vec(&AnotherLife { life: life.to_owned(), error }).unwrap_or_default();
    Response::new(StatusCode::MISDIRECTED_REQUEST, "application/json", body)
}

/// Words that quote a hostile call are cut off: they end in logs and in the history of workflows.
fn error_response(status: StatusCode, error: &DelegateError) -> Response {
    let message = error.message.chars().take(MOST_WORDS).collect();
    let error = DelegateError { kind: error.kind, message };
    Response::new(status, "application/json", serde_json::to_vec(&error).unwrap_or_default())
}
