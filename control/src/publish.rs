//! From what control has worked out to what workers look up.
//!
//! [`Tables`] holds the tables in force. Each time it is given what is wanted,
//! it applies the difference to a clone of the current snapshot (which shares
//! all that stays) and publishes the result; wanting what is in force already
//! publishes nothing. Numbers of VTEPs and nodes stay the same while these
//! exist, so that flows which name them stay valid.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::{HashMap, HashSet};
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::publish::{Publisher, Reader};
use tieline_dataplane::tables::{
    ClassId, Endpoint, EndpointPolicy, NodeId, Overlay, Path, Policies, Route, Snapshot, VtepId,
    VtepSpec,
};

use crate::link::Adjacency;
use crate::policy::compile::Compiled;
use crate::resolve::{Resolved, RouteTarget, VtepKey};
use crate::state::ClusterId;

/// The content of a snapshot in comparable form.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    overlay: Option<Overlay>,
    routes: BTreeMap<Prefix, Route>,
    vteps: BTreeMap<VtepId, VtepSpec>,
    endpoints: BTreeMap<Addr, Endpoint>,
    prefixes: BTreeMap<Prefix, ClassId>,
    policies: Vec<Option<Arc<EndpointPolicy>>>,
}

/// The tables in force, and the way to replace them.
pub struct Tables {
    publisher: Publisher<Snapshot>,
    content: Content,
    vtep_ids: Numbers<VtepKey>,
    node_ids: Numbers<(ClusterId, String)>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            publisher: Publisher::new(Snapshot::empty()),
            content: Content::default(),
            vtep_ids: Numbers::default(),
            node_ids: Numbers::default(),
        }
    }
}

impl Tables {
    /// A worker's view of the tables.
    pub fn reader(&self) -> Reader<Snapshot> {
        self.publisher.reader()
    }

    /// The tables in force.
    pub fn current(&self) -> &Arc<Snapshot> {
        self.publisher.current()
    }

    /// Frees old tables that no worker uses any more.
    pub fn collect(&mut self) {
        self.publisher.collect();
    }

    /// Puts into force what has been worked out. Returns whether anything
    /// changed.
    pub fn apply(
        &mut self,
        overlay: Overlay,
        resolved: &Resolved,
        compiled: &Compiled,
        adjacencies: &BTreeMap<IpAddr, Adjacency>,
    ) -> bool {
        let content = self.content(overlay, resolved, compiled, adjacencies);
        let changed = content != self.content;
        if changed {
            let mut next = (**self.publisher.current()).clone();
            next.generation += 1;
            update(&mut next, &self.content, &content);
            self.content = content;
            self.publisher.publish(next);
        }
        self.publisher.collect();
        changed
    }

    fn content(
        &mut self,
        overlay: Overlay,
        resolved: &Resolved,
        compiled: &Compiled,
        adjacencies: &BTreeMap<IpAddr, Adjacency>,
    ) -> Content {
        self.vtep_ids.retain(|key| resolved.vteps.contains_key(key));
        let nodes: HashSet<(&ClusterId, &str)> =
            resolved.vteps.keys().map(|key| (&key.cluster, key.node.as_str())).collect();
        self.node_ids.retain(|(cluster, node)| nodes.contains(&(cluster, node.as_str())));
        let mut content = Content { overlay: Some(overlay), ..Content::default() };
        for (key, vtep) in &resolved.vteps {
            let node = NodeId(self.node_ids.get(&(key.cluster.clone(), key.node.clone())));
            let spec = VtepSpec {
                node,
                underlay: vtep.underlay.into(),
                mac: vtep.mac,
                path: adjacencies.get(&vtep.underlay).and_then(path),
            };
            content.vteps.insert(VtepId(self.vtep_ids.get(key)), spec);
        }
        for (prefix, route) in &resolved.routes {
            if let Some(route) = self.route(prefix, &route.target, resolved) {
                content.routes.insert(*prefix, route);
            }
        }
        let known = compiled.endpoints.iter().map(|(addr, class, policy)| {
            (*addr, Endpoint { class: *class, policy: *policy, local: policy.is_some() })
        });
        content.endpoints = known.collect();
        for addr in &resolved.local_addresses {
            let addr = Addr::from(*addr);
            let class = class_of(&compiled.prefixes, addr);
            content
                .endpoints
                .entry(addr)
                .or_insert(Endpoint { class, policy: None, local: true })
                .local = true;
        }
        content.prefixes = compiled.prefixes.iter().copied().collect();
        content.policies = compiled.policies.clone();
        content
    }

