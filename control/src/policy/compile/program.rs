//! The rules that apply to an endpoint in one direction, to programs by class
//! of the peer.
//!
//! Rules split the peers' classes into groups within which every rule sees the
//! same; each group has one program. Tiers and Pass are resolved here: what
//! remains is a list of clauses of which the first match decides.

use std::borrow::Cow;
use std::sync::Arc;

use ahash::{HashMap, HashSet};
use tieline_dataplane::tables::policy::Direction as Table;
use tieline_dataplane::tables::{ClassId, Clause, Outcome, Program, RuleId};

use super::Direction;
use super::atoms::{AddressCondition, BoundEntity, BoundRule, Facts, PortFacts};
use super::l4::{self, L4Match};
use super::universe::{FactsId, Universe};
use crate::policy::model::Action;

/// A rule of a policy that applies to some local endpoint.
#[derive(Debug)]
pub(super) struct ActiveRule {
    /// The rule; the remote end is numbered in the universe of peers, the local
    /// end in that of local endpoints.
    pub(super) bound: BoundRule,
    /// Its number.
    pub(super) id: RuleId,
}

/// What applies of a tier to an endpoint in one direction.
#[derive(Debug)]
pub(super) struct ActiveTier<'r> {
    /// The rules of all policies, in order.
    pub(super) rules: Vec<&'r ActiveRule>,
    /// The default action: the number of a denial, or `None` to go on.
    pub(super) end: Option<RuleId>,
}

/// Makes tables.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// For IPv4 and IPv6.
    families: [Family; 2],
    parts: HashMap<PartsKey, Arc<Parts>>,
}

/// What is equal among the tables that have been made.
#[derive(Debug, Default)]
pub(super) struct Shared {
    programs: HashMap<(Vec<Clause>, Outcome), Arc<Program>>,
    by_class: HashSet<Arc<[u32]>>,
    /// How many of both were in use when that was last looked at.
    used: usize,
}

/// What may be shared beyond twice what was in use.
const SPARE_SHARED: usize = 512;

/// One direction of the policy of one local endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'r> {
    /// Which one.
    pub(super) direction: Direction,
    /// Whether the endpoint's address is an IPv6 one.
    pub(super) v6: bool,
    /// What applies.
    pub(super) tiers: &'r [ActiveTier<'r>],
    /// What rules see of the endpoint.
    pub(super) local: &'r Facts,
    /// What holds when no tier decides.
    pub(super) end: Outcome,
}

/// Programs, and which of them holds for which class.
struct Decided {
    of_class: Vec<(ClassId, u32)>,
    programs: Vec<Arc<Program>>,
    /// Whether some packet gets beyond all tiers.
    reaches_end: bool,
}

/// The classes of one family. Places in `classes` are what the rest of this
/// module counts by.
#[derive(Debug, Default)]
struct Family {
    classes: Vec<(ClassId, FactsId)>,
    /// Places of the classes that a question fits, by its number.
    by_selector: Vec<Vec<u32>>,
    by_net: Vec<Vec<u32>>,
    by_service: Vec<Vec<u32>>,
}

/// What the classes that a rule's remote end matches depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PartsKey {
    address: AddressCondition,
    names: Vec<u32>,
    not_names: Vec<u32>,
    is_destination: bool,
    v6: bool,
}

/// The classes whose addresses meet the conditions of a rule's remote end.
#[derive(Debug)]
struct Parts {
    /// All classes of the family do, with the same ports.
    all: bool,
    parts: Vec<Part>,
}

/// Those among them for which the same ports match.
#[derive(Debug)]
struct Part {
    /// Places of classes, ascending.
    places: Vec<u32>,
    /// Facts of one of them.
    sample: FactsId,
}

/// A rule for one local endpoint, in one direction.
#[derive(Debug)]
struct Live {
    tier: usize,
    then: Then,
    parts: Arc<Parts>,
    /// By part.
    matches: Vec<Vec<L4Match>>,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Decide(Outcome),
    Pass,
}

