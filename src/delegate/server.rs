//! Serves a node's delegate to the gateways, over HTTP signed as [`super::wire`] says.
//!
//! Who cannot sign learns nothing but that. Errors of the delegate are answers like others.

use std::sync::Arc;

use chrono::Utc;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{self, Call, DetachSpec, EndExports, GrowSpec};
use super::{DelegateError, Result, VmmDelegate, VolumeDelegate};
use crate::config::{ConfigError, SecretSource};
use crate::server::{Handler, Refusal, Request, Response};
use crate::sigv4;

/// Serves a storage node.
pub struct StorageService {
    door: Door,
    delegate: Arc<dyn VolumeDelegate>,
}

/// Serves a hypervisor node.
pub struct VmmService {
    door: Door,
    delegate: Arc<dyn VmmDelegate>,
}

impl StorageService {
    /// Serves the delegate of the node of this name to those who have the key.
    pub fn new(node: &str, key: &SecretSource, delegate: Arc<dyn VolumeDelegate>) -> Result<Self, ConfigError> {
        Ok(Self { door: Door::new(node, key)?, delegate })
    }

    async fn answer(&self, verb: &str, body: &[u8]) -> Result<Vec<u8>> {
        let node = &*self.delegate;
        match verb {
            "snapshot_method" => written(node.snapshot_method().await),
            "ensure_volume" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_volume(call.generation, &call.spec).await)
            }
            "ensure_no_volume" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_no_volume(call.generation, &call.spec).await)
            }
            "ensure_snapshot" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_snapshot(call.generation, &call.spec).await)
            }
            "ensure_snapshot_copy" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_snapshot_copy(call.generation, &call.spec).await)
            }
            "ensure_grown" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_grown(call.generation, &call.spec).await)
            }
            "ensure_no_snapshot" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_no_snapshot(call.generation, &call.spec).await)
            }
            "ensure_exported" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_exported(call.generation, &call.spec).await)
            }
            "ensure_not_exported" => {
                let call: EndExports = read(body)?;
                written(node.ensure_not_exported(call.generation, &call.volume, &call.but).await)
            }
            "observe" => written(node.observe().await),
            _ => Err(unknown(verb)),
        }
    }
}

impl VmmService {
    /// Serves the delegate of the node of this name to those who have the key.
    pub fn new(node: &str, key: &SecretSource, delegate: Arc<dyn VmmDelegate>) -> Result<Self, ConfigError> {
        Ok(Self { door: Door::new(node, key)?, delegate })
    }

    async fn answer(&self, verb: &str, body: &[u8]) -> Result<Vec<u8>> {
        let node = &*self.delegate;
        match verb {
            "initiator_iqn" => {
                let machine: String = read(body)?;
                written(node.initiator_iqn(&machine).await)
            }
            "ensure_connected" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_connected(call.generation, &call.spec).await)
            }
            "ensure_disconnected" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_disconnected(call.generation, &call.spec).await)
            }
            "ensure_attached" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_attached(call.generation, &call.spec).await)
            }
            "ensure_detached" => {
                let call: Call<DetachSpec> = read(body)?;
                written(node.ensure_detached(call.generation, &call.spec.disk, call.spec.force).await)
            }
            "ensure_grown" => {
                let call: Call<GrowSpec> = read(body)?;
                written(node.ensure_grown(call.generation, &call.spec.disk, call.spec.size_bytes).await)
            }
            "ensure_paused" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_paused(call.generation, &call.spec).await)
            }
            "ensure_resumed" => {
                let call: Call<_> = read(body)?;
                written(node.ensure_resumed(call.generation, &call.spec).await)
            }
            "observe" => written(node.observe().await),
            _ => Err(unknown(verb)),
        }
    }
}

