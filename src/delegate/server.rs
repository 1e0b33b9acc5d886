//! Serves a node's delegate to the gateways, over HTTP signed as [`super::wire`] says.
//!
//! Who cannot sign learns nothing but that. Errors of the delegate are answers like others.

use std::sync::Arc;

use chrono::Utc;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::reading::{self, Granted, Question};
use super::wire::{self, Call, DetachSpec, EndExports, GrowSpec, RestoreCall};
use super::{DelegateError, Result, VmmDelegate, VolumeDelegate};
use crate::config::{ConfigError, SecretSource};
use crate::ids::SnapshotId;
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
            "ensure_restored" => {
                let call: Call<RestoreCall> = read(body)?;
                let source = Arc::new(Granted::new(&call.spec.from)?);
                written(node.ensure_restored(call.generation, &call.spec.restore, source).await)
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
        if let Some(snapshot) = request.path().strip_prefix(reading::PATH) {
            return match self.door.check(&request) {
                Ok(()) => self.read(snapshot, &request).await,
                Err(error) => refused(StatusCode::FORBIDDEN, &error.to_string()),
            };
        }
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
    use crate::delegate::{Generation, SnapshotSpec, VolumeSpec};
    use crate::ids::VolumeId;

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

    fn with_grant(method: Method, target: &str, query: &str, header: (&'static str, &str)) -> Request {
        let mut headers = HeaderMap::from_iter([(HOST, "127.0.0.1:1".parse().unwrap())]);
        headers.insert(HeaderName::from_static(header.0), header.1.parse().unwrap());
        Request {
            method,
            uri: format!("{target}?{query}").parse().unwrap(),
            headers,
            body: "".into(),
            peer: ([127, 0, 0, 1], 1).into(),
            id: "id".into(),
        }
    }

    #[tokio::test]
    async fn a_grant_is_good_for_reading_its_one_snapshot_and_for_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(&dir);
        let (volume, snapshot) = (VolumeId::generate(), SnapshotId::generate());
        let made = VolumeSpec { volume: volume.clone(), size_bytes: 4096, snapshot: None };
        service.delegate.ensure_volume(Generation(1), &made).await.unwrap();
        let cut = SnapshotSpec { snapshot: snapshot.clone(), volume, cut: false };
        service.delegate.ensure_snapshot(Generation(1), &cut).await.unwrap();
        let other = SnapshotId::generate();
        let own = format!("{}{snapshot}", reading::PATH);
        let status = async |method, target: &str, query: &str, header| {
            service.handle(with_grant(method, target, query, header)).await.status
        };
        let query = reading::query("storage-1", SECRET, "127.0.0.1:1", &snapshot).0;
        let read = ("x-vbs-read", "0");
        for header in [read, ("x-vbs-sum", "0")] {
            assert_eq!(status(Method::GET, &own, &query, header).await, StatusCode::OK);
        }
        for (question, expected) in [
            (("x-vbs-read", "4096"), StatusCode::UNPROCESSABLE_ENTITY),
            (("x-vbs-read", "-1"), StatusCode::BAD_REQUEST),
            (("x-other", "0"), StatusCode::BAD_REQUEST),
        ] {
            assert_eq!(status(Method::GET, &own, &query, question).await, expected);
        }
        let elsewhere = format!("{}{other}", reading::PATH);
        for (method, target) in [(Method::GET, &*elsewhere), (Method::POST, &own), (Method::POST, "/v1/observe")] {
            assert_eq!(status(method, target, &query, read).await, StatusCode::FORBIDDEN, "{target}");
        }
        for bad in [query.replace("3600", "604800"), query.replace("Signature=", "Signature=0"), String::new()] {
            assert_eq!(status(Method::GET, &own, &bad, read).await, StatusCode::FORBIDDEN);
        }
        let of_another_node = reading::query("storage-2", SECRET, "127.0.0.1:1", &snapshot).0;
        assert_eq!(status(Method::GET, &own, &of_another_node, read).await, StatusCode::FORBIDDEN);
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