/// A rule (place in the list of live rules) and the part of its classes that
/// a group is in.
type Step = (u32, u32);

impl Builder {
    /// Starts with these classes.
    pub(super) fn new(peers: &Universe, classes: &[(ClassId, bool, FactsId)]) -> Self {
        let mut builder = Self::default();
        builder.add(peers, classes);
        builder
    }

    /// Takes in further classes of peers, ascending: whether IPv6, and facts.
    pub(super) fn add(&mut self, peers: &Universe, classes: &[(ClassId, bool, FactsId)]) {
        if !classes.is_empty() {
            self.parts.clear();
        }
        for family in &mut self.families {
            family.by_selector.resize_with(peers.atoms.selectors.values().len(), Vec::new);
            family.by_net.resize_with(peers.atoms.nets.values().len(), Vec::new);
            family.by_service.resize_with(peers.atoms.services.values().len(), Vec::new);
        }
        for (class, v6, id) in classes {
            let family = &mut self.families[usize::from(*v6)];
            let place = family.classes.len() as u32;
            family.classes.push((*class, *id));
            let facts = peers.facts(*id);
            for selector in &facts.selectors {
                family.by_selector[*selector as usize].push(place);
            }
            for net in &facts.nets {
                family.by_net[*net as usize].push(place);
            }
            for (service, _) in &facts.services {
                let places = &mut family.by_service[*service as usize];
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
    }

    /// Makes a table for all classes; also returns whether some packet gets
    /// beyond all tiers.
    pub(super) fn table(
        &mut self,
        peers: &Universe,
        shared: &mut Shared,
        side: Side<'_>,
    ) -> (Table, bool) {
        let decided = self.decide(peers, shared, side);
        let mut by_class = Vec::new();
        for (class, program) in decided.of_class {
            set(&mut by_class, class, program);
        }
        let programs = decided.programs.into();
        (Table { by_class: shared.by_class(by_class), programs }, decided.reaches_end)
    }

    /// A table with the columns of all classes of this builder set, and all
    /// others left alone.
    pub(super) fn extend(
        &mut self,
        peers: &Universe,
        shared: &mut Shared,
        side: Side<'_>,
        table: &Table,
    ) -> Table {
        let decided = self.decide(peers, shared, side);
        let mut programs = table.programs.to_vec();
        let places: Vec<u32> = decided
            .programs
            .iter()
            .map(|new| {
                let known = programs.iter().position(|old| Arc::ptr_eq(old, new));
                known.unwrap_or_else(|| {
                    programs.push(new.clone());
                    programs.len() - 1
                }) as u32
            })
            .collect();
        let mut by_class = Cow::Borrowed(&*table.by_class);
        for (class, program) in decided.of_class {
            let program = places[program as usize];
            if by_class.get(class.0 as usize).copied().unwrap_or(0) != program {
                set(by_class.to_mut(), class, program);
            }
        }
        Table {
            by_class: match by_class {
                Cow::Borrowed(_) => table.by_class.clone(),
                Cow::Owned(new) => shared.by_class(new),
            },
            programs: if programs.len() == table.programs.len() {
                table.programs.clone()
            } else {
                programs.into()
            },
        }
    }

    fn decide(&mut self, peers: &Universe, shared: &mut Shared, side: Side<'_>) -> Decided {
        let live = self.live_rules(peers, side);
        let ends: Vec<Option<RuleId>> = side.tiers.iter().map(|tier| tier.end).collect();
        let family = &self.families[usize::from(side.v6)];
        let groups = Groups::new(family.classes.len(), &live);
        let mut programs: Vec<Arc<Program>> = Vec::new();
        let mut number: HashMap<*const Program, u32> = HashMap::default();
        let mut of_group = Vec::with_capacity(groups.samples.len());
        let mut reaches_end = false;
        for steps in groups.steps(&live) {
            let (clauses, default) = flatten(&steps, &live, &ends, side.end);
            reaches_end |=
                default == side.end || clauses.iter().any(|clause| clause.outcome == side.end);
            let program = shared.program(clauses, default);
            of_group.push(*number.entry(Arc::as_ptr(&program)).or_insert_with(|| {
                programs.push(program);
                programs.len() as u32 - 1
            }));
        }
        let of_class = family.classes.iter().zip(&groups.of);
        let of_class = of_class.map(|((class, _), group)| (*class, of_group[*group as usize]));
        Decided { of_class: of_class.collect(), programs, reaches_end }
    }

    /// The rules that some packet of the endpoint can match.
    fn live_rules(&mut self, peers: &Universe, side: Side<'_>) -> Vec<Live> {
        let Side { direction, v6, tiers, local, .. } = side;
        let mut live = Vec::new();
        for (tier, rule) in
            (0..).zip(tiers).flat_map(|(at, tier)| tier.rules.iter().map(move |rule| (at, *rule)))
        {
            let bound = &rule.bound;
            let (own, peer, is_destination) = match direction {
                Direction::Ingress => (&bound.destination, &bound.source, false),
                Direction::Egress => (&bound.source, &bound.destination, true),
            };
            let exists = if v6 { bound.rule.v6 } else { bound.rule.v4 };
            if !exists || !own.address().holds(local) {
                continue;
            }
            let outcome = |allow| Then::Decide(Outcome { allow, rule: rule.id });
            let then = match bound.rule.action {
                Action::Allow => outcome(true),
                Action::Deny => outcome(false),
                Action::Pass => Then::Pass,
                Action::Log => continue,
            };
            let parts = self.parts(peers, peer, is_destination, v6);
            let matches = parts.parts.iter().map(|part| {
                let remote = peers.facts(part.sample);
                match direction {
                    Direction::Ingress => l4::matches(bound, remote, local),
                    Direction::Egress => l4::matches(bound, local, remote),
                }
            });
            let matches: Vec<_> = matches.collect();
            if matches.iter().any(|matches| !matches.is_empty()) {
                live.push(Live { tier, then, parts, matches });
            }
        }
        live
    }

    fn parts(
        &mut self,
        peers: &Universe,
        peer: &BoundEntity,
        is_destination: bool,
        v6: bool,
    ) -> Arc<Parts> {
        let key = PartsKey {
            address: peer.address().clone(),
            names: peer.names.clone(),
            not_names: peer.not_names.clone(),
            is_destination,
            v6,
        };
        if let Some(parts) = self.parts.get(&key) {
            return Arc::clone(parts);
        }
        let family = &self.families[usize::from(v6)];
        let mut by_ports: HashMap<PortFacts, usize> = HashMap::default();
        let mut parts: Vec<Part> = Vec::new();
        family.candidates(peer.address(), |place| {
            let sample = family.classes[place as usize].1;
            let facts = peers.facts(sample);
            if peer.address().holds(facts) {
                let ports = peer.port_facts(facts, is_destination);
                let part = *by_ports.entry(ports).or_insert_with(|| {
                    parts.push(Part { places: Vec::new(), sample });
                    parts.len() - 1
                });
                parts[part].places.push(place);
            }
        });
        let all = parts.len() == 1 && parts[0].places.len() == family.classes.len();
        let parts = Arc::new(Parts { all, parts });
        self.parts.insert(key, Arc::clone(&parts));
        parts
    }
}

impl Shared {
    fn program(&mut self, clauses: Vec<Clause>, default: Outcome) -> Arc<Program> {
        let program = self.programs.entry((clauses, default));
        let new = |(clauses, default): &(Vec<_>, _)| Arc::new(Program::new(clauses, *default));
        program.or_insert_with_key(new).clone()
    }

    fn by_class(&mut self, by_class: Vec<u32>) -> Arc<[u32]> {
        if let Some(shared) = self.by_class.get(by_class.as_slice()) {
            return Arc::clone(shared);
        }
        let new: Arc<[u32]> = by_class.into();
        self.by_class.insert(Arc::clone(&new));
        new
    }

    /// Forgets what no table has any more, when that is most.
    pub(super) fn forget(&mut self) {
        if self.programs.len() + self.by_class.len() > 2 * self.used + SPARE_SHARED {
            self.programs.retain(|_, program| Arc::strong_count(program) > 1);
            self.by_class.retain(|by_class| Arc::strong_count(by_class) > 1);
            self.used = self.programs.len() + self.by_class.len();
        }
    }
}

/// Sets the program of a class; what is beyond the end has program 0.
fn set(by_class: &mut Vec<u32>, class: ClassId, program: u32) {
    let at = class.0 as usize;
    if program != 0 && at >= by_class.len() {
        by_class.resize(at + 1, 0);
    }
    if let Some(of_class) = by_class.get_mut(at) {
        *of_class = program;
    }
}

impl Family {
    /// Visits, in ascending order, places among which are all classes that
    /// meet a condition: as few as the indexes allow.
    fn candidates(&self, condition: &AddressCondition, visit: impl FnMut(u32)) {
        let selector = condition.selector.map(|id| &self.by_selector[id as usize]);
        let service = condition.service.map(|id| &self.by_service[id as usize]);
        let positive = [selector, service].into_iter().flatten();
        let fewest = positive.min_by_key(|places| places.len());
        let nets = || condition.nets.iter().map(|id| &self.by_net[*id as usize]);
        let by_nets: usize = nets().map(Vec::len).sum();
        match fewest {
            Some(places) if condition.nets.is_empty() || places.len() <= by_nets => {
                places.iter().copied().for_each(visit);
            }
            None if condition.nets.is_empty() => (0..self.classes.len() as u32).for_each(visit),
            _ => {
                let mut places: Vec<u32> = nets().flatten().copied().collect();
                places.sort_unstable();
                places.dedup();
                places.into_iter().for_each(visit);
            }
        }
    }
}

/// Classes within which no rule sees a difference.
#[derive(Debug)]
struct Groups {
    /// By place of the class.
    of: Vec<u32>,
    /// The first place in each.
    samples: Vec<u32>,
}

impl Groups {
    /// Splits classes by every part of every rule; groups are numbered by
    /// their first class.
    fn new(classes: usize, live: &[Live]) -> Self {
        let mut of = vec![0u32; classes];
        let mut sizes = vec![classes as u32];
        let mut seen: HashSet<*const Parts> = HashSet::default();
        // Per group: how many of its classes the part holds, and their new group.
        let mut hits: Vec<u32> = vec![0];
        let mut split: Vec<u32> = vec![0];
        for rule in live.iter().filter(|rule| !rule.parts.all) {
            if !seen.insert(Arc::as_ptr(&rule.parts)) {
                continue;
            }
            for part in &rule.parts.parts {
                for place in &part.places {
                    hits[of[*place as usize] as usize] += 1;
                }
                for place in &part.places {
                    let old = of[*place as usize] as usize;
                    if hits[old] > 0 {
                        if hits[old] == sizes[old] {
                            split[old] = old as u32;
                        } else {
                            split[old] = sizes.len() as u32;
                            sizes.push(hits[old]);
                            sizes[old] -= hits[old];
                            hits.push(0);
                            split.push(split[old]);
                        }
                        hits[old] = 0;
                    }
                    of[*place as usize] = split[old];
                }
            }
        }
        Self::numbered(of, sizes.len())
    }

    fn numbered(mut of: Vec<u32>, groups: usize) -> Self {
        let mut number = vec![u32::MAX; groups];
        let mut samples = Vec::new();
        for (place, group) in (0..).zip(&mut of) {
            let number = &mut number[*group as usize];
            if *number == u32::MAX {
                *number = samples.len() as u32;
                samples.push(place);
            }
            *group = *number;
        }
        Self { of, samples }
    }

    /// The rules that concern each group, as far as packets can get to them.
    fn steps(&self, live: &[Live]) -> Vec<Vec<Step>> {
        let mut steps: Vec<Vec<Step>> = vec![Vec::new(); self.samples.len()];
        // The first tier whose further rules a group's packets can get to.
        let mut open = vec![0usize; self.samples.len()];
        // The tier that some of a group's packets last left by Pass.
        let mut passed = vec![None; self.samples.len()];
        for (at, rule) in (0..).zip(live) {
            for ((number, part), matches) in (0..).zip(&rule.parts.parts).zip(&rule.matches) {
                if matches.is_empty() {
                    continue;
                }
                let all = matches.iter().any(L4Match::is_all);
                let mut concern = |group: usize| {
                    if open[group] > rule.tier {
                        return;
                    }
                    steps[group].push((at, number));
                    if let Then::Pass = rule.then {
                        passed[group] = Some(rule.tier);
                    }
                    if all && passed[group] == Some(rule.tier) {
                        open[group] = rule.tier + 1;
                    } else if all {
                        open[group] = usize::MAX;
                    }
                };
                if rule.parts.all {
                    (0..self.samples.len()).for_each(&mut concern);
                } else {
                    for place in &part.places {
                        let group = self.of[*place as usize] as usize;
                        if self.samples[group] == *place {
                            concern(group);
                        }
                    }
                }
            }
        }
        steps
    }
}

/// A group's rules to clauses of which the first match decides, and what holds
/// when none matches.
fn flatten(
    steps: &[Step],
    live: &[Live],
    ends: &[Option<RuleId>],
    end: Outcome,
) -> (Vec<Clause>, Outcome) {
    // What follows the tier at hand.
    let mut after: Vec<(L4Match, Outcome)> = Vec::new();
    let mut default = end;
    let mut rest = steps;
    for (tier, end) in ends.iter().enumerate().rev() {
        let first = rest.partition_point(|(rule, _)| live[*rule as usize].tier < tier);
        let own = &rest[first..];
        rest = &rest[..first];
        if !own.is_empty() || end.is_some() {
            (after, default) = flatten_tier(own, live, *end, (after, default));
        }
    }
    while after.last().is_some_and(|(_, outcome)| *outcome == default) {
        after.pop();
    }
    (after.iter().map(|(l4, outcome)| l4.clause(*outcome)).collect(), default)
}

/// Puts one tier before what follows it.
fn flatten_tier(
    steps: &[Step],
    live: &[Live],
    end: Option<RuleId>,
    (after, default): (Vec<(L4Match, Outcome)>, Outcome),
) -> (Vec<(L4Match, Outcome)>, Outcome) {
    let mut list = Vec::new();
    let mut passing: Vec<L4Match> = Vec::new();
    let pass = |passing: &mut Vec<L4Match>, list: &mut Vec<(L4Match, Outcome)>| {
        for l4 in passing.drain(..) {
            let both = after.iter().filter_map(|(of, then)| Some((l4.intersection(of)?, *then)));
            list.extend(both);
            list.push((l4, default));
        }
    };
    for (rule, part) in steps {
        let rule = &live[*rule as usize];
        for l4 in &rule.matches[*part as usize] {
            match rule.then {
                Then::Decide(outcome) => {
                    pass(&mut passing, &mut list);
                    if l4.is_all() {
                        return (list, outcome);
                    }
                    list.push((l4.clone(), outcome));
                }
                // Neighbors join, because each costs all that follows the tier.
                Then::Pass => match passing.iter_mut().find_map(|old| {
                    let union = old.union(l4)?;
                    Some((old, union))
                }) {
                    Some((old, union)) => *old = union,
                    None => passing.push(l4.clone()),
                },
            }
            if passing.iter().any(L4Match::is_all) {
                passing.clear();
                list.extend(after);
                return (list, default);
            }
        }
    }
    pass(&mut passing, &mut list);
    match end {
        Some(rule) => (list, Outcome { allow: false, rule }),
        None => {
            list.extend(after);
            (list, default)
        }
    }
}
