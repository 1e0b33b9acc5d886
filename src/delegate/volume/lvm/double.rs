//! A double of LVM's commands, for crashes at each of them: the logical volumes of one group in memory, their bytes in files.
//! Blocks that were not zeroed hold 0xff.

use std::collections::{BTreeMap, HashMap};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::group::{Failed, Run};
use super::report::Lv;

/// The size of an extent.
pub const EXTENT: u64 = 1 << 20;

/// How a command fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// It has done nothing.
    Before,
    /// It died half-way: what it made is not what it was to be.
    Half,
    /// All is done, but it says otherwise.
    After,
    /// Nothing is done, but it says otherwise.
    Lie,
    /// It dies of a segmentation fault, having done nothing.
    Crash,
}

/// What is wrong with a device node for a while after its volume was made or activated.
#[derive(Debug, Clone, Copy)]
pub enum Node {
    Missing,
    /// It is the file `other`, which is not of the volume.
    Other,
}

#[derive(Default)]
pub struct Double {
    pub dev: PathBuf,
    pub state: Mutex<State>,
}

pub struct State {
    pub lvs: BTreeMap<String, Lv>,
    /// The commands that were run.
    pub calls: Vec<String>,
    /// So many changes from now on go well, then one fails so.
    pub fault: Option<(usize, Fault)>,
    /// The same for looks.
    pub look_fault: Option<(usize, Fault)>,
    pub extents: u64,
    /// How device nodes come into being, when not at once.
    pub late: Option<(Node, Duration)>,
    /// Whether the pool's metadata is not that of the group's, so that nothing in it can be activated.
    pub transaction_mismatch: bool,
    /// How many changes are at work, and the most that were at once.
    pub at_work: (usize, usize),
    /// What is on extents that were given back, by their range.
    given_back: HashMap<String, Vec<u8>>,
    next_range: u64,
}

impl Default for State {
    fn default() -> Self {
        let pool = Lv {
            name: "pool".into(),
            attr: "twi-aotz--".into(),
            size: 64 * EXTENT,
            data_percent: Some(1.0),
            metadata_percent: Some(10.0),
            ..Lv::default()
        };
        Self {
            lvs: [(pool.name.clone(), pool)].into(),
            calls: Vec::new(),
            fault: None,
            look_fault: None,
            extents: 128,
            late: None,
            transaction_mismatch: false,
            at_work: (0, 0),
            given_back: HashMap::new(),
            next_range: 0,
        }
    }
}

fn failed(message: &str, crashed: bool) -> Failed {
    Failed { message: message.into(), stderr: message.into(), crashed }
}

fn strikes(fault: &mut Option<(usize, Fault)>) -> Option<Fault> {
    let (left, kind) = (*fault)?;
    *fault = left.checked_sub(1).map(|left| (left, kind));
    (left == 0).then_some(kind)
}

/// A file stands for a device, and its inode for the device's number.
pub fn number(meta: &Metadata) -> Option<(u32, u32)> {
    meta.is_file().then(|| (1, u32::try_from(meta.ino() & u64::from(u32::MAX)).unwrap()))
}

/// A change that is at work, for as long as this lives.
struct AtWork<'a>(&'a Mutex<State>);

impl<'a> AtWork<'a> {
    async fn new(state: &'a Mutex<State>) -> Self {
        {
            let (now, most) = &mut state.lock().unwrap().at_work;
            *now += 1;
            *most = (*most).max(*now);
        }
        let at_work = Self(state);
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        at_work
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at_work.0 -= 1;
    }
}

#[async_trait]
impl Run for Double {
    async fn run(&self, program: &str, args: &[String], _: Duration) -> Result<String, Failed> {
        let is_look = matches!(program, "lvs" | "vgs");
        let _at_work = match program {
            "lvs" | "vgs" | "udevadm" => None,
            _ => Some(AtWork::new(&self.state).await),
        };
        let mut state = self.state.lock().unwrap();
        let config = match args {
            [option, config, ..] if option == "--config" => {
                assert!(config.contains("scan_lvs=0"), "{program} would look into guests' disks: {config}");
                2
            }
            _ => {
                assert_eq!(program, "udevadm", "it would look into guests' disks");
                0
            }
        };
        let args: Vec<&str> = args[config..].iter().map(String::as_str).collect();
        state.calls.push(format!("{program} {}", args.join(" ")));
        let fault = strikes(if is_look { &mut state.look_fault } else { &mut state.fault });
        match fault {
            Some(Fault::Lie) => return Ok(String::new()),
            Some(Fault::Before) => return Err(failed("exit status: 5", false)),
            Some(Fault::Crash) => return Err(failed("signal: 11", true)),
            _ => {}
        }
        let half = fault == Some(Fault::Half);
        let unknown = args.iter().find_map(|arg| arg.strip_prefix("vbs/")).filter(|lv| !state.lvs.contains_key(*lv));
        if let Some(lv) = unknown {
            return Err(failed(&format!("Failed to find logical volume \"vbs/{lv}\""), false));
        }
        let printed = match program {
            "lvs" => Ok(state.lvs(&self.dev, &args)),
            "vgs" => Ok(state.vgs()),
            "lvcreate" => state.create(&self.dev, &args, half),
            "lvchange" => state.change(&args, half),
            "lvextend" => state.extend(&self.dev, &args),
            "lvremove" => state.remove(&self.dev, &args, half),
            "udevadm" => Ok(String::new()),
            other => panic!("{other} is not doubled"),
        };
        if let (Some(late), "lvcreate") = (state.late, program) {
            come_late(&self.dev, option(&args, "-n").unwrap(), late);
        }
        if fault.is_some() { Err(failed("exit status: 5", false)) } else { printed }
    }
}

