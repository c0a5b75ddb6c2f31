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
//! services    the endpoints of the services that rules name
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use self::services::{Services, services_of};
use super::api::{self, BUILT_IN_TIERS, Family, PolicyKind, PolicyObject, PolicyObjects};
use super::model::{Entity, Policy, PolicySet, PolicySource, Rank, Rule, Tier, TierAction};
use super::selector::Selector;
use crate::map::Map;
use crate::state::{ClusterId, ClusterObjects, Condition, ObjectName, Severity};

mod calico;
mod kubernetes;
mod services;
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
    let policies = set.tiers.iter().flat_map(|tier| tier.policies.values());
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
    entries: BTreeMap<Key, Entry>,
    /// Entries that have conditions.
    noted: BTreeSet<Key>,
    /// By tier, whether there is an object for it or not.
    policies: BTreeMap<String, Map<Rank, Arc<Policy>>>,
    services: Services,
    set: Option<Arc<PolicySet>>,
    /// Whether the conditions of `set` are others now.
    stale: bool,
}

type Key = (PolicyKind, ObjectName);

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
    rank: Rank,
    policy: Arc<Policy>,
}

impl Converter {
    /// The policies of the local cluster, in order of precedence.
    pub fn policy_set(&mut self, local: &ClusterObjects) -> Arc<PolicySet> {
        let objects = std::mem::replace(&mut self.objects, local.policy.clone());
        let mut changed = false;
        for (key, old, new) in objects.0.diff(&local.policy.0) {
            changed = true;
            if old.is_some() {
                self.remove(key);
            }
            if let Some(object) = new {
                self.insert(key, object);
            }
        }
        match &self.set {
            Some(set) if !changed => set.clone(),
            _ => self.assemble(),
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        if let Some(Placed { tier, rank, .. }) = &entry.policy
            && let Some(of_tier) = self.policies.get_mut(tier)
        {
            of_tier.remove(rank);
            if of_tier.is_empty() {
                self.policies.remove(tier);
            }
        }
        self.services.remove(&key.1, &entry);
        self.stale |= self.noted.remove(key) || key.0 == PolicyKind::Tier;
    }

    fn insert(&mut self, key: &Key, object: &Arc<PolicyObject>) {
        let entry = Entry::new(key.0, &key.1, object.clone());
        if let Some(Placed { tier, rank, policy }) = &entry.policy {
            let of_tier = self.policies.entry(tier.clone()).or_default();
            of_tier.insert(rank.clone(), policy.clone());
        }
        self.services.insert(&key.1, &entry);
        let noted = !entry.conditions.is_empty();
        if noted {
            self.noted.insert(key.clone());
        }
        self.stale |= noted || key.0 == PolicyKind::Tier;
        self.entries.insert(key.clone(), entry);
    }

    fn assemble(&mut self) -> Arc<PolicySet> {
        let (tiers, lost) = self.tiers();
        self.stale |= lost > 0;
        let conditions = match &self.set {
            Some(set) if !self.stale => set.conditions.clone(),
            _ => self.conditions(&tiers[tiers.len() - lost..]),
        };
        // Whoever is lost may be found by an edit that has no conditions.
        self.stale = lost > 0;
        let services = self.services.endpoints(&self.entries);
        let set = Arc::new(PolicySet { tiers, services, conditions });
        self.set = Some(set.clone());
        set
    }

    /// Tiers that exist by order and name, then those that policies only name,
    /// and how many these are.
    fn tiers(&self) -> (Vec<Tier>, usize) {
        let mut known: BTreeMap<&str, (f64, TierAction)> =
            BUILT_IN_TIERS.iter().map(|(name, order, action)| (*name, (*order, *action))).collect();
        let first = (PolicyKind::Tier, ObjectName::default());
        for ((_, name), entry) in self.entries.range(first..) {
            let PolicyObject::Tier(tier) = &*entry.object else { break };
            let built_in = known.get(name.name.as_str()).map(|(_, action)| *action);
            let action = tier.default_action.or(built_in).unwrap_or(TierAction::Deny);
            known.insert(&name.name, (sortable(tier.order), action));
        }
        let mut order: Vec<_> =
            known.iter().map(|(name, (order, action))| (*order, *name, *action)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        let lost = self.policies.keys().filter(|name| !known.contains_key(name.as_str()));
        let lost: Vec<_> =
            lost.map(|name| (f64::INFINITY, name.as_str(), TierAction::Deny)).collect();
        let number = lost.len();
        let all = order.into_iter().chain(lost).map(|(_, name, default_action)| Tier {
            name: name.to_owned(),
            default_action,
            policies: self.policies.get(name).cloned().unwrap_or_default(),
        });
        (all.collect(), number)
    }

    /// The conditions of all objects, and of policies in tiers that are not
    /// there.
    fn conditions(&self, lost: &[Tier]) -> Arc<[Condition]> {
        let noted = self.noted.iter().filter_map(|key| self.entries.get(key));
        let mut conditions: Vec<_> = noted.flat_map(|entry| &entry.conditions).cloned().collect();
        for ((kind, name), entry) in self.entries.iter().filter(|_| !lost.is_empty()) {
            if let Some(placed) = &entry.policy
                && lost.iter().any(|tier| tier.name == placed.tier)
            {
                Notes { kind: *kind, name, conditions: &mut conditions }.warn(format!(
                    "spec.tier: there is no tier {}: the policy counts after all other tiers, and \
                     what none of its rules decides is denied; create the tier",
                    placed.tier
                ));
            }
        }
        conditions.into()
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

impl Placed {
    fn new(tier: String, order: Option<f64>, policy: Policy) -> Self {
        let ObjectName { namespace, name } = &policy.name;
        let tie = format!("{name}/{namespace}/{}", kind_in_ties(policy.source)).into();
        let rank = Rank { order: sortable(order), tie };
        Self { tier, rank, policy: Arc::new(policy) }
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
