//! What is asked for while something goes wrong: at least one scene a kind of workflow, so that each of its steps calls a node.

use vbs::delegate::SnapshotMethod;
use vbs::ids::{SnapshotId, VolumeId};

use super::stage::Stage;

/// A call, and what must be there before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    CreateVolume,
    CreateVolumeFromSnapshot,
    CreateVolumeFromAnotherZone,
    DeleteVolume,
    ModifyVolume,
    AttachVolume,
    AttachSharedVolume,
    DetachVolume,
    DetachVolumeByForce,
    CreateSnapshot,
    CreateSnapshotInBackground,
    CreateSnapshotOfSharedVolume,
    DeleteSnapshot,
    CopySnapshot,
    CopyVolume,
    CopyVolumeInBackground,
    CreateSnapshots,
    RepairVolume,
    Audit,
}

pub const SCENES: [Scene; 19] = [
    Scene::CopyVolume,
    Scene::CreateSnapshots,
    Scene::CopyVolumeInBackground,
    Scene::CreateSnapshot,
    Scene::CreateSnapshotInBackground,
    Scene::CreateSnapshotOfSharedVolume,
    Scene::RepairVolume,
    Scene::Audit,
    Scene::AttachVolume,
    Scene::AttachSharedVolume,
    Scene::DetachVolume,
    Scene::DetachVolumeByForce,
    Scene::ModifyVolume,
    Scene::CreateVolume,
    Scene::CreateVolumeFromSnapshot,
    Scene::CreateVolumeFromAnotherZone,
    Scene::DeleteVolume,
    Scene::DeleteSnapshot,
    Scene::CopySnapshot,
];

/// What was made for a scene.
#[derive(Debug, Default)]
pub struct Props {
    pub volume: String,
    snapshot: String,
    instance: String,
    /// What the guest wrote last, before the snapshot if there is one.
    written: Option<u64>,
}

impl Scene {
    /// The kind of workflow that it is about.
    pub fn kind(self) -> &'static str {
        match self {
            Self::CreateVolume | Self::CreateVolumeFromSnapshot | Self::CreateVolumeFromAnotherZone => "create_volume",
            Self::DeleteVolume => "delete_volume",
            Self::ModifyVolume => "modify_volume",
            Self::AttachVolume | Self::AttachSharedVolume => "attach_volume",
            Self::DetachVolume | Self::DetachVolumeByForce => "detach_volume",
            Self::CreateSnapshot | Self::CreateSnapshotInBackground | Self::CreateSnapshotOfSharedVolume => {
                "create_snapshot"
            }
            Self::DeleteSnapshot => "delete_snapshot",
            Self::CopySnapshot => "copy_snapshot",
            Self::CopyVolume | Self::CopyVolumeInBackground => "copy_volume",
            Self::CreateSnapshots => "create_snapshots",
            Self::RepairVolume => "repair_volume",
            Self::Audit => "audit",
        }
    }

    /// Whether it mends what it comes across, and leaves the rest to the sweeper's next round.
    pub fn leaves_the_rest(self) -> bool {
        matches!(self, Self::RepairVolume | Self::Audit)
    }

    /// Whether its workflow undoes its steps when one fails for good. A node that fails is what an audit tells.
    pub async fn turns_back(self) -> bool {
        if self == Self::Audit {
            return false;
        }
        let catalogue = vbs::workers::catalogue().await;
        catalogue.iter().any(|described| described.kind == self.kind() && described.turns_back)
    }

    /// Makes what the call needs.
    pub async fn prepare(self, stage: &Stage) -> Props {
        stage.sim.hold_on("vm-1", false);
        match self {
            Self::CreateSnapshotInBackground | Self::CopyVolumeInBackground => stage.sim.copy_in_background(50),
            _ => stage.sim.set_snapshot_method(SnapshotMethod::Copy),
        }
        let instance = stage.instance("vm-1").await;
        let mut props = Props { instance, ..Props::default() };
        if self == Self::CreateVolume {
            return props;
        }
        let shared = matches!(self, Self::AttachSharedVolume | Self::CreateSnapshotOfSharedVolume);
        props.volume = if shared { shared_volume(stage).await } else { volume(stage).await };
        match self {
            Self::DeleteVolume | Self::AttachVolume => return props,
            Self::RepairVolume | Self::Audit => return broken(stage, props).await,
            _ => {}
        }
        attach(stage, &props.volume, &props.instance, "/dev/sdf").await;
        props.written = write(stage, &props.volume);
        match self {
            Self::DetachVolumeByForce => stage.sim.hold_on("vm-1", true),
            Self::CreateSnapshotOfSharedVolume => {
                attach(stage, &props.volume, &stage.instance("vm-2").await, "/dev/sdf").await;
            }
            Self::CreateSnapshots => {
                let other = volume(stage).await;
                attach(stage, &other, &props.instance, "/dev/sdg").await;
            }
            Self::CreateVolumeFromSnapshot
            | Self::CreateVolumeFromAnotherZone
            | Self::DeleteSnapshot
            | Self::CopySnapshot => {
                props.snapshot = stage.ok("CreateSnapshot", &[("VolumeId", &props.volume)]).await.text("snapshotId");
                stage.settle().await;
            }
            _ => {}
        }
        props
    }

    /// The call itself. It may be made again when its workflow turned back.
    pub async fn call(self, stage: &Stage, props: &Props) {
        let volume = ("VolumeId", &*props.volume);
        let (here, elsewhere) = (("AvailabilityZone", "us-east-1a"), ("AvailabilityZone", "us-east-1b"));
        let snapshot = ("SnapshotId", &*props.snapshot);
        match self {
            Self::CreateVolume => stage.ok("CreateVolume", &[here, ("Size", "1")]).await,
            Self::CreateVolumeFromSnapshot => stage.ok("CreateVolume", &[here, snapshot]).await,
            Self::CreateVolumeFromAnotherZone => stage.ok("CreateVolume", &[elsewhere, snapshot]).await,
            Self::DeleteVolume => stage.ok("DeleteVolume", &[volume]).await,
            Self::ModifyVolume => {
                stage.ok("ModifyVolume", &[volume, ("Size", "2"), ("VolumeType", "gp3"), ("Throughput", "200")]).await
            }
            Self::AttachVolume => {
                stage.ok("AttachVolume", &[volume, ("InstanceId", &props.instance), ("Device", "/dev/sdf")]).await
            }
            Self::AttachSharedVolume => {
                let second = stage.instance("vm-2").await;
                stage.ok("AttachVolume", &[volume, ("InstanceId", &second), ("Device", "/dev/sdf")]).await
            }
            Self::DetachVolume => stage.ok("DetachVolume", &[volume]).await,
            Self::DetachVolumeByForce => stage.ok("DetachVolume", &[volume, ("Force", "true")]).await,
            Self::CreateSnapshot | Self::CreateSnapshotInBackground | Self::CreateSnapshotOfSharedVolume => {
                stage.ok("CreateSnapshot", &[volume]).await
            }
            Self::DeleteSnapshot => stage.ok("DeleteSnapshot", &[snapshot]).await,
            Self::CopySnapshot => {
                let source = [("SourceRegion", "us-east-1"), ("SourceSnapshotId", &*props.snapshot)];
                stage.ok("CopySnapshot", &source).await
            }
            Self::CopyVolume | Self::CopyVolumeInBackground => {
                stage.ok("CopyVolumes", &[("SourceVolumeId", &*props.volume)]).await
            }
            Self::CreateSnapshots => {
                stage.ok("CreateSnapshots", &[("InstanceSpecification.InstanceId", &props.instance)]).await
            }
            Self::RepairVolume => return stage.sweep().await,
            Self::Audit => return stage.audit().await,
        };
    }

    /// Whether what was made of the volume's bytes has them, and the guest goes on writing.
    pub async fn bytes_are_right(self, stage: &Stage, props: &Props) {
        let volumes = format!("SELECT id FROM volumes WHERE state = 'available' AND id <> '{}'", props.volume);
        match self {
            Self::CreateVolumeFromSnapshot
            | Self::CreateVolumeFromAnotherZone
            | Self::CopyVolume
            | Self::CopyVolumeInBackground => {
                for id in stage.texts(&volumes).await {
                    let content = stage.sim.volume_content(&VolumeId::parse(&id).unwrap());
                    assert_eq!(content, props.written, "the bytes of {id}");
                }
            }
            // Whatever became of the second attachment, the first one is as it was.
            Self::AttachSharedVolume => {
                assert!(write(stage, &props.volume).is_some(), "the first machine has lost its disk");
            }
            Self::CreateSnapshot
            | Self::CreateSnapshotInBackground
            | Self::CreateSnapshotOfSharedVolume
            | Self::CopySnapshot => {
                for id in stage.texts("SELECT id FROM snapshots WHERE state = 'completed'").await {
                    let content = stage.sim.snapshot_content(&SnapshotId::parse(&id).unwrap());
                    assert_eq!(content, props.written, "the bytes of {id}");
                }
            }
            _ => {}
        }
    }
}

