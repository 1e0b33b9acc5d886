//! Secrets at rest: what the database holds of an access key or a CHAP secret is encrypted under the master key.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) by a library, a random 24-byte nonce each time, and the id of the row
//! as associated data: a sealed secret moved to another row does not open. Stored form: one byte of version, four bytes
//! that name the master key, the nonce, the ciphertext.
//!
//! A master key is replaced while gateways run: what a further key has sealed still opens, and [`Sealer::renew`] seals it
//! under the first.

use std::sync::Arc;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::{Config, ConfigError};

const VERSION: u8 = 1;
const KEY_NAME: usize = 4;
const NONCE: usize = 24;

/// Why a master key is refused or a secret does not open.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The master key is not 64 hexadecimal digits.
    #[error("the master key must be 64 hexadecimal digits (32 bytes)")]
    BadMasterKey,
    /// A master key cannot be read.
    #[error(transparent)]
    Unread(#[from] ConfigError),
    /// It was sealed under a master key that is not at hand.
    #[error("sealed under another master key")]
    OtherMasterKey,
    /// It was changed, or belongs to another row.
    #[error("a sealed secret does not open")]
    Broken,
}

/// Seals secrets under one master key, and opens what this or a further one has sealed.
#[derive(Clone)]
pub struct Sealer {
    /// The first is the one that seals.
    keys: Arc<[MasterKey]>,
}

struct MasterKey {
    name: [u8; KEY_NAME],
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl MasterKey {
    fn new(text: &str) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0u8; 32]);
        hex::decode_to_slice(text.trim(), key.as_mut_slice()).map_err(|_| SealError::BadMasterKey)?;
        let digest = Sha256::digest(key.as_slice());
        let mut name = [0; KEY_NAME];
        name.copy_from_slice(&digest[..KEY_NAME]);
        let cipher = XChaCha20Poly1305::new_from_slice(key.as_slice()).map_err(|_| SealError::BadMasterKey)?;
        Ok(Self { name, cipher })
    }
}

/// The name of the master key that a secret was sealed under, in hexadecimal; nothing can be told from it about the key.
pub fn key_name(sealed: &[u8]) -> Option<String> {
    sealed.get(1..=KEY_NAME).map(hex::encode)
}

impl Sealer {
    /// Takes a master key as 64 hexadecimal digits.
    pub fn new(master_key: &str) -> Result<Self, SealError> {
        Self::with_further(master_key, &[])
    }

    /// Takes a master key, and further ones that only open.
    pub fn with_further(master_key: &str, further: &[Zeroizing<String>]) -> Result<Self, SealError> {
        let all = std::iter::once(master_key).chain(further.iter().map(|key| key.as_str()));
        Ok(Self { keys: all.map(MasterKey::new).collect::<Result<_, _>>()? })
    }

    /// Takes the master keys that a configuration names.
    pub fn of(config: &Config) -> Result<Self, SealError> {
        let further: Vec<_> =
            config.further_master_keys.iter().map(|key| key.read().map(Zeroizing::new)).collect::<Result<_, _>>()?;
        Self::with_further(&Zeroizing::new(config.master_key.read()?), &further)
    }

    /// The names of the master keys, as [`key_name`] has them, the one that seals first.
    pub fn key_names(&self) -> Vec<String> {
        self.keys.iter().map(|key| hex::encode(key.name)).collect()
    }

    /// Makes a new master key, for a first start.
    pub fn generate_master_key() -> String {
        let mut key = Zeroizing::new([0u8; 32]);
        rand::rng().fill_bytes(key.as_mut_slice());
        hex::encode(key.as_slice())
    }

