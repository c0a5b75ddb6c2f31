//! A rule against a packet, in words: what it asks, and what of that fails.
//!
//! This reads the model for the sake of the story alone: the verdict is the
//! compiled tables', and the tests hold the two against each other.

use std::ops::RangeInclusive;

use serde::Serialize;
use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::L4;

use super::{DecidedBy, EndpointInfo, IdentityInfo, Protocol, Side};
use crate::policy::compile::{Decision, Direction};
use crate::policy::model::{
    Action, Entity, Icmp, Policy, PolicySet, PolicySource, PortMatch, Rule, Tier, TierAction,
};
use crate::policy::selector::Selector;
use crate::state::{ClusterId, Identity, IdentityKind};

/// A tier that was considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierTrace {
    /// Its name.
    pub tier: String,
    /// The policies of it that apply, in order, as far as they were read.
    pub policies: Vec<PolicyTrace>,
    /// How it ended: `allow`, `deny` or `pass` by a rule, `default-deny`,
    /// `default-pass`, or `skipped` when none but staged policies apply.
    pub end: &'static str,
}

/// A policy that applies to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyTrace {
    /// Its kind.
    pub kind: &'static str,
    /// `namespace/name`, or the name of a global one.
    pub name: String,
    /// Whether it is staged: read for the trace, without effect.
    pub staged: bool,
    /// Its rules as far as they were read.
    pub rules: Vec<RuleTrace>,
}

/// A rule that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    /// Its place in its policy and direction, counted from 1.
    pub rule: usize,
    /// `Allow`, `Deny`, `Pass` or `Log`.
    pub action: &'static str,
    /// Its conditions.
    pub conditions: Vec<String>,
    /// The conditions that failed; none when the rule matched.
    pub failed: Vec<String>,
}

/// A rule that would have decided otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NearMiss {
    /// The tier of its policy.
    pub tier: String,
    /// The kind of its policy.
    pub policy_kind: &'static str,
    /// Its policy.
    pub policy: String,
    /// Its place, counted from 1.
    pub rule: usize,
    /// What it would have done.
    pub action: &'static str,
    /// The conditions that failed.
    pub failed: Vec<String>,
}

/// An address and the identities that it is one of.
#[derive(Clone, Debug)]
pub(super) struct Peer<'a> {
    pub(super) addr: Addr,
    /// Most specific first.
    pub(super) owners: Vec<&'a Identity>,
}

/// A packet as rules see it.
#[derive(Clone, Debug)]
pub(super) struct Packet<'a> {
    pub(super) source: Peer<'a>,
    pub(super) destination: Peer<'a>,
    pub(super) l4: L4,
}

impl<'a> Packet<'a> {
    /// The local end and the other one.
    pub(super) fn ends(&self, direction: Direction) -> (&Peer<'a>, &Peer<'a>) {
        match direction {
            Direction::Ingress => (&self.destination, &self.source),
            Direction::Egress => (&self.source, &self.destination),
        }
    }
}

impl<'a> Peer<'a> {
    /// The local cluster's node that judges packets of this address: that of
    /// the pod that has it.
    pub(super) fn local_node(&self) -> Option<&'a str> {
        let pod = self.owners.iter().find(|owner| is_local_pod(owner))?;
        Some(&pod.node)
    }

    /// The identities that main selectors choose among.
    fn selectable(&self) -> impl Iterator<Item = &&'a Identity> {
        let node = self.local_node();
        self.owners
            .iter()
            .filter(move |owner| is_local_pod(owner) && Some(owner.node.as_str()) == node)
    }

    pub(super) fn info(&self) -> EndpointInfo {
        let identities = self.owners.iter().map(|owner| IdentityInfo {
            kind: match owner.kind {
                IdentityKind::LocalWorkload | IdentityKind::Workload => "pod",
                IdentityKind::Host => "host-endpoint",
                IdentityKind::NetworkSet => "network-set",
            },
            cluster: owner.cluster.to_string(),
            name: owner.name.to_string(),
            node: owner.node.clone(),
        });
        EndpointInfo { address: self.addr.to_ip(), identities: identities.collect() }
    }

    /// The address, or the pod that has it.
    fn name(&self) -> String {
        match self.owners.iter().find(|owner| owner.kind != IdentityKind::NetworkSet) {
            Some(owner) => format!("{}:{}", owner.cluster, owner.name),
            None => self.addr.to_string(),
        }
    }

    /// Says of which remote cluster the address is.
    fn cluster(&self) -> Option<String> {
        let owner = self.owners.iter().find(|owner| owner.kind != IdentityKind::NetworkSet)?;
        match &owner.cluster {
            ClusterId::Local => None,
            ClusterId::Remote(name) => Some(format!("cluster {name}")),
        }
    }
}

