//! Who sends a request? Finds the secret of its access key and lets [`crate::sigv4`] verify it.
//!
//! A gateway verifies many thousand requests a second, nearly all by the same few keys, so it remembers keys for
//! [`FRESH`]: a key that the operator disables may be accepted for that long, and no longer. A notification
//! ([`Keys::forget`]) makes it shorter still.
//!
//! Whoever has no key must not find out which there are. So a request under a key that nobody has is verified like any other, with
//! a secret that nobody knows, and fails like one whose signature is wrong: in the same words, after as many signatures and
//! as many questions to the database.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use rand::RngCore;
use zeroize::Zeroizing;

use crate::db::{self, Pool};
use crate::seal::Sealer;
use crate::sigv4::{self, AuthError, SigningKey};

use super::error::{ApiError, ApiResult};
use super::faults;

/// How long a key is remembered without asking the database again.
pub const FRESH: Duration = Duration::from_secs(1);
/// What the secret that nobody knows is sealed for. No id of a key is so.
const NOBODY: &str = "nobody";
/// The most keys remembered.
const MOST_KEYS: usize = 4_096;

/// The access keys that were used lately.
#[derive(Debug)]
pub struct Keys {
    sealer: Sealer,
    /// A secret that nobody knows, sealed like others.
    nobodys: Vec<u8>,
    sigv2: bool,
    known: RwLock<HashMap<String, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    since: Instant,
    key: Arc<Key>,
}

/// An enabled access key with its secret, or what stands in for one that there is not.
struct Key {
    /// `None`: there is no such key.
    account_id: Option<Arc<str>>,
    own_quotas: bool,
    secret: Zeroizing<String>,
    /// The signing key of the scope that verified last: clients keep to one scope all day, and deriving the key costs
    /// more than all the rest of a verification.
    derived: Mutex<Option<(String, SigningKey)>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<key of {:?}>", self.account_id)
    }
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The account, twelve digits.
    pub account_id: Arc<str>,
    /// The access key.
    pub access_key_id: String,
    /// Whether the account has quotas of its own.
    pub own_quotas: bool,
}

impl Keys {
    /// Remembers nothing yet.
    pub fn new(sealer: Sealer, sigv2: bool) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(secret.as_mut_slice());
        let nobodys = sealer.seal(&Zeroizing::new(hex::encode(*secret)), NOBODY);
        Self { sealer, nobodys, sigv2, known: RwLock::default() }
    }

    /// Forgets every key: one of them was changed.
    pub fn forget(&self) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Verifies a request.
    pub async fn authenticate(&self, pool: &Pool, request: &sigv4::Request<'_>) -> ApiResult<Caller> {
        let presented = sigv4::parse(request).map_err(|error| refusal(&error))?;
        if presented.is_v2() && !self.sigv2 {
            return Err(ApiError { inside: Some("signature version 2 is off".into()), ..faults::auth_failure() });
        }
        // Before the key is looked for: else the answer to an old request would tell whether there is such a key.
        presented.in_time(Utc::now()).map_err(|error| refusal(&error))?;
        let remembered = self.remembered(&presented.access_key_id);
        let key = match &remembered {
            Some(key) => key.clone(),
            None => self.find(pool, &presented.access_key_id).await?,
        };
        let verified = key.verify(request, &presented);
        if verified.is_err() && remembered.is_some() {
            // As for one that is not remembered, or not there.
            db::access_keys::find_enabled(&mut *pool.get().await?, &presented.access_key_id).await?;
        }
        match (verified, &key.account_id) {
            (Ok(()), Some(account_id)) => Ok(Caller {
                account_id: account_id.clone(),
                access_key_id: presented.access_key_id.into_owned(),
                own_quotas: key.own_quotas,
            }),
            (Err(error), Some(_)) => Err(refusal(&error)),
            (verified, None) => {
                let refused = verified.err().map_or_else(faults::auth_failure, |error| refusal(&error));
                Err(ApiError { inside: Some("no enabled access key of this id".into()), ..refused })
            }
        }
    }

    fn remembered(&self, id: &str) -> Option<Arc<Key>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).filter(|known| known.since.elapsed() < FRESH).map(|known| known.key.clone())
    }

    /// Asks the database for the key.
    async fn find(&self, pool: &Pool, id: &str) -> ApiResult<Arc<Key>> {
        // The clock starts before the question, so that the answer is never taken for newer than it is.
        let since = Instant::now();
        let row = db::access_keys::find_enabled(&mut *pool.get().await?, id).await?;
        let Some((row, own_quotas)) = row else {
            self.known.write().unwrap_or_else(PoisonError::into_inner).remove(id);
            return self.open(&self.nobodys, NOBODY, None, false);
        };
        let key = self.open(&row.sealed_secret, &row.id, Some(row.account_id.into()), own_quotas)?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KEYS {
            known.clear();
        }
        known.insert(row.id, Known { since, key: key.clone() });
        Ok(key)
    }

    fn open(&self, sealed: &[u8], id: &str, account_id: Option<Arc<str>>, own_quotas: bool) -> ApiResult<Arc<Key>> {
        let secret = self.sealer.open(sealed, id).map_err(ApiError::internal)?;
        Ok(Arc::new(Key { account_id, own_quotas, secret, derived: Mutex::default() }))
    }
}

