//! The model and the identities to address classes and verdict tables.
//!
//! Promises: pure; what it returns does not depend on the order of identities;
//! no cost is in proportion to rules times endpoints. It knows nothing of the
//! resources that the model came from but the names that it passes on.
//!
//! ```text
//! matcher   selectors against distinct label sets, by index
//! atoms     the questions that rules ask about an address; facts answer them
//! universe  facts of any address: owners, nets, services
//! l4        a rule between two known addresses: protocols and ports
//! program   an endpoint's rules -> programs by class of the peer
//! ```
//!
//! Only rules of policies that apply to a local endpoint are looked at. Two
//! universes of questions are kept apart: what those rules ask about peers
//! makes the classes; what they ask about local endpoints is settled here.
//! Start reading at [`compile`].

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::policy::Direction as Table;
use tieline_dataplane::tables::{ClassId, EndpointPolicy, Outcome, PolicyId, RuleId};

use self::atoms::{Atoms, BoundRule};
use self::matcher::{LabelSets, Matcher};
use self::program::{ActiveRule, ActiveTier, Builder};
use self::universe::{FactsId, Universe, is_exact};
use super::model::{Action, Policy, PolicySet, PolicySource, Rule, TierAction};
use crate::state::{Identity, IdentityKind, ObjectName};

mod atoms;
mod l4;
mod matcher;
mod ports;
mod program;
mod universe;

/// What packets are judged by, and what each decision means.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Every address that is some identity's (network sets' host prefixes are
    /// not among these), ascending; the policy for those of local workloads.
    pub endpoints: Vec<(Addr, ClassId, Option<PolicyId>)>,
    /// The class of other addresses, by longest prefix.
    pub prefixes: Vec<(Prefix, ClassId)>,
    /// By [`PolicyId`].
    pub policies: Vec<Option<Arc<EndpointPolicy>>>,
    /// By [`tieline_dataplane::tables::RuleId`]: what decided.
    pub decisions: Vec<Decision>,
}

/// Whether a packet goes to or comes from the endpoint that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

/// What decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// No policy is asked: an address of the node itself. Always number 0.
    NoPolicy,
    /// A rule.
    Rule {
        /// Its policy's tier.
        tier: String,
        /// Its policy's kind.
        source: PolicySource,
        /// Its policy.
        policy: ObjectName,
        /// Direction within the policy.
        direction: Direction,
        /// Its place, from 0.
        index: usize,
    },
    /// The tier's default action, because a policy of it selected the endpoint.
    TierDefault {
        /// The tier.
        tier: String,
    },
    /// No tier decided, and the profile of the endpoint's namespace allows.
    Profile {
        /// The profile, as in `kns.default`.
        name: String,
    },
}

/// Compiles.
///
/// An address with several owners is seen as all of them together: a selector
/// matches it when it chooses any, and a policy applies to it when it applies
/// to any.
pub fn compile(policies: &PolicySet, identities: &[Identity]) -> Compiled {
    let labels = LabelSets::new(identities);
    let mut decisions = vec![Decision::NoPolicy];
    let enforced = Enforced::new(policies, &mut decisions);
    let applied = enforced.applied(&labels, identities);
    let mut peer_atoms = Atoms::default();
    let mut local_atoms = Atoms::default();
    let active = enforced.active(&applied, &mut peer_atoms, &mut local_atoms);
    let universe = |atoms| Universe::new(atoms, policies, identities, &labels);
    let mut peers = universe(peer_atoms);
    let mut locals = universe(local_atoms);

    let mut classes = Classes::default();
    let mut endpoints = Vec::new();
    let mut locals_seen = Vec::new();
    for owners in owned_addresses(identities).chunk_by(|a, b| a.0 == b.0) {
        let addr = owners[0].0;
        let all = || owners.iter().map(|(_, owner)| *owner);
        let local = |owner: &u32| identities[*owner as usize].kind == IdentityKind::LocalWorkload;
        let class = classes.id(!addr.is_v4(), peers.address(addr, all()));
        if all().any(|owner| local(&owner)) {
            let facts = locals.address(addr, all());
            let applies = Applies::new(facts, all().filter(local), identities, |owner| {
                &applied[&labels.of[owner as usize]]
            });
            locals_seen.push((endpoints.len(), applies));
        }
        endpoints.push((addr, class, None));
    }
    let prefixes = peers.prefixes();
    let prefixes = prefixes.map(|(prefix, facts)| (prefix, classes.id(!prefix.is_v4(), facts)));
    let prefixes = prefixes.collect();

    let profiles = profiles(locals_seen.iter().map(|(_, applies)| applies), &mut decisions);
    let mut tables = EndpointTables {
        enforced: &enforced,
        active: &active,
        locals: &locals,
        profiles,
        builder: Builder::new(&peers, &classes.all),
        closed: HashMap::default(),
        known: HashMap::default(),
        policies: Vec::new(),
    };
    for (endpoint, applies) in locals_seen {
        let v6 = !endpoints[endpoint].0.is_v4();
        endpoints[endpoint].2 = Some(tables.policy(v6, applies));
    }
    Compiled { endpoints, prefixes, policies: tables.policies, decisions }
}

