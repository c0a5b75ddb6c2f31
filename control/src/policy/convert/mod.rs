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
    Arc::unwrap_or_clone(Converter::default().policy_set(local))
}

/// What rules ask of a peer's labels: those of `set`, staged ones too, for they
/// are to be enforced one day, and of policies for host endpoints alone, which
/// `set` leaves out.
pub fn rule_selectors(set: &PolicySet, objects: &PolicyObjects) -> BTreeSet<Selector> {
    let policies = set.tiers.iter().flat_map(|tier| &tier.policies);
    let rules = policies.flat_map(|policy| [&policy.ingress, &policy.egress]).flatten().flatten();
    let hosts = objects.0.iter().filter_map(|((kind, name), object)| match &**object {
        PolicyObject::Policy(policy) if *kind == PolicyKind::GlobalNetworkPolicy => {
            Some(calico::host_rules(name, policy))
        }
        _ => None,
    });
    let hosts: Vec<Rule> = hosts.flatten().collect();
    let ends = rules.chain(&hosts).flat_map(|rule| [&rule.source, &rule.destination]);
    ends.flat_map(|end| [&end.selector, &end.not_selector]).flatten().cloned().collect()
}

/// Converts again only what has changed since the last time. What it returns
/// depends on the objects alone; that unchanged policies, and a whole set
/// without a change, are the same allocation is for whoever works on from them.
#[derive(Debug, Default)]
pub struct Converter {
    /// The objects that the entries are of.
    objects: PolicyObjects,
    entries: BTreeMap<(PolicyKind, ObjectName), Entry>,
    set: Arc<PolicySet>,
}

/// An object and what became of it.
#[derive(Debug)]
struct Entry {
    object: Arc<PolicyObject>,
    policy: Option<Placed>,
    /// The services that the policy's rules name.
    services: BTreeSet<ObjectName>,
    conditions: Vec<Condition>,
}

/// A policy and its place.
#[derive(Debug)]
struct Placed {
    tier: String,
    /// Infinite when the policy gives none.
    order: f64,
    /// What decides between equal orders.
    tie: String,
    policy: Arc<Policy>,
}

impl Converter {
    /// The policies of the local cluster, in order of precedence.
    pub fn policy_set(&mut self, local: &ClusterObjects) -> Arc<PolicySet> {
        if self.take_over(&local.policy) || self.set.tiers.is_empty() {
            self.set = Arc::new(self.assemble());
        }
        self.set.clone()
    }

    /// Brings the entries up to date; whether any of them changed.
    fn take_over(&mut self, objects: &PolicyObjects) -> bool {
        if self.objects.0.is_same(&objects.0) {
            return false;
        }
        let old = std::mem::replace(&mut self.objects, objects.clone());
        let mut changed = false;
        for (key, _, object) in old.0.diff(&objects.0) {
            changed = true;
            match object {
                Some(object) => {
                    let entry = Entry::new(key.0, &key.1, object.clone());
                    self.entries.insert(key.clone(), entry);
                }
                None => drop(self.entries.remove(key)),
            }
        }
        changed
    }

    fn assemble(&self) -> PolicySet {
        let mut conditions: Vec<_> =
            self.entries.values().flat_map(|entry| &entry.conditions).cloned().collect();
        let services = self.services();
        PolicySet { tiers: self.tiers(&mut conditions), services, conditions }
    }