impl Key {
    /// Verifies a request that is signed in the name of this key. A failure takes as long whether the signing key was remembered
    /// or not.
    fn verify(&self, request: &sigv4::Request<'_>, presented: &sigv4::Presented<'_>) -> Result<(), AuthError> {
        let remembered = self.remembered(presented.scope());
        let was_remembered = remembered.is_some();
        let signing = remembered.unwrap_or_else(|| presented.signing_key(&self.secret));
        let verified = sigv4::verify_with_key(request, presented, &signing, Utc::now());
        match verified {
            Ok(()) => self.remember(presented.scope(), signing),
            Err(_) if was_remembered => drop(std::hint::black_box(presented.signing_key(&self.secret))),
            Err(_) => {}
        }
        verified
    }

    fn remembered(&self, scope: &str) -> Option<SigningKey> {
        let derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        derived.as_ref().filter(|(known, _)| known == scope).map(|(_, key)| key.clone())
    }

    fn remember(&self, scope: &str, key: SigningKey) {
        let mut derived = self.derived.lock().unwrap_or_else(PoisonError::into_inner);
        if derived.as_ref().is_none_or(|(known, _)| known != scope) {
            *derived = Some((scope.to_owned(), key));
        }
    }
}

/// Words a refusal as EC2 does. A wrong signature looks like an unknown key.
fn refusal(error: &AuthError) -> ApiError {
    match error {
        AuthError::Missing => faults::unsigned(),
        AuthError::Incomplete(why) => ApiError::new("IncompleteSignature", faults::clip(why)),
        AuthError::Expired { request_time, server_time } => {
            let text = |time: &chrono::DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
            let (then, now) = (text(request_time), text(server_time));
            ApiError::new(
                "RequestExpired",
                format!("Request has expired. Timestamp date is {then}; the time of the server is {now}."),
            )
        }
        AuthError::Mismatch => ApiError { inside: Some(error.to_string()), ..faults::auth_failure() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skewed_clock_is_told_both_times() {
        let at = |seconds| chrono::DateTime::from_timestamp(seconds, 0).unwrap();
        let error = refusal(&AuthError::Expired { request_time: at(0), server_time: at(86_400) });
        assert_eq!(error.code, "RequestExpired");
        assert!(error.message.contains("1970-01-01T00:00:00Z") && error.message.contains("1970-01-02T00:00:00Z"));
    }

    #[test]
    fn a_failure_costs_as_many_hashes_whether_there_is_the_key_or_not() {
        let keys = Keys::new(Sealer::new(&"ab".repeat(32)).unwrap(), true);
        let real = keys.open(&keys.sealer.seal("right", "AKIA"), "AKIA", Some("123456789012".into()), false).unwrap();
        let nobodys = keys.open(&keys.nobodys, NOBODY, None, false).unwrap();
        let outgoing = sigv4::Outgoing {
            method: "POST",
            path: "/",
            query: "",
            host: "h",
            body: b"Action=DescribeRegions",
            access_key_id: "AKIA",
            secret: "wrong",
            region: "us-east-1",
            service: "ec2",
        };
        let hashes = |outgoing: &sigv4::Outgoing<'_>, key: &Key, succeeds: bool| {
            let mut headers = hyper::HeaderMap::new();
            headers.insert("host", "h".parse().unwrap());
            for (name, value) in sigv4::sign(outgoing, Utc::now()) {
                headers.insert(name, value.parse().unwrap());
            }
            let request =
                sigv4::Request { method: "POST", path: "/", query: "", headers: &headers, body: outgoing.body };
            let presented = sigv4::parse(&request).unwrap();
            let before = sigv4::HASHED.get();
            assert_eq!(key.verify(&request, &presented).is_ok(), succeeds);
            sigv4::HASHED.get() - before
        };
        let unknown = hashes(&outgoing, &nobodys, false);
        // Four for the signing key, and one each for the forms of the host.
        assert_eq!(unknown, 4 + 3);
        assert_eq!(hashes(&outgoing, &real, false), unknown);
        let right = sigv4::Outgoing { secret: "right", ..outgoing };
        hashes(&right, &real, true);
        assert_eq!(hashes(&right, &real, true), 1, "the signing key is remembered");
        assert_eq!(hashes(&outgoing, &real, false), unknown);
    }

    #[test]
    fn an_unsigned_request_is_told_what_it_lacks() {
        let error = refusal(&AuthError::Missing);
        assert_eq!((error.code, error.status), ("MissingParameter", 400));
        assert_eq!(error.message, "The request must contain the parameter AWSAccessKeyId");
        assert_eq!(refusal(&AuthError::Mismatch).status, 401);
    }
}