/// Makes the tables of local endpoints, each combination once.
#[derive(Debug)]
struct EndpointTables<'c, 'a> {
    enforced: &'c Enforced<'a>,
    active: &'c Active<'a>,
    locals: &'c Universe<'a>,
    profiles: HashMap<String, RuleId>,
    builder: Builder<'c, 'a>,
    /// Tables that no packet passes to the profile, by direction, whether IPv6,
    /// facts and policies: they serve all namespaces.
    closed: HashMap<(Direction, bool, FactsId, Vec<u32>), Table>,
    known: HashMap<(bool, Applies), PolicyId>,
    policies: Vec<Option<Arc<EndpointPolicy>>>,
}

impl EndpointTables<'_, '_> {
    fn policy(&mut self, v6: bool, applies: Applies) -> PolicyId {
        if let Some(id) = self.known.get(&(v6, applies.clone())) {
            return *id;
        }
        let ingress = self.table(Direction::Ingress, v6, &applies);
        let egress = self.table(Direction::Egress, v6, &applies);
        self.policies.push(Some(Arc::new(EndpointPolicy { ingress, egress })));
        let id = PolicyId(self.policies.len() as u32 - 1);
        self.known.insert((v6, applies), id);
        id
    }

    fn table(&mut self, direction: Direction, v6: bool, applies: &Applies) -> Table {
        let key = (direction, v6, applies.facts, applies.policies.clone());
        if let Some(table) = self.closed.get(&key) {
            return table.clone();
        }
        let tiers = self.enforced.tiers(direction, &applies.policies, self.active);
        let rule = self.profiles.get(&applies.namespace).copied().unwrap_or_default();
        let end = Outcome { allow: true, rule };
        let local = self.locals.facts(applies.facts);
        let (table, reaches_end) = self.builder.table(direction, &tiers, local, v6, end);
        if !reaches_end {
            self.closed.insert(key, table.clone());
        }
        table
    }
}

/// Numbers the profiles of the namespaces of local endpoints.
fn profiles<'p>(
    locals: impl Iterator<Item = &'p Applies>,
    decisions: &mut Vec<Decision>,
) -> HashMap<String, RuleId> {
    let namespaces: BTreeSet<&str> = locals.map(|applies| applies.namespace.as_str()).collect();
    let numbered = namespaces.into_iter().map(|namespace| {
        decisions.push(Decision::Profile { name: format!("kns.{namespace}") });
        (namespace.to_owned(), RuleId(decisions.len() as u32 - 1))
    });
    numbered.collect()
}

/// Numbers of classes: whether IPv6, and facts.
#[derive(Debug)]
struct Classes {
    of: HashMap<(bool, FactsId), ClassId>,
    all: Vec<(bool, FactsId)>,
}

impl Default for Classes {
    fn default() -> Self {
        let mut classes = Self { of: HashMap::default(), all: Vec::new() };
        for (v6, unknown) in [(false, ClassId::UNKNOWN_V4), (true, ClassId::UNKNOWN_V6)] {
            let id = classes.id(v6, 0);
            debug_assert_eq!(id, unknown);
        }
        classes
    }
}

impl Classes {
    fn id(&mut self, v6: bool, facts: FactsId) -> ClassId {
        *self.of.entry((v6, facts)).or_insert_with(|| {
            self.all.push((v6, facts));
            ClassId(self.all.len() as u32 - 1)
        })
    }
}

/// Each address and each identity that it is one of, ascending by address.
fn owned_addresses(identities: &[Identity]) -> Vec<(Addr, u32)> {
    let mut owned: Vec<(Addr, u32)> = (0..)
        .zip(identities)
        .flat_map(|(at, identity)| {
            let exact = identity.nets.iter().filter(|net| is_exact(identity, net));
            exact.map(move |net| (net.addr(), at))
        })
        .collect();
    owned.sort_unstable();
    owned.dedup();
    owned
}

/// All that an endpoint's tables follow from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Applies {
    /// Places of the policies among the enforced ones, ascending.
    policies: Vec<u32>,
    /// What rules see of it as the local end.
    facts: FactsId,
    /// The namespace whose profile allows what no tier decides.
    namespace: String,
}

