//! From what control has worked out to what workers look up.
//!
//! [`Tables`] holds the tables in force. Each time it is given what is wanted,
//! it puts that into a clone of the current snapshot (which shares all that
//! stays) and publishes the result; wanting what is in force already publishes
//! nothing. Endpoints and policies come as tables that share what stays with
//! the ones before; routes and VTEPs are compared only when they have been
//! worked out anew. Numbers of VTEPs and nodes stay the same while these exist,
//! so that flows which name them stay valid.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::{HashMap, HashSet};
use tieline_dataplane::addr::Prefix;
use tieline_dataplane::publish::{Publisher, Reader};
use tieline_dataplane::tables::{NodeId, Overlay, Path, Route, Snapshot, VtepId, VtepSpec};

use crate::link::Adjacency;
use crate::policy::compile::Compiled;
use crate::resolve::{Resolved, RouteTarget, VtepKey};
use crate::state::ClusterId;

/// Routes and VTEPs of a snapshot in comparable form, and what they follow from.
#[derive(Clone, Debug, Default)]
struct Content {
    resolved: Option<Arc<Resolved>>,
    adjacencies: BTreeMap<IpAddr, Adjacency>,
    routes: BTreeMap<Prefix, Route>,
    vteps: BTreeMap<VtepId, VtepSpec>,
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
        resolved: &Arc<Resolved>,
        compiled: &Compiled,
        adjacencies: &BTreeMap<IpAddr, Adjacency>,
    ) -> bool {
        let current = self.publisher.current().clone();
        let mut next = (*current).clone();
        let mut changed = false;
        if *next.overlay != overlay {
            next.overlay = Arc::new(overlay);
            changed = true;
        }
        changed |= self.place(&mut next, resolved, adjacencies);
        if !next.endpoints.is_same(&compiled.endpoints) {
            next.endpoints = compiled.endpoints.clone();
            changed = true;
        }
        if !next.policies.is_same(&compiled.policies) {
            next.policies = compiled.policies.clone();
            changed = true;
        }
        if changed {
            next.generation += 1;
            self.publisher.publish(next);
        }
        self.publisher.collect();
        changed
    }

    /// Puts routes and VTEPs into a snapshot; whether that changes it.
    fn place(
        &mut self,
        next: &mut Snapshot,
        resolved: &Arc<Resolved>,
        adjacencies: &BTreeMap<IpAddr, Adjacency>,
    ) -> bool {
        let known = self.content.resolved.as_ref();
        if known.is_some_and(|known| Arc::ptr_eq(known, resolved))
            && self.content.adjacencies == *adjacencies
        {
            return false;
        }
        let content = self.content(resolved, adjacencies);
        let old = std::mem::replace(&mut self.content, content);
        let new = &self.content;
        if old.routes == new.routes && old.vteps == new.vteps {
            return false;
        }
        update(next, &old, new);
        true
    }

    fn content(
        &mut self,
        resolved: &Arc<Resolved>,
        adjacencies: &BTreeMap<IpAddr, Adjacency>,
    ) -> Content {
        self.vtep_ids.retain(|key| resolved.vteps.contains_key(key));
        let nodes: HashSet<(&ClusterId, &str)> =
            resolved.vteps.keys().map(|key| (&key.cluster, key.node.as_str())).collect();
        self.node_ids.retain(|(cluster, node)| nodes.contains(&(cluster, node.as_str())));
        let mut content = Content {
            resolved: Some(resolved.clone()),
            adjacencies: adjacencies.clone(),
            ..Content::default()
        };
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
