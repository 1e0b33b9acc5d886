//! What must hold of every byte that comes from outside, as functions of those bytes: each panics when it does not hold.
//!
//! A test of single inputs finds what its author thought of. So the properties are here once and are run twice: over millions of
//! inputs by the fuzzer (`fuzz/`, a target each, `scripts/test fuzz`), and over all that it has found worth keeping
//! (`fuzz/corpus/`) by the test at the end, in every run of the unit tests. They live beside what they are about, where they see
//! what nobody else needs to see; none of them is in a build that is shipped.
//!
//! An input is read as text where what is tested reads text. Where a function takes several, a line or a NUL parts them.

pub use crate::config::fuzzing::config;
pub use crate::delegate::fuzzing::{delegate, hypervisor, storage};
pub use crate::ec2_api::fuzzing::{query, signature, signed, words};

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    #[test]
    fn what_the_fuzzer_has_found_worth_keeping_holds() {
        let targets: [(&str, Target); 8] = [
            ("query", super::query),
            ("words", super::words),
            ("signature", super::signature),
            ("signed", super::signed),
            ("delegate", super::delegate),
            ("storage", super::storage),
            ("hypervisor", super::hypervisor),
            ("config", super::config),
        ];
        for (name, target) in targets {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let mut seen = 0;
            for entry in std::fs::read_dir(&corpus).unwrap() {
                let path = entry.unwrap().path();
                let input = std::fs::read(&path).unwrap();
                let held = std::panic::catch_unwind(|| target(&input));
                assert!(held.is_ok(), "{} does not hold", path.display());
                seen += 1;
            }
            // More than `scripts/fuzz keep` lets in would be a burden to every checkout.
            assert!((11..=64).contains(&seen), "{name} has {seen} inputs");
        }
    }
}
