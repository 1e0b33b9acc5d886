//! Resource ids as EC2 writes them: a prefix, a dash and 8 (old) or 17 lower-case hexadecimal digits.
//!
//! An id is a type of its own, so that a snapshot's cannot be handed to a function that wants a volume's, and
//! everything named after a resource (files, logical volumes, targets, device serials) is made from an id that
//! has passed [`Id::parse`]: no name a tenant chose ever reaches a command line or a path.

use std::fmt;
use std::marker::PhantomData;

use diesel::deserialize::{FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{IsNull, Output, ToSql};
use diesel::sql_types::Text;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// What an id names; fixes its prefix.
pub trait Kind: Send + Sync + 'static {
    /// The letters before the dash.
    const PREFIX: &'static str;
}

/// Marks the id of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Volume;
/// Marks the id of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot;
/// Marks the id of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance;

impl Kind for Volume {
    const PREFIX: &'static str = "vol";
}
impl Kind for Snapshot {
    const PREFIX: &'static str = "snap";
}
impl Kind for Instance {
    const PREFIX: &'static str = "i";
}

/// The id of a resource of kind `K`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, AsExpression, FromSqlRow)]
#[diesel(sql_type = Text)]
#[serde(try_from = "String", into = "String", bound = "K: Kind + Clone")]
pub struct Id<K: Kind>(String, PhantomData<K>);

/// `vol-…`
pub type VolumeId = Id<Volume>;
/// `snap-…`
pub type SnapshotId = Id<Snapshot>;
/// `i-…`
pub type InstanceId = Id<Instance>;

/// Why a text is not an id; the EC2 API answers the two differently (`ec2_api::error`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It does not start with the prefix, or holds something other than lower-case hexadecimal digits.
    #[error("not an id of this kind")]
    NotAnId,
    /// The prefix and the digits are right, their number is not.
    #[error("an id of the wrong length")]
    WrongLength,
}

impl<K: Kind> Id<K> {
    /// Reads an id from the wire.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix(K::PREFIX).and_then(|rest| rest.strip_prefix('-')).ok_or(IdError::NotAnId)?;
        if digits.is_empty() || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(IdError::NotAnId);
        }
        match digits.len() {
            8 | 17 => Ok(Self(text.to_owned(), PhantomData)),
            _ => Err(IdError::WrongLength),
        }
    }

    /// Makes a new id of 17 digits. As Amazon's own ids do, it starts with a zero; 64 random bits follow, and the
    /// primary key catches the collision that will not happen.
    pub fn generate() -> Self {
        let bits: u64 = rand::rng().random();
        Self(format!("{}-0{bits:016x}", K::PREFIX), PhantomData)
    }

    /// The id as text, prefix and all.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id without its dash: `vol0123456789abcdef0` is exactly the 20 bytes a virtio serial holds, and the form
    /// that AWS shows as an `NVMe` serial.
    pub fn serial(&self) -> String {
        self.0.replace('-', "")
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<K: Kind> TryFrom<String> for Id<K> {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl<K: Kind> From<Id<K>> for String {
    fn from(id: Id<K>) -> String {
        id.0
    }
}

impl<K: Kind + fmt::Debug> ToSql<Text, Pg> for Id<K> {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        std::io::Write::write_all(out, self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl<K: Kind> FromSql<Text, Pg> for Id<K> {
    fn from_sql(bytes: PgValue<'_>) -> diesel::deserialize::Result<Self> {
        let text = <String as FromSql<Text, Pg>>::from_sql(bytes)?;
        Ok(Self::parse(&text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_ids_are_read_and_kept_as_given() {
        for text in ["vol-0123abcd", "vol-0123456789abcdef0"] {
            assert_eq!(VolumeId::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_an_id_is_told_from_an_id_of_the_wrong_length() {
        for text in ["", "vol-", "vol", "foo", "snap-0123abcd", "vol-0123ABCD", "vol-xyz", "vol-0123abc\0"] {
            assert_eq!(VolumeId::parse(text), Err(IdError::NotAnId), "{text:?}");
        }
        for text in ["vol-0", "vol-012345678", "vol-0123456789abcdef01"] {
            assert_eq!(VolumeId::parse(text), Err(IdError::WrongLength), "{text:?}");
        }
    }

    #[test]
    fn a_generated_id_reads_back_and_its_serial_fits_virtio() {
        let id = VolumeId::generate();
        assert_eq!(VolumeId::parse(id.as_str()), Ok(id.clone()));
        assert_eq!(id.serial().len(), 20);
    }
}
