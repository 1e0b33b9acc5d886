//! What an operator may do with a workflow that gets nowhere: have it tried at once, or end it.
//!
//! To end one is not to forget it. One that can still turn back only turns back. What has nothing left but to undo, to delete or to
//! detach ends where it stands, and each kind writes rows by which what is left on the nodes is found later: a volume or a
//! snapshot in `error` that can be deleted again, the name of a target that the sweeper takes for ours. Who did it, and why,
//! is in the workflow's history.

use diesel_async::AsyncConnection;

use super::engine::{self, Given, GivenUp, OfKind, OnFailure, Workflow};
use crate::db::workflows::{self, Workflow as Row};
use crate::db::{self, Conn};

/// The longest reason, in characters.
pub const LONGEST_REASON: usize = 500;

/// Why an operator does something, as it goes into the history: the operator's name, a colon, their words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// A reason in words that can be read on one line.
    pub fn new(by: &str, words: &str) -> Result<Self, String> {
        let words = words.trim();
        if words.is_empty() || words.chars().count() > LONGEST_REASON || words.chars().any(char::is_control) {
            return Err(format!("a reason has 1 to {LONGEST_REASON} characters, on one line"));
        }
        let by: String = by.chars().filter(|c| !c.is_control()).take(64).collect();
        Ok(Self(format!("{by}: {words}")))
    }
}

/// What [`give_up`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The workflow has turned back, and undoes what it did.
    TurnedBack,
    /// The workflow is over.
    Ended,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("there is no such workflow")]
    NotFound,
    /// It is over.
    #[error("it is finished")]
    Finished,
    /// A newer program enqueued it.
    #[error("this program does not know what it is")]
    Unknown,
    /// It would do harm.
    #[error("{0}")]
    Harmful(&'static str),
}

/// Has a workflow tried at once, with all its patience before it. Whoever works on it becomes a ghost.
pub async fn retry(conn: &mut Conn, id: i64, reason: &Reason) -> db::Result<Result<(), Refusal>> {
    conn.transaction(async |conn| {
        let Some(row) = workflows::retry(conn, id).await? else {
            let known = workflows::hold(conn, id).await?.is_some();
            return Ok(Err(if known { Refusal::Finished } else { Refusal::NotFound }));
        };
        workflows::add_event(conn, &row, "", "retried", &reason.0).await?;
        Ok(Ok(()))
    })
    .await
}

/// Gives a workflow up, see above. `fenced`: what cannot be reached is off, and stays off until its storage is out of its reach.
pub async fn give_up(conn: &mut Conn, id: i64, reason: &Reason, fenced: bool) -> db::Result<Result<Done, Refusal>> {
    conn.transaction(async |conn| {
        // The workflow's row before the resource's, as everywhere.
        let Some(row) = workflows::hold(conn, id).await? else { return Ok(Err(Refusal::NotFound)) };
        if row.finished_at.is_some() {
            return Ok(Err(Refusal::Finished));
        }
        let end = End { conn, row: &row, reason: &reason.0, fenced };
        engine::of_kind(&row.kind, end).await.unwrap_or(Ok(Err(Refusal::Unknown)))
    })
    .await
}

struct End<'a> {
    conn: &'a mut Conn,
    row: &'a Row,
    reason: &'a str,
    fenced: bool,
}

impl OfKind for End<'_> {
    type Done = db::Result<Result<Done, Refusal>>;

    async fn of<W: Workflow + serde::de::DeserializeOwned>(self) -> Self::Done {
        let Self { conn, row, reason, fenced } = self;
        if row.direction == "forward" && W::ON_FAILURE == OnFailure::TurnBack {
            workflows::cancel(conn, &row.lock_key, &row.kind, &format!("given up by {reason}")).await?;
            return Ok(Ok(Done::TurnedBack));
        }
        let Ok(job) = serde_json::from_value::<W>(row.params.clone()) else { return Ok(Err(Refusal::Unknown)) };
        let how = GivenUp { reason, step: row.step, fenced };
        if let Given::Refused(why) = job.record_given_up(conn, &how).await? {
            return Ok(Err(Refusal::Harmful(why)));
        }
        workflows::end_given_up(conn, row.id, reason).await?;
        workflows::add_event(conn, row, "", "given-up", reason).await?;
        Ok(Ok(Done::Ended))
    }
}

/// The name of the step that a workflow stands at; its number where this program does not know its kind.
pub async fn step_name(row: &Row) -> String {
    let name = engine::of_kind(&row.kind, Name(row.step)).await.flatten();
    name.unwrap_or_else(|| row.step.to_string())
}

struct Name(i32);

impl OfKind for Name {
    type Done = Option<String>;

    async fn of<W: Workflow + serde::de::DeserializeOwned>(self) -> Option<String> {
        let step = W::STEPS.get(usize::try_from(self.0).ok()?)?;
        Some(format!("{step:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line_and_says_whose_it_is() {
        assert_eq!(Reason::new("olga", " it burnt ").unwrap(), Reason("olga: it burnt".into()));
        for words in ["", "  ", "two\nlines", "a\u{0}b", &"x".repeat(501)] {
            assert!(Reason::new("olga", words).is_err(), "{words:?}");
        }
        assert_eq!(Reason::new("o\nl\u{1b}ga", "x").unwrap(), Reason("olga: x".into()));
    }
}
