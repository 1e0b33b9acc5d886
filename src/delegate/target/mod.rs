//! iSCSI targets: what their drivers share, which is what may stand in a target's name, an initiator's name, a CHAP user
//! and a CHAP secret.
//!
//! The gateway makes all four, but a delegate believes nobody: what does not look right never reaches a command line.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{DelegateError, ExportSpec, Growth, ObservedExport, Portal, Result};
use crate::ids::VolumeId;

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
pub mod iet;
pub mod iet_access;
pub mod iet_proc;
pub mod lio;
mod lio_layers;
mod lio_store;
pub mod lio_tree;
pub mod tgt;
pub mod tgt_show;

/// Tells where a volume's file or device is.
pub type PathOf<'a> = dyn Fn(&VolumeId) -> PathBuf + Sync + 'a;

/// What serves the volumes of a storage node. As with [`super::VolumeDelegate`], whose verbs of the same names say more, every
/// call looks at what is there, layer by layer, and makes up the difference.
#[async_trait]
pub trait TargetDriver: Send + Sync {
    /// How an operator names it.
    fn name(&self) -> &'static str;

    /// Serves the file or device at `path` as the specification has it, to one initiator and with CHAP.
    async fn ensure_exported(&self, spec: &ExportSpec, path: &Path) -> Result<Portal>;

    /// Ends every export of the volume but those of these names. Refuses (Retry) while an initiator is logged in to another.
    async fn ensure_not_exported(&self, volume: &VolumeId, but: &[String]) -> Result<()>;

    /// Makes the volume's exports show the size it has grown to, where that can be done under a session.
    async fn ensure_grown(&self, volume: &VolumeId, path: &Path, size_bytes: u64) -> Result<Growth>;

    /// The exports there are of volumes, ours and those that look like it. `path` tells where a volume is.
    async fn exports(&self, path: &PathOf<'_>) -> Result<Vec<ObservedExport>>;
}

/// The most bytes of an iSCSI name (RFC 7143, section 4.2.7.1).
const LONGEST_NAME: usize = 223;

/// Reads the volume out of a target's name: `iqn.2026-01.net.example:vol-0123456789abcdef0.1a2b` is of that volume, whatever
/// follows the dot. A name without one is no target of ours.
pub fn volume_of(iqn: &str) -> Option<VolumeId> {
    let (_, unique) = iqn.split_once(':')?;
    unique.split([':', '.']).find_map(|part| VolumeId::parse(part).ok())
}

/// Whether a text is the name of a target or an initiator.
pub fn is_name(text: &str) -> bool {
    let known = ["iqn.", "eui.", "naa."].iter().any(|start| text.starts_with(start));
    known && text.len() <= LONGEST_NAME && text.bytes().all(name_byte)
}

/// Refuses an export whose texts are not what they should be.
pub fn check(spec: &ExportSpec) -> Result<()> {
    let refuse = |what: &str, text: &str| Err(DelegateError::fatal(format!("{what} {text:?} is not one")));
    if let Some(name) = [&spec.iqn, &spec.initiator_iqn].into_iter().chain(&spec.beside).find(|name| !is_name(name)) {
        return refuse("the iSCSI name", name);
    }
    if volume_of(&spec.iqn).as_ref() != Some(&spec.volume) {
        return refuse(&format!("the name of a target of {}", spec.volume), &spec.iqn);
    }
    if !(1..=LONGEST_NAME).contains(&spec.chap_user.len()) || !spec.chap_user.bytes().all(name_byte) {
        return refuse("the CHAP user", &spec.chap_user);
    }
    // Twelve bytes at least (RFC 7143, section 12.1.4, asks for 96 bits); tgtd keeps 255.
    let secret = &spec.chap_secret.0;
    if !(12..=255).contains(&secret.len()) || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return refuse("the CHAP secret", "<secret>");
    }
    if spec.lun != 1 {
        return refuse("the logical unit", &spec.lun.to_string());
    }
    Ok(())
}

/// The bytes of iSCSI names after normalisation (RFC 3722), in ASCII.
fn name_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::Secret;

    #[test]
    fn the_volume_is_read_out_of_the_name_of_a_target() {
        let id = |text| VolumeId::parse(text).ok();
        assert_eq!(volume_of("iqn.2026-01.net.example:vol-0123abcd"), id("vol-0123abcd"));
        assert_eq!(volume_of("iqn.2026-01.net.example:vbs:vol-0123456789abcdef0.5"), id("vol-0123456789abcdef0"));
        for other in ["", "vol-0123abcd", "iqn.2026-01.vol-0123abcd", "iqn.2026-01.net.example:vol-0123abcg"] {
            assert_eq!(volume_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_export_with_texts_that_are_no_names_is_refused() {
        let good = ExportSpec {
            volume: VolumeId::parse("vol-0123abcd").unwrap(),
            iqn: "iqn.2026-01.net.example:vol-0123abcd.1".into(),
            lun: 1,
            chap_user: "vol-0123abcd".into(),
            chap_secret: Secret("0123456789ab".into()),
            initiator_iqn: "iqn.2026-01.net.example:host".into(),
            beside: vec!["iqn.2026-01.net.example:vol-0123abcd.2".into()],
        };
        check(&good).unwrap();
        let changes: [fn(&mut ExportSpec); 9] = [
            |e| e.iqn = "iqn.2026-01.net.example:vol-0123abce.1".into(),
            |e| e.iqn = "iqn.2026-01.net.example:vol-0123abcd.1 x".into(),
            |e| e.initiator_iqn = "ALL".into(),
            |e| e.initiator_iqn = format!("iqn.{}", "a".repeat(LONGEST_NAME)),
            |e| e.chap_user = String::new(),
            |e| e.chap_secret.0 = "short".into(),
            |e| e.chap_secret.0 = "0123456789ab\n".into(),
            |e| e.lun = 0,
            |e| e.beside[0] = "ALL".into(),
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            let error = check(&bad).unwrap_err();
            assert!(!error.message.contains("0123456789ab"), "{error}");
        }
    }
}
