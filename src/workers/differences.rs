//! How the nodes differ from the rows, and what is done about each difference.
//!
//! [`between`] is pure: what was looked up goes in, differences come out. The sweeper repairs those that are to be repaired,
//! `vbs audit` shows all of them. Nothing is ever removed but what the database knows for ours and over; what it does not know,
//! however it is named, may be that of another vbs on the same nodes. And nothing is concluded from what is missing: a disk may be
//! mounted late.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::engine::legible;
use super::look::Observed;
use super::repair_volume::{Leftover, Remains, Repair};
use crate::db::attachments::{Located, Place};
use crate::db::compare::Compared;
use crate::delegate::{MachineRef, ObservedExport, ObservedMachine, VmmObservation};
use crate::ids::VolumeId;

/// What was looked up in the database for what the nodes reported.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// What is attached and has an end on a node that reported.
    pub(super) attached: Vec<Located>,
    /// Of the names of targets that were seen, those of live attachments, and where they belong.
    pub(super) live: HashMap<String, Place>,
    /// Of the names of targets that hypervisor nodes have, those of attachments of ours that are over, with their volumes.
    pub(super) over: HashSet<(String, VolumeId)>,
    /// Of the volumes that are served under other names, those that are ours or were.
    pub(super) served: HashSet<VolumeId>,
    /// What differs of the volumes of a storage node, by its name.
    pub(super) volumes: BTreeMap<String, Vec<Compared>>,
    /// The same of its snapshots.
    pub(super) snapshots: BTreeMap<String, Vec<Compared>>,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// The node.
    pub(super) node: String,
    /// What it is about: a volume, a snapshot, a target.
    pub(super) name: String,
    /// What differs.
    pub(super) what: What,
    /// What is done about it.
    pub(super) remedy: Remedy,
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Nothing is known of the node, which did not answer.
    Silent(String),
    /// A volume that shall be there is not.
    VolumeMissing,
    /// A volume is smaller than its row says: GiB and bytes.
    VolumeSmaller(i32, i64),
    /// A volume is larger than its row says.
    VolumeLarger(i32, i64),
    /// A volume is there that no row has.
    VolumeExtra,
    /// A volume is there that another node shall have.
    VolumeElsewhere(String),
    /// A snapshot that shall be there is not.
    SnapshotMissing,
    /// A snapshot is there that no row has.
    SnapshotExtra,
    /// A snapshot is there that another node shall have.
    SnapshotElsewhere(String),
    /// The target of an attachment is not there.
    TargetMissing,
    /// A part of it is not there: unit, CHAP account or access rule.
    TargetBroken,
    /// A target is there that no live attachment has on this node.
    TargetExtra,
    /// A machine that runs does not have the disk that is attached to it, nor is it logged in.
    SessionMissing(String),
    /// It is logged in, but the machine does not have the disk.
    DeviceMissing(String),
    /// A machine has a disk that no live attachment gave it.
    DeviceExtra(String),
    /// A node is logged in to a target that no live attachment has there.
    SessionExtra,
    /// The machine that something is attached to is not reported any more.
    MachineGone(String),
}

/// What is done about a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The volume is repaired.
    Repair(VolumeId, Box<Repair>),
    /// Nothing, and why.
    Nothing(&'static str),
}

const NOT_OURS: Remedy = Remedy::Nothing("left alone: the database does not know it");
const ELSEWHERE: Remedy = Remedy::Nothing("left alone: which of the two is the right one only you can tell");

impl What {
    /// In a word, what the row says, and what the node has.
    fn words(&self) -> (&'static str, String, String) {
        let nothing = || "nothing".to_owned();
        match self {
            Self::Silent(error) => ("node-silent", "-".into(), error.clone()),
            Self::VolumeMissing => ("volume-missing", "there".into(), nothing()),
            Self::VolumeSmaller(gib, bytes) => ("volume-smaller", format!("{gib} GiB"), format!("{bytes} bytes")),
            Self::VolumeLarger(gib, bytes) => ("volume-larger", format!("{gib} GiB"), format!("{bytes} bytes")),
            Self::VolumeExtra => ("volume-extra", nothing(), "there".into()),
            Self::VolumeElsewhere(node) => ("volume-elsewhere", format!("on {node}"), "there".into()),
            Self::SnapshotMissing => ("snapshot-missing", "there".into(), nothing()),
            Self::SnapshotExtra => ("snapshot-extra", nothing(), "there".into()),
            Self::SnapshotElsewhere(node) => ("snapshot-elsewhere", format!("on {node}"), "there".into()),
            Self::TargetMissing => ("target-missing", "attached".into(), nothing()),
            Self::TargetBroken => ("target-broken", "attached".into(), "a part of it".into()),
            Self::TargetExtra => ("target-extra", nothing(), "served".into()),
            Self::SessionMissing(machine) => ("session-missing", format!("attached to {machine}"), nothing()),
            Self::DeviceMissing(machine) => ("device-missing", format!("attached to {machine}"), "logged in".into()),
            Self::DeviceExtra(machine) => ("device-extra", nothing(), format!("a disk of {machine}")),
            Self::SessionExtra => ("session-extra", nothing(), "logged in".into()),
            Self::MachineGone(machine) => ("machine-gone", format!("attached to {machine}"), "no such machine".into()),
        }
    }
}

