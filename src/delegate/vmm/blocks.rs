//! What a volume is made of inside a QEMU machine, and how to read it back from the monitor.
//!
//! From the guest down, all named after the volume's serial, `vol` and the id's digits:
//!
//! | name | what |
//! |---|---|
//! | device `SERIAL` | virtio-blk-pci, what the guest sees |
//! | node `SERIAL.disk` | `raw`, does nothing but have a child that can be exchanged under the guest's feet |
//! | node `SERIAL` | `iscsi`, the session with the target |
//! | object `SERIAL.chap` | the CHAP secret |
//! | node `SERIAL.cut` | after a forced detach, the child of `SERIAL.disk`: answers everything with an I/O error |

use serde_json::Value;

use crate::delegate::{ObservedDisk, Portal};
use crate::ids::VolumeId;

/// The names that belong to one volume.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// The iSCSI node and the device.
    pub(super) serial: String,
    pub(super) disk: String,
    pub(super) cut: String,
    pub(super) chap: String,
}

impl Names {
    pub(super) fn of(volume: &VolumeId) -> Self {
        let serial = volume.serial();
        Self { disk: format!("{serial}.disk"), cut: format!("{serial}.cut"), chap: format!("{serial}.chap"), serial }
    }
}

/// The volume that a node or device of this name belongs to, when the name is a bare serial.
fn volume(name: &str) -> Option<VolumeId> {
    VolumeId::parse(&format!("vol-{}", name.strip_prefix("vol")?)).ok()
}

/// What there is of one volume in a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// Where the iSCSI node is logged in to.
    pub(super) session: Option<Session>,
    /// What is under the raw node, when there is one.
    pub(super) disk: Option<Under>,
    /// The raw node's size in bytes, which is what the guest sees.
    pub(super) disk_bytes: Option<u64>,
    /// The node of a forced detach.
    pub(super) cut: bool,
    /// The device, be it asked to leave or not.
    pub(super) device: bool,
}

/// An iSCSI session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) iqn: String,
    pub(super) portal: Portal,
    /// The unit's size in bytes, as the node had it when it was opened or resized.
    pub(super) size_bytes: u64,
}

/// What a raw node stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Under {
    /// The target of this name.
    Target(String),
    /// Nothing that could reach the volume.
    Nothing,
}

/// Reads the parts of one volume from `query-named-block-nodes` and `qom-list /machine/peripheral`.
pub(super) fn parts(names: &Names, nodes: &Value, devices: &Value) -> Parts {
    let node = |name: &str| list(nodes).iter().find(|n| n["node-name"] == name);
    Parts {
        session: node(&names.serial).and_then(session),
        disk: node(&names.disk).map(under),
        disk_bytes: node(&names.disk).and_then(|node| node["image"]["virtual-size"].as_u64()),
        cut: node(&names.cut).is_some(),
        device: list(devices).iter().any(|d| d["name"] == names.serial.as_str()),
    }
}

/// Reads every disk of ours: nodes that are logged in, with whether a guest has them. A device whose volume was taken
/// away by force is no disk of ours any more.
pub(super) fn disks(nodes: &Value, devices: &Value) -> Vec<ObservedDisk> {
    let logged_in = list(nodes).iter().filter_map(|n| volume(n["node-name"].as_str()?));
    logged_in
        .filter_map(|volume| {
            let parts = parts(&Names::of(&volume), nodes, devices);
            let iqn = parts.session?.iqn;
            let attached = parts.device && matches!(&parts.disk, Some(Under::Target(under)) if *under == iqn);
            Some(ObservedDisk { volume, iqn, attached })
        })
        .collect()
}

/// The portals of every session of the machine, ours and others' alike, each once.
pub(super) fn portals(nodes: &Value) -> Vec<Portal> {
    let mut addresses: Vec<String> = list(nodes).iter().filter_map(|n| Some(session(n)?.portal.address)).collect();
    addresses.sort();
    addresses.dedup();
    addresses.into_iter().map(|address| Portal { address }).collect()
}

