//! Single cases with a name: what once went wrong, and what is easy to get
//! wrong. The tables and the oracle must both decide as written.

use std::sync::Arc;

use tieline::policy::compile::{Compiler, Decision, Direction, compile};
use tieline::policy::model::{
    Action, Entity, Icmp, Policy, PolicySet, PolicySource, PortMatch, Rule, ServiceEndpoint, Tier,
    TierAction,
};
use tieline::policy::selector::Selector;
use tieline::state::{ClusterId, Identity, IdentityKind, NamedPort, ObjectName};
use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::L4;
use tieline_tests::oracle::{Oracle, Packet};

use super::Tables;

const TCP: u8 = 6;
const GRE: u8 = 47;

fn rule(action: Action) -> Rule {
    Rule {
        action,
        v4: true,
        v6: true,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        origin: 0,
        source: Entity::default(),
        destination: Entity::default(),
    }
}

fn select(text: &str) -> Entity {
    let selector = Selector::parse(text).expect("a selector");
    Entity { selector: Some(selector), ..Entity::default() }
}

/// A tier of policies that select everything, each with these rules both ways.
fn tier(name: &str, default_action: TierAction, policies: &[&[Rule]]) -> Tier {
    let policies = policies.iter().enumerate().map(|(at, rules)| Policy {
        source: PolicySource::GlobalNetworkPolicy,
        name: ObjectName { namespace: String::new(), name: format!("p{at}") },
        staged: false,
        selector: Selector::all(),
        ingress: Some(rules.to_vec()),
        egress: Some(rules.to_vec()),
    });
    Tier::new(name, default_action, policies)
}

fn identity(kind: IdentityKind, net: &str, labels: &[(&str, &str)]) -> Identity {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Identity {
        cluster: ClusterId::Local,
        kind,
        name: ObjectName { namespace: "n".into(), name: net.into() },
        node: String::new(),
        labels: Arc::new(labels.collect()),
        nets: vec![net.parse().expect("a net")],
        ports: Vec::new(),
        profile: true,
    }
}

/// The local pod of every case is 10.0.0.1 (fd00::1).
fn local() -> [Identity; 2] {
    ["10.0.0.1", "fd00::1"].map(|net| identity(IdentityKind::LocalWorkload, net, &[("own", "yes")]))
}

