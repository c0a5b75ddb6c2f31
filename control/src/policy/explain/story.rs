//! Which tiers, policies and rules a packet meets on its way to a verdict that
//! is known already.

use std::collections::HashSet;

use serde::Serialize;
use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::L4;

use super::hypothetical::is_hypothetical;
use super::words::{OTHER_PROTOCOL, describe, distance, failures};
use super::{DecidedBy, EndpointInfo, IdentityInfo, Side};
use crate::policy::compile::{Decision, Direction};
use crate::policy::model::{Action, Policy, PolicySet, PolicySource, Rule, Tier, TierAction};
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

/// A rule that was read. A rule of Kubernetes' with several peers or protocols
/// is read as one for each, all under its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    /// Its place in its policy and direction as the user wrote it, counted from
    /// 1.
    pub rule: usize,
    /// `Allow`, `Deny`, `Pass` or `Log`.
    pub action: &'static str,
    /// Its conditions.
    pub conditions: Vec<String>,
    /// The conditions that failed; none when the rule matched.
    pub failed: Vec<String>,
    /// How far it was from matching.
    #[serde(skip)]
    distance: usize,
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
                _ if is_hypothetical(owner) => "hypothetical-pod",
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
    pub(super) fn name(&self) -> String {
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
    tier.policies.values().filter_map(move |policy| {
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
        otherwise: None,
        staged: None,
        felix: None,
        near_misses: Vec::new(),
        trace: Vec::new(),
    };
    match decision {
        Decision::NoPolicy => {}
        Decision::Rule { tier, source, policy, .. } => {
            side.decided_by = DecidedBy::Rule;
            side.tier = Some(tier.clone());
            side.policy = Some(policy.to_string());
            side.policy_kind = Some(kind_name(*source));
            side.rule = decided_rule(set, decision).map(|rule| rule.origin + 1);
        }
        Decision::TierDefault { tier } => {
            side.decided_by = DecidedBy::TierDefault;
            side.tier = Some(tier.clone());
        }
        Decision::Profile { name } | Decision::NoProfile { name } => {
            side.decided_by = DecidedBy::Profile;
            side.profile = Some(name.clone());
        }
    }
    side
}

/// The verdict and why, in words that may follow "would be".
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
            let place = rule.map_or(*index, |rule| rule.origin) + 1;
            let mut what = rule.map(describe).unwrap_or_default();
            what.extend(packet.ends(direction).1.cluster().filter(|_| !what.is_empty()));
            let what = if what.is_empty() { "everything".to_owned() } else { what.join(", ") };
            let action = if allow { "Allow" } else { "Deny" };
            format!("{by} tier {tier}, policy {policy}, rule {place} ({action}: {what})")
        }
        Decision::TierDefault { tier } => {
            let of = set.tiers.iter().filter(|it| it.name == *tier);
            let names: Vec<String> = of
                .flat_map(|tier| applying(tier, direction, packet))
                .filter(|(policy, _)| !policy.staged)
                .map(|(policy, _)| policy.name.to_string())
                .collect();
            format!(
                "{by} the default action of tier {tier}: {} to {}, and no rule allows this",
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
        Decision::NoProfile { name } => format!(
            "{by} default: no tier decides, and profile {name}, which would, is missing; there is \
             no object Namespace {}: add it",
            name.strip_prefix("kns.").unwrap_or(name),
        ),
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

/// What decided, in few words.
pub(super) fn decided(set: &PolicySet, decision: &Decision) -> String {
    match decision {
        Decision::NoPolicy => "no policy".to_owned(),
        Decision::Rule { tier, policy, index, .. } => {
            let place = decided_rule(set, decision).map_or(*index, |rule| rule.origin) + 1;
            format!("tier {tier}, policy {policy}, rule {place}")
        }
        Decision::TierDefault { tier } => format!("default action of tier {tier}"),
        Decision::Profile { name } => format!("profile {name}"),
        Decision::NoProfile { name } => format!("missing profile {name}"),
    }
}

fn decided_rule<'p>(set: &'p PolicySet, decision: &Decision) -> Option<&'p Rule> {
    let Decision::Rule { tier, source, policy, direction, index } = decision else { return None };
    let tier = set.tiers.iter().find(|it| it.name == *tier)?;
    let mut policies = tier.policies.values();
    let policy = policies.find(|it| it.source == *source && it.name == *policy)?;
    rules(policy, *direction)?.get(*index)
}

/// What would have followed had a denying rule not been there, by reading on
/// after it.
pub(super) fn without_rule(
    set: &PolicySet,
    direction: Direction,
    packet: &Packet<'_>,
    decision: &Decision,
) -> Option<String> {
    let skipped = decided_rule(set, decision).filter(|rule| rule.action == Action::Deny)?;
    let by = |verdict: &str, tier: &Tier, policy: &Policy, rule: &Rule| {
        let place = rule.origin + 1;
        Some(format!("{verdict} by tier {}, policy {}, rule {place}", tier.name, policy.name))
    };
    'tiers: for tier in &set.tiers {
        let mut enforced = false;
        for (policy, rules) in applying(tier, direction, packet).filter(|(it, _)| !it.staged) {
            enforced = true;
            let others = rules.iter().filter(|rule| !std::ptr::eq(*rule, skipped));
            for rule in others.filter(|rule| failures(set, rule, packet).is_empty()) {
                match rule.action {
                    Action::Allow => return by("allowed", tier, policy, rule),
                    Action::Deny => return by("denied", tier, policy, rule),
                    Action::Pass => continue 'tiers,
                    Action::Log => {}
                }
            }
        }
        if enforced && tier.default_action == TierAction::Deny {
            return Some(format!("denied by the default action of tier {}", tier.name));
        }
    }
    let has_profile = packet.ends(direction).0.selectable().all(|owner| owner.profile);
    Some(if has_profile {
        "allowed by the profile of its namespace".to_owned()
    } else {
        "denied, because its namespace is not there".to_owned()
    })
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
    for rule in rules {
        let failed = failures(set, rule, packet);
        let matched = failed.is_empty();
        let (action, conditions) = (rule.action, describe(rule));
        let (rule, distance) = (rule.origin + 1, distance(&failed, rule, packet));
        let name = action_name(action);
        seen.rules.push(RuleTrace { rule, action: name, conditions, failed, distance });
        if matched && action != Action::Log {
            return (seen, Some(action));
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
                let miss = NearMiss {
                    tier: tier.tier.clone(),
                    policy_kind: policy.kind,
                    policy: policy.name.clone(),
                    rule: rule.rule,
                    action: rule.action,
                    failed: rule.failed.clone(),
                };
                (rule.distance, miss)
            }));
        }
    }
    near.sort_by_key(|(distance, _)| *distance);
    if near.first().is_some_and(|(distance, _)| *distance < OTHER_PROTOCOL) {
        near.retain(|(distance, _)| *distance < OTHER_PROTOCOL);
    }
    let mut near: Vec<NearMiss> = near.into_iter().map(|(_, miss)| miss).collect();
    // Of several rules that come from one, the nearest tells it.
    let mut told = HashSet::new();
    near.retain(|miss| told.insert((miss.policy_kind, miss.policy.clone(), miss.rule)));
    near.truncate(NEAR_MISSES);
    near
}
