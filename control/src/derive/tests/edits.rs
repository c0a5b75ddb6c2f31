//! Worlds that are edited step by step.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::policy::api::{self, PolicyKind};
use crate::state::{
    ClusterObjects, Encapsulation, FelixConfiguration, HostEndpoint, IpPool, IpamBlock, Labels,
    NamedPort, Node, ObjectName, Pod, RemoteCluster, RouteSource, World,
};

/// One change of a world. Clusters are 0 (local), 1 and 2; the rest is small
/// numbers, so that changes meet.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Pod { cluster: usize, namespace: u8, name: u8, pod: Option<(u8, u8, u8, u8)> },
    Namespace { cluster: usize, name: u8, labels: Option<u8> },
    Account { cluster: usize, namespace: u8, name: u8, labels: Option<u8> },
    Host { cluster: usize, name: u8, host: Option<(u8, u8)> },
    Node { cluster: usize, name: u8, there: bool, variant: u8 },
    Pool { cluster: usize, name: u8, variant: Option<u8> },
    Block { cluster: usize, at: u8, block: Option<(u8, u8)> },
    Policy { at: usize, variant: Option<u8> },
    Remote { cluster: usize, counts: Option<bool> },
    RouteSource { pods: bool },
    LocalVteps { include: bool },
}

pub(super) fn edit() -> impl Strategy<Value = Edit> {
    let cluster = || 0usize..3;
    let small = || 0u8..4;
    let some = || prop::option::weighted(0.8, 0u8..4);
    prop_oneof![
        12 => (cluster(), 0u8..3, 0u8..6, prop::option::weighted(0.8, (small(), 0u8..12, small(), 0u8..3)))
            .prop_map(|(cluster, namespace, name, pod)| Edit::Pod { cluster, namespace, name, pod }),
        3 => (cluster(), 0u8..3, some())
            .prop_map(|(cluster, name, labels)| Edit::Namespace { cluster, name, labels }),
        2 => (cluster(), 0u8..3, 0u8..2, some()).prop_map(|(cluster, namespace, name, labels)| {
            Edit::Account { cluster, namespace, name, labels }
        }),
        1 => (cluster(), 0u8..2, prop::option::weighted(0.8, (small(), 0u8..12)))
            .prop_map(|(cluster, name, host)| Edit::Host { cluster, name, host }),
        2 => (cluster(), 0u8..3, any::<bool>(), small())
            .prop_map(|(cluster, name, there, variant)| Edit::Node { cluster, name, there, variant }),
        1 => (cluster(), 0u8..2, some())
            .prop_map(|(cluster, name, variant)| Edit::Pool { cluster, name, variant }),
        3 => (cluster(), small(), prop::option::weighted(0.8, (0u8..3, small())))
            .prop_map(|(cluster, at, block)| Edit::Block { cluster, at, block }),
        12 => policy_edit(),
        1 => (1usize..3, prop::option::weighted(0.8, any::<bool>()))
            .prop_map(|(cluster, counts)| Edit::Remote { cluster, counts }),
        1 => select(vec![
            Edit::RouteSource { pods: true },
            Edit::RouteSource { pods: false },
            Edit::LocalVteps { include: true },
            Edit::LocalVteps { include: false },
        ]),
    ]
}

pub(super) fn policy_edit() -> impl Strategy<Value = Edit> {
    let variant = prop::option::weighted(0.8, 0u8..4);
    (0..policies(0).len(), variant).prop_map(|(at, variant)| Edit::Policy { at, variant })
}

/// Pods of each cluster have 10.C.0.0/24, and all of them 10.9.0.0/30 too.
pub(super) fn addresses(cluster: usize, at: u8) -> Vec<IpAddr> {
    let c = cluster as u8;
    match at {
        0..6 => vec![IpAddr::from([10, c, 0, at])],
        6..9 => {
            let v6 = IpAddr::from([0xfd00, c.into(), 0, 0, 0, 0, 0, at.into()]);
            vec![IpAddr::from([10, c, 0, at + 60]), v6]
        }
        _ => vec![IpAddr::from([10, 9, 0, at - 9])],
    }
}

