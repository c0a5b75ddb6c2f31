//! The kinds of objects that count, and how each becomes a type of
//! [`crate::state`].
//!
//! Works on one object as the API stores it, whatever source it came from.
//! What is not used is dropped here, so nothing downstream pays for it.

use std::sync::Arc;

use serde_json::Value;
use tieline_dataplane::wire::Vni;

use super::field::{FieldError, Reader, address};
use super::node::node;
use super::pod::{named_ports, pod};
use crate::policy::api::{self, PolicyKind, PolicyObject};
use crate::state::{
    ClusterObjects, Encapsulation, FelixConfiguration, HostEndpoint, InlineAccess, IpPool,
    IpamBlock, Labels, Node, ObjectName, Pod, RemoteAccess, RemoteClusterConfiguration,
    RouteSource, Sensitive,
};

/// A kind of object that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Kubernetes `Namespace`.
    Namespace,
    /// Kubernetes `ServiceAccount`.
    ServiceAccount,
    /// Kubernetes `Pod`.
    Pod,
    /// Kubernetes `Node`.
    Node,
    /// Calico `IPPool`.
    IpPool,
    /// Calico `IPAMBlock`.
    IpamBlock,
    /// Calico `HostEndpoint`.
    HostEndpoint,
    /// Calico `FelixConfiguration`.
    FelixConfiguration,
    /// Calico `RemoteClusterConfiguration`.
    RemoteClusterConfiguration,
    /// A kind that only policy reads.
    Policy(PolicyKind),
}

impl Kind {
    /// The kind of an object, or `None` when nothing reads it.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let calico = matches!(api_version, "projectcalico.org/v3" | "crd.projectcalico.org/v1");
        let own = match kind {
            "Namespace" if api_version == "v1" => Some(Self::Namespace),
            "ServiceAccount" if api_version == "v1" => Some(Self::ServiceAccount),
            "Pod" if api_version == "v1" => Some(Self::Pod),
            "Node" if api_version == "v1" => Some(Self::Node),
            "IPPool" if calico => Some(Self::IpPool),
            "IPAMBlock" if calico => Some(Self::IpamBlock),
            "HostEndpoint" if calico => Some(Self::HostEndpoint),
            "FelixConfiguration" if calico => Some(Self::FelixConfiguration),
            "RemoteClusterConfiguration" if calico => Some(Self::RemoteClusterConfiguration),
            _ => None,
        };
        own.or_else(|| PolicyKind::of(api_version, kind).map(Self::Policy))
    }

    /// The kind's name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::IpPool => "IPPool",
            Self::IpamBlock => "IPAMBlock",
            Self::HostEndpoint => "HostEndpoint",
            Self::FelixConfiguration => "FelixConfiguration",
            Self::RemoteClusterConfiguration => "RemoteClusterConfiguration",
            Self::Policy(PolicyKind::Tier) => "Tier",
            Self::Policy(PolicyKind::NetworkPolicy) => "NetworkPolicy",
            Self::Policy(PolicyKind::GlobalNetworkPolicy) => "GlobalNetworkPolicy",
            Self::Policy(PolicyKind::StagedNetworkPolicy) => "StagedNetworkPolicy",
            Self::Policy(PolicyKind::StagedGlobalNetworkPolicy) => "StagedGlobalNetworkPolicy",
            Self::Policy(PolicyKind::StagedKubernetesNetworkPolicy) => {
                "StagedKubernetesNetworkPolicy"
            }
            Self::Policy(PolicyKind::NetworkSet) => "NetworkSet",
            Self::Policy(PolicyKind::GlobalNetworkSet) => "GlobalNetworkSet",
            Self::Policy(PolicyKind::KubernetesNetworkPolicy) => "Kubernetes NetworkPolicy",
            Self::Policy(PolicyKind::ClusterNetworkPolicy) => "ClusterNetworkPolicy",
            Self::Policy(PolicyKind::EndpointSlice) => "EndpointSlice",
        }
    }

    /// Whether its objects live in namespaces, and one without belongs to
    /// `default`. Policy kinds decide by themselves.
    fn namespaced(self) -> bool {
        matches!(self, Self::ServiceAccount | Self::Pod)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An object, trimmed.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Labels, and the UID when this is `kube-system`.
    Namespace(Arc<Labels>, Option<String>),
    /// Labels.
    ServiceAccount(Arc<Labels>),
    /// A pod that has an identity.
    Pod(Arc<Pod>),
    /// A node.
    Node(Arc<Node>),
    /// An address pool.
    IpPool(Arc<IpPool>),
    /// An address block.
    IpamBlock(Arc<IpamBlock>),
    /// A host endpoint.
    HostEndpoint(Arc<HostEndpoint>),
    /// A Felix configuration.
    FelixConfiguration(Arc<FelixConfiguration>),
    /// A remote cluster.
    RemoteClusterConfiguration(Arc<RemoteClusterConfiguration>),
    /// What policy reads.
    Policy(Arc<PolicyObject>),
}