fn is_local_pod(identity: &Identity) -> bool {
    identity.cluster == ClusterId::Local
        && matches!(identity.kind, IdentityKind::LocalWorkload | IdentityKind::Workload)
}

/// The kind of resource, as its `kind` field has it.
fn kind_name(source: PolicySource) -> &'static str {
    match source {
        PolicySource::NetworkPolicy | PolicySource::KubernetesNetworkPolicy => "NetworkPolicy",
        PolicySource::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        PolicySource::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        PolicySource::StagedNetworkPolicy => "StagedNetworkPolicy",
        PolicySource::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
        PolicySource::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
    }
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
        Action::Log => "Log",
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// The policies of a tier that apply to the local end, and their rules.
fn applying<'p>(
    tier: &'p Tier,
    direction: Direction,
    packet: &Packet<'_>,
) -> impl Iterator<Item = (&'p Policy, &'p [Rule])> {
    let (local, _) = packet.ends(direction);
    tier.policies.iter().filter_map(move |policy| {
        let rules = rules(policy, direction)?;
        let selected = local.selectable().any(|owner| policy.selector.matches(&owner.labels));
        selected.then_some((&**policy, rules))
    })
}

/// Whether staged policies apply to the local end.
pub(super) fn any_staged(set: &PolicySet, direction: Direction, packet: &Packet<'_>) -> bool {
    set.tiers.iter().any(|tier| applying(tier, direction, packet).any(|(it, _)| it.staged))
}

/// A verdict with its decision spelled out.
pub(super) fn side(
    set: &PolicySet,
    direction: Direction,
    packet: &Packet<'_>,
    allow: bool,
    decision: &Decision,
) -> Side {
    let mut side = Side {
        verdict: allow.into(),
        reason: reason(set, direction, packet, allow, decision),
        decided_by: DecidedBy::NoPolicy,
        tier: None,
        policy: None,
        policy_kind: None,
        rule: None,
        profile: None,
        staged: None,
        near_misses: Vec::new(),
        trace: Vec::new(),
    };
    match decision {
        Decision::NoPolicy => {}
        Decision::Rule { tier, source, policy, index, .. } => {
            side.decided_by = DecidedBy::Rule;
            side.tier = Some(tier.clone());
            side.policy = Some(policy.to_string());
            side.policy_kind = Some(kind_name(*source));
            side.rule = Some(index + 1);
        }
        Decision::TierDefault { tier } => {
            side.decided_by = DecidedBy::TierDefault;
            side.tier = Some(tier.clone());
        }
        Decision::Profile { name } => {
            side.decided_by = DecidedBy::Profile;
            side.profile = Some(name.clone());
        }
    }
    side
}

/// Why, in words.
pub(super) fn reason(
    set: &PolicySet,
    direction: Direction,
    packet: &Packet<'_>,
    allow: bool,
    decision: &Decision,
) -> String {
    let by = if allow { "allowed by" } else { "denied by" };
    match decision {
        Decision::NoPolicy => format!("{by} default: no policy is asked about this address"),
        Decision::Rule { tier, policy, index, .. } => {
            let rule = decided_rule(set, decision);
            let mut what = rule.map(describe).unwrap_or_default();
            what.extend(packet.ends(direction).1.cluster().filter(|_| !what.is_empty()));
            let what = if what.is_empty() { "everything".to_owned() } else { what.join(", ") };
            let action = if allow { "Allow" } else { "Deny" };
            format!("{by} tier {tier}, policy {policy}, rule {} ({action}: {what})", index + 1)
        }
        Decision::TierDefault { tier } => {
            let of = set.tiers.iter().filter(|it| it.name == *tier);
            let names: Vec<String> = of
                .flat_map(|tier| applying(tier, direction, packet))
                .filter(|(policy, _)| !policy.staged)
                .map(|(policy, _)| policy.name.to_string())
                .collect();
            format!(
                "{by} tier {tier}'s default action: {} to {}, and no rule allows this",
                match names.as_slice() {
                    [name] => format!("policy {name} applies"),
                    [first, second] => format!("policies {first} and {second} apply"),
                    [first, .., last] => {
                        format!("policies {first} to {last} ({} of them) apply", names.len())
                    }
                    [] => "policies apply".to_owned(),
                },
                packet.ends(direction).0.name(),
            )
        }
        Decision::Profile { name } => {
            let enforced = |tier| applying(tier, direction, packet).any(|(it, _)| !it.staged);
            let why = if set.tiers.iter().any(enforced) {
                "every tier passed"
            } else {
                match direction {
                    Direction::Ingress => "no policy for ingress applies",
                    Direction::Egress => "no policy for egress applies",
                }
            };
            format!("{by} profile {name}: {why}")
        }
    }
}

