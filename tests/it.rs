//! The integration suite.

#[path = "it/delegate_contract.rs"]
mod delegate_contract;
#[path = "it/dev.rs"]
mod dev;
#[path = "it/layers.rs"]
mod layers;
#[path = "it/storage_real.rs"]
mod storage_real;
#[path = "it/support/mod.rs"]
mod support;
#[path = "it/takeover.rs"]
mod takeover;
#[path = "it/vmm_qemu.rs"]
mod vmm_qemu;
#[path = "it/workflows.rs"]
mod workflows;
