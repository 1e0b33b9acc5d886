//! iSCSI sessions and their disks, as the kernel shows them in sysfs.
//!
//! A disk is found from its session down (session, SCSI device, block device), never the other way round: `/dev/sdX` is the
//! next disk's name as soon as this one is gone, links under `/dev/disk/by-id` are made from what a target says of itself
//! (tgt: from numbers that repeat; LIO: from part of the serial), and none of them is there at once.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::delegate::{DelegateError, Result};

/// Bytes of a sector in `/sys/block/*/size`, whatever the disk's own sectors are.
const SECTOR: u64 = 512;

/// The longest attribute that is read, in bytes; a page of sysfs.
const MOST: usize = 4096;

/// How IET says who made its disks, and the bytes it has for a serial number (`VENDOR_ID` and `SCSI_SN_LEN` of iscsitarget, less
/// one): of a longer one, its driver gives it the end.
const IET: (&str, usize) = ("IET", 15);

/// Where sysfs and the device nodes are.
#[derive(Debug, Clone)]
pub(crate) struct Sysfs {
    pub(crate) sys: PathBuf,
    pub(crate) dev: PathBuf,
}

/// A log-in of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// The kernel's number of it, as `iscsiadm -m session -r` takes it.
    pub(crate) id: u32,
    /// The target's name.
    pub(crate) iqn: String,
    /// Where it was logged in to by its record.
    pub(crate) portal: Option<SocketAddr>,
    /// Whether it is logged in right now; else the target is away and the session waits for it.
    pub(crate) logged_in: bool,
    /// The number of its SCSI host.
    pub(crate) host: u32,
    /// The logical units that were scanned.
    pub(crate) units: Vec<Unit>,
}

/// A SCSI device of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its directory in sysfs.
    pub(crate) dir: PathBuf,
    /// `running`, `blocked` while the target is away, `transport-offline` when that took too long, `cancel` as it goes.
    pub(crate) state: String,
    /// Who made it, as it says itself.
    pub(crate) vendor: String,
    /// The serial number that it tells itself.
    pub(crate) serial: Option<String>,
    /// The disk, unless it is none or has not been made yet.
    pub(crate) block: Option<Block>,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// `sdX`
    pub(crate) name: String,
    /// Its major and minor number.
    pub(crate) number: (u32, u32),
}

/// A disk that the kernel serves to a Xen domain, whatever xenstore says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    pub(crate) domain: u32,
    pub(crate) vdev: u32,
    /// What is behind it; `None` when it was never set up.
    pub(crate) number: Option<(u32, u32)>,
}

impl Session {
    /// The unit that is the volume of this serial number.
    pub(crate) fn unit(&self, serial: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.block.is_some() && unit.tells(serial))
    }

    /// The block devices of all its units.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.units.iter().filter_map(|unit| unit.block.as_ref())
    }
}

impl Unit {
    /// Whether this serial number is what it tells, or would if its target had room for all of it.
    fn tells(&self, serial: &str) -> bool {
        let shown = if self.vendor == IET.0 { serial_by_iet(serial) } else { serial };
        self.serial.as_deref() == Some(shown)
    }
}

/// What a disk of IET tells of this serial number.
pub(in crate::delegate::vmm) fn serial_by_iet(serial: &str) -> &str {
    serial.len().checked_sub(IET.1).and_then(|cut| serial.get(cut..)).unwrap_or(serial)
}

impl Sysfs {
    /// Every iSCSI session of the node, ours and others' alike. One that ends meanwhile is left out.
    pub(crate) async fn sessions(&self) -> Result<Vec<Session>> {
        let own = self.clone();
        blocking(move || own.read_sessions()).await
    }

    /// Every disk that the kernel serves to a Xen domain.
    pub(crate) async fn backends(&self) -> Result<Vec<Backend>> {
        let own = self.clone();
        blocking(move || own.read_backends()).await
    }

    fn read_sessions(&self) -> Vec<Session> {
        let class = self.sys.join("class/iscsi_session");
        let mut sessions: Vec<Session> =
            names(&class).iter().filter_map(|name| self.read_session(&class.join(name), name)).collect();
        sessions.sort_by_key(|session| session.id);
        sessions
    }