/// How much a guest has written to a device, from `query-blockstats`: the operations that change what the disk holds, and
/// their bytes. `None` when the machine has no such device.
pub(super) fn writes(names: &Names, stats: &Value) -> Option<[u64; 4]> {
    let path = format!("/machine/peripheral/{}/", names.serial);
    let entry = list(stats).iter().find(|e| e["qdev"].as_str().is_some_and(|q| q.starts_with(&path)))?;
    let count = |name: &str| entry["stats"][name].as_u64();
    Some([count("wr_operations")?, count("wr_bytes")?, count("unmap_operations")?, count("unmap_bytes")?])
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The options that a node was opened with: QEMU gives them as JSON in place of a file name.
fn options(node: &Value) -> Option<Value> {
    serde_json::from_str(node["image"]["filename"].as_str()?.strip_prefix("json:")?).ok()
}

fn session(node: &Value) -> Option<Session> {
    let options = options(node)?;
    let text = |name: &str| options[name].as_str().map(str::to_owned);
    (options["driver"] == "iscsi").then_some(())?;
    Some(Session {
        iqn: text("target")?,
        portal: Portal { address: text("portal")? },
        size_bytes: node["image"]["virtual-size"].as_u64()?,
    })
}

fn under(node: &Value) -> Under {
    let target = options(node).and_then(|o| {
        let file = &o["file"];
        (file["driver"] == "iscsi").then(|| file["target"].as_str().map(str::to_owned)).flatten()
    });
    target.map_or(Under::Nothing, Under::Target)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SERIAL: &str = "vol0123456789abcdef0";
    const IQN: &str = "iqn.2026-01.t:v1";

    /// As QEMU 7.2 answers, without the fields that nobody reads.
    fn node(name: &str, driver: &str, filename: &str) -> Value {
        json!({"node-name": name, "drv": driver, "ro": false,
            "image": {"virtual-size": 67_108_864, "filename": filename, "format": driver}})
    }

    fn iscsi() -> Value {
        node(
            SERIAL,
            "iscsi",
            r#"json:{"password-secret": "x.chap", "lun": 1, "portal": "127.0.0.1:55911", "initiator-name": "iqn.x:h1", "driver": "iscsi", "transport": "tcp", "user": "u1", "target": "iqn.2026-01.t:v1"}"#,
        )
    }

    fn raw_over_iscsi() -> Value {
        node(
            "vol0123456789abcdef0.disk",
            "raw",
            r#"json:{"driver": "raw", "file": {"password-secret": "x.chap", "lun": 1, "portal": "127.0.0.1:55911", "initiator-name": "iqn.x:h1", "driver": "iscsi", "transport": "tcp", "user": "u1", "target": "iqn.2026-01.t:v1"}}"#,
        )
    }

    fn raw_after_a_cut() -> Value {
        node(
            "vol0123456789abcdef0.disk",
            "raw",
            r#"json:{"driver": "raw", "file": {"inject-error.0.immediately": false, "inject-error.0.once": false, "image": {"driver": "null-co", "size": 67108864}, "driver": "blkdebug", "inject-error.0.event": "none", "inject-error.0.errno": 5}}"#,
        )
    }

    fn device() -> Value {
        json!([{"name": "type", "type": "string"}, {"name": SERIAL, "type": "child<virtio-blk-pci>"}])
    }

    #[test]
    fn a_disk_is_attached_only_while_its_device_stands_on_its_target() {
        let volume = VolumeId::parse("vol-0123456789abcdef0").unwrap();
        let others = node("other", "iscsi", "json:{\"driver\": \"iscsi\", \"target\": \"x\", \"portal\": \"y\"}");
        assert_eq!(portals(&json!([raw_over_iscsi(), iscsi(), iscsi()])).len(), 1);
        let disk = |attached| vec![ObservedDisk { volume: volume.clone(), iqn: IQN.into(), attached }];
        assert_eq!(disks(&json!([raw_over_iscsi(), iscsi(), others]), &device()), disk(true));
        assert_eq!(disks(&json!([raw_over_iscsi(), iscsi()]), &json!([])), disk(false));
        assert_eq!(disks(&json!([raw_after_a_cut(), iscsi()]), &device()), disk(false));
        assert_eq!(disks(&json!([raw_after_a_cut()]), &device()), vec![]);
    }

    #[test]
    fn the_parts_of_a_volume_are_told_apart() {
        let names = Names::of(&VolumeId::parse("vol-0123456789abcdef0").unwrap());
        let found = parts(&names, &json!([iscsi(), raw_over_iscsi()]), &device());
        assert_eq!(
            found.session,
            Some(Session {
                iqn: IQN.into(),
                portal: Portal { address: "127.0.0.1:55911".into() },
                size_bytes: 64 << 20
            })
        );
        assert_eq!((found.disk, found.cut, found.device), (Some(Under::Target(IQN.into())), false, true));
        assert_eq!(parts(&names, &json!([raw_after_a_cut()]), &json!([])).disk, Some(Under::Nothing));
        assert_eq!(parts(&names, &json!("nonsense"), &json!(null)), Parts::default());
    }

    #[test]
    fn writes_are_counted_for_the_device_and_for_no_other() {
        let names = Names::of(&VolumeId::parse("vol-0123456789abcdef0").unwrap());
        let entry = |serial: &str| {
            json!({"qdev": format!("/machine/peripheral/{serial}/virtio-backend"), "stats": {"wr_operations": 3,
                "wr_bytes": 12288, "unmap_operations": 1, "unmap_bytes": 4096, "rd_operations": 9}})
        };
        assert_eq!(writes(&names, &json!([entry("vol99999999"), entry(SERIAL)])), Some([3, 12288, 1, 4096]));
        assert_eq!(writes(&names, &json!([entry("vol0123456789abcdef01")])), None);
    }
}
