//! The documents tell the truth.

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
