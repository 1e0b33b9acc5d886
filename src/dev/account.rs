//! The user that Postgres runs as when we are root, which it refuses to be.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::DevError;

/// A user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// passwd(5)'s user id.
    pub uid: u32,
    /// passwd(5)'s group id.
    pub gid: u32,
}

/// Nobody special when we are not root; else `postgres`, or `nobody` where that does not exist.
pub fn unprivileged() -> Result<Option<User>, DevError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let path = Path::new("/etc/passwd");
    let passwd = fs::read_to_string(path).map_err(|e| DevError::io(path, &e))?;
    let user = find(&passwd, "postgres").or_else(|| find(&passwd, "nobody"));
    user.map(Some).ok_or_else(|| DevError::new("Postgres cannot run as root, and there is neither postgres nor nobody"))
}

fn find(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let mut ids = fields.skip(1).map_while(|id| id.parse().ok());
        Some(User { uid: ids.next()?, gid: ids.next()? })
    })
}

impl User {
    /// Gives a file or directory to the user.
    pub fn own(self, path: &Path) -> Result<(), DevError> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid)).map_err(|e| DevError::io(path, &e))
    }

    /// Whether the user may pass through every directory of an absolute path, by its mode bits. (Access lists are not
    /// looked at: they are rare, and a wrong "no" only moves the data elsewhere.)
    pub fn may_enter(self, path: &Path) -> bool {
        path.ancestors().all(|dir| {
            fs::metadata(dir).is_ok_and(|meta| {
                let shift = if meta.uid() == self.uid {
                    6
                } else if meta.gid() == self.gid {
                    3
                } else {
                    0
                };
                meta.mode() >> shift & 1 == 1
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgresql:x:7:7::/:\npostgres:x:101:104:PostgreSQL,,,:/var:/bin/sh\n";
        assert_eq!(find(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(find(passwd, "nobody"), None);
    }

    #[test]
    fn a_closed_directory_on_the_way_is_noticed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        let stranger = User { uid: 4_000_001, gid: 4_000_001 };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let open = stranger.may_enter(&inner);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!stranger.may_enter(&inner));
        assert!(open || !stranger.may_enter(&std::env::temp_dir()));
    }
}
