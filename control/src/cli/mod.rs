//! The commands of `tieline`.
//!
//! Each file is one command. Exit codes: 0 good, 1 the answer is bad news, 2
//! wrong use or broken input. Results go to standard output, in words or with
//! `-o json` as JSON; everything else goes to standard error.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

mod check;
mod demo;
mod explain;
mod flows;
mod offline;
mod pipeline;
mod replay;
mod run;
mod status;
mod text;
mod uninstall;

/// Joins Calico clusters: a userspace VXLAN router with label-based policy.
#[derive(Debug, Parser)]
#[command(name = "tieline", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node daemon
    Run(run::RunArgs),
    /// Build two small clusters on this machine, join them, and show what passes and what is denied
    Demo(demo::DemoArgs),
    /// Validate a configuration and the manifests that it names, and test expected verdicts
    Check(check::CheckArgs),
    /// Run captures through the packet path, without any device
    Replay(replay::ReplayArgs),
    /// Show what the daemon of this node is doing
    Status(status::StatusArgs),
    /// Say why a connection is allowed or denied
    Explain(Box<explain::ExplainArgs>),
    /// Show the connections that this node knows, with both identities, the rule that decided, and
    /// what has gone through
    Flows(flows::FlowsArgs),
    /// Remove what was written into the cluster for Calico's Felix, once no daemon runs any more
    Uninstall(uninstall::UninstallArgs),
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Words for people.
    #[default]
    Text,
    /// Documented, stable JSON.
    Json,
}

/// Where the daemon listens.
#[derive(Clone, Debug, clap::Args)]
pub struct SocketArgs {
    /// The daemon's Unix socket
    #[arg(long, value_name = "PATH", default_value = "/run/tieline/tieline.sock")]
    pub socket: PathBuf,
}

/// The answer is good, or bad news.
pub(crate) fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Check(args) => check::main(&args),
        Command::Replay(args) => replay::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Explain(args) => explain::main(&args),
        Command::Flows(args) => flows::main(&args),
        Command::Uninstall(args) => uninstall::main(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("tieline: {}", crate::causes::with_causes(&error));
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