/// One line: kind, node, resource, what the row says, what the node has, what is done.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, row, has) = self.what.words();
        let done = match &self.remedy {
            Remedy::Repair(..) => "repair",
            Remedy::Nothing(why) => why,
        };
        // Nodes may call things what they like.
        let [name, row, has] = [&self.name, &row, &has].map(|text| legible(text));
        write!(f, "{kind}\t{}\t{name}\t{row}\t{has}\t{done}", self.node)
    }
}

/// All differences, by node.
pub(super) fn between(observed: &Observed, rows: &Rows) -> Vec<Difference> {
    let mut found = Vec::new();
    for (node, error) in &observed.silent {
        let remedy = Remedy::Nothing("it is asked again at each round");
        found.push(Difference { node: node.clone(), name: "-".into(), what: What::Silent(error.clone()), remedy });
    }
    for (node, compared) in &rows.volumes {
        found.extend(compared.iter().filter_map(|volume| of_volume(node, volume)));
    }
    for (node, compared) in &rows.snapshots {
        found.extend(compared.iter().filter_map(|snapshot| of_snapshot(node, snapshot)));
    }
    attached_ends(observed, rows, &mut found);
    extra_targets(observed, rows, &mut found);
    left_over(observed, rows, &mut found);
    found
}

/// What is to be repaired, by volume.
pub(super) fn repairs(differences: &[Difference]) -> BTreeMap<VolumeId, Repair> {
    let mut repairs: BTreeMap<VolumeId, Repair> = BTreeMap::new();
    for difference in differences {
        if let Remedy::Repair(volume, repair) = &difference.remedy {
            repairs.entry(volume.clone()).or_default().join(repair);
        }
    }
    repairs
}

fn repair(volume: &VolumeId, repair: Repair) -> Remedy {
    Remedy::Repair(volume.clone(), Box::new(repair))
}

/// What was ours on the node and is over is removed; what is not known is not.
fn remove(node: &str, compared: &Compared) -> Remedy {
    match compared.was_of.as_deref().map(VolumeId::parse) {
        Some(Ok(volume)) => {
            let remains = Remains { node: node.to_owned(), name: compared.id.clone() };
            repair(&volume, Repair { remains: vec![remains], ..Repair::default() })
        }
        _ => NOT_OURS,
    }
}

fn of_volume(node: &str, compared: &Compared) -> Option<Difference> {
    let (what, remedy) = match (compared.wanted, &compared.row_node, compared.bytes) {
        (true, _, None) => (What::VolumeMissing, Remedy::Nothing("shown as impaired, and used again once it is there")),
        (true, _, Some(bytes)) => {
            let gib = compared.size_gib.unwrap_or(0);
            if bytes < i64::from(gib) << 30 {
                let volume = VolumeId::parse(&compared.id).ok()?;
                (What::VolumeSmaller(gib, bytes), repair(&volume, Repair { smaller: true, ..Repair::default() }))
            } else {
                let why = "left alone: nothing is lost, and ModifyVolume to that size makes them agree";
                (What::VolumeLarger(gib, bytes), Remedy::Nothing(why))
            }
        }
        // It could not be made, or only half of it was deleted: its deletion takes what there is.
        (false, Some(of), _) if of == node => return None,
        (false, Some(of), _) => (What::VolumeElsewhere(of.clone()), ELSEWHERE),
        (false, None, _) => (What::VolumeExtra, remove(node, compared)),
    };
    Some(Difference { node: node.to_owned(), name: compared.id.clone(), what, remedy })
}

fn of_snapshot(node: &str, compared: &Compared) -> Option<Difference> {
    let (what, remedy) = match (compared.wanted, &compared.row_node) {
        (true, _) => (What::SnapshotMissing, Remedy::Nothing("nobody can restore it until it is there")),
        (false, Some(of)) if of == node => return None,
        (false, Some(of)) => (What::SnapshotElsewhere(of.clone()), ELSEWHERE),
        (false, None) => (What::SnapshotExtra, remove(node, compared)),
    };
    Some(Difference { node: node.to_owned(), name: compared.id.clone(), what, remedy })
}

