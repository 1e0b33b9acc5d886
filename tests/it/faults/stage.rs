//! Where a case is played: a database, the four nodes over HTTP, gateways, and a look at the rows that needs no gateway.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::Row;
use vbs::db::{Pool, workflows};
use vbs::delegate::sim::SimCloud;
use vbs::workers::{self, Context};

use super::gate::Gate;
use super::rows::Rows;
use crate::support::client::{Answer, Client};
use crate::support::cloud::{ACCOUNT, Cloud};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// Swept only when a case says so.
pub const CALM: &str = "workers = { poll_s = 1, sweep_s = 3600 }";

pub struct Stage {
    pub sim: SimCloud,
    pub gate: Gate,
    rows: Rows,
    /// Where a gateway finds the database.
    pub url: String,
    pub dir: TempDir,
    client: Mutex<Option<Client>>,
    /// What sweeps, when a case says so; a gateway in another process does it by itself.
    sweeper: Mutex<Option<Arc<Context>>>,
}

/// How a workflow ended.
#[derive(Debug)]
pub struct Ended {
    pub id: i64,
    pub outcome: String,
    pub error: String,
    /// What was noted on the way.
    pub history: Vec<String>,
}

impl Stage {
    /// A stage without a gateway, on a database that these URLs lead to: ours, and the gateways'.
    pub fn set(database_url: &str, url: String) -> Self {
        let (sim, dir) = (SimCloud::new(), tempfile::tempdir().unwrap());
        let gate = Gate::start(&sim, database_url, dir.path());
        Self { sim, gate, rows: Rows::of(database_url), url, dir, client: Mutex::default(), sweeper: Mutex::default() }
    }

    /// Starts a gateway in this process, and talks to it from now on.
    pub async fn gateway(&self, more: &str) -> Cloud {
        let cloud = Cloud::join_nodes(&self.url, &self.sim, more, &self.gate.configuration(ACCOUNT)).await;
        self.talk_to(cloud.client.clone(), Some(&cloud.context));
        cloud
    }

    /// Talks to this gateway from now on.
    pub fn talk_to(&self, client: Client, context: Option<&Arc<Context>>) {
        *self.client.lock().unwrap() = Some(client);
        *self.sweeper.lock().unwrap() = context.cloned();
    }

    /// Lets the sweeper look around once.
    pub async fn sweep(&self) {
        let context = self.sweeper.lock().unwrap().clone();
        let Some(context) = context else { return };
        self.until("swept", async || workers::sweeper::sweep(&context).await.is_ok()).await;
    }

    /// Has a gateway look around, and repair what it finds: `vbs audit --repair`.
    pub async fn audit(&self) {
        let mut conn = Pool::new(&self.url, 1).unwrap().get().await.unwrap();
        workers::audit::enqueue(&mut conn, true).await.unwrap();
        workflows::notify(&mut conn).await.unwrap();
    }

    pub fn client(&self) -> Client {
        self.client.lock().unwrap().clone().expect("there is a gateway")
    }

    /// Calls until it succeeds: when the database was away, a call finds it out, as an SDK's first try does.
    pub async fn ok(&self, action: &str, parameters: &[(&str, &str)]) -> Answer {
        let begun = Instant::now();
        loop {
            let answer = self.client().call(action, parameters).await;
            match answer.status {
                200 => return answer,
                500.. if begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
                status => panic!("{action} {parameters:?}: {status} {}", answer.body),
            }
        }
    }

    pub async fn rows(&self, query: &str) -> Vec<Row> {
        self.rows.query(query, &[]).await
    }

    /// The first column of what a query finds.
    pub async fn texts(&self, query: &str) -> Vec<String> {
        self.rows(query).await.iter().map(|row| row.get(0)).collect()
    }

    async fn number(&self, query: &str) -> i64 {
        self.rows(query).await[0].get(0)
    }

    pub async fn instance(&self, machine: &str) -> String {
        self.texts(&format!("SELECT id FROM instances WHERE machine = '{machine}'")).await.remove(0)
    }

    /// The newest workflow's number.
    pub async fn newest(&self) -> i64 {
        self.number("SELECT coalesce(max(id), 0) FROM workflows").await
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !condition().await {
            if begun.elapsed() > PATIENCE {
                let live = "SELECT kind || ' ' || direction || ' ' || step || ' ' || attempts || ' ' || coalesce(error, '') \
                            FROM workflows WHERE finished_at IS NULL";
                panic!("still not {what}; live: {:#?}", self.texts(live).await);
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// Waits until no workflow is live.
    pub async fn settle(&self) {
        let live = "SELECT count(*) FROM workflows WHERE finished_at IS NULL";
        self.until("settled", async || self.number(live).await == 0).await;
    }

    /// The first workflow of a kind after another.
    pub async fn workflow_after(&self, id: i64, kind: &str) -> Ended {
        let found = format!(
            "SELECT id, coalesce(outcome, ''), coalesce(reason, error, '') FROM workflows \
             WHERE id > {id} AND kind = '{kind}' ORDER BY id LIMIT 1"
        );
        let found = self.rows(&found).await;
        let row = found.first().unwrap_or_else(|| panic!("no {kind} was begun"));
        let id: i64 = row.get(0);
        let history =
            format!("SELECT event || ': ' || detail FROM workflow_events WHERE workflow_id = {id} ORDER BY id");
        Ended { id, outcome: row.get(1), error: row.get(2), history: self.texts(&history).await }
    }

    /// Detaches and deletes all there is, over the API, and sees that nothing is left anywhere.
    pub async fn walk_to_the_end(&self) {
        self.settle().await;
        for row in self.rows("SELECT volume_id, instance_id FROM attachments WHERE state = 'attached'").await {
            self.ok("DetachVolume", &[("VolumeId", row.get(0)), ("InstanceId", row.get(1))]).await;
        }
        self.settle().await;
        for volume in self.texts("SELECT id FROM volumes WHERE state IN ('available', 'error')").await {
            self.ok("DeleteVolume", &[("VolumeId", &volume)]).await;
        }
        for snapshot in self.texts("SELECT id FROM snapshots").await {
            self.ok("DeleteSnapshot", &[("SnapshotId", &snapshot)]).await;
        }
        self.settle().await;
        let left = "SELECT id FROM volumes WHERE state <> 'deleted' UNION ALL SELECT id FROM snapshots \
                    UNION ALL SELECT volume_id FROM attachments WHERE state <> 'detached'";
        assert_eq!(self.texts(left).await, Vec::<String>::new(), "rows are left");
        assert_eq!(super::agree::differences(self).await, Vec::<String>::new(), "at the end");
        assert_eq!((self.sim.copies(), self.sim.restores()), (0, 0), "something is still being copied");
    }
}
