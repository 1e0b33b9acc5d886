//! AWS signatures: who sent this request, and did they send it as it arrived?
//!
//! Clients in the field sign in three ways and each has its habits: `SigV4` in the `Authorization` header (the AWS CLI,
//! every SDK, boto 2), `SigV4` in the query (presigned URLs) and `SigV2` in the parameters (libcloud, old boto scripts). They
//! disagree on the region and service of the scope (boto 2 derives `0/127` from the host name `127.0.0.1`), on blanks
//! behind commas and on whether `Host` names the default port. So the scope is taken as it comes (the key's secret
//! is what counts) and the few forms that clients are known to sign are tried one after another; each of them
//! covers the same method, path, parameters and body, so trying costs no safety.
//!
//! The module is pure: no clock, no table of keys. [`parse`] says whose secret is needed, [`verify`] does the rest. What the
//! signature does not cover must not be acted upon: the whole query and the whole body are always covered.
//!
//! Sources: "Create a signed AWS API request" of the IAM User Guide; "Signature Version 2 signing process" of the AWS
//! General Reference.

mod canonical;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod key;
mod sign;
#[cfg(test)]
mod tests;
mod time;
mod v2;
mod v4;
#[cfg(test)]
mod vectors;

use std::borrow::Cow;

use chrono::{DateTime, Duration, SecondsFormat, Utc};
use hyper::HeaderMap;

#[cfg(test)]
pub(crate) use key::HASHED;
pub use key::SigningKey;
pub use sign::{Outgoing, presign, sign};

/// How far a client's clock may be from ours, either way.
pub const CLOCK_WINDOW: Duration = Duration::minutes(15);

/// A request as it arrived: nothing decoded, nothing normalised.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// The path, still percent-encoded.
    pub path: &'a str,
    /// The query without its question mark, still percent-encoded; empty when there is none.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The whole body. The caller has limited its size.
    pub body: &'a [u8],
}

/// A signature as a request presents it: well formed, not yet verified.
#[derive(Debug)]
pub struct Presented<'a> {
    /// The access key whose secret made the signature, if the claim is true. Printable ASCII, at most 128 bytes.
    pub access_key_id: Cow<'a, str>,
    scheme: Scheme<'a>,
}

/// What tells a signed request from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When it was signed, as it says.
    pub signed_at: DateTime<Utc>,
    /// The bytes of its signature.
    pub signature: [u8; 32],
}

#[derive(Debug)]
enum Scheme<'a> {
    V4(v4::Claim<'a>),
    V2(v2::Claim<'a>),
}

/// Why a request is not from who it says it is from. No variant shows the signature that would have been right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The request is not signed at all.
    #[error("the request is not signed")]
    Missing,
    /// The signature lacks something, or is of a form that cannot be read.
    #[error("{0}")]
    Incomplete(String),
    /// The request's time is too far from ours, or the time it was good for is over.
    #[error("signature expired: signed at {}, received at {}", iso(*request_time), iso(*server_time))]
    Expired {
        /// When the request says it was signed (`SigV2` with `Expires`: when it ended).
        request_time: DateTime<Utc>,
        /// When it came.
        server_time: DateTime<Utc>,
    },
    /// The secret does not make this signature over this request.
    #[error("the signature does not match the request")]
    Mismatch,
}

fn iso(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn incomplete<T>(text: impl Into<String>) -> Result<T, AuthError> {
    Err(AuthError::Incomplete(text.into()))
}

/// Finds the signature of a request and checks its form.
///
/// # Errors
/// [`AuthError::Missing`] when there is none, [`AuthError::Incomplete`] when its form is wrong.
pub fn parse<'a>(request: &Request<'a>) -> Result<Presented<'a>, AuthError> {
    if let Some(authorization) = canonical::single_header(request.headers, "authorization")? {
        return v4::parse_header(request, authorization);
    }
    if !request.query.is_empty() {
        let pairs = canonical::pairs(request.query.as_bytes())?;
        if v4::is_in(&pairs) {
            return v4::parse_query(request, &pairs);
        }
    }
    v2::parse(request)
}

/// Verifies what [`parse`] found in the same request, with the secret that belongs to its access key.
///
/// # Errors
/// [`AuthError::Expired`] before anything else, so that a client whose clock is wrong can tell;
/// [`AuthError::Mismatch`] when the secret or any signed part of the request is another.
pub fn verify(
    request: &Request<'_>,
    presented: &Presented<'_>,
    secret: &str,
    now: DateTime<Utc>,
) -> Result<(), AuthError> {
    presented.in_time(now)?;
    verify_with_key(request, presented, &presented.signing_key(secret), now)
}

/// Like [`verify`], with a key that [`Presented::signing_key`] made earlier, perhaps for another request of the same
/// access key and [`Presented::scope`].
///
/// # Errors
/// As [`verify`].
pub fn verify_with_key(
    request: &Request<'_>,
    presented: &Presented<'_>,
    key: &SigningKey,
    now: DateTime<Utc>,
) -> Result<(), AuthError> {
    presented.in_time(now)?;
    match &presented.scheme {
        Scheme::V4(claim) => claim.verify(request, key),
        Scheme::V2(claim) => claim.verify(request, key),
    }
}

impl Presented<'_> {
    /// Whether the signature is of version 2, which an operator can turn off.
    pub fn is_v2(&self) -> bool {
        matches!(self.scheme, Scheme::V2(_))
    }

    /// What a signing key depends on besides the secret: `DATE/REGION/SERVICE/aws4_request`, and nothing for `SigV2`.
    /// The client chooses it, so a cache of keys must be bounded and should keep only those that verified a request.
    pub fn scope(&self) -> &str {
        match &self.scheme {
            Scheme::V4(claim) => claim.scope(),
            Scheme::V2(_) => "",
        }
    }

    /// What tells it from every other request: of `SigV4` in the header alone, which is good for [`CLOCK_WINDOW`] either way and
    /// no longer.
    pub fn mark(&self) -> Option<Mark> {
        match &self.scheme {
            Scheme::V4(claim) => claim.mark(),
            Scheme::V2(_) => None,
        }
    }

    /// Makes the key that verifies this signature.
    pub fn signing_key(&self, secret: &str) -> SigningKey {
        match &self.scheme {
            Scheme::V4(claim) => claim.signing_key(secret),
            Scheme::V2(_) => SigningKey::v2(secret),
        }
    }

    /// Whether the request is neither too old nor from the future. This needs no secret; a server that asks before it
    /// looks for the key answers an old request alike whether there is such a key or not.
    ///
    /// # Errors
    /// [`AuthError::Expired`].
    pub fn in_time(&self, now: DateTime<Utc>) -> Result<(), AuthError> {
        match &self.scheme {
            Scheme::V4(claim) => claim.in_time(now),
            Scheme::V2(claim) => claim.in_time(now),
        }
    }
}

/// Checks an access key id from the wire.
fn access_key_id(text: Cow<'_, str>) -> Result<Cow<'_, str>, AuthError> {
    if text.is_empty() || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return incomplete("the access key id is not well formed");
    }
    Ok(text)
}
