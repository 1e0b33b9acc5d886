//! A volume group and the commands on it, one at a time.
//!
//! LVM's exit status says little: 5 stands for nearly every failure, a killed command may have done its work, and one that
//! ended well may have warned. So whoever changes something holds the group's [`Turn`], looks first, changes, and looks again.
//! `lvs` has been seen to die of a segmentation fault, and `lvremove` to lose races with udev; both are tried again here.
//!
//! What a guest keeps inside its volume may be a physical volume. No command of ours reads it: they are all told not to scan
//! logical volumes (`devices/scan_lvs`, lvm.conf(5)). The host's own commands need the same, see `docs/operations.md`.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};

use super::report::{self, Lv, Vg};
use crate::delegate::command::{Command, Reason};
use crate::delegate::{DelegateError, Result};

/// The tag that every logical volume of ours has. What has it not is never touched.
pub const OURS: &str = "vbs";

/// The tag of one that is not yet what its name says. It goes when it is, in one change of LVM's metadata.
pub const UNFINISHED: &str = "vbs.unfinished";

/// What every command is told.
const CONFIG: &str = "devices{scan_lvs=0} activation{retry_deactivation=1}";

/// What an `lvremove` is told after one has failed: that one may have left suspended devices, at which it would hang.
const CONFIG_AFTER_FAILURE: &str = "devices{scan_lvs=0 ignore_suspended_devices=1} activation{retry_deactivation=1}";

/// For a look. It waits for LVM's own lock, which a command of a predecessor of this process may still hold.
const LOOK: Duration = Duration::from_secs(60);

/// For a change. A command that is killed half-way may leave devices suspended, so this is long.
const CHANGE: Duration = Duration::from_secs(300);

/// How often what loses races is tried.
const TRIES: u32 = 3;

/// How a command failed.
#[derive(Debug, Clone)]
pub struct Failed {
    /// For the operator.
    pub message: String,
    /// What it said.
    pub stderr: String,
    /// Whether it died of a segmentation fault.
    pub crashed: bool,
}

impl From<Failed> for DelegateError {
    fn from(failed: Failed) -> Self {
        // Without the room it needs, LVM changes nothing.
        let said = failed.stderr.to_ascii_lowercase();
        if ["insufficient free space", "insufficient suitable", "reached threshold"]
            .iter()
            .any(|text| said.contains(text))
        {
            Self::no_room(failed.message)
        } else {
            Self::retry(failed.message)
        }
    }
}

/// Runs programs.
#[async_trait]
pub trait Run: Send + Sync {
    /// Runs a program to its end and gives what it printed, when it ended well.
    async fn run(&self, program: &str, args: &[String], timeout: Duration) -> Result<String, Failed>;
}

/// Runs programs of this machine.
pub struct Host;

#[async_trait]
impl Run for Host {
    async fn run(&self, program: &str, args: &[String], timeout: Duration) -> Result<String, Failed> {
        use std::os::unix::process::ExitStatusExt;
        const SEGV: i32 = 11;
        Command::new(program).args(args).timeout(timeout).run().await.map_err(|failure| Failed {
            crashed: match &failure.reason {
                Reason::Status(status) => status.signal() == Some(SEGV) || status.code() == Some(128 + SEGV),
                _ => false,
            },
            message: failure.to_string(),
            stderr: failure.stderr,
        })
    }
}

/// Where device nodes are, and what is to be known of them. Tests have others.
#[derive(Debug, Clone)]
pub struct Devices {
    /// The directory.
    pub dir: PathBuf,
    /// The kernel's number of the device that a node is of.
    pub number: fn(&Metadata) -> Option<(u32, u32)>,
    /// How long a node may take to appear after the command that made it has ended.
    pub wait: Duration,
}

impl Default for Devices {
    fn default() -> Self {
        let number = |meta: &Metadata| {
            let number = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            meta.file_type().is_block_device().then_some(number)
        };
        Self { dir: "/dev".into(), number, wait: Duration::from_secs(5) }
    }
}

