//! Measures vbs beside its limits and beside what people use today, in one run, and prints one table of ratios.
//!
//! Absolute figures of a benchmark say much about the machine and little about the program. So everything here has its
//! peer in the same run, on the same machine, asked by the same client, in turns, and the median of the turns counts:
//!
//! - describing one volume of 100,000: bare hyper, the least that a correct server does, moto, and vbs;
//! - pages of 1,000 volumes with tags and attachments, each filter over 100,000, 500 ids at once: moto, and vbs;
//! - accepting volumes: `pgbench` that commits one row, and vbs, both with fsync on;
//! - attaching: the bare commands that must be run, and vbs.
//!
//! The client shares the processors with what it measures, as it does for every server alike.
//!
//! `cargo bench --bench compare` runs all of it, `-- describe` only a part; `scripts/bench` installs what is needed first.

mod attach;
mod baseline;
mod client;
mod create;
mod describe;
mod load;
mod moto;
mod pages;
mod pgbench;
mod process;
mod report;
mod world;

use std::process::ExitCode;

use report::Report;

/// What anything here may fail with: a sentence for whoever runs it.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Turns of each measurement; the median counts.
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` adds it.
    arguments.retain(|argument| argument != "--bench");
    let done = match arguments.first().map(String::as_str) {
        Some(baseline::ROLE) => baseline::run(&arguments[1..]).await,
        _ => compare(&arguments).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            for cause in std::iter::successors(error.source(), |cause| cause.source()) {
                eprintln!("bench: because {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn compare(parts: &[String]) -> Result<()> {
    if let Some(unknown) = parts.iter().find(|part| !["describe", "pages", "create", "attach"].contains(&part.as_str()))
    {
        return Err(format!("no part {unknown}: there are describe, pages, create and attach").into());
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let mut report = Report::default();
    if wanted("describe") || wanted("pages") || wanted("create") {
        let world = world::World::start().await?;
        let measured = tokio::select! {
            measured = requests(&world, &wanted, &mut report) => measured,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        };
        world.stop().await?;
        measured?;
    }
    if wanted("attach") {
        attach::measure(&mut report).await?;
    }
    report.print();
    Ok(())
}

/// What is asked of a gateway with simulated nodes.
async fn requests(world: &world::World, wanted: &impl Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let gateway = world.gateway(report).await?;
    if wanted("describe") {
        describe::measure(world, &gateway, report).await?;
    }
    if wanted("pages") {
        pages::measure(world, &gateway, report).await?;
    }
    if wanted("create") {
        create::measure(world, &gateway, report).await?;
    }
    gateway.note_memory_after_load(report)
}
