//! Which policies count, which apply to a local endpoint, and their rules.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::tables::RuleId;

use super::atoms::{Atoms, BoundRule};
use super::matcher::Matcher;
use super::numbers::Memory;
use super::program::{ActiveRule, ActiveTier};
use super::{Decision, Direction};
use crate::map::Map;
use crate::policy::model::{Action, Policy, PolicySet, PolicySource, Rank, Rule, Tier, TierAction};
use crate::policy::selector::Selector;
use crate::state::{Labels, ObjectName};

/// The policies that are not staged. Each has a number as long as it stays as
/// it is where it is.
#[derive(Debug, Default)]
pub(super) struct Enforced {
    tiers: BTreeMap<Arc<str>, EnforcedTier>,
    policies: Vec<Option<Entry>>,
    free: Vec<u32>,
    matcher: Matcher,
}

#[derive(Debug)]
struct EnforcedTier {
    place: usize,
    default_action: TierAction,
    /// As last seen, staged ones included.
    policies: Map<Rank, Arc<Policy>>,
    numbers: BTreeMap<Rank, u32>,
}

#[derive(Debug)]
struct Entry {
    tier: Arc<str>,
    rank: Rank,
    policy: Arc<Policy>,
}

/// What has become of the policies.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Numbers that are no policy's any more, or that of another.
    pub(super) gone: Vec<u32>,
    /// Numbers of policies that were not there.
    pub(super) come: Vec<u32>,
    /// Whether policies that stay may have changed places.
    pub(super) reordered: bool,
}

/// A policy that applies somewhere.
#[derive(Debug)]
pub(super) struct ActivePolicy {
    tier: Arc<str>,
    /// The tier's default action: the number of a denial, or `None` to go on.
    end: Option<RuleId>,
    /// For ingress and egress; `None` where it says nothing about a direction.
    rules: [Option<Vec<ActiveRule>>; 2],
}

/// The policies that apply somewhere, by number.
pub(super) type Active = HashMap<u32, ActivePolicy>;

impl Enforced {
    /// Takes over what is different in another set.
    pub(super) fn follow(&mut self, set: &PolicySet) -> Changes {
        let mut changes = Changes::default();
        let mut left = std::mem::take(&mut self.tiers);
        for (place, tier) in set.tiers.iter().enumerate() {
            let known = left.remove_entry(tier.name.as_str());
            let (name, mut known) = known
                .unwrap_or_else(|| (tier.name.as_str().into(), EnforcedTier::new(place, tier)));
            changes.reordered |= known.place != place;
            known.place = place;
            if known.default_action != tier.default_action {
                self.replace(&name, &mut known, &Map::default(), &mut changes);
                known.default_action = tier.default_action;
            }
            self.replace(&name, &mut known, &tier.policies, &mut changes);
            self.tiers.insert(name, known);
        }
        for (name, mut tier) in left {
            self.replace(&name, &mut tier, &Map::default(), &mut changes);
        }
        self.free.extend(&changes.gone);
        changes
    }

    fn replace(
        &mut self,
        name: &Arc<str>,
        tier: &mut EnforcedTier,
        policies: &Map<Rank, Arc<Policy>>,
        changes: &mut Changes,
    ) {
        let old = std::mem::replace(&mut tier.policies, policies.clone());
        for (rank, _, policy) in old.diff(policies) {
            if let Some(number) = tier.numbers.remove(rank) {
                self.policies[number as usize] = None;
                self.matcher.remove(number);
                changes.gone.push(number);
            }
            let Some(policy) = policy.filter(|policy| !policy.staged) else { continue };
            let number = self.free.pop().unwrap_or(self.policies.len() as u32);
            self.matcher.insert(number, policy.selector.clone());
            let entry = Entry { tier: name.clone(), rank: rank.clone(), policy: policy.clone() };
            match self.policies.get_mut(number as usize) {
                Some(free) => *free = Some(entry),
                None => self.policies.push(Some(entry)),
            }
            tier.numbers.insert(rank.clone(), number);
            changes.come.push(number);
        }
    }

