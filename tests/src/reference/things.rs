//! Everything that has addresses: pods, host endpoints and network sets.

use std::net::IpAddr;

use serde_json::Value;

use super::selector::Labels;
use super::{Clusters, list, text};

/// A pod, a host endpoint or a network set.
#[derive(Clone, Debug, Default)]
pub(super) struct Thing {
    /// Pods are what Kubernetes' selectors are about.
    pub(super) pod: bool,
    local: bool,
    /// None for what is cluster-scoped.
    pub(super) namespace: Option<String>,
    /// Of a pod: whether its Namespace is there, whose profile then allows.
    pub(super) has_profile: bool,
    /// All labels that selectors see.
    pub(super) labels: Labels,
    /// Its namespace's, with the name that Calico adds.
    pub(super) namespace_labels: Labels,
    /// Of a pod, if it has one.
    pub(super) account: Option<String>,
    /// Its service account's, with the name that Calico adds.
    pub(super) account_labels: Labels,
    nets: Vec<String>,
    /// Name, protocol, port.
    pub(super) ports: Vec<(String, u8, u16)>,
}

impl Thing {
    pub(super) fn is_local_pod(&self) -> bool {
        self.local && self.pod
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.nets.iter().any(|net| holds(net, address))
    }

    /// Whether a port of its own has this name.
    pub(super) fn has_port(&self, name: &str, protocol: u8, port: u16) -> bool {
        self.ports.iter().any(|own| *own == (name.to_owned(), protocol, port))
    }
}

/// Whether a network, or one address, holds an address.
pub(super) fn holds(net: &str, address: IpAddr) -> bool {
    let (base, len) = net.split_once('/').map_or((net, None), |(base, len)| (base, Some(len)));
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let (base, width) = bits(base.parse().expect("an address"));
    let (own, own_width) = bits(address);
    let len: u32 = len.map_or(width, |len| len.parse().expect("a length"));
    let differing = base ^ own;
    width == own_width && differing.leading_zeros() >= len
}

pub(super) fn is_v4(net: &str) -> bool {
    !net.contains(':')
}

