//! The `iet` driver: exports by the iSCSI Enterprise Target, over `ietadm` (1.4.18 and later).
//!
//! - The exit status of `ietadm` does not tell what went wrong, nor always that something did. So after each change
//!   `/proc/net/iet` is read, and only that counts.
//! - `--op delete` without a target's number stops everything on the host. Every command here has one, and it is chosen
//!   here: ietd does not say which it took.
//! - ietd deletes a unit under a session, and some releases of it end when a target in use is deleted. Who is logged in is
//!   looked at first, and a target is deleted whole or not at all.
//! - Nothing is kept: an ietd that ends takes all targets along. They come back with the numbers they had, which are made of
//!   their names; an initiator that is logged in then finds them again by itself.
//! - Names are the same in capitals and in small letters to ietd, and not to its kernel part; ours are in small letters.
//! - Who may log in stands in a file ([`super::iet_access`]), which is written after the CHAP user is there and before the
//!   target is ended: at no moment is one open without CHAP or to another initiator.
//! - The volume is unit 1, as with the other drivers. There is no unit 0; Linux scans for units all the same, since IET
//!   answers the question for them without one.
//! - A unit's serial number has room for 16 bytes, and IET looks for an end in them that 16 would not leave: a kernel that checks
//!   lengths stops at the first question for it. A volume's is up to 20: it has the last 15, which are the ones that differ.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::iet_access::{Access, Rules};
use super::iet_proc::{self, Target};
use super::{PathOf, TargetDriver, check, volume_of};
use crate::config;
use crate::delegate::command::Command;
use crate::delegate::{DelegateError, ExportSpec, Growth, ObservedExport, Portal, Result};
use crate::ids::VolumeId;

/// The unit that is the volume.
const DISK: u32 = 1;

/// The bytes there are for a serial number: `SCSI_SN_LEN` of IET, and one for its end.
const SERIAL: usize = 15;

/// How long an un-export waits for a session to end: a log-out returns before the target has noticed.
const SESSION_END: Duration = Duration::from_secs(2);

/// How long the portal may take to take a connection.
const PORTAL: Duration = Duration::from_secs(2);

/// A running ietd.
pub struct Iet {
    config: config::Iet,
    access: Access,
    /// One at a time, since what ietadm is told depends on what was there.
    alone: Mutex<()>,
}

impl Iet {
    /// The ietd that the configuration tells of. Whether it runs is found out call by call: it may come and go.
    pub fn new(config: config::Iet) -> Self {
        Self { access: Access::new(config.initiators_allow.clone()), config, alone: Mutex::default() }
    }

    /// Gives the target when it can be mended; one that serves something else is deleted.
    async fn sound(&self, target: Target, spec: &ExportSpec, behind: &Behind) -> Result<Option<Target>> {
        if let Some(stranger) = target.sessions.iter().find(|name| **name != spec.initiator_iqn) {
            return Err(DelegateError::retry(format!("{stranger} is logged in to {}", target.name)));
        }
        if target.name == spec.iqn && (target.units.is_empty() || behind.is(&target)) {
            return Ok(Some(target));
        }
        self.delete(&target).await?;
        Ok(None)
    }

    async fn new_target(&self, name: &str) -> Result<Target> {
        let tid = free(name, &self.targets().await?);
        let number = format!("--tid={tid}");
        let new = self.ietadm().args(["--op", "new", &number, "--params", &format!("Name={name}")]);
        let seen = self.change(&new, |seen| seen.iter().any(|target| target.tid == tid && target.name == name)).await?;
        seen.into_iter().find(|target| target.tid == tid).ok_or_else(|| DelegateError::retry("the target is gone"))
    }

    async fn ensure_unit(&self, target: &Target, spec: &ExportSpec, behind: &Behind) -> Result<()> {
        if behind.is(target) {
            return Ok(());
        }
        let serial = serial(&spec.volume);
        let params = format!("Path={},Type={},ScsiId={serial},ScsiSN={serial}", behind.path, behind.kind);
        let (tid, lun) = (format!("--tid={}", target.tid), format!("--lun={DISK}"));
        let new = self.ietadm().args(["--op", "new", &tid, &lun, "--params", &params]);
        self.change(&new, |seen| seen.iter().any(|other| other.tid == target.tid && behind.is(other))).await.map(drop)
    }

