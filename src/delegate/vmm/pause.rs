//! Pauses of machines: who asked for one, whether it held, and that each ends.
//!
//! QEMU pauses a whole machine; a snapshot asks for one volume. Snapshots of volumes of one machine therefore share a pause,
//! and the machine goes on when the last of them is done. A machine that somebody else has paused is left paused.
//!
//! QEMU has no pause that ends by itself. A record of the pause is on disk before `stop` is sent; it ends by a timer in this
//! process, or, should this process die, when the next one starts. A `cont` that is owed is tried until it is done or the
//! machine is gone.
//!
//! A caller lengthens its pause by asking again, and must not take a second pause for a longer first one. So a pause that
//! has ended before its time stays on record, also over a restart, until its caller has been told: by an error when it
//! lengthens, or by [`Pause::Broken`] when it resumes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::blocks::{self, Names};
use super::machines::{Machines, Turn};
use super::qmp::QmpError;
use super::{kept, qemu};
use crate::delegate::{DelegateError, DiskSpec, Generation, Pause, Result};
use crate::ids::VolumeId;

/// Whose pause it is: two snapshots of one volume have two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    machine: String,
    volume: VolumeId,
    generation: Generation,
}

/// What must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    key: Key,
    /// Whether a `cont` is ours to send when nobody else holds the machine.
    ours: bool,
    /// Whether it is over, and its caller does not know yet.
    broken: bool,
}

/// One holder of a pause.
#[derive(Debug, Clone)]
struct Holder {
    record: Record,
    /// Whether the caller has been told that it has its pause.
    begun: bool,
    uuid: String,
    /// What the guest had written when the pause began; `None` when the machine had no such disk and so none was needed.
    writes: Option<[u64; 4]>,
    until: Instant,
}

/// The pauses of a node. The holders of a machine change only in turn at that machine.
pub(super) struct Pauses {
    machines: Arc<Machines>,
    holders: Mutex<Vec<Holder>>,
    /// The file of records; the lock is held while it is written.
    file: tokio::sync::Mutex<PathBuf>,
}

impl Pauses {
    /// Reads the records of an earlier life and, in the background, lets the machines in them go on.
    pub(super) async fn open(machines: Arc<Machines>, file: PathBuf) -> Result<Arc<Self>> {
        let records: Vec<Record> = kept::read(&file).await?;
        let now = Instant::now();
        let stale = |record| Holder { record, begun: true, uuid: String::new(), writes: None, until: now };
        let holders: Vec<Holder> = records.into_iter().map(stale).collect();
        let mut stopped: Vec<String> = holders.iter().map(|h| h.record.key.machine.clone()).collect();
        stopped.sort();
        stopped.dedup();
        let pauses = Arc::new(Self { machines, holders: Mutex::new(holders), file: tokio::sync::Mutex::new(file) });
        for machine in stopped {
            tokio::spawn(Arc::clone(&pauses).expire(machine, now));
        }
        Ok(pauses)
    }

    /// Whether a pause of ours rests this machine.
    pub(super) fn paused(&self, machine: &str) -> bool {
        self.lock().iter().any(|h| h.record.key.machine == machine && h.record.ours)
    }

    /// See [`crate::delegate::VmmDelegate::ensure_paused`].
    pub(super) async fn begin(self: &Arc<Self>, generation: Generation, spec: &DiskSpec, seconds: u32) -> Result<()> {
        let key = Key::new(generation, spec);
        let turn = self.machines.turn(&spec.machine).await?;
        let until = Instant::now() + Duration::from_secs(seconds.into());
        let known = self.find(&key);
        let holder = match known {
            Some(known) if known.begun => {
                let held = known.check(&turn).await?;
                if !held {
                    self.close(&turn, &key).await?;
                    return Err(DelegateError::retry(
                        "the pause ended before its time: what was copied is worth nothing",
                    ));
                }
                Holder { until, ..known }
            }
            unfinished => {
                let ours = unfinished.is_some_and(|h| h.record.ours);
                let record = Record { key: key.clone(), ours, broken: false };
                let mut holder = Holder { record, begun: false, uuid: String::new(), writes: None, until };
                self.stop(&turn, &mut holder).await?;
                Holder { begun: true, ..holder }
            }
        };
        self.put(holder);
        self.save().await?;
        tokio::spawn(Arc::clone(self).expire(key.machine, until));
        Ok(())
    }

    /// See [`crate::delegate::VmmDelegate::ensure_resumed`].
    pub(super) async fn end(&self, generation: Generation, spec: &DiskSpec) -> Result<Pause> {
        let key = Key::new(generation, spec);
        let turn = self.machines.turn(&spec.machine).await?;
        let Some(holder) = self.find(&key) else {
            return Ok(Pause::Broken);
        };
        let held = holder.check(&turn).await?;
        self.close(&turn, &key).await?;
        Ok(if held { Pause::Held } else { Pause::Broken })
    }

