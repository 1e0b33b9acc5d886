//! `DescribeVolumes` of many: pages, filters over all there is, and a batch of ids as the Kubernetes driver sends it.
//!
//! moto knows no pages: it answers with all that it has. So its page is that of a moto with 1,000 volumes in it, which is the best
//! that it can do; its filters go over as many volumes as those of vbs.

use std::time::{Duration, Instant};

use crate::Result;
use crate::client::{Client, element, send};
use crate::moto::Moto;
use crate::report::{Report, Target, median};
use crate::world::{Gateway, VOLUMES, World};

/// Turns of what is compared with moto, which takes a second for each; the median counts.
const TURNS: usize = 7;
/// A page.
const PAGE: usize = 1_000;
/// Ids in a batch.
const BATCH: usize = 500;
/// How often each is asked for; the median counts.
const TIMES: usize = 15;
/// How long moto may take for a filter: for one of tags it looks at every tag there is for each volume.
const MOTO: Duration = Duration::from_secs(5);

/// The filters: of each a value that few volumes have or none, so that all must be looked at, and one that most have, where there is
/// one, so that the page is full.
const FILTERS: [(&str, &str, Option<&str>); 30] = [
    ("attachment.attach-time", "2026-01-01T00:00:05.000Z", Some("2026-01-*")),
    ("attachment.delete-on-termination", "true", Some("false")),
    ("attachment.device", "/dev/sdz", Some("/dev/sd?")),
    ("attachment.instance-id", "i-0cfcd208495d565ef", Some("i-*")),
    ("attachment.status", "detaching", Some("attached")),
    ("availability-zone", "us-east-1b", Some("us-east-1a")),
    ("availability-zone-id", "use1-az2", Some("use1-az1")),
    ("create-time", "2026-01-01T00:00:05.000Z", Some("2026-01-*")),
    ("create-time", "1926-*", None),
    ("create-time", "*T99:*", Some("*:00:??.*")),
    ("encrypted", "true", Some("false")),
    ("fast-restored", "true", Some("false")),
    ("multi-attach-enabled", "true", Some("false")),
    ("operator.managed", "true", Some("false")),
    ("operator.principal", "nobody", None),
    ("size", "16384", Some("*")),
    ("size", "9?9", Some("?*")),
    ("snapshot-id", "snap-0123456789abcdef0", None),
    ("status", "error", Some("available")),
    ("tag:Name", "volume 77777", Some("volume *")),
    ("tag:Name", "*lume 77777", None),
    ("tag:environment", "test", Some("production")),
    ("tag-key", "owner", Some("environment")),
    ("tag-key", "own*", Some("*")),
    ("tag-value", "test", Some("production")),
    ("tag-value", "*x", Some("*")),
    ("volume-id", "vol-0123456789abcdef0", Some("vol-*")),
    ("volume-id", "*0123456789abcdef0", None),
    ("volume-initialization-rate", "100", None),
    ("volume-type", "st1", Some("gp3")),
];

/// Two filters, the first of which most volumes meet.
const PAIRS: [[(&str, &str); 2]; 6] = [
    [("tag:environment", "production"), ("status", "error")],
    [("tag:environment", "production"), ("status", "available")],
    [("tag:environment", "production"), ("tag:Name", "volume 77777")],
    [("tag:environment", "production"), ("tag:team", "team 3")],
    [("tag:environment", "production"), ("tag-value", "*x")],
    [("attachment.status", "attached"), ("tag:Name", "*7777")],
];

/// Measures all of it.
pub async fn measure(world: &World, gateway: &Gateway, report: &mut Report) -> Result<()> {
    let moto = Moto::start(PAGE, &world.file("moto-page.log")).await?;
    let ids = of_moto(&moto.client).await?;
    full_pages(&gateway.client, &moto.client, report).await?;
    batches(&gateway.client, &moto.client, &ids[..BATCH], report).await?;
    ends(&gateway.client, report).await?;
    drop(moto);
    filters(world, &gateway.client, report).await
}

/// The ids of the volumes in moto, which are the first that were made.
async fn of_moto(moto: &Client) -> Result<Vec<String>> {
    let answer = moto.call("DescribeVolumes", &[]).await?;
    let mut ids: Vec<String> = answer.split("<volumeId>").skip(1).map(|rest| rest[..21].to_owned()).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() == PAGE { Ok(ids) } else { Err(format!("{} volumes in moto", ids.len()).into()) }
}

/// Pages of 1,000.
async fn full_pages(vbs: &Client, moto: &Client, report: &mut Report) -> Result<()> {
    report.heading(&format!("DescribeVolumes, pages of {PAGE} of {VOLUMES} with tags and attachments, one connection"));
    let page = vbs.request("DescribeVolumes", &[("MaxResults", &PAGE.to_string())]);
    let all = moto.request("DescribeVolumes", &[]);
    compare((vbs, page), (moto, all), Target::AtLeast(20.0), report).await
}

/// 500 ids in one call.
async fn batches(vbs: &Client, moto: &Client, ids: &[String], report: &mut Report) -> Result<()> {
    report.heading(&format!("DescribeVolumes of {BATCH} ids in one call, one connection"));
    let names: Vec<String> = (1..=ids.len()).map(|n| format!("VolumeId.{n}")).collect();
    let parameters: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(ids.iter().map(String::as_str)).collect();
    let request = |client: &Client| client.request("DescribeVolumes", &parameters);
    compare((vbs, request(vbs)), (moto, request(moto)), Target::AtLeast(20.0), report).await
}

