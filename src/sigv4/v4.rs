//! `SigV4`, in the `Authorization` header or in the query.

use std::borrow::Cow;

use chrono::{DateTime, Duration, Utc};
use sha2::{Digest, Sha256};

use super::canonical::{self, Pair};
use super::{AuthError, CLOCK_WINDOW, Mark, Presented, Request, Scheme, SigningKey, access_key_id, incomplete, time};

pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// What a request says of its signature.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    /// `ACCESS-KEY/DATE/REGION/SERVICE/aws4_request`
    credential: Cow<'a, str>,
    /// Where the scope starts in it.
    scope_at: usize,
    /// Lower-case names, ascending, joined by semicolons; `host` is among them.
    signed_headers: Cow<'a, str>,
    signature: [u8; 32],
    time: DateTime<Utc>,
    /// The same as it is signed: `YYYYMMDDTHHMMSSZ`.
    timestamp: String,
    /// How long it is good for after `time`, when it came in the query.
    presigned: Option<Duration>,
    /// Whether it says that the body is not signed.
    unsigned_payload: bool,
}

/// The parts of the canonical request that are the same whichever form of host and path was signed.
pub(super) struct Fixed {
    query: Vec<u8>,
    payload: String,
}

/// Whether a query carries a signature, or a part of one.
pub(super) fn is_in(pairs: &[Pair<'_>]) -> bool {
    pairs.iter().any(|(name, _)| matches!(name.as_ref(), b"X-Amz-Algorithm" | b"X-Amz-Signature" | b"X-Amz-Credential"))
}

/// Reads `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=…, Signature=…`; the blanks behind the commas may be missing.
pub(super) fn parse_header<'a>(request: &Request<'a>, authorization: &'a str) -> Result<Presented<'a>, AuthError> {
    let Some(fields) = authorization.trim().strip_prefix(ALGORITHM).filter(|rest| rest.starts_with([' ', '\t'])) else {
        return incomplete(format!("the Authorization header is not of the form {ALGORITHM} ..."));
    };
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in fields.split(',').map(str::trim) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let place = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => return incomplete("the Authorization header has a part that is not known"),
        };
        if place.replace(value).is_some() {
            return incomplete(format!("the Authorization header has {name} twice"));
        }
    }
    let needed = |part: Option<&'a str>, name| match part {
        Some(value) => Ok(value),
        None => incomplete(format!("the Authorization header lacks {name}")),
    };
    let time = match canonical::single_header(request.headers, "x-amz-date")? {
        Some(text) => time::basic(text),
        None => canonical::single_header(request.headers, "date")?.and_then(time::http),
    };
    presented(Parts {
        credential: needed(credential, "Credential")?.into(),
        signed_headers: needed(signed_headers, "SignedHeaders")?.into(),
        signature: needed(signature, "Signature")?,
        time,
        presigned: None,
        unsigned_payload: false,
    })
}

