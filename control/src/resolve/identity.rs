//! What rules can see, with the labels that selectors are evaluated over.
//!
//! Labels as Calico has them: a pod's own, the three that Calico adds, its
//! namespace's prefixed `pcns.` and its service account's prefixed `pcsa.`.
//! An address of a remote cluster that the local cluster owns, or that two
//! remote clusters claim, is no identity's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tieline_dataplane::addr::{Addr, Prefix};

use super::Notes;
use super::claims::{Claims, disputed};
use crate::policy::api::{PolicyKind, PolicyObject};
use crate::state::{
    ClusterId, ClusterObjects, Identity, IdentityKind, Labels, ObjectName, Pod, Severity, World,
};

const NAMESPACE: &str = "projectcalico.org/namespace";
const NAME: &str = "projectcalico.org/name";

/// All identities.
pub(super) fn identities(world: &World) -> Vec<Identity> {
    let mut all = Vec::new();
    let everything = |_: IpAddr| true;
    add_pods(&mut all, world, &ClusterId::Local, &world.local, &everything);
    add_hosts(&mut all, &ClusterId::Local, &world.local, &everything);
    add_network_sets(&mut all, &world.local);
    let claims = Claims::new(world);
    let disputed = disputed(remote_addresses(world).map(|(name, _, addr)| (name, addr)));
    let ours = |addr: IpAddr| claims.owner(addr).is_none() && !disputed.contains(&Addr::from(addr));
    for (name, remote) in &world.remotes {
        let cluster = ClusterId::Remote(name.clone());
        add_pods(&mut all, world, &cluster, &remote.objects, &ours);
        add_hosts(&mut all, &cluster, &remote.objects, &ours);
    }
    all
}

/// Says which remote identities don't count, and which labels are missing.
pub(super) fn check(world: &World, claims: &Claims, notes: &mut Notes) {
    let disputed = disputed(remote_addresses(world).map(|(name, _, addr)| (name, addr)));
    let mut refused: BTreeMap<(&str, String), (String, usize)> = BTreeMap::new();
    for (cluster, object, addr) in remote_addresses(world) {
        let reason = if let Some(owner) = claims.owner(addr) {
            format!("lies in local {owner}, which wins")
        } else if disputed.contains(&Addr::from(addr)) {
            "is claimed by another remote cluster too, so neither gets it".to_owned()
        } else {
            continue;
        };
        let first = || (format!("{object} at {addr}"), 0);
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
    check_namespaces(&ClusterId::Local, &world.local, notes);
    for (name, remote) in &world.remotes {
        check_namespaces(&ClusterId::Remote(name.clone()), &remote.objects, notes);
    }
}

fn check_namespaces(cluster: &ClusterId, objects: &ClusterObjects, notes: &mut Notes) {
    let used: BTreeSet<&str> = objects.pods.keys().map(|name| name.namespace.as_str()).collect();
    for namespace in used.into_iter().filter(|name| !objects.namespaces.contains_key(*name)) {
        notes.add(
            Severity::Warning,
            cluster,
            format!("Namespace {namespace}"),
            "there is no such object, so the namespace's pods inherit no labels from it; add it",
        );
    }
}

/// Addresses that remote clusters claim: cluster, object, address.
fn remote_addresses(world: &World) -> impl Iterator<Item = (&str, String, IpAddr)> {
    world.remotes.iter().flat_map(|(cluster, remote)| {
        let pods = remote.objects.pods.iter().flat_map(|(name, pod)| {
            pod.addresses.iter().map(move |addr| (format!("Pod {name}"), *addr))
        });
        let hosts = remote.objects.host_endpoints.iter().flat_map(|(name, host)| {
            host.addresses.iter().map(move |addr| (format!("HostEndpoint {name}"), *addr))
        });
        pods.chain(hosts).map(move |(object, addr)| (&**cluster, object, addr))
    })
}

fn add_pods(
    all: &mut Vec<Identity>,
    world: &World,
    cluster: &ClusterId,
    objects: &ClusterObjects,
    counts: &dyn Fn(IpAddr) -> bool,
) {
    let inherited = Inherited::new(objects);
    for (name, pod) in &objects.pods {
        let addresses = pod.addresses.iter().copied().filter(|addr| counts(*addr));
        let nets: Vec<Prefix> = addresses.map(|addr| Prefix::host(addr.into())).collect();
        if nets.is_empty() {
            continue;
        }
        let local = *cluster == ClusterId::Local && pod.node == world.node;
        all.push(Identity {
            cluster: cluster.clone(),
            kind: if local { IdentityKind::LocalWorkload } else { IdentityKind::Workload },
            name: name.clone(),
            node: pod.node.clone(),
            labels: Arc::new(inherited.pod(name, pod)),
            nets,
            ports: pod.ports.clone(),
        });
    }
}

fn add_hosts(
    all: &mut Vec<Identity>,
    cluster: &ClusterId,
    objects: &ClusterObjects,
    counts: &dyn Fn(IpAddr) -> bool,
) {
    for (name, host) in &objects.host_endpoints {
        let addresses = host.addresses.iter().copied().filter(|addr| counts(*addr));
        let nets: Vec<Prefix> = addresses.map(|addr| Prefix::host(addr.into())).collect();
        if nets.is_empty() {
            continue;
        }
        all.push(Identity {
            cluster: cluster.clone(),
            kind: IdentityKind::Host,
            name: ObjectName { namespace: String::new(), name: name.clone() },
            node: host.node.clone(),
            labels: Arc::new(host.labels.clone()),
            nets,
            ports: host.ports.clone(),
        });
    }
}

/// Network sets never cross clusters.
fn add_network_sets(all: &mut Vec<Identity>, local: &ClusterObjects) {
    let inherited = Inherited::new(local);
    for ((kind, name), object) in &local.policy.0 {
        let set = match &**object {
            PolicyObject::NetworkSet(set) => set,
            #[allow(unreachable_patterns, reason = "network sets may be the only objects")]
            _ => continue,
        };
        // What we have written for Felix is known better from its origin.
        if set.labels.contains_key(crate::mirror::OWNER) {
            continue;
        }
        let mut labels = set.labels.clone();
        if *kind == PolicyKind::NetworkSet {
            labels.insert(NAMESPACE.to_owned(), name.namespace.clone());
            inherited.namespace(&name.namespace, &mut labels);
        }
        all.push(Identity {
            cluster: ClusterId::Local,
            kind: IdentityKind::NetworkSet,
            name: name.clone(),
            node: String::new(),
            labels: Arc::new(labels),
            nets: set.nets.clone(),
            ports: Vec::new(),
        });
    }
}

/// Labels that namespaces and service accounts hand down, prefixed.
struct Inherited<'a> {
    namespaces: BTreeMap<&'a str, Labels>,
    accounts: BTreeMap<&'a ObjectName, Labels>,
}

