//! Holds a guest's disk to its limits, by QEMU's own throttle: a leaky bucket for operations and one for bytes, reads and
//! writes together.

use serde_json::{Value, json};

use super::blocks::Names;
use super::qemu::{error, portal_answers};
use super::qmp::Qmp;
use crate::delegate::{DelegateError, DiskSpec, Limits, Portal, Result};

/// The bytes of an operation that counts for one.
const OPERATION: u64 = 256 << 10;

/// Sets the limits of a device that the machine has. Setting them drains the device, so it is done only when they are others.
pub(super) async fn hold(qmp: &mut Qmp, names: &Names, spec: &DiskSpec, portal: &Portal) -> Result<()> {
    let machine = &spec.machine.name;
    let all = qmp.execute("query-block", json!({})).await.map_err(|e| error(machine, &e))?;
    let Some((device, limits)) = device(names, &all) else {
        return Err(DelegateError::retry(format!("machine {machine} does not show the disk {}", names.serial)));
    };
    if limits == spec.limits {
        return Ok(());
    }
    portal_answers(portal).await?;
    let Limits { iops, bytes_per_second: bps } = spec.limits;
    let mut set = json!({
        "id": device, "iops": iops, "iops_rd": 0, "iops_wr": 0, "bps": bps, "bps_rd": 0, "bps_wr": 0,
    });
    if iops > 0 {
        set["iops_size"] = OPERATION.into();
    }
    qmp.execute("block_set_io_throttle", set).await.map_err(|e| error(machine, &e)).map(drop)
}

/// The volume's device in `query-block`: what QEMU calls it, and its limits.
pub(super) fn device(names: &Names, all: &Value) -> Option<(String, Limits)> {
    let path = format!("/machine/peripheral/{}/", names.serial);
    let entry = all.as_array()?.iter().find(|e| e["qdev"].as_str().is_some_and(|qdev| qdev.starts_with(&path)))?;
    let number = |name: &str| entry["inserted"][name].as_u64().unwrap_or(0);
    let iops = u32::try_from(number("iops")).unwrap_or(u32::MAX);
    Some((entry["qdev"].as_str()?.to_owned(), Limits { iops, bytes_per_second: number("bps") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;

    #[test]
    fn a_device_is_found_by_its_path_with_its_limits() {
        let volume = VolumeId::generate();
        let names = Names::of(&volume);
        let path = |serial: &str| format!("/machine/peripheral/{serial}/virtio-backend");
        let all = json!([
            {"device": "cdrom", "qdev": "/machine/unattached/device[1]"},
            {"qdev": path("vol00000000"), "inserted": {"iops": 1, "bps": 1}},
            {"qdev": path(&names.serial), "inserted": {"iops": 3000, "bps": 0}},
        ]);
        let limits = Limits { iops: 3_000, bytes_per_second: 0 };
        assert_eq!(device(&names, &all), Some((path(&names.serial), limits)));
        assert_eq!(device(&names, &json!([])), None);
    }
}
