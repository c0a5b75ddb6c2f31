//! Which policies count, which apply to a local endpoint, and their rules.

use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::tables::RuleId;

use super::atoms::{Atoms, BoundRule};
use super::matcher::Matcher;
use super::numbers::Memory;
use super::program::{ActiveRule, ActiveTier};
use super::{Decision, Direction};
use crate::policy::model::{Action, Policy, PolicySet, PolicySource, Rule, TierAction};
use crate::state::{Labels, ObjectName};

/// The policies that are not staged, in order.
#[derive(Debug)]
pub(super) struct Enforced {
    policies: Vec<(usize, Arc<Policy>)>,
    tiers: Vec<EnforcedTier>,
    matcher: Matcher,
}

#[derive(Debug)]
struct EnforcedTier {
    name: String,
    /// Number of the default action; `None` when that is Pass.
    end: Option<RuleId>,
}

/// The rules of policies that apply somewhere, by place of the policy, for
/// ingress and egress; `None` where a policy says nothing about a direction.
pub(super) type Active = HashMap<u32, [Option<Vec<ActiveRule>>; 2]>;

impl Enforced {
    pub(super) fn new(set: &PolicySet, memory: &mut Memory) -> Self {
        let mut policies = Vec::new();
        let mut tiers = Vec::new();
        for (at, tier) in set.tiers.iter().enumerate() {
            let enforced = tier.policies.iter().filter(|policy| !policy.staged);
            policies.extend(enforced.map(|policy| (at, policy.clone())));
            let end = (tier.default_action == TierAction::Deny)
                .then(|| memory.decision(Decision::TierDefault { tier: tier.name.clone() }));
            tiers.push(EnforcedTier { name: tier.name.clone(), end });
        }
        let selectors: Vec<_> = policies.iter().map(|(_, it)| &it.selector).collect();
        Self { matcher: Matcher::new(&selectors), policies, tiers }
    }

    /// What tells a policy from all others: tier, kind and name.
    pub(super) fn name(&self, place: u32) -> (&str, PolicySource, &ObjectName) {
        let (tier, policy) = &self.policies[place as usize];
        (&self.tiers[*tier].name, policy.source, &policy.name)
    }

    /// The policies that apply to a local endpoint with these labels.
    pub(super) fn applying(&self, labels: &Labels) -> Vec<u32> {
        self.matcher.matching(labels)
    }

    /// All that the tables of an endpoint to which these policies apply take
    /// from them: which these are, and what they and their tiers say.
    pub(super) fn saying<'s>(
        &'s self,
        places: &'s [u32],
    ) -> impl Iterator<Item = (&'s str, Option<RuleId>, *const Policy)> {
        places.iter().map(|place| {
            let (tier, policy) = &self.policies[*place as usize];
            let tier = &self.tiers[*tier];
            (tier.name.as_str(), tier.end, Arc::as_ptr(policy))
        })
    }

    /// The rules of these policies.
    pub(super) fn active(
        &self,
        places: impl IntoIterator<Item = u32>,
        peers: &mut Atoms,
        locals: &mut Atoms,
        memory: &mut Memory,
    ) -> Active {
        let mut active = Active::default();
        for place in places {
            let (tier, policy) = &self.policies[place as usize];
            let tier = &self.tiers[*tier].name;
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
                        tier: tier.clone(),
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
            active.insert(place, [ingress, egress]);
        }
        active
    }

    /// What applies in a direction to an endpoint that these policies select.
    pub(super) fn tiers<'r>(
        &self,
        direction: Direction,
        policies: &[u32],
        active: &'r Active,
    ) -> Vec<ActiveTier<'r>> {
        let mut tiers: Vec<ActiveTier<'r>> = Vec::new();
        let mut last = None;
        for place in policies {
            let tier = self.policies[*place as usize].0;
            let Some(rules) = &active[place][direction as usize] else { continue };
            if last != Some(tier) {
                last = Some(tier);
                tiers.push(ActiveTier { rules: Vec::new(), end: self.tiers[tier].end });
            }
            if let Some(current) = tiers.last_mut() {
                current.rules.extend(rules);
            }
        }
        tiers
    }
}