impl Applies {
    fn new<'p>(
        facts: FactsId,
        owners: impl Iterator<Item = u32>,
        identities: &[Identity],
        applied: impl Fn(u32) -> &'p Vec<u32>,
    ) -> Self {
        let mut policies = Vec::new();
        let mut namespace: Option<&str> = None;
        for owner in owners {
            policies.extend_from_slice(applied(owner));
            let own = identities[owner as usize].name.namespace.as_str();
            namespace = Some(namespace.map_or(own, |other| other.min(own)));
        }
        policies.sort_unstable();
        policies.dedup();
        Self { policies, facts, namespace: namespace.unwrap_or_default().to_owned() }
    }
}

/// The policies that are not staged, in order, with numbers for what they
/// decide. The numbers depend on the policies alone, so that endpoints can come
/// and go without changing them.
#[derive(Debug)]
struct Enforced<'a> {
    policies: Vec<EnforcedPolicy<'a>>,
    tiers: Vec<EnforcedTier>,
}

#[derive(Debug)]
struct EnforcedPolicy<'a> {
    policy: &'a Policy,
    tier: usize,
    /// Number of the first rule for ingress and for egress.
    first: [u32; 2],
}

#[derive(Debug)]
struct EnforcedTier {
    /// Number of the default action; `None` when that is Pass.
    end: Option<RuleId>,
}

/// The rules of policies that apply somewhere, by place of the policy, for
/// ingress and egress; `None` where a policy says nothing about a direction.
type Active<'a> = HashMap<u32, [Option<Vec<ActiveRule<'a>>>; 2]>;

impl<'a> Enforced<'a> {
    fn new(set: &'a PolicySet, decisions: &mut Vec<Decision>) -> Self {
        let mut policies = Vec::new();
        let mut tiers = Vec::new();
        for (at, tier) in set.tiers.iter().enumerate() {
            for policy in tier.policies.iter().filter(|policy| !policy.staged) {
                let mut number = |direction, rules: &Option<Vec<_>>| {
                    let first = decisions.len() as u32;
                    let count = rules.as_ref().map_or(0, Vec::len);
                    decisions.extend((0..count).map(|index| Decision::Rule {
                        tier: tier.name.clone(),
                        source: policy.source,
                        policy: policy.name.clone(),
                        direction,
                        index,
                    }));
                    first
                };
                let first = [
                    number(Direction::Ingress, &policy.ingress),
                    number(Direction::Egress, &policy.egress),
                ];
                policies.push(EnforcedPolicy { policy, tier: at, first });
            }
            let end = (tier.default_action == TierAction::Deny).then(|| {
                decisions.push(Decision::TierDefault { tier: tier.name.clone() });
                RuleId(decisions.len() as u32 - 1)
            });
            tiers.push(EnforcedTier { end });
        }
        Self { policies, tiers }
    }

    /// The policies that apply, by label set of local endpoints.
    fn applied(&self, labels: &LabelSets<'_>, identities: &[Identity]) -> HashMap<u32, Vec<u32>> {
        let selectors: Vec<_> = self.policies.iter().map(|it| &it.policy.selector).collect();
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
    fn active(
        &self,
        applied: &HashMap<u32, Vec<u32>>,
        peers: &mut Atoms<'a>,
        locals: &mut Atoms<'a>,
    ) -> Active<'a> {
        let mut places: Vec<u32> = applied.values().flatten().copied().collect();
        places.sort_unstable();
        places.dedup();
        let mut active = Active::default();
        for place in places {
            let EnforcedPolicy { policy, first, .. } = &self.policies[place as usize];
            let mut bind = |direction, rules: &'a Option<Vec<Rule>>| {
                let numbered = (first[direction as usize]..).map(RuleId).zip(rules.as_ref()?);
                // A Log rule decides nothing, so what it asks does not matter.
                let numbered = numbered.filter(|(_, rule)| rule.action != Action::Log);
                let bound = numbered.map(|(id, rule)| {
                    let (source, destination) = match direction {
                        Direction::Ingress => (&mut *peers, &mut *locals),
                        Direction::Egress => (&mut *locals, &mut *peers),
                    };
                    let source = source.bind(&rule.source);
                    let destination = destination.bind(&rule.destination);
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
    fn tiers<'r>(
        &self,
        direction: Direction,
        policies: &[u32],
        active: &'r Active<'a>,
    ) -> Vec<ActiveTier<'r, 'a>> {
        let mut tiers: Vec<ActiveTier<'r, 'a>> = Vec::new();
        let mut last = None;
        for place in policies {
            let tier = self.policies[*place as usize].tier;
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
