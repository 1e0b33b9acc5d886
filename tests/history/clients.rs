//! Clients by the hundred, in groups that share volumes and snapshots, so that they get into each other's way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use vbs::ids::{SnapshotId, VolumeId};
use vbs::state::{SnapshotState, VolumeState};

use crate::client::Client;
use crate::nodes::ZONES;
use crate::record::{Action, Outcome, What};
use crate::workload::{self, Step};
use crate::world::{OTHER, World};

/// How many there are.
pub const CLIENTS: usize = 200;
/// How many share what they make.
const GROUP: usize = 8;
/// The most volumes and snapshots that a group keeps.
const MOST: usize = 6;
/// The longest pause between two steps of a client.
const PAUSE_MS: u64 = 1500;
/// The size of a new volume that is made of nothing, in GiB, and the largest that one becomes.
const SIZE: u64 = 4;
const LARGEST: u64 = 200;
/// The keys of tags.
const KEYS: [&str; 3] = ["a", "b", "c"];

/// What a group has.
#[derive(Default)]
pub struct Group(Mutex<Things>);

#[derive(Default, Clone)]
pub struct Things {
    pub volumes: Vec<Volume>,
    pub snapshots: Vec<String>,
    /// What was asked for last, for those who ask for it again.
    order: Option<Order>,
}

#[derive(Clone)]
pub struct Volume {
    pub id: String,
    zone: &'static str,
}

/// A volume as it is asked for.
#[derive(Clone)]
struct Order {
    token: String,
    zone: &'static str,
    snapshot: Option<String>,
    multi_attach: bool,
}