fn decided_rule<'p>(set: &'p PolicySet, decision: &Decision) -> Option<&'p Rule> {
    let Decision::Rule { tier, source, policy, direction, index } = decision else { return None };
    let tier = set.tiers.iter().find(|it| it.name == *tier)?;
    let mut policies = tier.policies.iter();
    let policy = policies.find(|it| it.source == *source && it.name == *policy)?;
    rules(policy, *direction)?.get(*index)
}

/// The tiers and policies considered, up to what decided.
pub(super) fn trace(
    set: &PolicySet,
    direction: Direction,
    packet: &Packet<'_>,
    decision: &Decision,
) -> Vec<TierTrace> {
    let mut trace = Vec::new();
    for tier in &set.tiers {
        let mut seen = TierTrace {
            tier: tier.name.clone(),
            policies: Vec::new(),
            end: match tier.default_action {
                TierAction::Deny => "default-deny",
                TierAction::Pass => "default-pass",
            },
        };
        let mut enforced = false;
        let mut decided = false;
        for (policy, rules) in applying(tier, direction, packet) {
            let (policy, last) = read(set, policy, rules, packet);
            enforced |= !policy.staged;
            let ends = last.filter(|_| !policy.staged);
            seen.policies.push(policy);
            if let Some(action) = ends {
                decided = action != Action::Pass;
                seen.end = match action {
                    Action::Allow => "allow",
                    Action::Deny => "deny",
                    Action::Pass | Action::Log => "pass",
                };
                break;
            }
        }
        if seen.policies.is_empty() {
            continue;
        }
        if !enforced {
            seen.end = "skipped";
        }
        let ends_here = matches!(decision, Decision::TierDefault { tier } if *tier == seen.tier);
        trace.push(seen);
        if decided || ends_here {
            break;
        }
    }
    trace
}

/// Reads a policy's rules up to the first that matches and is not Log.
fn read(
    set: &PolicySet,
    policy: &Policy,
    rules: &[Rule],
    packet: &Packet<'_>,
) -> (PolicyTrace, Option<Action>) {
    let mut seen = PolicyTrace {
        kind: kind_name(policy.source),
        name: policy.name.to_string(),
        staged: policy.staged,
        rules: Vec::new(),
    };
    for (index, rule) in rules.iter().enumerate() {
        let failed = failures(set, rule, packet);
        let matched = failed.is_empty();
        let (action, conditions) = (action_name(rule.action), describe(rule));
        seen.rules.push(RuleTrace { rule: index + 1, action, conditions, failed });
        if matched && rule.action != Action::Log {
            return (seen, Some(rule.action));
        }
    }
    (seen, None)
}

/// The most near misses that are worth telling.
const NEAR_MISSES: usize = 3;

/// The rules that would have turned the verdict but for one or two conditions.
pub(super) fn near_misses(trace: &[TierTrace], allow: bool) -> Vec<NearMiss> {
    let turns = if allow { "Deny" } else { "Allow" };
    let mut near = Vec::new();
    for tier in trace {
        for policy in tier.policies.iter().filter(|policy| !policy.staged) {
            let rules = policy.rules.iter().filter(|rule| rule.action == turns);
            near.extend(rules.filter(|rule| (1..=2).contains(&rule.failed.len())).map(|rule| {
                NearMiss {
                    tier: tier.tier.clone(),
                    policy_kind: policy.kind,
                    policy: policy.name.clone(),
                    rule: rule.rule,
                    action: rule.action,
                    failed: rule.failed.clone(),
                }
            }));
        }
    }
    near.sort_by_key(|miss| miss.failed.len());
    near.truncate(NEAR_MISSES);
    near
}

