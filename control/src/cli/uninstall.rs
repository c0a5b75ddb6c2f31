//! `tieline uninstall`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::{Output, verdict};
use crate::mirror::uninstall::{Removed, uninstall};

#[derive(Debug, clap::Args)]
pub(super) struct UninstallArgs {
    /// Kubeconfig of the cluster; KUBECONFIG, ~/.kube/config or the pod's own account if not given
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace that the daemons were in
    #[arg(long, value_name = "NAME", default_value = "tieline-system")]
    namespace: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Exits 1 when a daemon still runs, for it would write all of it again.
pub(super) fn main(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let config = match &args.kubeconfig {
            None => kube::Config::infer().await.context("no cluster is configured")?,
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(file, &options).await?
            }
        };
        let client = kube::Client::try_from(config)?;
        anyhow::Ok(uninstall(client, args.namespace.clone()).await)
    })?;
    match outcome {
        Ok(removed) => {
            match args.output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&removed)?),
                Output::Text => {
                    let Removed { sets, pools, .. } = removed;
                    println!("removed {sets} GlobalNetworkSets and {pools} IPPools");
                }
            }
            Ok(verdict(true))
        }
        Err(error) => {
            eprintln!("tieline: {error}");
            Ok(verdict(false))
        }
    }
}
