//! The part of the kernel that LIO's configfs is, as far as the driver can tell: what `mkdir` brings along, what is refused
//! and what is let happen under a session, as Linux 6.1 does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use tempfile::TempDir;
use vbs::delegate::target::lio_tree::{Configfs, Tree};

/// What there is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// A directory, and whether it came with the one above it.
    Dir {
        made: bool,
    },
    Setting(String),
    Link(String),
}

/// A tree in memory.
#[derive(Default)]
pub struct Kernel {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    nodes: BTreeMap<String, Node>,
    /// After so many changes from now all others fail, as for a driver that was killed.
    dies_after: Option<usize>,
    turns: Option<Turns>,
}

/// Whose turn it is, and how often another came between.
#[derive(Default)]
struct Turns {
    /// What drivers lock who share the tree and nothing else.
    locked: Option<TempDir>,
    taken_by: Option<ThreadId>,
    taken: usize,
    broken: usize,
}

const NO_SESSION: &str = "No active iSCSI Session for Initiator Endpoint: ";

impl Kernel {
    /// One without a single target.
    pub fn new() -> Self {
        let kernel = Self::default();
        for dir in ["core", "core/alua"] {
            kernel.inside().nodes.insert(dir.into(), Node::Dir { made: false });
        }
        kernel
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The paths of all that was made, settings left out.
    pub fn made(&self) -> Vec<String> {
        let made = |(path, node): (&String, &Node)| match node {
            Node::Dir { made: true } | Node::Link(_) => Some(path.clone()),
            _ => None,
        };
        self.inside().nodes.iter().filter_map(made).collect()
    }

    /// As a power cut.
    pub fn restart(&self) {
        self.inside().nodes = Self::new().inside().nodes.clone();
    }

    /// Lets so many changes succeed, or all.
    pub fn dies_after(&self, changes: Option<usize>) {
        self.inside().dies_after = changes;
    }

    /// Logs an initiator in as the kernel would: by rule and secret, to an enabled target with the portal.
    pub fn log_in(&self, iqn: &str, initiator: &str, user: &str, secret: &str) -> bool {
        let at = format!("iscsi/{iqn}/tpgt_1");
        let rule = format!("{at}/acls/{initiator}");
        let mut inside = self.inside();
        let is = |file: &str, text: &str| inside.nodes.get(file) == Some(&Node::Setting(text.to_owned()));
        let linked = |dir: &str| inside.below(dir).any(|(_, node)| matches!(node, Node::Link(_)));
        let lets_in = is(&format!("{at}/enable"), "1\n")
            && is(&format!("{rule}/auth/userid"), &format!("{user}\n"))
            && is(&format!("{rule}/auth/password"), &format!("{secret}\n"))
            && linked(&format!("{rule}/lun_1"))
            && linked(&format!("{at}/lun/lun_1"))
            && inside.below(&format!("{at}/np")).next().is_some();
        if lets_in {
            let info = format!("InitiatorName: {initiator}\nInitiatorAlias: \n");
            inside.nodes.insert(format!("{rule}/info"), Node::Setting(info));
        }
        lets_in
    }

    /// Logs it out.
    pub fn log_out(&self, iqn: &str, initiator: &str) {
        let info = format!("iscsi/{iqn}/tpgt_1/acls/{initiator}/info");
        self.inside().nodes.insert(info, Node::Setting(format!("{NO_SESSION}{initiator}\n")));
    }

    /// From now on sees to it that nobody does anything in the turn of another, which begins with the lock; it is the real one
    /// only when told so. For as long as this lasts the tree is the drivers' alone.
    pub fn watch_turns(&self, real_lock: bool) {
        let locked = real_lock.then(|| tempfile::tempdir().unwrap());
        self.inside().turns = Some(Turns { locked, ..Turns::default() });
    }

    /// How many turns there were since then, and how often another came between.
    pub fn turns(&self) -> (usize, usize) {
        self.inside().turns.take().map(|turns| (turns.taken, turns.broken)).unwrap_or_default()
    }

    /// Comes in turn, or not, and lets others go first who could.
    fn come(&self) -> MutexGuard<'_, Inside> {
        let mut inside = self.inside();
        let Some(turns) = &mut inside.turns else { return inside };
        turns.broken += usize::from(turns.taken_by != Some(thread::current().id()));
        drop(inside);
        thread::yield_now();
        self.inside()
    }

