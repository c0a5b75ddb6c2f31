//! The configuration file while the daemon runs.
//!
//! A changed file is taken over whole or not at all. Keys that can't change
//! while packets flow keep their old values and are named in `status` until
//! the daemon is restarted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tieline_config::schema::{self, CalicoGroup, DatastoreKind, Scope, Stale};
use tieline_config::{Config, Watch};
use tieline_dataplane::flow::Timeouts;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::status::ConfigStatus;
use crate::cluster::kubernetes::{Access, Options};
use crate::federation::{Datastore, FederationConfig, StalePolicy};

/// The file and what is in force of it.
pub(super) struct ConfigFile {
    path: PathBuf,
    /// What is in force.
    pub(super) current: Config,
    error: Option<String>,
    restart_needed_for: Vec<String>,
    events: mpsc::Receiver<()>,
    _watch: Watch,
}

impl ConfigFile {
    pub(super) fn new(path: &Path, current: Config) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::channel(1);
        let watch = Watch::start([path], move |_| {
            // One waiting event is enough: the file is read when it is dealt with.
            let _ = sender.try_send(());
        })?;
        Ok(Self {
            path: path.to_owned(),
            current,
            error: None,
            restart_needed_for: Vec::new(),
            events,
            _watch: watch,
        })
    }

    /// Waits until the file has other content.
    pub(super) async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Reads the file. `false` when nothing is to be taken over.
    pub(super) fn reload(&mut self) -> bool {
        let new = match Config::load(&self.path) {
            Ok(new) => new,
            Err(error) => {
                error!(%error, "the changed configuration is not taken over");
                self.error = Some(error.to_string());
                return false;
            }
        };
        self.error = None;
        let changes = self.current.diff(&new);
        let (live, restart): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.live);
        self.restart_needed_for = restart.into_iter().map(|change| change.key).collect();
        if !self.restart_needed_for.is_empty() {
            let keys = self.restart_needed_for.join(", ");
            warn!(keys, "changed keys that need a restart");
        }
        if live.is_empty() {
            return false;
        }
        let keys: Vec<_> = live.iter().map(|change| change.key.as_str()).collect();
        info!(keys = keys.join(", "), "configuration changed");
        self.current = self.current.with_live_of(&new);
        true
    }

    pub(super) fn status(&self) -> ConfigStatus {
        ConfigStatus {
            path: self.path.display().to_string(),
            error: self.error.clone(),
            restart_needed_for: self.restart_needed_for.clone(),
        }
    }
}

/// What the federation needs to know of the configuration.
pub(crate) fn federation(node: &str, config: &Config) -> FederationConfig {
    let after = config.federation.stale_after();
    FederationConfig {
        node: node.to_owned(),
        datastore: datastore(&config.datastore),
        include_local_vteps: config.overlay.scope == Scope::All,
        stale: match config.federation.stale {
            Stale::Keep => StalePolicy::Keep,
            Stale::ExpireIdentities => StalePolicy::ExpireIdentities(after),
            Stale::Withdraw => StalePolicy::Withdraw(after),
        },
    }
}

fn datastore(config: &schema::Datastore) -> Datastore {
    match config.kind {
        DatastoreKind::Files => {
            Datastore::Files { local: config.path.clone(), remotes: config.remotes.clone() }
        }
        DatastoreKind::Kubernetes => {
            let seconds = |seconds: u32| Duration::from_secs(seconds.into());
            let access = config.kubeconfig.clone().map_or(Access::InCluster, Access::Kubeconfig);
            let options = Options {
                calico_group: match config.calico_group {
                    CalicoGroup::Auto => None,
                    CalicoGroup::Storage => Some("crd.projectcalico.org/v1".to_owned()),
                    CalicoGroup::Native => Some("projectcalico.org/v3".to_owned()),
                },
                rcc_group: config.rcc_group.clone(),
                exec_plugins: config.exec_plugins,
                patience: seconds(config.answer_timeout_seconds),
                silence: seconds(config.silence_timeout_seconds),
            };
            Datastore::Kubernetes { access, options }
        }
    }
}

/// The flow table's timeouts.
pub(crate) fn timeouts(config: &tieline_config::schema::Timeouts) -> Timeouts {
    Timeouts {
        tcp_syn: config.tcp_syn_seconds,
        tcp_established: config.tcp_established_seconds,
        tcp_closing: config.tcp_closing_seconds,
        udp: config.udp_seconds,
        udp_replied: config.udp_replied_seconds,
        icmp: config.icmp_seconds,
        other: config.other_seconds,
        fragments: config.fragments_seconds,
    }
}
