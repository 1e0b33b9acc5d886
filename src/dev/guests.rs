//! The guests of `vbs dev`: small QEMU machines without a disk of their own, to attach volumes to.
//!
//! They are emulated (TCG), so they need neither KVM nor root, and are of the kind `pc`, which hot-plugs without preparation.
//! They run in the foreground as children; who starts, adopts and ends them is not decided here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

use super::console;
use super::guest_image::GuestImage;

/// The program that runs a guest.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Bytes that the path of a unix socket may have (`unix(7)`: 108 with the NUL behind it).
const MAX_SOCKET: usize = 107;
/// What the guest says when it takes commands.
const READY: &[u8] = b"guest ready";

/// A guest to run.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name, `vm-1` and on.
    pub name: String,
    /// The same each time the guest is started from the same directory.
    pub uuid: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    log: PathBuf,
    socket_dir: PathBuf,
}

/// Why a guest cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A file of the guest cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory's path leaves no room for a socket in it.
    #[error("{0}: too long for the path of a unix socket; choose a shorter data directory")]
    PathTooLong(PathBuf),
    /// The guest did not come up in time.
    #[error("guest {0} has not come up in time; see {1}")]
    NotReady(String, PathBuf),
}

impl Guest {
    /// The guest number `number`, counted from 1. Its uuid and its log are kept in `dir`, its sockets are made in
    /// `socket_dir`.
    ///
    /// # Errors
    /// When a directory cannot be written, or the path is too long for sockets.
    pub async fn open(dir: &Path, socket_dir: &Path, number: usize) -> Result<Self, GuestError> {
        let name = format!("vm-{number}");
        let kept = dir.join(format!("{name}.uuid"));
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| GuestError::File { path, source }
        };
        for dir in [dir, socket_dir] {
            tokio::fs::create_dir_all(dir).await.map_err(file(dir))?;
        }
        let known = tokio::fs::read_to_string(&kept).await.ok().and_then(|t| uuid::Uuid::try_parse(t.trim()).ok());
        let uuid = known.unwrap_or_else(uuid::Uuid::new_v4).to_string();
        if known.is_none() {
            tokio::fs::write(&kept, &uuid).await.map_err(file(&kept))?;
        }
        // For one processor with nothing to do but copy blocks.
        let guest = Self {
            uuid,
            memory_mib: 192,
            log: dir.join(format!("{name}.log")),
            name,
            socket_dir: socket_dir.to_owned(),
        };
        let socket = guest.serial_socket();
        if socket.as_os_str().len() > MAX_SOCKET { Err(GuestError::PathTooLong(socket)) } else { Ok(guest) }
    }

    /// The monitor's socket, where the QEMU driver looks for it.
    pub fn qmp_socket(&self) -> PathBuf {
        self.socket_dir.join(format!("{}.qmp", self.name))
    }

    /// The serial line's socket, for [`super::console::run`].
    pub fn serial_socket(&self) -> PathBuf {
        self.socket_dir.join(format!("{}.serial", self.name))
    }

    /// What the guest has said since it was started.
    pub fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// The arguments of [`PROGRAM`].
    pub fn args(&self, image: &GuestImage) -> Vec<OsString> {
        let with = |head: &str, path: PathBuf, tail: &str| {
            // In QEMU's option lists a comma in a value is doubled.
            let path = path.to_string_lossy().replace(',', ",,");
            OsString::from(format!("{head}{path}{tail}"))
        };
        let log = with(",logfile=", self.log(), "");
        let mut serial = with("unix:", self.serial_socket(), ",server=on,wait=off");
        serial.push(log);
        let mut args: Vec<OsString> = ["-name", &self.name, "-uuid", &self.uuid].map(OsString::from).into();
        args.extend(["-accel", "tcg,thread=multi,tb-size=64", "-M", "pc,graphics=off", "-cpu", "max"].map(Into::into));
        args.extend(["-m".into(), self.memory_mib.to_string().into()]);
        args.extend(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"].map(Into::into));
        args.extend(["-kernel".into(), image.kernel.clone().into(), "-initrd".into(), image.initrd.clone().into()]);
        args.extend(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"].map(Into::into));
        args.extend(["-serial".into(), serial]);
        args.extend(["-qmp".into(), with("unix:", self.qmp_socket(), ",server=on,wait=off")]);
        args
    }

    /// Waits until the guest takes commands.
    ///
    /// # Errors
    /// [`GuestError::NotReady`] after `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), GuestError> {
        let end = Instant::now() + limit;
        while !self.is_ready().await {
            if Instant::now() >= end {
                return Err(GuestError::NotReady(self.name.clone(), self.log()));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// The log alone may be of an earlier run, which QEMU empties only when it gets to it; the line alone hears what is said
    /// before anybody listens.
    async fn is_ready(&self) -> bool {
        self.has_said_so().await && console::run(&self.serial_socket(), ":", Duration::from_secs(2)).await.is_ok()
    }

    async fn has_said_so(&self) -> bool {
        let mut head = Vec::new();
        let Ok(log) = tokio::fs::File::open(self.log()).await else { return false };
        let read = log.take(1 << 16).read_to_end(&mut head).await;
        read.is_ok() && head.windows(READY.len()).any(|w| w == READY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_keeps_its_uuid_and_its_command_line_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Guest::open(dir.path(), dir.path(), 1).await.unwrap();
        let again = Guest::open(dir.path(), dir.path(), 1).await.unwrap();
        assert_eq!(first.uuid, again.uuid);
        let image = GuestImage { kernel: "/k".into(), initrd: "/i".into() };
        assert!(first.args(&image).contains(&OsString::from(&first.uuid)));
    }

    #[tokio::test]
    async fn a_directory_too_deep_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100));
        assert!(matches!(Guest::open(dir.path(), &deep, 1).await, Err(GuestError::PathTooLong(_))));
    }
}