/// A volume group.
pub struct Group {
    name: String,
    /// Its device nodes, and others'.
    pub devices: Devices,
    run: Arc<dyn Run>,
    turn: Mutex<()>,
}

impl Group {
    /// The group of this name. Whether it is there is found out when it is looked at.
    pub fn new(name: &str, devices: Devices, run: Arc<dyn Run>) -> Result<Self> {
        check_name(name)?;
        Ok(Self { name: name.into(), devices, run, turn: Mutex::default() })
    }

    /// The device of a logical volume, while it is active.
    pub fn path(&self, lv: &str) -> PathBuf {
        self.devices.dir.join(&self.name).join(lv)
    }

    /// Waits for those before, and shuts out those after.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { group: self, _turn: self.turn.lock().await }
    }

    /// All logical volumes of the group, ours and others', for who only tells of them: that need not wait for a turn, behind
    /// every change there is to make.
    pub async fn look(&self) -> Result<Seen> {
        let args = ["-o", report::LV_COLUMNS, &self.name];
        Ok(Seen(read(report::lvs(&self.report("lvs", &args).await?))?))
    }

    /// The group itself.
    pub async fn vg(&self) -> Result<Vg> {
        let groups = read(report::vgs(&self.report("vgs", &["-o", report::VG_COLUMNS, &self.name]).await?))?;
        let own = groups.into_iter().find(|(name, _)| *name == self.name);
        own.map(|(_, vg)| vg).ok_or_else(|| DelegateError::retry(format!("there is no volume group {}", self.name)))
    }

    async fn report(&self, command: &str, args: &[&str]) -> Result<String> {
        let args = [&["--reportformat", "json", "--units", "b", "--nosuffix"], args].concat();
        let mut tried = 1;
        loop {
            match self.lvm(command, CONFIG, &args, LOOK).await {
                Err(failed) if failed.crashed && tried < TRIES => tried += 1,
                result => return result.map_err(|failed| DelegateError::retry(failed.message)),
            }
        }
    }

    async fn lvm(&self, command: &str, config: &str, args: &[&str], timeout: Duration) -> Result<String, Failed> {
        let args: Vec<String> = ["--config", config].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        self.run.run(command, &args, timeout).await
    }
}

/// Whether LVM would take this name for a group or a volume (lvm(8), "VALID NAMES").
pub fn check_name(name: &str) -> Result<()> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    if name.is_empty() || name.len() > 100 || name.starts_with(['-', '.']) || !name.bytes().all(letter) {
        return Err(DelegateError::fatal(format!("{name:?} is no name for a volume group or a logical volume")));
    }
    Ok(())
}

