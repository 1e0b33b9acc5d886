//! A unix socket's path has 107 bytes at most (unix(7)), and a data directory's path may be longer than that already.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::account::User;
use super::{DevError, write_atomically};

/// `sun_path`, less the NUL.
const PATH_MAX: usize = 107;

/// A directory for sockets that only the user can enter: `preferred`, where the longest name in it still fits; else a short
/// one, which a file beside `preferred` remembers, so that children that outlived us are found again.
pub fn directory(preferred: &Path, longest_name: usize, user: Option<User>) -> Result<PathBuf, DevError> {
    if preferred.as_os_str().len() + 1 + longest_name <= PATH_MAX {
        make(preferred, true)?;
        own(preferred, user)?;
        return Ok(preferred.to_owned());
    }
    let location = preferred.with_extension("location");
    if let Ok(text) = fs::read_to_string(&location) {
        let dir = PathBuf::from(text.trim_end());
        // Something cleans /tmp up, and then anybody may make a directory of that name there.
        if is_closed_and_of(&dir, user) {
            return Ok(dir);
        }
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| user.is_none() && dir.is_dir());
    let dir = runtime.unwrap_or_else(|| "/tmp".into()).join(format!("vbs-{}", uuid::Uuid::new_v4()));
    // In a directory that all may write to, one that exists already is not ours.
    make(&dir, false)?;
    own(&dir, user)?;
    write_atomically(&location, dir.to_string_lossy().as_bytes(), 0o600)?;
    Ok(dir)
}

/// Where [`directory`] said that the sockets are.
pub fn find(preferred: &Path) -> PathBuf {
    let location = fs::read_to_string(preferred.with_extension("location"));
    location.map_or_else(|_| preferred.to_owned(), |text| text.trim_end().into())
}

/// Removes what [`directory`] chose elsewhere, if it did; the next start chooses again.
pub fn remove_if_elsewhere(preferred: &Path) {
    let location = preferred.with_extension("location");
    if let Ok(text) = fs::read_to_string(&location) {
        // At worst an empty directory stays behind.
        let _ = fs::remove_dir_all(text.trim_end());
        let _ = fs::remove_file(&location);
    }
}

fn make(dir: &Path, may_exist: bool) -> Result<(), DevError> {
    let made = fs::DirBuilder::new().recursive(may_exist).mode(0o700).create(dir);
    made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700))).map_err(|e| DevError::io(dir, &e))
}

/// Whether this is a directory itself, not a link to one, that only the user can enter.
fn is_closed_and_of(dir: &Path, user: Option<User>) -> bool {
    let uid = user.map_or_else(|| rustix::process::geteuid().as_raw(), |user| user.uid);
    fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o777 == 0o700)
}

fn own(dir: &Path, user: Option<User>) -> Result<(), DevError> {
    user.map_or(Ok(()), |user| user.own(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_given_a_short_stand_in_that_is_remembered_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let near = dir.path().join("near");
        assert_eq!(directory(&near, 20, None).unwrap(), near);
        assert_eq!(find(&near), near);
        let far = dir.path().join("f".repeat(100));
        let chosen = directory(&far, 20, None).unwrap();
        assert!(chosen.as_os_str().len() + 21 <= PATH_MAX);
        assert_eq!((directory(&far, 20, None).unwrap(), find(&far)), (chosen.clone(), chosen.clone()));
        remove_if_elsewhere(&far);
        assert!(!chosen.exists());
        let another = directory(&far, 20, None).unwrap();
        assert_ne!(another, chosen);
        remove_if_elsewhere(&far);
    }

    #[test]
    fn a_directory_under_the_remembered_name_that_others_could_enter_is_left_to_them() {
        let dir = tempfile::tempdir().unwrap();
        let far = dir.path().join("f".repeat(100));
        let open = directory(&far, 20, None).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).unwrap();
        let link = directory(&far, 20, None).unwrap();
        assert_ne!(link, open);
        let elsewhere = dir.path().join("elsewhere");
        fs::DirBuilder::new().mode(0o700).create(&elsewhere).unwrap();
        fs::remove_dir(&link).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert_ne!(directory(&far, 20, None).unwrap(), link);
        remove_if_elsewhere(&far);
        fs::remove_file(link).unwrap();
        fs::remove_dir(open).unwrap();
    }
}
