//! The configuration of `vbs dev`, as a file like any other gateway's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{DevError, IQN_PREFIX, owner, write_atomically};
use crate::config::{self, Config};

/// What differs from one directory to another.
pub(super) struct Settings {
    /// Where to answer EC2 requests.
    pub listen: SocketAddr,
    /// Our Postgres.
    pub database_url: String,
    /// What is behind the API.
    pub nodes: Nodes,
}

/// The nodes.
pub(super) enum Nodes {
    /// One of each kind, on this machine.
    Real {
        /// Our tgtd.
        tgt: config::Tgt,
        /// The directory of the guests' monitors.
        qmp_dir: PathBuf,
    },
    /// One of each kind a zone, in memory, with this many machines dealt out in turn.
    Simulated {
        /// The number of machines.
        machines: usize,
    },
}

impl Settings {
    /// Writes `DIR/vbs.toml` and reads it back.
    pub fn write(&self, dir: &Path) -> Result<Config, DevError> {
        let path = dir.join("vbs.toml");
        let text = toml::to_string(&self.value(dir)).map_err(|e| DevError::new(format!("{}: {e}", path.display())))?;
        write_atomically(&path, text.as_bytes(), 0o600)?;
        Config::load(&path).map_err(|e| DevError::new(e.to_string()))
    }

    fn value(&self, dir: &Path) -> Value {
        let zones: &[&str] = match &self.nodes {
            Nodes::Real { .. } => &["a"],
            Nodes::Simulated { .. } => &["a", "b", "c"],
        };
        let node = |kind: &str, zone: &str, delegate: Value| json!({ "name": format!("{kind}-{zone}"), "zone": format!("us-east-1{zone}"), "delegate": delegate });
        let volume_nodes: Vec<Value> = zones.iter().map(|zone| node("storage", zone, self.storage(dir))).collect();
        let vmm_nodes = zones.iter().enumerate().map(|(number, zone)| {
            let mut node = node("hypervisor", zone, self.hypervisor(dir, number, zones.len()));
            node["default_owner"] = json!(owner::ACCOUNT);
            node
        });
        json!({
            "region": "us-east-1",
            "iqn_prefix": IQN_PREFIX,
            "zones": zones.iter().map(|zone| format!("us-east-1{zone}")).collect::<Vec<_>>(),
            "master_key": { "file": dir.join("master.key") },
            "database": { "url": self.database_url, "migrate": true },
            "gateway": { "server": { "listen": self.listen } },
            "volume_node": volume_nodes,
            "vmm_node": vmm_nodes.collect::<Vec<_>>(),
        })
    }

    fn storage(&self, dir: &Path) -> Value {
        let Nodes::Real { tgt, .. } = &self.nodes else { return json!({ "sim": {} }) };
        let tgt = json!({
            "socket_dir": tgt.socket_dir,
            "control_port": tgt.control_port,
            "portal": tgt.portal,
        });
        json!({ "local": { "data_dir": dir.join("storage"), "target": { "tgt": tgt } } })
    }

    fn hypervisor(&self, dir: &Path, zone: usize, zones: usize) -> Value {
        match &self.nodes {
            Nodes::Real { qmp_dir, .. } => {
                let qemu = json!({ "qmp_dir": qmp_dir, "iqn_prefix": IQN_PREFIX });
                json!({ "local": { "data_dir": dir.join("hypervisor"), "hypervisor": { "qemu": qemu } } })
            }
            Nodes::Simulated { machines } => {
                let here = (0..*machines).filter(|machine| machine % zones == zone);
                json!({ "sim": { "machines": here.map(|machine| format!("vm-{}", machine + 1)).collect::<Vec<_>>() } })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Link;

    fn written(nodes: Nodes) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        Settings { listen, database_url: "postgres:///vbs".into(), nodes }.write(dir.path()).unwrap()
    }

    #[test]
    fn simulated_machines_are_dealt_out_to_the_zones_from_a_on() {
        let config = written(Nodes::Simulated { machines: 4 });
        let machines = config.vmm_nodes.iter().map(|node| match &node.delegate {
            Link::Sim(sim) => sim.machines.join(" "),
            _ => panic!("not simulated"),
        });
        assert_eq!(machines.collect::<Vec<_>>(), ["vm-1 vm-4", "vm-2", "vm-3"]);
        assert_eq!(config.zones, ["us-east-1a", "us-east-1b", "us-east-1c"]);
    }

    #[test]
    fn real_nodes_are_read_back_as_they_were_given() {
        let tgt = config::Tgt {
            socket_dir: "/a \"b\"".into(),
            control_port: 1,
            portal: SocketAddr::from(([127, 0, 0, 1], 2)),
            tgtadm: "tgtadm".into(),
        };
        let config = written(Nodes::Real { tgt, qmp_dir: "/q".into() });
        assert!(
            matches!(&config.volume_nodes[0].delegate, Link::Local(config::Storage { target: config::Target::Tgt(t), .. }) if t.socket_dir == Path::new("/a \"b\""))
        );
        assert!(
            matches!(&config.vmm_nodes[0].delegate, Link::Local(config::Vmm { hypervisor: config::Hypervisor::Qemu(q), .. }) if q.qmp_dir == Path::new("/q"))
        );
    }
}
