//! Making signatures, for the calls from gateways to delegates, and from one delegate to another.

use chrono::{DateTime, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::{SigningKey, canonical, time, v4};

/// A request to be signed, and by whom.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// The path as it will be sent, percent-encoded.
    pub path: &'a str,
    /// The query as it will be sent, percent-encoded, without its question mark.
    pub query: &'a str,
    /// The `Host` header as it will be sent.
    pub host: &'a str,
    /// The whole body.
    pub body: &'a [u8],
    /// Names the secret to the other side.
    pub access_key_id: &'a str,
    /// The secret.
    pub secret: &'a str,
    /// Goes into the scope.
    pub region: &'a str,
    /// Goes into the scope.
    pub service: &'a str,
}

const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";

/// Signs a request with `SigV4` and returns the headers to send along, besides `Host`. A query that has a percent sign
/// without two digits cannot be signed and gives a signature that no one accepts.
pub fn sign(request: &Outgoing<'_>, now: DateTime<Utc>) -> [(&'static str, String); 3] {
    let time = time::to_basic(now);
    let payload = hex::encode(Sha256::digest(request.body));
    let headers = format!("host:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{time}\n", request.host);
    let path = canonical::path(&canonical::normalised(request.path));
    let query = canonical::query_v4(request.query, None).unwrap_or_default();
    let canonical = v4::canonical_request(request.method, &path, &query, headers.as_bytes(), SIGNED, &payload);
    let scope = v4::scope(&time[..8], request.region, request.service);
    let key = SigningKey::derive(request.secret, &time[..8], request.region, request.service);
    let signature = hex::encode(key.mac(v4::string_to_sign(&time, &scope, &canonical).as_bytes()));
    let credential = format!("{}/{scope}", request.access_key_id);
    let authorization =
        format!("{} Credential={credential}, SignedHeaders={SIGNED}, Signature={signature}", v4::ALGORITHM);
    [("authorization", authorization), ("x-amz-content-sha256", payload), ("x-amz-date", time)]
}

/// Signs a request that somebody else is to make, within so many seconds from now, and returns its query. The signature covers
/// the method, the path and the host; the request must have no query of its own and an empty body.
pub fn presign(request: &Outgoing<'_>, expires_s: u32, now: DateTime<Utc>) -> String {
    let time = time::to_basic(now);
    let scope = v4::scope(&time[..8], request.region, request.service);
    let credential = utf8_percent_encode(request.access_key_id, NON_ALPHANUMERIC).to_string();
    let query = format!(
        "X-Amz-Algorithm={}&X-Amz-Credential={credential}%2F{}&X-Amz-Date={time}&X-Amz-Expires={expires_s}\
         &X-Amz-SignedHeaders=host",
        v4::ALGORITHM,
        utf8_percent_encode(&scope, NON_ALPHANUMERIC)
    );
    let payload = hex::encode(Sha256::digest(request.body));
    let path = canonical::path(&canonical::normalised(request.path));
    let canonical_query = canonical::query_v4(&query, None).unwrap_or_default();
    let headers = format!("host:{}\n", request.host);
    let canonical =
        v4::canonical_request(request.method, &path, &canonical_query, headers.as_bytes(), "host", &payload);
    let key = SigningKey::derive(request.secret, &time[..8], request.region, request.service);
    let signature = hex::encode(key.mac(v4::string_to_sign(&time, &scope, &canonical).as_bytes()));
    format!("{query}&X-Amz-Signature={signature}")
}