async fn volume(stage: &Stage) -> String {
    let asked = [("AvailabilityZone", "us-east-1a"), ("Size", "1"), ("VolumeType", "gp3")];
    let id = stage.ok("CreateVolume", &asked).await.text("volumeId");
    stage.settle().await;
    id
}

/// One that several machines may have.
async fn shared_volume(stage: &Stage) -> String {
    let asked = [
        ("AvailabilityZone", "us-east-1a"),
        ("Size", "4"),
        ("VolumeType", "io2"),
        ("Iops", "100"),
        ("MultiAttachEnabled", "true"),
    ];
    let id = stage.ok("CreateVolume", &asked).await.text("volumeId");
    stage.settle().await;
    id
}

pub async fn attach(stage: &Stage, volume: &str, instance: &str, device: &str) {
    stage.ok("AttachVolume", &[("VolumeId", volume), ("InstanceId", instance), ("Device", device)]).await;
    stage.settle().await;
}

fn write(stage: &Stage, volume: &str) -> Option<u64> {
    let written = stage.sim.guest_writes("vm-1", &VolumeId::parse(volume).unwrap());
    assert!(written.is_some(), "the guest has {volume}");
    written
}

/// An attached volume whose target is gone, and a disk of an attachment before it that a machine still has, and the target of that
/// on another node.
async fn broken(stage: &Stage, props: Props) -> Props {
    let id = VolumeId::parse(&props.volume).unwrap();
    attach(stage, &props.volume, &stage.instance("vm-2").await, "/dev/sdf").await;
    let over = stage.texts("SELECT iqn FROM attachments WHERE state = 'attached'").await.remove(0);
    stage.ok("DetachVolume", &[("VolumeId", &props.volume)]).await;
    stage.settle().await;
    attach(stage, &props.volume, &props.instance, "/dev/sdf").await;
    let written = write(stage, &props.volume);
    stage.sim.leave_disk("vm-2", &id, &over);
    stage.sim.forget_exports("storage-a");
    stage.sim.add_export("storage-b", &id, &over);
    Props { written, ..props }
}
