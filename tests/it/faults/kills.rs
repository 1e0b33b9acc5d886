//! The process that works on it is killed, by SIGKILL, while its call is under way; another takes over.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use super::gate::{Point, Strike};
use super::matrix::{self, Fault};
use super::scenes::Scene;
use super::stage::Stage;
use crate::support::client::Client;
use crate::support::cloud::{ACCOUNT, Cloud, file};

/// A lease that is soon over.
pub const SHORT_LEASE: &str = "workers = { lease_s = 2, poll_s = 1, sweep_s = 3600 }";

/// When it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// Its call is on its way, and arrives when another has done everything.
    KilledBeforeTheEffect,
    /// Its call is done, and not answered yet.
    KilledAfterTheEffect,
}

pub const KILLS: [Kill; 2] = [Kill::KilledBeforeTheEffect, Kill::KilledAfterTheEffect];

/// Plays a scene, and kills the process that calls from a point; `helper` prepares, and a successor of it is given back.
pub async fn play(
    stage: &Stage,
    scene: Scene,
    turn: Option<&Point>,
    point: &Point,
    kill: Kill,
    helper: Cloud,
) -> Cloud {
    let props = scene.prepare(stage).await;
    let before = stage.newest().await;
    helper.stop().await;
    stage.gate.watch(scene.kind(), before);
    if let Some(turn) = turn {
        stage.gate.arm(turn, Strike::DoneButFailsForGood);
    }
    let strike = if kill == Kill::KilledBeforeTheEffect { Strike::Held } else { Strike::DoneThenHeld };
    stage.gate.arm(point, strike);
    let victim = Gateway::start(stage, scene).await;
    matrix::call_until_struck(stage, scene, &props, point).await;
    drop(victim);
    let successor = stage.gateway(SHORT_LEASE).await;
    stage.settle().await;
    stage.gate.disarm();
    let late = stage.gate.let_in().await;
    matrix::check_late(stage, point, &late).await;
    let ended = stage.workflow_after(before, scene.kind()).await;
    matrix::judge(stage, scene, point, Fault::LeaseExpired, &ended).await;
    if scene.leaves_the_rest() {
        stage.sweep().await;
        stage.settle().await;
    }
    matrix::agree_and_again(stage, scene, &props, &ended).await;
    stage.walk_to_the_end().await;
    successor
}

/// A gateway's process. It is killed when dropped.
struct Gateway(Child);

impl Gateway {
    /// Starts one on the stage, and talks to it from now on.
    async fn start(stage: &Stage, scene: Scene) -> Self {
        let address = free_address();
        // Nobody tells a process to sweep.
        let sweep_s = if scene == Scene::RepairVolume { 1 } else { 3600 };
        let more = format!(
            "workers = {{ lease_s = 2, poll_s = 1, sweep_s = {sweep_s} }}\n\
             gateway = {{ server = {{ listen = \"{address}\" }} }}"
        );
        let path = stage.dir.path().join("gateway.toml");
        std::fs::write(&path, file(&stage.url, &more, &stage.gate.configuration(ACCOUNT))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(["gateway", "--config"]).arg(&path).env("VBS_LOG", "off").stdin(Stdio::null());
        let gateway = Self(command.spawn().unwrap());
        let answers = async || tokio::net::TcpStream::connect(address).await.is_ok();
        stage.until("serving", answers).await;
        stage.talk_to(Client { address, ..stage.client() }, None);
        gateway
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
