//! What is told about clusters.

use std::collections::BTreeMap;

use serde::Serialize;

use super::remote::RemoteState;
use crate::cluster::object::Kind;
use crate::state::ClusterObjects;

/// The clusters, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FederationStatus {
    /// The local cluster.
    pub local: ClusterStatus,
    /// Remote clusters by RemoteClusterConfiguration.
    pub remotes: BTreeMap<String, RemoteStatus>,
}

/// A remote cluster, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteStatus {
    /// The cluster.
    #[serde(flatten)]
    pub cluster: ClusterStatus,
    /// Whether its routes count.
    pub overlay: bool,
    /// Why they do or don't.
    pub overlay_reason: String,
}

/// A cluster, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// Where it is in its life.
    pub state: RemoteState,
    /// How long it has been there, in milliseconds.
    pub state_for_ms: u64,
    /// What is wrong, and the remedy.
    pub error: Option<String>,
    /// Where its objects are read from.
    pub origin: String,
    /// UID of its `kube-system` namespace, when known.
    pub uid: Option<String>,
    /// Group and version in which Calico stores its objects, when known.
    pub calico_group: Option<String>,
    /// How many objects of each kind are known.
    pub objects: BTreeMap<String, usize>,
    /// How many objects there are of kinds that nothing reads.
    pub ignored: BTreeMap<String, usize>,
    /// Time since its source last told anything, in milliseconds.
    pub last_event_ms: Option<u64>,
    /// How often contact was lost since the start.
    pub contact_losses: u64,
}

/// How many objects of each kind there are; kinds without any are left out.
pub(super) fn count(objects: &ClusterObjects) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> = [
        (Kind::Namespace, objects.namespaces.len()),
        (Kind::ServiceAccount, objects.service_accounts.len()),
        (Kind::Pod, objects.pods.len()),
        (Kind::Node, objects.nodes.len()),
        (Kind::IpPool, objects.pools.len()),
        (Kind::IpamBlock, objects.blocks.len()),
        (Kind::HostEndpoint, objects.host_endpoints.len()),
        (Kind::FelixConfiguration, objects.felix.len()),
        (Kind::RemoteClusterConfiguration, objects.remotes.len()),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .map(|(kind, count)| (kind.name().to_owned(), count))
    .collect();
    for (kind, _) in objects.policy.0.keys() {
        *counts.entry(Kind::Policy(*kind).name().to_owned()).or_default() += 1;
    }
    counts
}
