//! Every call of every step, there and back, and everything that can happen to it while its worker lives.

use std::time::Duration;

use hyper::StatusCode;
use vbs::ids::VolumeId;

use super::agree::differences;
use super::gate::{INJECTED, Point, Strike};
use super::promises;
use super::scenes::{Props, Scene};
use super::stage::{Ended, Stage};

/// How long another worker gets to show whether a node's locks hold it up.
const HELD_UP: Duration = Duration::from_millis(100);

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    FailsBefore,
    FailsForGood,
    DoneButAnswerLost,
    RunTwice,
    HangsOnTheWay,
    HangsAtWork,
    GarbageWords,
    GarbageHttp,
    GarbageBody,
    ClaimedNotDone,
    LeaseExpired,
    LeaseExpiredAtWork,
    NodeGoneAndBackWithNoGeneration,
}

/// Those whose cases wait for the longest come first, so that the last to be played are short.
pub const FAULTS: [Fault; 13] = [
    Fault::ClaimedNotDone,
    Fault::HangsOnTheWay,
    Fault::HangsAtWork,
    Fault::FailsBefore,
    Fault::FailsForGood,
    Fault::DoneButAnswerLost,
    Fault::RunTwice,
    Fault::GarbageWords,
    Fault::GarbageHttp,
    Fault::GarbageBody,
    Fault::LeaseExpired,
    Fault::LeaseExpiredAtWork,
    Fault::NodeGoneAndBackWithNoGeneration,
];

impl Fault {
    fn strike(self) -> Strike {
        match self {
            Self::FailsBefore => Strike::Fails,
            Self::FailsForGood => Strike::FailsForGood,
            Self::DoneButAnswerLost => Strike::AnswerLost,
            Self::RunTwice => Strike::Twice,
            Self::HangsOnTheWay | Self::LeaseExpired => Strike::Held,
            Self::HangsAtWork => Strike::Slow,
            Self::LeaseExpiredAtWork => Strike::AtWork,
            Self::GarbageWords => Strike::GarbageWords,
            Self::GarbageHttp => Strike::GarbageHttp,
            Self::GarbageBody => Strike::GarbageBody,
            Self::ClaimedNotDone => Strike::Lie,
            Self::NodeGoneAndBackWithNoGeneration => Strike::Gone,
        }
    }

    /// Whether it can happen to a call of this verb: one that only looks can claim nothing.
    pub fn fits(self, verb: &str) -> bool {
        self != Self::ClaimedNotDone || !matches!(verb, "observe" | "snapshot_method")
    }
}

/// Plays a scene, and strikes at a point of it. On the way back it is struck after `turn` has failed for good.
pub async fn play(stage: &Stage, scene: Scene, turn: Option<&Point>, point: &Point, fault: Fault) {
    let props = scene.prepare(stage).await;
    let before = stage.newest().await;
    stage.gate.watch(scene.kind(), before);
    if let Some(turn) = turn {
        stage.gate.arm(turn, Strike::DoneButFailsForGood);
    }
    stage.gate.arm(point, fault.strike());
    let seen_through = async {
        stage.until("struck", async || stage.gate.struck(point) > 0).await;
        see_through(stage, scene, before, point, fault).await;
    };
    // Some calls are answered only when their workflow has come far, so what is struck may be behind by then.
    tokio::join!(scene.call(stage, &props), seen_through);
    stage.settle().await;
    stage.gate.disarm();
    let late = stage.gate.let_in().await;
    check_late(stage, point, &late).await;
    let twice = stage.gate.answered_twice();
    assert!(twice.iter().all(|[first, second]| first == second), "a step once more was answered otherwise: {twice:?}");
    let ended = stage.workflow_after(before, scene.kind()).await;
    judge(stage, scene, point, fault, &ended).await;
    if scene == Scene::Audit {
        let told = |what: &str| ended.history.iter().any(|event| event.contains(what));
        assert!(told("node-silent") || told("target-missing"), "an audit that found nothing: {ended:#?}");
    }
    if fault == Fault::ClaimedNotDone {
        promises::hold(stage, scene, &point.verb).await;
    } else if scene.leaves_the_rest() {
        // What it could not mend the sweeper sees again.
        stage.sweep().await;
        stage.settle().await;
    }
    agree_and_again(stage, scene, &props, &ended).await;
    stage.walk_to_the_end().await;
}

/// Makes the call of a scene, and hangs up once its workflow is struck: some calls are answered only when that has come far.
pub async fn call_until_struck(stage: &Stage, scene: Scene, props: &Props, point: &Point) {
    let called = async {
        scene.call(stage, props).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = called => {}
        () = stage.until("struck", async || stage.gate.struck(point) > 0) => {}
    }
}

