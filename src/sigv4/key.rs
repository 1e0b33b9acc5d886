//! Keys that make and check signatures.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::AuthError;

#[cfg(test)]
thread_local! {
    /// How many times this thread has hashed with a key: what tells answers apart by the time they take.
    pub(crate) static HASHED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// A key that is ready to sign: HMAC-SHA256 with its pads already hashed. Cheap to clone, dear (four HMACs) to derive.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Derives the `SigV4` key of a day (`YYYYMMDD`), region and service.
    pub fn derive(secret: &str, date: &str, region: &str, service: &str) -> Self {
        Self::new(&*Self::bytes(secret, date, region, service))
    }

    pub(super) fn bytes(secret: &str, date: &str, region: &str, service: &str) -> Zeroizing<[u8; 32]> {
        let mut first = Zeroizing::new(Vec::with_capacity(4 + secret.len()));
        first.extend_from_slice(b"AWS4");
        first.extend_from_slice(secret.as_bytes());
        let mut key = Zeroizing::new(Self::new(&first).mac(date.as_bytes()));
        for part in [region, service, "aws4_request"] {
            *key = Self::new(&*key).mac(part.as_bytes());
        }
        key
    }

    /// The `SigV2` key, which is the secret itself.
    pub fn v2(secret: &str) -> Self {
        Self::new(secret.as_bytes())
    }

    fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes a key of any length"))
    }

    pub(super) fn mac(&self, message: &[u8]) -> [u8; 32] {
        #[cfg(test)]
        HASHED.set(HASHED.get() + 1);
        self.0.clone().chain_update(message).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub(super) fn check(&self, message: &[u8], signature: &[u8; 32]) -> Result<(), AuthError> {
        #[cfg(test)]
        HASHED.set(HASHED.get() + 1);
        self.0.clone().chain_update(message).verify_slice(signature).map_err(|_| AuthError::Mismatch)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<signing key>")
    }
}