    /// The family of a route chooses between the VTEPs of its node; a node with
    /// one VTEP carries both.
    fn route(
        &mut self,
        prefix: &Prefix,
        target: &RouteTarget,
        resolved: &Resolved,
    ) -> Option<Route> {
        let RouteTarget::Node { cluster, node } = target else { return Some(Route::Local) };
        let key = crate::resolve::vtep_for(resolved, cluster, node, prefix.is_v4())?;
        Some(Route::Vtep(VtepId(self.vtep_ids.get(&key))))
    }
}

/// An address of the node itself has no identity: its class is that of the
/// nets that hold it.
fn class_of(prefixes: &[(Prefix, ClassId)], addr: Addr) -> ClassId {
    let holding = prefixes.iter().filter(|(prefix, _)| prefix.contains(addr));
    let unknown = if addr.is_v4() { ClassId::UNKNOWN_V4 } else { ClassId::UNKNOWN_V6 };
    holding.max_by_key(|(prefix, _)| prefix.len128()).map_or(unknown, |(_, class)| *class)
}

fn path(adjacency: &Adjacency) -> Option<Path> {
    match adjacency {
        Adjacency::Resolved { source, source_mac, next_hop_mac, .. } => Some(Path {
            source: (*source).into(),
            source_mac: *source_mac,
            next_hop_mac: *next_hop_mac,
        }),
        Adjacency::Unresolved { .. } => None,
    }
}

/// Applies the difference between two contents to a snapshot.
fn update(next: &mut Snapshot, old: &Content, new: &Content) {
    if let Some(overlay) = &new.overlay
        && old.overlay.as_ref() != Some(overlay)
    {
        next.overlay = Arc::new(overlay.clone());
    }
    // Removals first: a VTEP may take over the address of one that left.
    for (id, _) in gone(&old.vteps, &new.vteps) {
        next.vteps.remove(*id);
    }
    for (id, spec) in fresh(&old.vteps, &new.vteps) {
        next.vteps.insert(*id, *spec);
    }
    for (prefix, _) in gone(&old.routes, &new.routes) {
        next.routes.remove(prefix);
    }
    for (prefix, route) in fresh(&old.routes, &new.routes) {
        next.routes.insert(*prefix, *route);
    }
    for (addr, _) in gone(&old.endpoints, &new.endpoints) {
        next.endpoints.remove(*addr);
    }
    for (addr, endpoint) in fresh(&old.endpoints, &new.endpoints) {
        next.endpoints.insert(*addr, *endpoint);
    }
    for (prefix, _) in gone(&old.prefixes, &new.prefixes) {
        next.endpoints.remove_prefix(prefix);
    }
    for (prefix, class) in fresh(&old.prefixes, &new.prefixes) {
        next.endpoints.insert_prefix(*prefix, *class);
    }
    if old.policies != new.policies {
        next.policies = Policies::new(new.policies.iter().cloned());
    }
}

/// What `old` has and `new` has not.
fn gone<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    old.iter().filter(|(key, _)| !new.contains_key(key))
}

/// What `new` has and `old` has not, or has otherwise.
fn fresh<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    new.iter().filter(|(key, value)| old.get(key) != Some(*value))
}

/// Small numbers for keys: each keeps its number while it exists, and numbers
/// of keys that are gone are given out again.
#[derive(Debug)]
struct Numbers<K> {
    of: HashMap<K, u32>,
    free: Vec<u32>,
    next: u32,
}

impl<K> Default for Numbers<K> {
    fn default() -> Self {
        Self { of: HashMap::default(), free: Vec::new(), next: 0 }
    }
}

impl<K: Hash + Eq + Clone> Numbers<K> {
    fn get(&mut self, key: &K) -> u32 {
        if let Some(number) = self.of.get(key) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.of.insert(key.clone(), number);
        number
    }

    fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let free = &mut self.free;
        self.of.retain(|key, number| {
            let kept = keep(key);
            if !kept {
                free.push(*number);
            }
            kept
        });
    }
}
