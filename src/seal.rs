//! Secrets at rest: what the database holds of an access key or a CHAP secret is encrypted under the master key.
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) by a library, a random 24-byte nonce each time, and the id of the row
//! as associated data: a sealed secret moved to another row does not open. Stored form: one byte of version, four bytes
//! that name the master key, the nonce, the ciphertext.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand::RngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const KEY_NAME: usize = 4;
const NONCE: usize = 24;

/// Why a master key is refused or a secret does not open.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The master key is not 64 hexadecimal digits.
    #[error("the master key must be 64 hexadecimal digits (32 bytes)")]
    BadMasterKey,
    /// It was sealed under another master key.
    #[error("sealed under another master key")]
    OtherMasterKey,
    /// It was changed, or belongs to another row.
    #[error("a sealed secret does not open")]
    Broken,
}

/// Seals and opens secrets under one master key.
#[derive(Clone)]
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    key_name: [u8; KEY_NAME],
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Takes the master key as 64 hexadecimal digits.
    pub fn new(master_key: &str) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0u8; 32]);
        hex::decode_to_slice(master_key.trim(), key.as_mut_slice()).map_err(|_| SealError::BadMasterKey)?;
        let digest = Sha256::digest(key.as_slice());
        let mut key_name = [0; KEY_NAME];
        key_name.copy_from_slice(&digest[..KEY_NAME]);
        let cipher = XChaCha20Poly1305::new_from_slice(key.as_slice()).map_err(|_| SealError::BadMasterKey)?;
        Ok(Self { cipher, key_name })
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
        let ciphertext = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).expect("a secret is short");
        [&[VERSION][..], &self.key_name, &nonce, &ciphertext].concat()
    }

    /// Decrypts what was sealed for the row with this id.
    pub fn open(&self, sealed: &[u8], row_id: &str) -> Result<Zeroizing<String>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError::Broken)?;
        let (key_name, rest) = rest.split_at_checked(KEY_NAME).ok_or(SealError::Broken)?;
        let (nonce, ciphertext) = rest.split_at_checked(NONCE).ok_or(SealError::Broken)?;
        if *version != VERSION {
            return Err(SealError::Broken);
        }
        if key_name != self.key_name {
            return Err(SealError::OtherMasterKey);
        }
        let payload = Payload { msg: ciphertext, aad: row_id.as_bytes() };
        let plain = self.cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| SealError::Broken)?;
        String::from_utf8(plain).map(Zeroizing::new).map_err(|_| SealError::Broken)
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
        assert_eq!(sealer.open(&stored, "AKIA2").unwrap_err(), SealError::Broken);
        let other = Sealer::new(&Sealer::generate_master_key()).unwrap();
        assert_eq!(other.open(&stored, "AKIA1").unwrap_err(), SealError::OtherMasterKey);
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
            assert_eq!(Sealer::new(key).unwrap_err(), SealError::BadMasterKey);
        }
    }
}
