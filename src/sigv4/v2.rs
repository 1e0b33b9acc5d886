//! `SigV2`: HMAC-SHA256 over all parameters, which are in the query, or for a POST in the form.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};

use super::canonical::{self, Pair};
use super::{AuthError, CLOCK_WINDOW, Presented, Request, Scheme, SigningKey, access_key_id, incomplete, time};

/// What a request says of its signature.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    parameters: Vec<Pair<'a>>,
    signature: [u8; 32],
    time: Time,
}

#[derive(Debug)]
enum Time {
    Signed(DateTime<Utc>),
    Expires(DateTime<Utc>),
}

/// Reads `AWSAccessKeyId`, `SignatureVersion`, `SignatureMethod`, `Timestamp` or `Expires`, and `Signature`.
pub(super) fn parse<'a>(request: &Request<'a>) -> Result<Presented<'a>, AuthError> {
    let mut parameters = canonical::pairs(request.query.as_bytes())?;
    let is_body_signed = request.method == "POST" && is_form(request);
    if is_body_signed {
        parameters.append(&mut canonical::pairs(request.body)?);
    }
    let signs =
        |name: &[u8]| matches!(name, b"Signature" | b"SignatureVersion" | b"SignatureMethod" | b"AWSAccessKeyId");
    if !parameters.iter().any(|(name, _)| signs(name)) {
        return Err(AuthError::Missing);
    }
    // Whoever reads the body for parameters would take what anybody on the way has put there.
    if !is_body_signed && !request.body.is_empty() {
        return incomplete("SignatureVersion 2 does not cover the body of this request");
    }
    let needed = |name: &str| match canonical::single(&parameters, name)? {
        Some(value) => Ok(value),
        None => incomplete(format!("the request must contain the parameter {name}")),
    };
    let id = access_key_id(needed("AWSAccessKeyId")?)?;
    if needed("SignatureVersion")? != "2" || needed("SignatureMethod")? != "HmacSHA256" {
        return incomplete("of the signatures in parameters, only SignatureVersion 2 with HmacSHA256 is accepted");
    }
    let Some(signature) = STANDARD.decode(&*needed("Signature")?).ok().and_then(|bytes| bytes.try_into().ok()) else {
        return incomplete("the signature is not 32 bytes in base64");
    };
    let read = |name: &str| match canonical::single(&parameters, name)? {
        None => Ok(None),
        Some(text) => match time::extended(&text) {
            None => incomplete(format!("{name} is not of the form 2026-01-31T12:00:00Z")),
            time => Ok(time),
        },
    };
    let time = match (read("Timestamp")?, read("Expires")?) {
        (Some(time), None) => Time::Signed(time),
        (None, Some(time)) => Time::Expires(time),
        _ => return incomplete("the request must contain one of the parameters Timestamp and Expires"),
    };
    let scheme = Scheme::V2(Claim { parameters, signature, time });
    Ok(Presented { access_key_id: id, scheme })
}

fn is_form(request: &Request<'_>) -> bool {
    let form = b"application/x-www-form-urlencoded";
    let given = request.headers.get("content-type").map(hyper::header::HeaderValue::as_bytes);
    given.is_none_or(|given| given.get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form)))
}

impl Claim<'_> {
    pub(super) fn in_time(&self, now: DateTime<Utc>) -> Result<(), AuthError> {
        let (time, good) = match self.time {
            Time::Signed(time) => (time, now.signed_duration_since(time).abs() <= CLOCK_WINDOW),
            Time::Expires(time) => (time, now <= time),
        };
        if good { Ok(()) } else { Err(AuthError::Expired { request_time: time, server_time: now }) }
    }

    /// Tries the forms of the host that clients sign: libcloud keeps any port, boto drops it.
    pub(super) fn verify(&self, request: &Request<'_>, key: &SigningKey) -> Result<(), AuthError> {
        let query = canonical::query_v2(&self.parameters, "Signature");
        let mut hosts = canonical::hosts(request.headers)?;
        let received = String::from_utf8_lossy(&hosts[0]).to_ascii_lowercase();
        if canonical::has_port(&received) {
            let bare = received.rsplit_once(':').map_or("", |(bare, _)| bare);
            hosts.push(Cow::Owned(bare.as_bytes().to_vec()));
        }
        for host in &hosts {
            let text = string_to_sign(request.method, &host.to_ascii_lowercase(), request.path, &query);
            if key.check(&text, &self.signature).is_ok() {
                return Ok(());
            }
        }
        Err(AuthError::Mismatch)
    }
}

/// The text that the signature is the HMAC of.
pub(super) fn string_to_sign(method: &str, host: &[u8], path: &str, query: &[u8]) -> Vec<u8> {
    let path = if path.is_empty() { "/" } else { path };
    [method.as_bytes(), host, path.as_bytes(), query].join(&b'\n')
}
