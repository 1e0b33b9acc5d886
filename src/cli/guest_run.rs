//! `vbs guest-run`, by which the demo sees with the eyes of a guest.

use std::path::PathBuf;
use std::time::Duration;

use crate::dev;

/// A command for a guest.
#[derive(clap::Args)]
pub struct GuestRun {
    /// The directory of the vbs dev that runs the guest
    #[arg(long, default_value = "vbs-dev")]
    data: PathBuf,
    /// Seconds after which the command is ended
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The guest's name, such as vm-1
    machine: String,
    /// One line for the guest's shell
    command: String,
}

impl GuestRun {
    /// Runs it, and prints what it prints.
    pub async fn run(self) -> super::Result {
        let limit = Duration::from_secs(self.seconds);
        let (output, status) = dev::run_in_guest(&self.data, &self.machine, &self.command, limit).await?;
        print!("{output}");
        if status == 0 { Ok(()) } else { Err(format!("in the guest: exit status {status}").into()) }
    }
}
