//! The operator's commands, run as an operator runs them.

use std::process::Command;

use tempfile::TempDir;

use super::cloud::Cloud;

/// What a command said, and whether it succeeded.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// A configuration file for the `vbs` program.
pub struct Cli {
    dir: TempDir,
}

impl Cli {
    /// On a cloud's database. The nodes are not in it: an operator's commands never talk to them.
    pub fn of(cloud: &Cloud) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            r#"
            region = "us-east-1"
            zones = ["us-east-1a", "us-east-1b"]
            master_key = {{ env = "NOT_READ" }}
            database = {{ url = "{}" }}
            "#,
            cloud.context.database_url
        );
        std::fs::write(dir.path().join("vbs.toml"), text).unwrap();
        Self { dir }
    }

    /// Runs a command as the user `olga`.
    pub fn run(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vbs"));
        command.args(arguments).arg("--config").arg(self.dir.path().join("vbs.toml"));
        let output = command.env("SUDO_USER", "olga").output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {}", said.err);
        said.out
    }

    /// Runs a command that must be refused, and gives what it said.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_ne!(said.code, 0, "{arguments:?}: {}", said.out);
        said.err
    }
}
