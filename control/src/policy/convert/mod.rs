//! Resources to the model: defaults, selector rewriting, order.
//!
//! Promises: every policy that the API let through is in the set with the
//! meaning that Calico's iptables dataplane gives it, or a condition says what
//! is missing. Each policy is converted by itself; only tiers, order and
//! services see more than one object. Knows nothing of endpoints or packets.
//!
//! ```text
//! calico      Calico's policies: namespaces and service accounts in selectors
//! kubernetes  NetworkPolicy and ClusterNetworkPolicy, as Calico converts them
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use super::api::{self, BUILT_IN_TIERS, Family, PolicyKind, PolicyObject, PolicyObjects};
use super::model::{
    Entity, Policy, PolicySet, PolicySource, Rule, ServiceEndpoint, Tier, TierAction,
};
use super::selector::Selector;
use crate::state::{ClusterId, ClusterObjects, Condition, ObjectName, Severity};

mod calico;
mod kubernetes;
#[cfg(test)]
mod tests;

/// Labels that Calico puts on what is in a namespace.
const NAMESPACE: &str = "projectcalico.org/namespace";
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";

/// Prefixes of the labels that come from namespaces and service accounts.
const OF_NAMESPACE: &str = "pcns.";
const OF_SERVICE_ACCOUNT: &str = "pcsa.";

/// The policies of the local cluster, in order of precedence.
pub fn policy_set(local: &ClusterObjects) -> PolicySet {
    let mut converted: Vec<Converted> = Vec::new();
    let mut conditions = Vec::new();
    for ((kind, name), object) in &local.policy.0 {
        let notes = &mut Notes { kind: *kind, name, conditions: &mut conditions };
        converted.extend(convert(*kind, name, object, notes));
    }
    let services = services(&local.policy, &converted);
    let tiers = tiers(&local.policy, converted, &mut conditions);
    PolicySet { tiers, services, conditions }
}

/// A policy and its place.
struct Converted {
    kind: PolicyKind,
    tier: String,
    /// Infinite when the policy gives none.
    order: f64,
    /// What decides between equal orders.
    tie: String,
    policy: Policy,
}

impl Converted {
    fn new(kind: PolicyKind, tier: String, order: Option<f64>, policy: Policy) -> Self {
        let ObjectName { namespace, name } = &policy.name;
        let tie = format!("{name}/{namespace}/{}", kind_in_ties(policy.source));
        Self { kind, tier, order: sortable(order), tie, policy }
    }
}

/// A missing order is last; adding zero makes the two zeros one.
fn sortable(order: Option<f64>) -> f64 {
    order.map_or(f64::INFINITY, |order| order + 0.0)
}

const fn kind_in_ties(source: PolicySource) -> &'static str {
    match source {
        PolicySource::NetworkPolicy => "NetworkPolicy",
        PolicySource::GlobalNetworkPolicy => "GlobalNetworkPolicy",
        PolicySource::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
        PolicySource::ClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
        PolicySource::StagedNetworkPolicy => "StagedNetworkPolicy",
        PolicySource::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
        PolicySource::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
    }
}

/// What there is to say about one object.
struct Notes<'a> {
    kind: PolicyKind,
    name: &'a ObjectName,
    conditions: &'a mut Vec<Condition>,
}

impl Notes<'_> {
    fn warn(&mut self, message: impl Into<String>) {
        self.say(Severity::Warning, message.into());
    }

    fn error(&mut self, message: impl Into<String>) {
        self.say(Severity::Error, message.into());
    }

    fn say(&mut self, severity: Severity, message: String) {
        let object = format!("{} {}", self.kind, self.name);
        self.conditions.push(Condition { severity, cluster: ClusterId::Local, object, message });
    }
}

fn convert(
    kind: PolicyKind,
    name: &ObjectName,
    object: &PolicyObject,
    notes: &mut Notes<'_>,
) -> Option<Converted> {
    match object {
        PolicyObject::Policy(policy) => calico::policy(kind, name, policy, notes),
        PolicyObject::KubernetesPolicy(policy) => kubernetes::policy(kind, name, policy, notes),
        PolicyObject::ClusterPolicy(policy) => {
            Some(kubernetes::cluster_policy(name, policy, notes))
        }
        PolicyObject::Tier(_) | PolicyObject::NetworkSet(_) | PolicyObject::EndpointSlice(_) => {
            None
        }
    }
}

/// Whether a policy that stands for something else than itself is shown: only
/// one that would be set is a policy.
fn is_shown(action: api::StagedAction, notes: &mut Notes<'_>) -> bool {
    if action != api::StagedAction::Set {
        notes.warn(format!(
            "spec.stagedAction: {action:?} is not previewed; only Set policies are shown"
        ));
    }
    action == api::StagedAction::Set
}

/// Says that rules of a direction are there in which the policy does not apply.
fn note_unused(direction: &str, types: &str, unused: bool, notes: &mut Notes<'_>) {
    if unused {
        notes.warn(format!(
            "spec.{direction}: the rules have no effect, because spec.{types} leaves their \
             direction out; add it or remove them"
        ));
    }
}

