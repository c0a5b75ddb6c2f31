//! Working out a configuration's world without a daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tieline_config::Config;

use crate::derive::{Derived, derive};
use crate::federation::Federation;
use crate::state::Condition;
use crate::supervise;

/// How long the clusters' directories may take to be read.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a configuration amounts to.
pub(super) struct Offline {
    pub(super) config: Config,
    pub(super) derived: Arc<Derived>,
    /// What the operator should know, most severe first.
    pub(super) conditions: Vec<Condition>,
}

/// Reads a configuration file and the directories that it names, by the same
/// code as the daemon.
pub(super) fn read(config: &Path) -> anyhow::Result<Offline> {
    let config = Config::load(config)?;
    let node = config.node_name()?;
    let federation = supervise::reload::federation(&node, &config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start an event loop")?;
    let (world, mut conditions) = runtime.block_on(async {
        let mut federation = Federation::new(federation);
        match tokio::time::timeout(PATIENCE, first(&mut federation)).await {
            Ok(world) => world.map(|world| (world, federation.conditions().to_vec())),
            Err(_) => bail!("the local cluster is not read within {} s", PATIENCE.as_secs()),
        }
    })?;
    let derived = Arc::new(derive(world));
    conditions.extend(derived.conditions());
    conditions.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
    conditions.dedup();
    Ok(Offline { config, derived, conditions })
}

/// The first world in which every cluster has told what it has or that it
/// can't, or why there is none.
async fn first(federation: &mut Federation) -> anyhow::Result<Arc<crate::state::World>> {
    loop {
        let looked = tokio::time::timeout(Duration::from_millis(200), federation.changed()).await;
        match looked {
            Ok(world) if federation.settled() => return Ok(world),
            _ => {}
        }
        if let Some(error) = federation.status().local.error {
            bail!("datastore: {error}");
        }
    }
}
