//! What rules can see, with the labels that selectors are evaluated over.
//!
//! Labels as Calico has them: a pod's own, the three that Calico adds, its
//! namespace's prefixed `pcns.` and its service account's prefixed `pcsa.`.
//! An address of a remote cluster that the local cluster owns, or that two
//! remote clusters claim, is no identity's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};

use super::Notes;
use super::claims::{Claims, disputed};
use crate::policy::api::{PolicyKind, PolicyObject};
use crate::state::{
    ClusterId, ClusterObjects, HostEndpoint, Identity, IdentityKind, Labels, ObjectName, Pod,
    Severity, World,
};

const NAMESPACE: &str = "projectcalico.org/namespace";
const NAME: &str = "projectcalico.org/name";

/// All identities.
pub(super) fn identities(world: &World) -> Vec<Identity> {
    let mut all = Vec::new();
    add(&mut all, world, &ClusterId::Local, &world.local, &|_| true);
    all.extend(network_sets(&world.local));
    let claims = Claims::new(world);
    let disputed = disputed(remote_addresses(world).map(|(name, _, addr)| (name, addr)));
    let ours = |addr: Addr| claims.owner(addr.to_ip()).is_none() && !disputed.contains(&addr);
    for (name, remote) in &world.remotes {
        let cluster = ClusterId::Remote(name.clone());
        add(&mut all, world, &cluster, &remote.objects, &ours);
    }
    all
}

/// Adds a cluster's pods and host endpoints, with those of their addresses that
/// count.
fn add(
    all: &mut Vec<Identity>,
    world: &World,
    cluster: &ClusterId,
    objects: &ClusterObjects,
    counts: &dyn Fn(Addr) -> bool,
) {
    let mut inherited = Inherited::new(objects);
    let pods = objects
        .pods
        .iter()
        .map(|(name, object)| pod(cluster, &world.node, name, object, &mut inherited));
    let hosts = objects.host_endpoints.iter();
    let hosts = hosts.map(|(name, object)| host(cluster, objects, name, object));
    all.extend(pods.chain(hosts).filter_map(|mut identity| {
        identity.nets.retain(|net| counts(net.addr()));
        (!identity.nets.is_empty()).then_some(identity)
    }));
}

/// Says which remote identities don't count.
pub(super) fn check(world: &World, claims: &Claims, notes: &mut Notes) {
    let disputed = disputed(remote_addresses(world).map(|(name, _, addr)| (name, addr)));
    let mut refused: BTreeMap<(&str, String), (String, usize)> = BTreeMap::new();
    for (cluster, (kind, name), addr) in remote_addresses(world) {
        let reason = if let Some(owner) = claims.owner(addr) {
            format!("lies in local {owner}, which wins")
        } else if disputed.contains(&Addr::from(addr)) {
            "is claimed by another remote cluster too, so neither gets it".to_owned()
        } else {
            continue;
        };
        let first = || (format!("{kind} {name} at {addr}"), 0);
        refused.entry((cluster, reason)).or_insert_with(first).1 += 1;
    }
    for ((cluster, reason), (first, count)) in refused {
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        let (object, at) = first.split_once(" at ").unwrap_or((&first, ""));
        let message = format!(
            "address {at}{more} {reason}: no rule sees labels there; give the clusters ranges of \
             their own"
        );
        let cluster = ClusterId::Remote(cluster.into());
        notes.add(Severity::Error, &cluster, object.to_owned(), &message);
    }
}

/// Says which pods lack labels because their namespace is not there.
pub(super) fn check_namespaces(world: &World, notes: &mut Notes) {
    check_namespaces_of(&ClusterId::Local, &world.local, notes);
    for (name, remote) in &world.remotes {
        check_namespaces_of(&ClusterId::Remote(name.clone()), &remote.objects, notes);
    }
}

fn check_namespaces_of(cluster: &ClusterId, objects: &ClusterObjects, notes: &mut Notes) {
    let mut next = objects.pods.iter().next();
    while let Some((ObjectName { namespace, .. }, _)) = next {
        if !objects.namespaces.contains_key(namespace) {
            notes.add(
                Severity::Warning,
                cluster,
                format!("Namespace {namespace}"),
                without(cluster),
            );
        }
        // The pods are sorted by namespace: on to the first of the next one.
        let after = ObjectName { namespace: format!("{namespace}\0"), name: String::new() };
        next = objects.pods.starting_at(&after).next();
    }
}

/// What follows for the pods of a namespace that is not there.
fn without(cluster: &ClusterId) -> &'static str {
    match cluster {
        ClusterId::Local => {
            "there is no such object, so the namespace's pods inherit no labels from it, and what \
             no policy decides about them is denied; add it"
        }
        ClusterId::Remote(_) => {
            "there is no such object, so the namespace's pods inherit no labels from it; add it"
        }
    }
}

/// An object that claims an address: kind and name.
type Claimant<'a> = (&'static str, &'a dyn std::fmt::Display);

/// Addresses that remote clusters claim: cluster, object, address.
fn remote_addresses(world: &World) -> impl Iterator<Item = (&str, Claimant<'_>, IpAddr)> {
    world.remotes.iter().flat_map(|(cluster, remote)| {
        let pods = remote.objects.pods.iter().flat_map(|(name, pod)| {
            pod.addresses.iter().map(move |addr| (("Pod", name as &dyn std::fmt::Display), *addr))
        });
        let hosts = remote.objects.host_endpoints.iter().flat_map(|(name, host)| {
            let claimant = ("HostEndpoint", name as &dyn std::fmt::Display);
            host.addresses.iter().map(move |addr| (claimant, *addr))
        });
        pods.chain(hosts).map(move |(object, addr)| (&**cluster, object, addr))
    })
}

