//! What a unit says of itself before a guest gets it.
//!
//! QEMU shows no serial number of what its initiator is logged in to, and gives the guest one of our choosing. So the unit is asked
//! first, by [`PROGRAM`] of libiscsi, the initiator that QEMU has too: with the name, the user and the
//! secret of the attachment, in a session of its own that ends with it. The secret goes by the environment, which other users
//! cannot read.

use std::time::Duration;

use crate::delegate::command::Command;
use crate::delegate::{DelegateError, ExportSpec, Portal, Result};

use super::open_iscsi::sysfs;

/// What asks a unit; package `libiscsi-bin`.
pub const PROGRAM: &str = "iscsi-inq";
/// The unit serial number page (SPC-5, section 7.7.18).
const PAGE: &str = "128";

/// The longest that a unit may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What units are asked with, of which tests have another.
#[derive(Debug, Clone)]
pub(super) struct Inquiry {
    program: String,
    limit: Duration,
}

impl Default for Inquiry {
    fn default() -> Self {
        Self { program: PROGRAM.into(), limit: LIMIT }
    }
}

impl Inquiry {
    /// Refuses a unit whose serial number is not the volume's.
    ///
    /// # Errors
    /// Fatal when it is another's; Retry when it cannot be asked.
    pub(super) async fn check_serial(&self, export: &ExportSpec, portal: &Portal) -> Result<()> {
        let said = Command::new(&self.program)
            .args(["-i", &export.initiator_iqn, "-e", "1", "-c", PAGE])
            .arg(format!("iscsi://{}/{}/{}", portal.address, export.iqn, export.lun))
            .env("LIBISCSI_CHAP_USERNAME", &export.chap_user)
            .env("LIBISCSI_CHAP_PASSWORD", &export.chap_secret.0)
            .timeout(self.limit)
            .run()
            .await?;
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
}

/// The serial number in what `iscsi-inq` prints, without its padding.
pub(super) fn serial(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("Unit Serial Number:[")?;
    let (serial, _) = rest.rsplit_once(']')?;
    Some(serial.trim()).filter(|serial| !serial.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use tokio::net::TcpListener;

    use super::super::fake::Monitor;
    use super::super::qemu::Qemu;
    use super::*;
    use crate::config;
    use crate::delegate::{ConnectSpec, ErrorKind, Generation, MachineRef, Secret, VmmDelegate};
    use crate::ids::VolumeId;

    const UUID: &str = "00000000-0000-4000-8000-000000000001";
    const G: Generation = Generation(1);
    const SECRET: &str = "secret-enough";

    /// A program that does what the file beside it says, and writes down how it was called.
    fn program(dir: &Path) -> String {
        let (path, at) = (dir.join("asks"), dir.display());
        let text = format!("#!/bin/sh\necho \"$*\" > {at}/args\nenv > {at}/env\necho $$ > {at}/pid\n. {at}/does\n");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A machine with a driver whose inquiries are `inquiry`'s, and what it is to connect to.
    async fn node(dir: &Path, inquiry: Inquiry) -> (Monitor, Qemu, ConnectSpec, TcpListener) {
        let monitor = Monitor::start(dir, "vm-1", UUID);
        let settings = config::Qemu { qmp_dir: dir.to_owned(), iqn_prefix: "iqn.2026-01.t".into(), detach_wait_s: 1 };
        let mut qemu = Qemu::start(&dir.join("data"), &settings).await.unwrap();
        qemu.inquiry = inquiry;
        let portal = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let volume = VolumeId::parse("vol-0123456789abcdef0").unwrap();
        let export = ExportSpec {
            iqn: format!("iqn.2026-01.t:{volume}.1"),
            volume,
            lun: 1,
            chap_user: "user".into(),
            chap_secret: Secret(SECRET.into()),
            initiator_iqn: "iqn.2026-01.t:vm-1".into(),
            beside: Vec::new(),
        };
        let portal_at = Portal { address: portal.local_addr().unwrap().to_string() };
        let machine = MachineRef { name: "vm-1".into(), uuid: UUID.into() };
        (monitor, qemu, ConnectSpec { export, portal: portal_at, machine }, portal)
    }

    /// Whether the machine was given neither a disk nor a part of one, nor the secret.
    fn gave_nothing(monitor: &Monitor) -> bool {
        monitor.state().changes.iter().all(|command| !command.ends_with("add"))
    }

    #[tokio::test]
    async fn no_disk_reaches_a_guest_before_its_unit_has_told_the_volumes_serial_number() {
        use ErrorKind::{Fatal, Retry};

        let dir = tempfile::tempdir().unwrap();
        let inquiry = Inquiry { program: program(dir.path()), limit: Duration::from_secs(60) };
        let (monitor, mut qemu, connect, _portal) = node(dir.path(), inquiry).await;
        let tells = |serial: &str| format!("echo 'Unit Serial Number:[{serial}]'");
        let (right, other) = (tells("    vol0123456789abcdef0"), tells("vol0123456789abcdef1"));
        for (does, kind, why) in [
            // It could not ask, whatever it had printed until then.
            ("exit 0".to_owned(), Retry, "tells no serial number"),
            (format!("{right} >&2"), Retry, "tells no serial number"),
            (format!("{right}; echo 'Login failed' >&2; exit 10"), Retry, "exit status: 10: Login failed"),
            (format!("{right}; kill -9 $$"), Retry, "signal: 9"),
            // It prints something else.
            ("head -c 100000 /dev/zero".to_owned(), Retry, "tells no serial number"),
            ("echo 'Unit Serial Number:vol0123456789abcdef0'".to_owned(), Retry, "tells no serial number"),
            (tells("   "), Retry, "tells no serial number"),
            ("printf 'Unit Serial Number:[vol0123456789abcdef0\\377]'".to_owned(), Fatal, "serves a disk of serial"),
            // It is another unit, and be it one whose number begins or ends with the right one's.
            (other.clone(), Fatal, "serves a disk of serial vol0123456789abcdef1, not vol0123456789abcdef0"),
            (tells("vol0123456789abcdef00"), Fatal, "serves a disk of serial"),
            (tells("vol0123456789abcdef"), Fatal, "serves a disk of serial"),
            (tells("abcdef0"), Fatal, "serves a disk of serial"),
            (format!("{right}; {other}"), Fatal, "serves a disk of serial"),
        ] {
            std::fs::write(dir.path().join("does"), &does).unwrap();
            let refused = qemu.ensure_connected(G, &connect).await.unwrap_err();
            assert!(refused.kind == kind && refused.message.contains(why), "{does}: {refused:?}");
            assert!(!refused.message.contains(SECRET), "{refused}");
            assert!(gave_nothing(&monitor), "{does}");
        }

        let there = std::mem::replace(&mut qemu.inquiry.program, "vbs-no-such-program".into());
        let refused = qemu.ensure_connected(G, &connect).await.unwrap_err();
        assert!(refused.kind == Retry && refused.message.contains("vbs-no-such-program"), "{refused}");
        assert!(gave_nothing(&monitor));

        qemu.inquiry.program = there;
        for tells in [right, tells("23456789abcdef0")] {
            std::fs::write(dir.path().join("does"), tells).unwrap();
            monitor.state().changes.clear();
            qemu.ensure_connected(G, &connect).await.unwrap();
            assert!(monitor.state().changes.contains(&"blockdev-add".to_owned()));
        }
        let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("args").contains(&connect.export.iqn) && !read("args").contains(SECRET));
        assert!(read("env").contains(&format!("LIBISCSI_CHAP_PASSWORD={SECRET}\n")));
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended_and_the_guest_has_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let inquiry = Inquiry { program: program(dir.path()), limit: Duration::from_secs(2) };
        let (monitor, qemu, connect, _portal) = node(dir.path(), inquiry).await;
        // It has told what is right, and might tell something else yet.
        let does = "echo 'Unit Serial Number:[vol0123456789abcdef0]'; exec sleep 600";
        std::fs::write(dir.path().join("does"), does).unwrap();
        let refused = qemu.ensure_connected(G, &connect).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Retry && refused.message.contains("no end after"), "{refused:?}");
        assert!(gave_nothing(&monitor));
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // What has ended is a zombie until its parent has looked.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    }

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