impl Group {
    pub fn things(&self) -> MutexGuard<'_, Things> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets all clients work until so many calls are made; gives what they have in the end.
pub async fn work(world: &Arc<World>, seed: u64, calls: u64) -> Vec<Things> {
    let groups: Vec<Arc<Group>> = (0..CLIENTS.div_ceil(GROUP)).map(|_| Arc::default()).collect();
    let left = Arc::new(AtomicU64::new(calls));
    let clients = (0..CLIENTS).map(|number| {
        let (world, group, left) = (world.clone(), groups[number / GROUP].clone(), left.clone());
        tokio::spawn(async move {
            let rng = StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let client = Client::new(format!("client {number}"), &world, rng);
            Worker { client, group: &group }.work(&left).await;
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client does not panic");
    }
    groups.iter().map(|group| group.things().clone()).collect()
}

struct Worker<'a> {
    client: Client<'a>,
    group: &'a Group,
}

impl Worker<'_> {
    async fn work(&mut self, left: &AtomicU64) {
        loop {
            let step = workload::next(&mut self.client.rng);
            // A write is no call.
            if step != Step::Write {
                let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
                if taken.is_err() {
                    return;
                }
            }
            self.step(step).await;
            let pause = self.client.rng.random_range(0..PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn step(&mut self, step: Step) {
        let things = self.group.things().clone();
        let volume = things.volumes.choose(&mut self.client.rng).cloned();
        let snapshot = things.snapshots.choose(&mut self.client.rng).cloned();
        match (step, volume, snapshot) {
            (Step::Delete, Some(volume), _) if things.volumes.len() > MOST / 2 => self.delete(&volume).await,
            (Step::Attach, Some(volume), _) => self.attach(&volume).await,
            (Step::Detach, Some(volume), _) => self.detach(&volume).await,
            (Step::TakeSnapshot, Some(volume), _) if things.snapshots.len() < MOST => self.take_snapshot(&volume).await,
            (Step::Write, Some(volume), _) => write(&self.client, &volume.id),
            (Step::Restore, _, Some(snapshot)) if things.volumes.len() < MOST => self.create(Some(snapshot)).await,
            (Step::DeleteSnapshot, _, Some(snapshot)) => self.delete_snapshot(snapshot).await,
            (Step::DescribeSnapshot, _, Some(snapshot)) => self.describe_snapshot(&snapshot).await,
            (Step::Modify, Some(volume), _) => self.modify(&volume).await,
            (Step::Tag, Some(volume), _) => self.tag(&volume, true).await,
            (Step::Untag, Some(volume), _) => self.tag(&volume, false).await,
            (Step::Copy, _, Some(snapshot)) if things.snapshots.len() < MOST => self.copy(snapshot).await,
            (Step::CopyVolume, Some(volume), _) if things.volumes.len() < MOST => self.copy_volume(&volume).await,
            (Step::Share, _, Some(snapshot)) => self.share(snapshot).await,
            (Step::DescribeShared, _, Some(snapshot)) => self.describe_shared(snapshot).await,
            (Step::List, _, _) => self.client.list_volumes().await,
            (Step::Create, _, _) if things.volumes.len() < MOST => self.create(None).await,
            (Step::CreateAgain, _, _) if things.order.is_some() => self.create_again(things.order).await,
            (_, Some(volume), _) => self.describe(&volume).await,
            (_, None, _) => self.create(None).await,
        }
    }

    async fn create(&mut self, snapshot: Option<String>) {
        let rng = &mut self.client.rng;
        let token = format!("token-{:016x}", rng.random::<u64>());
        let (zone, multi_attach) = (ZONES.choose(rng).unwrap(), rng.random_ratio(1, 5));
        let order = Order { token, zone, snapshot, multi_attach };
        self.group.things().order = Some(order.clone());
        self.order(order).await;
    }

    async fn create_again(&mut self, order: Option<Order>) {
        if let Some(order) = order {
            self.order(order).await;
        }
    }

    async fn order(&mut self, order: Order) {
        let Order { token, zone, snapshot, multi_attach } = order;
        let mut parameters = vec![("AvailabilityZone", zone), ("ClientToken", &*token)];
        let size = SIZE.to_string();
        // One of a snapshot is as large as that.
        parameters.push(snapshot.as_deref().map_or(("Size", &*size), |snapshot| ("SnapshotId", snapshot)));
        if multi_attach {
            parameters.extend([("VolumeType", "io2"), ("Iops", "100"), ("MultiAttachEnabled", "true")]);
        }
        let action = Action::CreateVolume { token: token.clone(), snapshot: snapshot.clone(), multi_attach };
        self.make(&action, &parameters, zone).await;
    }

    async fn make(&mut self, action: &Action, parameters: &[(&str, &str)], zone: &'static str) {
        if let Outcome::Volume(id, _) = self.client.call(action, parameters).await {
            let mut things = self.group.things();
            if things.volumes.iter().all(|volume| volume.id != id) {
                things.volumes.push(Volume { id, zone });
            }
        }
    }

    /// As with a snapshot, what its guest writes after the answer must not be in it.
    async fn copy_volume(&mut self, source: &Volume) {
        write(&self.client, &source.id);
        let token = format!("token-{:016x}", self.client.rng.random::<u64>());
        let action = Action::CopyVolume { token: token.clone(), source: source.id.clone() };
        self.make(&action, &[("SourceVolumeId", &source.id), ("ClientToken", &token)], source.zone).await;
        write(&self.client, &source.id);
    }

    async fn delete(&mut self, volume: &Volume) {
        let action = Action::DeleteVolume { volume: volume.id.clone() };
        self.client.call(&action, &[("VolumeId", &volume.id)]).await;
        self.describe(volume).await;
    }

    async fn attach(&mut self, volume: &Volume) {
        let world = self.client.world;
        let near: Vec<_> = world.instances.iter().filter(|instance| instance.zone == volume.zone).collect();
        let instance = near.choose(&mut self.client.rng).unwrap().id.clone();
        let device = format!("/dev/sd{}", char::from(self.client.rng.random_range(b'b'..=b'z')));
        let action = Action::AttachVolume { volume: volume.id.clone(), instance: instance.clone() };
        let parameters = [("VolumeId", &*volume.id), ("InstanceId", &instance), ("Device", &device)];
        self.client.call(&action, &parameters).await;
    }

    /// From the instance that has it, which takes a look first.
    async fn detach(&mut self, volume: &Volume) {
        let action = Action::DescribeVolume { volume: volume.id.clone() };
        let seen = self.client.call(&action, &[("VolumeId.1", &volume.id)]).await;
        let Outcome::SeenVolume(seen) = seen else { return };
        let Some((instance, _)) = seen.attachments.choose(&mut self.client.rng) else { return };
        let force = if self.client.rng.random_ratio(1, 4) { "true" } else { "false" };
        let action = Action::DetachVolume { volume: volume.id.clone(), instance: instance.clone() };
        let parameters = [("VolumeId", &*volume.id), ("InstanceId", instance), ("Force", force)];
        self.client.call(&action, &parameters).await;
    }

    /// Around it the guest writes: what comes after the answer must not be in the snapshot.
    async fn take_snapshot(&mut self, volume: &Volume) {
        write(&self.client, &volume.id);
        let action = Action::CreateSnapshot { volume: volume.id.clone() };
        let taken = self.client.call(&action, &[("VolumeId", &volume.id)]).await;
        write(&self.client, &volume.id);
        if let Outcome::Snapshot(id) = taken {
            self.group.things().snapshots.push(id);
        }
    }

    async fn delete_snapshot(&mut self, snapshot: String) {
        let action = Action::DeleteSnapshot { snapshot: snapshot.clone() };
        let done = self.client.call(&action, &[("SnapshotId", &snapshot)]).await;
        if done == Outcome::Done {
            self.group.things().snapshots.retain(|id| *id != snapshot);
        }
    }

    async fn modify(&mut self, volume: &Volume) {
        let gib = self.client.rng.random_range(SIZE + 1..=LARGEST);
        let action = Action::ModifyVolume { volume: volume.id.clone(), gib };
        self.client.call(&action, &[("VolumeId", &volume.id), ("Size", &gib.to_string())]).await;
        self.describe(volume).await;
    }

    /// Gives a tag a value that it never had, or takes it away.
    async fn tag(&mut self, volume: &Volume, set: bool) {
        let key = *KEYS.choose(&mut self.client.rng).unwrap();
        let value = set.then(|| format!("{:016x}", self.client.rng.random::<u64>()));
        let action = Action::Tag { volume: volume.id.clone(), key: key.into(), value: value.clone() };
        let mut parameters = vec![("ResourceId.1", &*volume.id), ("Tag.1.Key", key)];
        parameters.extend(value.as_deref().map(|value| ("Tag.1.Value", value)));
        self.client.call(&action, &parameters).await;
        self.describe(volume).await;
    }

    async fn copy(&mut self, source: String) {
        let action = Action::CopySnapshot { source: source.clone() };
        let parameters = [("SourceRegion", "us-east-1"), ("SourceSnapshotId", &*source)];
        if let Outcome::Snapshot(id) = self.client.call(&action, &parameters).await {
            self.group.things().snapshots.push(id);
        }
    }

    async fn share(&mut self, snapshot: String) {
        let with = self.client.rng.random();
        let action = Action::Share { snapshot: snapshot.clone(), with };
        let operation = if with { "add" } else { "remove" };
        let parameters = [
            ("SnapshotId", &*snapshot),
            ("Attribute", "createVolumePermission"),
            ("OperationType", operation),
            ("UserId.1", OTHER),
        ];
        self.client.call(&action, &parameters).await;
        self.describe_shared(snapshot).await;
    }

    async fn describe_shared(&mut self, snapshot: String) {
        let action = Action::DescribeShared { snapshot: snapshot.clone() };
        self.client.call(&action, &[("SnapshotId.1", &snapshot)]).await;
    }

    /// A volume that is not there any more is forgotten by the group, after a while: some look again.
    async fn describe(&mut self, volume: &Volume) {
        let seen = describe_volume(&mut self.client, &volume.id).await;
        if matches!(seen, Outcome::Refused(_)) && self.client.rng.random_ratio(1, 3) {
            self.group.things().volumes.retain(|known| known.id != volume.id);
        }
    }

    async fn describe_snapshot(&mut self, snapshot: &str) {
        let seen = describe_snapshot(&mut self.client, snapshot).await;
        if matches!(seen, Outcome::Refused(_)) {
            self.group.things().snapshots.retain(|id| id != snapshot);
        }
    }
}

/// Lets a guest that has the volume write to it, if there is one.
fn write(client: &Client<'_>, volume: &str) {
    let (world, id) = (client.world, VolumeId::parse(volume).unwrap());
    let begun = world.record.now();
    let token = world.instances.iter().find_map(|instance| world.nodes.sim.guest_writes(&instance.machine, &id));
    if let Some(token) = token {
        world.record.add(begun, "a guest", What::Wrote { volume: volume.to_owned(), token });
    }
}

/// Describes a volume; looks at what it holds, and how large it is, when it is whole.
pub async fn describe_volume(client: &mut Client<'_>, volume: &str) -> Outcome {
    let action = Action::DescribeVolume { volume: volume.to_owned() };
    let seen = client.call(&action, &[("VolumeId.1", volume)]).await;
    let whole = |state| matches!(state, VolumeState::Available | VolumeState::InUse);
    if matches!(&seen, Outcome::SeenVolume(seen) if whole(seen.state)) {
        let world = client.world;
        let (begun, id) = (world.record.now(), VolumeId::parse(volume).unwrap());
        // None when it was deleted meanwhile.
        if let Some(token) = world.nodes.sim.volume_content(&id) {
            world.record.add(begun, "a look", What::Held { of: volume.to_owned(), token: Some(token) });
        }
        if let Some(bytes) = world.nodes.sim.volume_bytes(&id) {
            world.record.add(begun, "a look", What::Sized { volume: volume.to_owned(), gib: bytes >> 30 });
        }
    }
    seen
}

/// Describes a snapshot; looks at what it holds when it is completed.
pub async fn describe_snapshot(client: &mut Client<'_>, snapshot: &str) -> Outcome {
    let action = Action::DescribeSnapshot { snapshot: snapshot.to_owned() };
    let seen = client.call(&action, &[("SnapshotId.1", snapshot)]).await;
    if matches!(seen, Outcome::SeenSnapshot(SnapshotState::Completed, _)) {
        let (world, id) = (client.world, SnapshotId::parse(snapshot).unwrap());
        let begun = world.record.now();
        let token = world.nodes.sim.snapshot_content(&id);
        // One without content is torn, unless it was deleted meanwhile.
        if token.is_some() || world.nodes.has_snapshot(&id).await {
            world.record.add(begun, "a look", What::Held { of: snapshot.to_owned(), token });
        }
    }
    seen
}