/// What has become of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Its name; for policy kinds the one that users see.
    pub name: ObjectName,
    /// `None` when the object is sound but counts for nothing, as a finished
    /// pod.
    pub object: Option<Object>,
    /// Fields that were left out because they can't be read.
    pub warnings: Vec<FieldError>,
}

/// Kind and written name of an object, for messages and to find it again.
pub fn written_name(kind: Kind, value: &Value) -> Result<ObjectName, FieldError> {
    let object = Reader::new(value);
    let name = object.required("metadata.name")?.to_owned();
    let namespace = object.text("metadata.namespace")?.unwrap_or_default();
    let namespace = match namespace {
        "" if kind.namespaced() => "default",
        _ if !kind.namespaced() && !matches!(kind, Kind::Policy(_)) => "",
        other => other,
    };
    Ok(ObjectName { namespace: namespace.to_owned(), name })
}

/// Converts one object.
///
/// # Errors
/// Names the field that can't be used. Fields that Calico itself treats as
/// absent when they can't be read are warnings instead.
pub fn convert(kind: Kind, value: &Value) -> Result<Converted, FieldError> {
    let name = written_name(kind, value)?;
    let object = Reader::new(value);
    let mut warnings = Vec::new();
    let converted = match kind {
        Kind::Namespace => Object::Namespace(Arc::new(object.map("metadata.labels")?), {
            let uid = object.text("metadata.uid")?.filter(|_| name.name == "kube-system");
            uid.map(str::to_owned)
        }),
        Kind::ServiceAccount => Object::ServiceAccount(Arc::new(object.map("metadata.labels")?)),
        Kind::Pod => match pod(&object)? {
            Some(pod) => Object::Pod(Arc::new(pod)),
            None => return Ok(Converted { name, object: None, warnings }),
        },
        Kind::Node => Object::Node(Arc::new(node(&object, &mut warnings)?)),
        Kind::IpPool => Object::IpPool(Arc::new(pool(&object)?)),
        Kind::IpamBlock => Object::IpamBlock(Arc::new(block(&object)?)),
        Kind::HostEndpoint => Object::HostEndpoint(Arc::new(host_endpoint(&object)?)),
        Kind::FelixConfiguration => Object::FelixConfiguration(Arc::new(felix(&object)?)),
        Kind::RemoteClusterConfiguration => {
            Object::RemoteClusterConfiguration(Arc::new(remote(&object)?))
        }
        Kind::Policy(kind) => {
            let (name, object) = api::parse(kind, value)?;
            let object = Some(Object::Policy(Arc::new(object)));
            return Ok(Converted { name, object, warnings });
        }
    };
    Ok(Converted { name, object: Some(converted), warnings })
}

/// Puts an object among those of its cluster.
pub fn insert(objects: &mut ClusterObjects, kind: Kind, name: &ObjectName, object: &Object) {
    let key = || name.name.clone();
    match object.clone() {
        Object::Namespace(labels, uid) => {
            objects.namespaces.insert(key(), labels);
            objects.uid = uid.or(objects.uid.take());
        }
        Object::ServiceAccount(labels) => {
            objects.service_accounts.insert(name.clone(), labels);
        }
        Object::Pod(pod) => {
            objects.pods.insert(name.clone(), pod);
        }
        Object::Node(node) => {
            objects.nodes.insert(key(), node);
        }
        Object::IpPool(pool) => {
            objects.pools.insert(key(), pool);
        }
        Object::IpamBlock(block) => {
            objects.blocks.insert(key(), block);
        }
        Object::HostEndpoint(endpoint) => {
            objects.host_endpoints.insert(key(), endpoint);
        }
        Object::FelixConfiguration(felix) => {
            objects.felix.insert(key(), felix);
        }
        Object::RemoteClusterConfiguration(remote) => {
            objects.remotes.insert(key(), remote);
        }
        Object::Policy(object) => {
            if let Kind::Policy(kind) = kind {
                objects.policy.0.insert((kind, name.clone()), object);
            }
        }
    }
}

