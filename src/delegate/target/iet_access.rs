//! Who may log in to which target: `initiators.allow`, which ietd reads at each log-in.
//!
//! What ietd does with it (`usr/plain.c` of 1.4.18 to 1.4.20): the first line with the target's name, or with ALL, decides,
//! and when there is none nobody gets in; a line is a name, blanks, and patterns apart by commas, each a basic regular
//! expression for the whole name of an initiator; a line without an end is passed over. **A missing file lets everybody in**,
//! and so does, for targets it does not name, an `initiators.deny` beside it: where both are there, only what the second
//! names and the first does not is refused. So the driver owns both. The second is always `ALL ALL`, which makes the first
//! count, be it there or not, and the first holds one line for each target of ours: nobody but its one initiator.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What `initiators.deny` holds.
const DENY_ALL: &str = "ALL ALL\n";
/// How `initiators.allow` begins. ietd passes over lines that begin so.
const HEAD: &str = "# Made by vbs, which owns this file: other lines are lost.\n";

/// Which initiator may log in to which target, by the target's name.
pub type Rules = BTreeMap<String, String>;

/// The two files. All of it blocks.
#[derive(Debug, Clone)]
pub struct Access {
    allow: PathBuf,
    deny: PathBuf,
}

impl Access {
    /// The files, of which the first is named so; the other is beside it.
    pub fn new(allow: PathBuf) -> Self {
        Self { deny: allow.with_file_name("initiators.deny"), allow }
    }

    /// The rules there are that this driver made. `None` when the files let in others, too, or others' lines are in them.
    pub fn read(&self) -> io::Result<Option<Rules>> {
        let allow = read(&self.allow)?;
        let rules: Rules = allow.lines().filter_map(rule).collect();
        Ok((read(&self.deny)? == DENY_ALL && text(&rules) == allow).then_some(rules))
    }

    /// Makes the files be as they shall, with `change` made to the rules there are. Durable when it returns.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) -> io::Result<()> {
        if read(&self.deny)? != DENY_ALL {
            replace(&self.deny, DENY_ALL)?;
        }
        let there = read(&self.allow)?;
        let mut rules = there.lines().filter_map(rule).collect();
        change(&mut rules);
        let wanted = text(&rules);
        if wanted == there { Ok(()) } else { replace(&self.allow, &wanted) }
    }
}

pub(super) fn text(rules: &Rules) -> String {
    let lines = rules.iter().map(|(target, initiator)| format!("{target} {}\n", initiator.replace('.', "\\.")));
    std::iter::once(HEAD.to_owned()).chain(lines).collect()
}

/// Reads a line that [`text`] wrote.
pub(super) fn rule(line: &str) -> Option<(String, String)> {
    let (target, pattern) = line.split_once(' ')?;
    let ours = super::volume_of(target).is_some() && !pattern.contains([' ', ',']);
    ours.then(|| (target.to_owned(), pattern.replace("\\.", ".")))
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        done => done,
    }
}

/// ietd reads the old file or the new one, also when the power fails in between.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "iqn.2026-01.net.example:vol-0123abcd.1";

    #[test]
    fn each_target_has_one_initiator_and_what_others_wrote_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (allow, deny) = (dir.path().join("initiators.allow"), dir.path().join("initiators.deny"));
        let access = Access::new(allow.clone());
        assert_eq!(access.read().unwrap(), None, "files that are not there let everybody in");
        fs::write(&allow, "ALL ALL\n").unwrap();
        fs::write(&deny, "").unwrap();
        access.change(|rules| drop(rules.insert(TARGET.into(), "iqn.2026-01.net.example:h1".into()))).unwrap();
        let written = fs::read_to_string(&allow).unwrap();
        assert_eq!(written, format!("{HEAD}{TARGET} iqn\\.2026-01\\.net\\.example:h1\n"));
        assert_eq!(fs::read_to_string(&deny).unwrap(), "ALL ALL\n");
        let rules = access.read().unwrap().unwrap();
        assert_eq!(rules.get(TARGET).unwrap(), "iqn.2026-01.net.example:h1");
        for stray in ["ALL ALL\n", "iqn.2026-01.net.example:vol-0123abcd.2 10.0.0.0/8, ALL\n", "cut off"] {
            fs::write(&allow, format!("{written}{stray}")).unwrap();
            assert_eq!(access.read().unwrap(), None, "{stray}");
            access.change(|_| ()).unwrap();
            assert_eq!(fs::read_to_string(&allow).unwrap(), written);
        }
        access.change(|rules| drop(rules.remove(TARGET))).unwrap();
        assert_eq!(fs::read_to_string(&allow).unwrap(), HEAD);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