/// The right to run commands on the group. Not to be held while anything is copied.
pub struct Turn<'a> {
    group: &'a Group,
    _turn: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// All logical volumes of the group, ours and others'.
    pub async fn look(&self) -> Result<Seen> {
        self.group.look().await
    }

    /// One logical volume, if it is there.
    pub async fn look_at(&self, lv: &str) -> Result<Seen> {
        let select = format!("lv_name={lv}");
        let args = ["-o", report::LV_COLUMNS, "-S", &select, &self.group.name];
        Ok(Seen(read(report::lvs(&self.group.report("lvs", &args).await?))?))
    }

    /// The group itself.
    pub async fn vg(&self) -> Result<Vg> {
        self.group.vg().await
    }

    /// The stretches of extents that a logical volume lies on.
    pub async fn ranges(&self, lv: &str) -> Result<Vec<String>> {
        read(report::ranges(&self.group.report("lvs", &["-o", "seg_pe_ranges", &self.of(lv)]).await?))
    }

    /// Runs `lvcreate` with these arguments; the name and the tags are put in. `of` is what it makes a snapshot of, or the
    /// group.
    pub async fn create(&self, lv: &str, tags: &[&str], args: &[&str], of: Option<&str>) -> Result<()> {
        let of = of.map_or_else(|| self.group.name.clone(), |origin| self.of(origin));
        let tags = [OURS].iter().chain(tags).flat_map(|tag| ["--addtag", tag]);
        let args: Vec<_> = ["-y", "-n", lv].into_iter().chain(tags).chain(args.iter().copied()).chain([&*of]).collect();
        Ok(self.group.lvm("lvcreate", CONFIG, &args, CHANGE).await.map(drop)?)
    }

    /// Activates a logical volume, also one that is not to be activated by itself, and ends what a command that died has left
    /// suspended.
    pub async fn activate(&self, lv: &Lv) -> Result<()> {
        let how: &[&str] = if lv.is_suspended() { &["--refresh"] } else { &["-K", "-ay"] };
        Ok(self.group.lvm("lvchange", CONFIG, &[how, &["-y", &self.of(&lv.name)]].concat(), CHANGE).await.map(drop)?)
    }

    /// Takes the tag of the unfinished from a logical volume, and gives it others.
    pub async fn finish(&self, lv: &str, tags: &[&str]) -> Result<()> {
        let of = self.of(lv);
        let tags = tags.iter().flat_map(|tag| ["--addtag", tag]);
        let args: Vec<_> = ["-y", "--deltag", UNFINISHED].into_iter().chain(tags).chain([&*of]).collect();
        Ok(self.group.lvm("lvchange", CONFIG, &args, CHANGE).await.map(drop)?)
    }

    /// Makes a logical volume so many extents larger, on these stretches if any are given. It never makes one smaller.
    pub async fn extend(&self, lv: &str, extents: u64, on: &[String]) -> Result<()> {
        let (more, of) = (format!("+{extents}"), self.of(lv));
        let args: Vec<_> = ["-y", "-l", &more, &of].into_iter().chain(on.iter().map(String::as_str)).collect();
        Ok(self.group.lvm("lvextend", CONFIG, &args, CHANGE).await.map(drop)?)
    }

    /// Removes a logical volume that nobody has open.
    pub async fn remove(&self, lv: &Lv) -> Result<()> {
        if lv.is_open() {
            return Err(DelegateError::retry(format!("{} is in use on its node", lv.name)));
        }
        let mut failure = None;
        for attempt in 0..TRIES {
            let config = if attempt == 0 { CONFIG } else { CONFIG_AFTER_FAILURE };
            match self.group.lvm("lvremove", config, &["-y", &self.of(&lv.name)], CHANGE).await {
                Ok(_) => {}
                Err(failed) => failure = Some(failed),
            }
            match self.look_at(&lv.name).await?.0.first() {
                None => return Ok(()),
                Some(now) if now.is_open() => break,
                Some(_) => self.settle().await,
            }
        }
        Err(failure
            .map_or_else(|| DelegateError::retry(format!("{} is still there after lvremove", lv.name)), Into::into))
    }

    /// Waits for udev to be done with what it does; that it is not is no reason to give up.
    async fn settle(&self) {
        let args = ["settle".to_owned(), "--timeout=10".to_owned()];
        if let Err(failed) = self.group.run.run("udevadm", &args, LOOK).await {
            tracing::warn!(error = failed.message, "udev does not settle");
        }
    }

    fn of(&self, lv: &str) -> String {
        format!("{}/{lv}", self.group.name)
    }
}

fn read<T>(report: Result<T, String>) -> Result<T> {
    report.map_err(|why| DelegateError::retry(format!("LVM's report cannot be read: {why}")))
}

/// The logical volumes that a look has shown.
#[derive(Debug, Clone, Default)]
pub struct Seen(pub Vec<Lv>);

impl Seen {
    /// The one of this name, if it is there. One that has the name and not our tags is not to be touched (Fatal).
    pub fn ours(&self, name: &str, id: &str) -> Result<Option<&Lv>> {
        match self.0.iter().find(|lv| lv.name == name) {
            Some(lv) if lv.has(OURS) && lv.has(id) => Ok(Some(lv)),
            Some(_) => Err(DelegateError::fatal(format!(
                "the logical volume {name} has not the tags {OURS} and {id}: it is not ours"
            ))),
            None => Ok(None),
        }
    }

    /// All that are ours.
    pub fn all_ours(&self) -> impl Iterator<Item = &Lv> {
        self.0.iter().filter(|lv| lv.has(OURS) && lv.has(&lv.name))
    }
}
