//! Random clusters, policies and packets, from few values so that they meet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use tieline::map::Map;
use tieline::policy::model::{
    Action, Entity, Icmp, Policy, PolicySet, PolicySource, PortMatch, Rule, ServiceEndpoint, Tier,
    TierAction,
};
use tieline::policy::selector::Selector;
use tieline::state::{ClusterId, Identity, IdentityKind, Labels, NamedPort, ObjectName};
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::L4;
use tieline_tests::oracle::Packet;

/// Most conditions stay away, else hardly a rule would match.
fn rarely<T: std::fmt::Debug + Clone>(
    some: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop_oneof![9 => Just(None), 1 => some.prop_map(Some)]
}

fn few<T: std::fmt::Debug + Clone>(
    each: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![7 => Just(Vec::new()), 1 => prop::collection::vec(each, 1..3)]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        2 => (0u8..6).prop_map(|host| IpAddr::from([10, 0, 0, host])),
        1 => (0u16..5).prop_map(|host| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host])),
    ]
}

fn net() -> impl Strategy<Value = Prefix> {
    let nets = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/29",
        "10.0.0.4/30",
        "10.0.0.2/31",
        "10.0.0.3/32",
        "10.0.0.8/32",
        "192.0.2.0/24",
        "::/0",
        "fd00::/64",
        "fd00::4/126",
        "fd00::2/128",
    ];
    select(nets.map(|net| net.parse().expect("a net")).to_vec())
}

fn labels() -> impl Strategy<Value = Labels> {
    let pairs = vec![("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("ns", "n1"), ("ns", "n2")];
    subsequence(pairs, 0..4)
        .prop_map(|pairs| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect())
}

fn selector() -> impl Strategy<Value = Selector> {
    let simple = select(vec![
        "all()",
        "has(a)",
        "!has(b)",
        "a == 'x'",
        "a != 'x'",
        "b == 'y'",
        "a in {'x', 'y'}",
        "b not in {'x'}",
        "ns == 'n1'",
        "ns == 'n2'",
        "a starts with 'y'",
        "a in {}",
    ]);
    let more = (simple.clone(), simple.clone(), select(vec!["&&", "||"]), any::<bool>()).prop_map(
        |(a, b, operator, negated)| {
            format!("{}({a} {operator} {b})", if negated { "!" } else { "" })
        },
    );
    prop_oneof![2 => simple.prop_map(str::to_owned), 1 => more]
        .prop_map(|text| Selector::parse(&text).expect("a selector"))
}

fn port_name() -> impl Strategy<Value = String> {
    select(vec!["http", "dns", "none"]).prop_map(str::to_owned)
}

/// Few numbers, at both ends.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..6, 65533u16..=65535]
}

fn protocol() -> impl Strategy<Value = u8> {
    select(vec![6u8, 6, 6, 17, 17, 132, 1, 58, 47, 255])
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    (port_name(), select(vec![6u8, 17, 132]), port()).prop_map(|(name, protocol, port)| NamedPort {
        name,
        protocol,
        port,
    })
}

fn port_match() -> impl Strategy<Value = PortMatch> {
    let range = (port(), port()).prop_map(|(a, b)| a.min(b)..=a.max(b));
    let range = prop_oneof![port().prop_map(|port| port..=port), range];
    prop_oneof![
        2 => range.prop_map(|range: RangeInclusive<u16>| PortMatch::Range(range)),
        1 => port_name().prop_map(PortMatch::Named),
    ]
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    select(vec!["s1", "s2", "s3"])
        .prop_map(|name| ObjectName { namespace: "n1".into(), name: name.into() })
}

fn entity() -> impl Strategy<Value = Entity> {
    (
        few(net()),
        few(net()),
        prop_oneof![3 => Just(None), 1 => selector().prop_map(Some)],
        rarely(selector()),
        few(port_match()),
        few(port_match()),
        prop_oneof![15 => Just(None), 1 => service_name().prop_map(Some)],
    )
        .prop_map(|(nets, not_nets, selector, not_selector, ports, not_ports, service)| {
            Entity { nets, not_nets, selector, not_selector, ports, not_ports, service }
        })
}

fn icmp() -> impl Strategy<Value = Icmp> {
    (select(vec![0u8, 8, 254, 255]), prop::option::of(select(vec![0u8, 3, 255])))
        .prop_map(|(kind, code)| Icmp { kind, code })
}

fn rule() -> impl Strategy<Value = Rule> {
    use Action::{Allow, Deny, Log, Pass};
    (
        select(vec![Allow, Allow, Allow, Deny, Deny, Pass, Pass, Log]),
        (prop::bool::weighted(0.95), prop::bool::weighted(0.95)),
        prop::option::weighted(0.3, protocol()),
        rarely(protocol()),
        rarely(icmp()),
        rarely(icmp()),
        entity(),
        entity(),
    )
        .prop_map(
            |(action, (v4, v6), protocol, not_protocol, icmp, not_icmp, source, destination)| {
                // Mostly what the API admits: types with ICMP alone.
                let is_icmp = protocol.is_some_and(|protocol| [1, 58].contains(&protocol));
                let icmp = icmp.filter(|icmp| is_icmp || icmp.kind == 255);
                Rule {
                    origin: 0,
                    action,
                    v4,
                    v6,
                    protocol,
                    not_protocol,
                    icmp,
                    not_icmp,
                    source,
                    destination,
                }
            },
        )
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = || {
        let numbered = prop::collection::vec(rule(), 0..6).prop_map(|mut rules| {
            rules.iter_mut().enumerate().for_each(|(origin, rule)| rule.origin = origin);
            rules
        });
        prop::option::weighted(0.7, numbered)
    };
    (selector(), prop::bool::weighted(0.15), rules(), rules()).prop_map(
        |(selector, staged, ingress, egress)| Policy {
            source: PolicySource::GlobalNetworkPolicy,
            name: ObjectName::default(),
            staged,
            selector,
            ingress,
            egress,
        },
    )
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let action = select(vec![TierAction::Deny, TierAction::Pass]);
    let tier = (action, prop::collection::vec(policy(), 0..5));
    prop::collection::vec(tier, 0..5).prop_map(|tiers| {
        let tiers = tiers.into_iter().enumerate();
        let named = tiers.map(|(at, (default_action, mut policies))| {
            for (number, policy) in policies.iter_mut().enumerate() {
                policy.name.name = format!("p{number}");
            }
            Tier::new(format!("t{at}"), default_action, policies)
        });
        named.collect()
    })
}

fn services() -> impl Strategy<Value = Map<ObjectName, Arc<[ServiceEndpoint]>>> {
    let port = prop::option::weighted(0.9, (select(vec![6u8, 17]), port()));
    let endpoint = (address(), port).prop_map(|(address, port)| ServiceEndpoint { address, port });
    let some = prop::collection::vec((service_name(), endpoint), 0..6);
    some.prop_map(|all| {
        let mut services: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, endpoint) in all {
            services.entry(name).or_default().push(endpoint);
        }
        services.into_iter().map(|(name, of)| (name, of.into())).collect()
    })
}

