//! What must hold of whatever a target shows: see [`crate::fuzzing`].
//!
//! What matters most is that nobody who is logged in is overlooked: an export is ended only when nobody is. So behind whatever is
//! shown, a target that is shown as it should be is seen, with its session.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use super::lio_layers::{self, Plan};
use super::lio_tree::Tree;
use super::{iet_access, iet_proc, lio_store, tgt_show};
use crate::ids::VolumeId;

const TGT: &str = "\
Target 7: iqn.2026-01.net.example:vol-00000001.x
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.2026-01.net.example:h1 alias: none
";
const VOLUME: &str = "tid:7 name:iqn.2026-01.net.example:vol-00000002.1\n\tlun:1 state:0 iotype:blockio path:/dev/x\n";
const SESSION: &str =
    "tid:7 name:iqn.2026-01.net.example:vol-00000002.1\n\tsid:5 initiator:iqn.2026-01.net.example:h1\n";
const INITIATOR: &str = "iqn.2026-01.net.example:h1";

/// A text, and where a driver reads two the other.
pub fn shown(first: &str, second: &str) {
    // A line may end in either way, so that one that is cut off behind its carriage return is two different lines.
    let (first, second) = (&first.replace('\r', ""), &second.replace('\r', ""));
    tgt(first);
    iet(first, second);
    rules(first);
    lio(first);
}

fn tgt(text: &str) {
    let targets = tgt_show::targets(text);
    let words: usize =
        targets.iter().flat_map(|t| t.sessions.iter().chain(&t.accounts).chain(&t.acl)).map(String::len).sum();
    assert!(words + targets.iter().map(|t| t.name.len()).sum::<usize>() <= text.len());
    assert!(tgt_show::accounts(text).iter().map(String::len).sum::<usize>() <= text.len());
    let seen = tgt_show::targets(&format!("{text}\n{TGT}"));
    assert_eq!((seen.len(), &seen[..targets.len()]), (targets.len() + 1, &targets[..]));
    assert_eq!(seen.last().map(|last| (last.tid, &last.sessions[..])), Some((7, &[INITIATOR.to_owned()][..])));
}

fn iet(volume: &str, session: &str) {
    let seen = iet_proc::targets(&format!("{volume}\n{VOLUME}"), &format!("{session}\n{SESSION}"));
    let ours = |target: &&iet_proc::Target| target.tid == 7 && target.name.ends_with(":vol-00000002.1");
    let sessions = seen.iter().filter(ours).flat_map(|target| &target.sessions);
    assert!(sessions.into_iter().any(|initiator| initiator == INITIATOR));
    assert!(seen.len() <= volume.lines().count() + session.lines().count() + 2);
}

/// What is read of a file with access rules is what would be read of it had we written it.
fn rules(text: &str) {
    let rules: iet_access::Rules = text.lines().filter_map(iet_access::rule).collect();
    let written = iet_access::text(&rules);
    assert_eq!(written.lines().filter_map(iet_access::rule).collect::<iet_access::Rules>(), rules);
    // A rule lets in one initiator and no other, whatever its name holds: nothing in a pattern stands for many.
    for line in written.lines().skip(1) {
        let (_, pattern) = line.split_once(' ').expect("a target and a pattern");
        assert!(!pattern.contains([' ', ',']), "{pattern:?}");
    }
}

/// Lines `PATH=TEXT` and `PATH>PATH` make a tree of settings and links.
fn lio(text: &str) {
    let tree = Shown(text.lines().filter_map(|line| line.split_once(['=', '>']).map(|(at, _)| (at, line))).collect());
    for iqn in lio_layers::names(&tree).expect("a tree in memory can be read") {
        let seen = lio_layers::look(&tree, &iqn).expect("a tree in memory can be read");
        let plan = Plan { portal: "10.0.0.1:3260", store: "core/fileio_2600/vol-00000001" };
        assert!(seen.sessions.len() <= text.len(), "{}", seen.sessions.len());
        assert_eq!(seen.refuse_while_in_use().is_ok(), seen.sessions.is_empty());
        let _ = seen.whole(&plan);
    }
    for volume in lio_store::volumes(&tree).expect("a tree in memory can be read") {
        assert!(VolumeId::parse(volume.as_str()).is_ok());
        assert!(lio_store::of(&tree, &volume).expect("a tree in memory can be read").is_some());
    }
    let _ = lio_store::shown_size(text);
}

/// A tree that is only looked at: the lines by their paths.
struct Shown<'a>(BTreeMap<&'a str, &'a str>);

impl Shown<'_> {
    fn below(&self, dir: &str) -> impl Iterator<Item = (&str, &str)> {
        let inside = move |path: &'_ str, dir: &str| path.strip_prefix(dir)?.strip_prefix('/').map(str::len);
        let dir = dir.to_owned();
        self.0.iter().filter_map(move |(path, line)| {
            let length = inside(path, &dir)?;
            Some((&path[path.len() - length..], *line))
        })
    }
}

impl Tree for Shown<'_> {
    fn lock(&self) -> io::Result<Option<File>> {
        Ok(None)
    }

    fn make(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn end(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn parts(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names: Vec<String> =
            self.below(dir).filter_map(|(rest, _)| Some(rest.split_once('/')?.0.to_owned())).collect();
        names.dedup();
        Ok(names)
    }

    fn write(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        let line = self.0.get(file).ok_or(io::ErrorKind::NotFound)?;
        Ok(line[file.len() + 1..].replace('|', "\n"))
    }

    fn link(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unlink(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn links(&self, dir: &str) -> io::Result<Vec<(String, String)>> {
        let links = self.below(dir).filter(|(rest, _)| !rest.contains('/'));
        let to = |(name, line): (&str, &str)| Some((name.to_owned(), line.split_once('>')?.1.to_owned()));
        Ok(links.filter_map(to).collect())
    }
}
