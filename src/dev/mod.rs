//! `vbs dev`: the whole of vbs on one machine, out of one command, with nothing to prepare.
//!
//! It is a gateway with the storage and hypervisor delegates in its own process, over a Postgres, a tgtd and a few guests
//! that it starts as [`children`]; or, with `--sim`, over simulated nodes. Everything is kept under one directory, which
//! given again continues where it was, also after a SIGKILL: children that outlived it are taken over.
//!
//! `vbs.toml` in that directory is an ordinary gateway's configuration, so the operator's commands work on it too.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::db::{self, Pool};
use crate::delegate::sim::SimCloud;
use crate::delegates;
use crate::gateway::Gateway;
use crate::server;

pub mod account;
pub mod children;
pub mod console;
mod files;
pub mod guest_image;
pub mod guests;
mod machines;
mod owner;
pub mod postgres;
mod settings;
mod simulated;
pub mod sockets;
pub mod tgtd;

use children::Children;
pub use files::DevError;
use files::{find_program, write_atomically};
use postgres::Postgres;
use settings::{Nodes, Settings};
use tgtd::Tgtd;

/// What target names and initiator names start with; nobody outside this machine sees them.
const IQN_PREFIX: &str = "iqn.2026-01.localhost.vbs";

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory for everything.
    pub data: PathBuf,
    /// Where to answer EC2 requests.
    pub listen: SocketAddr,
    /// Whether the nodes are simulated.
    pub sim: bool,
    /// How many machines there shall be at least; those that the directory has already stay.
    pub instances: usize,
}

/// Runs it until `stop`, then stops all it started.
pub async fn run(options: &Options, stop: CancellationToken) -> Result<(), DevError> {
    let dir = make_dir(&options.data)?;
    let _lock = lock(&dir)?;
    let children = Children::open(&dir)?;
    // Who waits for it to appear shall not find that of an earlier run.
    owner::remove_env(&dir)?;
    let result = serve(&dir, options, &children, &stop).await;
    let stopped = stop_all(&dir, &children).await;
    result.and(stopped).and(owner::remove_env(&dir))
}

/// Runs a command in a guest of the directory `data`, as [`console::run`] does.
///
/// # Errors
/// When the guest does not run or does not answer.
pub async fn run_in_guest(
    data: &Path,
    machine: &str,
    command: &str,
    limit: Duration,
) -> Result<(String, i32), console::ConsoleError> {
    let dir = data.canonicalize()?;
    console::run(&machines::serial_socket(&dir, machine), command, limit).await
}

/// Everything that runs, before it serves.
struct Prepared {
    gateway: Gateway,
    listener: TcpListener,
    postgres: Postgres,
    tgtd: Option<Tgtd>,
    guests: Vec<guests::Guest>,
    key: owner::Key,
}

