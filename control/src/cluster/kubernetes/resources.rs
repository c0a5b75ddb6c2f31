//! Which resources of an API are read, and how each kind's objects are trimmed.

use super::shape::Shape;
use crate::cluster::Scope;
use crate::cluster::object::Kind;
use crate::policy::api::PolicyKind;

/// Where a resource is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// `/api/v1`.
    Core,
    /// `/apis/GROUP/VERSION`.
    Named(&'static str),
    /// The group that Calico stores its objects in.
    Calico,
    /// The group that RemoteClusterConfigurations are in.
    Rcc,
}

/// A resource that is read.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) group: Group,
    /// Its name in paths and roles.
    pub(super) plural: &'static str,
    /// What is read of its objects.
    pub(super) shape: &'static Shape,
    /// Which of its objects are asked for, in the API's words; empty for all.
    pub(super) fields: &'static str,
}

/// The kinds that tell who an endpoint is: labels that are not known are not
/// labels that are not there.
pub(super) const IDENTITY: [Kind; 3] = [Kind::Namespace, Kind::ServiceAccount, Kind::Pod];

/// The resources that count of a cluster.
pub(super) fn of(scope: Scope) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| match resource.kind {
        Kind::Policy(_) | Kind::RemoteClusterConfiguration => scope == Scope::Local,
        _ => true,
    })
}

/// Whether the cluster counts without a kind that may not be read. Of a remote
/// cluster each kind is worth something by itself. Of the local one all
/// together say what is allowed: without one of them something else would be.
pub(super) fn dispensable(kind: Kind, scope: Scope) -> bool {
    let staged = matches!(
        kind,
        Kind::Policy(
            PolicyKind::StagedNetworkPolicy
                | PolicyKind::StagedGlobalNetworkPolicy
                | PolicyKind::StagedKubernetesNetworkPolicy
        )
    );
    scope == Scope::Remote || staged
}

/// Whether nobody misses a kind that may not be read: the rights in Calico's
/// guide leave it out.
pub(super) fn unasked(kind: Kind, scope: Scope) -> bool {
    scope == Scope::Remote && kind == Kind::FelixConfiguration
}

use Shape::{All, Each, Fields};

const METADATA: Shape = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("labels", All),
    ("annotations", All),
    ("deletionTimestamp", All),
]);

/// Of objects that are their labels.
static LABELED: Shape = Fields(&[("metadata", METADATA)]);

/// Of Calico's objects and policies.
static WHOLE: Shape =
    Fields(&[("apiVersion", All), ("kind", All), ("metadata", METADATA), ("spec", All)]);

static CONTAINER: Shape = Fields(&[("ports", All)]);

static POD: Shape = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("nodeName", All),
            ("hostNetwork", All),
            ("serviceAccountName", All),
            ("serviceAccount", All),
            ("containers", Each(&CONTAINER)),
            ("initContainers", Each(&CONTAINER)),
        ]),
    ),
    ("status", Fields(&[("phase", All), ("podIP", All), ("podIPs", All)])),
]);

static NODE: Shape = Fields(&[("metadata", METADATA), ("status", Fields(&[("addresses", All)]))]);

static SLICE: Shape =
    Fields(&[("metadata", METADATA), ("addressType", All), ("endpoints", All), ("ports", All)]);

/// Of Secrets that say how to reach a cluster.
pub(super) static SECRET: Shape = Fields(&[("metadata", METADATA), ("data", All)]);

const fn resource(
    kind: Kind,
    group: Group,
    plural: &'static str,
    shape: &'static Shape,
) -> Resource {
    Resource { kind, group, plural, shape, fields: "" }
}

const fn calico(kind: PolicyKind, plural: &'static str) -> Resource {
    resource(Kind::Policy(kind), Group::Calico, plural, &WHOLE)
}

static RESOURCES: [Resource; 20] = [
    resource(Kind::Namespace, Group::Core, "namespaces", &LABELED),
    resource(Kind::ServiceAccount, Group::Core, "serviceaccounts", &LABELED),
    Resource {
        kind: Kind::Pod,
        group: Group::Core,
        plural: "pods",
        shape: &POD,
        // Finished pods have given their addresses back.
        fields: "status.phase!=Succeeded,status.phase!=Failed",
    },
    resource(Kind::Node, Group::Core, "nodes", &NODE),
    resource(Kind::IpPool, Group::Calico, "ippools", &WHOLE),
    resource(Kind::IpamBlock, Group::Calico, "ipamblocks", &WHOLE),
    resource(Kind::HostEndpoint, Group::Calico, "hostendpoints", &WHOLE),
    resource(Kind::FelixConfiguration, Group::Calico, "felixconfigurations", &WHOLE),
    resource(Kind::RemoteClusterConfiguration, Group::Rcc, "remoteclusterconfigurations", &WHOLE),
    calico(PolicyKind::Tier, "tiers"),
    calico(PolicyKind::NetworkPolicy, "networkpolicies"),
    calico(PolicyKind::GlobalNetworkPolicy, "globalnetworkpolicies"),
    calico(PolicyKind::StagedNetworkPolicy, "stagednetworkpolicies"),
    calico(PolicyKind::StagedGlobalNetworkPolicy, "stagedglobalnetworkpolicies"),
    calico(PolicyKind::StagedKubernetesNetworkPolicy, "stagedkubernetesnetworkpolicies"),
    calico(PolicyKind::NetworkSet, "networksets"),
    calico(PolicyKind::GlobalNetworkSet, "globalnetworksets"),
    resource(
        Kind::Policy(PolicyKind::KubernetesNetworkPolicy),
        Group::Named("networking.k8s.io/v1"),
        "networkpolicies",
        &WHOLE,
    ),
    resource(
        Kind::Policy(PolicyKind::ClusterNetworkPolicy),
        Group::Named("policy.networking.k8s.io/v1alpha2"),
        "clusternetworkpolicies",
        &WHOLE,
    ),
    resource(
        Kind::Policy(PolicyKind::EndpointSlice),
        Group::Named("discovery.k8s.io/v1"),
        "endpointslices",
        &SLICE,
    ),
];
