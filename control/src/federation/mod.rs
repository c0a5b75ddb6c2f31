//! The life cycle of remote clusters.
//!
//! [`Federation`] owns a source for the local cluster and one for each remote
//! cluster that the local one names by a RemoteClusterConfiguration, each on a
//! thread or task of its own, and yields a [`World`] whenever what counts has
//! changed. It promises:
//!
//! - nothing of a cluster counts before its first complete state;
//! - one bad remote delays neither another nor the local cluster;
//! - lost contact keeps what is known, as long as [`StalePolicy`] says;
//! - deleting a RemoteClusterConfiguration withdraws all of that remote;
//! - a remote that is the local cluster never counts, and of two that are one
//!   cluster the first by name does.
//!
//! It knows nothing of routes or policies. Start reading at
//! [`Federation::changed`]; [`remote`] is the life cycle itself.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::cluster::{Feed, Source, SourceEvent};
use crate::state::{
    ClusterId, Condition, RemoteCluster, RemoteClusterConfiguration, Severity, World,
};

pub mod remote;
mod status;
mod way;

pub use remote::{RemoteState, StalePolicy};
pub use status::{ClusterStatus, FederationStatus, RemoteStatus};
pub use way::{Datastore, Way};

use remote::{Counts, Remote};

/// What the federation needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationConfig {
    /// Name of this node.
    pub node: String,
    /// Where clusters are read from.
    pub datastore: Datastore,
    /// Whether the local cluster's other VTEPs count (`overlay.scope = "all"`).
    pub include_local_vteps: bool,
    /// What becomes of a remote's objects when contact is lost.
    pub stale: StalePolicy,
}

/// A cluster with its source.
struct Member {
    remote: Remote,
    /// Where its objects come from, or what is missing to know that.
    way: Result<Way, String>,
    feed: Option<Feed>,
    state: RemoteState,
    counts: Counts,
    since: Instant,
}

impl Member {
    fn new(way: Result<Way, String>, start: impl FnOnce(&Way) -> Feed, now: Instant) -> Self {
        let feed = way.as_ref().ok().map(start);
        let state = RemoteState::Connecting;
        let remote = Remote::default();
        Self { remote, way, feed, state, counts: Counts::Nothing, since: now }
    }

    /// Takes another way, if it is another one.
    fn take(&mut self, way: Result<Way, String>, start: impl FnOnce(&Way) -> Feed) {
        if self.way != way {
            self.feed = way.as_ref().ok().map(start);
            self.way = way;
            self.remote.restart();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut any = false;
        while let Some(feed) = &mut self.feed {
            match feed.events.poll_recv(cx) {
                Poll::Ready(Some(event)) => self.remote.step(event, now),
                Poll::Ready(None) => {
                    self.feed = None;
                    let reason = "its reader has ended; restart the daemon".to_owned();
                    self.remote.step(SourceEvent::Lost(reason), now);
                }
                Poll::Pending => break,
            }
            any = true;
        }
        any
    }

    fn enter(&mut self, cluster: &ClusterId, state: RemoteState, now: Instant) {
        if self.state != state {
            tracing::info!(%cluster, from = %self.state, to = %state, "cluster has changed state");
            self.state = state;
            self.since = now;
        }
    }

    /// Whether it has told all that it can tell for now.
    fn settled(&self) -> bool {
        self.feed.is_none() || self.remote.settled()
    }
}

/// How sources are made.
type Open = Box<dyn Fn(&ClusterId, &Way) -> Box<dyn Source> + Send>;

/// The clusters.
pub struct Federation {
    config: FederationConfig,
    open: Open,
    local: Member,
    remotes: BTreeMap<Arc<str>, Member>,
    started: Instant,
    world: Option<Arc<World>>,
    conditions: Vec<Condition>,
}

impl Federation {
    /// Starts reading the local cluster.
    pub fn new(config: FederationConfig) -> Self {
        let datastore = config.datastore.clone();
        Self::with_sources(config, Box::new(move |cluster, way| datastore.open(cluster, way)))
    }

    fn with_sources(config: FederationConfig, open: Open) -> Self {
        let now = Instant::now();
        let start = |way: &Way| open(&ClusterId::Local, way).start();
        Self {
            local: Member::new(Ok(config.datastore.local()), start, now),
            config,
            open,
            remotes: BTreeMap::new(),
            started: now,
            world: None,
            conditions: Vec::new(),
        }
    }

