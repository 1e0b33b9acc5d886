//! A guest that is slow to let go of a disk.

use super::super::fake::Monitor;
use super::*;
use crate::ids::VolumeId;

#[tokio::test]
async fn a_guest_is_asked_for_a_disk_once_a_call_and_that_it_was_asked_before_is_no_failure() {
    let (dir, uuid) = (tempfile::tempdir().unwrap(), "00000000-0000-4000-8000-000000000001");
    let monitor = Monitor::start(dir.path(), "vm-1", uuid);
    let settings =
        config::Qemu { qmp_dir: dir.path().to_owned(), iqn_prefix: "iqn.2026-01.t".into(), detach_wait_s: 1 };
    let qemu = Qemu::start(&dir.path().join("data"), &settings).await.unwrap();
    let machine = MachineRef { name: "vm-1".into(), uuid: uuid.into() };
    let (volume, iqn, limits) = (VolumeId::generate(), "iqn.2026-01.t:v1".into(), Limits::default());
    let disk = DiskSpec { volume, iqn, machine, device: "-".into(), limits };
    let session = json!({"driver": "iscsi", "target": disk.iqn, "portal": "127.0.0.1:1"});
    let raw = json!({"driver": "raw", "file": session});
    let node = |name: String, options: &Value| json!({"node-name": name, "image": {"virtual-size": 1024, "filename": format!("json:{options}")}});
    let names = Names::of(&disk.volume);
    monitor.state().nodes = vec![node(names.serial, &session), node(names.disk, &raw)];
    monitor.state().devices.push(disk.volume.serial());

    let detached = async || qemu.ensure_detached(Generation(1), &disk, false).await.unwrap();
    // The machine is looked at again and again meanwhile; a worker that took over from another calls anew.
    for calls in 1..=2 {
        assert_eq!(detached().await, Detach::Busy);
        assert_eq!(monitor.state().unplugs, calls);
    }
    let lets_go = async {
        while monitor.state().unplugs < 3 {
            tokio::task::yield_now().await;
        }
        monitor.state().devices.clear();
    };
    let (gone, ()) = tokio::join!(detached(), lets_go);
    assert_eq!((gone, monitor.state().unplugs), (Detach::Gone, 3));
    assert!(monitor.state().changes.contains(&"blockdev-del".to_owned()));
}