pub(crate) fn policy_set() -> impl Strategy<Value = PolicySet> {
    (tiers(), services()).prop_map(|(tiers, services)| PolicySet {
        tiers,
        services,
        conditions: Arc::default(),
    })
}

pub(crate) fn identity() -> impl Strategy<Value = Identity> {
    use IdentityKind::{Host, LocalWorkload, NetworkSet, Workload};
    let kind = select(vec![
        LocalWorkload,
        LocalWorkload,
        LocalWorkload,
        LocalWorkload,
        Workload,
        Workload,
        Host,
        NetworkSet,
    ]);
    let exact = prop::collection::vec(address(), 1..4)
        .prop_map(|all| all.into_iter().map(|addr| Prefix::host(addr.into())).collect::<Vec<_>>());
    let ports = prop::collection::vec(named_port(), 0..3);
    let namespace = select(vec![("n1", true), ("n2", true), ("n3", false)]);
    (kind, namespace, labels(), exact, prop::collection::vec(net(), 0..3), ports).prop_map(
        |(kind, (namespace, profile), labels, exact, nets, ports)| Identity {
            cluster: ClusterId::Local,
            kind,
            name: ObjectName { namespace: namespace.into(), name: String::new() },
            node: if kind == LocalWorkload { "this" } else { "other" }.into(),
            labels: Arc::new(labels),
            nets: if kind == NetworkSet { nets } else { exact },
            ports: if kind == NetworkSet { Vec::new() } else { ports },
            profile,
        },
    )
}

pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    let l4 = (protocol(), port(), port(), icmp()).prop_map(|(protocol, source, port, icmp)| {
        let is_icmp = [1, 58].contains(&protocol);
        let kind = u16::from_be_bytes([icmp.kind, icmp.code.unwrap_or(1)]);
        let has_ports = [6, 17, 132].contains(&protocol);
        L4 {
            protocol,
            source: if has_ports { source } else { 0 },
            destination: if is_icmp {
                kind
            } else if has_ports {
                port
            } else {
                0
            },
        }
    });
    let v4 = || (0u8..7).prop_map(|host| Addr::from_v4_bytes([10, 0, 0, host]));
    let v6 = || (0u16..6).prop_map(|host| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]).into());
    let addresses = prop_oneof![2 => (v4(), v4()), 1 => (v6(), v6())];
    (addresses, l4).prop_map(|((source, destination), l4)| Packet { source, destination, l4 })
}
