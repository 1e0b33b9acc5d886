//! Who sends a request? Finds the secret of its access key and lets [`crate::sigv4`] verify it.
//!
//! A gateway verifies many thousand requests a second, nearly all by the same few keys, so it remembers keys for
//! [`FRESH`]: a key that the operator disables may be accepted for that long, and no longer. A notification
//! ([`Keys::forget`]) makes it shorter still.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use zeroize::Zeroizing;

use crate::db::{self, Pool};
use crate::seal::Sealer;
use crate::sigv4::{self, AuthError, SigningKey};

use super::error::{ApiError, ApiResult};
use super::faults;

/// How long a key is remembered without asking the database again.
pub const FRESH: Duration = Duration::from_secs(1);
/// The most keys remembered.
const MOST_KEYS: usize = 4_096;

/// The access keys that were used lately.
#[derive(Debug)]
pub struct Keys {
    sealer: Sealer,
    sigv2: bool,
    known: RwLock<HashMap<String, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    since: Instant,
    key: Arc<Key>,
}

/// An enabled access key with its secret.
struct Key {
    account_id: Arc<str>,
    own_quotas: bool,
    secret: Zeroizing<String>,
    /// The signing key of the scope that verified last: clients keep to one scope all day, and deriving the key costs
    /// more than all the rest of a verification.
    derived: Mutex<Option<(String, SigningKey)>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<key of {}>", self.account_id)
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
        Self { sealer, sigv2, known: RwLock::default() }
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
        let key = self.find(pool, &presented.access_key_id).await?;
        let signing = key.signing_key(&presented);
        sigv4::verify_with_key(request, &presented, &signing, Utc::now()).map_err(|error| refusal(&error))?;
        key.remember(presented.scope(), signing);
        Ok(Caller {
            account_id: key.account_id.clone(),
            access_key_id: presented.access_key_id.into_owned(),
            own_quotas: key.own_quotas,
        })
    }

    async fn find(&self, pool: &Pool, id: &str) -> ApiResult<Arc<Key>> {
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(id)
            && known.since.elapsed() < FRESH
        {
            return Ok(known.key.clone());
        }
        // The clock starts before the question, so that the answer is never taken for newer than it is.
        let since = Instant::now();
        let row = db::access_keys::find_enabled(&mut *pool.get().await?, id).await?;
        let Some((row, own_quotas)) = row else {
            self.known.write().unwrap_or_else(PoisonError::into_inner).remove(id);
            return Err(ApiError { inside: Some("no enabled access key of this id".into()), ..faults::auth_failure() });
        };
        let secret = self.sealer.open(&row.sealed_secret, &row.id).map_err(ApiError::internal)?;
        let key = Arc::new(Key { account_id: row.account_id.into(), own_quotas, secret, derived: Mutex::default() });
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KEYS {
            known.clear();
        }
        known.insert(row.id, Known { since, key: key.clone() });
        Ok(key)
    }
}

impl Key {
    fn signing_key(&self, presented: &sigv4::Presented<'_>) -> SigningKey {
        if let Some((scope, key)) = &*self.derived.lock().unwrap_or_else(PoisonError::into_inner)
            && scope == presented.scope()
        {
            return key.clone();
        }
        presented.signing_key(&self.secret)
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
    fn an_unsigned_request_is_told_what_it_lacks() {
        let error = refusal(&AuthError::Missing);
        assert_eq!((error.code, error.status), ("MissingParameter", 400));
        assert_eq!(error.message, "The request must contain the parameter AWSAccessKeyId");
        assert_eq!(refusal(&AuthError::Mismatch).status, 401);
    }
}
