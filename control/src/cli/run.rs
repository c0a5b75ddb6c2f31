//! `tieline run`

use std::os::unix::process::CommandExt;
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
    restart_on_huge_pages();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control thread's event loop")?;
    runtime.block_on(supervise::run(&args.config))?;
    Ok(ExitCode::SUCCESS)
}

/// The C library's setting by which it asks for huge pages, for tables of many
/// endpoints and policies; read when a process starts. Small heaps have none.
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// Starts this program anew with huge pages, unless whoever started it has chosen
/// settings. Returns where that has been done, or can't be.
fn restart_on_huge_pages() {
    if cfg!(not(target_env = "gnu")) || std::env::var_os(TUNABLES.0).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new(program);
    let error = command.args(std::env::args_os().skip(1)).env(TUNABLES.0, TUNABLES.1).exec();
    eprintln!("can't ask for huge pages: {error}");
}
