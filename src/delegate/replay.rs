//! A call that somebody has overheard, sent once more.
//!
//! A signature is good for fifteen minutes, and most verbs would do no harm a second time; but a detach of before, sent again
//! after an attach under the same generation, would. So a node takes each signature once. Two things make that hold:
//!
//! - **Signatures are remembered** for as long as their time would let them in. Only those are that the node's key has made:
//!   who has no key fills no memory. When there are more than fit, the oldest go, and with them all that is signed no
//!   later: the window gets shorter, and nothing in it is taken twice.
//! - **Each life of a delegate has a name**, made when it starts, and a call names the life that it is for. What an earlier life
//!   has heard is nothing to this one, so nothing need be kept on disk, whatever the clocks say. A gateway that names
//!   another life is told the right one, and signs anew.
//!
//! A grant to read a snapshot is no call, and made to be used again and again.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use rand::RngCore;

use crate::sigv4::CLOCK_WINDOW;

/// The most signatures remembered: nearly three hundred calls a second for the whole window, in some 15 MiB.
const MOST: usize = 1 << 18;

/// A random text of 128 bits in hexadecimal: the name of a life, and what tells two calls of one second apart.
pub fn random_name() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// What one life of a delegate has heard.
pub struct Replays {
    life: String,
    most: usize,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// When each was signed, in seconds since 1970, and its signature.
    calls: BTreeSet<(i64, [u8; 32])>,
    /// What is signed no later than this may have been forgotten.
    floor: i64,
}

impl Default for Replays {
    fn default() -> Self {
        Self::with_room_for(MOST)
    }
}

impl Replays {
    fn with_room_for(most: usize) -> Self {
        Self { life: random_name(), most, heard: Mutex::default() }
    }

    /// The name of this life.
    pub fn life(&self) -> &str {
        &self.life
    }

    /// Whether a call with this signature, that is in time and right, comes for the first time; it is the last one then.
    pub fn is_first(&self, signed_at: DateTime<Utc>, signature: [u8; 32], now: DateTime<Utc>) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let signed_at = signed_at.timestamp();
        if signed_at <= heard.floor || !heard.calls.insert((signed_at, signature)) {
            return false;
        }
        let oldest = (now - CLOCK_WINDOW).timestamp();
        while let Some(first) = heard.calls.first().map(|(time, _)| *time)
            && (first < oldest || heard.calls.len() > self.most)
        {
            heard.calls.pop_first();
            heard.floor = first;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use chrono::Duration;

    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    #[test]
    fn each_signature_is_taken_once_for_as_long_as_its_time_lets_it_in() {
        let replays = Replays::default();
        let window = CLOCK_WINDOW.num_seconds();
        assert!(replays.is_first(at(0), [1; 32], at(0)) && replays.is_first(at(0), [2; 32], at(0)));
        // A gateway whose clock is ahead.
        assert!(replays.is_first(at(window), [3; 32], at(0)));
        for now in [0, 1, window] {
            assert!(!replays.is_first(at(0), [1; 32], at(now)), "after {now} s");
        }
        assert!(!replays.is_first(at(window), [3; 32], at(2 * window)));
        // What is forgotten is too old for good, also when the clock is set back.
        assert!(replays.is_first(at(window + 1), [4; 32], at(window + 1)));
        assert_eq!(replays.heard.lock().unwrap().calls.len(), 2);
        assert!(!replays.is_first(at(0), [1; 32], at(0)));
    }

    #[test]
    fn a_flood_makes_the_window_shorter_and_lets_nothing_in_twice() {
        let replays = Replays::with_room_for(100);
        let signature = |n: i64| [u8::try_from(n % 251).unwrap(); 32];
        for n in 0..1000 {
            assert!(replays.is_first(at(n), signature(n), at(n)), "{n}");
        }
        assert_eq!(replays.heard.lock().unwrap().calls.len(), 100);
        for n in 0..1000 {
            assert!(!replays.is_first(at(n), signature(n), at(n)), "{n}");
        }
        assert!(replays.is_first(at(999), [255; 32], at(999) + Duration::seconds(60)), "who is no later is served");
    }

    #[test]
    fn no_two_lives_have_one_name() {
        assert_ne!(Replays::default().life(), Replays::default().life());
    }
}
