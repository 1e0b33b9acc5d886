//! A gateway as a process of its own, to be killed, paused and started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

/// How long a gateway may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `vbs gateway`. Killed when dropped.
pub struct Gateway {
    pub address: SocketAddr,
    child: Child,
}

impl Gateway {
    /// Starts one from a configuration, with a log in a file beside it, and waits until it serves. `None` when it ends instead,
    /// as it does when its port is taken or the database cannot be reached.
    pub async fn start(config: &str, file: &PathBuf) -> Option<Self> {
        std::fs::write(file, config).unwrap();
        let log = file.with_extension("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_vbs"))
            .args(["gateway", "--config"])
            .arg(file)
            .env("VBS_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let serving = async {
            loop {
                if let Some(address) = said_address(&std::fs::read_to_string(&log).unwrap()) {
                    return Some(address);
                }
                if child.try_wait().unwrap().is_some() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, serving).await {
            Ok(Some(address)) => Some(Self { address, child }),
            Ok(None) => None,
            Err(_) => {
                kill(&mut child);
                panic!("a gateway does not serve: {}", std::fs::read_to_string(&log).unwrap());
            }
        }
    }

    /// SIGSTOP: the process stands still, and its connections stay.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The address in the log's line `… serving address=127.0.0.1:1234`.
fn said_address(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("serving address=")?;
    rest.split_once('\n')?.0.trim().parse().ok()
}
