//! The states of volumes, their modifications, attachments, snapshots and instances: their text on the wire and in the
//! database, and the moves between them.
//!
//! The texts are EC2's own (botocore model 2016-11-15), but for two that only the database knows: a snapshot that is
//! being deleted, and an attachment that is over. CHECK constraints in `migrations/` hold the same lists.

use std::fmt;
use std::str::FromStr;

use diesel::deserialize::{FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::serialize::{IsNull, Output, ToSql};
use diesel::sql_types::Text;

/// A text that is no state of the kind asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown state {0:?}")]
pub struct UnknownState(pub String);

/// Declares a state enum with its texts, used on the wire and in the database alike.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, AsExpression, FromSqlRow)]
        #[diesel(sql_type = Text)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl State for $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $text)),+];
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.text()) }
        }
        impl ToSql<Text, Pg> for $name {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result { write_text(*self, out) }
        }
        impl FromSql<Text, Pg> for $name {
            fn from_sql(bytes: PgValue<'_>) -> diesel::deserialize::Result<Self> { read_text(bytes) }
        }
        impl FromStr for $name {
            type Err = UnknownState;
            fn from_str(text: &str) -> Result<Self, UnknownState> { Self::read(text) }
        }
    };
}

/// What every state enum can do.
pub trait State: Copy + PartialEq + 'static {
    /// Every state with its text.
    const ALL: &'static [(Self, &'static str)];

    /// The state's text, on the wire and in the database.
    fn text(self) -> &'static str {
        Self::ALL.iter().find(|(state, _)| *state == self).map_or("", |(_, text)| text)
    }

    /// Reads a text back.
    fn read(text: &str) -> Result<Self, UnknownState> {
        Self::ALL.iter().find(|(_, t)| *t == text).map(|(state, _)| *state).ok_or_else(|| UnknownState(text.to_owned()))
    }
}

fn write_text<S: State>(state: S, out: &mut Output<'_, '_, Pg>) -> diesel::serialize::Result {
    std::io::Write::write_all(out, state.text().as_bytes())?;
    Ok(IsNull::No)
}

fn read_text<S: State>(bytes: PgValue<'_>) -> diesel::deserialize::Result<S> {
    let text = <String as FromSql<Text, Pg>>::from_sql(bytes)?;
    Ok(S::read(&text)?)
}

states! {
    /// The state of a volume.
    VolumeState {
        /// Asked for; a worker is making it.
        Creating = "creating",
        /// There, attached to nothing.
        Available = "available",
        /// Attached, being attached or being detached.
        InUse = "in-use",
        /// Its deletion is recorded; a worker is at it.
        Deleting = "deleting",
        /// Gone. The row stays for a while, for the client token's sake; no describe shows it.
        Deleted = "deleted",
        /// It could not be made; it can only be deleted.
        Error = "error",
    }
}

states! {
    /// The state of a volume's modification.
    ModificationState {
        /// Asked for; a worker is at it.
        Modifying = "modifying",
        /// The volume is what it shall be; an instance that has it may not see it yet.
        Optimizing = "optimizing",
        /// Over.
        Completed = "completed",
        /// Over, and the volume is what it was.
        Failed = "failed",
    }
}

states! {
    /// The state of an attachment.
    AttachmentState {
        /// Asked for; a worker is at it.
        Attaching = "attaching",
        /// The guest has the disk.
        Attached = "attached",
        /// Its end is recorded; a worker is at it.
        Detaching = "detaching",
        /// Being detached, but the guest holds on.
        Busy = "busy",
        /// Over. No describe shows it.
        Detached = "detached",
    }
}

states! {
    /// The state of a snapshot.
    SnapshotState {
        /// Asked for; a worker is making it.
        Pending = "pending",
        /// Whole, and independent of its volume.
        Completed = "completed",
        /// It could not be made; it can only be deleted.
        Error = "error",
        /// Its deletion is recorded; no describe shows it.
        Deleting = "deleting",
    }
}

states! {
    /// The state of an instance, as its VMM delegate last reported it.
    InstanceState {
        /// The machine runs (paused for a snapshot included).
        Running = "running",
        /// The machine is defined but does not run.
        Stopped = "stopped",
        /// The machine is gone for good.
        Terminated = "terminated",
    }
}

impl InstanceState {
    /// The number EC2 gives beside the name (`instanceState/code`).
    pub fn code(self) -> u16 {
        match self {
            Self::Running => 16,
            Self::Terminated => 48,
            Self::Stopped => 80,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trips<S: State + fmt::Debug>() {
        for (state, text) in S::ALL {
            assert_eq!(S::read(text), Ok(*state));
            assert_eq!(state.text(), *text);
        }
        assert!(S::read("").is_err());
    }

    #[test]
    fn every_state_reads_back_from_its_text() {
        round_trips::<VolumeState>();
        round_trips::<ModificationState>();
        round_trips::<AttachmentState>();
        round_trips::<SnapshotState>();
        round_trips::<InstanceState>();
    }
}
