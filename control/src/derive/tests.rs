//! A deriver that follows edits against one that begins anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{Concern, L4, Snapshot};

use super::*;
use crate::policy::api::{self, PolicyKind};
use crate::policy::compile::{Decision, compile};
use crate::policy::explain::{Explainer, Query};
use crate::publish::Tables;
use crate::state::{
    ClusterObjects, Encapsulation, FelixConfiguration, HostEndpoint, IpPool, IpamBlock, Labels,
    NamedPort, Node, ObjectName, Pod, RemoteCluster, RouteSource,
};
use crate::supervise::kernel;

/// One change of a world. Clusters are 0 (local), 1 and 2; the rest is small
/// numbers, so that changes meet.
#[derive(Clone, Debug)]
enum Edit {
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

fn edit() -> impl Strategy<Value = Edit> {
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

fn policy_edit() -> impl Strategy<Value = Edit> {
    let variant = prop::option::weighted(0.8, 0u8..4);
    (0..policies(0).len(), variant).prop_map(|(at, variant)| Edit::Policy { at, variant })
}

/// Pods of each cluster have 10.C.0.0/24, and all of them 10.9.0.0/30 too.
fn addresses(cluster: usize, at: u8) -> Vec<IpAddr> {
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
fn policies(variant: u8) -> Vec<(PolicyKind, Value)> {
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
struct Lab {
    world: World,
    /// Remote clusters' objects, whether they count or not.
    remotes: BTreeMap<usize, Arc<ClusterObjects>>,
}

fn remote(cluster: usize) -> Arc<str> {
    format!("r{cluster}").into()
}

impl Lab {
    fn new() -> Self {
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

    fn apply(&mut self, edit: &Edit) {
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

/// Addresses that anything can be said about.
fn everyone() -> Vec<Addr> {
    let mut all: Vec<Addr> = Vec::new();
    for cluster in 0..3 {
        all.extend((0..12).flat_map(|at| addresses(cluster, at)).map(Addr::from));
        all.extend([40, 104, 168].map(|n| Addr::from(IpAddr::from([10, cluster as u8, 0, n]))));
    }
    all.push(IpAddr::from([192, 0, 2, 7]).into());
    all.push(IpAddr::from([203, 0, 113, 7]).into());
    all.sort_unstable();
    all.dedup();
    all
}

const PACKETS: [L4; 3] = [
    L4 { protocol: 6, source: 1, destination: 80 },
    L4 { protocol: 6, source: 1, destination: 81 },
    L4 { protocol: 17, source: 1, destination: 80 },
];

/// What tables say, without numbers.
type Said = BTreeMap<(Addr, Addr), Vec<(bool, Decision)>>;

fn said(compiled: &Compiled, everyone: &[Addr]) -> Said {
    let mut said = Said::new();
    for local in everyone {
        let endpoint = compiled.endpoints.get(*local);
        let Some(policy) = endpoint.and_then(|it| compiled.policies.get(it.policy?)) else {
            continue;
        };
        for peer in everyone.iter().filter(|peer| peer.is_v4() == local.is_v4()) {
            let class = compiled.endpoints.class(*peer);
            let outcomes = PACKETS
                .iter()
                .flat_map(|l4| [policy.ingress.judge(class, l4), policy.egress.judge(class, l4)]);
            let outcomes =
                outcomes.map(|it| (it.allow, (*compiled.decisions[it.rule.0 as usize]).clone()));
            said.insert((*local, *peer), outcomes.collect());
        }
    }
    said
}

/// Which addresses are known, and which are this node's.
fn known(compiled: &Compiled) -> BTreeMap<Addr, (bool, bool)> {
    let all = compiled.endpoints.iter();
    all.map(|(addr, endpoint)| (addr, (endpoint.local, endpoint.policy.is_some()))).collect()
}

fn publish(tables: &mut Tables, derived: &Derived) -> Arc<Snapshot> {
    let config: tieline_config::schema::Overlay = Default::default();
    let overlay = kernel::overlay(&derived.resolved, &config, Default::default());
    tables.apply(overlay, &derived.resolved, &derived.compiled, &BTreeMap::new());
    tables.current().clone()
}

/// Follows edits, and holds each outcome against one from the beginning.
fn check(edits: &[Edit]) -> Result<(), TestCaseError> {
    let everyone = everyone();
    let mut lab = Lab::new();
    let mut deriver = Deriver::default();
    let mut tables = Tables::default();
    let mut before: Option<(Arc<Snapshot>, Said)> = None;
    for at in 0..=edits.len() {
        if let Some(edit) = at.checked_sub(1).and_then(|at| edits.get(at)) {
            lab.apply(edit);
        }
        let world = Arc::new(lab.world.clone());
        let derived = deriver.derive(world.clone());
        let fresh = derive(world.clone());
        let resolved = resolve::resolve(&world);
        prop_assert_eq!(&derived.resolved.own, &resolved.own);
        prop_assert_eq!(&derived.resolved.vteps, &resolved.vteps);
        prop_assert_eq!(&derived.resolved.routes, &resolved.routes);
        prop_assert_eq!(derived.conditions(), fresh.conditions());
        for condition in &resolved.conditions {
            prop_assert!(derived.conditions().contains(condition), "{:?}", condition);
        }
        // The fresh one from the same differences, and one from a list of
        // identities, which knows no differences.
        let listed = compile(&derived.policies, &resolve::identities(&world));
        let says = said(&derived.compiled, &everyone);
        prop_assert_eq!(&says, &said(&fresh.compiled, &everyone));
        prop_assert_eq!(&says, &said(&listed, &everyone));
        prop_assert_eq!(known(&derived.compiled), known(&fresh.compiled));
        let unowned = |addr: &Addr| !derived.resolved.own.tunnel.contains(&addr.to_ip());
        let owned = |compiled: &Compiled| -> Vec<Addr> {
            known(compiled).into_keys().filter(unowned).collect()
        };
        prop_assert_eq!(owned(&derived.compiled), owned(&listed));
        explained(&derived, &fresh, &says)?;
        // What is not judged again must not need to be.
        let snapshot = publish(&mut tables, &derived);
        if let Some((old, said)) = &before {
            for ((local, remote), outcome) in said {
                let now = says.get(&(*local, *remote));
                // As `said` has them: for each packet what comes in, what goes out.
                for (egress, from) in [(false, 0), (true, 1)] {
                    let allows = |of: &[(bool, Decision)]| -> Vec<bool> {
                        of.iter().skip(from).step_by(2).map(|(allow, _)| *allow).collect()
                    };
                    let flow = Concern { local: *local, remote: *remote, egress: Some(egress) };
                    if !snapshot.concerns(old.generation as u32, &flow) {
                        let (now, then) = (now.map(|it| allows(it)), Some(allows(outcome)));
                        prop_assert_eq!(now, then, "{:?}", flow);
                    }
                }
            }
        }
        before = Some((snapshot, says));
    }
    Ok(())
}

/// Explanations of some connections, through both.
fn explained(one: &Derived, other: &Derived, said: &Said) -> Result<(), TestCaseError> {
    let (mut one, mut other) = (Explainer::new(one), Explainer::new(other));
    for (local, peer) in said.keys().step_by(7).take(8) {
        let query = json!({"from": peer.to_string(), "to": local.to_string(), "protocol": "tcp", "port": 80});
        let query: Query = serde_json::from_value(query).expect("a query");
        let text = |answer: Result<_, crate::policy::explain::ExplainError>| {
            answer.map(|it| serde_json::to_string(&it).expect("JSON")).map_err(|it| it.to_string())
        };
        prop_assert_eq!(text(one.explain(&query)), text(other.explain(&query)));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn following_edits_is_beginning_anew(edits in prop::collection::vec(edit(), 1..40)) {
        check(&edits)?;
    }

    /// Few policies again and again: numbers come back.
    #[test]
    fn following_edits_of_policies_is_beginning_anew(
        edits in prop::collection::vec(edit(), 20..30),
        first in 0..policies(0).len(),
        again in prop::collection::vec((0usize..3, policy_edit()), 10..30),
    ) {
        let near = again.into_iter().map(|(step, edit)| match edit {
            Edit::Policy { variant, .. } => {
                Edit::Policy { at: (first + step) % policies(0).len(), variant }
            }
            other => other,
        });
        check(&edits.into_iter().chain(near).collect::<Vec<_>>())?;
    }
}

#[test]
fn the_edits_meet_local_pods_and_remote_ones() {
    let mut lab = Lab::new();
    lab.apply(&Edit::Policy { at: 0, variant: Some(0) });
    lab.apply(&Edit::Pod { cluster: 0, namespace: 0, name: 0, pod: Some((0, 1, 0, 1)) });
    lab.apply(&Edit::Pod { cluster: 1, namespace: 0, name: 0, pod: Some((0, 1, 0, 1)) });
    let derived = derive(Arc::new(lab.world));
    let said = said(&derived.compiled, &everyone());
    let (local, far) = ([10, 0, 0, 1], [10, 1, 0, 1]);
    let outcome = &said[&(IpAddr::from(local).into(), IpAddr::from(far).into())];
    assert_eq!((outcome[0].0, outcome[2].0), (true, false), "port 80 alone: {outcome:?}");
    assert!(derived.resolved.routes.contains_key(&"10.1.0.0/26".parse::<Prefix>().unwrap()));
}
