//! `tieline run`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::supervise;

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/tieline/tieline.toml")]
    config: PathBuf,
}

/// Runs until SIGTERM or SIGINT, then leaves the node as it was found.
pub(super) fn main(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control thread's event loop")?;
    runtime.block_on(supervise::run(&args.config))?;
    Ok(ExitCode::SUCCESS)
}