    /// Lets another initiator in as this one is, as somebody might by hand.
    pub fn lets_in(&self, iqn: &str, initiator: &str, other: &str) {
        let mut inside = self.inside();
        let acls = format!("iscsi/{iqn}/tpgt_1/acls");
        let (own, others) = (format!("{acls}/{initiator}"), format!("{acls}/{other}"));
        let copied: Vec<_> =
            inside.below(&own).map(|(path, node)| (path.replace(&own, &others), node.clone())).collect();
        inside.nodes.extend(copied);
        inside.nodes.insert(others.clone(), Node::Dir { made: true });
        inside.nodes.insert(format!("{others}/info"), Node::Setting(format!("{NO_SESSION}{other}\n")));
    }

    /// Sets what only the kernel sets.
    pub fn shows(&self, file: &str, text: &str) {
        self.inside().nodes.insert(file.to_owned(), Node::Setting(text.to_owned()));
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn refused(errno: rustix::io::Errno) -> Error {
    errno.into()
}

impl Inside {
    fn below<'a>(&'a self, dir: &str) -> impl Iterator<Item = (&'a String, &'a Node)> + use<'a> {
        let start = format!("{dir}/");
        self.nodes.range(start.clone()..).take_while(move |(path, _)| path.starts_with(&start))
    }

    /// What was made directly in a directory.
    fn made_in(&self, dir: &str) -> bool {
        let made = |node: &Node| matches!(node, Node::Dir { made: true } | Node::Link(_));
        self.below(dir).any(|(_, node)| made(node))
    }

