//! How many cases there were, as a table: a line a step of a workflow and direction, a column a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use vbs::workers::Described;

use super::gate::Point;

/// Counts.
#[derive(Default)]
pub struct Table(BTreeMap<(String, bool, usize), BTreeMap<String, u32>>);

/// The steps of all workflows that may be without a call on the way back: they leave nothing behind.
const NOTHING_TO_UNDO: [(&str, &str); 5] = [
    ("create_snapshot", "Copy"),
    ("create_snapshots", "Cut"),
    ("copy_volume", "Copy"),
    ("copy_volume", "Drop"),
    ("modify_volume", "Show"),
];
/// The workflows that turn back without undoing anything: what a repair made is what the rows ask for, and an audit makes nothing.
const UNDO_NOTHING: [&str; 2] = ["repair_volume", "audit"];

impl Table {
    pub fn add(&mut self, point: &Point, fault: &impl Debug) {
        let row = (point.kind.clone(), point.backward, point.step);
        *self.0.entry(row).or_default().entry(format!("{fault:?}")).or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        for (row, counts) in other.0 {
            for (fault, count) in counts {
                *self.0.entry(row.clone()).or_default().entry(fault).or_default() += count;
            }
        }
    }

    /// Prints it.
    pub fn print(&self, title: &str, catalogue: &[Described]) {
        let faults: BTreeSet<&String> = self.0.values().flat_map(BTreeMap::keys).collect();
        println!("\n{title}");
        let labels: Vec<String> = (0..faults.len()).map(|at| format!("[{at}]")).collect();
        for (label, fault) in labels.iter().zip(&faults) {
            println!("{label:>38} {fault}");
        }
        let head: Vec<String> = labels.iter().map(|label| format!("{label:>6}")).collect();
        println!("{:<32}{}{:>7}", "workflow and step", head.concat(), "all");
        for ((kind, backward, step), counts) in &self.0 {
            let described = catalogue.iter().find(|described| described.kind == kind).expect("it is in the catalogue");
            let way = if *backward { "undo " } else { "" };
            let name = format!("{kind} {way}{}", described.steps[*step]);
            let cells: Vec<String> =
                faults.iter().map(|fault| format!("{:>6}", counts.get(*fault).copied().unwrap_or(0))).collect();
            println!("{name:<32}{}{:>7}", cells.concat(), counts.values().sum::<u32>());
        }
        let steps = self.0.len();
        let kinds: BTreeSet<&String> = self.0.keys().map(|(kind, ..)| kind).collect();
        let all: u32 = self.0.values().flat_map(BTreeMap::values).sum();
        println!("{} workflows, {steps} steps (those undone too), {} faults: {all} cases\n", kinds.len(), faults.len());
    }

    /// Fails when a step that the program has was never struck: a new one needs a scene in which it calls a node.
    pub fn has_every_step(&self, catalogue: &[Described]) {
        for described in catalogue {
            for (at, step) in described.steps.iter().enumerate() {
                let has = |backward| self.0.contains_key(&(described.kind.to_owned(), backward, at));
                assert!(has(false), "{} {step}: no scene has a call of it", described.kind);
                let undone = described.turns_back
                    && !UNDO_NOTHING.contains(&described.kind)
                    && !NOTHING_TO_UNDO.contains(&(described.kind, step));
                assert_eq!(has(true), undone, "{} {step}: calls of its undo", described.kind);
            }
        }
    }
}