#[derive(Debug, PartialEq)]
enum Says {
    Rule(&'static str, usize, usize),
    Tier(&'static str),
    Profile,
}

struct Case {
    policies: PolicySet,
    identities: Vec<Identity>,
}

impl Case {
    fn new(tiers: Vec<Tier>, others: Vec<Identity>) -> Self {
        let identities = local().into_iter().chain(others).collect();
        Self { policies: PolicySet { tiers, ..PolicySet::default() }, identities }
    }

    /// One rule that allows, in a tier that denies by default.
    fn allowing(rule: Rule, others: Vec<Identity>) -> Self {
        Self::new(vec![tier("t", TierAction::Deny, &[&[rule]])], others)
    }

    /// What is said about a packet to (ingress) or from (egress) the local pod
    /// and a peer.
    #[track_caller]
    fn says(&self, direction: Direction, peer: &str, protocol: u8, port: u16, expected: &Says) {
        let peer: Addr = peer.parse::<std::net::IpAddr>().expect("an address").into();
        let own = local()[usize::from(!peer.is_v4())].nets[0].addr();
        let (source, destination) = match direction {
            Direction::Ingress => (peer, own),
            Direction::Egress => (own, peer),
        };
        let l4 = L4 { protocol, source: 0, destination: port };
        let packet = Packet { source, destination, l4 };
        let tables = Tables::new(&compile(&self.policies, &self.identities));
        let oracle = Oracle { policies: &self.policies, identities: &self.identities };
        for judged in [tables.judge(direction, &packet), oracle.judge(direction, &packet)] {
            let said = judged.map(|(allow, decision)| match decision {
                Decision::Rule { tier, policy, index, .. } => {
                    let rules = self.policies.tiers.iter().find(|it| it.name == tier);
                    let found = rules.map(|it| &it.policies);
                    let place = found.and_then(|all| all.values().position(|it| it.name == policy));
                    let name: &'static str = if tier == "t" { "t" } else { "u" };
                    assert!(allow, "the cases' rules allow");
                    Says::Rule(name, place.expect("a policy"), index)
                }
                Decision::TierDefault { tier } => Says::Tier(if tier == "t" { "t" } else { "u" }),
                Decision::Profile { .. } | Decision::NoProfile { .. } => Says::Profile,
                Decision::NoPolicy => panic!("the local pod has a policy"),
            });
            assert_eq!(said.as_ref(), Some(expected), "{packet:?}");
        }
    }
}

use Direction::{Egress, Ingress};

/// Its tables must not be taken for those of the one before, whatever number the
/// compiler has for either.
#[test]
fn a_policy_in_the_place_of_another_is_judged_by_its_own_rules() {
    let (allow, deny) = (rule(Action::Allow), rule(Action::Deny));
    let versions = [
        vec![deny.clone()],
        vec![allow.clone()],
        vec![allow.clone(), deny.clone()],
        vec![deny.clone(), allow.clone()],
        vec![allow, deny.clone(), deny],
    ];
    let mut compiler = Compiler::default();
    for rules in versions {
        let case = Case::new(vec![tier("t", TierAction::Deny, &[&rules])], vec![]);
        let tables = Tables::new(&compiler.compile(&case.policies, &case.identities));
        let own = local()[0].nets[0].addr();
        let peer = Addr::from_v4_bytes([192, 0, 2, 1]);
        let l4 = L4 { protocol: TCP, source: 0, destination: 80 };
        let packet = Packet { source: own, destination: peer, l4 };
        let judged = tables.judge(Egress, &packet).map(|(allow, _)| allow);
        assert_eq!(judged, Some(rules[0].action == Action::Allow), "{rules:?}");
    }
}

#[test]
fn what_passes_before_an_allow_for_all_meets_the_next_tier() {
    let pass = Rule { protocol: Some(GRE), ..rule(Action::Pass) };
    let first = tier("t", TierAction::Deny, &[&[pass], &[rule(Action::Allow)]]);
    let second = tier("u", TierAction::Deny, &[&[rule(Action::Allow)]]);
    let case = Case::new(vec![first, second], vec![]);
    case.says(Ingress, "192.0.2.1", GRE, 0, &Says::Rule("u", 0, 0));
    case.says(Ingress, "192.0.2.1", TCP, 0, &Says::Rule("t", 1, 0));
}

#[test]
fn a_pass_in_the_last_tier_goes_to_the_profile() {
    let case = Case::new(vec![tier("t", TierAction::Deny, &[&[rule(Action::Pass)]])], vec![]);
    case.says(Egress, "192.0.2.1", TCP, 80, &Says::Profile);
}

#[test]
fn a_policy_that_only_logs_makes_the_default_hold() {
    let tiers = vec![tier("t", TierAction::Deny, &[&[rule(Action::Log)]])];
    Case::new(tiers, vec![]).says(Ingress, "192.0.2.1", TCP, 80, &Says::Tier("t"));
}

#[test]
fn a_tier_with_staged_policies_only_is_skipped() {
    let mut staged = tier("t", TierAction::Deny, &[&[rule(Action::Deny)]]);
    let policies = staged.policies.values();
    let policies: Vec<_> =
        policies.map(|policy| Policy { staged: true, ..(**policy).clone() }).collect();
    staged = Tier::new("t", TierAction::Deny, policies);
    Case::new(vec![staged], vec![]).says(Ingress, "192.0.2.1", TCP, 80, &Says::Profile);
}

#[test]
fn all_is_what_is_known_and_no_selector_is_any_address() {
    let known = Rule { source: select("all()"), ..rule(Action::Allow) };
    let pod = identity(IdentityKind::Workload, "10.0.0.2", &[]);
    let case = Case::allowing(known, vec![pod]);
    case.says(Ingress, "10.0.0.2", TCP, 80, &Says::Rule("t", 0, 0));
    case.says(Ingress, "10.0.0.3", TCP, 80, &Says::Tier("t"));
    let case = Case::allowing(rule(Action::Allow), vec![]);
    case.says(Ingress, "10.0.0.3", TCP, 80, &Says::Rule("t", 0, 0));
}

#[test]
fn a_network_sets_host_prefix_adds_to_a_pod_of_that_address() {
    let both = Rule {
        source: Entity {
            not_selector: Some(Selector::parse("set == 'outer'").expect("a selector")),
            ..select("set == 'host'")
        },
        ..rule(Action::Allow)
    };
    let pod = identity(IdentityKind::Workload, "10.0.0.2", &[("app", "x")]);
    let host = identity(IdentityKind::NetworkSet, "10.0.0.2/32", &[("set", "host")]);
    let other = identity(IdentityKind::NetworkSet, "10.0.0.3/32", &[("set", "host")]);
    let case = Case::allowing(both.clone(), vec![pod.clone(), host.clone(), other.clone()]);
    case.says(Ingress, "10.0.0.2", TCP, 80, &Says::Rule("t", 0, 0));
    case.says(Ingress, "10.0.0.3", TCP, 80, &Says::Rule("t", 0, 0));
    let outer = identity(IdentityKind::NetworkSet, "10.0.0.0/30", &[("set", "outer")]);
    let case = Case::allowing(both, vec![pod, host, other, outer]);
    case.says(Ingress, "10.0.0.2", TCP, 80, &Says::Tier("t"));
    case.says(Ingress, "10.0.0.3", TCP, 80, &Says::Tier("t"));
}

#[test]
fn a_named_port_is_that_of_an_owner_that_the_selector_chooses() {
    let named = PortMatch::Named("http".into());
    let to_set = Entity { ports: vec![named.clone()], ..select("set == 'x'") };
    let mut pod = identity(IdentityKind::Workload, "10.0.0.2", &[("app", "x")]);
    pod.ports = vec![NamedPort { name: "http".into(), protocol: TCP, port: 8080 }];
    let set = identity(IdentityKind::NetworkSet, "10.0.0.0/24", &[("set", "x")]);
    let others = vec![pod, set];
    let case = Case::allowing(Rule { destination: to_set, ..rule(Action::Allow) }, others.clone());
    case.says(Egress, "10.0.0.2", TCP, 8080, &Says::Tier("t"));
    let to_pod = Entity { ports: vec![named], ..select("app == 'x'") };
    let case = Case::allowing(Rule { destination: to_pod, ..rule(Action::Allow) }, others);
    case.says(Egress, "10.0.0.2", TCP, 8080, &Says::Rule("t", 0, 0));
    case.says(Egress, "10.0.0.2", 17, 8080, &Says::Tier("t"));
}

#[test]
fn a_service_is_its_ports_as_destination_and_its_addresses_as_source() {
    let name = ObjectName { namespace: "n".into(), name: "s".into() };
    let service = || Entity { service: Some(name.clone()), ..Entity::default() };
    let to = Rule { destination: service(), ..rule(Action::Allow) };
    let from = Rule { source: service(), ..rule(Action::Allow) };
    let mut case = Case::new(vec![tier("t", TierAction::Deny, &[&[to], &[from]])], vec![]);
    let at = |host, port| ServiceEndpoint { address: [10, 0, 0, host].into(), port };
    let endpoints = vec![at(2, Some((TCP, 80))), at(2, Some((17, 53))), at(3, None)];
    case.policies.services.insert(name.clone(), endpoints.into());
    case.says(Egress, "10.0.0.2", TCP, 80, &Says::Rule("t", 0, 0));
    case.says(Egress, "10.0.0.2", 17, 80, &Says::Tier("t"));
    case.says(Egress, "10.0.0.3", TCP, 80, &Says::Tier("t"));
    case.says(Ingress, "10.0.0.3", TCP, 80, &Says::Rule("t", 1, 0));
    case.says(Ingress, "10.0.0.2", GRE, 0, &Says::Rule("t", 1, 0));
    case.says(Ingress, "10.0.0.4", TCP, 80, &Says::Tier("t"));
}

#[test]
fn icmp_type_and_code_zero_are_values() {
    let zero = Icmp { kind: 0, code: Some(0) };
    let reply = Rule { protocol: Some(1), icmp: Some(zero), ..rule(Action::Allow) };
    let case = Case::allowing(reply, vec![]);
    case.says(Ingress, "192.0.2.1", 1, 0, &Says::Rule("t", 0, 0));
    case.says(Ingress, "192.0.2.1", 1, 1, &Says::Tier("t"));
    case.says(Ingress, "192.0.2.1", 1, 8 << 8, &Says::Tier("t"));
    case.says(Ingress, "2001:db8::1", 58, 0, &Says::Tier("t"));
}

#[test]
fn numbers_match_only_where_there_are_ports() {
    let all_ports = vec![PortMatch::Range(0..=u16::MAX)];
    let ports = Entity { ports: all_ports.clone(), ..Entity::default() };
    let case = Case::allowing(Rule { destination: ports, ..rule(Action::Allow) }, vec![]);
    case.says(Ingress, "192.0.2.1", 132, 65535, &Says::Rule("t", 0, 0));
    case.says(Ingress, "192.0.2.1", GRE, 0, &Says::Tier("t"));
    case.says(Ingress, "192.0.2.1", 1, 8 << 8, &Says::Tier("t"));
    let no_ports = Entity { not_ports: all_ports, ..Entity::default() };
    let case = Case::allowing(Rule { destination: no_ports, ..rule(Action::Allow) }, vec![]);
    case.says(Ingress, "192.0.2.1", TCP, 0, &Says::Tier("t"));
    case.says(Ingress, "192.0.2.1", GRE, 0, &Says::Rule("t", 0, 0));
}

#[test]
fn a_rule_of_one_family_does_not_exist_for_the_other() {
    let only_v4 = Rule { v6: false, ..rule(Action::Allow) };
    let case = Case::allowing(only_v4, vec![]);
    case.says(Ingress, "192.0.2.1", TCP, 80, &Says::Rule("t", 0, 0));
    case.says(Ingress, "2001:db8::1", TCP, 80, &Says::Tier("t"));
}

#[test]
fn what_stays_keeps_its_number_and_its_tables() {
    let allow = |text| Rule { source: select(text), ..rule(Action::Allow) };
    let tiers = vec![tier("t", TierAction::Deny, &[&[allow("app == 'x'")]])];
    let pod = |net, app| identity(IdentityKind::Workload, net, &[("app", app)]);
    let mut case = Case::new(tiers, vec![pod("10.0.0.2", "x"), pod("10.0.0.9", "x")]);
    let mut compiler = Compiler::default();
    let before = compiler.compile(&case.policies, &case.identities);
    // The first of a class goes, one that no rule sees comes, and one of
    // another class comes.
    case.identities.retain(|it| it.name.name != "10.0.0.2");
    case.identities.push(pod("10.0.0.1", "y"));
    case.identities.push(pod("10.0.0.3", "x"));
    let after = compiler.compile(&case.policies, &case.identities);
    let class = |compiled: &tieline::policy::Compiled, addr: &str| {
        let addr: Addr = addr.parse::<std::net::IpAddr>().expect("an address").into();
        compiled.endpoints.get(addr).expect("an endpoint").class
    };
    assert_eq!(class(&after, "10.0.0.9"), class(&before, "10.0.0.9"));
    assert_eq!(class(&after, "10.0.0.3"), class(&before, "10.0.0.2"));
    assert!(before.policies.iter().next().is_some() && before.policies.is_same(&after.policies));
    // A policy that comes does not renumber the decisions of those that stay.
    let more = tier("u", TierAction::Deny, &[&[allow("app == 'y'")]]);
    case.policies.tiers.insert(0, more);
    let last = compiler.compile(&case.policies, &case.identities);
    assert_eq!(last.decisions[..after.decisions.len()], after.decisions[..]);
}
