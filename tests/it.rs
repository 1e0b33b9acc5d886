//! The integration suite.

#[path = "it/actions.rs"]
mod actions;
#[path = "it/api_attachments.rs"]
mod api_attachments;
#[path = "it/api_copy_volumes.rs"]
mod api_copy_volumes;
#[path = "it/api_front.rs"]
mod api_front;
#[path = "it/api_instances.rs"]
mod api_instances;
#[path = "it/api_modify.rs"]
mod api_modify;
#[path = "it/api_multi_attach.rs"]
mod api_multi_attach;
#[path = "it/api_pages.rs"]
mod api_pages;
#[path = "it/api_quotas.rs"]
mod api_quotas;
#[path = "it/api_signed.rs"]
mod api_signed;
#[path = "it/api_snapshot_copies.rs"]
mod api_snapshot_copies;
#[path = "it/api_snapshot_sets.rs"]
mod api_snapshot_sets;
#[path = "it/api_snapshot_sharing.rs"]
mod api_snapshot_sharing;
#[path = "it/api_snapshots.rs"]
mod api_snapshots;
#[path = "it/api_tags.rs"]
mod api_tags;
#[path = "it/api_volumes.rs"]
mod api_volumes;
#[path = "it/audit.rs"]
mod audit;
#[path = "it/delegate_contract.rs"]
mod delegate_contract;
#[path = "it/dev.rs"]
mod dev;
#[path = "it/docs.rs"]
mod docs;
#[path = "it/faults/mod.rs"]
mod faults;
#[path = "it/hostile_connections.rs"]
mod hostile_connections;
#[path = "it/lanes.rs"]
mod lanes;
#[path = "it/layers.rs"]
mod layers;
#[path = "it/lio_at_once.rs"]
mod lio_at_once;
#[path = "it/master_key.rs"]
mod master_key;
#[path = "it/monitor_faults.rs"]
mod monitor_faults;
#[path = "it/node_to_node.rs"]
mod node_to_node;
#[path = "it/nodes.rs"]
mod nodes;
#[path = "it/operator.rs"]
mod operator;
#[path = "it/readiness.rs"]
mod readiness;
#[path = "it/real_faults.rs"]
mod real_faults;
#[path = "it/repairs.rs"]
mod repairs;
#[path = "it/schema.rs"]
mod schema;
#[path = "it/secrets.rs"]
mod secrets;
#[path = "it/shims.rs"]
mod shims;
#[path = "it/snapshot_copies.rs"]
mod snapshot_copies;
#[path = "it/storage_lab.rs"]
mod storage_lab;
#[path = "it/storage_real.rs"]
mod storage_real;
#[path = "it/support/mod.rs"]
mod support;
#[path = "it/takeover.rs"]
mod takeover;
#[path = "it/targets.rs"]
mod targets;
#[path = "it/vmm_qemu.rs"]
mod vmm_qemu;
#[path = "it/workflows.rs"]
mod workflows;
#[path = "it/zones.rs"]
mod zones;
