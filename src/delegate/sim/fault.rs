//! The faults that are injected into simulated nodes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::delegate::ErrorKind;

/// A fault that strikes calls of one verb.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The verb, such as `ensure_exported`.
    pub verb: &'static str,
    /// How many calls it lets pass first.
    pub after: u32,
    /// How many calls it strikes then; 0 for all.
    pub times: u32,
    /// What it does.
    pub kind: FaultKind,
}

/// What a fault does to a call.
#[derive(Debug, Clone)]
pub enum FaultKind {
    /// The call fails so, and nothing was done.
    FailBefore(ErrorKind),
    /// All was done, but the caller hears of a failure worth another try.
    EffectThenLost,
    /// Nothing happens for this long; then the call does its work, though its caller may have given up.
    Hang(Duration),
    /// The same, until it is told to go on.
    HangUntil(Arc<Notify>),
    /// All was done, then nothing is heard for this long.
    EffectThenHang(Duration),
    /// Nothing was done, and what is heard is noise.
    Garbage,
}

impl Fault {
    /// A fault that strikes the next call of the verb.
    pub fn once(verb: &'static str, kind: FaultKind) -> Self {
        Self { verb, after: 0, times: 1, kind }
    }

    /// A fault that strikes every call of the verb, until the cloud is gone.
    pub fn always(verb: &'static str, kind: FaultKind) -> Self {
        Self { verb, after: 0, times: 0, kind }
    }
}

/// Finds the fault that strikes a call, and counts it off.
pub(super) fn take(faults: &mut Vec<Fault>, verb: &str) -> Option<FaultKind> {
    let at = faults.iter().position(|fault| fault.verb == verb)?;
    let fault = &mut faults[at];
    if fault.after > 0 {
        fault.after -= 1;
        return None;
    }
    let kind = fault.kind.clone();
    match fault.times {
        0 => {}
        1 => drop(faults.remove(at)),
        _ => fault.times -= 1,
    }
    Some(kind)
}

/// What a broken tool says: long, with control characters, quotes and markup in it.
pub(super) fn garbage(verb: &str) -> String {
    format!("{verb}: {}", "\u{0}\u{1b}[31m\u{fffd}]]>&'\"\r\n".repeat(2000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_verb_when_and_as_often_as_it_was_told() {
        let lost = FaultKind::EffectThenLost;
        let mut faults =
            vec![Fault { verb: "a", after: 1, times: 2, kind: lost }, Fault::once("b", FaultKind::Garbage)];
        let struck: Vec<_> = ["a", "a", "c", "a", "a", "b", "b"].map(|verb| take(&mut faults, verb).is_some()).into();
        assert_eq!(struck, [false, true, false, true, false, true, false]);
        assert!(faults.is_empty());
    }
}
