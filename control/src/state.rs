//! What is known of all clusters at one moment.
//!
//! A [`World`] is plain data: the local cluster's objects, each remote
//! cluster's objects as far as its life cycle lets them count, and who we are.
//! Everything downstream ([`crate::resolve`], [`crate::policy`]) is a pure
//! function of it. Objects are trimmed to the fields that are used.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;
use tieline_dataplane::wire::{MacAddr, Vni};

use crate::map::Map;
use crate::policy::api::PolicyObjects;

/// Labels by key; sorted, so that equal sets are equal values.
pub type Labels = BTreeMap<String, String>;

/// Which cluster an object is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterId {
    /// The cluster that this node belongs to.
    Local,
    /// The cluster behind the RemoteClusterConfiguration of this name.
    Remote(Arc<str>),
}

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Remote(name) => f.write_str(name),
        }
    }
}

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectName {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name within the namespace.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A pod that has addresses and a node and is not on the host's network. What
/// many pods have alike may be one value that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's own labels.
    pub labels: Arc<Labels>,
    /// `spec.nodeName`.
    pub node: Arc<str>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// Both families.
    pub addresses: Box<[IpAddr]>,
    /// Container and init container ports with a name.
    pub ports: Arc<[NamedPort]>,
}

/// A port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// `ports[].name`.
    pub name: String,
    /// IP protocol number: 6, 17 or 132.
    pub protocol: u8,
    /// Port number.
    pub port: u16,
}

/// A Calico HostEndpoint, as a peer of rules.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HostEndpoint {
    /// Its labels (in the v1 storage group: from the metadata annotation).
    pub labels: Labels,
    /// `spec.node`.
    pub node: String,
    /// `spec.expectedIPs`.
    pub addresses: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<NamedPort>,
    /// `spec.profiles`, whose labels it inherits.
    pub profiles: Vec<String>,
}

/// A node: its underlay addresses and VTEPs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// `projectcalico.org/IPv4Address` with its prefix length.
    pub ipv4: Option<(IpAddr, u8)>,
    /// `projectcalico.org/IPv6Address` with its prefix length.
    pub ipv6: Option<(IpAddr, u8)>,
    /// `projectcalico.org/IPv4VXLANTunnelAddr`.
    pub tunnel_v4: Option<IpAddr>,
    /// `projectcalico.org/IPv6VXLANTunnelAddr`.
    pub tunnel_v6: Option<IpAddr>,
    /// `projectcalico.org/VXLANTunnelMACAddr`; normally absent.
    pub mac_v4: Option<MacAddr>,
    /// `projectcalico.org/VXLANTunnelMACAddrV6`; normally absent.
    pub mac_v6: Option<MacAddr>,
    /// Kubernetes' InternalIP and ExternalIP addresses, internal ones first.
    pub addresses: Vec<IpAddr>,
}

/// `spec.vxlanMode` and `spec.ipipMode` of an IPPool, as one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Encapsulation {
    /// Neither VXLAN nor IPIP.
    #[default]
    None,
    /// `vxlanMode: Always`.
    Vxlan,
    /// `vxlanMode: CrossSubnet`.
    VxlanCrossSubnet,
    /// Any IPIP mode.
    Ipip,
}

/// A Calico IPPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPool {
    /// `spec.cidr`.
    pub cidr: Prefix,
    /// From `spec.vxlanMode` and `spec.ipipMode`.
    pub encapsulation: Encapsulation,
    /// `spec.natOutgoing`.
    pub nat_outgoing: bool,
    /// `spec.disabled`.
    pub disabled: bool,
}

/// A Calico IPAMBlock: which node owns which addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpamBlock {
    /// `spec.cidr`.
    pub cidr: Prefix,
    /// The node of `spec.affinity: host:NODE`; `None` for no or another kind of
    /// affinity.
    pub affinity: Option<String>,
    /// Allocated addresses and the node that uses each
    /// (`attributes[].secondary.node`).
    pub allocations: Vec<(IpAddr, String)>,
    /// `spec.deleted`.
    pub deleted: bool,
}

/// What counts for us of the FelixConfigurations `default` and `node.NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FelixConfiguration {
    /// `spec.vxlanVNI`.
    pub vni: Option<Vni>,
    /// `spec.vxlanPort`.
    pub port: Option<u16>,
    /// `spec.vxlanMTU`.
    pub mtu_v4: Option<u32>,
    /// `spec.vxlanMTUV6`.
    pub mtu_v6: Option<u32>,
    /// `spec.routeSource`.
    pub route_source: Option<RouteSource>,
    /// `spec.xdpEnabled`.
    pub xdp_enabled: Option<bool>,
}

/// FelixConfiguration's `routeSource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RouteSource {
    /// Routes from IPAM blocks (Calico's default).
    #[default]
    CalicoIpam,
    /// Routes from the endpoints' own addresses.
    WorkloadIps,
}

/// A RemoteClusterConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteClusterConfiguration {
    /// `spec.syncOptions.overlayRoutingMode` is `Enabled`.
    pub overlay: bool,
    /// How the cluster is reached; unused where clusters are read from files.
    pub access: RemoteAccess,
}