    fn read_session(&self, dir: &Path, name: &str) -> Option<Session> {
        let id: u32 = name.strip_prefix("session")?.parse().ok()?;
        let device = dir.join("device").canonicalize().ok()?;
        let host =
            device.components().rev().find_map(|part| part.as_os_str().to_str()?.strip_prefix("host")?.parse().ok())?;
        let connection = self.sys.join(format!("class/iscsi_connection/connection{id}:0"));
        let address = text(&connection.join("persistent_address")).and_then(|text| text.parse::<IpAddr>().ok());
        let port = text(&connection.join("persistent_port")).and_then(|text| text.parse::<u16>().ok());
        let targets = names(&device).into_iter().filter(|name| name.starts_with("target"));
        let units = targets.flat_map(|target| {
            let target = device.join(target);
            let units = names(&target).into_iter().filter(|name| is_hctl(name));
            units.map(|unit| read_unit(target.join(unit))).collect::<Vec<_>>()
        });
        Some(Session {
            id,
            iqn: text(&dir.join("targetname"))?,
            portal: address.zip(port).map(SocketAddr::from),
            logged_in: text(&dir.join("state")).as_deref() == Some("LOGGED_IN"),
            host,
            units: units.collect(),
        })
    }

    /// The kernel's handle of the transport that the sessions of the node's default interface are of; none while there is none.
    pub(crate) async fn tcp_transport(&self) -> Result<Option<u64>> {
        let path = self.sys.join("class/iscsi_transport/tcp/handle");
        Ok(blocking(move || text(&path)).await?.and_then(|handle| handle.parse().ok()))
    }

    fn read_backends(&self) -> Vec<Backend> {
        let bus = self.sys.join("bus/xen-backend/devices");
        let backend = |name: &String| {
            let (domain, vdev) = name.strip_prefix("vbd-")?.split_once('-')?;
            let number = text(&bus.join(name).join("physical_device")).and_then(|text| hex_number(&text));
            // All zeros before the hotplug script has told the kernel.
            let number = number.filter(|number| *number != (0, 0));
            Some(Backend { domain: domain.parse().ok()?, vdev: vdev.parse().ok()?, number })
        };
        names(&bus).iter().filter_map(backend).collect()
    }

    /// The directory of a block device.
    fn block_dir(&self, block: &Block) -> PathBuf {
        self.sys.join("class/block").join(&block.name)
    }

    /// Whether requests are with the device: reads and writes that it has not answered. `false` when it is gone.
    pub(crate) async fn in_flight(&self, block: &Block) -> Result<bool> {
        let path = self.block_dir(block).join("inflight");
        let counts = blocking(move || text(&path)).await?;
        Ok(counts.is_some_and(|counts| counts.split_whitespace().any(|count| count != "0")))
    }

    /// What of this node itself stands on the disk or its partitions: `dm-3` when LVM has found a guest's volume group.
    pub(crate) async fn holders(&self, block: &Block) -> Result<Vec<String>> {
        let (dir, disk) = (self.block_dir(block), block.name.clone());
        blocking(move || {
            let parts = names(&dir).into_iter().filter(|name| name.starts_with(&disk)).map(|part| dir.join(part));
            let all = parts.chain([dir.clone()]);
            all.flat_map(|part| names(&part.join("holders"))).collect()
        })
        .await
    }

    /// The size that the kernel has of a disk, in bytes.
    pub(crate) async fn size(&self, block: &Block) -> Result<Option<u64>> {
        let path = self.block_dir(block).join("size");
        let sectors = blocking(move || text(&path)).await?;
        Ok(sectors.and_then(|sectors| sectors.parse::<u64>().ok()).and_then(|sectors| sectors.checked_mul(SECTOR)))
    }

    /// Writes an attribute. The kernel does at once what it is told so, and that may take as long as a target that is away:
    /// the thread that waits for it is not one of the runtime's, which would have to wait for it too when it ends.
    pub(crate) async fn write(&self, path: PathBuf, value: String, limit: Duration) -> Result<()> {
        let shown = path.display().to_string();
        let (done, result) = tokio::sync::oneshot::channel();
        let write = move || {
            let written = std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| file.write_all(value.as_bytes()));
            // Nobody may be waiting any more.
            let _ = done.send(written);
        };
        std::thread::Builder::new()
            .spawn(write)
            .map_err(|e| DelegateError::retry(format!("cannot start a thread: {e}")))?;
        match tokio::time::timeout(limit, result).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(e))) => Err(DelegateError::retry(format!("cannot write to {shown}: {e}"))),
            Ok(Err(_)) => Err(DelegateError::retry(format!("cannot write to {shown}"))),
            Err(_) => Err(DelegateError::retry(format!("{shown} takes longer than {limit:?}"))),
        }
    }

    /// Where a session's host is told what to scan for.
    pub(crate) fn scan_file(&self, session: &Session) -> PathBuf {
        self.sys.join(format!("class/scsi_host/host{}/scan", session.host))
    }
}