fn map(value: Option<&Value>) -> Labels {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn protocol(value: Option<&Value>) -> u8 {
    match value.and_then(Value::as_str) {
        Some("UDP") => 17,
        Some("SCTP") => 132,
        _ => 6,
    }
}

fn number(value: &Value) -> u16 {
    value.as_u64().and_then(|number| number.try_into().ok()).unwrap_or_default()
}

/// Everything of all clusters.
pub(super) fn all(clusters: &Clusters) -> Vec<Thing> {
    let remotes = clusters.remotes.values().map(|objects| (false, objects));
    let mut things = Vec::new();
    for (local, objects) in std::iter::once((true, &clusters.local)).chain(remotes) {
        for object in objects {
            let thing = match text(object, "/kind") {
                "Pod" => pod(object, objects),
                "HostEndpoint" => Some(host(object, objects)),
                "NetworkSet" | "GlobalNetworkSet" if local => Some(set(object, objects)),
                _ => None,
            };
            things.extend(thing.map(|thing| Thing { local, ..thing }));
        }
    }
    things
}

/// The labels of an object, with the name that Calico adds; none if there is no
/// such object.
fn labels_of(kind: &str, namespace: &str, name: &str, objects: &[Value]) -> Labels {
    let found = objects.iter().find(|object| {
        text(object, "/kind") == kind
            && text(object, "/metadata/namespace") == namespace
            && text(object, "/metadata/name") == name
    });
    let Some(object) = found else { return Labels::new() };
    let mut labels = map(object.pointer("/metadata/labels"));
    labels.insert("projectcalico.org/name".to_owned(), name.to_owned());
    labels
}

fn add_prefixed(labels: &mut Labels, prefix: &str, inherited: &Labels) {
    for (key, value) in inherited {
        labels.entry(format!("{prefix}{key}")).or_insert_with(|| value.clone());
    }
}

fn pod(object: &Value, objects: &[Value]) -> Option<Thing> {
    let unseen = object.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
        || text(object, "/spec/nodeName").is_empty()
        || ["Succeeded", "Failed"].contains(&text(object, "/status/phase"));
    if unseen {
        return None;
    }
    let mut nets: Vec<String> =
        list(object, "/status/podIPs").iter().map(|ip| text(ip, "/ip").to_owned()).collect();
    if nets.is_empty() {
        nets.push(text(object, "/status/podIP").to_owned());
    }
    nets.retain(|net| !net.is_empty());
    let namespace = text(object, "/metadata/namespace").to_owned();
    let account = Some(text(object, "/spec/serviceAccountName").to_owned());
    let account = account.filter(|account| !account.is_empty());
    let namespace_labels = labels_of("Namespace", "", &namespace, objects);
    let account_labels = account.as_ref().map_or_else(Labels::new, |account| {
        labels_of("ServiceAccount", &namespace, account, objects)
    });
    let mut labels = map(object.pointer("/metadata/labels"));
    labels.retain(|key, _| !key.starts_with("pcns.") && !key.starts_with("pcsa."));
    labels.insert("projectcalico.org/namespace".to_owned(), namespace.clone());
    labels.insert("projectcalico.org/orchestrator".to_owned(), "k8s".to_owned());
    labels.remove("projectcalico.org/serviceaccount");
    if let Some(account) = &account {
        labels.insert("projectcalico.org/serviceaccount".to_owned(), account.clone());
    }
    add_prefixed(&mut labels, "pcns.", &namespace_labels);
    add_prefixed(&mut labels, "pcsa.", &account_labels);
    let containers = list(object, "/spec/containers").iter();
    let containers = containers.chain(list(object, "/spec/initContainers"));
    let ports = containers.flat_map(|container| list(container, "/ports"));
    let ports = ports.map(|port| {
        let name = text(port, "/name").to_owned();
        (name, protocol(port.get("protocol")), number(&port["containerPort"]))
    });
    Some(Thing {
        pod: true,
        local: false,
        namespace: Some(namespace),
        has_profile: !namespace_labels.is_empty(),
        labels,
        namespace_labels,
        account,
        account_labels,
        nets,
        ports: ports.collect(),
    })
}

/// The labels of its profiles are its own too, unless it has them already.
fn host(object: &Value, objects: &[Value]) -> Thing {
    let ports = list(object, "/spec/ports").iter().map(|port| {
        (text(port, "/name").to_owned(), protocol(port.get("protocol")), number(&port["port"]))
    });
    let addresses = list(object, "/spec/expectedIPs").iter();
    let mut thing = Thing {
        labels: map(object.pointer("/metadata/labels")),
        nets: addresses.filter_map(Value::as_str).map(str::to_owned).collect(),
        ports: ports.collect(),
        ..Thing::default()
    };
    for profile in list(object, "/spec/profiles").iter().filter_map(Value::as_str) {
        if let Some(namespace) = profile.strip_prefix("kns.") {
            let labels = labels_of("Namespace", "", namespace, objects);
            add_prefixed(&mut thing.labels, "pcns.", &labels);
            add_prefixed(&mut thing.namespace_labels, "", &labels);
        }
        if let Some((namespace, account)) =
            profile.strip_prefix("ksa.").and_then(|rest| rest.split_once('.'))
        {
            let labels = labels_of("ServiceAccount", namespace, account, objects);
            add_prefixed(&mut thing.labels, "pcsa.", &labels);
            add_prefixed(&mut thing.account_labels, "", &labels);
        }
    }
    thing
}

fn set(object: &Value, objects: &[Value]) -> Thing {
    let nets = list(object, "/spec/nets").iter();
    let mut thing = Thing {
        labels: map(object.pointer("/metadata/labels")),
        nets: nets.filter_map(Value::as_str).map(str::to_owned).collect(),
        ..Thing::default()
    };
    if text(object, "/kind") == "NetworkSet" {
        let namespace = text(object, "/metadata/namespace").to_owned();
        thing.labels.insert("projectcalico.org/namespace".to_owned(), namespace.clone());
        thing.namespace_labels = labels_of("Namespace", "", &namespace, objects);
        add_prefixed(&mut thing.labels, "pcns.", &thing.namespace_labels);
        thing.namespace = Some(namespace);
    }
    thing
}