/// Puts a device node aside for a while.
fn come_late(dev: &Path, name: &str, (instead, time): (Node, Duration)) {
    let (node, aside) = (dev.join("vbs").join(name), dev.join("late").join(name));
    std::fs::rename(&node, &aside).unwrap();
    if let Node::Other = instead {
        std::os::unix::fs::symlink(dev.join("other"), &node).unwrap();
    }
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        std::fs::rename(aside, node).unwrap();
    });
}

fn option<'a>(args: &[&'a str], name: &str) -> Option<&'a str> {
    args.iter().position(|arg| *arg == name).map(|at| args[at + 1])
}

fn options<'a>(args: &[&'a str], name: &str) -> Vec<&'a str> {
    args.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1]).collect()
}

fn lv_of<'a>(args: &[&'a str]) -> &'a str {
    args.iter().find_map(|arg| arg.strip_prefix("vbs/")).expect("a logical volume is named")
}

impl State {
    fn free(&self) -> u64 {
        self.extents * EXTENT - self.lvs.values().filter(|lv| lv.pool.is_empty()).map(|lv| lv.size).sum::<u64>()
    }

    fn vgs(&self) -> String {
        let (size, free) = ((self.extents * EXTENT).to_string(), self.free().to_string());
        let extent = EXTENT.to_string();
        json!({"report": [{"vg": [
            {"vg_name": "vbs", "vg_size": size, "vg_free": free, "vg_extent_size": extent}
        ]}]})
        .to_string()
    }

    fn lvs(&self, dev: &Path, args: &[&str]) -> String {
        if args.contains(&"seg_pe_ranges") {
            let range = self.lvs[lv_of(args)].tagged("range").unwrap_or_default();
            return json!({"report": [{"lv": [{"seg_pe_ranges": range}]}]}).to_string();
        }
        let only = option(args, "-S").and_then(|select| select.strip_prefix("lv_name="));
        let percent = |percent: Option<f64>| percent.map_or(String::new(), |percent| format!("{percent:.2}"));
        let row = |lv: &Lv| {
            let nodes = ["late", "vbs"].map(|dir| dev.join(dir).join(&lv.name));
            let device = nodes.iter().find_map(|node| number(&std::fs::symlink_metadata(node).ok()?));
            let (major, minor) = device.filter(|_| lv.is_active()).unzip();
            let shown = |number: Option<u32>| number.map_or("-1".into(), |number| number.to_string());
            json!({
                "lv_name": lv.name, "lv_attr": lv.attr, "lv_size": lv.size.to_string(), "origin": lv.origin,
                "pool_lv": lv.pool, "data_percent": percent(lv.data_percent),
                "metadata_percent": percent(lv.metadata_percent), "lv_tags": lv.tags.join(","),
                "lv_kernel_major": shown(major), "lv_kernel_minor": shown(minor),
            })
        };
        let rows: Vec<_> = self.lvs.values().filter(|lv| only.is_none_or(|only| only == lv.name)).map(row).collect();
        format!("  WARNING: a line that is not JSON\n{}", json!({"report": [{"lv": rows}]}))
    }