    /// Tiers that exist by order and name, then those that policies only name.
    fn tiers(&self, conditions: &mut Vec<Condition>) -> Vec<Tier> {
        let mut known: BTreeMap<&str, (f64, TierAction)> =
            BUILT_IN_TIERS.iter().map(|(name, order, action)| (*name, (*order, *action))).collect();
        let mut members: BTreeMap<&str, Vec<&Placed>> = BTreeMap::new();
        for ((_, name), entry) in &self.entries {
            if let PolicyObject::Tier(tier) = &*entry.object {
                let built_in = known.get(name.name.as_str()).map(|(_, action)| *action);
                let action = tier.default_action.or(built_in).unwrap_or(TierAction::Deny);
                known.insert(&name.name, (sortable(tier.order), action));
            }
            if let Some(placed) = &entry.policy {
                members.entry(&placed.tier).or_default().push(placed);
            }
        }
        let lost = members.keys().any(|tier| !known.contains_key(tier));
        for ((kind, name), entry) in self.entries.iter().filter(|_| lost) {
            if let Some(placed) = &entry.policy
                && !known.contains_key(placed.tier.as_str())
            {
                Notes { kind: *kind, name, conditions }.warn(format!(
                    "spec.tier: there is no tier {}: the policy counts after all other tiers, and \
                     what none of its rules decides is denied; create the tier",
                    placed.tier
                ));
            }
        }
        let mut order: Vec<_> =
            known.into_iter().map(|(name, (order, action))| (order, name, action)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let mut tiers = Vec::with_capacity(order.len());
        for (_, name, action) in order {
            tiers.push(tier(name, action, members.remove(name).unwrap_or_default()));
        }
        tiers.extend(members.into_iter().map(|(name, of)| tier(name, TierAction::Deny, of)));
        tiers
    }

    /// The endpoints of the services that rules name, ready or not.
    fn services(&self) -> BTreeMap<ObjectName, Vec<ServiceEndpoint>> {
        let mut services: BTreeMap<ObjectName, BTreeSet<ServiceEndpoint>> = self
            .entries
            .values()
            .flat_map(|entry| &entry.services)
            .map(|name| (name.clone(), BTreeSet::new()))
            .collect();
        if services.is_empty() {
            return BTreeMap::new();
        }
        for ((_, name), entry) in &self.entries {
            let PolicyObject::EndpointSlice(slice) = &*entry.object else { continue };
            let Some(service) = &slice.service else { continue };
            let service = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
            if let Some(endpoints) = services.get_mut(&service) {
                add_endpoints(slice, endpoints);
            }
        }
        services.into_iter().map(|(name, of)| (name, of.into_iter().collect())).collect()
    }
}

impl Entry {
    fn new(kind: PolicyKind, name: &ObjectName, object: Arc<PolicyObject>) -> Self {
        let mut conditions = Vec::new();
        let notes = &mut Notes { kind, name, conditions: &mut conditions };
        let policy = match &*object {
            PolicyObject::Policy(policy) => calico::policy(kind, name, policy, notes),
            PolicyObject::KubernetesPolicy(policy) => kubernetes::policy(kind, name, policy, notes),
            PolicyObject::ClusterPolicy(policy) => {
                Some(kubernetes::cluster_policy(name, policy, notes))
            }
            PolicyObject::Tier(_)
            | PolicyObject::NetworkSet(_)
            | PolicyObject::EndpointSlice(_) => None,
        };
        let services = policy.as_ref().map(services_of).unwrap_or_default();
        Self { object, policy, services, conditions }
    }
}

fn services_of(placed: &Placed) -> BTreeSet<ObjectName> {
    let rules = [&placed.policy.ingress, &placed.policy.egress].into_iter().flatten().flatten();
    let services = rules.flat_map(|rule| [&rule.source.service, &rule.destination.service]);
    services.flatten().filter(|name| !name.namespace.is_empty()).cloned().collect()
}

impl Placed {
    fn new(tier: String, order: Option<f64>, policy: Policy) -> Self {
        let ObjectName { namespace, name } = &policy.name;
        let tie = format!("{name}/{namespace}/{}", kind_in_ties(policy.source));
        Self { tier, order: sortable(order), tie, policy: Arc::new(policy) }
    }
}

fn tier(name: &str, default_action: TierAction, mut policies: Vec<&Placed>) -> Tier {
    policies.sort_by(|a, b| a.order.total_cmp(&b.order).then_with(|| a.tie.cmp(&b.tie)));
    let policies = policies.into_iter().map(|placed| placed.policy.clone()).collect();
    Tier { name: name.to_owned(), default_action, policies }
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
