//! A tgtd of a test's own, on a port that the system chose, killed when the test ends.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vbs::config;

use super::example;

/// A running tgtd, and the directory of its control socket.
pub struct Tgtd {
    dir: TempDir,
    portal: SocketAddr,
    child: Child,
}

impl Tgtd {
    /// Starts one and waits until it takes connections. A tgtd whose port somebody else has got meanwhile runs on without it.
    pub fn start() -> Self {
        loop {
            let dir = tempfile::tempdir().unwrap();
            let portal = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let child = spawn(&dir, portal);
            let tgtd = Self { dir, portal, child };
            if tgtd.tgtadm(&["--mode", "portal", "--op", "show"]).contains(&portal.to_string()) {
                return tgtd;
            }
        }
    }

    /// Kills it, so that it forgets all it had, and starts it again at the same address.
    pub fn crash_and_restart(&mut self) {
        self.kill();
        self.child = spawn(&self.dir, self.portal);
    }

    /// Kills it and leaves it dead.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a storage node's configuration says of it.
    pub fn config(&self) -> config::Tgt {
        let (socket_dir, tgtadm) = (self.dir.path().to_owned(), "tgtadm".into());
        config::Tgt { socket_dir, control_port: 1, portal: self.portal, tgtadm }
    }

    /// A storage node of files that it serves.
    pub fn storage(&self, data_dir: &std::path::Path) -> config::Storage {
        let (volumes, target) = (config::Volumes::File, config::Target::Tgt(self.config()));
        config::Storage { data_dir: data_dir.to_owned(), volumes, target }
    }

    /// Runs `tgtadm` on it, past the driver, and expects that to succeed.
    pub fn tgtadm(&self, args: &[&str]) -> String {
        let mut command = Command::new(program("tgtadm"));
        command.env("TGT_IPC_SOCKET", self.dir.path().join("ipc")).args(["-C", "1", "--lld", "iscsi"]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A `tgtadm` that goes wrong as it is told (`tgtadm.rs`).
pub struct Shim(TempDir);

impl Shim {
    /// One that does what the real one does.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(example::built("tgtadm-shim"), dir.path().join("tgtadm")).unwrap();
        Self(dir)
    }

    /// What a storage node's configuration calls.
    pub fn program(&self) -> PathBuf {
        self.0.path().join("tgtadm")
    }

    /// After so many commands from now one goes wrong; or none.
    pub fn plan(&self, fault: Option<(usize, &str)>) {
        let path = self.0.path().join("plan");
        match fault {
            Some((skip, kind)) => std::fs::write(path, format!("{skip} {kind}")).unwrap(),
            None => drop(std::fs::remove_file(path)),
        }
    }

    /// Whether what was planned has not come.
    pub fn is_pending(&self) -> bool {
        self.0.path().join("plan").exists()
    }

    /// Begins to count anew.
    pub fn forget_calls(&self) {
        std::fs::remove_file(self.0.path().join("calls")).unwrap();
    }

    /// The commands so far: mode and operation of each.
    pub fn calls(&self) -> Vec<String> {
        std::fs::read_to_string(self.0.path().join("calls")).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Tgtd {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &TempDir, portal: SocketAddr) -> Child {
    let mut child = Command::new(program("tgtd"))
        .env("TGT_IPC_SOCKET", dir.path().join("ipc"))
        .args(["-f", "-C", "1", "--iscsi", &format!("portal={portal}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tgtd starts; it is in the Debian package tgt");
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(portal).is_err() {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("tgtd ended with {status}");
        }
        assert!(Instant::now() < deadline, "tgtd takes no connections at {portal}");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Where a program of the system is; others than root often have no `sbin` in their PATH.
fn program(name: &str) -> PathBuf {
    let dirs = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    dirs.into_iter().map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
}
