//! The layers of one target in the kernel, from the name down to the link that lets an initiator reach a unit.
//!
//! | in `iscsi/IQN/tpgt_1/` | what |
//! |---|---|
//! | `attrib/…`, `param/AuthMethod` | that nobody gets in without an access rule and CHAP, nor hears of the target |
//! | `lun/lun_1/volume` | a link to the backstore |
//! | `acls/INITIATOR/auth/…` | the CHAP user and secret |
//! | `acls/INITIATOR/lun_1/volume` | a link to `lun/lun_1` |
//! | `np/ADDR:PORT/` | the portal |
//! | `enable` | lets initiators in; written last |

use super::lio_store::told;
use super::lio_tree::{Tree, gone, or_nothing, there};
use crate::delegate::{DelegateError, ExportSpec, Result, Secret};

/// Where the targets are.
const FABRIC: &str = "iscsi";
/// The name of our links.
const LINK: &str = "volume";
/// The settings of a target that is open to its one initiator only.
const CLOSED: [(&str, &str); 6] = [
    ("attrib/authentication", "1"),
    ("attrib/generate_node_acls", "0"),
    ("attrib/cache_dynamic_acls", "0"),
    ("attrib/demo_mode_discovery", "0"),
    ("attrib/prod_mode_write_protect", "0"),
    ("param/AuthMethod", "CHAP"),
];

/// A target as the kernel has it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) iqn: String,
    /// Who is logged in.
    pub(super) sessions: Vec<String>,
    groups: Vec<String>,
    settled: bool,
    enabled: bool,
    portals: Vec<String>,
    units: Vec<Unit>,
    rules: Vec<Rule>,
}

/// A unit, or an initiator's view of one.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    name: String,
    leads_to: Vec<String>,
}

/// What lets an initiator in.
#[derive(Debug)]
struct Rule {
    initiator: String,
    user: String,
    secret: Secret,
    units: Vec<Unit>,
    read_only: bool,
}

/// What a target shall be like, apart from who may log in.
pub(super) struct Plan<'a> {
    pub(super) portal: &'a str,
    /// The backstore's directory.
    pub(super) store: &'a str,
}

/// The names of all targets, ours and others'.
pub(super) fn names(tree: &dyn Tree) -> Result<Vec<String>> {
    let mut names = told(FABRIC, "", or_nothing(tree.parts(FABRIC)))?;
    names.retain(|name| name != "discovery_auth");
    Ok(names)
}

/// Looks at a target. What vanishes meanwhile is not there.
pub(super) fn look(tree: &dyn Tree, iqn: &str) -> Result<Seen> {
    let at = group(iqn);
    let parts = |dir: &str| told(dir, "", or_nothing(tree.parts(dir)));
    let read = |file: &str| told(&at, file, or_nothing(tree.read(&format!("{at}/{file}")))).map(line);
    let mut groups = parts(&format!("{FABRIC}/{iqn}"))?;
    groups.retain(|name| name.starts_with("tpgt_"));
    let mut sessions = Vec::new();
    for name in &groups {
        sessions.extend(logged_in(tree, &format!("{FABRIC}/{iqn}/{name}"))?);
    }
    // Counts those, too, that are neither here nor there for a moment.
    let counted = format!("{FABRIC}/{iqn}/fabric_statistics/iscsi_instance/sessions");
    let counted = told(&counted, "", or_nothing(tree.read(&counted)))?.trim().parse().unwrap_or(0);
    if sessions.len() < counted {
        // One stands for all of them: how many there are makes no difference, and the number is not ours to trust.
        sessions.push("somebody".into());
    }
    let mut rules = Vec::new();
    for initiator in parts(&format!("{at}/acls"))? {
        let secret = Secret(read(&format!("acls/{initiator}/auth/password"))?);
        let user = read(&format!("acls/{initiator}/auth/userid"))?;
        let units = units(tree, &format!("{at}/acls/{initiator}"))?;
        let read_only = read(&format!("acls/{initiator}/lun_1/write_protect"))? == "1";
        rules.push(Rule { initiator, user, secret, units, read_only });
    }
    let settled = CLOSED.iter().map(|(file, right)| Ok(read(file)? == *right)).collect::<Result<Vec<_>>>()?;
    Ok(Seen {
        iqn: iqn.to_owned(),
        sessions,
        groups,
        settled: settled.iter().all(|right| *right),
        enabled: read("enable")? == "1",
        portals: parts(&format!("{at}/np"))?,
        units: units(tree, &format!("{at}/lun"))?,
        rules,
    })
}

