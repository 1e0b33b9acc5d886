//! A small JSON file that a delegate keeps between its lives: written whole, durable before the call returns.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::delegate::{DelegateError, Result};

/// Reads a file; none is the default.
pub(super) async fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match tokio::fs::read(path).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(T::default()),
        Err(e) => Err(DelegateError::retry(format!("cannot read {}: {e}", path.display()))),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| DelegateError::fatal(format!("{} is damaged: {e}", path.display()))),
    }
}

/// Replaces a file. One call at a time for each path.
pub(super) async fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let cannot = |e: String| DelegateError::retry(format!("cannot write {}: {e}", path.display()));
    let bytes = serde_json::to_vec(value).map_err(|e| cannot(e.to_string()))?;
    let to = path.to_owned();
    match tokio::task::spawn_blocking(move || replace(&to, &bytes)).await {
        Ok(done) => done.map_err(|e| cannot(e.to_string())),
        Err(e) => Err(cannot(e.to_string())),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The rename itself is durable only once the directory is.
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}