    fn entry(&self, number: u32) -> Option<&Entry> {
        self.policies.get(number as usize)?.as_ref()
    }

    /// What tells a policy from all others: tier, kind and name.
    pub(super) fn name(&self, number: u32) -> Option<(&str, PolicySource, &ObjectName)> {
        let Entry { tier, policy, .. } = self.entry(number)?;
        Some((tier, policy.source, &policy.name))
    }

    /// Which local endpoints a policy applies to.
    pub(super) fn selector(&self, number: u32) -> Option<&Selector> {
        Some(&self.entry(number)?.policy.selector)
    }

    /// The policies that apply to a local endpoint with these labels, in order.
    pub(super) fn applying(&self, labels: &Labels) -> Vec<u32> {
        let mut applying = self.matcher.matching(labels);
        self.sort(&mut applying);
        applying
    }

    /// Brings policies into their order.
    pub(super) fn sort(&self, numbers: &mut [u32]) {
        numbers.sort_by(|a, b| self.order(*a, *b));
    }

    fn order(&self, a: u32, b: u32) -> Ordering {
        let place = |number| {
            let Entry { tier, rank, .. } = self.entry(number)?;
            Some((self.tiers.get(tier)?.place, rank))
        };
        place(a).cmp(&place(b))
    }

    /// The rules of a policy.
    pub(super) fn bind(
        &self,
        number: u32,
        peers: &mut Atoms,
        locals: &mut Atoms,
        memory: &mut Memory,
    ) -> Option<ActivePolicy> {
        let Entry { tier, policy, .. } = self.entry(number)?;
        let denies = self.tiers.get(tier)?.default_action == TierAction::Deny;
        let end = || memory.decision(Decision::TierDefault { tier: tier.to_string() });
        let end = denies.then(end);
        let mut bind = |direction, rules: &Option<Vec<Rule>>| {
            // A Log rule decides nothing, so what it asks does not matter.
            let rules = rules.as_ref()?.iter().enumerate();
            let rules = rules.filter(|(_, rule)| rule.action != Action::Log);
            let bound = rules.map(|(index, rule)| {
                let (source, destination) = match direction {
                    Direction::Ingress => (&mut *peers, &mut *locals),
                    Direction::Egress => (&mut *locals, &mut *peers),
                };
                let rule = Arc::new(rule.clone());
                let source = source.bind(&rule, true);
                let destination = destination.bind(&rule, false);
                let id = memory.decision(Decision::Rule {
                    tier: tier.to_string(),
                    source: policy.source,
                    policy: policy.name.clone(),
                    direction,
                    index,
                });
                ActiveRule { bound: BoundRule { rule, source, destination }, id }
            });
            Some(bound.collect())
        };
        let ingress = bind(Direction::Ingress, &policy.ingress);
        let egress = bind(Direction::Egress, &policy.egress);
        Some(ActivePolicy { tier: tier.clone(), end, rules: [ingress, egress] })
    }
}

impl EnforcedTier {
    fn new(place: usize, tier: &Tier) -> Self {
        Self {
            place,
            default_action: tier.default_action,
            policies: Map::default(),
            numbers: BTreeMap::new(),
        }
    }
}

/// What applies in a direction to an endpoint that these policies select.
pub(super) fn tiers<'r>(
    direction: Direction,
    policies: &[u32],
    active: &'r Active,
) -> Vec<ActiveTier<'r>> {
    let mut tiers: Vec<ActiveTier<'r>> = Vec::new();
    let mut last = None;
    for policy in policies.iter().filter_map(|number| active.get(number)) {
        let Some(rules) = &policy.rules[direction as usize] else { continue };
        if last != Some(&policy.tier) {
            last = Some(&policy.tier);
            tiers.push(ActiveTier { rules: Vec::new(), end: policy.end });
        }
        if let Some(current) = tiers.last_mut() {
            current.rules.extend(rules);
        }
    }
    tiers
}
