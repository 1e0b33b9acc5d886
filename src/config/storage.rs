//! The drivers of a storage node.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// The drivers of a storage node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// What the delegate must remember, and with the `file` driver the volumes.
    pub data_dir: PathBuf,
    /// What keeps the bytes.
    #[serde(default)]
    pub volumes: Volumes,
    /// What serves them.
    pub target: Target,
}

/// The driver that keeps volumes and snapshots.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Volumes {
    /// Sparse files under `data_dir`.
    #[default]
    File,
    /// Logical volumes.
    Lvm(Lvm),
}

/// The LVM driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lvm {
    /// The volume group that volumes and snapshots are made in. It must be there.
    pub volume_group: String,
    /// How they lie in it; thin when nothing is said.
    #[serde(default)]
    pub layout: Layout,
}

/// How the LVM driver lays out volumes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Layout {
    /// Thin volumes of a thin pool.
    Thin(Thin),
    /// Linear logical volumes.
    Thick(Thick),
}

impl Default for Layout {
    fn default() -> Self {
        Self::Thin(Thin::default())
    }
}

/// Thin volumes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thin {
    /// The pool; `pool` when nothing is said. It must be there, and zero what it gives out (`lvcreate -Zy`).
    pub pool: String,
    /// How many times the pool's size volumes and snapshots together may promise; 10 when nothing is said.
    pub overcommit: f64,
    /// The share of the pool's data or metadata, in per cent, from which on nothing new is made; 90 when nothing is said.
    pub full_percent: f64,
}

impl Default for Thin {
    fn default() -> Self {
        Self { pool: "pool".into(), overcommit: 10.0, full_percent: 90.0 }
    }
}

/// Linear volumes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thick {
    /// The most MiB a second that zeroing and copying may write; 100 when nothing is said, and 0 sets no limit.
    pub background_mib_s: u64,
}

impl Default for Thick {
    fn default() -> Self {
        Self { background_mib_s: 100 }
    }
}

/// The driver that serves volumes to initiators.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// tgtd, in user space.
    Tgt(Tgt),
    /// The target in the Linux kernel, by configfs.
    Lio(Lio),
    /// The iSCSI Enterprise Target.
    Iet(Iet),
}

/// The LIO target driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lio {
    /// The address and port that targets listen on.
    pub portal: SocketAddr,
    /// Where configfs has the target's directories.
    #[serde(default = "configfs")]
    pub configfs: PathBuf,
}

/// The IET target driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iet {
    /// The address and port that ietd listens on.
    pub portal: SocketAddr,
    /// The program `ietadm`.
    #[serde(default = "ietadm")]
    pub ietadm: PathBuf,
    /// Where the kernel module shows its targets and sessions.
    #[serde(default = "proc_iet")]
    pub proc_dir: PathBuf,
    /// The file that says which initiator may log in to which target (`initiators.allow`). It is the driver's own.
    #[serde(default = "initiators_allow")]
    pub initiators_allow: PathBuf,
}

/// The tgt target driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tgt {
    /// The directory of tgtd's control socket (`TGT_IPC_SOCKET` is `DIR/ipc`).
    pub socket_dir: PathBuf,
    /// tgtd's control port (`-C`): with the directory, it tells one tgtd from another.
    pub control_port: u16,
    /// The address and port that tgtd serves iSCSI on.
    pub portal: SocketAddr,
    /// The program `tgtadm`.
    #[serde(default = "tgtadm")]
    pub tgtadm: PathBuf,
}

fn configfs() -> PathBuf {
    "/sys/kernel/config/target".into()
}

fn tgtadm() -> PathBuf {
    "tgtadm".into()
}

fn ietadm() -> PathBuf {
    "ietadm".into()
}

fn proc_iet() -> PathBuf {
    "/proc/net/iet".into()
}

fn initiators_allow() -> PathBuf {
    "/etc/iet/initiators.allow".into()
}
