//! What xenstore holds of machines and disks: the one place where every toolstack tells of them, with the states that say
//! whether a disk is there at all (`xl` ends with status 0 when it is not).
//!
//! A guest writes what it likes below its own `/local/domain/N`, so nothing that is read there is believed but the state of
//! its own end of a disk; its words are quoted in errors, bounded and escaped.

use std::collections::BTreeMap;

use super::super::open_iscsi::sysfs::hex_number;

/// Connected (xen/interface/io/xenbus.h).
pub(super) const CONNECTED: u8 = 4;
/// Asked to let go.
pub(super) const CLOSING: u8 = 5;
/// Both ends have let go.
pub(super) const CLOSED: u8 = 6;

/// How much of a guest's or a script's words an error quotes, in characters.
const WORDS: usize = 200;

/// The nodes by path.
#[derive(Debug, Clone, Default)]
pub(super) struct Store(BTreeMap<String, String>);

/// A machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Domain {
    /// The number, another after each start.
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) uuid: String,
    /// Seconds since 1970.
    pub(super) started_at: i64,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
}

/// A disk of a machine, as this node serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vbd {
    pub(super) domain: u32,
    pub(super) vdev: u32,
    /// The path that it was attached by.
    pub(super) params: String,
    /// The block device behind it, once its script has run.
    pub(super) number: Option<(u32, u32)>,
    /// The state of this node's end.
    pub(super) backend: u8,
    /// The state of the guest's end, when it has one.
    pub(super) frontend: Option<u8>,
    /// Whether it is to stay; not so since a detach was asked for.
    pub(super) online: bool,
    /// What either end, or the script, complains of.
    pub(super) complaint: Option<String>,
}

impl Vbd {
    /// Whether it is as it shall be: the guest can use it, and nobody has asked for it back.
    pub(super) fn connected(&self) -> bool {
        self.backend == CONNECTED && self.frontend == Some(CONNECTED) && self.online
    }

    /// Whether the guest has it, be it asked for it back or not: one that refuses has both ends closing, and goes on using it.
    pub(super) fn held(&self) -> bool {
        let held = |state| matches!(state, CONNECTED | CLOSING);
        held(self.backend) && self.frontend.is_some_and(held)
    }
}

impl Store {
    /// Notes a node.
    pub(super) fn put(&mut self, path: String, value: String) {
        self.0.insert(path, value);
    }

    fn get(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.get(path)?.parse().ok()
    }

    /// The names right below a path, in order, each once.
    fn children<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        let prefix = format!("{path}/");
        let skip = prefix.len();
        let below = self.0.range(prefix.clone()..).take_while(move |(path, _)| path.starts_with(&prefix));
        let mut last = "";
        below.filter_map(move |(path, _)| {
            let name = path[skip..].split('/').next().filter(|name| *name != last)?;
            last = name;
            Some(name)
        })
    }

    /// The machines, this node's own domain 0 left out.
    pub(super) fn domains(&self) -> Vec<Domain> {
        let mut ids: Vec<u32> = self.children("/local/domain").filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter(|id| *id != 0).filter_map(|id| self.domain(id)).collect()
    }

    fn domain(&self, id: u32) -> Option<Domain> {
        let home = format!("/local/domain/{id}");
        let vm = self.get(&format!("{home}/vm"))?;
        let kib: u64 = self
            .number(&format!("{home}/memory/static-max"))
            .or_else(|| self.number(&format!("{home}/memory/target")))
            .unwrap_or(0);
        let started = self.get(&format!("{vm}/start_time")).unwrap_or_default();
        Some(Domain {
            id,
            name: self.get(&format!("{home}/name"))?.to_owned(),
            // xend puts the number of the start behind it.
            uuid: vm.strip_prefix("/vm/")?.get(..36)?.to_owned(),
            started_at: started.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
            vcpus: u32::try_from(self.children(&format!("{home}/cpu")).count()).unwrap_or(u32::MAX),
            memory_mib: kib >> 10,
        })
    }

    /// The disks that this node serves, also to domains that are gone.
    pub(super) fn vbds(&self) -> Vec<Vbd> {
        const BACKENDS: &str = "/local/domain/0/backend/vbd";
        let of_domain = |id: &str| {
            let path = format!("{BACKENDS}/{id}");
            let vdevs: Vec<u32> = self.children(&path).filter_map(|vdev| vdev.parse().ok()).collect();
            let id = id.parse::<u32>().ok()?;
            Some(vdevs.into_iter().map(|vdev| self.vbd(id, vdev)).collect::<Vec<_>>())
        };
        self.children(BACKENDS).filter_map(of_domain).flatten().collect()
    }

    fn vbd(&self, domain: u32, vdev: u32) -> Vbd {
        let paths = VbdPaths::new(domain, vdev);
        let value = |node: &str| self.get(&paths.backend(node));
        let mut complaints = paths.complaints().into_iter();
        Vbd {
            domain,
            vdev,
            params: value("params").unwrap_or_default().to_owned(),
            number: value("physical-device").and_then(hex_number),
            backend: value("state").and_then(|state| state.parse().ok()).unwrap_or(0),
            frontend: self.number(&paths.frontend_state()),
            online: value("online").is_none_or(|online| online != "0"),
            complaint: complaints.find_map(|path| self.get(&path).map(clip)),
        }
    }
}

