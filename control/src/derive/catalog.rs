//! Who has which address, from one world to the next.
//!
//! The differences between two worlds' pods, host endpoints, namespaces and
//! service accounts become claims to addresses that are given up and claims
//! that are made. The rules are those of [`crate::resolve::identities`]: an
//! address of a remote cluster counts unless the local cluster owns it or
//! another remote one claims it too. Claims that don't count are remembered
//! here, those that do are the population.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tieline_dataplane::addr::{Addr, Prefix};

use crate::map::Map;
use crate::policy::api::{PolicyKind, PolicyObject, PolicyObjects};
use crate::policy::compile::{Population, View, ViewId};
use crate::resolve::claims::Claims;
use crate::resolve::identity::{self, Inherited};
use crate::state::{
    ClusterId, ClusterObjects, HostEndpoint, Identity, Labels, ObjectName, Pod, World,
};

/// Claims to addresses that don't count.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    refused: BTreeMap<Addr, Vec<ViewId>>,
}

impl Catalog {
    /// Whether there are any.
    pub(super) fn refuses(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Brings the population from one world to the next. `claims` are those of
    /// the new world.
    pub(super) fn follow(
        &mut self,
        old: Option<&World>,
        new: &World,
        claims: &Claims,
        population: &mut Population,
    ) {
        let nothing = Arc::new(ClusterObjects::default());
        let local = old.map_or(&nothing, |old| &old.local);
        let mut clusters = vec![(ClusterId::Local, local, &new.local)];
        let old_remotes = old.into_iter().flat_map(|old| old.remotes.keys());
        for name in old_remotes.chain(new.remotes.keys()).collect::<BTreeSet<_>>() {
            let before = old.and_then(|old| old.remotes.get(name));
            let before = before.map_or(&nothing, |remote| &remote.objects);
            let after = new.remotes.get(name).map_or(&nothing, |remote| &remote.objects);
            clusters.push((ClusterId::Remote(name.clone()), before, after));
        }
        for (cluster, before, after) in &clusters {
            if !Arc::ptr_eq(before, after) {
                self.follow_cluster(cluster, &new.node, [before, after], claims, population);
            }
        }
        if old.is_none() || !same_sets(local, &new.local) {
            let sets = identity::network_sets(&new.local).flat_map(|set| {
                let view = View::of(&set);
                set.nets.into_iter().map(move |net| (net, view.clone()))
            });
            population.set_nets(sets.collect());
        }
    }

    fn follow_cluster(
        &mut self,
        cluster: &ClusterId,
        node: &str,
        objects: [&ClusterObjects; 2],
        claims: &Claims,
        population: &mut Population,
    ) {
        let mut inherited = objects.map(Inherited::new);
        for (name, pods) in touched_pods(objects) {
            let mut identities = pods.into_iter().zip(&mut inherited).map(|(pod, inherited)| {
                pod.map(|pod| identity::pod(cluster, node, name, pod, inherited))
            });
            let (before, after) = (identities.next().flatten(), identities.next().flatten());
            drop(identities);
            self.replace(before, after, claims, population);
        }
        let [before, after] = objects;
        for (name, [old, new]) in touched_hosts(objects) {
            let host = |objects, host: Option<&HostEndpoint>| {
                host.map(|it| identity::host(cluster, objects, name, it))
            };
            self.replace(host(before, old), host(after, new), claims, population);
        }
    }

    /// One identity takes the place of another.
    fn replace(
        &mut self,
        old: Option<Identity>,
        new: Option<Identity>,
        claims: &Claims,
        population: &mut Population,
    ) {
        let views = [&old, &new].map(|identity| identity.as_ref().map(View::of));
        let nets = |identity: Option<Identity>| identity.map(|it| it.nets).unwrap_or_default();
        let (old, new) = (nets(old), nets(new));
        let [before, after] = views;
        if before == after && old == new {
            return;
        }
        let id = before.as_ref().and_then(|view| population.find(view));
        let all = || old.iter().chain(&new).map(|net| net.addr());
        for (at, addr) in all().enumerate() {
            if all().take(at).any(|earlier| earlier == addr) {
                continue;
            }
            let claims_of = |nets: &[Prefix]| nets.iter().filter(|net| net.addr() == addr).count();
            let mut claimants = self.claimants(addr, population);
            for _ in 0..claims_of(&old) {
                if let Some(at) = claimants.iter().position(|claimant| Some(*claimant) == id) {
                    population.release(claimants.swap_remove(at));
                }
            }
            for view in after.iter().flat_map(|view| std::iter::repeat_n(view, claims_of(&new))) {
                claimants.push(population.take(view));
            }
            self.judge(addr, claimants, claims, population);
        }
    }

    /// Everyone who claims an address.
    fn claimants(&self, addr: Addr, population: &Population) -> Vec<ViewId> {
        let mut all = population.owners(addr).to_vec();
        if let Some(refused) = self.refused.get(&addr) {
            all.extend(refused);
        }
        all
    }

    /// Says which of the claims to an address count.
    fn judge(
        &mut self,
        addr: Addr,
        claimants: Vec<ViewId>,
        claims: &Claims,
        population: &mut Population,
    ) {
        let remotes: BTreeSet<&ClusterId> = claimants
            .iter()
            .filter_map(|id| population.view(*id))
            .map(|(view, _)| &view.cluster)
            .filter(|cluster| **cluster != ClusterId::Local)
            .collect();
        let remote_counts =
            remotes.is_empty() || remotes.len() == 1 && claims.owner(addr.to_ip()).is_none();
        let is_local = |id: &ViewId| {
            population.view(*id).is_some_and(|(view, _)| view.cluster == ClusterId::Local)
        };
        let (count, refused) = claimants.into_iter().partition(|id| remote_counts || is_local(id));
        population.set_owners(addr, count);
        if refused.is_empty() {
            self.refused.remove(&addr);
        } else {
            self.refused.insert(addr, refused);
        }
    }

    /// Judges all claims of remote clusters anew.
    pub(super) fn judge_all(&mut self, claims: &Claims, population: &mut Population) {
        let all = population.addresses().chain(self.refused.keys().copied());
        for addr in all.collect::<BTreeSet<_>>() {
            let claimants = self.claimants(addr, population);
            self.judge(addr, claimants, claims, population);
        }
    }
}

/// Pods that differ, or inherit labels that do: as they were and as they are.
fn touched_pods([old, new]: [&ClusterObjects; 2]) -> BTreeMap<&ObjectName, [Option<&Pod>; 2]> {
    let mut touched: BTreeMap<&ObjectName, [Option<&Pod>; 2]> = BTreeMap::new();
    for (name, before, after) in old.pods.diff(&new.pods) {
        touched.insert(name, [before.map(|pod| &**pod), after.map(|pod| &**pod)]);
    }
    let mut touch = |namespace: &str, account: Option<&str>| {
        for (side, objects) in [old, new].into_iter().enumerate() {
            for (name, pod) in in_namespace(&objects.pods, namespace) {
                if account.is_none_or(|account| *pod.service_account == *account) {
                    touched.entry(name).or_default()[side] = Some(pod);
                }
            }
        }
    };
    for (namespace, ..) in old.namespaces.diff(&new.namespaces) {
        touch(namespace, None);
    }
    for (account, ..) in old.service_accounts.diff(&new.service_accounts) {
        touch(&account.namespace, Some(&account.name));
    }
    touched
}

/// Host endpoints that differ, or may inherit labels that do: as they were and as
/// they are.
fn touched_hosts(
    [old, new]: [&ClusterObjects; 2],
) -> BTreeMap<&String, [Option<&HostEndpoint>; 2]> {
    let mut touched: BTreeMap<&String, [Option<&HostEndpoint>; 2]> = BTreeMap::new();
    for (name, before, after) in old.host_endpoints.diff(&new.host_endpoints) {
        touched.insert(name, [before.map(|host| &**host), after.map(|host| &**host)]);
    }
    let same = old.namespaces.is_same(&new.namespaces)
        && old.service_accounts.is_same(&new.service_accounts);
    for (side, objects) in [old, new].into_iter().enumerate().filter(|_| !same) {
        for (name, host) in objects.host_endpoints.iter().filter(|(_, it)| !it.profiles.is_empty())
        {
            touched.entry(name).or_default()[side] = Some(host);
        }
    }
    touched
}

/// The pods of a namespace.
fn in_namespace<'o>(
    pods: &'o Map<ObjectName, Arc<Pod>>,
    namespace: &str,
) -> impl Iterator<Item = (&'o ObjectName, &'o Pod)> {
    let first = ObjectName { namespace: namespace.to_owned(), name: String::new() };
    let namespace = namespace.to_owned();
    let from = pods.starting_at(&first).map(|(name, pod)| (name, &**pod));
    from.take_while(move |(name, _)| name.namespace == namespace)
}

/// Whether network sets, and what they inherit from, are the same.
fn same_sets(old: &ClusterObjects, new: &ClusterObjects) -> bool {
    let is_set =
        |kind: PolicyKind| matches!(kind, PolicyKind::NetworkSet | PolicyKind::GlobalNetworkSet);
    let in_namespace = |objects: &PolicyObjects, namespace: &str| {
        let first = ObjectName { namespace: namespace.to_owned(), name: String::new() };
        let next = objects.0.starting_at(&(PolicyKind::NetworkSet, first)).next();
        next.is_some_and(|((kind, name), _)| {
            *kind == PolicyKind::NetworkSet && name.namespace == namespace
        })
    };
    let counts = |set: Option<&Arc<PolicyObject>>| set.is_some_and(|set| !set.is_ours());
    let sets = old
        .policy
        .0
        .diff(&new.policy.0)
        .all(|((kind, _), before, after)| !is_set(*kind) || !counts(before) && !counts(after));
    sets && old
        .namespaces
        .diff(&new.namespaces)
        .all(|(name, _, _): (&String, _, Option<&Arc<Labels>>)| !in_namespace(&new.policy, name))
}