fn labels(variant: u8) -> Labels {
    let pairs: &[(&str, &str)] = match variant {
        0 => &[("app", "web")],
        1 => &[("app", "api"), ("tier", "back")],
        2 => &[("tier", "back")],
        _ => &[],
    };
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn named(namespace: u8, name: &str) -> ObjectName {
    ObjectName { namespace: format!("ns{namespace}"), name: name.to_owned() }
}

/// Objects that only policy reads; the variant changes what they say.
pub(super) fn policies(variant: u8) -> Vec<(PolicyKind, Value)> {
    let ns = format!("ns{}", variant % 2);
    let at = usize::from(variant % 4);
    let app = ["web", "api", "none", "web"][at];
    let order = [10, 10, 2_000_000, 20][at];
    let chosen = ["all()", "app == 'web'", "nobody == 'here'", "has(app)"][at];
    let (tier, port) = (if at == 3 { "early" } else { "default" }, ["http", "other"][at % 2]);
    let not_port = ["other", "http"][at % 2];
    let meta = |name: &str| json!({"name": name});
    let own = |name: &str| json!({"name": name, "namespace": ns});
    let calico = |kind: &str, meta: Value, spec: Value| json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": spec});
    let global = |name: &str, spec| {
        (PolicyKind::GlobalNetworkPolicy, calico("GlobalNetworkPolicy", meta(name), spec))
    };
    vec![
        global(
            "default.a",
            json!({
                "selector": "app == 'web'", "types": ["Ingress"], "order": variant,
                "ingress": [{"action": "Allow", "protocol": "TCP",
                    "source": {"selector": format!("app == '{app}'")}, "destination": {"ports": [80]}}],
            }),
        ),
        global(
            "default.b",
            json!({
                "selector": format!("has(app) && app != '{app}'"), "types": ["Ingress", "Egress"],
                "ingress": [{"action": "Allow", "protocol": "TCP",
                    "source": {"namespaceSelector": "has(team)"}, "destination": {"ports": ["http"]}},
                    {"action": "Deny", "source": {"nets": ["10.1.0.0/30"]}}],
                "egress": [{"action": "Allow", "protocol": "TCP",
                    "destination": {"selector": "tier == 'back'", "ports": ["http"]}},
                    {"action": "Allow", "destination": {"notSelector": "has(app)"}}],
            }),
        ),
        global(
            "early.c",
            json!({
                "tier": "early", "selector": "all()", "types": ["Ingress"],
                "ingress": [{"action": "Deny", "source": {"selector": format!("role == 'set{variant}'")}},
                    {"action": "Deny", "source": {"serviceAccounts": {"selector": "team == 'red'"}}},
                    {"action": "Deny", "protocol": "UDP", "destination": {"selector": "role == 'set0'"}},
                    {"action": "Pass"}],
            }),
        ),
        (
            PolicyKind::Tier,
            calico(
                "Tier",
                meta("early"),
                json!({
                    "order": order,
                    "defaultAction": if variant == 0 { "Pass" } else { "Deny" },
                }),
            ),
        ),
        (
            PolicyKind::GlobalNetworkSet,
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
                "metadata": {"name": "g", "labels": {"role": format!("set{}", variant % 2)}},
                "spec": {"nets": ["10.2.0.0/29", format!("10.9.0.{variant}/32")]},
            }),
        ),
        (
            PolicyKind::NetworkSet,
            json!({
                "apiVersion": "projectcalico.org/v3", "kind": "NetworkSet",
                "metadata": {"name": "n", "namespace": "ns1", "labels": {"app": app}},
                "spec": {"nets": ["192.0.2.0/24"]},
            }),
        ),
        (
            PolicyKind::KubernetesNetworkPolicy,
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": own("k"),
                "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "back"}}}]}]},
            }),
        ),
        (
            PolicyKind::GlobalNetworkPolicy,
            calico(
                "GlobalNetworkPolicy",
                meta("default.d"),
                json!({
                    "selector": "tier == 'back'", "types": ["Egress"],
                    "egress": [{"action": "Allow", "protocol": "TCP",
                        "destination": {"services": {"name": "svc", "namespace": "ns0"}}}],
                }),
            ),
        ),
        // Of one tier or the other, before or after the one of the same tier.
        global(
            &format!("{tier}.e"),
            json!({
                "tier": tier, "order": 2,
                "selector": chosen,
                "types": ["Ingress", "Egress"],
                "ingress": [{"action": "Pass", "protocol": "TCP",
                    "source": {"selector": format!("app == '{app}'")},
                    "destination": {"selector": "tier == 'back'", "ports": ["http"]}},
                    {"action": "Deny", "protocol": "UDP"}],
                "egress": [{"action": "Deny", "protocol": "TCP",
                    "destination": {"ports": [port]}},
                    {"action": "Allow", "protocol": "TCP",
                        "destination": {"selector": format!("has(app) && tier != '{app}'"), "notPorts": [not_port]}}],
            }),
        ),
        (
            PolicyKind::StagedGlobalNetworkPolicy,
            calico(
                "StagedGlobalNetworkPolicy",
                meta("default.f"),
                json!({
                    "selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Deny"}],
                }),
            ),
        ),
        (
            PolicyKind::EndpointSlice,
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "svc-1", "namespace": "ns0", "labels": {"kubernetes.io/service-name": "svc"}},
                "endpoints": [{"addresses": [format!("10.0.0.{variant}")]}],
                "ports": [{"port": 80, "protocol": "TCP"}],
            }),
        ),
    ]
}

