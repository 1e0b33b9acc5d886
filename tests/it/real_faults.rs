//! Whole workflows on real parts that go wrong: volumes of a tgtd behind a `tgtadm` that does, in a guest of QEMU. Whatever one of its
//! commands does, the caller gets what they asked for and the guest its bytes; when all is deleted, an audit finds nothing that
//! differs, and nothing is left on the nodes.

use std::time::Duration;

use vbs::delegate::sim::SimCloud;
use vbs::dev::console;
use vbs::dev::guests::Guest;
use vbs::ids::VolumeId;

use crate::support::cli::Cli;
use crate::support::cloud::{ACCOUNT, Cloud};
use crate::support::tgtd::{Shim, Tgtd};
use crate::support::{postgres, walk};
use crate::vmm_qemu::{boot, guest_image};

/// What a command does, and at every which of them. One that hangs costs the driver's ten seconds.
const KINDS: [(&str, usize); 7] = [
    ("refuses", 3),
    ("fails though done", 3),
    ("lies", 2),
    ("babbles", 4),
    ("is killed before", 5),
    ("is killed after", 4),
    ("hangs though done", 9),
];

struct Stage {
    cloud: Cloud,
    cli: Cli,
    guest: Guest,
    instance: String,
    shim: Shim,
    tgtd: Tgtd,
}

impl Stage {
    /// What a volume goes through from its attach to its end, with a fault on the way. Gives the commands of the target.
    async fn life(&self, fault: Option<(usize, &str)>) -> Vec<String> {
        let (cloud, case) = (&self.cloud, format!("{fault:?}"));
        let volume = cloud.volume().await;
        let serial = VolumeId::parse(&volume).unwrap().serial();
        self.shim.plan(fault);
        cloud.attach(&volume, &self.instance, "/dev/sdf").await;
        let device = self.in_guest(&format!("disk {serial}")).await;
        self.in_guest(&format!("write-numbered {device} 100 50 && blockdev --flushbufs {device}")).await;
        let written = self.in_guest(&format!("md5 {device} 1048576")).await;

        cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "available").await;
        let (commands, pending) = (self.shim.calls(), self.shim.is_pending());
        self.shim.plan(None);
        assert!(!pending, "{case}: it has not come");
        // By another target, to the same bytes.
        cloud.attach(&volume, &self.instance, "/dev/sdg").await;
        let device = self.in_guest(&format!("disk {serial}")).await;
        assert_eq!(self.in_guest(&format!("md5 {device} 1048576")).await, written, "{case}");
        cloud.client.ok("DetachVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "available").await;
        cloud.client.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
        cloud.volume_becomes(&volume, "gone").await;
        // What a command only claimed to have done, the sweeper does.
        cloud.sweep().await;
        assert_eq!(self.cli.ok(&["audit"]), "", "{case}");
        walk::nothing_is_left(cloud).await;
        commands
    }

    async fn in_guest(&self, command: &str) -> String {
        let answer = console::run(&self.guest.serial_socket(), command, Duration::from_secs(60)).await;
        let (output, status) = answer.unwrap_or_else(|e| panic!("{command}: {e}"));
        assert_eq!(status, 0, "{command}: {output}");
        output.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_and_a_detach_come_to_their_end_whatever_a_command_of_the_target_does() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::open(dir.path(), &dir.path().join("qmp"), 1).await.unwrap();
    let _machine = boot(&guest, &guest_image().await);
    let (tgtd, shim) = (Tgtd::start(), Shim::new());
    guest.wait_ready(Duration::from_secs(120)).await.unwrap();
    let (at, tgt) = (dir.path().display(), tgtd.config());
    let nodes = format!(
        r#"
        [[volume_node]]
        name = "storage-1"
        zone = "us-east-1a"
        [volume_node.delegate.local]
        data_dir = "{at}/storage"
        target = {{ tgt = {{ tgtadm = "{}", socket_dir = "{}", control_port = {}, portal = "{}" }} }}
        [[vmm_node]]
        name = "vmm-1"
        zone = "us-east-1a"
        default_owner = "{ACCOUNT}"
        [vmm_node.delegate.local]
        data_dir = "{at}/vmm"
        hypervisor = {{ qemu = {{ qmp_dir = "{at}/qmp", iqn_prefix = "iqn.2026-01.test.vbs" }} }}
        "#,
        shim.program().display(),
        tgt.socket_dir.display(),
        tgt.control_port,
        tgt.portal,
    );
    let calm = "workers = { sweep_s = 3600, poll_s = 1 }";
    let cloud = Cloud::join_nodes(&postgres::database().await, &SimCloud::new(), calm, &nodes).await;
    let instance = cloud.instances().await.remove(0);
    let stage = Stage { cli: Cli::of(&cloud), cloud, guest, instance, shim, tgtd };

    stage.shim.forget_calls();
    let commands = stage.life(None).await;
    assert!(commands.len() >= 12, "{commands:?}");
    let mut cases = 0;
    for (kind, every) in KINDS {
        for at in (0..commands.len()).step_by(every) {
            stage.shim.forget_calls();
            stage.life(Some((at, kind))).await;
            cases += 1;
        }
    }
    stage.life(None).await;
    for mode in ["target", "account"] {
        let left = stage.tgtd.tgtadm(&["--mode", mode, "--op", "show"]);
        assert!(!left.contains("vbs") && !left.contains("vol-"), "{left}");
    }
    let (kinds, asked) = (KINDS.len(), commands.len());
    println!("{cases} cases: {kinds} kinds of fault at {asked} commands ({})", commands.join(", "));
}
