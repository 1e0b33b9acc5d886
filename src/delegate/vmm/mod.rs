//! Hypervisor drivers: how a machine gets a volume as a disk, loses it again, and rests its I/O.
//!
//! A hypervisor has its own idea of each step: QEMU brings the iSCSI initiator itself, so that to log in is to add a block
//! node to one machine. A driver hides that behind [`super::VmmDelegate`].

mod blocks;
#[cfg(test)]
mod fake;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
pub mod inquiry;
mod kept;
mod machines;
pub(in crate::delegate) mod open_iscsi;
mod pause;
pub mod qemu;
pub mod qmp;
mod seen;
mod throttle;
pub mod xen;