/// A rule's conditions in words.
fn describe(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    match (rule.v4, rule.v6) {
        (true, false) => all.push("IPv4".to_owned()),
        (false, true) => all.push("IPv6".to_owned()),
        (true, true) | (false, false) => {}
    }
    all.extend(rule.protocol.map(|number| Protocol(number).to_string()));
    all.extend(rule.not_protocol.map(|number| format!("not {}", Protocol(number))));
    all.extend(rule.icmp.map(icmp_words));
    all.extend(rule.not_icmp.map(|icmp| format!("not {}", icmp_words(icmp))));
    for (end, entity) in [("source", &rule.source), ("destination", &rule.destination)] {
        let Entity { nets, not_nets, selector, not_selector, ports, not_ports, service } = entity;
        let mut add = |words: &str, what: String| all.push(format!("{end} {words}{what}"));
        if !nets.is_empty() {
            add("in ", list(nets));
        }
        if !not_nets.is_empty() {
            add("not in ", list(not_nets));
        }
        if let Some(selector) = selector {
            add("matches ", bare(selector));
        }
        if let Some(selector) = not_selector {
            add("does not match ", bare(selector));
        }
        if !ports.is_empty() {
            add("port ", port_list(ports));
        }
        if !not_ports.is_empty() {
            add("port not ", port_list(not_ports));
        }
        if let Some(service) = service {
            add("is service ", service.to_string());
        }
    }
    all
}

/// The conditions of a rule that a packet fails, in words.
fn failures(set: &PolicySet, rule: &Rule, packet: &Packet<'_>) -> Vec<String> {
    let mut failed = Vec::new();
    let L4 { protocol, .. } = packet.l4;
    let name = Protocol(protocol);
    let v4 = packet.source.addr.is_v4();
    if !(if v4 { rule.v4 } else { rule.v6 }) {
        let family = if v4 { "IPv4" } else { "IPv6" };
        failed.push(format!("the rule does not exist for {family}: by ipVersion, or its nets"));
    }
    if let Some(wanted) = rule.protocol.filter(|wanted| *wanted != protocol) {
        failed.push(format!("{name} is not {}", Protocol(wanted)));
    }
    if rule.not_protocol == Some(protocol) {
        failed.push(format!("{name} is what notProtocol excludes"));
    }
    let [kind, code] = packet.l4.destination.to_be_bytes();
    let is = |icmp: Icmp| {
        name.is_icmp() && icmp.kind == kind && icmp.code.is_none_or(|wanted| wanted == code)
    };
    let own = if name.is_icmp() { format!("type {kind} code {code}") } else { name.to_string() };
    if let Some(icmp) = rule.icmp.filter(|icmp| !is(*icmp)) {
        failed.push(format!("{own} is not {}", icmp_words(icmp)));
    }
    if rule.not_icmp.is_some_and(is) {
        failed.push(format!("{own} is what notICMP excludes"));
    }
    entity_failures("source", &rule.source, &packet.source, &packet.l4, &mut failed);
    entity_failures("destination", &rule.destination, &packet.destination, &packet.l4, &mut failed);
    service_failures(set, rule, packet, &mut failed);
    failed
}

fn service_failures(set: &PolicySet, rule: &Rule, packet: &Packet<'_>, failed: &mut Vec<String>) {
    let L4 { protocol, destination, .. } = packet.l4;
    let endpoints = |name, addr: Addr| {
        let all = set.services.get(name).into_iter().flatten();
        all.filter(move |endpoint| Addr::from(endpoint.address) == addr)
    };
    let source = packet.source.addr;
    if let Some(name) = &rule.source.service
        && endpoints(name, source).next().is_none()
    {
        failed.push(format!("source {source} is no endpoint of service {name}"));
    }
    let addr = packet.destination.addr;
    if let Some(name) = &rule.destination.service
        && !endpoints(name, addr).any(|endpoint| endpoint.port == Some((protocol, destination)))
    {
        let name_of = Protocol(protocol);
        let port = if name_of.has_ports() { format!(" port {destination}") } else { String::new() };
        failed
            .push(format!("destination {addr}, {name_of}{port} is no endpoint of service {name}"));
    }
}

