//! The drivers of a hypervisor node.

use std::path::PathBuf;

use serde::Deserialize;

use super::seconds;

/// The drivers of a hypervisor node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vmm {
    /// What the delegate must remember.
    pub data_dir: PathBuf,
    /// What runs the machines.
    pub hypervisor: Hypervisor,
}

/// The driver of a hypervisor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Hypervisor {
    /// QEMU, with the initiator inside each machine.
    Qemu(Qemu),
    /// Xen, with open-iscsi as the initiator of the whole node.
    Xen(Xen),
}

/// The Xen driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xen {
    /// The program that attaches and detaches disks.
    pub toolstack: Toolstack,
    /// The socket of xenstored.
    pub xenstore: PathBuf,
    /// Seconds a detach waits for the guest before it answers that it is busy, beside what the program itself takes.
    #[serde(deserialize_with = "seconds")]
    pub detach_wait_s: u64,
    /// The initiator.
    pub open_iscsi: OpenIscsi,
}

impl Default for Xen {
    fn default() -> Self {
        Self {
            toolstack: Toolstack::Xl,
            xenstore: "/run/xenstored/socket".into(),
            detach_wait_s: detach_wait_s(),
            open_iscsi: OpenIscsi::default(),
        }
    }
}

/// A toolstack of Xen. Both take the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Toolstack {
    /// `xl`, since Xen 4.1.
    Xl,
    /// `xm` of xend, until Xen 4.4.
    Xm,
}

/// The initiator of a hypervisor node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenIscsi {
    /// The file with the node's name as an initiator.
    pub initiator_name: PathBuf,
    /// The directory that iscsiadm keeps its records of targets in.
    pub nodes_dir: PathBuf,
    /// Seconds that a guest's I/O waits for a target that is away; then it fails.
    pub replacement_timeout_s: u32,
}

impl Default for OpenIscsi {
    fn default() -> Self {
        Self {
            initiator_name: "/etc/iscsi/initiatorname.iscsi".into(),
            nodes_dir: "/etc/iscsi/nodes".into(),
            replacement_timeout_s: 120,
        }
    }
}

/// The QEMU driver.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// The directory of the machines' QMP sockets: `NAME.qmp` is the socket of machine NAME.
    pub qmp_dir: PathBuf,
    /// The naming authority that initiator names start with; the machine's name follows after a colon.
    pub iqn_prefix: String,
    /// Seconds a detach waits for the guest before it answers that it is busy.
    #[serde(default = "detach_wait_s", deserialize_with = "seconds")]
    pub detach_wait_s: u64,
}

fn detach_wait_s() -> u64 {
    8
}
