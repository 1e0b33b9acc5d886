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

#[test]
fn every_test_that_the_table_of_known_faults_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for dir in ["src", "tests"] {
        collect(&root.join(dir), &mut sources);
    }
    let faults = include_str!("../../docs/faults.md");
    let rows = faults.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what"));
    let mut named = 0;
    for row in rows {
        let [what, place, does, tests] = row.trim_matches(['|', ' ']).split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not four columns: {row}");
        };
        assert!(![what, place, does].contains(&""), "{row}");
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "nothing holds it: {row}");
        for test in tests {
            assert!(is_test(root, &sources, test), "{test} is not there");
            named += 1;
        }
    }
    assert!(named > 50, "{named}");
}

/// The Rust files below a directory, each with its path as modules are written.
fn collect(dir: &Path, into: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            collect(&entry, into);
        } else if entry.extension().is_some_and(|end| end == "rs") {
            let module = entry.with_extension("").to_string_lossy().replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            into.push((module, fs::read_to_string(&entry).unwrap()));
        }
    }
}

/// Whether there is a test of this name: `file.py::function`, or `module::function`, where a module `tests` may be in its file.
fn is_test(root: &Path, sources: &[(String, String)], name: &str) -> bool {
    let Some((place, function)) = name.rsplit_once("::") else { return false };
    if Path::new(place).extension().is_some_and(|end| end == "py") {
        return fs::read_to_string(root.join(place)).is_ok_and(|text| text.contains(&format!("\ndef {function}(")));
    }
    let inside = place.strip_suffix("::tests").unwrap_or(place);
    let is_place = |module: &str| [place, inside].iter().any(|place| module.ends_with(&format!("::{place}")));
    let heads = ["fn ", "async fn "].map(|head| format!("{head}{function}("));
    let is_marked = |text: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let test = |line: &str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        lines.windows(2).any(|pair| test(pair[0]) && heads.iter().any(|head| pair[1].starts_with(head)))
    };
    sources.iter().any(|(module, text)| is_place(module) && is_marked(text))
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
