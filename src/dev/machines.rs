//! The guests as children, and the instances that the API makes of machines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::try_join_all;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::children::{Children, Spec};
use super::guests::{Guest, PROGRAM};
use super::{DevError, find_program, guest_image, sockets};
use crate::db::{self, Pool, instances};
use crate::delegate::vmm::inquiry;
use crate::state::InstanceState;

/// Under emulation, on a machine with other things to do, a kernel takes its time.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
const INSTANCE_DEADLINE: Duration = Duration::from_secs(60);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The children that are guests, by the beginning of their names.
const PREFIX: &str = "vm-";
const SOCKETS: &str = "qmp";
/// `vm-NNNNN.serial`
const LONGEST_SOCKET_NAME: usize = 15;

/// Takes over the guests of `dir` that run, and starts the others. Gives the directory of their monitors, too.
pub(super) async fn start(dir: &Path, children: &Children, count: usize) -> Result<(Vec<Guest>, PathBuf), DevError> {
    let program = find_program(PROGRAM, "qemu-system-x86")?;
    find_program(inquiry::PROGRAM, "libiscsi-bin")?;
    let image = guest_image::ensure(&image_dir(dir)).await.map_err(|e| DevError::new(e.to_string()))?;
    let socket_dir = sockets::directory(&dir.join(SOCKETS), LONGEST_SOCKET_NAME, None)?;
    let mut guests = Vec::new();
    for number in 1..=count {
        let guest = Guest::open(&dir.join("guests"), &socket_dir, number).await;
        let guest = guest.map_err(|e| DevError::new(e.to_string()))?;
        let (name, args) = (guest.name.clone(), guest.args(&image));
        children.adopt_or_spawn(&Spec { name, program: program.clone(), args, env: Vec::new(), user: None })?;
        guests.push(guest);
    }
    Ok((guests, socket_dir))
}

/// The serial line of the machine of this name.
pub(super) fn serial_socket(dir: &Path, machine: &str) -> PathBuf {
    sockets::find(&dir.join(SOCKETS)).join(format!("{machine}.serial"))
}

/// Ends the guests of `dir`, as if their power was cut.
pub(super) async fn stop(dir: &Path, children: &Children) -> Result<(), DevError> {
    let names = children.names()?;
    let guests = names.iter().filter(|name| name.starts_with(PREFIX));
    try_join_all(guests.map(|name| children.stop(name, Signal::TERM, STOP_PATIENCE))).await?;
    sockets::remove_if_elsewhere(&dir.join(SOCKETS));
    Ok(())
}

/// Waits until the guests take commands.
pub(super) async fn await_ready(guests: &[Guest]) -> Result<(), DevError> {
    try_join_all(guests.iter().map(|guest| guest.wait_ready(BOOT_DEADLINE)))
        .await
        .map(drop)
        .map_err(|e| DevError::new(e.to_string()))
}

/// Waits until the gateway has learnt of so many running machines, and gives their instance ids, in the machines' order.
pub(super) async fn await_instances(pool: &Pool, count: usize) -> Result<Vec<String>, DevError> {
    let deadline = Instant::now() + INSTANCE_DEADLINE;
    loop {
        let found = running(pool).await.map_err(|e| DevError::new(e.to_string()))?;
        if found.len() >= count {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let text = format!("of {count} machines only {} have become instances; the log may say why", found.len());
            return Err(DevError::new(text));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn running(pool: &Pool) -> db::Result<Vec<String>> {
    let mut found = instances::list(&mut *pool.get().await?).await?;
    found.retain(|instance| instance.state == InstanceState::Running);
    found.sort_by_key(|instance| (number(&instance.machine), instance.machine.clone()));
    Ok(found.into_iter().map(|instance| instance.id.to_string()).collect())
}

/// `vm-10` comes after `vm-9`.
fn number(machine: &str) -> usize {
    machine.strip_prefix(PREFIX).and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}

/// Every directory's guests boot the same files, so these are kept where the guests' kernel is.
fn image_dir(dir: &Path) -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    cache.map_or_else(|| dir.join("guest-image"), |cache| cache.join("vbs/guest-image"))
}
