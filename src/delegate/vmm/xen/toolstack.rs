//! The programs of Xen, whose status 0 is not success: whoever calls one looks at xenstore afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::names::Place;
use super::store::Store;
use super::xenbus;
use crate::config;
use crate::delegate::Result;
use crate::delegate::command::{Command, Failure};

/// The longest that `xl` may run. It gives a block script 40 seconds, and a guest 10 to let go.
const LIMIT: Duration = Duration::from_secs(75);

/// The programs, which tests have others of.
#[derive(Debug, Clone)]
pub(super) struct Toolstack {
    pub(super) kind: config::Toolstack,
    /// `xl` or `xm`, or what stands in for it.
    pub(super) program: String,
    /// The socket of xenstored.
    pub(super) xenstore: PathBuf,
}

impl Toolstack {
    pub(super) async fn store(&self) -> Result<Store> {
        xenbus::look(&self.xenstore).await
    }

    pub(super) async fn attach(&self, domain: u32, path: &Path, place: Place) -> std::result::Result<(), Failure> {
        let mut device = std::ffi::OsString::from("phy:");
        device.push(path);
        let command = Command::new(&self.program).timeout(LIMIT).args(["block-attach", &domain.to_string()]);
        command.arg(device).args([place.to_string(), "w".into()]).run().await.map(drop)
    }

    /// `xl` passes over a `--force` that stands last, and `xm` takes it nowhere else.
    pub(super) async fn detach(&self, domain: u32, vdev: u32, force: bool) -> std::result::Result<(), Failure> {
        let (domain, vdev) = (domain.to_string(), vdev.to_string());
        let (first, last) = match (force, self.kind) {
            (false, _) => (None, None),
            (true, config::Toolstack::Xl) => (Some("--force"), None),
            (true, config::Toolstack::Xm) => (None, Some("--force")),
        };
        let words = ["block-detach"].into_iter().chain(first).chain([&*domain, &*vdev]).chain(last);
        Command::new(&self.program).timeout(LIMIT).args(words).run().await.map(drop)
    }
}
