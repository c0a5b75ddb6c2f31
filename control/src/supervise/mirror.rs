//! What Felix must know of remote clusters, as a part of the daemon.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tieline_config::Config;
use tieline_config::schema::Told;
use tokio::sync::watch;

use crate::cluster::kubernetes::{self, Access, Fingerprint, Options};
use crate::derive::Derived;
use crate::federation::{Datastore, FederationConfig, FederationStatus, RemoteState, StalePolicy};
use crate::mirror::object::Storage;
use crate::mirror::{Input, Mirror, MirrorStatus, Modes, Place, checks, same_but_ours};
use crate::state::{ClusterId, Condition, Severity};

/// Between two attempts to begin.
const RETRY: Duration = Duration::from_secs(10);
/// How often it is looked whether the API is to be reached in another way.
const LOOK: Duration = Duration::from_secs(5);
/// Where a pod finds its own namespace.
const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// The daemon's mirror; it does nothing where clusters are read from files.
pub(super) struct Mirroring {
    node: String,
    /// How the local cluster's API is reached.
    api: Option<(Access, Options)>,
    stale: StalePolicy,
    modes: watch::Sender<Modes>,
    input: watch::Sender<Option<Input>>,
    mirror: Option<Mirror>,
    /// The mirror's client, and what it was made of.
    client: Option<(watch::Sender<kube::Client>, Fingerprint)>,
    error: Option<String>,
    /// When to look at what the API is reached with.
    look: Instant,
}

fn modes(config: &Config) -> Modes {
    let auto = |told| told == Told::Auto;
    Modes { mirror: auto(config.felix.mirror), pools: auto(config.felix.pools) }
}

impl Mirroring {
    pub(super) fn new(config: &Config, federation: &FederationConfig) -> Self {
        let api = match &federation.datastore {
            Datastore::Files { .. } => None,
            Datastore::Kubernetes { access, options } => Some((access.clone(), options.clone())),
        };
        Self {
            node: federation.node.clone(),
            api,
            stale: federation.stale,
            modes: watch::channel(modes(config)).0,
            input: watch::channel(None).0,
            mirror: None,
            client: None,
            error: None,
            look: Instant::now(),
        }
    }

    pub(super) fn reconfigure(&mut self, config: &Config, federation: &FederationConfig) {
        self.stale = federation.stale;
        self.modes.send_if_modified(|now| std::mem::replace(now, modes(config)) != *now);
    }

    /// Begins, once it can, and goes on with another client when the API is
    /// reached in another way: with another authority, say.
    pub(super) async fn begin(&mut self) {
        let Some((access, options)) = &self.api else { return };
        if self.look > Instant::now() {
            return;
        }
        self.look = Instant::now() + LOOK;
        let before = self.client.as_ref().map(|(_, made_of)| *made_of);
        match kubernetes::client(access, options, before).await {
            Ok(None) => {}
            Ok(Some((client, made_of))) => {
                self.error = None;
                self.take(client, made_of);
            }
            // A file that is being replaced says nothing for a moment.
            Err(_) if self.mirror.is_some() => {}
            Err(error) => {
                self.error = Some(error);
                self.look = Instant::now() + RETRY;
            }
        }
    }

    fn take(&mut self, client: kube::Client, made_of: Fingerprint) {
        if let Some((sender, before)) = &mut self.client {
            *before = made_of;
            sender.send_replace(client);
            return;
        }
        let (sender, client) = watch::channel(client);
        self.client = Some((sender, made_of));
        let namespace = std::fs::read_to_string(NAMESPACE).ok();
        let namespace = namespace.map(|text| text.trim().to_owned());
        let place = Place {
            client,
            namespace: namespace.unwrap_or_else(|| "tieline-system".to_owned()),
            node: self.node.clone(),
        };
        let (modes, input) = (self.modes.subscribe(), self.input.subscribe());
        self.mirror = Some(Mirror::start(place, modes, input));
    }

    /// Tells what there is to be known, if any of it is new.
    pub(super) fn tell(&self, derived: &Arc<Derived>, status: &FederationStatus) {
        if self.api.is_none() {
            return;
        }
        let unknown = self.unknown(derived, status);
        let states = |input: &Input| -> Vec<_> {
            let remotes = input.remotes.iter();
            remotes
                .map(|(name, remote)| {
                    let (state, error) = (remote.cluster.state, remote.cluster.error.clone());
                    (name.clone(), state, error, remote.overlay)
                })
                .collect()
        };
        let storage = status.local.calico_group.as_deref().and_then(Storage::of);
        let remotes = status.remotes.clone();
        let new = Input { derived: derived.clone(), unknown, remotes, storage };
        self.input.send_if_modified(|input| {
            let same = input.as_ref().is_some_and(|old| {
                (Arc::ptr_eq(&old.derived, &new.derived)
                    || same_but_ours(&old.derived.world, &new.derived.world))
                    && old.unknown == new.unknown
                    && old.storage == new.storage
                    && states(old) == states(&new)
            });
            if !same {
                *input = Some(new);
            }
            !same
        });
    }

    /// Remote clusters of which this daemon has not known anything yet. What
    /// another has written of them stays as long as what was known would.
    fn unknown(&self, derived: &Derived, status: &FederationStatus) -> BTreeSet<Arc<str>> {
        let after = match self.stale {
            StalePolicy::Keep => None,
            StalePolicy::ExpireIdentities(after) | StalePolicy::Withdraw(after) => Some(after),
        };
        let remotes = status.remotes.iter().filter(|(name, remote)| {
            let begins = matches!(
                remote.cluster.state,
                RemoteState::Connecting | RemoteState::Syncing | RemoteState::ConfigIncomplete
            );
            let since = Duration::from_millis(remote.cluster.state_for_ms);
            begins
                && !derived.world.remotes.contains_key(name.as_str())
                && after.is_none_or(|after| since < after)
        });
        remotes.map(|(name, _)| name.as_str().into()).collect()
    }

    pub(super) fn status(&self) -> Option<MirrorStatus> {
        self.api.as_ref()?;
        let mut status = self.mirror.as_ref().map(|it| (*it.status()).clone()).unwrap_or_default();
        if let Some(error) = &self.error {
            status.state = "off".to_owned();
            status.reason = Some(error.clone());
        }
        let Modes { mirror, pools } = *self.modes.borrow();
        let off = match (mirror, pools) {
            (true, true) => return Some(status),
            (false, false) => {
                status.state = "off".to_owned();
                "felix.mirror and felix.pools are off"
            }
            (false, true) => "felix.mirror is off",
            (true, false) => "felix.pools is off",
        };
        status.reason.get_or_insert_with(|| off.to_owned());
        Some(status)
    }

    pub(super) fn conditions(&self, derived: Option<&Derived>) -> Vec<Condition> {
        if self.api.is_none() {
            return Vec::new();
        }
        let mut all = self.mirror.as_ref().map(|it| it.status().conditions.clone());
        let all = all.get_or_insert_default();
        all.extend(derived.and_then(|it| checks::xdp(&it.world.local, &it.world.node)));
        all.extend(self.error.as_ref().map(|error| Condition {
            severity: Severity::Error,
            cluster: ClusterId::Local,
            object: "local cluster".to_owned(),
            message: format!("Felix is told nothing of remote clusters: {error}"),
        }));
        std::mem::take(all)
    }

    pub(super) async fn stop(&mut self) {
        if let Some(mirror) = self.mirror.take() {
            mirror.stop().await;
        }
    }
}
