//! What a test guest is besides its kernel: busybox, a few modules, and the scripts beside this file.

use super::cpio::Archive;

/// The first process: loads the modules, then runs what it reads from the serial line.
const INIT: &str = include_str!("init.sh");

/// The guest's own commands.
const COMMANDS: [(&str, &str); 7] = [
    ("check-places", include_str!("check-places.sh")),
    ("count-numbered", include_str!("count-numbered.sh")),
    ("disk", include_str!("disk.sh")),
    ("md5", include_str!("md5.sh")),
    ("start-writer", include_str!("start-writer.sh")),
    ("stop-writer", include_str!("stop-writer.sh")),
    ("write-numbered", include_str!("write-numbered.sh")),
];

/// Changes when one of our own parts of the image does.
pub(super) const FINGERPRINT: &str = concat!(
    include_str!("init.sh"),
    include_str!("check-places.sh"),
    include_str!("count-numbered.sh"),
    include_str!("disk.sh"),
    include_str!("md5.sh"),
    include_str!("start-writer.sh"),
    include_str!("stop-writer.sh"),
    include_str!("write-numbered.sh"),
    include_str!("init.rs"),
);

/// The initial file system; `modules` are names and contents, in the order in which they load.
pub(super) fn archive(busybox: &[u8], modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
        archive.directory(directory);
    }
    // The kernel opens it for the first process, before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.program("bin/busybox", busybox);
    archive.program("init", INIT.as_bytes());
    for (name, script) in COMMANDS {
        archive.program(&format!("bin/{name}"), script.as_bytes());
    }
    for (n, (name, content)) in modules.iter().enumerate() {
        archive.program(&format!("modules/{n:02}-{name}.ko"), content);
    }
    archive.finish()
}
