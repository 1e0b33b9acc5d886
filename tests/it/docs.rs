//! The documents tell the truth.

use std::fs;
use std::path::Path;
use std::process::Command;

use vbs::config::{self, Config, DelegateConfig};

/// What a file has before the part of it that shows one driver.
const START: &str =
    "node = \"storage-1\"\nkey = { env = \"KEY\" }\n[server]\n[delegate.local]\ndata_dir = \"/srv/vbs\"\n";

#[test]
fn the_configuration_files_of_the_operators_manual_are_read() {
    let manual = include_str!("../../docs/operations.md");
    let files = manual.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let mut kinds = [0; 4];
    for file in files {
        let kind = if file.starts_with("[delegate.local.target.") {
            toml::from_str::<DelegateConfig<config::Storage>>(&format!("{START}{file}")).unwrap();
            0
        } else if file.contains("[delegate.local.target.") {
            toml::from_str::<DelegateConfig<config::Storage>>(file).unwrap();
            1
        } else if file.contains("[delegate.local.hypervisor.") {
            toml::from_str::<DelegateConfig<config::Vmm>>(file).unwrap();
            2
        } else {
            toml::from_str::<Config>(file).unwrap().validate().unwrap();
            3
        };
        kinds[kind] += 1;
    }
    assert!(kinds.iter().all(|found| *found > 0), "{kinds:?}");
}

#[test]
fn the_units_of_systemd_expose_as_little_as_the_manual_says() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let manual = include_str!("../../docs/operations.md");
    let scratch = tempfile::tempdir().unwrap();
    for unit in ["vbs-gateway", "vbs-tgtd", "vbs-volume-delegate", "vbs-vmm-delegate"] {
        let copy = scratch.path().join(format!("{unit}.service"));
        fs::copy(units.join(format!("{unit}.service")), &copy).unwrap();
        let root = units.join(format!("{unit}-root.conf"));
        let mut scores = vec![exposure(&copy)];
        if root.exists() {
            let dropped = scratch.path().join(format!("{unit}.service.d"));
            fs::create_dir(&dropped).unwrap();
            fs::copy(root, dropped.join("root.conf")).unwrap();
            scores.push(exposure(&copy));
        }
        let row = manual.lines().find(|line| line.starts_with(&format!("| `{unit}"))).expect(unit);
        let told: Vec<&str> = row.split('|').map(str::trim).rev().nth(1).unwrap().split(", ").collect();
        assert_eq!(told, scores, "{unit}: what the manual says, and what systemd-analyze does");
    }
}

/// What `systemd-analyze security` makes of a unit, from 0 to 10.
fn exposure(unit: &Path) -> String {
    let mut analyze = Command::new("systemd-analyze");
    let output = analyze.args(["security", "--offline=true", "--no-pager"]).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let level = said.lines().find_map(|line| line.split_once("Overall exposure level for ")).unwrap_or_else(|| {
        panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
    });
    level.1.split_whitespace().nth(1).unwrap().to_owned()
}
