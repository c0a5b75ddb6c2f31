//! Pods that there are not: what a rule would see of one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tieline_dataplane::addr::{Addr, Prefix};

use super::ExplainError;
use crate::derive::Derived;
use crate::resolve::identities;
use crate::state::{
    ClusterId, ClusterObjects, Identity, Labels, NamedPort, ObjectName, Pod, RemoteCluster, World,
};

/// A pod as it would be, at an address that nobody has.
///
/// As JSON in the place of a pod's name:
/// `{"namespace":"prod","labels":{"app":"web"}}`. It inherits its namespace's
/// and its service account's labels as any pod. One of the local cluster is
/// taken to be on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HypotheticalPod {
    /// Name of its RemoteClusterConfiguration; `local`, or nothing, for the local
    /// cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its namespace; `default` unless given.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its own labels, as a map or as `key=value,...`.
    #[serde(default, deserialize_with = "pairs")]
    pub labels: Labels,
    /// The name of its service account.
    #[serde(default, alias = "service-account", skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// Its named ports, as a map or as `name=port,...`; a port is `8080`, which
    /// is TCP, or `53/udp`.
    #[serde(default, deserialize_with = "pairs", skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// A map of texts and numbers, or one text `key=value,...`.
fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    use serde::de::Error;
    let wrong = |what: String| D::Error::custom(format!("{what}: write key=value,... or a map"));
    match Value::deserialize(deserializer)? {
        Value::String(text) => {
            let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
            let pairs = pairs.map(|pair| match pair.split_once('=') {
                Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
                None => Err(wrong(format!("{pair:?} has no value"))),
            });
            pairs.collect()
        }
        Value::Object(map) => {
            let pairs = map.into_iter().map(|(key, value)| match value {
                Value::String(value) => Ok((key, value)),
                Value::Number(value) => Ok((key, value.to_string())),
                other => Err(wrong(format!("{key} is {other}"))),
            });
            pairs.collect()
        }
        other => Err(wrong(other.to_string())),
    }
}

impl fmt::Display for HypotheticalPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cluster_id(), self.name())
    }
}

/// Whether an identity is one that [`HypotheticalPod`] made.
pub(super) fn is_hypothetical(identity: &Identity) -> bool {
    // No name of an object has parentheses.
    identity.name.name.starts_with('(')
}

impl HypotheticalPod {
    fn cluster_id(&self) -> ClusterId {
        match self.cluster.as_deref() {
            None | Some("" | "local") => ClusterId::Local,
            Some(name) => ClusterId::Remote(name.into()),
        }
    }

    fn name(&self) -> ObjectName {
        let labels: Vec<_> =
            self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(",") };
        ObjectName { namespace: self.namespace.clone(), name: format!("({labels})") }
    }

    /// What rules would see of it. `taken` says which addresses are somebody's.
    pub(super) fn identity(
        &self,
        derived: &Derived,
        taken: impl Fn(Addr) -> bool,
    ) -> Result<Identity, ExplainError> {
        let cluster = self.cluster_id();
        let objects = match &cluster {
            ClusterId::Local => &derived.world.local,
            ClusterId::Remote(name) => match derived.world.remotes.get(name) {
                Some(remote) => &remote.objects,
                None => return Err(ExplainError::NoCluster(name.to_string())),
            },
        };
        let is_there = |it: &Identity| it.cluster == cluster && it.name.namespace == self.namespace;
        let known = objects.namespaces.contains_key(&self.namespace)
            || derived.identities().iter().any(is_there);
        if !known {
            return Err(ExplainError::NoNamespace { cluster, namespace: self.namespace.clone() });
        }
        let pod = Pod {
            labels: self.labels.clone().into(),
            node: match cluster {
                ClusterId::Local => derived.world.node.as_str().into(),
                ClusterId::Remote(_) => "".into(),
            },
            service_account: self.service_account.as_str().into(),
            addresses: Box::new([true, false].map(|v4| unused(objects, v4, &taken))),
            ports: self.named_ports()?.into(),
        };
        // It gets its labels where all pods get theirs: in a world with what it
        // inherits from, and nobody else.
        let account =
            ObjectName { namespace: self.namespace.clone(), name: self.service_account.clone() };
        let mut own = ClusterObjects::default();
        if let Some(labels) = objects.namespaces.get(&self.namespace) {
            own.namespaces.insert(self.namespace.clone(), labels.clone());
        }
        if let Some(labels) = objects.service_accounts.get(&account) {
            own.service_accounts.insert(account, labels.clone());
        }
        own.pods.insert(self.name(), Arc::new(pod));
        let mut world = World {
            node: derived.world.node.clone(),
            include_local_vteps: false,
            local: Arc::default(),
            remotes: BTreeMap::new(),
        };
        match &cluster {
            ClusterId::Local => world.local = Arc::new(own),
            ClusterId::Remote(name) => {
                let remote = RemoteCluster { overlay: false, objects: Arc::new(own) };
                world.remotes.insert(name.clone(), remote);
            }
        }
        identities(&world).pop().ok_or(ExplainError::NoPod {
            cluster,
            pod: self.name(),
            hint: String::new(),
        })
    }

    fn named_ports(&self) -> Result<Vec<NamedPort>, ExplainError> {
        let ports = self.ports.iter().map(|(name, text)| {
            let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let protocol = match protocol.to_ascii_lowercase().as_str() {
                "tcp" => Some(6),
                "udp" => Some(17),
                "sctp" => Some(132),
                _ => None,
            };
            match (protocol, port.parse()) {
                (Some(protocol), Ok(port)) if port > 0 => {
                    Ok(NamedPort { name: name.clone(), protocol, port })
                }
                _ => Err(ExplainError::Field {
                    field: "ports",
                    reason: "a port is a number from 1 to 65535, with /udp or /sctp if it is not TCP",
                }),
            }
        });
        ports.collect()
    }
}

/// How many addresses of a pool are looked at.
const TRIED: usize = 1 << 16;

/// An address that nobody has, of a pool of the cluster if there is one: a rule
/// about the pool's addresses is one about the pod. Else one that no cluster
/// uses: of 240.0.0.0/4 (RFC 1112 section 4) or of 100::/64 (RFC 6666).
fn unused(objects: &ClusterObjects, v4: bool, taken: &impl Fn(Addr) -> bool) -> IpAddr {
    let reserved: (IpAddr, u8) =
        if v4 { ([240, 0, 0, 0].into(), 4) } else { ([0x100, 0, 0, 0, 0, 0, 0, 0].into(), 64) };
    let pools = objects.pools.values().filter(|pool| !pool.disabled && pool.cidr.is_v4() == v4);
    let ranges = pools.map(|pool| pool.cidr).chain(Prefix::new(reserved.0, reserved.1));
    // From the end, because addresses are given out from the start; but the
    // last one of all is IPv4's for broadcasts.
    let tried = ranges.flat_map(|range| {
        let first = range.addr().bits();
        let last = first + u128::MAX.checked_shr(range.len128().into()).unwrap_or_default();
        (first..last).rev().take(TRIED).map(Addr::from_bits)
    });
    let mut free = tried.filter(|addr| !taken(*addr));
    free.next().map_or(reserved.0, Addr::to_ip)
}
