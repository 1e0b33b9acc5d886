//! Pauses of machines: who asked for one, whether it held, and that each ends.
//!
//! QEMU pauses a whole machine; a snapshot asks for one volume. Snapshots of volumes of one machine therefore share a pause,
//! and the machine goes on when the last of them is done. A machine that somebody else has paused is left paused.
//!
//! QEMU has no pause that ends by itself. A record of the pause is on disk before `stop` is sent; it ends by a timer in this
//! process, or, should this process die, when the next one starts. A `cont` that is owed is tried until it is done or the
//! machine is gone.
//!
//! A pause is a snapshot's, and of the newest generation that asked for it. A newer generation takes the pause over as one that
//! begins now, or ends it: the worker before it is gone, or about to learn that it is.
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
use crate::delegate::{DelegateError, Generation, MachineRef, Pause, PauseSpec, Result};
use crate::ids::{SnapshotId, VolumeId};

/// How long after its end a broken pause stays on record for a caller that does not ask. One that has not lengthened its pause
/// for so long has lost its lease.
const FORGET: Duration = Duration::from_secs(3600);

/// What a pause is for: two snapshots of one volume have two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    machine: MachineRef,
    volume: VolumeId,
    snapshot: SnapshotId,
}

/// What must be known after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    key: Key,
    /// Whose it is.
    generation: Generation,
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
        let stale = |record| Holder { record, begun: true, writes: None, until: now };
        let holders: Vec<Holder> = records.into_iter().map(stale).collect();
        let mut stopped: Vec<MachineRef> = holders.iter().map(|h| h.record.key.machine.clone()).collect();
        stopped.sort_by(|a, b| (&a.name, &a.uuid).cmp(&(&b.name, &b.uuid)));
        stopped.dedup();
        let pauses = Arc::new(Self { machines, holders: Mutex::new(holders), file: tokio::sync::Mutex::new(file) });
        for machine in stopped {
            tokio::spawn(Arc::clone(&pauses).expire(machine, now));
        }
        Ok(pauses)
    }

    /// Whether a pause of ours rests this machine.
    pub(super) fn paused(&self, machine: &MachineRef) -> bool {
        self.lock().iter().any(|h| h.record.key.machine == *machine && h.record.ours)
    }

    /// See [`crate::delegate::VmmDelegate::ensure_paused`].
    pub(super) async fn begin(self: &Arc<Self>, generation: Generation, spec: &PauseSpec) -> Result<()> {
        let key = Key::new(spec);
        let turn = self.machines.turn(&key.machine.name).await?;
        let until = Instant::now() + Duration::from_secs(spec.seconds.into());
        let holder = match self.find(&key) {
            Some(known) if known.record.generation > generation => {
                return Err(DelegateError::stale(known.record.generation, generation));
            }
            Some(known) if known.begun && known.record.generation == generation => {
                let held = known.check(&turn).await?;
                if !held {
                    self.close(&turn, &key).await?;
                    return Err(DelegateError::retry(
                        "the pause ended before its time: what was copied is worth nothing",
                    ));
                }
                Holder { until, ..known }
            }
            // None, or one that is unfinished or another caller's.
            other => {
                let ours = other.is_some_and(|h| h.record.ours);
                let record = Record { key: key.clone(), generation, ours, broken: false };
                let mut holder = Holder { record, begun: false, writes: None, until };
                self.stop(&turn, &mut holder).await?;
                Holder { begun: true, ..holder }
            }
        };
        self.put(holder);
        // Before anything that may fail: a machine that rests has a timer, always.
        tokio::spawn(Arc::clone(self).expire(key.machine, until));
        self.save().await
    }

    /// See [`crate::delegate::VmmDelegate::ensure_resumed`].
    pub(super) async fn end(&self, generation: Generation, spec: &PauseSpec) -> Result<Pause> {
        let key = Key::new(spec);
        let turn = self.machines.turn(&key.machine.name).await?;
        let Some(holder) = self.find(&key).filter(|h| h.record.generation <= generation) else {
            return Ok(Pause::Broken);
        };
        let held = holder.record.generation == generation && holder.check(&turn).await?;
        self.close(&turn, &key).await?;
        Ok(if held { Pause::Held } else { Pause::Broken })
    }

    /// Stops the machine unless it rests already, and reads the marks that tell whether it stays so.
    async fn stop(self: &Arc<Self>, turn: &Turn, holder: &mut Holder) -> Result<()> {
        let key = holder.record.key.clone();
        let told = |e| qemu::error(&key.machine.name, &e);
        let mut qmp = match turn.connect(qemu::LIMIT).await {
            // Its initiator died with it: there is nothing to rest.
            Err(QmpError::NotRunning) => {
                holder.record.ours = false;
                return Ok(());
            }
            connected => connected.map_err(told)?,
        };
        qemu::refuse_another(&mut qmp, &key.machine).await?;
        let names = Names::of(&key.volume);
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
            // Until the caller has its pause, a `cont` is owed at once. The timer waits for our turn to end, and finds nothing
            // to do when all has gone well.
            let now = Instant::now();
            self.put(Holder { until: now, ..holder.clone() });
            tokio::spawn(Arc::clone(self).expire(key.machine.clone(), now));
            self.save().await?;
            qmp.execute("stop", json!({})).await.map_err(told)?;
        }
        let stats = qmp.execute("query-blockstats", json!({})).await.map_err(told)?;
        holder.writes = blocks::writes(&names, &stats);
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
    async fn expire(self: Arc<Self>, machine: MachineRef, at: Instant) {
        sleep_until(at).await;
        loop {
            match self.machines.turn(&machine.name).await {
                Ok(turn) => match self.break_expired(&turn, &machine).await {
                    Ok(()) => return,
                    Err(e) => {
                        tracing::warn!(machine = machine.name, error = %e, "a pause that has run out cannot end yet");
                    }
                },
                Err(e) => {
                    tracing::error!(machine = machine.name, error = %e, "a record of a pause is damaged");
                    return;
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn break_expired(&self, turn: &Turn, machine: &MachineRef) -> Result<()> {
        let now = Instant::now();
        let out = |h: &Holder| h.record.key.machine == *machine && h.until <= now && !h.record.broken;
        let (owed, others) = {
            let holders = self.lock();
            let of_machine = || holders.iter().filter(|h| h.record.key.machine == *machine && h.record.ours);
            (of_machine().any(out), of_machine().any(|h| !out(h)))
        };
        if owed && !others {
            tracing::warn!(machine = machine.name, "a pause has run out: the machine goes on");
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

    /// Puts a holder in the place of what there was under its key, and drops what nobody has asked for any more.
    fn put(&self, holder: Holder) {
        let now = Instant::now();
        let forgotten = |h: &Holder| h.record.broken && h.until + FORGET <= now;
        let mut holders = self.lock();
        holders.retain(|h| h.record.key != holder.record.key && !forgotten(h));
        holders.push(holder);
    }

    async fn save(&self) -> Result<()> {
        let file = self.file.lock().await;
        let records: Vec<Record> = self.lock().iter().map(|h| h.record.clone()).collect();
        kept::write(&file, &records).await
    }
}

impl Key {
    fn new(spec: &PauseSpec) -> Self {
        let PauseSpec { disk, snapshot, .. } = spec;
        Self { machine: disk.machine.clone(), volume: disk.volume.clone(), snapshot: snapshot.clone() }
    }
}

impl Holder {
    /// Whether the pause has held until now: the machine is the same, rests, and has not written since it began.
    async fn check(&self, turn: &Turn) -> Result<bool> {
        if self.record.broken || Instant::now() >= self.until {
            return Ok(false);
        }
        let machine = &self.record.key.machine;
        let told = |e| qemu::error(&machine.name, &e);
        let mut qmp = match turn.connect(qemu::LIMIT).await {
            Err(QmpError::NotRunning) => return Ok(self.writes.is_none()),
            connected => connected.map_err(told)?,
        };
        if !qemu::is_meant(&mut qmp, machine).await.map_err(told)? {
            return Ok(self.writes.is_none());
        }
        let stats = qmp.execute("query-blockstats", json!({})).await.map_err(told)?;
        let now = blocks::writes(&Names::of(&self.record.key.volume), &stats);
        if now.is_none() || now != self.writes {
            return Ok(now == self.writes);
        }
        Ok(!qemu::running(&mut qmp).await.map_err(told)?)
    }
}

/// Sends `cont`. A machine that refuses it is in a state (shut down, failed) that no pause of ours brought about.
async fn go_on(turn: &Turn, machine: &MachineRef) -> Result<()> {
    let (MachineRef { name, .. }, told) = (machine, |e| qemu::error(&machine.name, &e));
    let mut qmp = match turn.connect(qemu::LIMIT).await {
        Err(QmpError::NotRunning) => return Ok(()),
        connected => connected.map_err(told)?,
    };
    // Whoever paused another machine of this name, it was not us.
    if !qemu::is_meant(&mut qmp, machine).await.map_err(told)? {
        return Ok(());
    }
    match qmp.execute("cont", json!({})).await {
        Err(QmpError::Refused { text, .. }) => {
            tracing::warn!(machine = name, text, "a paused machine refuses to go on");
            Ok(())
        }
        done => done.map(drop).map_err(told),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fake::Monitor;
    use super::*;
    use crate::delegate::{DiskSpec, Limits};

    const UUID: &str = "00000000-0000-4000-8000-000000000001";
    const G: Generation = Generation(1);

    /// A pause of the one disk of a machine that runs.
    async fn lab(dir: &Path) -> (Monitor, Arc<Pauses>, PauseSpec) {
        std::fs::create_dir(dir.join("data")).unwrap();
        let monitor = Monitor::start(dir, "vm-1", UUID);
        let machines = Arc::new(Machines::new(dir.to_owned()));
        let pauses = Pauses::open(machines, dir.join("data/pauses.json")).await.unwrap();
        let volume = VolumeId::generate();
        monitor.state().devices.push(volume.serial());
        let machine = MachineRef { name: "vm-1".into(), uuid: UUID.into() };
        let disk = DiskSpec {
            volume,
            iqn: "iqn.2026-01.t:v1".into(),
            machine,
            device: "/dev/sdf".into(),
            limits: Limits::default(),
        };
        (monitor, pauses, PauseSpec { disk, snapshot: SnapshotId::generate(), seconds: 1 })
    }

    async fn goes_on(monitor: &Monitor) {
        let waiting = async {
            while !monitor.state().running {
                sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the guest stands still for ever");
    }

    #[tokio::test]
    async fn a_pause_that_cannot_be_written_down_ends_all_the_same() {
        // When the disk fails before the machine is stopped, just then, and when the pause is lengthened.
        for fails in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            let (monitor, pauses, spec) = lab(dir.path()).await;
            let data = dir.path().join("data");
            let fail = move || std::fs::remove_dir_all(data).unwrap();
            match fails {
                0 => fail(),
                1 => monitor.state().on_stop = Some(Box::new(fail)),
                _ => {
                    pauses.begin(G, &spec).await.unwrap();
                    assert!(!monitor.state().running);
                    fail();
                }
            }
            let spec = PauseSpec { seconds: 2, ..spec };
            pauses.begin(G, &spec).await.unwrap_err();
            goes_on(&monitor).await;
            // Nor does what is left of it hold the machine against the pause of another snapshot.
            std::fs::create_dir(dir.path().join("data")).unwrap();
            let other = PauseSpec { snapshot: SnapshotId::generate(), seconds: 60, ..spec };
            pauses.begin(G, &other).await.unwrap();
            assert_eq!(pauses.end(G, &other).await.unwrap(), Pause::Held);
            goes_on(&monitor).await;
            assert!(!pauses.paused(&other.disk.machine));
        }
    }

    #[tokio::test]
    async fn a_pause_that_broke_is_not_begun_anew_while_other_snapshots_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (monitor, pauses, spec) = lab(dir.path()).await;
        pauses.begin(G, &spec).await.unwrap();
        goes_on(&monitor).await;
        let other = PauseSpec { snapshot: SnapshotId::generate(), seconds: 60, ..spec.clone() };
        let later = Generation(2);
        pauses.begin(later, &other).await.unwrap();
        pauses.begin(G, &spec).await.expect_err("what was copied between the two is worth nothing");
        assert_eq!(pauses.end(later, &other).await.unwrap(), Pause::Held);
    }

    #[tokio::test]
    async fn the_pause_of_a_machine_that_is_gone_ends_no_pause_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (monitor, pauses, spec) = lab(dir.path()).await;
        pauses.begin(G, &spec).await.unwrap();
        monitor.end().await;
        let another = Monitor::start(dir.path(), "vm-1", "00000000-0000-4000-8000-000000000002");
        another.state().running = false;
        assert_eq!(pauses.end(G, &spec).await.unwrap(), Pause::Broken);
        assert_eq!(another.state().changes, [""; 0]);
    }
}
