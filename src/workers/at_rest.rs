//! Does something while machines stand still: the machines' I/O rests, and goes on when it is done, however it went.
//!
//! What was done counts only if every pause held all the time. A pause ends by itself when nobody lengthens it, so that no crash
//! of ours leaves a guest frozen.

use std::future::Future;
use std::time::Duration;

use super::attach_volume;
use super::engine::{Run, StepError};
use crate::db::attachments::{self, Located};
use crate::delegate::{DiskSpec, Limits, Pause, PauseSpec, Result as DelegateResult, SnapshotSpec};
use crate::ids::SnapshotId;

/// How long a pause lasts unless it is lengthened: the longest a guest stands still after a crash of ours.
const PAUSE_S: u32 = 30;

/// A disk whose machine is to rest, with the hypervisor node that has it.
pub(super) struct Resting {
    node: String,
    pause: PauseSpec,
}

/// The disks that the volume of a snapshot is right now.
pub(super) async fn disks(run: &Run<'_>, spec: &SnapshotSpec) -> Result<Vec<Resting>, StepError> {
    let live = attachments::live_of_volume(&mut *run.conn().await?, &spec.volume).await?;
    Ok(live.into_iter().map(|located| resting(located, &spec.snapshot)).collect())
}

fn resting((row, ends): Located, snapshot: &SnapshotId) -> Resting {
    let machine = attach_volume::machine(&ends);
    let (limits, device) = (Limits::default(), row.device);
    let disk = DiskSpec { volume: row.volume_id, iqn: row.iqn, machine, device, limits };
    Resting { node: ends.vmm_node, pause: PauseSpec { disk, snapshot: snapshot.clone(), seconds: PAUSE_S } }
}

/// Does the work while the machines of these disks rest.
pub(super) async fn during<T>(
    run: &Run<'_>,
    disks: &[Resting],
    work: impl Future<Output = DelegateResult<T>>,
) -> Result<T, StepError> {
    let done = match pause_all(run, disks).await {
        Ok(()) => while_paused(run, disks, work).await,
        Err(error) => Err(error),
    };
    // Those that could not be paused too: nobody knows how far that went.
    let held = resume(run, disks).await;
    let done = done?;
    if held? { Ok(done) } else { Err(StepError::Retry("the guest's pause ended before the copy did".into())) }
}

/// Ends the pauses that earlier tries have left.
pub(super) async fn resume_all(run: &Run<'_>, disks: &[Resting]) -> Result<(), StepError> {
    resume(run, disks).await.map(drop)
}

async fn pause_all(run: &Run<'_>, disks: &[Resting]) -> DelegateResult<()> {
    for Resting { node, pause } in disks {
        run.context.nodes.hypervisor(node)?.ensure_paused(run.generation, pause).await?;
    }
    Ok(())
}

/// Asks all of them, also when one fails; tells whether every pause has held.
async fn resume(run: &Run<'_>, disks: &[Resting]) -> Result<bool, StepError> {
    let mut held = Ok(true);
    for Resting { node, pause } in disks {
        let resumed = async { run.context.nodes.hypervisor(node)?.ensure_resumed(run.generation, pause).await };
        held = match (resumed.await, held) {
            (Err(error), Ok(_)) => Err(error.into()),
            (Ok(Pause::Broken), Ok(_)) => Ok(false),
            (_, before) => before,
        };
    }
    held
}

/// Lengthens the pauses for as long as the work takes.
async fn while_paused<T>(
    run: &Run<'_>,
    disks: &[Resting],
    work: impl Future<Output = DelegateResult<T>>,
) -> DelegateResult<T> {
    let lengthen = async {
        loop {
            tokio::time::sleep(Duration::from_secs(u64::from(PAUSE_S) / 3)).await;
            pause_all(run, disks).await?;
        }
    };
    tokio::select! {
        done = work => done,
        stopped = lengthen => stopped,
    }
}
