//! Imports go one way. This holds it.

use std::fs;
use std::path::Path;

/// A folder or file of src/, and the modules it must not import.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("ids.rs", &["db", "delegate", "workers", "ec2_api", "dev", "server", "config"]),
    ("state.rs", &["db", "delegate", "workers", "ec2_api", "dev", "server", "config"]),
    ("config.rs", &["db", "delegate", "workers", "ec2_api", "dev", "server"]),
    ("seal.rs", &["db", "delegate", "workers", "ec2_api", "dev", "server"]),
    ("sigv4", &["db", "delegate", "workers", "ec2_api", "dev", "server", "config"]),
    ("server", &["db", "delegate", "workers", "ec2_api", "dev"]),
    ("db", &["delegate", "workers", "ec2_api", "dev", "server", "gateway"]),
    ("delegate", &["db", "workers", "ec2_api", "dev", "gateway"]),
    ("workers", &["ec2_api", "dev", "gateway"]),
    ("ec2_api", &["delegate", "delegates", "dev", "gateway"]),
    ("gateway.rs", &["dev"]),
    ("delegates.rs", &["gateway", "db", "ec2_api", "dev"]),
    ("dev", &[]),
];
/// What is for the program alone, and no layer's to import.
const OUTERMOST: &str = "cli";

#[test]
fn imports_go_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (layer, forbidden) in FORBIDDEN {
        for file in files(&src.join(layer)).into_iter().chain(files(&src.join(format!("{layer}.rs")))) {
            let text = fs::read_to_string(&file).unwrap();
            for module in forbidden.iter().chain([&OUTERMOST]) {
                assert!(!imports(&text, module), "{} must not import {module}", file.display());
            }
        }
    }
}

/// Whether a text names something of a module, by itself or in braces.
fn imports(text: &str, module: &str) -> bool {
    let braces = text.split("use crate::{").skip(1).filter_map(|rest| rest.split('}').next());
    let in_braces =
        braces.flat_map(|names| names.split(',')).any(|name| name.trim().split("::").next() == Some(module));
    in_braces || text.contains(&format!("crate::{module}::")) || text.contains(&format!("use crate::{module};"))
}

fn files(path: &Path) -> Vec<std::path::PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else { return vec![] };
    entries.flat_map(|entry| files(&entry.unwrap().path())).collect()
}
