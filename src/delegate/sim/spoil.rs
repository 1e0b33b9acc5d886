//! What changes on simulated nodes behind the gateways' back: lost, added, or no longer what it was.

use super::{Content, Disk, SimCloud};
use crate::delegate::{ExportSpec, Secret};
use crate::ids::{SnapshotId, VolumeId};

impl SimCloud {
    /// Puts a volume that reads as zeros on a storage node.
    pub fn add_volume(&self, node: &str, volume: &VolumeId, size_bytes: u64) {
        self.put_volume_back(node, volume, (size_bytes, 0));
    }

    /// Lets a volume be gone, as when its disk is not mounted. Gives its size and content.
    pub fn lose_volume(&self, volume: &VolumeId) -> Option<(u64, u64)> {
        let lost = self.state().storages.values_mut().find_map(|node| node.volumes.remove(volume));
        lost.map(|content| (content.size_bytes, content.token))
    }

    /// Puts back what [`Self::lose_volume`] took.
    pub fn put_volume_back(&self, node: &str, volume: &VolumeId, lost: (u64, u64)) {
        let content = Content { size_bytes: lost.0, token: lost.1, torn: false };
        if let Some(node) = self.state().storages.get_mut(node) {
            node.volumes.insert(volume.clone(), content);
        }
    }

    /// Makes a volume as large as nobody asked for.
    pub fn resize_volume(&self, volume: &VolumeId, size_bytes: u64) {
        if let Some(content) = self.state().storages.values_mut().find_map(|node| node.volumes.get_mut(volume)) {
            content.size_bytes = size_bytes;
        }
    }

    /// Puts a snapshot that reads as zeros on a storage node.
    pub fn add_snapshot(&self, node: &str, snapshot: &SnapshotId) {
        if let Some(node) = self.state().storages.get_mut(node) {
            node.snapshots.insert(snapshot.clone(), Content { size_bytes: 1 << 30, token: 0, torn: false });
        }
    }

    /// Lets a snapshot be gone.
    pub fn lose_snapshot(&self, snapshot: &SnapshotId) {
        for node in self.state().storages.values_mut() {
            node.snapshots.remove(snapshot);
        }
    }

    /// Lets a storage node serve a volume to somebody.
    pub fn add_export(&self, node: &str, volume: &VolumeId, iqn: &str) {
        let export = ExportSpec {
            volume: volume.clone(),
            iqn: iqn.to_owned(),
            lun: 1,
            chap_user: "somebody".into(),
            chap_secret: Secret("somebody's".into()),
            initiator_iqn: "iqn.2026-01.sim:somebody".into(),
            beside: Vec::new(),
        };
        if let Some(node) = self.state().storages.get_mut(node) {
            node.exports.insert(iqn.to_owned(), export);
        }
    }

    /// Lets a target be gone.
    pub fn lose_export(&self, iqn: &str) {
        for node in self.state().storages.values_mut() {
            node.exports.remove(iqn);
        }
    }

    /// Takes a part of a target away, such as its access rule, until it is exported again.
    pub fn break_export(&self, iqn: &str) {
        for node in self.state().storages.values_mut().filter(|node| node.exports.contains_key(iqn)) {
            node.broken.insert(iqn.to_owned());
        }
    }

    /// Takes a disk away from a machine, and its log-in with it.
    pub fn lose_disk(&self, machine: &str, volume: &VolumeId) {
        if let Some((_, machine)) = self.state().machine(machine) {
            machine.disks.remove(volume);
        }
    }

    /// Takes a device away from a machine that stays logged in.
    pub fn unplug(&self, machine: &str, volume: &VolumeId) {
        if let Some((_, machine)) = self.state().machine(machine)
            && let Some(Disk { attached, .. }) = machine.disks.get_mut(volume)
        {
            *attached = false;
        }
    }
}