    /// Stops the machine unless it rests already, and reads the marks that tell whether it stays so.
    async fn stop(self: &Arc<Self>, turn: &Turn, holder: &mut Holder) -> Result<()> {
        let key = holder.record.key.clone();
        let told = |e| qemu::error(&key.machine, &e);
        let mut qmp = match turn.connect(qemu::LIMIT).await {
            // Its initiator died with it: there is nothing to rest.
            Err(QmpError::NotRunning) => return Ok(()),
            connected => connected.map_err(told)?,
        };
        let names = Names::of(&key.volume);
        holder.uuid = qemu::uuid(&mut qmp).await.map_err(told)?;
        if !qemu::parts(&mut qmp, &names).await.map_err(told)?.device {
            return Ok(());
        }
        let running = qemu::running(&mut qmp).await.map_err(told)?;
        holder.record.ours |= running || self.paused(&key.machine);
        if running {
            // `stop` waits for every request in flight: with a target away, it would hang the machine.
            let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true})).await.map_err(told)?;
            for portal in blocks::portals(&nodes) {
                qemu::portal_answers(&portal).await?;
            }
            // Until the caller has its pause, a `cont` is owed at once.
            let now = Instant::now();
            self.put(Holder { until: now, ..holder.clone() });
            self.save().await?;
            if let Err(e) = qmp.execute("stop", json!({})).await {
                tokio::spawn(Arc::clone(self).expire(key.machine.clone(), now));
                return Err(told(e));
            }
        }
        let stats = qmp.execute("query-blockstats", json!({})).await;
        if stats.is_err() {
            tokio::spawn(Arc::clone(self).expire(key.machine.clone(), Instant::now()));
        }
        holder.writes = stats.map(|s| blocks::writes(&names, &s)).map_err(told)?;
        Ok(())
    }

    /// Drops a holder, and lets the machine go on when nobody else holds it.
    async fn close(&self, turn: &Turn, key: &Key) -> Result<()> {
        let owed = self.find(key).is_some_and(|h| h.record.ours);
        let others =
            self.lock().iter().any(|h| h.record.ours && h.record.key.machine == key.machine && h.record.key != *key);
        if owed && !others {
            go_on(turn, &key.machine).await?;
        }
        self.lock().retain(|h| h.record.key != *key);
        self.save().await
    }

    /// Ends what has run out at a machine.
    async fn expire(self: Arc<Self>, machine: String, at: Instant) {
        sleep_until(at).await;
        loop {
            match self.machines.turn(&machine).await {
                Ok(turn) => match self.break_expired(&turn, &machine).await {
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

    async fn break_expired(&self, turn: &Turn, machine: &str) -> Result<()> {
        let now = Instant::now();
        let out = |h: &Holder| h.record.key.machine == machine && h.until <= now && !h.record.broken;
        let (owed, others) = {
            let holders = self.lock();
            let of_machine = || holders.iter().filter(|h| h.record.key.machine == machine && h.record.ours);
            (of_machine().any(out), of_machine().any(|h| !out(h)))
        };
        if owed && !others {
            tracing::warn!(machine, "a pause has run out: the machine goes on");
            go_on(turn, machine).await?;
        }
        {
            let mut holders = self.lock();
            holders.retain(|h| h.begun || !out(h));
            for holder in holders.iter_mut().filter(|h| out(h)) {
                holder.record = Record { ours: false, broken: true, ..holder.record.clone() };
            }
        }
        self.save().await
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Holder>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key) -> Option<Holder> {
        self.lock().iter().find(|h| h.record.key == *key).cloned()
    }

    /// Puts a holder in the place of what there was under its key. Of older pauses of the volume that broke, the callers
    /// are gone.
    fn put(&self, holder: Holder) {
        let key = &holder.record.key;
        let outlived = |h: &Holder| {
            let other = &h.record.key;
            h.record.broken && other.volume == key.volume && other.generation < key.generation
        };
        let mut holders = self.lock();
        holders.retain(|h| h.record.key != *key && !outlived(h));
        holders.push(holder);
    }

    async fn save(&self) -> Result<()> {
        let file = self.file.lock().await;
        let records: Vec<Record> = self.lock().iter().map(|h| h.record.clone()).collect();
        kept::write(&file, &records).await
    }
}

impl Key {
    fn new(generation: Generation, spec: &DiskSpec) -> Self {
        Self { machine: spec.machine.clone(), volume: spec.volume.clone(), generation }
    }
}

impl Holder {
    /// Whether the pause has held until now: the machine is the same, rests, and has not written since it began.
    async fn check(&self, turn: &Turn) -> Result<bool> {
        if self.record.broken || Instant::now() >= self.until {
            return Ok(false);
        }
        let told = |e| qemu::error(&self.record.key.machine, &e);
        let mut qmp = match turn.connect(qemu::LIMIT).await {
            Err(QmpError::NotRunning) => return Ok(self.writes.is_none()),
            connected => connected.map_err(told)?,
        };
        let stats = qmp.execute("query-blockstats", json!({})).await.map_err(told)?;
        let now = blocks::writes(&Names::of(&self.record.key.volume), &stats);
        if now.is_none() || now != self.writes {
            return Ok(now == self.writes);
        }
        let rests = !qemu::running(&mut qmp).await.map_err(told)?;
        Ok(rests && qemu::uuid(&mut qmp).await.map_err(told)? == self.uuid)
    }
}

/// Sends `cont`. A machine that refuses it is in a state (shut down, failed) that no pause of ours brought about.
async fn go_on(turn: &Turn, machine: &str) -> Result<()> {
    let mut qmp = match turn.connect(qemu::LIMIT).await {
        Err(QmpError::NotRunning) => return Ok(()),
        connected => connected.map_err(|e| qemu::error(machine, &e))?,
    };
    match qmp.execute("cont", json!({})).await {
        Err(QmpError::Refused { text, .. }) => {
            tracing::warn!(machine, text, "a paused machine refuses to go on");
            Ok(())
        }
        done => done.map(drop).map_err(|e| qemu::error(machine, &e)),
    }
}
