//! Pauses of machines: who asked for one, and that each ends.
//!
//! QEMU pauses a whole machine; a snapshot asks for one volume. Two snapshots of volumes of one machine therefore share a
//! pause, and the machine goes on when the last of them is done. A machine that somebody else has paused is left paused.
//!
//! QEMU has no pause that ends by itself. A record of the pause is on disk before `stop` is sent; it ends by a timer in this
//! process, or, should this process die, when the next one starts. A `cont` that is owed is tried until it is done or the
//! machine is gone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::blocks::{self, Names};
use super::machines::{Machines, Turn};
use super::qmp::{Qmp, QmpError};
use super::{kept, qemu};
use crate::delegate::{DiskSpec, Pause, Result};
use crate::ids::VolumeId;

/// One holder of a pause.
#[derive(Debug, Clone)]
struct Holder {
    on_disk: Record,
    uuid: String,
    /// What the guest had written when the pause began; `None` when the machine had no such disk and so none was needed.
    writes: Option<[u64; 4]>,
    until: Instant,
}

/// What must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    machine: String,
    volume: VolumeId,
    /// Whether `stop` was ours, so that `cont` is ours to send.
    ours: bool,
}

/// The pauses of a node.
pub(super) struct Pauses {
    machines: Arc<Machines>,
    holders: Mutex<Vec<Holder>>,
    /// The file of records; the lock is held while it is written.
    file: tokio::sync::Mutex<PathBuf>,
}

