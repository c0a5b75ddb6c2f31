//! Kubernetes' policies, as Calico converts them to its own.

use std::collections::BTreeMap;

use super::{
    NAMESPACE, Notes, ORCHESTRATOR, Placed, in_namespaces, is_shown, note_unused, set_families,
};
use crate::policy::api::{
    self, ClusterPeer, ClusterTier, KubernetesPeer, PolicyKind, PolicyType, Subject,
};
use crate::policy::model::{Action, Entity, Policy, PolicySource, PortMatch, Rule};
use crate::policy::selector::Selector;
use crate::state::ObjectName;

/// Where NetworkPolicies stand in tier `default`.
const ORDER: f64 = 1000.0;

pub(super) fn policy(
    kind: PolicyKind,
    name: &ObjectName,
    policy: &api::KubernetesPolicy,
    notes: &mut Notes<'_>,
) -> Option<Placed> {
    if !is_shown(policy.staged_action, notes) {
        return None;
    }
    let staged = kind == PolicyKind::StagedKubernetesNetworkPolicy;
    let default = policy.types.is_empty();
    let ingress = default || policy.types.contains(&PolicyType::Ingress);
    let egress = policy.types.contains(&PolicyType::Egress) || default && !policy.egress.is_empty();
    note_unused("ingress", "policyTypes", !ingress && !policy.ingress.is_empty(), notes);
    note_unused("egress", "policyTypes", !egress && !policy.egress.is_empty(), notes);
    let rules = |rules: &[api::KubernetesRule], to_peers| -> Vec<Rule> {
        from_one_each(rules, |_, of| rule(of, &name.namespace, to_peers))
    };
    let source = if staged {
        PolicySource::StagedKubernetesNetworkPolicy
    } else {
        PolicySource::KubernetesNetworkPolicy
    };
    let converted = Policy {
        source,
        name: name.clone(),
        staged,
        selector: Selector::equals(NAMESPACE, &name.namespace).and(&pods(&policy.pods)),
        ingress: ingress.then(|| rules(&policy.ingress, false)),
        egress: egress.then(|| rules(&policy.egress, true)),
    };
    Some(Placed::new("default".to_owned(), Some(ORDER), converted))
}

/// What each of some rules becomes, in their order, under its place.
fn from_one_each<T>(rules: &[T], mut each: impl FnMut(usize, &T) -> Vec<Rule>) -> Vec<Rule> {
    let mut all = Vec::with_capacity(rules.len());
    for (origin, rule) in rules.iter().enumerate() {
        all.extend(each(origin, rule).into_iter().map(|of| Rule { origin, ..of }));
    }
    all
}

/// Kubernetes' pods, of which Calico's selectors see more than pods.
fn pods(selector: &Selector) -> Selector {
    Selector::equals(ORCHESTRATOR, "k8s").and(selector)
}

/// One rule for each protocol and peer.
fn rule(rule: &api::KubernetesRule, namespace: &str, to_peers: bool) -> Vec<Rule> {
    let mut peers: Vec<Entity> = rule.peers.iter().map(|of| peer(of, namespace)).collect();
    if peers.is_empty() {
        peers.push(Entity::default());
    }
    let ports = rule.ports.iter().map(|ports| (Some(ports.protocol), ports.port.clone()));
    combine(Action::Allow, &peers, ports, to_peers)
}

fn peer(peer: &KubernetesPeer, namespace: &str) -> Entity {
    match peer {
        KubernetesPeer::Block { cidr, except } => {
            Entity { nets: vec![*cidr], not_nets: except.clone(), ..Entity::default() }
        }
        KubernetesPeer::Pods { namespaces, pods: selector } => {
            let namespaces = match namespaces {
                Some(selector) => in_namespaces(selector),
                None => Selector::equals(NAMESPACE, namespace),
            };
            Entity { selector: Some(namespaces.and(&pods(selector))), ..Entity::default() }
        }
    }
}