/// Reads `X-Amz-Algorithm`, `X-Amz-Credential`, `X-Amz-Date`, `X-Amz-Expires`, `X-Amz-SignedHeaders`, `X-Amz-Signature`.
pub(super) fn parse_query<'a>(request: &Request<'a>, pairs: &[Pair<'a>]) -> Result<Presented<'a>, AuthError> {
    let needed = |name: &str| match canonical::single(pairs, name)? {
        Some(value) => Ok(value),
        None => incomplete(format!("the query lacks {name}")),
    };
    if needed("X-Amz-Algorithm")? != ALGORITHM {
        return incomplete(format!("X-Amz-Algorithm is not {ALGORITHM}"));
    }
    let expires = match needed("X-Amz-Expires")?.parse() {
        Ok(seconds @ 1..=604_800) => Duration::seconds(seconds),
        _ => return incomplete("X-Amz-Expires is not a number of seconds from 1 to 604800"),
    };
    // A presigned POST whose body is not signed would let whoever sees the URL choose the action.
    let unsigned_payload = request.body.is_empty()
        && (canonical::single(pairs, "X-Amz-Content-Sha256")?.as_deref() == Some(UNSIGNED_PAYLOAD)
            || canonical::single_header(request.headers, "x-amz-content-sha256")? == Some(UNSIGNED_PAYLOAD));
    presented(Parts {
        credential: needed("X-Amz-Credential")?,
        signed_headers: needed("X-Amz-SignedHeaders")?,
        signature: &needed("X-Amz-Signature")?,
        time: time::basic(&needed("X-Amz-Date")?),
        presigned: Some(expires),
        unsigned_payload,
    })
}

/// What the header form and the query form have in common.
struct Parts<'a, 's> {
    credential: Cow<'a, str>,
    signed_headers: Cow<'a, str>,
    signature: &'s str,
    time: Option<DateTime<Utc>>,
    presigned: Option<Duration>,
    unsigned_payload: bool,
}

fn presented<'a>(parts: Parts<'a, '_>) -> Result<Presented<'a>, AuthError> {
    let Parts { credential, signed_headers, time, presigned, unsigned_payload, .. } = parts;
    let mut signature = [0; 32];
    if hex::decode_to_slice(parts.signature, &mut signature).is_err() {
        return incomplete("the signature is not 64 hexadecimal digits");
    }
    // From the right: only the access key could have a slash of its own.
    let Some((scope_slash, _)) = credential.rmatch_indices('/').nth(3) else {
        return incomplete("the credential is not of the form ACCESS-KEY/DATE/REGION/SERVICE/aws4_request");
    };
    let scope_at = scope_slash + 1;
    let scope = &credential[scope_at..];
    if scope.rsplit('/').next() != Some(TERMINATOR) || scope.len() > 256 || !scope.bytes().all(|b| b.is_ascii_graphic())
    {
        return incomplete("the credential's scope is not of the form DATE/REGION/SERVICE/aws4_request");
    }
    let Some(time) = time else {
        return incomplete("the request has no time, neither X-Amz-Date in the form 20260131T120000Z nor Date");
    };
    let timestamp = time::to_basic(time);
    if scope.split('/').next() != timestamp.get(..8) {
        return incomplete("the date of the credential's scope is not the date of the request");
    }
    let names = || signed_headers.split(';');
    if !names().all(is_lower_case_token) || !names().is_sorted_by(|a, b| a < b) {
        return incomplete("the signed headers are not lower-case names in ascending order");
    }
    if !names().any(|name| name == "host") {
        return incomplete("the header host is not signed");
    }
    let id = match &credential {
        Cow::Borrowed(text) => Cow::Borrowed(&text[..scope_slash]),
        Cow::Owned(text) => Cow::Owned(text[..scope_slash].to_owned()),
    };
    Ok(Presented {
        access_key_id: access_key_id(id)?,
        scheme: Scheme::V4(Claim {
            credential,
            scope_at,
            signed_headers,
            signature,
            time,
            timestamp,
            presigned,
            unsigned_payload,
        }),
    })
}

/// Whether a name can be the name of a header (RFC 9110, 5.6.2), in lower case.
fn is_lower_case_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl Claim<'_> {
    pub(super) fn scope(&self) -> &str {
        &self.credential[self.scope_at..]
    }

    pub(super) fn mark(&self) -> Option<Mark> {
        let Self { time: signed_at, signature, .. } = *self;
        self.presigned.is_none().then_some(Mark { signed_at, signature })
    }

    pub(super) fn signing_key(&self, secret: &str) -> SigningKey {
        let mut parts = self.scope().split('/');
        let mut part = || parts.next().unwrap_or_default();
        let (date, region, service) = (part(), part(), part());
        SigningKey::derive(secret, date, region, service)
    }

    pub(super) fn in_time(&self, now: DateTime<Utc>) -> Result<(), AuthError> {
        let age = now.signed_duration_since(self.time);
        if age < -CLOCK_WINDOW || age > self.presigned.unwrap_or(CLOCK_WINDOW) {
            return Err(AuthError::Expired { request_time: self.time, server_time: now });
        }
        Ok(())
    }

    /// Tries the forms of host and path that clients sign, the usual one first.
    pub(super) fn verify(&self, request: &Request<'_>, key: &SigningKey) -> Result<(), AuthError> {
        let fixed = self.fixed(request)?;
        let normalised = canonical::normalised(request.path);
        let paths = [Some(&*normalised), (normalised != request.path).then_some(request.path)];
        let hosts = canonical::hosts(request.headers)?;
        for path in paths.into_iter().flatten() {
            for host in &hosts {
                let canonical = self.canonical(request, &fixed, path, host)?;
                if key
                    .check(string_to_sign(&self.timestamp, self.scope(), &canonical).as_bytes(), &self.signature)
                    .is_ok()
                {
                    return Ok(());
                }
            }
        }
        Err(AuthError::Mismatch)
    }

    pub(super) fn fixed(&self, request: &Request<'_>) -> Result<Fixed, AuthError> {
        let query = canonical::query_v4(request.query, self.presigned.map(|_| "X-Amz-Signature"))?;
        Ok(Fixed { query, payload: self.payload(request)? })
    }

    pub(super) fn canonical(
        &self,
        request: &Request<'_>,
        fixed: &Fixed,
        path: &str,
        host: &[u8],
    ) -> Result<Vec<u8>, AuthError> {
        let mut headers = Vec::with_capacity(256);
        canonical::headers_into(&mut headers, request.headers, &self.signed_headers, host)?;
        let (path, names) = (canonical::path(path), &self.signed_headers);
        Ok(canonical_request(request.method, &path, &fixed.query, &headers, names, &fixed.payload))
    }

    /// The hash of the body, in hexadecimal. A client that says what it hashed to must be right.
    fn payload(&self, request: &Request<'_>) -> Result<String, AuthError> {
        if self.unsigned_payload {
            return Ok(UNSIGNED_PAYLOAD.to_owned());
        }
        let hash = hex::encode(Sha256::digest(request.body));
        let said = canonical::single_header(request.headers, "x-amz-content-sha256")?;
        if said.is_some_and(|said| said != hash) {
            return Err(AuthError::Mismatch);
        }
        Ok(hash)
    }
}

/// The request in the one spelling that is hashed.
pub(super) fn canonical_request(
    method: &str,
    path: &[u8],
    query: &[u8],
    headers: &[u8],
    signed_headers: &str,
    payload: &str,
) -> Vec<u8> {
    [method.as_bytes(), path, query, headers, signed_headers.as_bytes(), payload.as_bytes()].join(&b'\n')
}

/// The text that the signature is the HMAC of.
pub(super) fn string_to_sign(timestamp: &str, scope: &str, canonical_request: &[u8]) -> String {
    let hash = hex::encode(Sha256::digest(canonical_request));
    [ALGORITHM, timestamp, scope, &hash].join("\n")
}

/// The scope that a signer writes.
pub(super) fn scope(date: &str, region: &str, service: &str) -> String {
    [date, region, service, TERMINATOR].join("/")
}