/// Where a disk's nodes are.
pub(super) struct VbdPaths {
    domain: u32,
    vdev: u32,
}

impl VbdPaths {
    pub(super) fn new(domain: u32, vdev: u32) -> Self {
        Self { domain, vdev }
    }

    fn backend(&self, node: &str) -> String {
        format!("/local/domain/0/backend/vbd/{}/{}/{node}", self.domain, self.vdev)
    }

    fn frontend_state(&self) -> String {
        format!("/local/domain/{}/device/vbd/{}/state", self.domain, self.vdev)
    }

    /// What the script, the guest and the kernel complain of.
    fn complaints(&self) -> [String; 3] {
        let Self { domain, vdev } = self;
        [
            self.backend("hotplug-error"),
            format!("/local/domain/{domain}/error/device/vbd/{vdev}/error"),
            format!("/local/domain/0/error/backend/vbd/{domain}/{vdev}/error"),
        ]
    }

    /// All that is read.
    pub(super) fn all(&self) -> Vec<String> {
        let backend = ["params", "physical-device", "state", "online"].map(|node| self.backend(node));
        backend.into_iter().chain([self.frontend_state()]).chain(self.complaints()).collect()
    }
}

/// Words of others, bounded and without control characters.
fn clip(words: &str) -> String {
    words.chars().take(WORDS).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    /// As Xen 4.17 has it, without the nodes that nobody reads.
    pub(crate) fn printed() -> String {
        format!(
            r#"/local/domain/0/name = "Domain-0"
/local/domain/0/vm = "/vm/00000000-0000-0000-0000-000000000000"
/local/domain/0/backend = ""
/local/domain/0/backend/vbd = ""
/local/domain/0/backend/vbd/7 = ""
/local/domain/0/backend/vbd/7/51792 = ""
/local/domain/0/backend/vbd/7/51792/frontend = "/local/domain/7/device/vbd/51792"
/local/domain/0/backend/vbd/7/51792/params = "/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.x:vol-0123abcd.1-lun-1"
/local/domain/0/backend/vbd/7/51792/online = "1"
/local/domain/0/backend/vbd/7/51792/state = "4"
/local/domain/0/backend/vbd/7/51792/physical-device = "8:10"
/local/domain/0/backend/vbd/9/51728/online = "0"
/local/domain/0/backend/vbd/9/51728/state = "5"
/local/domain/0/backend/vbd/9/51728/hotplug-error = "Device is in use\n"
/local/domain/7 = ""
/local/domain/7/name = "guest"
/local/domain/7/vm = "/vm/{UUID}"
/local/domain/7/cpu/0/availability = "online"
/local/domain/7/cpu/1/availability = "online"
/local/domain/7/memory/static-max = "131072"
/local/domain/7/device/vbd/51792/state = "4"
/vm/{UUID}/start_time = "1700000000.25"
"#
        )
    }

    pub(crate) fn store(text: &str) -> Store {
        let mut store = Store::default();
        for (path, value) in text.lines().filter_map(|line| line.strip_suffix('"')?.split_once(" = \"")) {
            store.put(path.into(), value.into());
        }
        store
    }

    pub(crate) fn is_what_was_printed(store: &Store) {
        let [domain] = &store.domains()[..] else { panic!("{store:?}") };
        assert_eq!((domain.id, &*domain.name, &*domain.uuid), (7, "guest", UUID));
        assert_eq!((domain.started_at, domain.vcpus, domain.memory_mib), (1_700_000_000, 2, 128));
        let [ours, zombie] = &store.vbds()[..] else { panic!("{store:?}") };
        assert!(ours.connected() && ours.online && ours.number == Some((8, 16)));
        assert!(ours.params.ends_with("vol-0123abcd.1-lun-1"));
        assert_eq!((zombie.domain, zombie.vdev, zombie.backend, zombie.frontend), (9, 51728, 5, None));
        assert!(!zombie.online && zombie.complaint.as_deref() == Some("Device is in use\\\\n"));
    }

    #[test]
    fn machines_and_disks_are_read() {
        is_what_was_printed(&store(&printed()));
    }

    #[test]
    fn nonsense_is_no_machine() {
        for text in ["/a = \"\"", "/local/domain/x/name = \"n\"", "/local/domain/7/vm = \"/vm/é\"", "/ = \"\""] {
            let store = store(text);
            assert!(store.domains().is_empty() && store.vbds().is_empty(), "{text}");
        }
    }
}
