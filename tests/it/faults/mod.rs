//! The fault space, enumerated: every workflow, every step of it, every call that the step makes of a node, there and back, and
//! every fault. After each: the call succeeded, or the resource says why not and the same call succeeds now; the rows and the nodes
//! agree; everything can be deleted, nothing is left over and no workflow is unfinished.
//!
//! Which workflows and steps there are the program says ([`vbs::workers::catalogue`]); where they call the nodes, a run
//! without faults. A workflow or a step that no scene reaches fails the test.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use futures_util::FutureExt;

use self::gate::Point;
use self::matrix::FAULTS;
use self::scenes::{SCENES, Scene};
use self::stage::{CALM, Stage};
use self::table::Table;
use crate::support::cloud::Cloud;
use crate::support::postgres;

mod agree;
mod gate;
mod matrix;
mod promises;
mod scenes;
mod stage;
mod table;
mod wire;

/// How many are played at once.
const LANES: usize = 6;

#[test]
fn every_fault_at_every_call_of_every_step_is_seen_through_or_told() {
    let only = std::env::var("VBS_FAULTS").unwrap_or_default();
    let scenes = SCENES.iter().filter(|scene| format!("{scene:?}").starts_with(&only));
    let lanes = scenes.flat_map(|scene| [(*scene, false), (*scene, true)]).collect();
    let table = play_all(lanes, async |(scene, backward)| lane(scene, backward).await);
    let catalogue = vbs::workers::catalogue().now_or_never().expect("it waits for nothing");
    table.print("Faults that a worker lives through, on simulated nodes over HTTP", &catalogue);
    if only.is_empty() {
        table.has_every_step(&catalogue);
    }
}

/// Plays all lanes, some at once, each on a thread and a runtime of its own, and fails when a case does.
fn play_all<L: Send>(lanes: Vec<L>, play: impl AsyncFn(L) -> Played + Sync) -> Table {
    let waiting = Mutex::new(lanes.into_iter());
    let (table, failures) = (Mutex::new(Table::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some(lane) = waiting.lock().unwrap().next() else { return };
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    let played = runtime.block_on(play(lane));
                    table.lock().unwrap().merge(played.table);
                    failures.lock().unwrap().extend(played.failures);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    table.into_inner().unwrap()
}

/// What a lane has played, and what failed of it.
#[derive(Default)]
struct Played {
    table: Table,
    failures: Vec<String>,
}

/// Plays all cases of a scene on its way there, or on its ways back.
async fn lane(scene: Scene, backward: bool) -> Played {
    let mut played = Played::default();
    let mut set = Some(Set::up().await);
    let found = caught(cases(&set.as_ref().unwrap().stage, scene, backward)).await;
    let cases = match found {
        Ok(cases) => cases,
        Err(words) => {
            played.failures.push(format!("{scene:?} without a fault: {words}"));
            return played;
        }
    };
    for (turn, point) in cases {
        for fault in FAULTS.into_iter().filter(|fault| fault.fits(&point.verb)) {
            if set.is_none() {
                set = Some(Set::up().await);
            }
            let case = matrix::play(&set.as_ref().unwrap().stage, scene, turn.as_ref(), &point, fault);
            if let Err(words) = caught(case).await {
                played.failures.push(format!("{scene:?}, {point:?}, turned at {turn:?}, {fault:?}: {words}"));
                // What is left there is of no use to another case.
                set = None;
            }
            played.table.add(&point, &fault);
        }
    }
    played
}

/// The points of a scene that are struck, each with the one that fails for good before it on the way back.
async fn cases(stage: &Stage, scene: Scene, backward: bool) -> Vec<(Option<Point>, Point)> {
    let there = matrix::points(stage, scene, None).await;
    if !backward {
        return there.into_iter().map(|point| (None, point)).collect();
    }
    if !scene.turns_back().await {
        return Vec::new();
    }
    // The furthest that each step comes.
    let last: BTreeMap<usize, Point> = there.into_iter().map(|point| (point.step, point)).collect();
    let mut cases = Vec::new();
    for turn in last.into_values() {
        for point in matrix::points(stage, scene, Some(&turn)).await {
            cases.push((Some(turn.clone()), point));
        }
    }
    cases
}

/// Gives the words of a panic, and goes on.
async fn caught<T>(case: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(case).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

/// A stage with two gateways, whose workers share the work.
struct Set {
    stage: Stage,
    _gateways: [Cloud; 2],
}

impl Set {
    async fn up() -> Self {
        let url = postgres::database().await;
        let stage = Stage::set(&url, url.clone()).await;
        let gateways = [stage.gateway(CALM).await, stage.gateway(CALM).await];
        Self { stage, _gateways: gateways }
    }
}