    fn create(&mut self, dev: &Path, args: &[&str], half: bool) -> Result<String, Failed> {
        let name = option(args, "-n").unwrap();
        assert!(!self.lvs.contains_key(name), "{name} is there already");
        let mut lv = Lv { name: name.into(), ..Lv::default() };
        lv.tags = options(args, "--addtag").into_iter().map(str::to_owned).collect();
        let path = dev.join("vbs").join(name);
        let origin = args.contains(&"-s").then(|| self.lvs[lv_of(args)].clone());
        let bytes = match &origin {
            Some(origin) => std::fs::read(dev.join("vbs").join(&origin.name)).unwrap(),
            None => Vec::new(),
        };
        match (&origin, option(args, "-l")) {
            (Some(origin), None) => {
                lv.attr = if args.contains(&"-pr") { "Vri---tz-k" } else { "Vwi-a-tz--" }.into();
                (lv.size, lv.origin, lv.pool) = (origin.size, origin.name.clone(), "pool".into());
                lv.data_percent = lv.is_active().then_some(50.0);
                std::fs::write(&path, bytes).unwrap();
            }
            (None, None) => {
                let size = option(args, "-V").unwrap().strip_suffix('b').unwrap().parse().unwrap();
                assert!(args.contains(&"--thinpool=pool"));
                (lv.attr, lv.size, lv.pool) = ("Vwi-a-tz--".into(), size, "pool".into());
                lv.data_percent = Some(0.0);
                std::fs::write(&path, vec![0; usize::try_from(size).unwrap()]).unwrap();
            }
            (origin, Some(extents)) => {
                lv.size = extents.parse::<u64>().unwrap() * EXTENT;
                if lv.size > self.free() {
                    return Err(failed("Volume group \"vbs\" has insufficient free space", false));
                }
                let range = format!("/dev/sda:{}-{}", self.next_range, self.next_range + lv.size / EXTENT - 1);
                self.next_range += lv.size / EXTENT;
                lv.tags.push(format!("range={range}"));
                lv.attr = "-wi-a-----".into();
                match origin {
                    Some(origin) if !half => {
                        (lv.attr, lv.origin) = ("swi-a-s---".into(), origin.name.clone());
                        std::fs::write(&path, bytes).unwrap();
                    }
                    _ => std::fs::write(&path, vec![0xff; usize::try_from(lv.size).unwrap()]).unwrap(),
                }
            }
        }
        self.lvs.insert(name.into(), lv);
        Ok(String::new())
    }

    fn change(&mut self, args: &[&str], half: bool) -> Result<String, Failed> {
        if args.contains(&"-ay") && self.transaction_mismatch {
            return Err(failed("Thin pool vbs-pool-tpool (253:2) transaction_id is 4, while expected 5.", false));
        }
        let lv = self.lvs.get_mut(lv_of(args)).unwrap();
        if args.contains(&"-ay") || args.contains(&"--refresh") {
            lv.attr.replace_range(4..5, "a");
            lv.data_percent = lv.data_percent.or((!lv.pool.is_empty()).then_some(50.0));
        } else if !half {
            // The metadata changes at once or not at all.
            lv.tags.retain(|tag| option(args, "--deltag") != Some(tag));
            lv.tags.extend(options(args, "--addtag").into_iter().map(str::to_owned));
        }
        Ok(String::new())
    }

    fn extend(&mut self, dev: &Path, args: &[&str]) -> Result<String, Failed> {
        let name = lv_of(args);
        if self.lvs.values().any(|lv| lv.is_cow() && lv.origin == name) {
            return Err(failed("Snapshot origin volumes can be resized only while inactive: try lvchange -an.", false));
        }
        let more = option(args, "-l").unwrap().strip_prefix('+').unwrap().parse::<u64>().unwrap() * EXTENT;
        let lv = self.lvs.get_mut(name).unwrap();
        lv.size += more;
        let path = dev.join("vbs").join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let range = args.iter().find_map(|range| self.given_back.get(*range));
        let blank = vec![if lv.pool.is_empty() { 0xff } else { 0 }; usize::try_from(more).unwrap()];
        bytes.extend(range.unwrap_or(&blank));
        std::fs::write(path, bytes).unwrap();
        Ok(String::new())
    }

    fn remove(&mut self, dev: &Path, args: &[&str], half: bool) -> Result<String, Failed> {
        let name = lv_of(args);
        if half || self.lvs[name].is_open() {
            return Err(failed("Logical volume in use.", false));
        }
        let path = dev.join("vbs").join(name);
        let lv = self.lvs.remove(name).unwrap();
        if let Some(range) = lv.tagged("range") {
            self.given_back.insert(range.into(), std::fs::read(&path).unwrap());
        }
        std::fs::remove_file(path).unwrap();
        let orphans: Vec<_> = self.lvs.values().filter(|other| other.origin == name).map(|o| o.name.clone()).collect();
        for orphan in orphans {
            if self.lvs[&orphan].is_cow() {
                self.lvs.remove(&orphan);
            } else if let Some(orphan) = self.lvs.get_mut(&orphan) {
                orphan.origin.clear();
            }
        }
        Ok(String::new())
    }
}