async fn serve(dir: &Path, options: &Options, children: &Children, stop: &CancellationToken) -> Result<(), DevError> {
    let prepared = tokio::select! {
        prepared = prepare(dir, options, children, stop) => prepared?,
        () = stop.cancelled() => return Ok(()),
    };
    let Prepared { gateway, listener, postgres, tgtd, guests, key } = prepared;
    let pool = gateway.context().pool.clone();
    let address = listener.local_addr().map_err(|e| DevError::new(e.to_string()))?;
    let mut serving = pin!(gateway.run(listener, stop.clone()));
    let beside = async {
        machines::await_ready(&guests).await?;
        let instances = machines::await_instances(&pool, machine_count(dir)?).await?;
        owner::write_env(dir, address, &key, &instances)?;
        // Nobody may be reading any more; that is no reason to end.
        let _ = writeln!(std::io::stdout(), "vbs serves EC2 at {}; . {}/env", owner::endpoint(address), dir.display());
        let tgtd_gone = async {
            match &tgtd {
                Some(tgtd) => tgtd.keep_running().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = postgres.keep_running() => Err::<(), DevError>(error),
            error = tgtd_gone => Err(error),
        }
    };
    tokio::select! {
        result = &mut serving => result.map_err(|e| DevError::new(e.to_string())),
        result = beside => {
            stop.cancel();
            let _ = serving.await;
            result
        }
    }
}

async fn prepare(
    dir: &Path,
    options: &Options,
    children: &Children,
    stop: &CancellationToken,
) -> Result<Prepared, DevError> {
    // First what fails soonest: the address may be taken.
    let listener = server::listen(options.listen).map_err(|e| DevError::new(format!("{}: {e}", options.listen)))?;
    let count = settle_machine_count(dir, options)?;
    let (postgres, real) = tokio::try_join!(postgres::start(dir, children, &[]), async {
        if options.sim { Ok(None) } else { start_real(dir, children, count).await.map(Some) }
    })?;
    let (tgtd, guests, nodes) = match real {
        Some((tgtd, guests, qmp_dir)) => {
            let nodes = Nodes::Real { tgt: tgtd.config().clone(), qmp_dir };
            (Some(tgtd), guests, nodes)
        }
        None => (None, Vec::new(), Nodes::Simulated { machines: count }),
    };
    let settings = Settings { listen: options.listen, database_url: postgres.url.clone(), nodes };
    let config = settings.write(dir)?;

    let failed = |e: db::Error| DevError::new(e.to_string());
    db::migrate(&postgres.url).await.map_err(failed)?;
    let pool = Pool::new(&postgres.url, 2).map_err(failed)?;
    let key = owner::ensure(dir, &config, &pool).await?;
    let cloud = SimCloud::new();
    if options.sim {
        simulated::restore(&cloud, &config, &pool).await?;
    }
    let opened = delegates::open(&config, &cloud, stop).await.map_err(|e| DevError::new(e.to_string()))?;
    let gateway = Gateway::prepare(config, opened).await.map_err(|e| DevError::new(e.to_string()))?;
    Ok(Prepared { gateway, listener, postgres, tgtd, guests, key })
}

async fn start_real(
    dir: &Path,
    children: &Children,
    count: usize,
) -> Result<(Tgtd, Vec<guests::Guest>, PathBuf), DevError> {
    let tgtd = tgtd::start(dir, children).await?;
    let (guests, qmp_dir) = machines::start(dir, children, count).await?;
    Ok((tgtd, guests, qmp_dir))
}

/// Machines first, which use the targets; the database last. One that does not stop keeps none of the others running.
async fn stop_all(dir: &Path, children: &Children) -> Result<(), DevError> {
    let machines = machines::stop(dir, children).await;
    let tgtd = tgtd::stop(dir, children).await;
    let postgres = postgres::stop(dir, children).await;
    machines.and(tgtd).and(postgres)
}

fn make_dir(data: &Path) -> Result<PathBuf, DevError> {
    fs::create_dir_all(data).and_then(|()| data.canonicalize()).map_err(|e| DevError::io(data, &e))
}

/// Of two on one directory the second is turned away, instead of taking over the children of the first.
fn lock(dir: &Path) -> Result<fs::File, DevError> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| DevError::io(&path, &e))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| DevError::new(format!("another vbs dev runs on {}", dir.display())))?;
    Ok(file)
}

/// Remembers of a directory whether it is simulated, which cannot change, and how many machines it has, which only grows.
fn settle_machine_count(dir: &Path, options: &Options) -> Result<usize, DevError> {
    let kind = if options.sim { "simulated" } else { "real" };
    let path = dir.join("machines");
    let count = match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => options.instances,
        Err(e) => return Err(DevError::io(&path, &e)),
        Ok(text) if text.split_whitespace().next() == Some(kind) => machine_count(dir)?.max(options.instances),
        Ok(_) => return Err(DevError::new(format!("{} was not begun as {kind}: --sim is for ever", dir.display()))),
    };
    write_atomically(&path, format!("{kind} {count}\n").as_bytes(), 0o644)?;
    Ok(count)
}

fn machine_count(dir: &Path) -> Result<usize, DevError> {
    let path = dir.join("machines");
    let text = fs::read_to_string(&path).map_err(|e| DevError::io(&path, &e))?;
    let count = text.split_whitespace().nth(1).and_then(|count| count.parse().ok());
    count.ok_or_else(|| DevError::new(format!("{}: not what vbs dev wrote", path.display())))
}
