//! The two ways to sign that only clients use, for what must hold of all signed requests: see [`crate::fuzzing`].

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::{Outgoing, SigningKey, canonical, time, v2, v4};

/// What the parameters of a signature start with that the functions here have added behind all others.
pub const MARK: &str = "&Mark=";

/// Whether a query or form is one that can be signed at all.
pub fn is_encoded(query: &str) -> bool {
    canonical::pairs(query.as_bytes()).is_ok()
}

/// Signs in version 2, and returns query and body. `None` when there is nothing that could be signed, or the request has a
/// signature already.
pub fn sign_v2(request: &Outgoing<'_>, now: DateTime<Utc>) -> Option<(String, String)> {
    if request.host.is_empty() || is_signed(request).is_none_or(|signed| signed) {
        return None;
    }
    let signature = format!(
        "{MARK}&AWSAccessKeyId={}&SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp={}",
        request.access_key_id,
        now.to_rfc3339_opts(SecondsFormat::Secs, true)
    );
    let is_get = request.method == "GET";
    let (mut query, mut body) = (request.query.to_owned(), String::from_utf8(request.body.to_vec()).ok()?);
    let signed = if is_get { &mut query } else { &mut body };
    signed.push_str(&signature);
    let pairs = [canonical::pairs(query.as_bytes()).ok()?, canonical::pairs(body.as_bytes()).ok()?].concat();
    let text = v2::string_to_sign(
        request.method,
        request.host.to_ascii_lowercase().as_bytes(),
        request.path,
        &canonical::query_v2(&pairs, "Signature"),
    );
    let value = STANDARD.encode(SigningKey::v2(request.secret).mac(&text));
    let value = format!("&Signature={}", utf8_percent_encode(&value, NON_ALPHANUMERIC));
    if is_get {
        query.push_str(&value);
    } else {
        body.push_str(&value);
    }
    Some((query, body))
}

/// Signs in the query, and returns it. `None` as [`sign_v2`].
pub fn presign(request: &Outgoing<'_>, now: DateTime<Utc>) -> Option<String> {
    if request.host.is_empty() || is_signed(request).is_none_or(|signed| signed) {
        return None;
    }
    let time = time::to_basic(now);
    let scope = v4::scope(&time[..8], request.region, request.service);
    let query = format!(
        "{}{MARK}&X-Amz-Algorithm={}&X-Amz-Credential={}%2F{}&X-Amz-Date={time}&X-Amz-Expires=600&X-Amz-SignedHeaders=host",
        request.query,
        v4::ALGORITHM,
        request.access_key_id,
        utf8_percent_encode(&scope, NON_ALPHANUMERIC)
    );
    let path = canonical::path(&canonical::normalised(request.path));
    let headers = format!("host:{}\n", request.host);
    let payload = hex::encode(Sha256::digest(request.body));
    let canonical_query = canonical::query_v4(&query, None).ok()?;
    let canonical =
        v4::canonical_request(request.method, &path, &canonical_query, headers.as_bytes(), "host", &payload);
    let key = SigningKey::derive(request.secret, &time[..8], request.region, request.service);
    let signature = hex::encode(key.mac(v4::string_to_sign(&time, &scope, &canonical).as_bytes()));
    Some(format!("{query}&X-Amz-Signature={signature}"))
}

/// Whether a request has parameters of a signature before it is signed: then it has them twice, or of two kinds.
fn is_signed(request: &Outgoing<'_>) -> Option<bool> {
    let named = |raw| Some(canonical::pairs(raw).ok()?.iter().any(|(name, _)| is_of_signature(name)));
    Some(named(request.query.as_bytes())? || named(request.body)?)
}

fn is_of_signature(name: &[u8]) -> bool {
    let names: [&[u8]; 6] =
        [b"AWSAccessKeyId", b"Signature", b"SignatureMethod", b"SignatureVersion", b"Timestamp", b"Expires"];
    names.contains(&name) || name.starts_with(b"X-Amz-")
}
