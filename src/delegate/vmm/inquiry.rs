//! What a unit says of itself before a guest gets it.
//!
//! QEMU shows no serial number of what its initiator is logged in to, and gives the guest one of our choosing. So the unit is asked
//! first, by [`PROGRAM`] of libiscsi, the initiator that QEMU has too: with the name, the user and the
//! secret of the attachment, in a session of its own that ends with it. The secret goes by the environment, which other users
//! cannot read.

use crate::delegate::command::Command;
use crate::delegate::{DelegateError, ExportSpec, Portal, Result};

use super::open_iscsi::sysfs;

/// What asks a unit; package `libiscsi-bin`.
pub const PROGRAM: &str = "iscsi-inq";
/// The unit serial number page (SPC-5, section 7.7.18).
const PAGE: &str = "128";

/// Refuses a unit whose serial number is not the volume's.
///
/// # Errors
/// Fatal when it is another's; Retry when it cannot be asked.
pub(super) async fn check_serial(export: &ExportSpec, portal: &Portal) -> Result<()> {
    let said = Command::new(PROGRAM)
        .args(["-i", &export.initiator_iqn, "-e", "1", "-c", PAGE])
        .arg(format!("iscsi://{}/{}/{}", portal.address, export.iqn, export.lun))
        .env("LIBISCSI_CHAP_USERNAME", &export.chap_user)
        .env("LIBISCSI_CHAP_PASSWORD", &export.chap_secret.0)
        .run()
        .await
        .map_err(|e| DelegateError::retry(e.to_string()))?;
    let wanted = export.volume.serial();
    match serial(&said) {
        Some(serial) if serial == wanted || serial == sysfs::serial_by_iet(&wanted) => Ok(()),
        Some(serial) => Err(DelegateError::fatal(format!(
            "{} serves a disk of serial {}, not {wanted}",
            export.iqn,
            serial.escape_debug()
        ))),
        None => Err(DelegateError::retry(format!("{} tells no serial number", export.iqn))),
    }
}

/// The serial number in what `iscsi-inq` prints, without its padding.
pub(super) fn serial(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("Unit Serial Number:[")?;
    let (serial, _) = rest.rsplit_once(']')?;
    Some(serial.trim()).filter(|serial| !serial.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_what_stands_between_the_brackets_without_its_padding() {
        // Seen of tgt, which pads on the left.
        let said = "Unit Serial Number:[                vol0123456789abcdef0]\n";
        assert_eq!(serial(said), Some("vol0123456789abcdef0"));
        assert_eq!(serial("Unit Serial Number:[vol]0 ]"), Some("vol]0"));
        for nothing in ["", "Unit Serial Number:[   ]\n", "Unit Serial Number:[vol0", "Vendor:IET"] {
            assert_eq!(serial(nothing), None, "{nothing:?}");
        }
    }
}
