//! Which kernel modules a guest needs, and in which order they load.
//!
//! A kernel package that was only unpacked has no `modules.dep`, which `depmod` makes at installation. Each module itself
//! names what it needs, in its `.modinfo` section: `depends=a,b`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Every module file below a directory by the module's name, compressed or not.
pub(super) fn index(dir: &Path) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            } else if let Some((name, "" | ".xz" | ".zst" | ".gz")) =
                entry.file_name().to_str().and_then(|name| name.split_once(".ko"))
            {
                // In a name, a dash in the file is an underscore in the kernel.
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    found
}

/// What a module says it needs.
pub(super) fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let rest = &module[start + KEY.len()..];
    let text = &rest[..rest.iter().position(|b| *b == 0).unwrap_or(rest.len())];
    let names = text.split(|b| *b == b',').filter(|n| !n.is_empty());
    names.map(|n| String::from_utf8_lossy(n).replace('-', "_")).collect()
}

/// Puts modules behind what they need. Each is looked at until everything it needs has been resolved.
pub(super) struct Order {
    stack: Vec<String>,
    done: HashSet<String>,
    seen: HashSet<String>,
}

impl Order {
    pub(super) fn new<const N: usize>(wanted: [&str; N]) -> Self {
        let stack = wanted.iter().rev().map(|&w| w.to_owned()).collect();
        Self { stack, done: HashSet::new(), seen: HashSet::new() }
    }

    /// The next module to look at.
    pub(super) fn next(&mut self) -> Option<String> {
        while self.stack.last().is_some_and(|top| self.done.contains(top)) {
            self.stack.pop();
        }
        self.stack.last().cloned()
    }

    /// Nothing is to be loaded for this one.
    pub(super) fn built_in(&mut self, name: &str) {
        self.done.insert(name.to_owned());
    }

    /// Tells what a module needs. True when all of that is loaded and its own turn has come.
    pub(super) fn resolve(&mut self, name: &str, needs: &[String]) -> bool {
        let missing: Vec<String> = needs.iter().filter(|n| !self.done.contains(*n)).cloned().collect();
        // A module seen before has had its needs put on the stack: what is still missing is a circle, which the kernel
        // does not have.
        if missing.is_empty() || !self.seen.insert(name.to_owned()) {
            self.done.insert(name.to_owned());
            return true;
        }
        self.stack.extend(missing);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_what_it_needs_and_only_once() {
        let needs = |name: &str| -> Vec<String> {
            let text: &[u8] = match name {
                "virtio_pci" => b"x=1\0depends=virtio,virtio-ring\0y",
                "virtio_ring" => b"\0depends=virtio\0",
                "virtio_blk" => b"\0depends=virtio_ring,virtio",
                _ => b"\0depends=\0",
            };
            depends(text)
        };
        let (mut order, mut loaded) = (Order::new(["virtio_pci", "virtio_blk"]), Vec::new());
        while let Some(name) = order.next() {
            if order.resolve(&name, &needs(&name)) {
                loaded.push(name);
            }
        }
        assert_eq!(loaded, ["virtio", "virtio_ring", "virtio_pci", "virtio_blk"]);
    }
}