/// A pod, with all its addresses. `node` is this node's name.
pub(crate) fn pod<'a>(
    cluster: &ClusterId,
    node: &str,
    name: &'a ObjectName,
    pod: &'a Pod,
    inherited: &mut Inherited<'a>,
) -> Identity {
    let local = *cluster == ClusterId::Local && *pod.node == *node;
    Identity {
        cluster: cluster.clone(),
        kind: if local { IdentityKind::LocalWorkload } else { IdentityKind::Workload },
        name: name.clone(),
        node: pod.node.to_string(),
        labels: inherited.pod(name, pod),
        nets: pod.addresses.iter().map(|addr| Prefix::host((*addr).into())).collect(),
        ports: pod.ports.to_vec(),
        profile: inherited.objects.namespaces.contains_key(&name.namespace),
    }
}

/// A host endpoint, with all its addresses.
pub(crate) fn host(
    cluster: &ClusterId,
    objects: &ClusterObjects,
    name: &str,
    host: &HostEndpoint,
) -> Identity {
    Identity {
        cluster: cluster.clone(),
        kind: IdentityKind::Host,
        name: ObjectName { namespace: String::new(), name: name.to_owned() },
        node: host.node.clone(),
        labels: Arc::new(host_labels(objects, host)),
        nets: host.addresses.iter().map(|addr| Prefix::host((*addr).into())).collect(),
        ports: host.ports.clone(),
        profile: false,
    }
}

/// Network sets. They never cross clusters.
pub(crate) fn network_sets(local: &ClusterObjects) -> impl Iterator<Item = Identity> {
    local.policy.0.iter().filter_map(|((kind, name), object)| {
        let PolicyObject::NetworkSet(set) = &**object else { return None };
        // What we have written for Felix is known better from its origin.
        if set.is_ours() {
            return None;
        }
        let mut labels = set.labels.clone();
        if *kind == PolicyKind::NetworkSet {
            labels.insert(NAMESPACE.to_owned(), name.namespace.clone());
            inherit_namespace(local, &name.namespace, &mut labels);
        }
        Some(Identity {
            cluster: ClusterId::Local,
            kind: IdentityKind::NetworkSet,
            name: name.clone(),
            node: String::new(),
            labels: Arc::new(labels),
            nets: set.nets.clone(),
            ports: Vec::new(),
            profile: false,
        })
    })
}

/// What pods' labels depend on besides the namespaces' and accounts': namespace,
/// account and own labels.
type Source<'a> = (&'a str, &'a str, &'a Labels);

/// Labels of pods, each set that is distinct once.
pub(crate) struct Inherited<'a> {
    objects: &'a ClusterObjects,
    known: HashMap<Source<'a>, Arc<Labels>>,
}

impl<'a> Inherited<'a> {
    pub(crate) fn new(objects: &'a ClusterObjects) -> Self {
        Self { objects, known: HashMap::default() }
    }

    fn pod(&mut self, name: &'a ObjectName, pod: &'a Pod) -> Arc<Labels> {
        let objects = self.objects;
        let source = (name.namespace.as_str(), &*pod.service_account, &*pod.labels);
        let labels = self.known.entry(source);
        labels.or_insert_with(|| Arc::new(pod_labels(objects, &name.namespace, pod))).clone()
    }
}

fn pod_labels(objects: &ClusterObjects, namespace: &str, pod: &Pod) -> Labels {
    let mut labels = (*pod.labels).clone();
    // Otherwise a pod could pretend to be in another namespace.
    labels.retain(|key, _| !key.starts_with("pcns.") && !key.starts_with("pcsa."));
    labels.insert(NAMESPACE.to_owned(), namespace.to_owned());
    labels.insert("projectcalico.org/orchestrator".to_owned(), "k8s".to_owned());
    inherit_namespace(objects, namespace, &mut labels);
    if pod.service_account.is_empty() {
        labels.remove("projectcalico.org/serviceaccount");
    } else {
        let account = pod.service_account.to_string();
        labels.insert("projectcalico.org/serviceaccount".to_owned(), account.clone());
        let name = ObjectName { namespace: namespace.to_owned(), name: account };
        inherit("pcsa.", objects.service_accounts.get(&name), &name.name, &mut labels);
    }
    labels
}

/// Its own labels, then those of its profiles, first profile first.
fn host_labels(objects: &ClusterObjects, host: &HostEndpoint) -> Labels {
    let mut labels = host.labels.clone();
    for profile in &host.profiles {
        let account = profile.strip_prefix("ksa.").and_then(|rest| rest.split_once('.'));
        if let Some(namespace) = profile.strip_prefix("kns.") {
            inherit_namespace(objects, namespace, &mut labels);
        } else if let Some((namespace, name)) = account {
            let name = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
            inherit("pcsa.", objects.service_accounts.get(&name), &name.name, &mut labels);
        }
    }
    labels
}

fn inherit_namespace(objects: &ClusterObjects, name: &str, labels: &mut Labels) {
    inherit("pcns.", objects.namespaces.get(name), name, labels);
}

/// Adds the labels of a namespace or service account, if there is one, and its
/// name; labels that are there already win.
fn inherit(prefix: &str, from: Option<&Arc<Labels>>, name: &str, labels: &mut Labels) {
    let Some(from) = from else { return };
    labels.entry(format!("{prefix}{NAME}")).or_insert_with(|| name.to_owned());
    for (key, value) in &**from {
        labels.entry(format!("{prefix}{key}")).or_insert_with(|| value.clone());
    }
}
