//! The integration suite.

#[path = "it/vmm_qemu.rs"]
mod vmm_qemu;