impl Pauses {
    /// Reads the records of an earlier life and, in the background, lets the machines in them go on.
    pub(super) async fn open(machines: Arc<Machines>, file: PathBuf) -> Result<Arc<Self>> {
        let stale: Vec<Record> = kept::read(&file).await?;
        let now = Instant::now();
        let holders =
            stale.into_iter().map(|on_disk| Holder { on_disk, uuid: String::new(), writes: None, until: now });
        let holders: Vec<Holder> = holders.collect();
        let pauses = Arc::new(Self { machines, holders: Mutex::new(holders), file: tokio::sync::Mutex::new(file) });
        for holder in pauses.lock().iter() {
            tokio::spawn(Arc::clone(&pauses).expire(holder.on_disk.machine.clone(), now));
        }
        Ok(pauses)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn save(&self) -> Result<()> {
        let file = self.file.lock().await;
        let records: Vec<Record> = self.lock().iter().map(|h| h.on_disk.clone()).collect();
        kept::write(&file, &records).await
    }

    /// Whether a pause of ours rests this machine.
    pub(super) fn paused(&self, machine: &str) -> bool {
        self.lock().iter().any(|h| h.on_disk.machine == machine && h.on_disk.ours)
    }

    /// See [`crate::delegate::VmmDelegate::ensure_paused`].
    pub(super) async fn begin(self: &Arc<Self>, spec: &DiskSpec, seconds: u32) -> Result<()> {
        let turn = self.machines.turn(&spec.machine).await?;
        let until = Instant::now() + Duration::from_secs(seconds.into());
        // A pause that goes over into this one leaves its debt to it.
        let ours = self.lock().iter().any(|h| h.on_disk.ours && h.on_disk.is_for(spec));
        let record = Record { machine: spec.machine.clone(), volume: spec.volume.clone(), ours };
        let mut holder = Holder { on_disk: record, uuid: String::new(), writes: None, until };
        match turn.connect(qemu::LIMIT).await {
            // Its initiator died with it: there is nothing to rest.
            Err(QmpError::NotRunning) => {}
            Err(e) => return Err(qemu::error(&spec.machine, &e)),
            Ok(mut qmp) => self.stop(&mut qmp, spec, &mut holder).await?,
        }
        self.put(holder);
        self.save().await?;
        tokio::spawn(Arc::clone(self).expire(spec.machine.clone(), until));
        Ok(())
    }

    /// Stops the machine unless it rests already, and reads the mark that tells whether it stayed so.
    async fn stop(self: &Arc<Self>, qmp: &mut Qmp, spec: &DiskSpec, holder: &mut Holder) -> Result<()> {
        let names = Names::of(&spec.volume);
        let told = |e| qemu::error(&spec.machine, &e);
        holder.uuid = qemu::uuid(qmp).await.map_err(told)?;
        let parts = qemu::parts(qmp, &names).await.map_err(told)?;
        if !parts.device {
            return Ok(());
        }
        let running = qemu::running(qmp).await.map_err(told)?;
        holder.on_disk.ours = running || self.paused(&spec.machine);
        if running {
            // `stop` waits for every request in flight: with a target away, it would hang the machine.
            let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true})).await.map_err(told)?;
            for portal in blocks::portals(&nodes) {
                qemu::portal_answers(&portal).await?;
            }
            self.put(holder.clone());
            self.save().await?;
            if let Err(e) = qmp.execute("stop", json!({})).await {
                // It may yet come to pass: a `cont` is owed.
                self.put(Holder { until: Instant::now(), ..holder.clone() });
                tokio::spawn(Arc::clone(self).expire(spec.machine.clone(), Instant::now()));
                return Err(told(e));
            }
        }
        let stats = qmp.execute("query-blockstats", json!({})).await;
        holder.writes = stats.map(|s| blocks::writes(&names, &s)).map_err(told)?;
        Ok(())
    }

    /// See [`crate::delegate::VmmDelegate::ensure_resumed`].
    pub(super) async fn end(self: &Arc<Self>, spec: &DiskSpec) -> Result<Pause> {
        let turn = self.machines.turn(&spec.machine).await?;
        let mine = |h: &Holder| h.on_disk.is_for(spec);
        let Some(holder) = self.lock().iter().find(|h| mine(h)).cloned() else {
            return Ok(Pause::Broken);
        };
        let (held, connection) = match turn.connect(qemu::LIMIT).await {
            Err(QmpError::NotRunning) => (holder.writes.is_none(), None),
            Err(e) => return Err(qemu::error(&spec.machine, &e)),
            Ok(mut qmp) => {
                let held = holder.held(&mut qmp).await.map_err(|e| qemu::error(&spec.machine, &e))?;
                (held && Instant::now() < holder.until, Some(qmp))
            }
        };
        let others = self.lock().iter().any(|h| h.on_disk.machine == spec.machine && h.on_disk.ours && !mine(h));
        if let Some(mut qmp) = connection.filter(|_| holder.on_disk.ours && !others) {
            go_on(&mut qmp).await.map_err(|e| qemu::error(&spec.machine, &e))?;
        }
        self.lock().retain(|h| !mine(h));
        self.save().await?;
        Ok(if held { Pause::Held } else { Pause::Broken })
    }

    fn put(&self, holder: Holder) {
        let mut holders = self.lock();
        let same =
            |h: &Holder| h.on_disk.machine == holder.on_disk.machine && h.on_disk.volume == holder.on_disk.volume;
        holders.retain(|h| !same(h));
        holders.push(holder);
    }

    /// Drops what has run out at a machine, and lets it go on when nobody holds it any more.
    async fn expire(self: Arc<Self>, machine: String, at: Instant) {
        sleep_until(at).await;
        loop {
            match self.machines.turn(&machine).await {
                Ok(turn) => match self.drop_expired(&turn, &machine).await {
                    Ok(()) => return,
                    Err(e) => tracing::warn!(machine, error = %e, "a pause that has run out cannot be ended yet"),
                },
                Err(e) => {
                    tracing::error!(machine, error = %e, "a record of a pause is damaged");
                    return;
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn drop_expired(&self, turn: &Turn, machine: &str) -> Result<()> {
        let now = Instant::now();
        let out = |h: &Holder| h.on_disk.machine == machine && h.until <= now;
        let (expired, left): (Vec<Holder>, Vec<Holder>) =
            self.lock().iter().filter(|h| h.on_disk.machine == machine).cloned().partition(out);
        if expired.is_empty() {
            return Ok(());
        }
        if expired.iter().any(|h| h.on_disk.ours) && !left.iter().any(|h| h.on_disk.ours) {
            tracing::warn!(machine, "a pause has run out: the machine goes on");
            match turn.connect(qemu::LIMIT).await {
                Err(QmpError::NotRunning) => {}
                Err(e) => return Err(qemu::error(machine, &e)),
                Ok(mut qmp) => go_on(&mut qmp).await.map_err(|e| qemu::error(machine, &e))?,
            }
        }
        self.lock().retain(|h| !out(h));
        self.save().await
    }
}

impl Record {
    fn is_for(&self, spec: &DiskSpec) -> bool {
        self.machine == spec.machine && self.volume == spec.volume
    }
}

impl Holder {
    /// Whether the machine is the same, rests, and has not written since the pause began.
    async fn held(&self, qmp: &mut Qmp) -> std::result::Result<bool, QmpError> {
        let names = Names::of(&self.on_disk.volume);
        let stats = qmp.execute("query-blockstats", json!({})).await?;
        let now = blocks::writes(&names, &stats);
        if self.writes.is_none() || now.is_none() {
            return Ok(now == self.writes);
        }
        Ok(now == self.writes && !qemu::running(qmp).await? && qemu::uuid(qmp).await? == self.uuid)
    }
}

/// Sends `cont`. A machine that refuses it is in a state (shut down, failed) that no pause of ours brought about.
async fn go_on(qmp: &mut Qmp) -> std::result::Result<(), QmpError> {
    match qmp.execute("cont", json!({})).await {
        Err(QmpError::Refused { text, .. }) => {
            tracing::warn!(text, "a paused machine refuses to go on");
            Ok(())
        }
        done => done.map(drop),
    }
}
