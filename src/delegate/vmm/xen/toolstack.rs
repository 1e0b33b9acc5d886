//! The programs of Xen, whose status 0 is not success: whoever calls one looks at xenstore afterwards.

use std::path::Path;
use std::time::Duration;

use super::names::Place;
use super::store::Store;
use crate::delegate::command::{Command, Failure};
use crate::delegate::{DelegateError, Result};

/// The longest that `xl` may run. It gives a block script 40 seconds, and a guest 10 to let go.
const LIMIT: Duration = Duration::from_secs(75);

/// The programs, which tests have others of.
#[derive(Debug, Clone)]
pub(super) struct Toolstack {
    /// `xl` or `xm`.
    pub(super) program: String,
    pub(super) xenstore_ls: String,
}

impl Toolstack {
    pub(super) async fn store(&self) -> Result<Store> {
        let printed = Command::new(&self.xenstore_ls).arg("-f").run().await?;
        let store = Store::parse(&printed);
        if store == Store::default() {
            return Err(DelegateError::retry(format!("{} prints nothing: is xenstored running?", self.xenstore_ls)));
        }
        Ok(store)
    }

    pub(super) async fn attach(&self, domain: u32, path: &Path, place: Place) -> std::result::Result<(), Failure> {
        let mut device = std::ffi::OsString::from("phy:");
        device.push(path);
        self.run("block-attach", domain).arg(device).args([place.to_string(), "w".into()]).run().await.map(drop)
    }

    /// Force comes last: `xm` takes it nowhere else, and `xl` takes it anywhere.
    pub(super) async fn detach(&self, domain: u32, vdev: u32, force: bool) -> std::result::Result<(), Failure> {
        let command = self.run("block-detach", domain).arg(vdev.to_string());
        let command = if force { command.arg("--force") } else { command };
        command.run().await.map(drop)
    }

    fn run(&self, verb: &str, domain: u32) -> Command {
        Command::new(&self.program).timeout(LIMIT).arg(verb).arg(domain.to_string())
    }
}