fn set<K: Ord + Clone, V>(map: &mut crate::map::Map<K, Arc<V>>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, Arc::new(value)),
        None => map.remove(&key),
    };
}

/// A world that is edited in place, as sources do.
pub(super) struct Lab {
    pub(super) world: World,
    /// Remote clusters' objects, whether they count or not.
    remotes: BTreeMap<usize, Arc<ClusterObjects>>,
}

fn remote(cluster: usize) -> Arc<str> {
    format!("r{cluster}").into()
}

impl Lab {
    pub(super) fn new() -> Self {
        let world = World {
            node: "n0".to_owned(),
            include_local_vteps: false,
            local: Arc::default(),
            remotes: BTreeMap::new(),
        };
        let mut lab = Self { world, remotes: BTreeMap::new() };
        for cluster in 0..3 {
            for name in 0..3 {
                lab.apply(&Edit::Node { cluster, name, there: true, variant: 0 });
                lab.apply(&Edit::Namespace { cluster, name, labels: Some(name) });
                lab.apply(&Edit::Block { cluster, at: name, block: Some((name, 0)) });
            }
            lab.apply(&Edit::Pool { cluster, name: 0, variant: Some(0) });
        }
        for cluster in 1..3 {
            lab.apply(&Edit::Remote { cluster, counts: Some(true) });
        }
        lab
    }

    fn objects(&mut self, cluster: usize, change: impl FnOnce(&mut ClusterObjects)) {
        if cluster == 0 {
            change(Arc::make_mut(&mut self.world.local));
            return;
        }
        let objects = self.remotes.entry(cluster).or_default();
        change(Arc::make_mut(objects));
        if let Some(counted) = self.world.remotes.get_mut(&remote(cluster)) {
            counted.objects = objects.clone();
        }
    }