    /// Encrypts a secret for the row with this id.
    ///
    /// # Panics
    /// Never: the cipher refuses only messages of 256 GiB and more.
    pub fn seal(&self, secret: &str, row_id: &str) -> Vec<u8> {
        let mut nonce = [0u8; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload { msg: secret.as_bytes(), aad: row_id.as_bytes() };
        let key = &self.keys[0];
        let ciphertext = key.cipher.encrypt(XNonce::from_slice(&nonce), payload).expect("a secret is short");
        [&[VERSION][..], &key.name, &nonce, &ciphertext].concat()
    }

    /// Decrypts what was sealed for the row with this id.
    pub fn open(&self, sealed: &[u8], row_id: &str) -> Result<Zeroizing<String>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Broken)?;
        let (key_name, rest) = rest.split_at_checked(KEY_NAME).ok_or(SealError::Broken)?;
        let (nonce, ciphertext) = rest.split_at_checked(NONCE).ok_or(SealError::Broken)?;
        if *version != VERSION {
            return Err(SealError::Broken);
        }
        let key = self.keys.iter().find(|key| key.name == key_name).ok_or(SealError::OtherMasterKey)?;
        let payload = Payload { msg: ciphertext, aad: row_id.as_bytes() };
        let plain = key.cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| SealError::Broken)?;
        String::from_utf8(plain).map(Zeroizing::new).map_err(|_| SealError::Broken)
    }

    /// Seals a secret anew that a further master key has sealed; `None` for one that is sealed under the first.
    pub fn renew(&self, sealed: &[u8], row_id: &str) -> Result<Option<Vec<u8>>, SealError> {
        if sealed.get(1..=KEY_NAME) == Some(&self.keys[0].name[..]) {
            return Ok(None);
        }
        Ok(Some(self.seal(&self.open(sealed, row_id)?, row_id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_only_for_its_row_and_under_its_key() {
        let sealer = Sealer::new(&Sealer::generate_master_key()).unwrap();
        let stored = sealer.seal("s3cret", "AKIA1");
        assert_eq!(*sealer.open(&stored, "AKIA1").unwrap(), "s3cret");
        assert!(matches!(sealer.open(&stored, "AKIA2"), Err(SealError::Broken)));
        let other = Sealer::new(&Sealer::generate_master_key()).unwrap();
        assert!(matches!(other.open(&stored, "AKIA1"), Err(SealError::OtherMasterKey)));
    }

    #[test]
    fn what_a_further_key_has_sealed_opens_and_is_renewed_under_the_first() {
        let [old, new] = [(); 2].map(|()| Zeroizing::new(Sealer::generate_master_key()));
        let (before, after) = (Sealer::new(&old).unwrap(), Sealer::new(&new).unwrap());
        let between = Sealer::with_further(&new, std::slice::from_ref(&old)).unwrap();
        let stored = before.seal("s3cret", "AKIA1");
        assert_eq!(*between.open(&stored, "AKIA1").unwrap(), "s3cret");
        let renewed = between.renew(&stored, "AKIA1").unwrap().unwrap();
        assert_eq!(*after.open(&renewed, "AKIA1").unwrap(), "s3cret");
        assert!(before.open(&renewed, "AKIA1").is_err());
        assert_eq!(between.renew(&renewed, "AKIA1").unwrap(), None);
        assert!(matches!(after.renew(&stored, "AKIA1"), Err(SealError::OtherMasterKey)));
        assert_eq!(key_name(&renewed).as_ref(), between.key_names().first());
    }

    #[test]
    fn a_changed_or_truncated_secret_does_not_open() {
        let sealer = Sealer::new(&Sealer::generate_master_key()).unwrap();
        let stored = sealer.seal("s3cret", "AKIA1");
        for length in 0..stored.len() {
            assert!(sealer.open(&stored[..length], "AKIA1").is_err(), "{length}");
        }
        let mut changed = stored.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(sealer.open(&changed, "AKIA1").is_err());
    }

    #[test]
    fn a_master_key_of_the_wrong_form_is_refused() {
        for key in ["", "00", &"0".repeat(63), &"g".repeat(64)] {
            assert!(matches!(Sealer::new(key), Err(SealError::BadMasterKey)));
        }
    }
}
