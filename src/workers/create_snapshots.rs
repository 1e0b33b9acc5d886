//! Cuts snapshots of several volumes at one instant: all of them, or none.
//!
//! The machines that have the volumes rest, every volume is cut, the machines go on, and the cut counts only if all pauses held
//! all the time. What an earlier try has cut is thrown away, for it is of another instant. The copies that follow are each
//! snapshot's own affair, and its own workflow ([`super::create_snapshot`]) is there from the start: it keeps its volume from
//! being deleted or attached elsewhere meanwhile, and by it the snapshot can be deleted.
//!
//! A hypervisor that cannot rest its guests (Xen) can have no such set, but for a set of one.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::engine::{Given, GivenUp, OnFailure, Run, StepError, Workflow};
use super::{at_rest, create_snapshot};
use crate::db::snapshots::{self, Snapshot};
use crate::db::{self, Conn, workflows};
use crate::delegate::{Result as DelegateResult, SnapshotSpec, VolumeDelegate};
use crate::ids::{SnapshotId, VolumeId};

pub(super) const KIND: &str = "create_snapshots";

#[derive(Serialize, Deserialize)]
pub(super) struct CreateSnapshots {
    set: Uuid,
    /// The lease under which it was cut.
    #[serde(skip)]
    cut_under: AtomicI64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Cut,
}

/// Enqueues the taking of a set of snapshots whose rows are `pending`.
pub async fn enqueue(conn: &mut Conn, set: Uuid, members: &[(SnapshotId, VolumeId)]) -> db::Result<()> {
    let Some((_, first)) = members.first() else { return Ok(()) };
    let params = serde_json::json!({ "set": set });
    workflows::enqueue(conn, KIND, &set.to_string(), first, &params).await?;
    for (snapshot, volume) in members {
        create_snapshot::enqueue(conn, snapshot, volume).await?;
    }
    Ok(())
}

/// Whether what is written from now on is in none of the set: it is cut, or there will be none.
pub async fn is_cut(conn: &mut Conn, set: Uuid) -> db::Result<bool> {
    Ok(!workflows::is_at_first_step(conn, &set.to_string()).await?)
}

/// Whether a hypervisor node with these drivers, separated by commas, can rest its guests.
pub fn can_rest(drivers: &str) -> bool {
    drivers.split(',').all(|driver| driver != "xen")
}

/// One of a set, and what its storage node is asked for.
struct Member<'a> {
    storage: &'a dyn VolumeDelegate,
    spec: SnapshotSpec,
}

impl Workflow for CreateSnapshots {
    type Step = Step;
    const STEPS: &'static [Step] = &[Step::Cut];
    const ON_FAILURE: OnFailure = OnFailure::TurnBack;

    async fn run(&self, run: &Run<'_>, step: Step) -> Result<(), StepError> {
        match step {
            Step::Cut => {
                // One that was deleted meanwhile is not among them, and later than this none is: whoever deletes it has a newer
                // lease, and the node refuses this one.
                let rows = self.rows(run).await?;
                self.wait_for_older(run, &rows).await?;
                match rows.as_slice() {
                    [] => {}
                    [row] => {
                        let spec = spec(row);
                        run.context.nodes.storage(&row.node)?.ensure_no_snapshot(run.generation, &spec).await?;
                        create_snapshot::cut(run, &row.node, &spec).await?;
                    }
                    rows => match cut(run, rows).await {
                        Err(StepError::Stale(_)) if self.rows(run).await?.len() < rows.len() => {
                            return Err(StepError::Retry("one of the set was deleted meanwhile".into()));
                        }
                        done => done?,
                    },
                }
                self.cut_under.store(run.generation.0, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// The snapshots are undone, and the machines let go, by the workflows of their own: those do not hold up other work on their
    /// volumes meanwhile, however long a node is away.
    async fn undo(&self, _: &Run<'_>, _: Step) -> Result<(), StepError> {
        Ok(())
    }

    async fn record(&self, conn: &mut Conn) -> db::Result<()> {
        // The workflows' rows before the snapshots', as everywhere.
        for row in snapshots::pending_of_set(conn, self.set).await? {
            workflows::poke(conn, row.id.as_str()).await?;
        }
        snapshots::set_cut(conn, self.set, self.cut_under.load(Ordering::Relaxed)).await
    }

    async fn record_undone(&self, conn: &mut Conn, reason: &str) -> db::Result<()> {
        create_snapshot::give_up_set(conn, self.set, reason).await
    }

    async fn record_given_up(&self, conn: &mut Conn, how: &GivenUp<'_>) -> db::Result<Given> {
        self.record_undone(conn, how.reason).await?;
        Ok(Given::Up)
    }
}

impl CreateSnapshots {
    async fn rows(&self, run: &Run<'_>) -> Result<Vec<Snapshot>, StepError> {
        Ok(snapshots::pending_of_set(&mut *run.conn().await?, self.set).await?)
    }

    /// The order of a volume's workflows holds for the first volume by itself; of the others the same is asked here.
    async fn wait_for_older(&self, run: &Run<'_>, rows: &[Snapshot]) -> Result<(), StepError> {
        let volumes: Vec<VolumeId> = rows.iter().map(|row| row.volume_id.clone()).collect();
        let key = self.set.to_string();
        if workflows::any_older_changing(&mut *run.conn().await?, &key, &volumes).await? {
            return Err(StepError::Wait("something that was asked for earlier changes one of the volumes".into()));
        }
        Ok(())
    }
}

/// Cuts the volumes of several snapshots while no machine writes to any of them.
async fn cut(run: &Run<'_>, rows: &[Snapshot]) -> Result<(), StepError> {
    let mut disks = Vec::new();
    let mut members = Vec::new();
    for row in rows {
        let (storage, spec) = (run.context.nodes.storage(&row.node)?, spec(row));
        disks.extend(at_rest::disks(run, &spec).await?);
        members.push(Member { storage, spec });
    }
    all(&members, |member| member.storage.ensure_no_snapshot(run.generation, &member.spec)).await?;
    let cuts = all(&members, |member| member.storage.ensure_snapshot(run.generation, &member.spec));
    at_rest::during(run, &disks, cuts).await
}

/// Asks for all at once, and waits for every answer: what is still at work must not be when the machines go on.
async fn all<'a, T, F>(members: &'a [Member<'a>], ask: impl Fn(&'a Member<'a>) -> F) -> DelegateResult<()>
where
    F: Future<Output = DelegateResult<T>>,
{
    join_all(members.iter().map(ask)).await.into_iter().collect::<DelegateResult<Vec<T>>>().map(drop)
}

fn spec(row: &Snapshot) -> SnapshotSpec {
    SnapshotSpec { snapshot: row.id.clone(), volume: row.volume_id.clone(), cut: false }
}
