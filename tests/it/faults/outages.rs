//! The database goes away while a call is under way: for five seconds, or until it has recovered from a crash.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::gate::{Point, Strike};
use super::matrix::{self, Fault};
use super::scenes::Scene;
use super::stage::Stage;
use crate::support::proxy::Proxy;

/// How long it is gone.
const GONE: Duration = Duration::from_secs(5);

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// All connections break, and new ones do.
    PostgresGoneFor5S,
    /// One of its processes is killed, so that it ends all others, and recovers.
    PostgresRestarted,
}

/// Plays a scene, and lets the database go away while a call from a point is under way.
pub async fn play(stage: &Stage, scene: Scene, turn: Option<&Point>, point: &Point, outage: Outage, proxy: &Proxy) {
    let props = scene.prepare(stage).await;
    let before = stage.newest().await;
    stage.gate.watch(scene.kind(), before);
    if let Some(turn) = turn {
        stage.gate.arm(turn, Strike::DoneButFailsForGood);
    }
    stage.gate.arm(point, Strike::Held);
    matrix::call_until_struck(stage, scene, &props, point).await;
    match outage {
        Outage::PostgresGoneFor5S => {
            proxy.cut();
            stage.gate.let_in().await;
            tokio::time::sleep(GONE).await;
            proxy.restore();
        }
        Outage::PostgresRestarted => {
            let pid: i32 = stage.rows("SELECT pg_backend_pid()").await[0].get(0);
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
            stage.gate.let_in().await;
        }
    }
    stage.settle().await;
    stage.gate.disarm();
    stage.gate.let_in().await;
    let ended = stage.workflow_after(before, scene.kind()).await;
    matrix::judge(stage, scene, point, Fault::LeaseExpired, &ended).await;
    if scene.leaves_the_rest() {
        stage.sweep().await;
        stage.settle().await;
    }
    matrix::agree_and_again(stage, scene, &props, &ended).await;
    stage.walk_to_the_end().await;
}
