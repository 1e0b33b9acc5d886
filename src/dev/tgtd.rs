//! A tgtd of our own: the iSCSI target daemon in user space, on a loopback port.
//!
//! tgtd has manners of its own (1.0.85): when its port is taken it says so in its log and runs on without a portal, and it
//! catches SIGTERM and does nothing. So it is asked which portals it has before it is believed, and it is stopped by
//! SIGKILL: it writes through to the volumes' files and keeps nothing of its own that could be lost.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use super::children::{Child, Children, Spec};
use super::{DevError, find_program, sockets, write_atomically};
use crate::config;
use crate::delegate::command::{Command, Failure};

/// The name of its record and log.
pub const NAME: &str = "tgtd";

/// Tells one tgtd from another in one socket directory; ours has the directory to itself.
const CONTROL_PORT: u16 = 1;
const SOCKETS: &str = "tgt";
/// `ipc.1.lock`
const LONGEST_SOCKET_NAME: usize = 10;
const START_DEADLINE: Duration = Duration::from_secs(20);
const PORTS_TRIED: usize = 5;

/// A tgtd that serves its portal.
#[derive(Debug)]
pub struct Tgtd {
    config: config::Tgt,
    children: Children,
    program: PathBuf,
    port_file: PathBuf,
}

/// Takes over the tgtd of `dir`, or starts it, on the port it had before when that is free.
pub async fn start(dir: &Path, children: &Children) -> Result<Tgtd, DevError> {
    let program = find_program("tgtd", "tgt")?;
    let socket_dir = sockets::directory(&dir.join(SOCKETS), LONGEST_SOCKET_NAME, None)?;
    let port_file = dir.join("tgt.port");
    let known = fs::read_to_string(&port_file).ok().and_then(|text| text.trim_end().parse().ok());
    let config = config::Tgt {
        socket_dir,
        control_port: CONTROL_PORT,
        portal: SocketAddr::from((Ipv4Addr::LOCALHOST, known.map_or_else(free_port, Ok)?)),
        tgtadm: "tgtadm".into(),
    };
    let mut tgtd = Tgtd { config, children: children.clone(), program, port_file };
    for _ in 0..PORTS_TRIED {
        if tgtd.serves(&tgtd.children.adopt_or_spawn(&tgtd.spec())?).await? {
            let port = tgtd.config.portal.port().to_string();
            write_atomically(&tgtd.port_file, port.as_bytes(), 0o600)?;
            return Ok(tgtd);
        }
        tracing::warn!(portal = %tgtd.config.portal, "tgtd's port is taken, another is tried");
        tgtd.children.stop(NAME, Signal::KILL, Duration::ZERO).await?;
        tgtd.config.portal.set_port(free_port()?);
    }
    Err(DevError::new(format!("tgtd gets no port:\n{}", children.last_words(NAME))))
}

impl Tgtd {
    /// How the target driver reaches it.
    pub fn config(&self) -> &config::Tgt {
        &self.config
    }

    /// Starts it again each time it ends, on the same port, since guests go on asking there. It comes back empty; the
    /// sweeper fills it. Returns only when that fails.
    pub async fn keep_running(&self) -> DevError {
        loop {
            let round = async {
                let child = self.children.adopt_or_spawn(&self.spec())?;
                if !child.adopted {
                    tracing::warn!("tgtd had ended, started again");
                }
                if !self.serves(&child).await? {
                    return Err(DevError::new(format!("tgtd cannot have {} back", self.config.portal)));
                }
                child.exited().await
            };
            if let Err(error) = round.await {
                return error;
            }
        }
    }

    fn spec(&self) -> Spec {
        let portal = format!("portal={}", self.config.portal);
        let args = ["-f", "-C", &CONTROL_PORT.to_string(), "--iscsi", &portal].map(Into::into);
        let env = vec![("TGT_IPC_SOCKET".to_owned(), self.config.socket_dir.join("ipc").into())];
        Spec { name: NAME.into(), program: self.program.clone(), args: args.into(), env, user: None }
    }

    /// Waits until it answers, and tells whether it has got its portal.
    async fn serves(&self, child: &Child) -> Result<bool, DevError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let error = match self.tgtadm(&["--mode", "portal", "--op", "show", "--lld", "iscsi"]).await {
                Ok(text) => return Ok(has_portal(&text, self.config.portal)),
                Err(error) => error,
            };
            if timeout(Duration::from_millis(20), child.exited()).await.is_ok() || Instant::now() > deadline {
                let words = self.children.last_words(NAME);
                return Err(DevError::new(format!("tgtd does not answer: {error}\n{words}")));
            }
        }
    }

    async fn tgtadm(&self, args: &[&str]) -> Result<String, Failure> {
        let command = Command::new("tgtadm").arg("-C").arg(CONTROL_PORT.to_string()).args(args.iter().copied());
        command.env("TGT_IPC_SOCKET", self.config.socket_dir.join("ipc")).timeout(Duration::from_secs(5)).run().await
    }
}

/// Ends the tgtd of `dir`, with every session it serves.
pub async fn stop(dir: &Path, children: &Children) -> Result<(), DevError> {
    children.stop(NAME, Signal::KILL, Duration::from_secs(5)).await?;
    sockets::remove_if_elsewhere(&dir.join(SOCKETS));
    Ok(())
}

/// Reads `tgtadm --mode portal --op show`: `Portal: 127.0.0.1:32607,1`, the number after the comma being the portal group.
fn has_portal(text: &str, portal: SocketAddr) -> bool {
    let portals = text.lines().filter_map(|line| line.trim().strip_prefix("Portal: "));
    portals.filter_map(|portal| portal.split(',').next()).any(|found| found.parse() == Ok(portal))
}

fn free_port() -> Result<u16, DevError> {
    let found = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    found.map(|address| address.port()).map_err(|e| DevError::new(format!("no free port on the loopback: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_taken_over_comes_back_on_its_port_and_moves_when_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::open(dir.path()).unwrap();
        let first = start(dir.path(), &children).await.unwrap();
        let pid = children.adopt(NAME).unwrap().unwrap().pid;
        let portal = first.config().portal;
        let second = start(dir.path(), &children).await.unwrap();
        assert_eq!(children.adopt(NAME).unwrap().unwrap().pid, pid);
        assert_eq!(second.config().portal, portal);
        stop(dir.path(), &children).await.unwrap();
        assert!(children.adopt(NAME).unwrap().is_none());

        let _squatter = TcpListener::bind(portal).unwrap();
        let third = start(dir.path(), &children).await.unwrap();
        assert_ne!(third.config().portal, portal);
        stop(dir.path(), &children).await.unwrap();
    }
}