/// The object of a kind and name, if there is one; the UID that is kept of
/// `kube-system` is the cluster's.
pub fn get(objects: &ClusterObjects, kind: Kind, name: &ObjectName) -> Option<Object> {
    let key = name.name.as_str();
    Some(match kind {
        Kind::Namespace => {
            let labels = objects.namespaces.get(key)?.clone();
            Object::Namespace(labels, objects.uid.clone().filter(|_| key == "kube-system"))
        }
        Kind::ServiceAccount => Object::ServiceAccount(objects.service_accounts.get(name)?.clone()),
        Kind::Pod => Object::Pod(objects.pods.get(name)?.clone()),
        Kind::Node => Object::Node(objects.nodes.get(key)?.clone()),
        Kind::IpPool => Object::IpPool(objects.pools.get(key)?.clone()),
        Kind::IpamBlock => Object::IpamBlock(objects.blocks.get(key)?.clone()),
        Kind::HostEndpoint => Object::HostEndpoint(objects.host_endpoints.get(key)?.clone()),
        Kind::FelixConfiguration => Object::FelixConfiguration(objects.felix.get(key)?.clone()),
        Kind::RemoteClusterConfiguration => {
            Object::RemoteClusterConfiguration(objects.remotes.get(key)?.clone())
        }
        Kind::Policy(kind) => Object::Policy(objects.policy.0.get(&(kind, name.clone()))?.clone()),
    })
}

/// Takes an object away from those of its cluster.
pub fn remove(objects: &mut ClusterObjects, kind: Kind, name: &ObjectName) {
    let key = name.name.as_str();
    match kind {
        Kind::Namespace => drop(objects.namespaces.remove(key)),
        Kind::ServiceAccount => drop(objects.service_accounts.remove(name)),
        Kind::Pod => drop(objects.pods.remove(name)),
        Kind::Node => drop(objects.nodes.remove(key)),
        Kind::IpPool => drop(objects.pools.remove(key)),
        Kind::IpamBlock => drop(objects.blocks.remove(key)),
        Kind::HostEndpoint => drop(objects.host_endpoints.remove(key)),
        Kind::FelixConfiguration => drop(objects.felix.remove(key)),
        Kind::RemoteClusterConfiguration => drop(objects.remotes.remove(key)),
        Kind::Policy(kind) => drop(objects.policy.0.remove(&(kind, name.clone()))),
    }
}

/// The names of all objects of a kind.
pub fn names(objects: &ClusterObjects, kind: Kind) -> Vec<ObjectName> {
    let plain = |name: &String| ObjectName { namespace: String::new(), name: name.clone() };
    match kind {
        Kind::Namespace => objects.namespaces.keys().map(plain).collect(),
        Kind::ServiceAccount => objects.service_accounts.keys().cloned().collect(),
        Kind::Pod => objects.pods.keys().cloned().collect(),
        Kind::Node => objects.nodes.keys().map(plain).collect(),
        Kind::IpPool => objects.pools.keys().map(plain).collect(),
        Kind::IpamBlock => objects.blocks.keys().map(plain).collect(),
        Kind::HostEndpoint => objects.host_endpoints.keys().map(plain).collect(),
        Kind::FelixConfiguration => objects.felix.keys().map(plain).collect(),
        Kind::RemoteClusterConfiguration => objects.remotes.keys().map(plain).collect(),
        Kind::Policy(kind) => {
            let of_kind = objects.policy.0.keys().filter(|(other, _)| *other == kind);
            of_kind.map(|(_, name)| name.clone()).collect()
        }
    }
}

/// The labels that users gave a Calico object. The storage group
/// `crd.projectcalico.org/v1` keeps them in an annotation; of the stored
/// object's own labels only Calico's and its operator's count then.
fn calico_labels(object: &Reader<'_>) -> Result<Labels, FieldError> {
    const ANNOTATION: &str = "projectcalico.org/metadata";
    let own = object.map("metadata.labels")?;
    let annotations = object.map("metadata.annotations")?;
    let stored = object.text("apiVersion")? == Some("crd.projectcalico.org/v1");
    let Some(text) = annotations.get(ANNOTATION).filter(|_| stored) else { return Ok(own) };
    let field = format!("metadata.annotations.{ANNOTATION}");
    let unreadable = |reason: String| object.error(&field, reason);
    let metadata: Value = serde_json::from_str(text)
        .map_err(|error| unreadable(format!("is no JSON ({error}); let Calico rewrite it")))?;
    let mut labels = Reader::new(&metadata)
        .map("labels")
        .map_err(|error| unreadable(format!("{error}; let Calico rewrite it")))?;
    let ours = |key: &str| {
        ["projectcalico.org/", "operator.tigera.io/"].iter().any(|p| key.starts_with(p))
    };
    labels.extend(own.into_iter().filter(|(key, _)| ours(key)));
    Ok(labels)
}