    fn text(&self, file: &str) -> Result<String> {
        match self.nodes.get(file) {
            Some(Node::Setting(text)) => Ok(text.clone()),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn change(&mut self) -> Result<()> {
        match &mut self.dies_after {
            None => Ok(()),
            Some(0) => Err(Error::other("dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn brings(&mut self, dir: &str, dirs: &[&str], settings: &[(&str, &str)]) {
        for name in dirs {
            self.nodes.insert(format!("{dir}/{name}"), Node::Dir { made: false });
        }
        for (name, text) in settings {
            self.nodes.insert(format!("{dir}/{name}"), Node::Setting((*text).to_owned()));
        }
    }

    fn make(&mut self, dir: &str) -> Result<()> {
        if self.nodes.contains_key(dir) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if !parent(dir).is_empty() && !self.nodes.contains_key(parent(dir)) {
            return Err(ErrorKind::NotFound.into());
        }
        let parts: Vec<&str> = dir.split('/').collect();
        match parts[..] {
            ["iscsi"] => self.brings(dir, &["discovery_auth"], &[]),
            ["core", hba] if hba.starts_with("fileio_") => {}
            ["core", _, _] => {
                let settings = [
                    ("control", ""),
                    ("info", "Status: DEACTIVATED  Max Queue Depth: 0  SectorSize: 0  HwMaxSectors: 0\n"),
                    ("enable", "0\n"),
                    ("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: \n"),
                    ("attrib/emulate_tpu", "0\n"),
                ];
                self.brings(dir, &["wwn", "attrib"], &settings);
            }
            ["iscsi", _] => {
                let settings = [("fabric_statistics/iscsi_instance/sessions", "0\n")];
                self.brings(dir, &["fabric_statistics", "fabric_statistics/iscsi_instance"], &settings);
            }
            ["iscsi", _, group] if group.starts_with("tpgt_") => {
                let settings = [
                    ("attrib/authentication", "1\n"),
                    ("attrib/generate_node_acls", "0\n"),
                    ("attrib/cache_dynamic_acls", "0\n"),
                    ("attrib/demo_mode_discovery", "1\n"),
                    ("attrib/prod_mode_write_protect", "0\n"),
                    ("param/AuthMethod", "CHAP,None\n"),
                    ("enable", "0\n"),
                    ("dynamic_sessions", ""),
                ];
                self.brings(dir, &["acls", "attrib", "auth", "lun", "np", "param"], &settings);
            }
            ["iscsi", _, _, "acls", initiator] => {
                let info = format!("{NO_SESSION}{initiator}\n");
                let settings = [("auth/userid", "\n"), ("auth/password", "\n"), ("info", &info)];
                self.brings(dir, &["attrib", "auth", "fabric_statistics", "param"], &settings);
            }
            ["iscsi", _, _, "acls", _, unit] if unit.starts_with("lun_") => {
                self.brings(dir, &["statistics"], &[("write_protect", "0\n")]);
            }
            ["iscsi", _, _, "lun", unit] if unit.starts_with("lun_") => self.brings(dir, &["statistics"], &[]),
            ["iscsi", _, _, "np", _] => {}
            _ => return Err(refused(rustix::io::Errno::PERM)),
        }
        self.nodes.insert(dir.to_owned(), Node::Dir { made: true });
        Ok(())
    }

    fn end(&mut self, dir: &str) -> Result<()> {
        match self.nodes.get(dir) {
            None => return Err(ErrorKind::NotFound.into()),
            Some(Node::Dir { made: true }) => {}
            Some(_) => return Err(refused(rustix::io::Errno::PERM)),
        }
        if self.made_in(dir) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        if self.nodes.values().any(|node| *node == Node::Link(dir.to_owned())) {
            return Err(refused(rustix::io::Errno::BUSY));
        }
        let brought: Vec<String> = self.below(dir).map(|(path, _)| path.clone()).collect();
        for path in brought.iter().map(String::as_str).chain([dir]) {
            self.nodes.remove(path);
        }
        Ok(())
    }

    fn write(&mut self, file: &str, text: &str) -> Result<()> {
        let now = self.text(file)?;
        let parts: Vec<&str> = file.split('/').collect();
        let shown = match parts[..] {
            ["core", _, _, "control"] => {
                let told = parts[..3].join("/");
                let before = self.text(&format!("{told}/control"))?;
                let options = format!("{before},{text}");
                let option =
                    |name: &str| options.rsplit(',').find_map(|option| option.strip_prefix(name)).unwrap_or_default();
                let state = if self.text(&format!("{told}/enable"))? == "1\n" { "ACTIVATED" } else { "DEACTIVATED" };
                let info = format!(
                    "Status: {state}  Max Queue Depth: 128  SectorSize: 512  HwMaxSectors: 16384\n        TCM FILEIO \
                     ID: 0        File: {}  Size: {}  Mode: {} Async: 0\n",
                    option("fd_dev_name="),
                    option("fd_dev_size="),
                    if option("fd_buffered_io=") == "1" { "Buffered-WCE" } else { "O_DSYNC" },
                );
                self.nodes.insert(format!("{told}/info"), Node::Setting(info));
                options
            }
            ["core", _, _, "enable"] => {
                let info = self.text(&format!("{}/info", parent(file)))?;
                if !info.contains("File: /") {
                    return Err(ErrorKind::InvalidInput.into());
                }
                "1\n".into()
            }
            ["core", _, _, "wwn", _] => format!("T10 VPD Unit Serial Number: {text}\n"),
            ["iscsi", _, _, "enable"] if text == "0" && now == "1\n" => {
                self.end_sessions(parent(file));
                "0\n".into()
            }
            _ => format!("{text}\n"),
        };
        self.nodes.insert(file.to_owned(), Node::Setting(shown));
        Ok(())
    }

    fn end_sessions(&mut self, group: &str) {
        let acls = format!("{group}/acls");
        let infos: Vec<String> =
            self.below(&acls).map(|(path, _)| path.clone()).filter(|path| path.ends_with("/info")).collect();
        for info in infos {
            self.nodes.insert(info, Node::Setting(NO_SESSION.into()));
        }
    }

    fn link(&mut self, to: &str, at: &str) -> Result<()> {
        let holder = parent(at);
        if !self.nodes.contains_key(to) || !self.nodes.contains_key(holder) {
            return Err(ErrorKind::NotFound.into());
        }
        if self.below(holder).any(|(_, node)| matches!(node, Node::Link(_))) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if to.starts_with("core/") && self.text(&format!("{to}/enable"))? != "1\n" {
            return Err(refused(rustix::io::Errno::NODEV));
        }
        self.nodes.insert(at.to_owned(), Node::Link(to.to_owned()));
        Ok(())
    }

    /// No target is ever open to somebody who is not named or shows no secret.
    fn check(&self) {
        let open = self.nodes.iter().filter(|(path, node)| {
            path.starts_with("iscsi/") && path.ends_with("/enable") && **node == Node::Setting("1\n".into())
        });
        for (enable, _) in open {
            let group = parent(enable);
            let is = |file: &str, text: &str| self.text(&format!("{group}/{file}")).unwrap() == text;
            assert!(is("attrib/authentication", "1\n") && is("attrib/generate_node_acls", "0\n"), "{group}");
            assert!(is("param/AuthMethod", "CHAP\n"), "{group}");
            let acls = format!("{group}/acls");
            for (path, node) in self.below(&acls) {
                let secret = path.ends_with("/auth/password") || path.ends_with("/auth/userid");
                assert!(!secret || *node != Node::Setting("\n".into()), "{path}");
            }
        }
    }

    fn names(&self, dir: &str, wanted: impl Fn(&Node) -> bool) -> Result<Vec<(String, Node)>> {
        if !self.nodes.contains_key(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let below = self.below(dir).filter(|(path, node)| parent(path) == dir && wanted(node));
        Ok(below.map(|(path, node)| (path[dir.len() + 1..].to_owned(), node.clone())).collect())
    }
}

impl Tree for Kernel {
    fn lock(&self) -> Result<Option<File>> {
        let dir = match &self.inside().turns {
            None => return Ok(None),
            Some(turns) => turns.locked.as_ref().map(|dir| dir.path().to_owned()),
        };
        let lock = dir.map(|dir| Configfs::new(dir).lock()).transpose()?.flatten();
        if let Some(turns) = &mut self.inside().turns {
            turns.taken_by = Some(thread::current().id());
            turns.taken += 1;
        }
        Ok(lock)
    }

    fn make(&self, dir: &str) -> Result<()> {
        let mut inside = self.come();
        inside.change()?;
        inside.make(dir)?;
        inside.check();
        Ok(())
    }

    fn end(&self, dir: &str) -> Result<()> {
        let mut inside = self.come();
        inside.change()?;
        inside.end(dir)
    }

    fn parts(&self, dir: &str) -> Result<Vec<String>> {
        let parts = self.come().names(dir, |node| matches!(node, Node::Dir { .. }))?;
        Ok(parts.into_iter().map(|(name, _)| name).collect())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let mut inside = self.come();
        inside.change()?;
        inside.write(file, text)?;
        inside.check();
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String> {
        self.come().text(file)
    }

    fn link(&self, to: &str, at: &str) -> Result<()> {
        let mut inside = self.come();
        inside.change()?;
        inside.link(to, at)
    }

    fn unlink(&self, at: &str) -> Result<()> {
        let mut inside = self.come();
        inside.change()?;
        match inside.nodes.get(at) {
            Some(Node::Link(_)) => drop(inside.nodes.remove(at)),
            _ => return Err(ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn links(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let links = self.come().names(dir, |node| matches!(node, Node::Link(_)))?;
        let to = |node| if let Node::Link(to) = node { to } else { String::new() };
        Ok(links.into_iter().map(|(name, node)| (name, to(node))).collect())
    }
}