/// Peers over ports. An entry without a port stands for all ports of its
/// protocol; no entry at all for every packet.
fn combine(
    action: Action,
    peers: &[Entity],
    entries: impl Iterator<Item = (Option<u8>, Option<PortMatch>)>,
    to_peers: bool,
) -> Vec<Rule> {
    let mut by_protocol: BTreeMap<Option<u8>, Option<Vec<PortMatch>>> = BTreeMap::new();
    for (protocol, port) in entries {
        let ports = by_protocol.entry(protocol).or_insert_with(|| Some(Vec::new()));
        match (ports.as_mut(), port) {
            (Some(ports), Some(port)) => ports.push(port),
            _ => *ports = None,
        }
    }
    if by_protocol.is_empty() {
        by_protocol.insert(None, None);
    }
    let mut rules = Vec::with_capacity(by_protocol.len() * peers.len());
    for (protocol, ports) in by_protocol {
        let ports = merged(ports.unwrap_or_default());
        for peer in peers {
            let mut rule = anything(action);
            rule.protocol = protocol;
            if to_peers {
                rule.destination = peer.clone();
            } else {
                rule.source = peer.clone();
            }
            rule.destination.ports.clone_from(&ports);
            set_families(&mut rule, None);
            rules.push(rule);
        }
    }
    rules
}

/// Names, then the fewest ranges with the same numbers.
fn merged(ports: Vec<PortMatch>) -> Vec<PortMatch> {
    let mut names = Vec::new();
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            PortMatch::Named(_) if names.contains(&port) => {}
            PortMatch::Named(_) => names.push(port),
            PortMatch::Range(range) => ranges.push(range),
        }
    }
    ranges.sort_by_key(|range| (*range.start(), *range.end()));
    let mut merged: Vec<std::ops::RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    names.extend(merged.into_iter().map(PortMatch::Range));
    names
}

/// A rule without conditions.
fn anything(action: Action) -> Rule {
    Rule {
        origin: 0,
        action,
        v4: true,
        v6: true,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
    }
}

pub(super) fn cluster_policy(
    name: &ObjectName,
    policy: &api::ClusterPolicy,
    notes: &mut Notes<'_>,
) -> Placed {
    let tier = match policy.tier {
        ClusterTier::Admin => "kube-admin",
        ClusterTier::Baseline => "kube-baseline",
    };
    let mut rules = |direction: &str, rules: &[api::ClusterRule]| {
        let rules = from_one_each(rules, |place, of| {
            cluster_rule(of, &format!("spec.{direction}[{place}]"), direction, notes)
        });
        // The tiers end in Pass, so a direction without rules has no effect.
        (!rules.is_empty()).then_some(rules)
    };
    let Subject { namespaces, pods: subject } = &policy.subject;
    let converted = Policy {
        source: PolicySource::ClusterNetworkPolicy,
        name: name.clone(),
        staged: false,
        selector: in_namespaces(namespaces)
            .and(&pods(subject.as_ref().unwrap_or(&Selector::all()))),
        ingress: rules("ingress", &policy.ingress),
        egress: rules("egress", &policy.egress),
    };
    let order = Some(f64::from(policy.priority));
    Placed::new(tier.to_owned(), order, converted)
}

/// `at` is the rule's path.
fn cluster_rule(
    rule: &api::ClusterRule,
    at: &str,
    direction: &str,
    notes: &mut Notes<'_>,
) -> Vec<Rule> {
    let list = if direction == "egress" { "to" } else { "from" };
    let mut peers = Vec::with_capacity(rule.peers.len());
    for (place, peer) in rule.peers.iter().enumerate() {
        match peer {
            ClusterPeer::Pods(subject) => peers.push(cluster_peer(subject)),
            ClusterPeer::Networks(nets) => {
                peers.push(Entity { nets: nets.clone(), ..Entity::default() });
            }
            ClusterPeer::Unsupported(kind) => {
                let at = format!("{at}.{list}[{place}].{kind}");
                return fail_closed(rule.action, direction, &at, notes);
            }
        }
    }
    let ports = rule.protocols.iter().map(|entry| (entry.protocol, Some(entry.port.clone())));
    combine(rule.action, &peers, ports, direction == "egress")
}

/// Namespaces alone choose all that is in them, network sets too; only a
/// selector of pods is about pods.
fn cluster_peer(subject: &Subject) -> Entity {
    let namespaces = in_namespaces(&subject.namespaces);
    let selector = match &subject.pods {
        None => namespaces,
        Some(selector) => namespaces.and(&pods(selector)),
    };
    Entity { selector: Some(selector), ..Entity::default() }
}

/// What the API asks for where a peer can't be told: Accept nothing, deny all.
fn fail_closed(action: Action, direction: &str, at: &str, notes: &mut Notes<'_>) -> Vec<Rule> {
    let does = if action == Action::Allow { "accepts nothing" } else { "denies everything" };
    let networks = if direction == "egress" { "networks, " } else { "" };
    notes.error(format!(
        "{at}: is not supported, so the rule {does}; write {networks}namespaces or pods"
    ));
    if action == Action::Allow {
        return Vec::new();
    }
    vec![anything(Action::Deny)]
}
