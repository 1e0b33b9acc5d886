//! What must hold of whatever a QEMU monitor says: see [`crate::fuzzing`].

use serde_json::Value;

use super::blocks::{self, Names};
use super::inquiry;
use super::qmp::{self, QmpError};
use super::throttle;
use crate::ids::VolumeId;

/// Lines of JSON: nodes, devices, statistics (or devices with their limits), and an answer. And what `iscsi-inq` prints.
pub fn monitored(data: &[u8]) {
    let said = String::from_utf8_lossy(data);
    if let Some(serial) = inquiry::serial(&said) {
        assert!(!serial.is_empty() && serial.trim() == serial && said.contains(serial));
    }
    let mut lines = data.split(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap_or_default());
    let mut line = || -> Value { lines.next().unwrap_or_default() };
    let (nodes, devices, stats, answer) = (line(), line(), line(), line());
    for disk in blocks::disks(&nodes, &devices) {
        let names = Names::of(&disk.volume);
        let parts = blocks::parts(&names, &nodes, &devices);
        // A disk is ours by its name alone; a guest has it only when there is a device, too.
        assert!(parts.session.is_some_and(|session| session.iqn == disk.iqn));
        assert!(!disk.attached || parts.device);
    }
    let portals = blocks::portals(&nodes);
    assert!(portals.is_sorted_by(|a, b| a.address < b.address));
    if let Ok(volume) = VolumeId::parse("vol-0123456789abcdef0") {
        let names = Names::of(&volume);
        let _ = (blocks::writes(&names, &stats), blocks::parts(&names, &nodes, &devices));
        if let Some((device, _)) = throttle::device(&names, &stats) {
            assert!(device.contains(&names.serial), "limits are set on no other device");
        }
    }
    let (id, event) = (answer.get("id") == Some(&1.into()), answer.get("event").is_some());
    match qmp::returned("query-block", 1, answer) {
        Ok(None) => assert!(event && !id),
        Ok(Some(_)) | Err(QmpError::Refused { .. }) => assert!(id),
        Err(error) => assert!(!id && !event && matches!(error, QmpError::Broken(_))),
    }
}
