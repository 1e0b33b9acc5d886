//! `AttachVolume` to a running guest (file, tgt, QEMU), from the call until a describe shows `attached`, beside the bare
//! commands that make the same disk appear.
//!
//! vbs works on the tgtd and the guest of a `vbs dev`; the bare commands have a tgtd and a guest of their own.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use vbs::delegate::vmm::qmp::{Qmp, QmpError};
use vbs::dev::children::{Children, Spec};
use vbs::dev::guest_image;
use vbs::dev::guests::{Guest, PROGRAM};
use vbs::dev::tgtd::{self, Tgtd};
use vbs::ids::VolumeId;

use crate::Result;
use crate::client::{Client, element};
use crate::process::{Process, free_address};
use crate::report::{Report, Target, median};

const TURNS: usize = 7;
/// Guests boot under emulation.
const BOOT: Duration = Duration::from_secs(150);
/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
const IQN_PREFIX: &str = "iqn.2026-01.localhost.bench";

/// Measures both, in turns.
pub async fn measure(report: &mut Report) -> Result<()> {
    println!("boots two guests, one for the bare commands and one for vbs");
    let mut bare = Bare::start().await?;
    let measured = tokio::select! {
        measured = take_turns(&mut bare) => measured,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    bare.stop().await?;
    let (bare_ms, vbs_ms) = measured?;
    report.heading("AttachVolume to a running guest (file, tgt, QEMU)");
    report.figure("the bare commands", format!("{bare_ms:.0} ms"));
    report.figure("vbs, from the call until a describe shows attached", format!("{vbs_ms:.0} ms"));
    report.ratio("vbs over the bare commands", "", vbs_ms - bare_ms, " ms", Target::AtMost(150.0));
    Ok(())
}

/// The medians of both, in milliseconds.
async fn take_turns(bare: &mut Bare) -> Result<(f64, f64)> {
    let dev = Dev::start().await?;
    bare.guest.wait_ready(BOOT).await?;
    let (mut by_hand, mut by_vbs) = (Vec::new(), Vec::new());
    let volume = dev.create_volume().await?;
    for turn in 1..=TURNS {
        by_hand.push(bare.attach_and_detach().await?);
        by_vbs.push(dev.attach_and_detach(&volume).await?);
        println!("  attach {turn} of {TURNS}: bare {:.1} ms, vbs {:.1} ms", by_hand[turn - 1], by_vbs[turn - 1]);
    }
    dev.stop().await?;
    Ok((median(&by_hand), median(&by_vbs)))
}

/// A tgtd and a guest, driven by hand.
struct Bare {
    dir: TempDir,
    children: Children,
    tgtd: Tgtd,
    guest: Guest,
}

impl Bare {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let children = Children::open(dir.path())?;
        // Kept from run to run: unpacking the kernel takes longer than booting it.
        let image = guest_image::ensure(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image")).await?;
        let guest = Guest::open(dir.path(), &dir.path().join("qmp"), 1).await?;
        let args = guest.args(&image);
        let tgtd = tgtd::start(dir.path(), &children).await?;
        let program = find(PROGRAM)?;
        let spec = Spec { name: guest.name.clone(), program, args, env: Vec::new(), user: None };
        children.adopt_or_spawn(&spec)?;
        Ok(Self { dir, children, tgtd, guest })
    }

    /// Makes the disk appear and tells how many milliseconds that took; then makes it go.
    async fn attach_and_detach(&self) -> Result<f64> {
        let volume = VolumeId::generate();
        let file = self.dir.path().join(volume.as_str());
        std::fs::File::create(&file)?.set_len(1 << 30)?;
        let serial = volume.serial();
        let (target, user) = (format!("{IQN_PREFIX}:{volume}"), format!("user-{serial}"));
        let initiator = format!("{IQN_PREFIX}:vm-1");

        let start = Instant::now();
        self.export(&file, &serial, &target, &user, &initiator).await?;
        let mut qmp = self.qmp().await?;
        let secret = json!({"qom-type": "secret", "id": "secret", "data": "secretsecret12"});
        qmp.execute("object-add", secret).await?;
        let node = json!({
            "driver": "iscsi", "node-name": serial, "discard": "unmap", "transport": "tcp",
            "portal": self.tgtd.config().portal.to_string(), "target": target, "lun": 1,
            "user": user, "password-secret": "secret", "initiator-name": initiator,
        });
        qmp.execute("blockdev-add", node).await?;
        let device = json!({
            "driver": "virtio-blk-pci", "id": serial, "drive": serial, "serial": serial,
            "werror": "report", "rerror": "report",
        });
        qmp.execute("device_add", device).await?;
        let took = start.elapsed();

        self.let_the_guest_see().await;
        qmp.execute("device_del", json!({"id": serial})).await?;
        // The node can go once the guest has let go of the device.
        until("the bare detach", async || match qmp.execute("blockdev-del", json!({"node-name": serial})).await {
            Ok(_) => Ok(true),
            Err(e) if e.says("is in use") => Ok(false),
            Err(e) => Err(e.into()),
        })
        .await?;
        qmp.execute("object-del", json!({"id": "secret"})).await?;
        // tgtd notices the end of a session a moment after it.
        until("the bare un-export", async || {
            Ok(self.tgtadm(&["--mode", "target", "--op", "delete", "--tid", "1"]).await.is_ok())
        })
        .await?;
        self.tgtadm(&["--mode", "account", "--op", "delete", "--user", &user]).await?;
        std::fs::remove_file(file)?;
        Ok(took.as_secs_f64() * 1e3)
    }

    async fn export(&self, file: &Path, serial: &str, target: &str, user: &str, initiator: &str) -> Result<()> {
        let file = crate::world::path_text(file)?;
        let params = format!("vendor_id=VBS,product_id=VOLUME,scsi_sn={serial},scsi_id={serial},thin_provisioning=1");
        let unit = ["--mode", "logicalunit", "--tid", "1", "--lun", "1"];
        let account = ["--mode", "account", "--user", user];
        self.tgtadm(&["--mode", "target", "--op", "new", "--tid", "1", "--targetname", target]).await?;
        self.tgtadm(&[&unit[..], &["--op", "new", "--backing-store", file, "--bstype", "rdwr"]].concat()).await?;
        self.tgtadm(&[&unit[..], &["--op", "update", "--params", &params]].concat()).await?;
        self.tgtadm(&[&account[..], &["--op", "new", "--password", "secretsecret12"]].concat()).await?;
        self.tgtadm(&[&account[..], &["--op", "bind", "--tid", "1"]].concat()).await?;
        self.tgtadm(&["--mode", "target", "--op", "bind", "--tid", "1", "-Q", initiator]).await
    }

    async fn tgtadm(&self, args: &[&str]) -> Result<()> {
        let config = self.tgtd.config();
        let mut command = Command::new("tgtadm");
        command.args(["-C", &config.control_port.to_string(), "--lld", "iscsi"]).args(args);
        let output = command.env("TGT_IPC_SOCKET", config.socket_dir.join("ipc")).output().await?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("tgtadm {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    async fn qmp(&self) -> std::result::Result<Qmp, QmpError> {
        Qmp::connect(&self.guest.qmp_socket(), Duration::from_secs(10)).await
    }

    /// A guest that is asked for a disk it has not yet noticed takes seconds to answer.
    async fn let_the_guest_see(&self) {
        tokio::time::sleep(SEEN).await;
    }

    async fn stop(&self) -> Result<()> {
        self.children.stop(&self.guest.name, Signal::TERM, Duration::from_secs(5)).await?;
        Ok(tgtd::stop(self.dir.path(), &self.children).await?)
    }
}

/// How long a guest takes to notice a new disk, with some to spare.
const SEEN: Duration = Duration::from_secs(2);

/// A `vbs dev` with one guest.
struct Dev {
    process: Process,
    client: Client,
    instance: String,
    _dir: TempDir,
}

impl Dev {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let address = free_address()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.arg("dev").arg("--data").arg(dir.path().join("data")).arg("--listen").arg(address.to_string());
        let mut process = Process::start("vbs dev", command, &dir.path().join("dev.log"))?;
        let env = dir.path().join("data/env");
        process.wait_until(BOOT, async || env.exists()).await?;
        let text = std::fs::read_to_string(env)?;
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
            let found = lines.find(|(found, _)| *found == name).map(|(_, value)| value.trim_matches(['\'', '"']));
            found.map(str::to_owned).ok_or_else(|| format!("vbs dev says no {name}"))
        };
        let client =
            Client { address, access_key_id: value("AWS_ACCESS_KEY_ID")?, secret: value("AWS_SECRET_ACCESS_KEY")? };
        let instances = value("VBS_INSTANCES")?;
        let instance = instances.split(',').next().unwrap_or_default().to_owned();
        Ok(Self { process, client, instance, _dir: dir })
    }

    async fn create_volume(&self) -> Result<String> {
        let created = self.client.call("CreateVolume", &[("AvailabilityZone", "us-east-1a"), ("Size", "1")]).await?;
        let volume = element(&created, "volumeId")?.to_owned();
        self.becomes(&volume, "<status>available</status>").await?;
        Ok(volume)
    }

    /// Attaches, and tells how many milliseconds that took; then detaches.
    async fn attach_and_detach(&self, volume: &str) -> Result<f64> {
        let parameters = [("VolumeId", volume), ("InstanceId", &self.instance), ("Device", "/dev/sdf")];
        let start = Instant::now();
        self.client.call("AttachVolume", &parameters).await?;
        self.becomes(volume, "<status>attached</status>").await?;
        let took = start.elapsed();
        tokio::time::sleep(SEEN).await;
        self.client.call("DetachVolume", &[("VolumeId", volume)]).await?;
        self.becomes(volume, "<status>available</status>").await?;
        Ok(took.as_secs_f64() * 1e3)
    }

    async fn becomes(&self, volume: &str, sign: &str) -> Result<()> {
        until(sign, async || Ok(self.client.call("DescribeVolumes", &[("VolumeId.1", volume)]).await?.contains(sign)))
            .await
    }

    async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

/// Asks every two milliseconds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await? {
        if Instant::now() > deadline {
            return Err(format!("still not {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

fn find(program: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| format!("no {program}: run scripts/setup").into())
}