/// How a RemoteClusterConfiguration says that its cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAccess {
    /// It does not say.
    Unsaid,
    /// `spec.clusterAccessSecret`.
    Secret(ObjectName),
    /// By its own fields, with `spec.datastoreType: kubernetes`.
    Inline(Arc<InlineAccess>),
    /// `spec.datastoreType: etcdv3`.
    Etcd,
}

/// A RemoteClusterConfiguration's own fields for access to a Kubernetes API;
/// empty ones count as missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InlineAccess {
    /// `spec.kubeconfig`, a path.
    pub kubeconfig: Option<String>,
    /// `spec.kubeconfigInline`; goes before all others.
    pub kubeconfig_inline: Option<Sensitive>,
    /// `spec.k8sAPIEndpoint`, a URL.
    pub endpoint: Option<String>,
    /// `spec.k8sAPIToken`.
    pub token: Option<Sensitive>,
    /// `spec.k8sCAFile`, a path.
    pub ca_file: Option<String>,
    /// `spec.k8sCertFile`, a path.
    pub cert_file: Option<String>,
    /// `spec.k8sKeyFile`, a path.
    pub key_file: Option<String>,
    /// `spec.k8sInsecureSkipTLSVerify`.
    pub insecure: bool,
}

/// A text that is not for logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Sensitive(pub String);

impl std::fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

/// The objects of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterObjects {
    /// Identity of the cluster: UID of its `kube-system` namespace, when known.
    pub uid: Option<String>,
    /// Namespaces' labels.
    pub namespaces: Map<String, Arc<Labels>>,
    /// Service accounts' labels.
    pub service_accounts: Map<ObjectName, Arc<Labels>>,
    /// Pods that have an identity.
    pub pods: Map<ObjectName, Arc<Pod>>,
    /// Host endpoints.
    pub host_endpoints: Map<String, Arc<HostEndpoint>>,
    /// Nodes.
    pub nodes: Map<String, Arc<Node>>,
    /// Address pools.
    pub pools: Map<String, Arc<IpPool>>,
    /// Address blocks.
    pub blocks: Map<String, Arc<IpamBlock>>,
    /// Felix's configuration, by object name.
    pub felix: Map<String, Arc<FelixConfiguration>>,
    /// Remote clusters that this cluster names.
    pub remotes: Map<String, Arc<RemoteClusterConfiguration>>,
    /// Policies, tiers, network sets and what else only policy reads.
    pub policy: PolicyObjects,
}

impl ClusterObjects {
    /// Whether pods may have addresses of a pool of the cluster. A disabled pool
    /// has some while it has blocks; others are there to keep addresses of
    /// elsewhere from being masqueraded.
    pub fn uses(&self, pool: &IpPool) -> bool {
        let within = |block: &IpamBlock| {
            pool.cidr.is_v4() == block.cidr.is_v4()
                && pool.cidr.len128() <= block.cidr.len128()
                && pool.cidr.contains(block.cidr.addr())
        };
        !pool.disabled || self.blocks.values().any(|block| !block.deleted && within(block))
    }
}

/// A remote cluster that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteCluster {
    /// Whether its routes count as well as its identities.
    pub overlay: bool,
    /// Its objects as last completely known.
    pub objects: Arc<ClusterObjects>,
}

/// Everything that the node's tables follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Name of this node in the local cluster.
    pub node: String,
    /// Whether VTEPs of the local cluster's other nodes count too
    /// (`overlay.scope = "all"`).
    pub include_local_vteps: bool,
    /// The local cluster.
    pub local: Arc<ClusterObjects>,
    /// Remote clusters, by RemoteClusterConfiguration name.
    pub remotes: BTreeMap<Arc<str>, RemoteCluster>,
}

/// How bad a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Warning,
    /// Something that was asked for is not in force.
    Error,
}

/// Something about the state that the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// How bad it is.
    pub severity: Severity,
    /// The cluster that the object is of.
    pub cluster: ClusterId,
    /// Kind and name, as in `IPPool pool-a`.
    pub object: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

/// What rules can see: a pod, a host endpoint or a network set, with the
/// labels that selectors are evaluated over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// What kind of object it is.
    pub kind: IdentityKind,
    /// Its name.
    pub name: ObjectName,
    /// The node that it is on; empty for network sets.
    pub node: String,
    /// Own labels, then those that it inherits from its namespace (`pcns.`) and
    /// service account (`pcsa.`); own labels win.
    pub labels: Arc<Labels>,
    /// Its addresses; for network sets their nets.
    pub nets: Vec<Prefix>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// Whether the profile of its namespace is there, which allows what no
    /// policy decides about it: of pods, whether the Namespace object is.
    pub profile: bool,
}

/// Kinds of [`Identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentityKind {
    /// A pod of this node: policies' main selectors choose among these.
    LocalWorkload,
    /// A pod of another node or cluster.
    Workload,
    /// A host endpoint.
    Host,
    /// A NetworkSet or GlobalNetworkSet (of the local cluster only).
    NetworkSet,
}
