//! Which policies count, which apply to a local endpoint, and their rules.

use ahash::HashMap;
use tieline_dataplane::tables::RuleId;

use super::atoms::{Atoms, BoundRule};
use super::matcher::{LabelSets, Matcher};
use super::numbers::Memory;
use super::program::{ActiveRule, ActiveTier};
use super::{Decision, Direction};
use crate::policy::model::{Action, Policy, PolicySet, PolicySource, Rule, TierAction};
use crate::state::{Identity, IdentityKind, ObjectName};

/// The policies that are not staged, in order.
#[derive(Debug)]
pub(super) struct Enforced<'a> {
    policies: Vec<(usize, &'a Policy)>,
    tiers: Vec<EnforcedTier<'a>>,
}

#[derive(Debug)]
struct EnforcedTier<'a> {
    name: &'a str,
    /// Number of the default action; `None` when that is Pass.
    end: Option<RuleId>,
}

/// The rules of policies that apply somewhere, by place of the policy, for
/// ingress and egress; `None` where a policy says nothing about a direction.
pub(super) type Active<'a> = HashMap<u32, [Option<Vec<ActiveRule<'a>>>; 2]>;

impl<'a> Enforced<'a> {
    pub(super) fn new(set: &'a PolicySet, memory: &mut Memory) -> Self {
        let mut policies = Vec::new();
        let mut tiers = Vec::new();
        for (at, tier) in set.tiers.iter().enumerate() {
            let enforced = tier.policies.iter().filter(|policy| !policy.staged);
            policies.extend(enforced.map(|policy| (at, &**policy)));
            let end = (tier.default_action == TierAction::Deny)
                .then(|| memory.decision(Decision::TierDefault { tier: tier.name.clone() }));
            tiers.push(EnforcedTier { name: &tier.name, end });
        }
        Self { policies, tiers }
    }

    /// What tells a policy from all others: tier, kind and name.
    pub(super) fn name(&self, place: u32) -> (&'a str, PolicySource, &'a ObjectName) {
        let (tier, policy) = self.policies[place as usize];
        (self.tiers[tier].name, policy.source, &policy.name)
    }

    /// The policies that apply, by label set of local endpoints.
    pub(super) fn applied(
        &self,
        labels: &LabelSets<'_>,
        identities: &[Identity],
    ) -> HashMap<u32, Vec<u32>> {
        let selectors: Vec<_> = self.policies.iter().map(|(_, it)| &it.selector).collect();
        let mut applied = HashMap::default();
        let mut local = LabelSets::default();
        for (identity, set) in identities.iter().zip(&labels.of) {
            if identity.kind == IdentityKind::LocalWorkload && !local.of.contains(set) {
                local.of.push(*set);
                local.sets.push(labels.sets[*set as usize]);
            }
        }
        let matcher = Matcher::new(&selectors);
        for (set, labels) in local.of.iter().zip(&local.sets) {
            applied.insert(*set, matcher.matching(labels));
        }
        applied
    }

    /// The rules of the policies that apply anywhere.
    pub(super) fn active(
        &self,
        applied: &HashMap<u32, Vec<u32>>,
        peers: &mut Atoms<'a>,
        locals: &mut Atoms<'a>,
        memory: &mut Memory,
    ) -> Active<'a> {
        let mut places: Vec<u32> = applied.values().flatten().copied().collect();
        places.sort_unstable();
        places.dedup();
        let mut active = Active::default();
        for place in places {
            let (tier, policy) = self.policies[place as usize];
            let tier = self.tiers[tier].name;
            let mut bind = |direction, rules: &'a Option<Vec<Rule>>| {
                // A Log rule decides nothing, so what it asks does not matter.
                let rules = rules.as_ref()?.iter().enumerate();
                let rules = rules.filter(|(_, rule)| rule.action != Action::Log);
                let bound = rules.map(|(index, rule)| {
                    let (source, destination) = match direction {
                        Direction::Ingress => (&mut *peers, &mut *locals),
                        Direction::Egress => (&mut *locals, &mut *peers),
                    };
                    let source = source.bind(&rule.source);
                    let destination = destination.bind(&rule.destination);
                    let id = memory.decision(Decision::Rule {
                        tier: tier.to_owned(),
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
        active: &'r Active<'a>,
    ) -> Vec<ActiveTier<'r, 'a>> {
        let mut tiers: Vec<ActiveTier<'r, 'a>> = Vec::new();
        let mut last = None;
        for place in policies {
            let (tier, _) = self.policies[*place as usize];
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
