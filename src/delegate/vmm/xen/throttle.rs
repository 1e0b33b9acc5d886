//! Holds a guest's disk to its limits, by this node's kernel: neither Xen nor `xl` has a throttle.
//!
//! What a guest asks of a disk is submitted by threads of the kernel's backend, one a ring of the disk, named
//! `DOMAIN.DISK-RING`. A thread is in a control group as a process is, and the `io` controller of cgroup v2 holds a group to so
//! many operations and bytes a second of a device (`io.max`; reads and writes each, where QEMU counts them together). So each
//! target that a guest's disk comes from has a group, `vbs/IQN`:
//!
//! - **The kernel remembers.** A group says by itself what is held and to how much, so that a delegate that was restarted, or a
//!   guest (whose disk then comes with new threads), needs no file of ours. A node that was restarted attaches anew.
//! - **Two levels.** As long as `vbs` has the controller on for its children, nobody (systemd) turns it off above.
//! - **A host without the controller** is as good a host as ever: that nothing is held is said once.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::names::Place;
use super::view::View;
use crate::delegate::vmm::open_iscsi::sysfs::blocking;
use crate::delegate::{DelegateError, Limits, Result};

/// The group above ours.
const GROUP: &str = "vbs";

/// Of a process's flags: it is a thread of the kernel (`PF_KTHREAD` in `include/linux/sched.h`). Every user may name a process
/// as the kernel names its threads.
pub(super) const KERNEL_THREAD: u32 = 0x0020_0000;

/// What a host says that cannot hold a disk: it has no such controller, or the delegate may not write there.
const CANNOT: [ErrorKind; 3] = [ErrorKind::Unsupported, ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];

/// How long the backend gets to start a thread: a disk is connected a moment before it has one.
const START: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The kernel's throttle.
#[derive(Debug, Clone)]
pub(super) struct Throttle {
    /// Where cgroup v2 is.
    root: PathBuf,
    proc: PathBuf,
}

/// A guest's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held<'a> {
    pub(super) iqn: &'a str,
    pub(super) domain: u32,
    pub(super) vdev: u32,
    /// The major and minor number of the device behind it.
    pub(super) number: (u32, u32),
}

impl Throttle {
    pub(super) fn new(root: PathBuf, proc: PathBuf) -> Self {
        Self { root, proc }
    }

    /// Whether there is anything to do for such limits: most disks have none, and never had.
    pub(super) fn concerns(&self, iqn: &str, limits: Limits) -> bool {
        limits != Limits::default() || self.dir(iqn).exists()
    }

