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
use self::kills::{KILLS, SHORT_LEASE};
use self::matrix::{FAULTS, Fault};
use self::outages::Outage;
use self::scenes::{SCENES, Scene};
use self::stage::{CALM, Stage};
use self::table::Table;
use crate::support::cloud::Cloud;
use crate::support::postgres;
use crate::support::proxy::Proxy;

mod agree;
mod at_work;
mod gate;
mod kills;
mod matrix;
mod outages;
mod promises;
mod rows;
mod scenes;
mod served;
mod stage;
mod table;
mod verbs;
mod wire;

/// How many scenes are played at once.
const LANES: usize = 6;

/// How many cases are played at once that need no process of their own, and mostly wait.
const CASES_AT_ONCE: usize = 12;

/// Names the scenes to play, by the beginning of their names, when it is not all.
const ONLY: &str = "VBS_FAULTS";

#[test]
fn every_fault_at_every_call_of_every_step_is_seen_through_or_told() {
    let cases = Mutex::default();
    let left = Mutex::new(lanes().into_iter());
    play_all(LANES, vec![(); LANES], async |()| list_cases(&left, &cases).await);
    let mut cases = cases.into_inner().unwrap();
    cases.sort_by_key(|case| FAULTS.iter().position(|fault| *fault == case.fault));
    let left = Mutex::new(cases.into_iter());
    let table = play_all(CASES_AT_ONCE, vec![(); CASES_AT_ONCE], async |()| play_cases(&left).await);
    report(&table, "Faults that a worker lives through, on simulated nodes over HTTP");
}

#[test]
fn a_gateway_that_is_killed_at_any_call_of_any_step_is_followed_by_another() {
    let table = play_all(LANES, lanes(), async |(scene, backward)| killed(scene, backward).await);
    report(&table, "Gateways killed by SIGKILL, on simulated nodes over HTTP");
}

#[test]
fn a_database_that_is_gone_at_any_call_of_any_step_is_waited_for() {
    let table = play_all(LANES, lanes(), async |(scene, backward)| without_database(scene, backward, None).await);
    report(&table, "Postgres gone for five seconds, on simulated nodes over HTTP");
}

#[test]
fn a_database_that_crashes_at_any_call_of_any_step_is_waited_for() {
    let parts = lanes().chunks(SCENES.len().div_ceil(2)).map(<[_]>::to_vec).collect();
    let table = play_all(LANES, parts, async |lanes: Vec<(Scene, bool)>| {
        let server = postgres::Own::start().await;
        let mut played = Played::default();
        for (scene, backward) in lanes {
            let more = without_database(scene, backward, Some(&server)).await;
            played.table.merge(more.table);
            played.failures.extend(more.failures);
        }
        played
    });
    report(&table, "Postgres restarted, on simulated nodes over HTTP");
}

/// Every scene, on its way there and on its ways back; or those that the environment names.
fn lanes() -> Vec<(Scene, bool)> {
    let only = std::env::var(ONLY).unwrap_or_default();
    let scenes = SCENES.iter().filter(|scene| format!("{scene:?}").starts_with(&only));
    scenes.flat_map(|scene| [(*scene, false), (*scene, true)]).collect()
}

/// Prints what was played, and fails when that was not all.
fn report(table: &Table, title: &str) {
    let catalogue = vbs::workers::catalogue().now_or_never().expect("it waits for nothing");
    table.print(title, &catalogue);
    if std::env::var(ONLY).is_err() {
        table.has_every_step(&catalogue);
    }
}

