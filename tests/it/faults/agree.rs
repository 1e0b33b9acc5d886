//! Whether the rows and the nodes say the same, and whoever could not have what they asked for is told why.

use std::collections::BTreeSet;

use vbs::config::Sim;
use vbs::delegate::{VmmDelegate, VolumeDelegate};

use super::stage::Stage;

const GIB: u64 = 1 << 30;

/// What does not fit, in words. To be asked when no workflow is live.
pub async fn differences(stage: &Stage) -> Vec<String> {
    let (mut rows, mut real) = (BTreeSet::new(), BTreeSet::new());
    let volumes = "SELECT id, node, size_gib, state, coalesce(state_reason, '') FROM volumes WHERE state <> 'deleted'";
    let mut wrong = Vec::new();
    for row in stage.rows(volumes).await {
        let (id, node, size, is, reason): (String, String, i32, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        match &*is {
            "available" | "in-use" => drop(rows.insert(format!("{node} has {id} of {size} GiB"))),
            "error" if !reason.is_empty() => {}
            _ => wrong.push(format!("{id} is {is}, and it says {reason:?}")),
        }
    }
    for row in stage.rows("SELECT id, node, state, coalesce(state_reason, '') FROM snapshots").await {
        let (id, node, is, reason): (String, String, String, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
        match &*is {
            "completed" => drop(rows.insert(format!("{node} has {id}"))),
            "error" if !reason.is_empty() => {}
            _ => wrong.push(format!("{id} is {is}, and it says {reason:?}")),
        }
    }
    let attachments = "SELECT a.iqn, a.state, v.node, i.node, i.machine, v.state FROM attachments a \
                       JOIN volumes v ON v.id = a.volume_id JOIN instances i ON i.id = a.instance_id \
                       WHERE a.state <> 'detached'";
    for row in stage.rows(attachments).await {
        let (iqn, is, storage, vmm, machine, volume): (String, String, String, String, String, String) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5));
        if (&*is, &*volume) != ("attached", "in-use") {
            wrong.push(format!("an attachment is {is}, its volume {volume}"));
        }
        rows.insert(format!("{storage} exports {iqn}"));
        rows.insert(format!("{machine} on {vmm} has {iqn} as a disk"));
    }
    let unfinished = "SELECT volume_id || ' has a modification that is ' || state FROM volume_modifications \
                      WHERE state NOT IN ('completed', 'failed') OR (state = 'failed' AND coalesce(reason, '') = '')";
    wrong.extend(stage.texts(unfinished).await);
    let unused = "SELECT id || ' is in use by nobody' FROM volumes v WHERE state = 'in-use' AND NOT EXISTS \
                  (SELECT FROM attachments a WHERE a.volume_id = v.id AND a.state <> 'detached')";
    wrong.extend(stage.texts(unused).await);
    look_at_storage(stage, &mut real).await;
    look_at_hypervisors(stage, &mut real).await;
    wrong.extend(rows.difference(&real).map(|missing| format!("not so: {missing}")));
    wrong.extend(real.difference(&rows).map(|extra| format!("nobody's: {extra}")));
    wrong
}

async fn look_at_storage(stage: &Stage, real: &mut BTreeSet<String>) {
    for name in ["storage-a", "storage-b"] {
        let seen = VolumeDelegate::observe(&stage.sim.storage(name, &Sim::default())).await.unwrap();
        for (id, bytes) in seen.volumes {
            real.insert(format!("{name} has {id} of {} GiB", bytes / GIB));
        }
        real.extend(seen.snapshots.iter().map(|id| format!("{name} has {id}")));
        real.extend(
            seen.exports.iter().filter(|export| export.whole).map(|export| format!("{name} exports {}", export.iqn)),
        );
    }
}

async fn look_at_hypervisors(stage: &Stage, real: &mut BTreeSet<String>) {
    for name in ["vmm-a", "vmm-b"] {
        let seen = VmmDelegate::observe(&stage.sim.vmm(name, &Sim::default())).await.unwrap();
        real.extend(seen.sessions.iter().map(|session| format!("{name} is logged in to {}", session.iqn)));
        for machine in seen.machines {
            if machine.paused {
                real.insert(format!("{} on {name} is paused", machine.name));
            }
            for disk in machine.disks {
                let how = if disk.attached { "as a disk" } else { "half" };
                real.insert(format!("{} on {name} has {} {how}", machine.name, disk.iqn));
            }
        }
    }
}
