//! Reading the snapshots of another storage node, which has them while a volume is made of one here.
//!
//! The node that has a snapshot is asked, piece after piece, for what comes from an offset on. A piece is one chunk of bytes, or
//! zeros for as long as there are any, which are told and not sent. It carries a digest over all that it says. Of
//! what has arrived and is stored, [`Summary`] digests of both sides are compared at the end.
//!
//! Nodes do not know each other's keys. Who knows a node's can make a [`Grant`]: whoever has it may read this one snapshot, and
//! do nothing else, for an hour.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::trust::Trust;
use super::{DelegateError, Result, Secret};
use crate::ids::{SnapshotId, VolumeId};

/// The bytes that are told from zeros, sent and digested together. Offsets are multiples of it.
pub const CHUNK: u64 = 1 << 20;

/// A volume of another node's snapshot, as a storage node shall have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSpec {
    /// The volume.
    pub volume: VolumeId,
    /// Its size in bytes, not less than the snapshot's.
    pub size_bytes: u64,
    /// What its first bytes are; the others are zeros.
    pub snapshot: SnapshotId,
}

/// Leave to read one snapshot of a node for a while, for whoever has this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Where the node is, as the one who gives this knows it.
    pub url: String,
    /// Which certificates it may show, with `https`.
    #[serde(flatten)]
    pub trust: Trust,
    /// The query that makes the request for the snapshot a signed one.
    pub query: Secret,
}

/// SHA-256, in hexadecimal on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let mut digest = [0; 32];
        let text = String::deserialize(from)?;
        hex::decode_to_slice(&text, &mut digest).map_err(|_| serde::de::Error::custom("no SHA-256"))?;
        Ok(Self(digest))
    }
}

/// What a snapshot holds from an offset on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The size of the whole snapshot in bytes.
    pub size_bytes: u64,
    /// Where this piece ends.
    pub end: u64,
    /// Its bytes; none when all of them are zeros.
    pub bytes: Bytes,
    /// Over all of this and the offset.
    pub digest: Digest,
}

impl Piece {
    /// The piece at an offset, with its digest.
    pub fn new(at: u64, end: u64, size_bytes: u64, bytes: Bytes) -> Self {
        let digest = Self::digest(at, end, size_bytes, &bytes);
        Self { size_bytes, end, bytes, digest }
    }

    /// Whether it is all zeros.
    pub fn is_zeros(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Refuses (Retry) one that is not what was sent, or no answer to what was asked.
    pub fn check(&self, at: u64) -> Result<()> {
        let refused = |why: &str| Err(DelegateError::retry(format!("what came for offset {at} {why}")));
        if self.digest != Self::digest(at, self.end, self.size_bytes, &self.bytes) {
            return refused("has another digest than it says");
        }
        let ends_well = self.end == self.size_bytes || self.end.is_multiple_of(CHUNK);
        if self.end <= at || self.end > self.size_bytes || !ends_well {
            return refused("ends where none does");
        }
        if !self.is_zeros() && (self.end - at > CHUNK || self.bytes.len() as u64 != self.end - at) {
            return refused("has another length than it says");
        }
        Ok(())
    }

    fn digest(at: u64, end: u64, size_bytes: u64, bytes: &[u8]) -> Digest {
        let mut hasher = Sha256::new();
        for number in [at, end, size_bytes] {
            hasher.update(number.to_be_bytes());
        }
        hasher.update(bytes);
        Digest(hasher.finalize().into())
    }
}

/// What a snapshot holds from an offset on, as a digest: of the numbers and digests of its chunks, those left out that are
/// zeros. Equal bytes have equal digests, however they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Where what is summed up ends.
    pub end: u64,
    /// The digest.
    pub digest: Digest,
}

/// A node as the source of its snapshots. Offsets are multiples of [`CHUNK`], and before the end.
#[async_trait]
pub trait SnapshotSource: Send + Sync {
    /// What a whole snapshot holds from an offset on. Fatal when it is not there.
    async fn read_snapshot(&self, snapshot: &SnapshotId, at: u64) -> Result<Piece>;

    /// The digest of what a whole snapshot holds from an offset on, as far as the node likes to read for one answer.
    async fn sum_snapshot(&self, snapshot: &SnapshotId, from: u64) -> Result<Summary>;

    /// Leave for another node to read this snapshot here. Fatal when this node is served to no other.
    fn grant(&self, snapshot: &SnapshotId) -> Result<Grant>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_taken_as_it_was_made_and_not_with_anything_changed() {
        let good = Piece::new(CHUNK, 2 * CHUNK, 3 * CHUNK, vec![7; 1 << 20].into());
        good.check(CHUNK).unwrap();
        let mut torn = good.clone();
        torn.bytes = good.bytes.slice(1..);
        let mut flipped = good.bytes.to_vec();
        flipped[77] ^= 1;
        let changed = [
            Piece { end: 3 * CHUNK, ..good.clone() },
            Piece { size_bytes: 2 * CHUNK, ..good.clone() },
            Piece { bytes: Bytes::new(), ..good.clone() },
            Piece { bytes: flipped.into(), ..good.clone() },
            torn,
        ];
        assert!(good.check(0).is_err(), "it is another offset's");
        for piece in changed {
            assert!(piece.check(CHUNK).is_err());
        }
        for (at, end, size) in [(0, 0, CHUNK), (0, 2 * CHUNK, CHUNK), (0, 5, CHUNK)] {
            assert!(Piece::new(at, end, size, Bytes::new()).check(at).is_err(), "{at} {end} {size}");
        }
        Piece::new(CHUNK, CHUNK + 5, CHUNK + 5, Bytes::new()).check(CHUNK).unwrap();
        assert!(Piece::new(0, 2 * CHUNK, 2 * CHUNK, vec![1; 2 << 20].into()).check(0).is_err(), "too much at once");
    }

    #[test]
    fn a_grant_does_not_show_its_signature() {
        let query = Secret("X-Amz-Signature=abc".into());
        let grant = Grant { url: "http://a:1".into(), trust: Trust::default(), query };
        assert!(!format!("{grant:?}").contains("abc"));
    }
}
