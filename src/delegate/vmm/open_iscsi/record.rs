//! The node record that a log-in is made from: a text file of `NAME = VALUE` lines under `/etc/iscsi/nodes`.
//!
//! `iscsiadm -o new` makes it, from the node's own `iscsid.conf`; what we want otherwise is then written to the file itself.
//! `iscsiadm -o update` would put the CHAP secret on its command line, for every user of the node to read, and takes one
//! setting a call.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::delegate::{DelegateError, Result};

/// A record is some 4 KiB.
const MOST: u64 = 64 << 10;

/// Changes settings of the record of a target at a portal, which must be there. The file is its owner's alone before the
/// secret is in it.
pub(super) fn set(nodes: &Path, iqn: &str, portal: &SocketAddr, settings: &[(&str, &str)]) -> Result<()> {
    let path = find(nodes, iqn, portal).ok_or_else(|| {
        DelegateError::retry(format!("iscsiadm has left no record of {iqn} under {}", nodes.display()))
    })?;
    replace(&path, settings)
        .map_err(|e| DelegateError::retry(format!("cannot change the record {}: {e}", path.display())))
}

/// The record's file. It is `ADDRESS,PORT` itself as long as the portal group is not known, else `default` below
/// `ADDRESS,PORT,GROUP`.
fn find(nodes: &Path, iqn: &str, portal: &SocketAddr) -> Option<PathBuf> {
    let (of_target, name) = (nodes.join(iqn), format!("{},{}", portal.ip(), portal.port()));
    let flat = of_target.join(&name);
    if flat.is_file() {
        return Some(flat);
    }
    let mut entries = std::fs::read_dir(&of_target).ok()?.flatten().map(|entry| entry.path());
    let of_portal = |path: &PathBuf| {
        let entry = path.file_name().and_then(|entry| entry.to_str()).unwrap_or_default();
        entry == name || entry.strip_prefix(&name).is_some_and(|group| group.starts_with(','))
    };
    entries.find(of_portal).map(|dir| dir.join("default")).filter(|path| path.is_file())
}

fn replace(path: &Path, settings: &[(&str, &str)]) -> std::io::Result<()> {
    let length = std::fs::metadata(path)?.len();
    if length > MOST {
        return Err(std::io::Error::other(format!("{length} bytes are no record")));
    }
    let before = String::from_utf8_lossy(&std::fs::read(path)?).into_owned();
    // In its place: a file beside it would be another record. One that a crash cuts short is made anew at the next try.
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(with(&before, settings).as_bytes())?;
    file.sync_all()
}

/// The record with these settings in the place of what it had.
pub(super) fn with(record: &str, settings: &[(&str, &str)]) -> String {
    let is_set = |line: &str| {
        line.split_once('=').is_some_and(|(name, _)| settings.iter().any(|(setting, _)| *setting == name.trim()))
    };
    let kept = record.lines().filter(|line| !is_set(line) && !line.starts_with("# END")).map(str::to_owned);
    let new = settings.iter().map(|(name, value)| format!("{name} = {value}"));
    let mut text: String = kept.chain(new).map(|line| line + "\n").collect();
    text.push_str("# END RECORD\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x:y\nnode.startup = automatic\n\
        node.startup.other = 1\nnode.conn[0].port = 3260\n# END RECORD\n";

    #[test]
    fn settings_take_the_place_of_what_the_record_had() {
        let text = with(RECORD, &[("node.startup", "manual"), ("node.session.auth.password", "a = b # c")]);
        assert_eq!(
            text,
            "# BEGIN RECORD 2.1.8\nnode.name = iqn.x:y\nnode.startup.other = 1\nnode.conn[0].port = 3260\n\
             node.startup = manual\nnode.session.auth.password = a = b # c\n# END RECORD\n"
        );
        assert_eq!(with(&text, &[("node.startup", "manual")]).matches("node.startup =").count(), 1);
        assert_eq!(with("", &[]), "# END RECORD\n");
    }

    #[test]
    fn the_record_is_found_with_and_without_a_portal_group_and_becomes_its_owners_alone() {
        let portal = "10.0.0.1:3260".parse().unwrap();
        for file in ["10.0.0.1,3260", "10.0.0.1,3260,1/default"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("iqn.x:y").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, RECORD).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            std::fs::create_dir_all(dir.path().join("iqn.x:y/10.0.0.1,32601,1")).unwrap();
            set(dir.path(), "iqn.x:y", &portal, &[("node.startup", "manual")]).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().contains("node.startup = manual\n"));
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            set(dir.path(), "iqn.x:z", &portal, &[]).unwrap_err();
        }
    }
}