impl<'a> Inherited<'a> {
    fn new(objects: &'a ClusterObjects) -> Self {
        let namespaces = objects.namespaces.iter();
        let accounts = objects.service_accounts.iter();
        Self {
            namespaces: namespaces
                .map(|(name, labels)| (name.as_str(), prefixed("pcns.", labels, name)))
                .collect(),
            accounts: accounts
                .map(|(name, labels)| (name, prefixed("pcsa.", labels, &name.name)))
                .collect(),
        }
    }

    fn pod(&self, name: &ObjectName, pod: &Pod) -> Labels {
        let mut labels = pod.labels.clone();
        // Otherwise a pod could pretend to be in another namespace.
        labels.retain(|key, _| !key.starts_with("pcns.") && !key.starts_with("pcsa."));
        labels.insert(NAMESPACE.to_owned(), name.namespace.clone());
        labels.insert("projectcalico.org/orchestrator".to_owned(), "k8s".to_owned());
        self.namespace(&name.namespace, &mut labels);
        if pod.service_account.is_empty() {
            labels.remove("projectcalico.org/serviceaccount");
        } else {
            let account = pod.service_account.clone();
            labels.insert("projectcalico.org/serviceaccount".to_owned(), account.clone());
            let account = ObjectName { namespace: name.namespace.clone(), name: account };
            inherit(self.accounts.get(&account), &mut labels);
        }
        labels
    }

    fn namespace(&self, name: &str, labels: &mut Labels) {
        inherit(self.namespaces.get(name), labels);
    }
}

fn inherit(from: Option<&Labels>, labels: &mut Labels) {
    for (key, value) in from.into_iter().flatten() {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
}

fn prefixed(prefix: &str, labels: &Labels, name: &str) -> Labels {
    let mut prefixed: Labels =
        labels.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone())).collect();
    prefixed.insert(format!("{prefix}{NAME}"), name.to_owned());
    prefixed
}