/// Tiers that exist by order and name, then those that policies only name.
fn tiers(
    objects: &PolicyObjects,
    converted: Vec<Converted>,
    conditions: &mut Vec<Condition>,
) -> Vec<Tier> {
    let mut known: BTreeMap<&str, (f64, TierAction)> =
        BUILT_IN_TIERS.iter().map(|(name, order, action)| (*name, (*order, *action))).collect();
    for ((_, name), object) in &objects.0 {
        if let PolicyObject::Tier(tier) = &**object {
            let built_in = known.get(name.name.as_str()).map(|(_, action)| *action);
            let action = tier.default_action.or(built_in).unwrap_or(TierAction::Deny);
            known.insert(&name.name, (sortable(tier.order), action));
        }
    }
    let mut members: BTreeMap<String, Vec<Converted>> = BTreeMap::new();
    for policy in converted {
        members.entry(policy.tier.clone()).or_default().push(policy);
    }
    let mut order: Vec<_> =
        known.into_iter().map(|(name, (order, action))| (order, name.to_owned(), action)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let mut tiers: Vec<Tier> = order
        .into_iter()
        .map(|(_, name, action)| tier(members.remove(&name).unwrap_or_default(), name, action))
        .collect();
    for (name, policies) in members {
        for policy in &policies {
            let notes = &mut Notes { kind: policy.kind, name: &policy.policy.name, conditions };
            notes.warn(format!(
                "spec.tier: there is no tier {name}: the policy counts after all other tiers, \
                 and what none of its rules decides is denied; create the tier"
            ));
        }
        tiers.push(tier(policies, name, TierAction::Deny));
    }
    tiers
}

fn tier(mut policies: Vec<Converted>, name: String, default_action: TierAction) -> Tier {
    policies.sort_by(|a, b| a.order.total_cmp(&b.order).then_with(|| a.tie.cmp(&b.tie)));
    let policies = policies.into_iter().map(|converted| Arc::new(converted.policy)).collect();
    Tier { name, default_action, policies }
}

/// The endpoints of the services that rules name, ready or not.
fn services(
    objects: &PolicyObjects,
    converted: &[Converted],
) -> BTreeMap<ObjectName, Vec<ServiceEndpoint>> {
    let mut services: BTreeMap<ObjectName, BTreeSet<ServiceEndpoint>> = converted
        .iter()
        .flat_map(|converted| [&converted.policy.ingress, &converted.policy.egress])
        .flatten()
        .flatten()
        .flat_map(|rule| [&rule.source.service, &rule.destination.service])
        .flatten()
        .filter(|name| !name.namespace.is_empty())
        .map(|name| (name.clone(), BTreeSet::new()))
        .collect();
    if services.is_empty() {
        return BTreeMap::new();
    }
    for ((_, name), object) in &objects.0 {
        let PolicyObject::EndpointSlice(slice) = &**object else { continue };
        let Some(service) = &slice.service else { continue };
        let service = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
        if let Some(endpoints) = services.get_mut(&service) {
            add_endpoints(slice, endpoints);
        }
    }
    services.into_iter().map(|(name, endpoints)| (name, endpoints.into_iter().collect())).collect()
}

fn add_endpoints(slice: &api::EndpointSlice, endpoints: &mut BTreeSet<ServiceEndpoint>) {
    for &address in &slice.addresses {
        let mut numbered = false;
        for port in &slice.ports {
            if let Some(number) = port.port {
                numbered = true;
                let port = Some((port.protocol, number));
                endpoints.insert(ServiceEndpoint { address, port });
            }
        }
        if !numbered {
            endpoints.insert(ServiceEndpoint { address, port: None });
        }
    }
}

/// Sets for which families a rule exists: not for one that `family` leaves
/// out, nor for one of which a list of networks has no entry, nor for one that
/// `not_nets` excludes whole.
fn set_families(rule: &mut Rule, family: Option<Family>) {
    let exists = |v4: bool| {
        let wanted = if v4 { Family::V4 } else { Family::V6 };
        let entry = |nets: &[Prefix]| nets.is_empty() || nets.iter().any(|net| net.is_v4() == v4);
        let whole = |nets: &[Prefix]| nets.iter().any(|net| net.is_v4() == v4 && net.is_empty());
        family.is_none_or(|family| family == wanted)
            && [&rule.source, &rule.destination].into_iter().all(|end: &Entity| {
                entry(&end.nets) && entry(&end.not_nets) && !whole(&end.not_nets)
            })
    };
    (rule.v4, rule.v6) = (exists(true), exists(false));
}

/// A selector of namespaces as one of what is in them.
fn in_namespaces(namespaces: &Selector) -> Selector {
    let any = Selector::has(NAMESPACE);
    namespaces.prefixed(OF_NAMESPACE).replacing(&any, &any.negated())
}