impl Seen {
    /// Whether every layer is there, for one initiator, whoever it is.
    pub(super) fn whole(&self, plan: &Plan) -> bool {
        let [rule] = &self.rules[..] else { return false };
        let allowed = !rule.user.is_empty() && !rule.secret.0.is_empty() && !rule.read_only;
        let reached = self.units == [unit(plan.store)] && rule.units == [unit(&self.unit())];
        self.groups == ["tpgt_1"] && self.settled && self.enabled && self.portals == [plan.portal] && allowed && reached
    }

    /// Whether it is all that the specification says.
    pub(super) fn is(&self, spec: &ExportSpec, plan: &Plan) -> bool {
        let right = |rule: &Rule| {
            (&rule.initiator, &rule.user, &rule.secret) == (&spec.initiator_iqn, &spec.chap_user, &spec.chap_secret)
        };
        self.whole(plan) && self.rules.iter().all(right)
    }

    /// Refuses while somebody is logged in.
    pub(super) fn refuse_while_in_use(&self) -> Result<()> {
        match self.sessions.first() {
            Some(initiator) => Err(DelegateError::retry(format!("{initiator} is logged in to {}", self.iqn))),
            None => Ok(()),
        }
    }

    /// Refuses when the one who is logged in is not the one meant, or would have to lose something so that it is as it shall.
    pub(super) fn refuse_strange(&self, spec: &ExportSpec, plan: &Plan) -> Result<()> {
        let strange = |what: &str| Err(DelegateError::retry(format!("under a session, {} has {what}", self.iqn)));
        // Another's rule is no reason: nobody is logged in by it, and it goes, see `end_others`.
        let rule = |rule: &Rule| {
            rule.initiator != spec.initiator_iqn || rule.units.iter().all(|found| fills(found, &self.unit()))
        };
        if let Some(stranger) = self.sessions.iter().find(|name| **name != spec.initiator_iqn) {
            return Err(DelegateError::retry(format!("{stranger} is logged in to {}", self.iqn)));
        }
        if !self.rules.iter().all(rule) {
            return strange("another access rule");
        }
        if !self.units.iter().all(|found| fills(found, plan.store)) {
            return strange("another unit");
        }
        if self.portals.iter().any(|found| found != plan.portal) || self.groups.iter().any(|found| found != "tpgt_1") {
            return strange("another portal");
        }
        Ok(())
    }

    fn unit(&self) -> String {
        format!("{}/lun/lun_1", group(&self.iqn))
    }
}

/// Adds every layer that is missing.
pub(super) fn add(tree: &dyn Tree, spec: &ExportSpec, plan: &Plan) -> Result<()> {
    let at = group(&spec.iqn);
    let make = |dir: &str| told(dir, "", there(tree.make(dir)));
    let set = |file: &str, text: &str| {
        let path = format!("{at}/{file}");
        let there = line(told(&at, file, tree.read(&path))?);
        if there == text { Ok(()) } else { told(&at, file, tree.write(&path, text)) }
    };
    let lead = |dir: &str, to: &str| match units(tree, dir)?.iter().find(|unit| unit.name == "lun_1") {
        Some(unit) if !unit.leads_to.is_empty() => Ok(()),
        _ => told(dir, "lun_1", tree.link(to, &format!("{dir}/lun_1/{LINK}"))),
    };
    make(FABRIC)?;
    make(&format!("{FABRIC}/{}", spec.iqn))?;
    make(&at)?;
    for (file, text) in CLOSED {
        set(file, text)?;
    }
    make(&format!("{at}/lun/lun_1"))?;
    lead(&format!("{at}/lun"), plan.store)?;
    let rule = format!("acls/{}", spec.initiator_iqn);
    make(&format!("{at}/{rule}"))?;
    set(&format!("{rule}/auth/userid"), &spec.chap_user)?;
    set(&format!("{rule}/auth/password"), &spec.chap_secret.0)?;
    make(&format!("{at}/{rule}/lun_1"))?;
    lead(&format!("{at}/{rule}"), &format!("{at}/lun/lun_1"))?;
    set(&format!("{rule}/lun_1/write_protect"), "0")?;
    let portal = format!("{at}/np/{}", plan.portal);
    told(&portal, "", there(tree.make_portal(&portal)))?;
    set("enable", "1")
}