fn pool(object: &Reader<'_>) -> Result<IpPool, FieldError> {
    let cidr = object.prefix("spec.cidr")?;
    let mode = |field: &str| match object.text(field)?.unwrap_or("Never") {
        "Never" | "" => Ok(None),
        "Always" => Ok(Some(Encapsulation::Vxlan)),
        "CrossSubnet" => Ok(Some(Encapsulation::VxlanCrossSubnet)),
        other => {
            Err(object.error(field, format!("{other:?} is none of Never, Always and CrossSubnet")))
        }
    };
    let encapsulation = match (mode("spec.vxlanMode")?, mode("spec.ipipMode")?) {
        (Some(_), Some(_)) => {
            return Err(object.error("spec.ipipMode", "is on beside vxlanMode; set one to Never"));
        }
        (Some(vxlan), None) => vxlan,
        (None, Some(_)) => Encapsulation::Ipip,
        (None, None) => Encapsulation::None,
    };
    Ok(IpPool {
        cidr,
        encapsulation,
        nat_outgoing: object.flag("spec.natOutgoing")?.unwrap_or(false),
        disabled: object.flag("spec.disabled")?.unwrap_or(false),
    })
}

/// An entry of `allocations` that points beyond `attributes`, and an
/// allocation whose attributes name no node, are skipped, as Calico does.
fn block(object: &Reader<'_>) -> Result<IpamBlock, FieldError> {
    let cidr = object.prefix("spec.cidr")?;
    let affinity = object.text("spec.affinity")?.and_then(|text| text.strip_prefix("host:"));
    let attributes = object.items("spec.attributes")?;
    let owner = |index: &Value| {
        let attributes = attributes.get(usize::try_from(index.as_u64()?).ok()?)?;
        attributes.text("secondary.node").ok().flatten().filter(|node| !node.is_empty())
    };
    let mut allocations = Vec::new();
    for (ordinal, index) in object.list("spec.allocations")?.iter().enumerate() {
        let Some(bits) = cidr.addr().bits().checked_add(ordinal as u128) else { break };
        let addr = tieline_dataplane::addr::Addr::from_bits(bits);
        if !cidr.contains(addr) {
            let reason = format!("has more entries than {cidr} has addresses; correct spec.cidr");
            return Err(object.error("spec.allocations", reason));
        }
        if let Some(node) = owner(index) {
            allocations.push((addr.to_ip(), node.to_owned()));
        }
    }
    Ok(IpamBlock {
        cidr,
        affinity: affinity.filter(|node| !node.is_empty()).map(str::to_owned),
        allocations,
        deleted: object.flag("spec.deleted")?.unwrap_or(false),
    })
}

fn host_endpoint(object: &Reader<'_>) -> Result<HostEndpoint, FieldError> {
    let mut addresses = Vec::new();
    for (index, value) in object.list("spec.expectedIPs")?.iter().enumerate() {
        let field = format!("spec.expectedIPs[{index}]");
        let text = value.as_str().ok_or_else(|| object.error(&field, "is no text"))?;
        addresses.push(address(text).map_err(|reason| object.error(&field, reason))?);
    }
    let mut profiles = Vec::new();
    for (index, value) in object.list("spec.profiles")?.iter().enumerate() {
        let field = format!("spec.profiles[{index}]");
        let name = value.as_str().ok_or_else(|| object.error(&field, "is no text"))?;
        profiles.push(name.to_owned());
    }
    Ok(HostEndpoint {
        labels: calico_labels(object)?,
        node: object.required("spec.node")?.to_owned(),
        addresses,
        ports: named_ports(&object.items("spec.ports")?, "port")?,
        profiles,
    })
}

fn felix(object: &Reader<'_>) -> Result<FelixConfiguration, FieldError> {
    let route_source = match object.text("spec.routeSource")? {
        None | Some("") => None,
        Some("CalicoIPAM") => Some(RouteSource::CalicoIpam),
        Some("WorkloadIPs") => Some(RouteSource::WorkloadIps),
        Some(other) => {
            return Err(object.error(
                "spec.routeSource",
                format!("{other:?} is neither CalicoIPAM nor WorkloadIPs"),
            ));
        }
    };
    // Zero means "work it out" for the MTUs.
    let mtu = |field| object.number(field, 0, 65_535).map(|mtu| mtu.filter(|mtu| *mtu != 0));
    Ok(FelixConfiguration {
        vni: object.number("spec.vxlanVNI", 1, (1 << 24) - 1)?.and_then(Vni::new),
        port: object.number("spec.vxlanPort", 1, 65_535)?.and_then(|port| u16::try_from(port).ok()),
        mtu_v4: mtu("spec.vxlanMTU")?,
        mtu_v6: mtu("spec.vxlanMTUV6")?,
        route_source,
        xdp_enabled: object.flag("spec.xdpEnabled")?,
    })
}

