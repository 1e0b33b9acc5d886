//! The documents tell the truth.

use vbs::config::{self, Config, DelegateConfig};

#[test]
fn the_configuration_files_of_the_operators_manual_are_read() {
    let manual = include_str!("../../docs/operations.md");
    let files: Vec<&str> = manual.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    let [gateway, storage, hypervisor, others @ ..] = &files[..] else { panic!("{} files", files.len()) };
    toml::from_str::<Config>(gateway).unwrap().validate().unwrap();
    toml::from_str::<DelegateConfig<config::Storage>>(storage).unwrap();
    toml::from_str::<DelegateConfig<config::Vmm>>(hypervisor).unwrap();
    for other in others {
        let storage = toml::from_str::<DelegateConfig<config::Storage>>(other).err();
        let hypervisor = toml::from_str::<DelegateConfig<config::Vmm>>(other).err();
        assert!(storage.is_none() || hypervisor.is_none(), "{storage:?} {hypervisor:?}");
    }
}