    /// Waits until the world, a remote's state or a condition has changed, and
    /// returns the world; it is the same `Arc` when it has not changed itself.
    /// The first one comes when the local cluster is completely known.
    ///
    /// Dropping the future loses nothing. Changes that come while the caller is
    /// busy are one change when it calls again.
    pub async fn changed(&mut self) -> Arc<World> {
        loop {
            if let Some(world) = self.refresh(Instant::now()) {
                return world;
            }
            let wake = self.next_deadline();
            let events = poll_fn(|cx| self.poll(cx));
            match wake {
                None => events.await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), events).await;
                }
            }
        }
    }

    /// Takes over another configuration; what follows from it comes with the
    /// next [`Self::changed`].
    pub fn reconfigure(&mut self, config: FederationConfig) {
        self.config = config;
        let start = |way: &Way| (self.open)(&ClusterId::Local, way).start();
        self.local.take(Ok(self.config.datastore.local()), start);
        self.match_configurations(Instant::now());
    }

    /// Whether every cluster has told its state, or that it can't be read:
    /// for commands that look once and end.
    pub fn settled(&self) -> bool {
        self.local.settled() && self.remotes.values().all(Member::settled)
    }

    /// What the operator should know of clusters and their objects.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// The clusters as they are now.
    pub fn status(&self) -> FederationStatus {
        let now = Instant::now();
        let remotes = self.remotes.iter().map(|(name, member)| {
            let counts = self.world.as_ref().and_then(|world| world.remotes.get(name));
            let wanted = self.configuration(name).is_some_and(|rcc| rcc.overlay);
            let overlay_reason = match (wanted, counts) {
                (false, _) => "overlayRoutingMode is Disabled".to_owned(),
                (true, Some(_)) => "overlayRoutingMode is Enabled".to_owned(),
                (true, None) => {
                    format!("overlayRoutingMode is Enabled, but it is {}", member.state)
                }
            };
            let overlay = wanted && counts.is_some();
            let cluster = self.cluster_status(member, self.problem(name), now);
            (name.to_string(), RemoteStatus { cluster, overlay, overlay_reason })
        });
        let local = self.cluster_status(&self.local, self.local.remote.error.clone(), now);
        FederationStatus { local, remotes: remotes.collect() }
    }

    fn cluster_status(
        &self,
        member: &Member,
        error: Option<String>,
        now: Instant,
    ) -> ClusterStatus {
        let view = member.remote.view();
        let ms = |at: Instant| {
            u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)
        };
        ClusterStatus {
            state: member.state,
            state_for_ms: ms(member.since),
            error,
            origin: member.way.as_ref().map(ToString::to_string).unwrap_or_default(),
            uid: view.and_then(|view| view.objects.uid.clone()),
            calico_group: view.and_then(|view| view.calico_group.as_deref()).map(str::to_owned),
            objects: view.map(|view| status::count(&view.objects)).unwrap_or_default(),
            ignored: view.map(|view| (*view.ignored).clone()).unwrap_or_default(),
            last_event_ms: member.remote.last_event.map(ms),
            contact_losses: member.remote.losses,
        }
    }

    fn configuration(&self, name: &str) -> Option<&RemoteClusterConfiguration> {
        let view = self.local.remote.view()?;
        view.objects.remotes.get(name).map(|configuration| &**configuration)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let mut any = self.local.poll(cx, now);
        for member in self.remotes.values_mut() {
            any |= member.poll(cx, now);
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    /// When something changes without an event.
    fn next_deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let expiries =
            self.remotes.values().filter_map(|member| member.remote.expiry(self.config.stale));
        let start = (self.world.is_none()).then(|| self.started + self.config.datastore.start());
        expiries.chain(start).filter(|at| *at > now).min()
    }

    /// Brings everything up to date. Returns the world if there is anything new
    /// to tell.
    fn refresh(&mut self, now: Instant) -> Option<Arc<World>> {
        let local = self.local.remote.state(StalePolicy::Keep, now);
        self.local.enter(&ClusterId::Local, local, now);
        self.match_configurations(now);
        let refused = self.refusals();
        let mut changed = false;
        for (name, member) in &mut self.remotes {
            let state = match (&member.way, refused.get(name)) {
                (Err(_), _) => RemoteState::ConfigIncomplete,
                (Ok(_), Some(_)) => RemoteState::Failed,
                (Ok(_), None) => member.remote.state(self.config.stale, now),
            };
            changed |= member.state != state;
            member.enter(&ClusterId::Remote(name.clone()), state, now);
            member.counts = match state {
                RemoteState::ConfigIncomplete | RemoteState::Failed => Counts::Nothing,
                _ => member.remote.counts(self.config.stale, now),
            };
        }
        let conditions = self.gather(&refused);
        let world = self.build(now)?;
        changed |= conditions != self.conditions || self.world.is_none();
        self.conditions = conditions;
        match &self.world {
            Some(old) if same(old, &world) => {}
            _ => {
                self.world = Some(Arc::new(world));
                changed = true;
            }
        }
        self.world.clone().filter(|_| changed)
    }

    /// Starts remotes that are new, drops those that are gone, and reads those
    /// anew that are reached in another way now.
    fn match_configurations(&mut self, now: Instant) {
        let Some(view) = self.local.remote.view() else { return };
        let wanted = &view.objects.remotes;
        self.remotes.retain(|name, _| wanted.contains_key(&**name));
        for (name, configuration) in wanted {
            let name: Arc<str> = name.as_str().into();
            let way = self.config.datastore.remote(&name, configuration);
            let start = |way: &Way| (self.open)(&ClusterId::Remote(name.clone()), way).start();
            match self.remotes.get_mut(&name) {
                Some(member) => member.take(way, start),
                None => drop(self.remotes.insert(name.clone(), Member::new(way, start, now))),
            }
        }
    }

    /// Remotes that can't count because of which cluster they are, and why.
    fn refusals(&self) -> BTreeMap<Arc<str>, String> {
        let mut refused = BTreeMap::new();
        let mut seen: Vec<(&Arc<str>, &Member)> = Vec::new();
        for (name, member) in &self.remotes {
            if member.is_same(&self.local) {
                let reason = "is the local cluster itself; correct where it leads, or delete it";
                refused.insert(name.clone(), reason.to_owned());
            } else if let Some((first, _)) = seen.iter().find(|(_, other)| member.is_same(other)) {
                let reason = format!(
                    "is the same cluster as {first}, which counts; correct where one of the two \
                     leads, or delete it"
                );
                refused.insert(name.clone(), reason);
            } else {
                seen.push((name, member));
            }
        }
        refused
    }

    /// What is wrong with a remote as a whole.
    fn problem(&self, name: &Arc<str>) -> Option<String> {
        let member = self.remotes.get(name)?;
        match (&member.way, self.refusals().get(name)) {
            (Err(missing), _) => Some(missing.clone()),
            (Ok(_), Some(reason)) => Some(reason.clone()),
            (Ok(_), None) => member.remote.error.clone(),
        }
    }

    fn gather(&self, refused: &BTreeMap<Arc<str>, String>) -> Vec<Condition> {
        let members = std::iter::once(&self.local).chain(self.remotes.values());
        let views = members.filter_map(|member| member.remote.view());
        let mut all: Vec<Condition> =
            views.flat_map(|view| view.conditions.iter().cloned()).collect();
        let condition = |severity, object, message| Condition {
            severity,
            cluster: ClusterId::Local,
            object,
            message,
        };
        if let Some(error) = &self.local.remote.error {
            let message = format!("{error}; what was last known stays in force");
            all.push(condition(Severity::Error, "local cluster".to_owned(), message));
        }
        for (name, member) in &self.remotes {
            let object = format!("RemoteClusterConfiguration {name}");
            let reason = match (&member.way, refused.get(name)) {
                (Err(missing), _) => Some(missing),
                (Ok(_), Some(reason)) => Some(reason),
                (Ok(_), None) => member.remote.error.as_ref(),
            };
            let Some(reason) = reason else { continue };
            let (severity, consequence) = match member.counts {
                Counts::All => (Severity::Warning, "what was last known stays in force"),
                Counts::Routes => {
                    (Severity::Error, "its routes stay in force, its identities don't")
                }
                Counts::Nothing => (Severity::Error, "nothing of it is in force"),
            };
            all.push(condition(severity, object, format!("{reason}; {consequence}")));
        }
        all.sort();
        all
    }

    /// The world, once the local cluster is known and remote ones had their
    /// time to become known.
    fn build(&mut self, now: Instant) -> Option<World> {
        let local = self.local.remote.view()?.objects.clone();
        let start = self.started + self.config.datastore.start();
        let waiting = self.world.is_none() && now < start;
        if waiting && !self.remotes.values().all(Member::settled) {
            return None;
        }
        let mut remotes = BTreeMap::new();
        for (name, member) in &mut self.remotes {
            let overlay = local.remotes.get(&**name).is_some_and(|rcc| rcc.overlay);
            if let Some(objects) = member.remote.objects(member.counts) {
                remotes.insert(name.clone(), RemoteCluster { overlay, objects });
            }
        }
        Some(World {
            node: self.config.node.clone(),
            include_local_vteps: self.config.include_local_vteps,
            local,
            remotes,
        })
    }
}

impl Member {
    /// Whether two members are one cluster, as far as that can be known.
    fn is_same(&self, other: &Self) -> bool {
        let uid = |member: &Self| member.remote.view().and_then(|view| view.objects.uid.clone());
        let ways = self.way.as_ref().ok().zip(other.way.as_ref().ok());
        ways.is_some_and(|(a, b)| a == b) || uid(self).is_some_and(|id| Some(id) == uid(other))
    }
}

/// Whether two worlds are equal; objects that are shared are not compared.
fn same(a: &World, b: &World) -> bool {
    let shared = |a, b| Arc::ptr_eq(a, b) || a == b;
    a.node == b.node
        && a.include_local_vteps == b.include_local_vteps
        && shared(&a.local, &b.local)
        && a.remotes.len() == b.remotes.len()
        && a.remotes.iter().zip(&b.remotes).all(|((a_name, a), (b_name, b))| {
            a_name == b_name && a.overlay == b.overlay && shared(&a.objects, &b.objects)
        })
}

#[cfg(test)]
mod tests;