/// Plays all lanes, so many at once, each on a thread and a runtime of its own, and fails when a case does.
fn play_all<L: Send>(at_once: usize, lanes: Vec<L>, play: impl AsyncFn(L) -> Played + Sync) -> Table {
    let waiting = Mutex::new(lanes.into_iter());
    let (table, failures) = (Mutex::new(Table::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
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

/// A point of a scene that is struck, with the one that fails for good before it on the way back, and what is done to it.
struct Case {
    scene: Scene,
    turn: Option<Point>,
    point: Point,
    fault: Fault,
}

/// Lists all cases of one scene after another, on its way there or on its ways back, until none is left.
async fn list_cases(left: &Mutex<impl Iterator<Item = (Scene, bool)>>, cases: &Mutex<Vec<Case>>) -> Played {
    let mut played = Played::default();
    let set = Set::up().await;
    loop {
        let Some((scene, backward)) = left.lock().unwrap().next() else { return played };
        match caught(points(&set.stage, scene, backward)).await {
            Ok(points) => {
                let mut cases = cases.lock().unwrap();
                for (turn, point) in points {
                    let fitting = FAULTS.into_iter().filter(|fault| fault.fits(&point.verb));
                    cases.extend(fitting.map(|fault| Case { scene, turn: turn.clone(), point: point.clone(), fault }));
                }
            }
            // Nothing of any use is left there.
            Err(words) => {
                played.failures.push(format!("{scene:?} without a fault: {words}"));
                return played;
            }
        }
    }
}

/// Plays one case after another until none is left.
async fn play_cases(left: &Mutex<impl Iterator<Item = Case>>) -> Played {
    let mut played = Played::default();
    let mut set = None;
    loop {
        let Some(case) = left.lock().unwrap().next() else { return played };
        if set.is_none() {
            set = Some(Set::up().await);
        }
        let Case { scene, turn, point, fault } = case;
        let stage = &set.as_ref().expect("it was set up").stage;
        let outcome = caught(matrix::play(stage, scene, turn.as_ref(), &point, fault)).await;
        if let Err(words) = outcome {
            played.failures.push(format!("{scene:?}, {point:?}, turned at {turn:?}, {fault:?}: {words}"));
            // What is left there is of no use to another case.
            set = None;
        }
        played.table.add(&point, &fault);
    }
}

/// Kills gateways at the points of a scene; on the way back, from its furthest step.
async fn killed(scene: Scene, backward: bool) -> Played {
    let mut played = Played::default();
    let Some((mut stage, cases)) = found(scene, backward, &mut played).await else { return played };
    let mut helper = None;
    for (turn, point) in cases {
        for kill in KILLS {
            if helper.is_none() {
                let url = postgres::database().await;
                stage = Stage::set(&url, url.clone());
                helper = Some(stage.gateway(SHORT_LEASE).await);
            }
            let with = helper.take().expect("it was started");
            let case = kills::play(&stage, scene, turn.as_ref(), &point, kill, with);
            match caught(case).await {
                Ok(successor) => helper = Some(successor),
                Err(words) => {
                    played.failures.push(format!("{scene:?}, {point:?}, turned at {turn:?}, {kill:?}: {words}"));
                }
            }
            played.table.add(&point, &kill);
        }
    }
    played
}

/// Takes the database away at the points of a scene: for a while, or, of a server of our own, by a crash.
async fn without_database(scene: Scene, backward: bool, own: Option<&postgres::Own>) -> Played {
    let outage = if own.is_some() { Outage::PostgresRestarted } else { Outage::PostgresGoneFor5S };
    let mut played = Played::default();
    let Some((_, cases)) = found(scene, backward, &mut played).await else { return played };
    let mut set = None;
    for (turn, point) in cases {
        if set.is_none() {
            let url = match own {
                Some(server) => server.database().await,
                None => postgres::database().await,
            };
            let proxy = Proxy::start(&url);
            let stage = Stage::set(&url, proxy.url.clone());
            let gateway = stage.gateway(SHORT_LEASE).await;
            set = Some((stage, proxy, gateway));
        }
        let (stage, proxy, _) = set.as_ref().expect("it was set up");
        let case = outages::play(stage, scene, turn.as_ref(), &point, outage, proxy);
        if let Err(words) = caught(case).await {
            played.failures.push(format!("{scene:?}, {point:?}, turned at {turn:?}, {outage:?}: {words}"));
            set = None;
        }
        played.table.add(&point, &outage);
    }
    played
}

/// The points of a scene, on the way back those from its furthest step, and the stage on which they were found.
async fn found(scene: Scene, backward: bool, played: &mut Played) -> Option<(Stage, Vec<(Option<Point>, Point)>)> {
    let Set { stage, _gateways } = Set::up().await;
    match caught(points(&stage, scene, backward)).await {
        Ok(mut cases) => {
            let furthest = cases.iter().filter_map(|(turn, _)| turn.as_ref().map(|turn| turn.step)).max();
            cases.retain(|(turn, _)| turn.as_ref().map(|turn| turn.step) == furthest);
            Some((stage, cases))
        }
        Err(words) => {
            played.failures.push(format!("{scene:?} without a fault: {words}"));
            None
        }
    }
}

/// The points of a scene, each with the one that fails for good before it on the way back.
async fn points(stage: &Stage, scene: Scene, backward: bool) -> Vec<(Option<Point>, Point)> {
    let there = matrix::points(stage, scene, None).await;
    assert!(!there.is_empty(), "it calls no node");
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
        let stage = Stage::set(&url, url.clone());
        let gateways = [stage.gateway(CALM).await, stage.gateway(CALM).await];
        Self { stage, _gateways: gateways }
    }
}
