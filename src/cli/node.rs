//! `vbs node`

use std::collections::BTreeMap;

use clap::Subcommand;

use super::ConfigFile;
use crate::config::Config;
use crate::db::nodes::{self, HYPERVISOR, Holdings, STORAGE};

/// Nodes: where volumes are kept and machines run.
#[derive(Subcommand)]
pub enum Node {
    /// List the nodes of the configuration, and those that only the database remembers
    ///
    /// Columns: name, kind, zone, state, drivers, capacity, free, when it last answered, what of ours is on it, why it does not
    /// answer
    List {
        /// Which vbs.
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Let nothing new come to a node: no volumes to a storage node, no attachments to a hypervisor node
    Drain(Named),
    /// Let new things come to a node again
    Undrain(Named),
    /// Forget a node that the configuration no longer has and that has nothing of ours
    Forget(Named),
}

/// One node.
#[derive(clap::Args)]
pub struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    file: ConfigFile,
}

impl Node {
    /// Runs it.
    pub async fn run(self) -> super::Result {
        match self {
            Self::List { file } => {
                let config = file.load()?;
                let mut conn = file.connect().await?;
                let held = nodes::holdings(&mut conn).await?;
                for row in rows(&config, nodes::list(&mut conn).await?) {
                    let held = held.get(&row.name).copied().unwrap_or_default();
                    println!("{}", line(&row, held));
                }
            }
            Self::Drain(named) => set_drained(&named, true).await?,
            Self::Undrain(named) => set_drained(&named, false).await?,
            Self::Forget(Named { name, file }) => {
                if configured(&file.load()?).contains_key(&name) {
                    return Err(format!("{name} is in the configuration").into());
                }
                let mut conn = file.connect().await?;
                if nodes::holdings(&mut conn).await?.contains_key(&name) {
                    return Err(format!("the database has volumes, snapshots or attachments on {name}").into());
                }
                if !nodes::forget(&mut conn, &name).await? {
                    return Err(format!("there is no node {name}").into());
                }
            }
        }
        Ok(())
    }
}

async fn set_drained(named: &Named, drained: bool) -> super::Result {
    let Named { name, file } = named;
    let config = file.load()?;
    let mut conn = file.connect().await?;
    let known = rows(&config, nodes::list(&mut conn).await?);
    let row = known.into_iter().find(|row| row.name == *name).ok_or_else(|| format!("there is no node {name}"))?;
    Ok(nodes::set_drained(&mut conn, name, &row.kind, &row.zone, drained).await?)
}

/// Kind and zone of the nodes of the configuration, by name.
fn configured(config: &Config) -> BTreeMap<String, (&'static str, String)> {
    let storage = config.volume_nodes.iter().map(|node| (node.name.clone(), (STORAGE, node.zone.clone())));
    let hypervisors = config.vmm_nodes.iter().map(|node| (node.name.clone(), (HYPERVISOR, node.zone.clone())));
    storage.chain(hypervisors).collect()
}

/// A line of the list: a node, and whether the configuration has it.
struct Row {
    name: String,
    kind: String,
    zone: String,
    is_configured: bool,
    /// What the database knows of it.
    seen: Option<nodes::Node>,
}

fn rows(config: &Config, seen: Vec<nodes::Node>) -> Vec<Row> {
    let mut seen: BTreeMap<String, nodes::Node> = seen.into_iter().map(|row| (row.name.clone(), row)).collect();
    let row = |(name, (kind, zone)): (String, (&str, String))| {
        let seen = seen.remove(&name);
        Row { name, kind: kind.to_owned(), zone, is_configured: true, seen }
    };
    let mut rows: Vec<Row> = configured(config).into_iter().map(row).collect();
    rows.extend(seen.into_values().map(|row| {
        let (name, kind, zone) = (row.name.clone(), row.kind.clone(), row.zone.clone());
        Row { name, kind, zone, is_configured: false, seen: Some(row) }
    }));
    rows
}

fn line(row: &Row, held: Holdings) -> String {
    let seen = row.seen.as_ref();
    let state = match (row.is_configured, seen.is_some_and(|seen| seen.drained)) {
        (false, _) => "not in the configuration",
        (true, true) => "drained",
        (true, false) => "in use",
    };
    let drivers = seen.map_or("", |seen| &seen.drivers);
    let answered = seen.and_then(|seen| seen.answered_at).map_or_else(|| "never".into(), |at| at.to_rfc3339());
    let on_it = match row.kind.as_str() {
        STORAGE => format!("{} volumes, {} snapshots", held.volumes, held.snapshots),
        _ => format!("{} attachments", held.attachments),
    };
    let [capacity, free] = [seen.and_then(|seen| seen.capacity_bytes), seen.and_then(|seen| seen.free_bytes)].map(gib);
    let error = seen.and_then(|seen| seen.error.as_deref()).unwrap_or_default();
    let Row { name, kind, zone, .. } = row;
    format!("{name}\t{kind}\t{zone}\t{state}\t{drivers}\t{capacity}\t{free}\t{answered}\t{on_it}\t{error}")
}

/// Bytes as people read them.
fn gib(bytes: Option<i64>) -> String {
    match bytes {
        None => "-".into(),
        Some(i64::MAX) => "no limit".into(),
        Some(bytes) => {
            let tenths = bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
            format!("{}.{} GiB", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
            region = "us-east-1"
            zones = ["us-east-1a"]
            master_key = { env = "VBS_MASTER_KEY" }
            database = { url = "postgres://vbs@localhost/vbs" }
            [[volume_node]]
            name = "storage-1"
            zone = "us-east-1a"
            delegate = { sim = {} }
            [[vmm_node]]
            name = "vmm-1"
            zone = "us-east-1a"
            delegate = { sim = {} }
        "#;
        toml::from_str(text).unwrap()
    }

    #[test]
    fn nodes_that_never_answered_are_listed_and_those_that_the_configuration_has_lost() {
        let lost = nodes::Node {
            name: "storage-0".into(),
            kind: STORAGE.into(),
            zone: "us-east-1b".into(),
            drivers: "lvm, lio".into(),
            capacity_bytes: Some(5 << 29),
            free_bytes: Some(i64::MAX),
            sparse: false,
            answered_at: chrono::DateTime::from_timestamp(0, 0),
            error: Some("no route to host".into()),
            drained: true,
        };
        let held = Holdings { volumes: 2, snapshots: 1, attachments: 0 };
        let lines: Vec<String> = rows(&config(), vec![lost]).iter().map(|row| line(row, held)).collect();
        assert_eq!(
            lines,
            [
                "storage-1\tstorage\tus-east-1a\tin use\t\t-\t-\tnever\t2 volumes, 1 snapshots\t",
                "vmm-1\thypervisor\tus-east-1a\tin use\t\t-\t-\tnever\t0 attachments\t",
                "storage-0\tstorage\tus-east-1b\tnot in the configuration\tlvm, lio\t2.5 GiB\tno limit\t\
                 1970-01-01T00:00:00+00:00\t2 volumes, 1 snapshots\tno route to host",
            ]
        );
    }
}
