//! The `vbs` program: a subcommand a role, and the operator's nouns.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vbs::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Virtual Block Store: an EC2-compatible Elastic Block Store for machines you own.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer EC2 requests and run the workflows
    Gateway(cli::ConfigFile),
    /// Serve a storage node to the gateways
    VolumeDelegate(cli::DelegateFile),
    /// Serve a hypervisor node to the gateways
    VmmDelegate(cli::DelegateFile),
    /// Run all of it on this machine, with a Postgres, a tgtd and guests of its own
    Dev(cli::dev::Dev),
    /// Apply the database migrations that are missing
    Migrate(cli::ConfigFile),
    /// Accounts: whose resources are
    #[command(subcommand)]
    Account(cli::account::Account),
    /// Access keys: who signs requests
    #[command(subcommand)]
    AccessKey(cli::access_key::AccessKey),
    /// Master keys: what secrets are encrypted under
    #[command(subcommand)]
    MasterKey(cli::master_key::MasterKey),
    /// Instances: the machines that hypervisor nodes report
    #[command(subcommand)]
    Instance(cli::instance::Instance),
    /// Nodes: where volumes are kept and machines run
    #[command(subcommand)]
    Node(cli::node::Node),
    /// Workflows: what the workers do and did
    #[command(subcommand)]
    Workflow(cli::workflow::Workflow),
    /// Compare what the nodes have with what the database says, and print how they differ
    ///
    /// A line a difference, its columns separated by tabs: what differs, the node, the resource, what the database says, what the
    /// node has, and what is done about it: `repair`, which gateways do by themselves too, or why nothing. A gateway must be
    /// running. The exit status is 0 when there is no difference, else 1.
    Audit(cli::audit::Audit),
    /// Run a command in a guest of vbs dev
    #[command(hide = true)]
    GuestRun(cli::guest_run::GuestRun),
    /// Run a private Postgres until standard input closes
    #[command(hide = true)]
    Postgres,
}

#[tokio::main]
async fn main() -> ExitCode {
    cli::log_to_stderr();
    let done = match Arguments::parse().command {
        Command::Gateway(file) => cli::gateway(file).await,
        Command::VolumeDelegate(file) => cli::volume_delegate(file).await,
        Command::VmmDelegate(file) => cli::vmm_delegate(file).await,
        Command::Dev(dev) => dev.run().await,
        Command::Migrate(file) => cli::migrate(file).await,
        Command::Account(command) => command.run().await,
        Command::AccessKey(command) => command.run().await,
        Command::MasterKey(command) => command.run().await,
        Command::Instance(command) => command.run().await,
        Command::Node(command) => command.run().await,
        Command::Workflow(command) => command.run().await,
        Command::Audit(audit) => audit.run().await,
        Command::GuestRun(command) => command.run().await,
        Command::Postgres => cli::postgres().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vbs: {error}");
            ExitCode::FAILURE
        }
    }
}