    /// Whether the target's one CHAP user is this one, with this secret.
    async fn knows(&self, tid: u32, spec: &ExportSpec) -> Result<bool> {
        if self.users(tid).await? != [spec.chap_user.as_str()] {
            return Ok(false);
        }
        let (tid, user) = (format!("--tid={tid}"), format!("--params=IncomingUser={}", spec.chap_user));
        let shown = self.ietadm().args(["--op", "show", &tid, "--user", &user]).run().await?;
        Ok(shown.trim_end_matches('\n') == format!("IncomingUser {} {}", spec.chap_user, spec.chap_secret.0))
    }

    /// Makes the target's one CHAP user be this one. Nobody may be allowed in meanwhile.
    async fn ensure_user(&self, tid: u32, spec: &ExportSpec) -> Result<()> {
        let number = format!("--tid={tid}");
        for user in self.users(tid).await? {
            let user = format!("--params=IncomingUser={user}");
            self.ietadm().args(["--op", "delete", &number, "--user", &user]).run().await?;
        }
        let account = format!("--params=IncomingUser={},Password={}", spec.chap_user, spec.chap_secret.0);
        self.ietadm().args(["--op", "new", &number, "--user"]).secret(account).run().await?;
        if self.knows(tid, spec).await? {
            Ok(())
        } else {
            Err(DelegateError::retry(format!("ietd did not take the CHAP user of {}", spec.iqn)))
        }
    }

    /// The CHAP users of a target.
    async fn users(&self, tid: u32) -> Result<Vec<String>> {
        let shown = self.ietadm().args(["--op", "show", &format!("--tid={tid}"), "--user"]).run().await?;
        Ok(shown.lines().filter_map(|line| line.strip_prefix("IncomingUser ")).map(str::to_owned).collect())
    }

    /// Deletes a target that nobody is logged in to.
    async fn delete(&self, target: &Target) -> Result<()> {
        refuse_while_in_use(target)?;
        let allowed = self.close(&target.name).await?;
        // Somebody may have been quicker than that.
        let now = self.targets().await?;
        let Some(now) = now.iter().find(|now| (now.tid, &now.name) == (target.tid, &target.name)) else {
            return Ok(());
        };
        if let Err(refusal) = refuse_while_in_use(now) {
            if let Some(initiator) = allowed {
                self.open(&target.name, &initiator).await?;
            }
            return Err(refusal);
        }
        let delete = self.ietadm().args(["--op", "delete", &format!("--tid={}", target.tid)]);
        self.change(&delete, |seen| seen.iter().all(|other| other.tid != target.tid)).await.map(drop)
    }

    /// Lets one initiator log in to the target.
    async fn open(&self, iqn: &str, initiator: &str) -> Result<()> {
        let (iqn, initiator) = (iqn.to_owned(), initiator.to_owned());
        self.rules(move |rules| drop(rules.insert(iqn, initiator))).await
    }

    /// Lets nobody log in to the target. Tells who might.
    async fn close(&self, iqn: &str) -> Result<Option<String>> {
        let iqn = iqn.to_ascii_lowercase();
        let before = self.allowed().await?.unwrap_or_default().remove(&iqn);
        self.rules(move |rules| drop(rules.remove(&iqn))).await?;
        Ok(before)
    }

    async fn rules(&self, change: impl FnOnce(&mut Rules) + Send + 'static) -> Result<()> {
        let access = self.access.clone();
        blocking(move || access.change(change), &self.config.initiators_allow).await
    }

    async fn allowed(&self) -> Result<Option<Rules>> {
        let access = self.access.clone();
        blocking(move || access.read(), &self.config.initiators_allow).await
    }

    async fn targets(&self) -> Result<Vec<Target>> {
        let dir = self.config.proc_dir.clone();
        let read = move || {
            let text =
                |name: &str| std::fs::read(dir.join(name)).map(|text| String::from_utf8_lossy(&text).into_owned());
            Ok(iet_proc::targets(&text("volume")?, &text("session")?))
        };
        blocking(read, &self.config.proc_dir).await
    }

