//! What must hold of whatever stands in a configuration file: see [`crate::fuzzing`].

use std::time::{Duration, Instant};

use super::{Config, DelegateConfig, Link, Server, Storage, Vmm};

/// A file. What is accepted can be worked with: its times can be added to a clock's, and no two nodes have one name.
///
/// # Panics
/// When that does not hold.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = toml::from_str::<Config>(text)
        && config.validate().is_ok()
    {
        is_usable(&config.gateway.server);
        let workers = &config.workers;
        for seconds in [workers.lease_s, workers.poll_s, workers.step_deadline_s, workers.sweep_s] {
            can_be_waited_for(seconds);
        }
        let names: Vec<_> =
            config.volume_nodes.iter().map(|n| &n.name).chain(config.vmm_nodes.iter().map(|n| &n.name)).collect();
        assert!(names.iter().enumerate().all(|(at, name)| !names[..at].contains(name)));
        assert!(config.iqn_prefix.len() <= 128 && (1..=26).contains(&config.quotas.attachments));
        for node in &config.vmm_nodes {
            hypervisor(&node.delegate);
        }
    }
    if let Ok(config) = toml::from_str::<DelegateConfig<Storage>>(text) {
        is_usable(&config.server);
    }
    if let Ok(config) = toml::from_str::<DelegateConfig<Vmm>>(text) {
        is_usable(&config.server);
        hypervisor(&config.delegate);
    }
}

fn is_usable(server: &Server) {
    for seconds in [server.read_timeout_s, server.idle_timeout_s, server.grace_s] {
        can_be_waited_for(seconds);
    }
}

fn hypervisor(link: &Link<Vmm>) {
    if let Link::Local(vmm) = link {
        can_be_waited_for(match &vmm.hypervisor {
            super::Hypervisor::Qemu(qemu) => qemu.detach_wait_s,
            super::Hypervisor::Xen(xen) => xen.detach_wait_s,
        });
    }
}

fn can_be_waited_for(seconds: u64) {
    assert!(seconds.checked_mul(1000).is_some() && i64::try_from(seconds).is_ok());
    assert!(Instant::now().checked_add(Duration::from_secs(seconds)).is_some());
}
