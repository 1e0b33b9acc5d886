//! `DescribeVolumes` of one id: the request that clients poll with.

use std::net::SocketAddr;
use std::time::Duration;

use crate::baseline::Baseline;
use crate::client::{Client, send};
use crate::load::{self, Measured, Requests};
use crate::moto::Moto;
use crate::report::{Report, Target, median};
use crate::world::{Gateway, VOLUMES, World};
use crate::{ROUNDS, Result};

const CONNECTIONS: usize = 16;
const TURN: Duration = Duration::from_secs(4);
/// Volumes in moto, which takes the longer for one the more there are.
const MOTO_VOLUMES: usize = 500;

/// A server in the comparison.
struct Server {
    name: String,
    address: SocketAddr,
    client: Client,
    volume: String,
    turns: Vec<Measured>,
}

/// Measures the four servers.
pub async fn measure(world: &World, gateway: &Gateway, report: &mut Report) -> Result<()> {
    let (volume, first) = (world.some_volume().await?, world.first_volume().await?);
    let file = world.file("answer.xml");
    std::fs::write(&file, gateway.client.call("DescribeVolumes", &[("VolumeId.1", &volume)]).await?)?;
    let bare = Baseline::bare(&file).await?;
    let least = Baseline::least(world.url(), &gateway.client).await?;
    let moto = Moto::start(MOTO_VOLUMES, &world.file("moto.log")).await?;

    let server = |name: &str, address, client: &Client, volume: &str| Server {
        name: name.to_owned(),
        address,
        client: Client { address, ..client.clone() },
        volume: volume.to_owned(),
        turns: Vec::new(),
    };
    let mut servers = [
        server("hyper with the same bytes", bare.address, &gateway.client, &volume),
        server("the least correct server", least.address, &gateway.client, &volume),
        server("vbs", gateway.client.address, &gateway.client, &volume),
        server(&format!("moto ({MOTO_VOLUMES} volumes)"), moto.client.address, &moto.client, &first),
    ];
    for server in &servers {
        server.check().await?;
    }
    for round in 1..=ROUNDS {
        println!("describes, round {round} of {ROUNDS}");
        for server in &mut servers {
            let measured = load::run(server.address, CONNECTIONS, TURN, Requests::Same(server.request())).await?;
            println!(
                "  {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
                server.name, measured.rate, measured.p50_ms, measured.p99_ms
            );
            server.turns.push(measured);
        }
    }

    report.heading(&format!("DescribeVolumes of one id, signed, {VOLUMES} volumes, {CONNECTIONS} connections"));
    for server in &servers {
        let figures = format!("{:.0}/s, p50 {:.2} ms, p99 {:.2} ms", server.rate(), server.p50_ms(), server.p99_ms());
        report.figure(&server.name, figures);
    }
    let [bare, least, vbs, moto] = &servers;
    report.figure("vbs to hyper with the same bytes", format!("{:.2}", vbs.rate() / bare.rate()));
    report.ratio("vbs to the least correct server", "", vbs.rate() / least.rate(), "", Target::AtLeast(0.7));
    report.ratio("vbs to moto", "", vbs.rate() / moto.rate(), "", Target::AtLeast(80.0));
    Ok(())
}

impl Server {
    fn request(&self) -> Vec<u8> {
        self.client.request("DescribeVolumes", &[("VolumeId.1", &self.volume)])
    }

    /// Nothing is timed that does not answer rightly.
    async fn check(&self) -> Result<()> {
        let answer = send(self.address, &self.request()).await?;
        let body = String::from_utf8_lossy(&answer.body);
        if answer.status == 200 && body.contains(&format!("<volumeId>{}</volumeId>", self.volume)) {
            return Ok(());
        }
        Err(format!("{} answers {}: {body}", self.name, answer.status).into())
    }

    fn median(&self, figure: impl Fn(&Measured) -> f64) -> f64 {
        median(&self.turns.iter().map(figure).collect::<Vec<_>>())
    }

    fn rate(&self) -> f64 {
        self.median(|turn| turn.rate)
    }

    fn p50_ms(&self) -> f64 {
        self.median(|turn| turn.p50_ms)
    }

    fn p99_ms(&self) -> f64 {
        self.median(|turn| turn.p99_ms)
    }
}