    pub(super) fn apply(&mut self, edit: &Edit) {
        match *edit {
            Edit::Pod { cluster, namespace, name, pod } => {
                let pod = pod.map(|(variant, at, node, port)| Pod {
                    labels: labels(variant).into(),
                    node: format!("n{}", node % 3).into(),
                    service_account: if node == 3 {
                        String::new()
                    } else {
                        format!("sa{}", node % 2)
                    }
                    .into(),
                    addresses: addresses(cluster, at).into(),
                    ports: (port > 0)
                        .then(|| NamedPort {
                            name: "http".into(),
                            protocol: 6,
                            port: 79 + u16::from(port),
                        })
                        .into_iter()
                        .collect(),
                });
                let name = named(namespace, &format!("p{name}"));
                self.objects(cluster, |objects| set(&mut objects.pods, name, pod));
            }
            Edit::Namespace { cluster, name, labels } => {
                let labels = labels.map(|of| match of {
                    0 => Labels::new(),
                    of => [("team".to_owned(), ["red", "blue", "red"][usize::from(of - 1)].into())]
                        .into(),
                });
                self.objects(cluster, |it| set(&mut it.namespaces, format!("ns{name}"), labels));
            }
            Edit::Account { cluster, namespace, name, labels } => {
                let labels = labels.map(|of| {
                    [("team".to_owned(), if of < 2 { "red" } else { "blue" }.into())].into()
                });
                let name = named(namespace, &format!("sa{name}"));
                self.objects(cluster, |it| set(&mut it.service_accounts, name, labels));
            }
            Edit::Host { cluster, name, host } => {
                let host = host.map(|(variant, at)| HostEndpoint {
                    labels: labels(variant),
                    addresses: addresses(cluster, at),
                    profiles: match at % 3 {
                        0 => vec!["kns.ns0".into(), "ksa.ns1.sa0".into(), "kns.ns1".into()],
                        _ => Vec::new(),
                    },
                    ..HostEndpoint::default()
                });
                self.objects(cluster, |it| set(&mut it.host_endpoints, format!("h{name}"), host));
            }
            Edit::Node { cluster, name, there, variant } => {
                let c = if variant == 3 { 0 } else { cluster as u8 };
                let node = there.then(|| Node {
                    ipv4: Some((IpAddr::from([172, 16, c, name + 1]), 32)),
                    tunnel_v4: (variant != 2)
                        .then(|| IpAddr::from([10, cluster as u8, 0, name * 64 + 40 + variant])),
                    ..Node::default()
                });
                self.objects(cluster, |it| set(&mut it.nodes, format!("n{name}"), node));
            }
            Edit::Pool { cluster, name, variant } => {
                let pool = variant.map(|variant| IpPool {
                    cidr: match variant {
                        0 | 1 => format!("10.{cluster}.0.0/24"),
                        2 => format!("10.{cluster}.0.0/26"),
                        _ => "10.9.0.0/24".to_owned(),
                    }
                    .parse()
                    .expect("a range"),
                    encapsulation: Encapsulation::Vxlan,
                    nat_outgoing: false,
                    disabled: variant == 1,
                });
                self.objects(cluster, |it| set(&mut it.pools, format!("pool{name}"), pool));
            }
            Edit::Block { cluster, at, block } => {
                let c = cluster as u8;
                let start = at * 64;
                let cidr =
                    if at == 3 { "10.9.0.0/30".to_owned() } else { format!("10.{c}.0.{start}/26") };
                let block = block.map(|(node, variant)| {
                    let addr = IpAddr::from([10, c, 0, start + variant]);
                    let user = if variant == 3 { (node + 1) % 3 } else { node };
                    IpamBlock {
                        cidr: cidr.parse().expect("a range"),
                        affinity: Some(format!("n{node}")),
                        allocations: vec![(addr, format!("n{user}"))],
                        deleted: false,
                    }
                });
                self.objects(cluster, |it| set(&mut it.blocks, format!("b{at}"), block));
            }
            Edit::Policy { at, variant } => {
                let (kind, object) = policies(variant.unwrap_or(0)).swap_remove(at);
                let (name, object) = api::parse(kind, &object).expect("a policy");
                let object = variant.map(|_| object);
                self.objects(0, |it| set(&mut it.policy.0, (kind, name), object));
            }
            Edit::Remote { cluster, counts } => {
                let objects = self.remotes.entry(cluster).or_default().clone();
                match counts {
                    None => self.world.remotes.remove(&remote(cluster)),
                    Some(overlay) => self
                        .world
                        .remotes
                        .insert(remote(cluster), RemoteCluster { overlay, objects }),
                };
            }
            Edit::RouteSource { pods } => {
                let source = if pods { RouteSource::WorkloadIps } else { RouteSource::CalicoIpam };
                let felix = FelixConfiguration {
                    route_source: Some(source),
                    ..FelixConfiguration::default()
                };
                self.objects(0, |it| set(&mut it.felix, "default".to_owned(), Some(felix)));
            }
            Edit::LocalVteps { include } => self.world.include_local_vteps = include,
        }
    }
}
