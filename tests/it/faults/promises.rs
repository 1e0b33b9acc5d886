//! What is promised when a node says that it has done what it has not. Nobody can always know at once; so it is noticed by the next
//! verb, or by the sweeper, or whoever uses the resource is told.

use super::agree::differences;
use super::scenes::{Scene, attach};
use super::stage::Stage;

/// How long a pause lasts that nobody ends, in seconds.
const PAUSE_S: u64 = 30;

/// Checks the promise for a verb, and leaves rows and nodes in agreement.
pub async fn hold(stage: &Stage, scene: Scene, verb: &str) {
    let wrong = differences(stage).await;
    if wrong.is_empty() {
        return;
    }
    match verb {
        // Who uses it is told, and can delete it.
        "ensure_volume" | "ensure_restored" => missing_volume(stage).await,
        "ensure_snapshot" | "ensure_snapshot_copy" => missing_snapshots(stage).await,
        // A pause ends by itself.
        "ensure_resumed" => {
            let begun = std::time::Instant::now();
            stage.until("awake", async || differences(stage).await.is_empty()).await;
            assert!(begun.elapsed().as_secs() <= PAUSE_S, "the guest stood still for longer than a pause lasts");
        }
        // It goes when what could not be made is deleted, or the sweeper sees it.
        "ensure_no_volume" | "ensure_no_snapshot" => orphan(stage, &wrong).await,
        // The sweeper sees it.
        "ensure_attached" | "ensure_not_exported" | "ensure_grown" => swept(stage).await,
        _ if scene == Scene::RepairVolume => swept(stage).await,
        _ => panic!("after {verb} that was claimed: {wrong:#?}"),
    }
}

async fn swept(stage: &Stage) {
    stage.sweep().await;
    stage.settle().await;
}

async fn missing_volume(stage: &Stage) {
    let volume =
        stage.texts("SELECT id FROM volumes WHERE state = 'available' ORDER BY created_at DESC").await.remove(0);
    let machine =
        if differences(stage).await.iter().any(|wrong| wrong.contains("storage-b")) { "vm-3" } else { "vm-2" };
    let before = stage.newest().await;
    attach(stage, &volume, &stage.instance(machine).await, "/dev/sdh").await;
    let told = stage.workflow_after(before, "attach_volume").await;
    assert_eq!(told.outcome, "undone", "{told:#?}");
    assert!(told.error.contains(&volume), "it is said what is missing: {told:#?}");
    stage.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    stage.settle().await;
}

async fn missing_snapshots(stage: &Stage) {
    let wrong = differences(stage).await;
    for snapshot in stage.texts("SELECT id FROM snapshots WHERE state = 'completed'").await {
        if !wrong.iter().any(|wrong| wrong.contains(&snapshot)) {
            continue;
        }
        let before = stage.newest().await;
        let asked = [("AvailabilityZone", "us-east-1a"), ("SnapshotId", &*snapshot)];
        let volume = stage.ok("CreateVolume", &asked).await.text("volumeId");
        stage.settle().await;
        let told = stage.workflow_after(before, "create_volume").await;
        assert_eq!(told.outcome, "undone", "{told:#?}");
        assert!(told.error.contains(&snapshot), "it is said what is missing: {told:#?}");
        stage.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
        stage.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
        stage.settle().await;
    }
}

/// What a node has kept though it said that it removed it.
async fn orphan(stage: &Stage, wrong: &[String]) {
    assert!(wrong.iter().all(|wrong| wrong.starts_with("nobody's: storage-")), "{wrong:#?}");
    for volume in stage.texts("SELECT id FROM volumes WHERE state = 'error'").await {
        stage.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
    }
    for snapshot in stage.texts("SELECT id FROM snapshots WHERE state = 'error'").await {
        stage.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
    }
    stage.settle().await;
    swept(stage).await;
}