fn read_unit(dir: PathBuf) -> Unit {
    let name = names(&dir.join("block")).into_iter().next();
    let block = name.and_then(|name| {
        let number = number(&text(&dir.join("block").join(&name).join("dev"))?)?;
        Some(Block { name, number })
    });
    Unit {
        state: text(&dir.join("state")).unwrap_or_default(),
        vendor: text(&dir.join("vendor")).unwrap_or_default(),
        serial: bytes(&dir.join("vpd_pg80")).as_deref().and_then(serial),
        block,
        dir,
    }
}

/// Reads the unit serial number page (SPC-5, section 7.7.18): a header of four bytes, the last two the length of what
/// follows. Targets pad it with NULs (LIO) or blanks (tgt).
pub(super) fn serial(page: &[u8]) -> Option<String> {
    let ([_, 0x80, high, low], rest) = page.split_first_chunk::<4>()? else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let text = std::str::from_utf8(&rest[..length]).ok()?;
    Some(text.trim_matches(|c: char| c == '\0' || c.is_ascii_whitespace()).to_owned())
}

/// `HOST:CHANNEL:TARGET:LUN`
pub(super) fn is_hctl(name: &str) -> bool {
    let parts: Vec<&str> = name.split(':').collect();
    parts.len() == 4 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// `MAJOR:MINOR`
pub(super) fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `MAJOR:MINOR` in hexadecimal digits, as Xen writes it.
pub(crate) fn hex_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
}

/// The entries of a directory, in order; none when it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok().filter(|bytes| bytes.len() <= MOST)
}

fn text(path: &Path) -> Option<String> {
    Some(String::from_utf8(bytes(path)?).ok()?.trim().to_owned())
}

/// Runs what reads files on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let cannot = |e| DelegateError::retry(format!("cannot look at the node: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_read_without_its_padding_and_from_any_bytes() {
        let page = |text: &[u8]| [&[0, 0x80, 0, u8::try_from(text.len()).unwrap()], text].concat();
        let lio = page(b"vol0123456789abcdef0\0");
        let tgt = page(b"                vol0123456789abcdef0");
        for bytes in [&lio, &tgt] {
            assert_eq!(serial(bytes).as_deref(), Some("vol0123456789abcdef0"));
        }
        assert_eq!(serial(&[0, 0x80, 0xff, 0xff, b'x']).as_deref(), Some("x"));
        for bytes in [&b""[..], &[0, 0x80, 0], &[0, 0x83, 0, 1, b'x'], &[0, 0x80, 0, 1, 0xff]] {
            assert_eq!(serial(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_disk_of_iet_is_known_by_the_end_of_the_serial_it_has_room_for_and_no_other_disk_is() {
        let dir = tempfile::tempdir().unwrap();
        let unit = |vendor: &str, told: &str| {
            std::fs::create_dir_all(dir.path().join("block/sdb")).unwrap();
            std::fs::write(dir.path().join("block/sdb/dev"), "8:16\n").unwrap();
            std::fs::write(dir.path().join("vendor"), format!("{vendor:8}\n")).unwrap();
            let page = [&[0, 0x80, 0, u8::try_from(told.len()).unwrap()], told.as_bytes()].concat();
            std::fs::write(dir.path().join("vpd_pg80"), page).unwrap();
            read_unit(dir.path().to_owned())
        };
        for (vendor, told, serial, known) in [
            ("IET", "23456789abcdef0", "vol0123456789abcdef0", true),
            ("IET", "vol0123abcd", "vol0123abcd", true),
            ("LIO-ORG", "23456789abcdef0", "vol0123456789abcdef0", false),
            ("LIO-ORG", "vol0123456789abcdef0", "vol0123456789abcdef0", true),
            ("IET", "23456789abcdef1", "vol0123456789abcdef0", false),
            ("IET", "3456789abcdef0", "vol0123456789abcdef0", false),
            ("IET", "", "vol0123456789abcdef0", false),
            ("IET", "", "vol0123abcd", false),
        ] {
            assert_eq!(unit(vendor, told).tells(serial), known, "{vendor} {told}");
        }
    }

    #[test]
    fn numbers_and_addresses_of_devices_are_read_and_nonsense_is_not() {
        assert_eq!((number("8:16"), hex_number("ca:10")), (Some((8, 16)), Some((202, 16))));
        for text in ["", ":", "8", "8:", "8:x", "8:16:1", "-1:2"] {
            assert_eq!(number(text), None, "{text}");
        }
        assert!(is_hctl("2:0:0:1"));
        for name in ["", "2:0:0", "2:0:0:", "target2:0:0", "2:0:0:1:2", "power"] {
            assert!(!is_hctl(name), "{name}");
        }
    }
}
