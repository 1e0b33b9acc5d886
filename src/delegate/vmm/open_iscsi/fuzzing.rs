//! What must hold of open-iscsi's records and of what the kernel shows: see [`crate::fuzzing`].

use super::{record, sysfs};

const SETTINGS: [(&str, &str); 2] =
    [("node.session.auth.username", "vol-00000001"), ("node.session.auth.password", "sixteen letters.")];

/// A record, a name, a number or a page of a disk.
pub fn shown(data: &[u8]) {
    if let Some(serial) = sysfs::serial(data) {
        assert!(serial.len() + 4 <= data.len());
    }
    // The file's own line ends, which are read away in pairs.
    let text = String::from_utf8_lossy(data).replace('\r', "");
    changed(&text);
    if sysfs::is_hctl(&text) {
        assert!(text.bytes().all(|b| b == b':' || b.is_ascii_digit()) && text.len() >= 7);
    }
    if let Some((major, minor)) = sysfs::number(&text) {
        assert_eq!(sysfs::number(&format!("{major}:{minor}")), Some((major, minor)));
    }
    if let Some((major, minor)) = sysfs::hex_number(&text) {
        assert_eq!(sysfs::hex_number(&format!("{major:x}:{minor:x}")), Some((major, minor)));
    }
}

/// What is set is there once and as it was set, what is not set stays.
fn changed(record: &str) {
    let new = record::with(record, &SETTINGS);
    assert_eq!(record::with(&new, &SETTINGS), new);
    let set =
        |line: &&str| line.split_once('=').is_some_and(|(name, _)| SETTINGS.iter().any(|(s, _)| *s == name.trim()));
    let found: Vec<&str> = new.lines().filter(set).collect();
    assert_eq!(found, SETTINGS.map(|(name, value)| format!("{name} = {value}")));
    let others = |text: &str| text.lines().filter(|line| !set(line) && !line.starts_with("# END")).count();
    assert_eq!(others(record), others(&new));
    assert!(new.ends_with("# END RECORD\n"));
}