fn entity_failures(end: &str, entity: &Entity, peer: &Peer<'_>, l4: &L4, failed: &mut Vec<String>) {
    let Peer { addr, owners } = peer;
    let name = peer.name();
    if !entity.nets.is_empty() && !entity.nets.iter().any(|net| net.contains(*addr)) {
        failed.push(format!("{end} {addr} is not in {}", list(&entity.nets)));
    }
    if let Some(net) = entity.not_nets.iter().find(|net| net.contains(*addr)) {
        failed.push(format!("{end} {addr} is in {net}, which notNets excludes"));
    }
    let chooses = |selector: &&Selector| owners.iter().any(|it| selector.matches(&it.labels));
    if let Some(selector) = entity.selector.as_ref().filter(|selector| !chooses(selector)) {
        failed.push(format!(
            "{end} {name} does not match {}{}",
            bare(selector),
            has(selector, peer)
        ));
    }
    if let Some(selector) = entity.not_selector.as_ref().filter(chooses) {
        failed.push(format!("{end} {name} matches {}, which notSelector excludes", bare(selector)));
    }
    let destination = end == "destination";
    let port = if destination { l4.destination } else { l4.source };
    let protocol = Protocol(l4.protocol);
    let matches = |wanted: &PortMatch| {
        protocol.has_ports()
            && match wanted {
                PortMatch::Range(range) => range.contains(&port),
                PortMatch::Named(_) => named(wanted, entity, peer, protocol).any(|it| it == port),
            }
    };
    let own = if protocol.has_ports() { format!("port {port}") } else { protocol.to_string() };
    if !entity.ports.is_empty() && !entity.ports.iter().any(matches) {
        let wanted = entity.ports.iter().map(|wanted| {
            let open: Vec<u16> = named(wanted, entity, peer, protocol).collect();
            match wanted {
                PortMatch::Range(range) => range_words(range),
                PortMatch::Named(name) if open.is_empty() => {
                    format!("{name} (no {protocol} port of that name there)")
                }
                PortMatch::Named(name) => format!("{name} ({})", list(&open)),
            }
        });
        let wanted: Vec<String> = wanted.collect();
        failed.push(format!("{end} {own} is not {}", list(&wanted)));
    }
    if entity.not_ports.iter().any(matches) {
        failed.push(format!("{end} {own} is what notPorts excludes"));
    }
}

/// The ports of a protocol that a name stands for at an address.
fn named<'p>(
    wanted: &'p PortMatch,
    entity: &'p Entity,
    peer: &'p Peer<'_>,
    protocol: Protocol,
) -> impl Iterator<Item = u16> + 'p {
    let selected = |owner: &&&Identity| {
        entity.selector.as_ref().is_none_or(|selector| selector.matches(&owner.labels))
    };
    let ports = peer.owners.iter().filter(selected).flat_map(|owner| &owner.ports);
    let ports = ports.filter(move |port| match wanted {
        PortMatch::Named(name) => port.name == *name && port.protocol == protocol.0,
        PortMatch::Range(_) => false,
    });
    ports.map(|port| port.port)
}

/// What of the labels that a selector looks at is there.
fn has(selector: &Selector, peer: &Peer<'_>) -> String {
    let Some(owner) = peer.owners.first() else {
        return ": it is no endpoint and in no network set that is known".to_owned();
    };
    let labels = selector.keys().iter().map(|key| match owner.labels.get(&**key) {
        Some(value) => format!("{key} is {value}"),
        None => format!("no label {key}"),
    });
    let labels: Vec<String> = labels.collect();
    if labels.is_empty() { String::new() } else { format!(" ({})", labels.join(", ")) }
}

fn icmp_words(icmp: Icmp) -> String {
    match icmp.code {
        Some(code) => format!("type {} code {code}", icmp.kind),
        None => format!("type {}", icmp.kind),
    }
}

fn range_words(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

fn port_list(ports: &[PortMatch]) -> String {
    let words = ports.iter().map(|port| match port {
        PortMatch::Range(range) => range_words(range),
        PortMatch::Named(name) => name.clone(),
    });
    list(&words.collect::<Vec<_>>())
}

/// The most members of a list that are written out.
const LISTED: usize = 6;

fn list<T: ToString>(all: &[T]) -> String {
    let mut words: Vec<String> = all.iter().take(LISTED).map(T::to_string).collect();
    if all.len() > LISTED {
        words.push(format!("{} more", all.len() - LISTED));
    }
    words.join(", ")
}

/// The canonical form without the outermost parentheses.
fn bare(selector: &Selector) -> String {
    let text = selector.as_str();
    // Only a group begins with a parenthesis, and then all of it is inside.
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    inner.unwrap_or(text).to_owned()
}
