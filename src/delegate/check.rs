//! What comes over the wire, before anything is done with it.
//!
//! The gateway makes every name that a delegate is told, but a delegate believes nobody: ids are read as ids ([`crate::ids`]),
//! and what else a call names must look like what a gateway makes, here, at the door, whichever driver is behind it. Drivers
//! look again at what becomes a part of a path or of a command line of theirs.

use std::net::SocketAddr;

use super::wire::{DetachSpec, EndExports, GrowSpec, RestoreCall};
use super::{
    ConnectSpec, CopySpec, DelegateError, DiskSpec, ExportSpec, MachineRef, PauseSpec, Result, SnapshotSpec,
    VolumeSpec, target,
};
use crate::ids::VolumeId;

/// The largest volume of the API is of 64 TiB.
const MOST_BYTES: u64 = 64 << 40;

/// The longest name of a machine, in bytes; Xen takes no longer one.
const LONGEST_MACHINE: usize = 255;

/// The most names of targets in one call; the API has 16 attachments a volume at most.
const MOST_NAMES: usize = 64;

/// The longest pause, in seconds.
const LONGEST_PAUSE: u32 = 600;

/// What of a node's configuration a call is held to.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The naming authority that the names of targets start with, when the node is told.
    pub iqn_prefix: Option<String>,
}

/// What a call names. Refused (Fatal) when that is not of a gateway's making.
pub trait Checked {
    /// Refuses it, or does not.
    fn check(&self, rules: &Rules) -> Result<()>;
}

fn refuse(what: &str, text: &str) -> Result<()> {
    let start: String = text.chars().take(60).collect();
    Err(DelegateError::fatal(format!("{what} {start:?} is not one")))
}

impl Rules {
    fn target(&self, iqn: &str, volume: &VolumeId) -> Result<()> {
        let ours = self
            .iqn_prefix
            .as_ref()
            .is_none_or(|prefix| iqn.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with(':')));
        if ours && target::is_name(iqn) && target::volume_of(iqn).as_ref() == Some(volume) {
            return Ok(());
        }
        refuse(&format!("the name of a target of {volume}"), iqn)
    }

    fn targets(&self, names: &[String], volume: &VolumeId) -> Result<()> {
        if names.len() > MOST_NAMES {
            return refuse("so many names of targets:", &names.len().to_string());
        }
        names.iter().try_for_each(|name| self.target(name, volume))
    }
}

fn size(bytes: u64) -> Result<()> {
    if (1..=MOST_BYTES).contains(&bytes) { Ok(()) } else { refuse("the size of a volume", &bytes.to_string()) }
}

/// Whether a machine may be called so; none is called nothing.
pub fn machine_name(name: &str) -> Result<()> {
    if name.len() > LONGEST_MACHINE || name.contains('/') || name.contains(char::is_control) {
        return refuse("the name of a machine", name);
    }
    Ok(())
}

impl Checked for MachineRef {
    fn check(&self, _: &Rules) -> Result<()> {
        machine_name(&self.name)?;
        if self.uuid.len() > 64 || !self.uuid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return refuse("the uuid of a machine", &self.uuid);
        }
        Ok(())
    }
}

impl Checked for VolumeId {
    fn check(&self, _: &Rules) -> Result<()> {
        Ok(())
    }
}

impl Checked for VolumeSpec {
    fn check(&self, _: &Rules) -> Result<()> {
        size(self.size_bytes)
    }
}

impl Checked for SnapshotSpec {
    fn check(&self, _: &Rules) -> Result<()> {
        Ok(())
    }
}

impl Checked for CopySpec {
    fn check(&self, _: &Rules) -> Result<()> {
        Ok(())
    }
}

/// Where it is read is for [`super::sources`] to say.
impl Checked for RestoreCall {
    fn check(&self, _: &Rules) -> Result<()> {
        size(self.restore.size_bytes)
    }
}

impl Checked for ExportSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        target::check(self)?;
        rules.target(&self.iqn, &self.volume)?;
        rules.targets(&self.beside, &self.volume)
    }
}

impl Checked for EndExports {
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.targets(&self.but, &self.volume)
    }
}

impl Checked for ConnectSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        self.export.check(rules)?;
        self.machine.check(rules)?;
        if is_portal(&self.portal.address) { Ok(()) } else { refuse("the portal", &self.portal.address) }
    }
}

/// Whether an initiator can be sent there: `ADDRESS:PORT`, or a host's name in the address's place.
fn is_portal(text: &str) -> bool {
    if let Ok(portal) = text.parse::<SocketAddr>() {
        return portal.port() != 0 && !portal.ip().is_unspecified() && !portal.ip().is_multicast();
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let letters = host.bytes().any(|b| b.is_ascii_alphabetic());
    let known = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    letters && known && host.len() <= 253 && port.parse::<u16>().is_ok_and(|port| port != 0)
}

impl Checked for DiskSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        rules.target(&self.iqn, &self.volume)?;
        self.machine.check(rules)?;
        let short = self.device.strip_prefix("/dev/").unwrap_or(&self.device);
        if short.len() > 16 || !short.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return refuse("the device", &self.device);
        }
        Ok(())
    }
}

impl Checked for DetachSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        self.disk.check(rules)
    }
}

impl Checked for GrowSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        self.disk.check(rules)?;
        size(self.size_bytes)
    }
}

impl Checked for PauseSpec {
    fn check(&self, rules: &Rules) -> Result<()> {
        self.disk.check(rules)?;
        if self.seconds > LONGEST_PAUSE { refuse("the length of a pause", &self.seconds.to_string()) } else { Ok(()) }
    }
}