    /// Holds a disk that a guest has to these limits and no others.
    pub(super) async fn hold(&self, held: Held<'_>, limits: Limits) -> Result<()> {
        let (own, dir, line) = (self.clone(), self.dir(held.iqn), line(held.number, limits));
        match blocking(move || own.begin(&dir, &line)).await? {
            Ok(()) => {}
            Err(e) if CANNOT.contains(&e.kind()) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    let at = self.root.display();
                    tracing::warn!(%at, error = %e, "guests are not held to the IOPS and throughput of their volumes");
                });
                return Ok(());
            }
            Err(e) => return Err(told(held.iqn, &e)),
        }
        if limits == Limits::default() {
            return Ok(());
        }
        let end = Instant::now() + START;
        loop {
            let (own, dir, threads) = (self.clone(), self.dir(held.iqn), threads(held.domain, held.vdev));
            let found = blocking(move || own.gather(&dir, &threads)).await?;
            if found.map_err(|e| told(held.iqn, &e))? > 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(DelegateError::retry(format!("the kernel has no thread for the disk of {}", held.iqn)));
            }
            sleep(LOOK).await;
        }
    }

    /// Brings the threads that have come since into their groups, and removes the groups of targets that are gone. What cannot
    /// be done now is done the next time.
    pub(super) async fn tend(&self, view: &View) -> Result<()> {
        let disks = |iqn: &str| {
            let there = view.sessions.iter().any(|session| session.iqn == iqn);
            there.then(|| view.uses(iqn).iter().map(|used| threads(used.domain, used.vdev)).collect::<Vec<_>>())
        };
        let (own, above) = (self.clone(), self.root.join(GROUP));
        let groups = blocking(move || groups(&above)).await?;
        if groups.is_empty() {
            return Ok(());
        }
        let work: Vec<_> = groups.into_iter().map(|iqn| (own.dir(&iqn), disks(&iqn))).collect();
        blocking(move || {
            for (dir, disks) in work {
                let done = match disks {
                    Some(disks) => disks.iter().try_for_each(|threads| own.gather(&dir, threads).map(drop)),
                    None => std::fs::remove_dir(&dir),
                };
                if let Err(error) = done {
                    tracing::debug!(group = %dir.display(), %error, "a group is not as it should be yet");
                }
            }
        })
        .await
    }

    fn dir(&self, iqn: &str) -> PathBuf {
        self.root.join(GROUP).join(iqn)
    }

    /// Makes the group and writes the limits.
    fn begin(&self, dir: &Path, line: &str) -> std::io::Result<()> {
        if !words(&self.root.join("cgroup.controllers")).iter().any(|word| word == "io") {
            return Err(std::io::Error::new(ErrorKind::Unsupported, "no cgroup v2 with the io controller"));
        }
        let above = self.root.join(GROUP);
        for (parent, child) in [(&*self.root, &*above), (&above, dir)] {
            let control = parent.join("cgroup.subtree_control");
            if !words(&control).iter().any(|word| word == "io") {
                write(&control, "+io")?;
            }
            match std::fs::create_dir(child) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        let max = dir.join("io.max");
        if !holds(&std::fs::read_to_string(&max)?, line) {
            write(&max, line)?;
        }
        Ok(())
    }

    /// Brings the threads whose names begin so into a group, and tells how many there are.
    fn gather(&self, dir: &Path, named: &str) -> std::io::Result<usize> {
        let procs = dir.join("cgroup.procs");
        let inside = words(&procs);
        let mut count = 0;
        for entry in std::fs::read_dir(&self.proc)?.flatten() {
            let Some(id) = entry.file_name().to_str().filter(|id| id.parse::<u32>().is_ok()).map(str::to_owned) else {
                continue;
            };
            // One that ends meanwhile is none.
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let stat = || std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if !name.starts_with(named) || !is_kernels(&stat()) {
                continue;
            }
            count += 1;
            if !inside.contains(&id) {
                write(&procs, &id)?;
            }
        }
        Ok(count)
    }
}

/// What the kernel calls the threads of a disk, but for the ring's number. The disk is called as `xl` was told.
fn threads(domain: u32, vdev: u32) -> String {
    let place = Place::of(vdev).map(|place| place.to_string()).unwrap_or_default();
    format!("{domain}.{place}-")
}

/// A device's line of `io.max`, as the kernel writes it.
pub(super) fn line((major, minor): (u32, u32), limits: Limits) -> String {
    let word = |limit: u64| if limit == 0 { "max".to_owned() } else { limit.to_string() };
    let (bytes, operations) = (word(limits.bytes_per_second), word(limits.iops.into()));
    format!("{major}:{minor} rbps={bytes} wbps={bytes} riops={operations} wiops={operations}")
}

/// Whether `io.max` has a device's line as it shall be.
pub(super) fn holds(max: &str, line: &str) -> bool {
    max.lines().any(|now| now == line)
}