/// Both in turns. moto works for one caller at a time, so one is enough to see how many answers it gives a second.
async fn compare(vbs: (&Client, Vec<u8>), moto: (&Client, Vec<u8>), target: Target, report: &mut Report) -> Result<()> {
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (took, (client, request)) in took.iter_mut().zip([&vbs, &moto]) {
            took.push(ask(client, request).await?);
        }
    }
    let [vbs, moto] = took.map(|took| median(&took));
    for (name, ms) in [("moto, with 1,000 volumes in all", moto), ("vbs", vbs)] {
        report.figure(name, format!("{:.1}/s, p50 {ms:.1} ms", 1e3 / ms));
    }
    report.ratio("vbs to moto", "", moto / vbs, "", target);
    Ok(())
}

/// The first page and the last.
async fn ends(vbs: &Client, report: &mut Report) -> Result<()> {
    report.heading(&format!("The first page of {PAGE} and the last, one connection"));
    let size = PAGE.to_string();
    let mut token = String::new();
    let mut last = vbs.request("DescribeVolumes", &[("MaxResults", &size)]);
    let first = last.clone();
    let mut pages = 1;
    loop {
        let answer = String::from_utf8(send(vbs.address, &last).await?.body)?;
        match element(&answer, "nextToken") {
            Ok(next) => next.clone_into(&mut token),
            Err(_) => break,
        }
        last = vbs.request("DescribeVolumes", &[("MaxResults", &size), ("NextToken", &token)]);
        pages += 1;
    }
    let (mut of_first, mut of_last) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        of_first.push(ask(vbs, &first).await?);
        of_last.push(ask(vbs, &last).await?);
    }
    let (of_first, of_last) = (median(&of_first), median(&of_last));
    report.figure("the first page", format!("{of_first:.1} ms"));
    report.figure(&format!("page {pages}, the last"), format!("{of_last:.1} ms"));
    let apart = (of_last / of_first).max(of_first / of_last);
    report.ratio("the slower to the faster", "", apart, "", Target::AtMost(1.5));
    Ok(())
}

/// Each filter.
async fn filters(world: &World, vbs: &Client, report: &mut Report) -> Result<()> {
    let volumes = usize::try_from(VOLUMES)?;
    let start = async || Moto::start(volumes, &world.file("moto-filters.log")).await;
    let mut moto = start().await?;
    report.heading(&format!(
        "DescribeVolumes by a filter over {VOLUMES}, medians: when it selects few; a page of {PAGE} when it selects most; moto, few"
    ));
    let mut slowest = (0.0, "");
    for (name, few, most) in FILTERS {
        let mut medians = Vec::new();
        for value in [Some(few), most].into_iter().flatten() {
            let took = often(vbs, &filtered(vbs, &[(name, value)])).await?;
            slowest = if took > slowest.0 { (took, name) } else { slowest };
            medians.push(format!("{took:6.1} ms"));
        }
        if most.is_none() {
            medians.push(format!("{:9}", "-"));
        }
        let asked = filtered(&moto.client, &[(name, few)]);
        let of_moto = match tokio::time::timeout(MOTO, ask(&moto.client, &asked)).await {
            Ok(Ok(took)) => format!("{took:6.0} ms"),
            Ok(Err(_)) => "refused".to_owned(),
            Err(_) => {
                // It would go on with that beside all that follows.
                drop(moto);
                moto = start().await?;
                format!("over {} s", MOTO.as_secs())
            }
        };
        report.figure(&format!("{name}={few}"), format!("{}, {of_moto:>9}", medians.join(", ")));
    }
    report.ratio("the slowest of vbs", slowest.1, slowest.0, " ms", Target::AtMost(50.0));
    report.heading(&format!("DescribeVolumes by two filters over {VOLUMES}, medians"));
    let mut slowest = (0.0, String::new());
    for pair in PAIRS {
        let took = often(vbs, &filtered(vbs, &pair)).await?;
        let name = pair.map(|(name, value)| format!("{name}={value}")).join(", ");
        report.figure(&name, format!("{took:6.1} ms"));
        slowest = if took > slowest.0 { (took, name) } else { slowest };
    }
    report.ratio("the slowest of vbs", slowest.1, slowest.0, " ms", Target::AtMost(50.0));
    Ok(())
}

/// Asks again and again, and tells the median.
async fn often(client: &Client, request: &[u8]) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..TIMES {
        took.push(ask(client, request).await?);
    }
    Ok(median(&took))
}

fn filtered(client: &Client, filters: &[(&str, &str)]) -> Vec<u8> {
    let size = PAGE.to_string();
    let names: Vec<[String; 2]> =
        (1..=filters.len()).map(|n| [format!("Filter.{n}.Name"), format!("Filter.{n}.Value.1")]).collect();
    let mut parameters = vec![("MaxResults", size.as_str())];
    for ([name, value], filter) in names.iter().zip(filters) {
        parameters.extend([(name.as_str(), filter.0), (value.as_str(), filter.1)]);
    }
    client.request("DescribeVolumes", &parameters)
}

/// Asks once over a connection of its own, and tells how many milliseconds the answer took.
async fn ask(client: &Client, request: &[u8]) -> Result<f64> {
    let start = Instant::now();
    let answer = send(client.address, request).await?;
    if answer.status != 200 {
        return Err(format!("answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body)).into());
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