/// Fields of access to a remote cluster's Kubernetes API and etcd that an RCC
/// may carry by itself.
const INLINE_KUBERNETES: [&str; 8] = [
    "kubeconfig",
    "kubeconfigInline",
    "k8sAPIEndpoint",
    "k8sKeyFile",
    "k8sCertFile",
    "k8sCAFile",
    "k8sAPIToken",
    "k8sInsecureSkipTLSVerify",
];
const INLINE_ETCD: [&str; 9] = [
    "etcdEndpoints",
    "etcdUsername",
    "etcdPassword",
    "etcdKeyFile",
    "etcdCertFile",
    "etcdCACertFile",
    "etcdKey",
    "etcdCert",
    "etcdCACert",
];

fn remote(object: &Reader<'_>) -> Result<RemoteClusterConfiguration, FieldError> {
    let set = |name: &&&str| {
        let value = object.get(&format!("spec.{name}"));
        value.is_some_and(|value| value != "" && value != false)
    };
    let kubernetes = INLINE_KUBERNETES.iter().find(set);
    let etcd = INLINE_ETCD.iter().find(set);
    let datastore = object.text("spec.datastoreType")?.filter(|text| !text.is_empty());
    let clash = match datastore {
        Some("kubernetes") => etcd,
        Some("etcdv3") => kubernetes,
        Some(other) => {
            let reason = format!("{other:?} is neither kubernetes nor etcdv3");
            return Err(object.error("spec.datastoreType", reason));
        }
        None => None,
    };
    if let Some(field) = clash {
        let reason = "does not go with spec.datastoreType; remove one of the two";
        return Err(object.error(&format!("spec.{field}"), reason));
    }
    let access = if object.has("spec.clusterAccessSecret") {
        let inline = datastore.map(|_| "datastoreType");
        if let Some(field) = inline.or(kubernetes.copied()).or(etcd.copied()) {
            let reason = "stands beside spec.clusterAccessSecret; move it into the secret";
            return Err(object.error(&format!("spec.{field}"), reason));
        }
        if object.text("spec.clusterAccessSecret.kind")?.is_some_and(|kind| kind != "Secret") {
            return Err(object.error("spec.clusterAccessSecret.kind", "must be Secret"));
        }
        let text = |field: &str| object.required(&format!("spec.clusterAccessSecret.{field}"));
        let secret =
            ObjectName { namespace: text("namespace")?.into(), name: text("name")?.into() };
        RemoteAccess::Secret(secret)
    } else {
        match (datastore, kubernetes, etcd) {
            (Some("etcdv3"), ..) | (None, None, Some(_)) => RemoteAccess::Etcd,
            (None, None, None) => RemoteAccess::Unsaid,
            _ => RemoteAccess::Inline(Arc::new(inline_access(object)?)),
        }
    };
    let overlay = match object.text("spec.syncOptions.overlayRoutingMode")? {
        None | Some("" | "Disabled") => false,
        Some("Enabled") => true,
        Some(other) => {
            let reason = format!("{other:?} is neither Enabled nor Disabled");
            return Err(object.error("spec.syncOptions.overlayRoutingMode", reason));
        }
    };
    Ok(RemoteClusterConfiguration { overlay, access })
}

fn inline_access(object: &Reader<'_>) -> Result<InlineAccess, FieldError> {
    let text = |field: &str| -> Result<Option<String>, FieldError> {
        let text = object.text(&format!("spec.{field}"))?.filter(|text| !text.trim().is_empty());
        Ok(text.map(str::to_owned))
    };
    Ok(InlineAccess {
        kubeconfig: text("kubeconfig")?,
        kubeconfig_inline: text("kubeconfigInline")?.map(Sensitive),
        endpoint: text("k8sAPIEndpoint")?,
        token: text("k8sAPIToken")?.map(Sensitive),
        ca_file: text("k8sCAFile")?,
        cert_file: text("k8sCertFile")?,
        key_file: text("k8sKeyFile")?,
        insecure: object.flag("spec.k8sInsecureSkipTLSVerify")?.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests;