impl Handler for StorageService {
    async fn handle(&self, request: Request) -> Response {
        match self.door.verb(&request) {
            Ok(verb) => respond(self.answer(verb, &request.body).await),
            Err((status, why)) => refused(status, &why),
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
            Err((status, why)) => refused(status, &why),
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
}

impl Door {
    fn new(node: &str, key: &SecretSource) -> Result<Self, ConfigError> {
        Ok(Self {
            node: node.into(),
            key: wire::key(key)?,
            scope_end: format!("/{node}/{}/aws4_request", wire::SERVICE),
        })
    }

    /// The verb of a request that is signed for this node.
    fn verb<'a>(&self, request: &'a Request) -> Result<&'a str, (StatusCode, String)> {
        self.check(request).map_err(|error| (StatusCode::FORBIDDEN, error.to_string()))?;
        let verb = request.path().strip_prefix(wire::PATH).filter(|_| request.method == Method::POST);
        verb.ok_or_else(|| (StatusCode::NOT_FOUND, "there is no such call".into()))
    }

    fn check(&self, request: &Request) -> Result<(), sigv4::AuthError> {
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
        sigv4::verify(&signed, &presented, &self.key, Utc::now())
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

fn error_response(status: StatusCode, error: &DelegateError) -> Response {
    Response::new(status, "application/json", serde_json::to_vec(error).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;
    use hyper::header::{HOST, HeaderName};

    use super::*;
    use crate::config::Sim;
    use crate::delegate::sim::SimCloud;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn service(dir: &tempfile::TempDir) -> StorageService {
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        let storage = SimCloud::new().storage("storage-1", &Sim::default());
        StorageService::new("storage-1", &SecretSource::File(path), Arc::new(storage)).unwrap()
    }

    fn request(verb: &str, body: &str, node: &str, secret: &str, service: &str) -> Request {
        let path = format!("/v1/{verb}");
        let outgoing = sigv4::Outgoing {
            method: "POST",
            path: &path,
            query: "",
            host: "127.0.0.1:1",
            body: body.as_bytes(),
            access_key_id: node,
            secret,
            region: node,
            service,
        };
        let mut headers = HeaderMap::from_iter([(HOST, "127.0.0.1:1".parse().unwrap())]);
        for (name, value) in sigv4::sign(&outgoing, Utc::now()) {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        Request {
            method: Method::POST,
            uri: path.parse().unwrap(),
            headers,
            body: body.to_owned().into(),
            peer: ([127, 0, 0, 1], 1).into(),
            id: "id".into(),
        }
    }

    #[tokio::test]
    async fn only_a_signature_under_the_key_and_name_of_this_node_for_this_service_gets_in() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(&dir);
        let status = async |request| service.handle(request).await.status;
        let good = || request("observe", "null", "storage-1", SECRET, wire::SERVICE);
        assert_eq!(status(good()).await, StatusCode::OK);
        for other in [
            request("observe", "null", "storage-2", SECRET, wire::SERVICE),
            request("observe", "null", "storage-1", "0123456789abcdef0123456789abcdeX", wire::SERVICE),
            request("observe", "null", "storage-1", SECRET, "ec2"),
            Request { body: "{}".into(), ..good() },
            Request { uri: "/v1/ensure_no_volume".parse().unwrap(), ..good() },
            Request { headers: HeaderMap::new(), ..good() },
        ] {
            assert_eq!(status(other).await, StatusCode::FORBIDDEN);
        }
    }

    #[tokio::test]
    async fn bad_bodies_and_unknown_verbs_are_refused_in_json() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(&dir);
        let signed = |verb, body| request(verb, body, "storage-1", SECRET, wire::SERVICE);
        let deep = "[".repeat(100_000);
        for (verb, body, expected) in [
            ("ensure_volume", "", StatusCode::UNPROCESSABLE_ENTITY),
            ("ensure_volume", deep.as_str(), StatusCode::UNPROCESSABLE_ENTITY),
            ("ensure_no_volume", r#"{"generation":1,"spec":"vol-../../x"}"#, StatusCode::UNPROCESSABLE_ENTITY),
            ("ensure_no_volume", r#"{"generation":1,"spec":"vol-0123abcd"}"#, StatusCode::OK),
            ("no_such", "null", StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let answer = service.handle(signed(verb, body)).await;
            assert_eq!(answer.status, expected, "{verb}");
            assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_ok());
        }
    }
}
