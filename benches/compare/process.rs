//! A program that runs beside us, and ends with us.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::Result;

/// How long a program may take to end when it is asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// A running program. Killed when dropped.
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it, with all it says in the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().map_err(|e| format!("{name}: {e}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    /// Waits until `ready`, which is asked every five milliseconds.
    pub async fn wait_until(&mut self, limit: Duration, mut ready: impl AsyncFnMut() -> bool) -> Result<()> {
        let waiting = async {
            while !ready().await {
                if let Some(status) = self.child.try_wait()? {
                    return Err(format!("{} ended: {status}", self.name).into());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(done) => done,
            Err(_) => Err(format!("{} is not ready after {} s", self.name, limit.as_secs()).into()),
        }
    }

    /// The memory that it has resident, in MiB: `VmRSS` of proc(5)'s `/proc/PID/status`.
    pub fn resident_mib(&self) -> Result<f64> {
        let pid = self.child.id().ok_or("ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// Asks it to end, and waits for that.
    pub async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
            if tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await.is_err() {
                return Err(format!("{} does not end when asked to", self.name).into());
            }
        }
        Ok(())
    }
}

/// A loopback address that nobody listened on a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