    /// Runs a command, and gives what is there after it, if that is what the command was to do.
    async fn change(&self, command: &Command, done: impl Fn(&[Target]) -> bool) -> Result<Vec<Target>> {
        let outcome = command.run().await;
        let seen = self.targets().await?;
        match outcome {
            _ if done(&seen) => Ok(seen),
            Err(failure) => Err(failure.into()),
            Ok(_) => Err(DelegateError::retry(format!("{command:?} had no effect"))),
        }
    }

    fn ietadm(&self) -> Command {
        Command::new(&self.config.ietadm.to_string_lossy())
    }
}

#[async_trait]
impl TargetDriver for Iet {
    fn name(&self) -> &'static str {
        "iet"
    }

    async fn ensure_exported(&self, spec: &ExportSpec, path: &Path) -> Result<Portal> {
        check(spec)?;
        if spec.chap_secret.0.contains(',') {
            return Err(DelegateError::fatal("ietadm cannot be given this CHAP secret"));
        }
        let behind = Behind::new(path).await?;
        let _alone = self.alone.lock().await;
        let mut there = None;
        for target in of_volume(self.targets().await?, &spec.volume) {
            if target.name.eq_ignore_ascii_case(&spec.iqn) {
                there = self.sound(target, spec, &behind).await?;
            } else if !spec.is_beside(&target.name) {
                self.delete(&target).await?;
            }
        }
        let right_user = match &there {
            Some(target) => self.knows(target.tid, spec).await?,
            None => false,
        };
        if !right_user {
            self.close(&spec.iqn).await?;
        }
        let target = match there {
            Some(target) => target,
            None => self.new_target(&spec.iqn).await?,
        };
        if !right_user {
            self.ensure_user(target.tid, spec).await?;
        }
        self.ensure_unit(&target, spec, &behind).await?;
        let own = spec.clone();
        self.rules(move |rules| {
            rules.retain(|target, _| volume_of(target).as_ref() != Some(&own.volume) || own.is_beside(target));
            rules.extend([(own.iqn, own.initiator_iqn)]);
        })
        .await?;
        // ietd does not mind that another program has its port.
        let portal = self.config.portal;
        match tokio::time::timeout(PORTAL, TcpStream::connect(portal)).await {
            Ok(Ok(_)) => Ok(Portal { address: portal.to_string() }),
            _ => Err(DelegateError::retry(format!("nobody listens at {portal}"))),
        }
    }

    async fn ensure_not_exported(&self, volume: &VolumeId, but: &[String]) -> Result<()> {
        let patience = Instant::now() + SESSION_END;
        loop {
            let alone = self.alone.lock().await;
            let mut targets = of_volume(self.targets().await?, volume);
            targets.retain(|target| !but.contains(&target.name));
            let Some(refusal) = targets.iter().find_map(|target| refuse_while_in_use(target).err()) else {
                for target in &targets {
                    self.delete(target).await?;
                }
                let (volume, but) = (volume.clone(), but.to_vec());
                let stays = move |iqn: &String| volume_of(iqn).as_ref() != Some(&volume) || but.contains(iqn);
                return self.rules(move |rules| rules.retain(|iqn, _| stays(iqn))).await;
            };
            drop(alone);
            if Instant::now() >= patience {
                return Err(refusal);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// IET learns a size when the unit is made. When nobody is logged in, the export is made anew at the next attach.
    async fn ensure_grown(&self, _: &VolumeId, _: &Path, _: u64) -> Result<Growth> {
        Ok(Growth::AtNextAttach)
    }

    async fn exports(&self, path: &PathOf<'_>) -> Result<Vec<ObservedExport>> {
        let found: BTreeMap<_, _> = {
            let _alone = self.alone.lock().await;
            let mut found = BTreeMap::new();
            for target in self.targets().await? {
                let Some(volume) = volume_of(&target.name.to_ascii_lowercase()) else { continue };
                // Whoever does not answer for its users has none.
                let users = self.users(target.tid).await.unwrap_or_default();
                found.insert(target.tid, (target, volume, users));
            }
            found
        };
        let rules = self.allowed().await?.unwrap_or_default();
        let mut exports = Vec::new();
        for (target, volume, users) in found.into_values() {
            let behind = Behind::new(&path(&volume)).await;
            let whole = behind.is_ok_and(|behind| behind.is(&target)) && users.len() == 1;
            let whole = whole && rules.contains_key(&target.name);
            exports.push(ObservedExport { iqn: target.name, volume, sessions: target.sessions, whole });
        }
        Ok(exports)
    }
}

/// What stands behind a unit.
struct Behind {
    path: String,
    /// How IET reads and writes it. A device past the page cache, so that the node's memory is not spent twice; a file, which
    /// cannot be, through it and to the disk before each answer.
    kind: &'static str,
}

impl Behind {
    async fn new(path: &Path) -> Result<Self> {
        let unfit = |c: char| c == ',' || c.is_whitespace();
        let text = path.to_str().filter(|text| text.starts_with('/') && !text.contains(unfit));
        let text =
            text.ok_or_else(|| DelegateError::fatal(format!("ietadm cannot be given the path {}", path.display())))?;
        let found = tokio::fs::metadata(path).await.map_err(|e| DelegateError::retry(format!("{text}: {e}")))?;
        let kind = if found.file_type().is_block_device() { "blockio" } else { "fileio" };
        Ok(Self { path: text.to_owned(), kind })
    }

    /// Whether this is what the target serves, and nothing else.
    fn is(&self, target: &Target) -> bool {
        let right = |unit: &iet_proc::Unit| {
            (unit.lun, unit.running, unit.kind.as_str(), &unit.path) == (DISK, true, self.kind, &self.path)
        };
        matches!(&target.units[..], [unit] if right(unit))
    }
}

fn of_volume(mut targets: Vec<Target>, volume: &VolumeId) -> Vec<Target> {
    targets.retain(|target| volume_of(&target.name.to_ascii_lowercase()).as_ref() == Some(volume));
    targets
}

fn refuse_while_in_use(target: &Target) -> Result<()> {
    match target.sessions.first() {
        Some(initiator) => Err(DelegateError::retry(format!("{initiator} is logged in to {}", target.name))),
        None => Ok(()),
    }
}

/// The number of a target of this name: always the same, but for another that has it already.
fn free(name: &str, targets: &[Target]) -> u32 {
    // FNV-1a, which is the same in every release of the compiler.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let start = u32::try_from(hash >> 33).unwrap_or(1).max(1);
    let free = |tid: &u32| targets.iter().all(|target| target.tid != *tid);
    (start..1 << 31).chain(1..start).find(free).unwrap_or(start)
}

/// What initiators are told to be the serial number.
fn serial(volume: &VolumeId) -> String {
    let serial = volume.serial();
    serial[serial.len().saturating_sub(SERIAL)..].to_owned()
}

/// Works on files, where that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    path: &Path,
) -> Result<T> {
    let told = |e: &dyn std::fmt::Display| DelegateError::retry(format!("{}: {e}", path.display()));
    tokio::task::spawn_blocking(work).await.map_err(|e| told(&e))?.map_err(|e| told(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_gets_the_number_it_had_unless_another_has_it() {
        let name = "iqn.2026-01.net.example:vol-0123abcd.1";
        let taken = |tid| Target { tid, ..Target::default() };
        let first = free(name, &[]);
        assert!((1..1 << 31).contains(&first));
        assert_eq!(free(name, &[taken(first - 1)]), first);
        assert_eq!(free(name, &[taken(first), taken(first + 1)]), first + 2);
        assert_ne!(free("iqn.2026-01.net.example:vol-0123abcd.2", &[]), first);
    }

    #[test]
    fn the_digits_of_a_serial_that_differ_fit() {
        let serial = |id: &str| serial(&VolumeId::parse(id).unwrap());
        assert_eq!(serial("vol-0123456789abcdef0"), "123456789abcdef0");
        assert_eq!(serial("vol-0123abcd"), "vol0123abcd");
    }
}