/// Ends the access rules of others than the one meant, who are not logged in. A rule of its own ends nobody else's session.
pub(super) fn end_others(tree: &dyn Tree, target: &Seen, spec: &ExportSpec) -> Result<()> {
    for rule in target.rules.iter().filter(|rule| rule.initiator != spec.initiator_iqn) {
        tracing::warn!(iqn = target.iqn, initiator = rule.initiator, "a way in that is not ours is closed");
        end_rule(tree, &group(&target.iqn), &rule.initiator)?;
    }
    Ok(())
}

fn end_rule(tree: &dyn Tree, group: &str, initiator: &str) -> Result<()> {
    let rule = format!("{group}/acls/{initiator}");
    end_units(tree, &rule)?;
    told(&rule, "", gone(tree.end(&rule)))
}

fn end_units(tree: &dyn Tree, dir: &str) -> Result<()> {
    for unit in units(tree, dir)? {
        let dir = format!("{dir}/{}", unit.name);
        for (name, _) in told(&dir, "", or_nothing(tree.links(&dir)))? {
            told(&dir, &name, gone(tree.unlink(&format!("{dir}/{name}"))))?;
        }
        told(&dir, "", gone(tree.end(&dir)))?;
    }
    Ok(())
}

/// Ends a target that nobody is logged in to, layer by layer.
pub(super) fn end(tree: &dyn Tree, iqn: &str) -> Result<()> {
    let parts = |dir: &str| told(dir, "", or_nothing(tree.parts(dir)));
    let end = |dir: &str| told(dir, "", gone(tree.end(dir)));
    let target = format!("{FABRIC}/{iqn}");
    for group in parts(&target)?.iter().filter(|name| name.starts_with("tpgt_")) {
        let at = format!("{target}/{group}");
        let enable = format!("{at}/enable");
        // From here on nobody gets in.
        if told(&enable, "", or_nothing(tree.read(&enable)))?.trim() == "1" {
            told(&enable, "", tree.write(&enable, "0"))?;
        }
        for initiator in parts(&format!("{at}/acls"))? {
            end_rule(tree, &at, &initiator)?;
        }
        end_units(tree, &format!("{at}/lun"))?;
        for portal in parts(&format!("{at}/np"))? {
            end(&format!("{at}/np/{portal}"))?;
        }
        end(&at)?;
    }
    end(&target)
}

/// The part of a target that everything is in.
fn group(iqn: &str) -> String {
    format!("{FABRIC}/{iqn}/tpgt_1")
}

/// Our one unit, leading there.
fn unit(to: &str) -> Unit {
    Unit { name: "lun_1".into(), leads_to: vec![to.to_owned()] }
}

/// Whether a unit is ours, or will be once its link is made.
fn fills(found: &Unit, to: &str) -> bool {
    found.name == "lun_1" && found.leads_to.iter().all(|found| found == to)
}

fn units(tree: &dyn Tree, dir: &str) -> Result<Vec<Unit>> {
    let names = told(dir, "", or_nothing(tree.parts(dir)))?;
    let unit = |name: String| {
        let links = told(dir, &name, or_nothing(tree.links(&format!("{dir}/{name}"))))?;
        Ok(Unit { name, leads_to: links.into_iter().map(|(_, to)| to).collect() })
    };
    names.into_iter().filter(|name| name.starts_with("lun_")).map(unit).collect()
}

/// A setting without the end that the kernel gives its line. Another one is part of it: a user or secret that was written by
/// `echo` has it, and lets nobody in.
fn line(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// Who is logged in to a portal group, by a rule or without one.
fn logged_in(tree: &dyn Tree, at: &str) -> Result<Vec<String>> {
    let read = |file: &str| told(at, file, or_nothing(tree.read(&format!("{at}/{file}"))));
    let mut names = Vec::new();
    for initiator in told(at, "acls", or_nothing(tree.parts(&format!("{at}/acls"))))? {
        let info = read(&format!("acls/{initiator}/info"))?;
        if !info.trim().is_empty() && !info.starts_with("No active iSCSI Session") {
            names.push(initiator);
        }
    }
    let others = read("dynamic_sessions")?;
    let others = others.split(['\n', '\0']).map(str::trim).filter(|name| !name.is_empty());
    names.extend(others.map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}