/// What is attached: whether its target is whole, and its machine has the disk.
fn attached_ends(observed: &Observed, rows: &Rows, found: &mut Vec<Difference>) {
    let exports: HashMap<&str, HashMap<&str, &ObservedExport>> = observed
        .storage
        .iter()
        .map(|(node, report)| (node.as_str(), report.exports.iter().map(|e| (e.iqn.as_str(), e)).collect()))
        .collect();
    for (attachment, ends) in &rows.attached {
        let mut add = |node: &str, what: What, remedy: Remedy| {
            found.push(Difference { node: node.to_owned(), name: attachment.iqn.clone(), what, remedy });
        };
        let mend = || repair(&attachment.volume_id, Repair::default());
        if let Some(exports) = exports.get(ends.volume_node.as_str()) {
            match exports.get(attachment.iqn.as_str()) {
                None => add(&ends.volume_node, What::TargetMissing, mend()),
                Some(export) if !export.whole => add(&ends.volume_node, What::TargetBroken, mend()),
                Some(_) => {}
            }
        }
        let Some(report) = observed.hypervisors.get(&ends.vmm_node) else { continue };
        let name = || ends.machine.clone();
        let Some(machine) = report.machines.iter().find(|machine| machine.uuid == ends.machine_uuid) else {
            let why = "left alone: it may be started again; if not, vbs instance terminate";
            add(&ends.vmm_node, What::MachineGone(name()), Remedy::Nothing(why));
            continue;
        };
        match disk(machine, &attachment.volume_id, &attachment.iqn) {
            Some(true) => {}
            _ if !machine.running => {}
            Some(false) => add(&ends.vmm_node, What::DeviceMissing(name()), mend()),
            None => add(&ends.vmm_node, What::SessionMissing(name()), mend()),
        }
    }
}

/// Whether the machine's guest has the disk; none when the machine is not even logged in.
fn disk(machine: &ObservedMachine, volume: &VolumeId, iqn: &str) -> Option<bool> {
    let disks = machine.disks.iter().filter(|disk| disk.volume == *volume && disk.iqn == iqn);
    disks.map(|disk| disk.attached).max()
}

/// Targets that no live attachment has on that node. Whoever has or had the volume has its targets, wherever they are, so they
/// end if it is known.
fn extra_targets(observed: &Observed, rows: &Rows, found: &mut Vec<Difference>) {
    for (node, report) in &observed.storage {
        for export in &report.exports {
            let live = rows.live.get(&export.iqn);
            if live.is_some_and(|place| place.volume_node == *node) {
                continue;
            }
            let known = live.map_or(rows.served.contains(&export.volume), |place| place.volume == export.volume);
            let remedy = if known {
                repair(&export.volume, Repair { serving: [node.clone()].into(), ..Repair::default() })
            } else {
                NOT_OURS
            };
            let (node, name) = (node.clone(), export.iqn.clone());
            found.push(Difference { node, name, what: What::TargetExtra, remedy });
        }
    }
}

/// Disks and log-ins that hypervisor nodes have of no live attachment, or of one that is another machine's.
fn left_over(observed: &Observed, rows: &Rows, found: &mut Vec<Difference>) {
    for (node, volume, iqn, machine) in held(observed) {
        let live = rows.live.get(iqn);
        if live.is_some_and(|place| belongs(observed, place, node, machine.as_ref())) {
            continue;
        }
        let what = match &machine {
            Some(machine) => What::DeviceExtra(machine.name.clone()),
            None => What::SessionExtra,
        };
        let known = match live {
            Some(place) => place.volume == *volume,
            None => rows.over.contains(&(iqn.clone(), volume.clone())),
        };
        let remedy = if known {
            let leftover = Leftover { node: node.clone(), iqn: iqn.clone(), machine };
            repair(volume, Repair { leftovers: vec![leftover], ..Repair::default() })
        } else {
            NOT_OURS
        };
        found.push(Difference { node: node.clone(), name: iqn.clone(), what, remedy });
    }
}

/// Whether a node, or the machine there that has it as a disk, is where a target belongs. A machine that its node does not report
/// any more, and another does, has moved with its disks.
fn belongs(observed: &Observed, place: &Place, node: &str, machine: Option<&MachineRef>) -> bool {
    let Some(machine) = machine else { return place.vmm_node == node };
    let at_home = |report: &VmmObservation| report.machines.iter().any(|there| there.uuid == place.machine_uuid);
    place.machine_uuid == machine.uuid
        && (place.vmm_node == node || !observed.hypervisors.get(&place.vmm_node).is_some_and(at_home))
}

/// All that hypervisor nodes have of targets of ours: node, volume, the target's name, and the machine whose disk it is.
pub(super) fn held(observed: &Observed) -> impl Iterator<Item = (&String, &VolumeId, &String, Option<MachineRef>)> {
    observed.hypervisors.iter().flat_map(|(node, report)| {
        let sessions = report.sessions.iter().map(move |session| (node, &session.volume, &session.iqn, None));
        let disks = report.machines.iter().flat_map(move |machine| {
            let meant = MachineRef { name: machine.name.clone(), uuid: machine.uuid.clone() };
            machine.disks.iter().map(move |disk| (node, &disk.volume, &disk.iqn, Some(meant.clone())))
        });
        sessions.chain(disks)
    })
}