/// Does what belongs to the fault while the workflow is under way.
async fn see_through(stage: &Stage, scene: Scene, before: i64, point: &Point, fault: Fault) {
    match fault {
        Fault::FailsForGood => {
            let turns_back = scene.turns_back().await;
            let ended = async || {
                let now = stage.workflow_after(before, scene.kind()).await;
                let turned = "SELECT id FROM workflows WHERE direction = 'backward'";
                let turned: Vec<i64> = stage.rows(turned).await.iter().map(|row| row.get(0)).collect();
                let told = now.history.iter().any(|event| event.contains(INJECTED) && event.starts_with("failed"));
                !now.outcome.is_empty() || (told && (point.backward || !turns_back || turned.contains(&now.id)))
            };
            stage.until("said to fail", ended).await;
            stage.gate.disarm();
        }
        // Another worker claims it, and does it all, while the first one's call is still on its way.
        Fault::LeaseExpired => take_over(stage, scene, before).await,
        // Another worker claims it, and comes as far as the node's locks let it while the node is at the first one's call.
        Fault::LeaseExpiredAtWork => {
            take_over(stage, scene, before).await;
            let ended = async || !stage.workflow_after(before, scene.kind()).await.outcome.is_empty();
            stage.until("followed", async || stage.gate.is_followed() || ended().await).await;
            // If nothing holds it up, it comes to the end now, and the first one's call has its effect afterwards.
            let _ = tokio::time::timeout(HELD_UP, stage.until("ended", ended)).await;
            stage.gate.end_work();
        }
        // Its caller may have gone on without it meanwhile.
        Fault::RunTwice => stage.until("run twice", async || !stage.gate.answered_twice().is_empty()).await,
        Fault::NodeGoneAndBackWithNoGeneration => {
            // A repair is not insisted on, nor a look.
            let tries = if scene.leaves_the_rest() { 1 } else { 2 };
            stage.until("found gone", async || stage.gate.turned_away() >= tries).await;
            stage.gate.come_back();
        }
        _ => {}
    }
}

/// Lets the lease of a scene's workflow run out, until another worker has it.
async fn take_over(stage: &Stage, scene: Scene, before: i64) {
    let Ended { id, .. } = stage.workflow_after(before, scene.kind()).await;
    let lease = format!("SELECT lease_generation FROM workflows WHERE id = {id} AND finished_at IS NULL");
    let generation = async || stage.rows(&lease).await.first().map(|row| row.get::<_, i64>(0));
    let Some(first) = generation().await else { return };
    let expire = format!(
        "UPDATE workflows SET lease_until = now() - interval '1 s' \
         WHERE id = {id} AND lease_generation = {first} AND lease_until IS NOT NULL"
    );
    let taken_over = async || {
        stage.rows(&expire).await;
        stage.rows("NOTIFY vbs_workflows").await;
        generation().await != Some(first)
    };
    stage.until("taken over", taken_over).await;
}

/// A call that arrives when its worker was followed by another is refused, whatever it asks for.
pub async fn check_late(stage: &Stage, point: &Point, late: &[StatusCode]) {
    if late.is_empty() {
        return;
    }
    let harmless = match &*point.verb {
        // It only looks; or it is told that a pause is over, and whose it was not.
        "observe" | "snapshot_method" | "ensure_resumed" => true,
        // A repair is not insisted on, so nobody may have followed.
        _ => point.kind == "repair_volume",
    };
    for status in late {
        assert!(harmless || *status == StatusCode::CONFLICT, "{point:?} came late and was answered {status}");
    }
    let paused = differences(stage).await.into_iter().find(|wrong| wrong.ends_with(" is paused"));
    assert_eq!(paused, None, "what came late paused the guest");
}

/// What went wrong once must not be seen by the caller; what goes wrong for good must be told.
pub async fn judge(stage: &Stage, scene: Scene, point: &Point, fault: Fault, ended: &Ended) {
    match fault {
        Fault::ClaimedNotDone => {}
        _ if scene == Scene::RepairVolume => {}
        _ if point.backward => {
            assert_eq!(ended.outcome, "undone", "{ended:#?}");
            assert!(ended.error.contains(INJECTED), "why it turned back: {ended:#?}");
        }
        Fault::FailsForGood if scene.turns_back().await => {
            let told = ended.outcome == "succeeded" || ended.error.contains(INJECTED);
            assert!(told, "{ended:#?}");
        }
        _ => assert_eq!(ended.outcome, "succeeded", "{ended:#?}"),
    }
    if scene == Scene::DetachVolumeByForce {
        stage.sim.hold_on("vm-1", false);
    }
}

/// The rows and the nodes agree; and who did not get what they asked for gets it when they ask again.
pub async fn agree_and_again(stage: &Stage, scene: Scene, props: &Props, ended: &Ended) {
    assert_eq!(differences(stage).await, Vec::<String>::new(), "after {ended:#?}");
    scene.bytes_are_right(stage, props).await;
    let grown = "SELECT volume_id FROM volume_modifications WHERE state = 'completed'";
    let has_it = scene == Scene::ModifyVolume && !stage.texts(grown).await.is_empty();
    if ended.outcome == "succeeded" || has_it || scene.leaves_the_rest() {
        return;
    }
    let before = stage.newest().await;
    scene.call(stage, props).await;
    stage.settle().await;
    let again = stage.workflow_after(before, scene.kind()).await;
    assert_eq!(again.outcome, "succeeded", "the same call again: {again:#?}");
    assert_eq!(differences(stage).await, Vec::<String>::new(), "after {again:#?}");
    scene.bytes_are_right(stage, props).await;
    if let Ok(id) = VolumeId::parse(&props.volume)
        && scene == Scene::AttachVolume
    {
        stage.sim.guest_writes("vm-1", &id).expect("the guest has the disk");
    }
}

/// Where the workflow of a scene calls the nodes when nothing goes wrong; or on the way back, when `turn` fails for good.
pub async fn points(stage: &Stage, scene: Scene, turn: Option<&Point>) -> Vec<Point> {
    let props = scene.prepare(stage).await;
    stage.gate.watch(scene.kind(), stage.newest().await);
    if let Some(turn) = turn {
        stage.gate.arm(turn, Strike::DoneButFailsForGood);
    }
    scene.call(stage, &props).await;
    stage.settle().await;
    stage.gate.disarm();
    let seen = stage.gate.seen();
    assert_eq!(differences(stage).await, Vec::<String>::new(), "without a fault");
    scene.bytes_are_right(stage, &props).await;
    stage.walk_to_the_end().await;
    seen.into_iter().filter(|point| point.backward == turn.is_some()).collect()
}
