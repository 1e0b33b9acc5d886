//! `CreateVolume`: how many volumes are accepted a second, each a commit on disk, while the workers make them.

use std::time::{Duration, Instant};

use crate::load::{self, Measured, Requests};
use crate::pgbench::Pgbench;
use crate::report::{Report, Target, median};
use crate::world::{Gateway, World};
use crate::{ROUNDS, Result};

/// A few clients, and many: statements and commits are shared by who comes at the same time.
const CONNECTIONS: [usize; 2] = [16, 64];
const TURN: Duration = Duration::from_secs(5);
/// More requests than are answered in a turn.
const PREPARED: usize = 30_000;
/// How long the workers may take to make what was accepted.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures both, in turns, with as many connections each.
pub async fn measure(world: &World, gateway: &Gateway, report: &mut Report) -> Result<()> {
    let pgbench = Pgbench::prepare(world).await?;
    for connections in CONNECTIONS {
        measure_with(connections, &pgbench, world, gateway, report).await?;
    }
    Ok(())
}

async fn measure_with(
    connections: usize,
    pgbench: &Pgbench,
    world: &World,
    gateway: &Gateway,
    report: &mut Report,
) -> Result<()> {
    let (mut commits, mut accepted, mut made) = (Vec::new(), Vec::<Measured>::new(), Vec::new());
    for round in 1..=ROUNDS {
        println!("creates over {connections} connections, round {round} of {ROUNDS}");
        let rate = pgbench.run(connections, TURN).await?;
        println!("  pgbench: {rate:.0}/s");
        commits.push(rate);
        let requests = requests(gateway);
        let start = Instant::now();
        let measured = load::run(gateway.client.address, connections, TURN, requests).await?;
        let accepted_in = start.elapsed();
        until_made(world).await?;
        let (volumes, seconds) = (f64::from(u32::try_from(measured.answers)?), start.elapsed().as_secs_f64());
        println!(
            "  vbs: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms; {volumes} accepted in {:.1} s, available after {seconds:.1} s",
            measured.rate,
            measured.p50_ms,
            measured.p99_ms,
            accepted_in.as_secs_f64()
        );
        accepted.push(measured);
        made.push(volumes / seconds);
    }
    let of = |figure: fn(&Measured) -> f64| median(&accepted.iter().map(figure).collect::<Vec<_>>());
    report.heading(&format!("CreateVolume accepted, fsync on, {connections} connections"));
    report.figure("pgbench, one row a commit", format!("{:.0}/s", median(&commits)));
    let figures = format!("{:.0}/s, p50 {:.2} ms, p99 {:.2} ms", of(|m| m.rate), of(|m| m.p50_ms), of(|m| m.p99_ms));
    report.figure("vbs, the workers running", figures);
    report.figure("vbs, until the volumes are available", format!("{:.0}/s", median(&made)));
    report.ratio("vbs to pgbench", "", of(|m| m.rate) / median(&commits), "", Target::AtLeast(0.4));
    Ok(())
}

/// Signed before the clock runs; each has a client token of its own, as those of the AWS CLI and of boto3 do.
fn requests(gateway: &Gateway) -> Requests {
    let request = |_| {
        let token = uuid::Uuid::new_v4().to_string();
        let parameters =
            [("AvailabilityZone", "us-east-1a"), ("Size", "8"), ("VolumeType", "gp3"), ("ClientToken", &token)];
        gateway.client.request("CreateVolume", &parameters)
    };
    Requests::Each((0..PREPARED).map(request).collect())
}

/// Waits until no volume is on its way.
async fn until_made(world: &World) -> Result<()> {
    let client = world.connect().await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let live = "SELECT count(*) FROM (SELECT FROM workflows WHERE finished_at IS NULL LIMIT 1) live";
        if client.query_one(live, &[]).await?.try_get::<_, i64>(0)? == 0 {
            let states = "SELECT count(*) FROM volumes WHERE state NOT IN ('available', 'in-use')";
            let others: i64 = client.query_one(states, &[]).await?.try_get(0)?;
            return if others == 0 { Ok(()) } else { Err(format!("{others} volumes are not available").into()) };
        }
        if Instant::now() > deadline {
            return Err("the workers do not come to an end".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
