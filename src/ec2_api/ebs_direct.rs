//! The EBS direct APIs, as far as they go here: each operation is refused by its name, in the JSON of that service.
//!
//! Their clients send to the same endpoint when it is set for all services. Without this they would be told that a GET
//! has no Action, or that a PUT is no method.

use serde_json::json;

use crate::sigv4::Request;

use super::Reply;
use super::error::ApiError;
use super::faults::unsupported;

/// The operation that a request of the EBS direct APIs is for. Such a request says in the scope of its signature that it is for
/// the service `ebs`; whether that is true is for the signature to show.
pub fn operation(request: &Request<'_>) -> Option<&'static str> {
    let authorization = request.headers.get("authorization")?.to_str().ok()?;
    if !authorization.contains("/ebs/aws4_request") {
        return None;
    }
    let path: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    match (request.method, path.as_slice()) {
        ("POST", ["snapshots"]) => Some("StartSnapshot"),
        ("POST", ["snapshots", "completion", _]) => Some("CompleteSnapshot"),
        ("GET", ["snapshots", _, "blocks"]) => Some("ListSnapshotBlocks"),
        ("GET", ["snapshots", _, "changedblocks"]) => Some("ListChangedBlocks"),
        ("GET", ["snapshots", _, "blocks", _]) => Some("GetSnapshotBlock"),
        ("PUT", ["snapshots", _, "blocks", _]) => Some("PutSnapshotBlock"),
        _ => None,
    }
}

/// The refusal of an operation.
pub fn refusal(operation: &str) -> ApiError {
    unsupported(format!("The operation {operation} is not supported here."))
}

/// A failure in the JSON of that service.
pub fn render(error: &ApiError) -> Reply {
    let body = json!({ "__type": error.code, "message": error.message });
    Reply { status: error.status, content_type: "application/json", body: body.to_string() }
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;

    fn asked(method: &str, path: &str, service: &str) -> Option<&'static str> {
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential=A/20260131/us-east-1/{service}/aws4_request, SignedHeaders=host");
        let headers =
            HeaderMap::from_iter([(hyper::header::AUTHORIZATION, authorization.as_bytes().try_into().unwrap())]);
        operation(&Request { method, path, query: "", headers: &headers, body: b"" })
    }

    #[test]
    fn the_six_operations_are_told_from_each_other_and_from_ec2s_requests() {
        assert_eq!(asked("POST", "/snapshots", "ebs"), Some("StartSnapshot"));
        assert_eq!(asked("PUT", "/snapshots/snap-0123abcd/blocks/7", "ebs"), Some("PutSnapshotBlock"));
        assert_eq!(asked("GET", "/snapshots/snap-0123abcd/changedblocks", "ebs"), Some("ListChangedBlocks"));
        assert_eq!(asked("POST", "/", "ebs"), None);
        assert_eq!(asked("POST", "/snapshots", "ec2"), None);
    }
}