/// Whether a process's `stat` is that of a thread of the kernel.
pub(super) fn is_kernels(stat: &str) -> bool {
    // The name, in parentheses, may hold anything; after it come state, parent, group, session, terminal, its group, flags.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// The targets that have a group.
fn groups(above: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn words(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The kernel takes one write as one command.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn told(iqn: &str, e: &std::io::Error) -> DelegateError {
    DelegateError::retry(format!("the disk of {iqn} cannot be held to its limits: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { iops: 100, bytes_per_second: 0 };
    const HELD: Held<'_> = Held { iqn: "iqn.2026-01.t:v.1", domain: 7, vdev: 51792, number: (8, 16) };
    const FREE: &str = "8:16 rbps=max wbps=max riops=max wiops=max";

    /// A kernel that is a directory: what it does by itself when a group is made is done before.
    fn kernel(controllers: &str) -> (tempfile::TempDir, Throttle) {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("cgroup/cgroup.controllers", controllers);
        for group in ["", "vbs/"] {
            put(&format!("cgroup/{group}cgroup.subtree_control"), "");
        }
        for file in ["io.max", "cgroup.procs"] {
            put(&format!("cgroup/vbs/{}/{file}", HELD.iqn), "");
        }
        // Another disk's, another domain's, and a user's that calls itself as the kernel calls its threads.
        for (id, name, flags) in [
            (3, "7.xvdg-0", KERNEL_THREAD),
            (4, "77.xvdf-0", KERNEL_THREAD),
            (5, "7.xvdf-0", 64),
            (6, "7.xvdf-0", KERNEL_THREAD | 64),
        ] {
            put(&format!("proc/{id}/comm"), &format!("{name}\n"));
            put(&format!("proc/{id}/stat"), &format!("{id} ({name}) S 2 0 0 0 -1 {flags} 0 0\n"));
        }
        put("proc/cmdline", "");
        let throttle = Throttle::new(dir.path().join("cgroup"), dir.path().join("proc"));
        (dir, throttle)
    }

    fn read(throttle: &Throttle, file: &str) -> String {
        std::fs::read_to_string(throttle.dir(HELD.iqn).join(file)).unwrap()
    }

    #[tokio::test]
    async fn the_disks_own_thread_is_held_and_set_free_when_there_is_no_limit_any_more() {
        let (_dir, throttle) = kernel("cpu io memory");
        for (limits, line) in [
            (LIMITS, "8:16 rbps=max wbps=max riops=100 wiops=100"),
            (
                Limits { iops: 3_000, bytes_per_second: 125 << 20 },
                "8:16 rbps=131072000 wbps=131072000 riops=3000 wiops=3000",
            ),
            (Limits::default(), FREE),
        ] {
            std::fs::write(throttle.dir(HELD.iqn).join("io.max"), "").unwrap();
            throttle.hold(HELD, limits).await.unwrap();
            assert_eq!(read(&throttle, "io.max"), line);
        }
        assert_eq!(read(&throttle, "cgroup.procs"), "6");
        for group in [throttle.root.clone(), throttle.root.join(GROUP)] {
            assert_eq!(std::fs::read_to_string(group.join("cgroup.subtree_control")).unwrap(), "+io");
        }
    }

    #[tokio::test]
    async fn a_host_that_cannot_hold_a_disk_has_it_nevertheless() {
        let (_dir, throttle) = kernel("cpu memory");
        throttle.hold(HELD, LIMITS).await.unwrap();
        assert_eq!(read(&throttle, "io.max"), "");
        let none = Throttle::new("/nonexistent".into(), "/nonexistent".into());
        none.hold(HELD, LIMITS).await.unwrap();
        none.tend(&View::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_disk_without_a_thread_is_not_held_and_said_not_to_be() {
        let (dir, throttle) = kernel("io");
        std::fs::remove_dir_all(dir.path().join("proc/6")).unwrap();
        throttle.hold(HELD, LIMITS).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_thread_that_comes_later_is_held_too_and_the_group_goes_with_the_target() {
        let (dir, throttle) = kernel("io");
        let mut view = super::super::tests::connected(HELD.iqn, HELD.number);
        throttle.hold(HELD, LIMITS).await.unwrap();
        std::fs::rename(dir.path().join("proc/6"), dir.path().join("proc/9")).unwrap();
        throttle.tend(&view).await.unwrap();
        assert_eq!(read(&throttle, "cgroup.procs"), "9");

        // A group's files do not hold up its removal.
        view.sessions.clear();
        for file in ["io.max", "cgroup.procs"] {
            std::fs::remove_file(throttle.dir(HELD.iqn).join(file)).unwrap();
        }
        throttle.tend(&view).await.unwrap();
        assert!(!throttle.dir(HELD.iqn).exists());
    }
}
