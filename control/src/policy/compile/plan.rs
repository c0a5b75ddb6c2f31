//! All that follows from the policies that apply on this node: the questions
//! that their rules ask, the classes that these make, and the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::policy::Direction as Table;
use tieline_dataplane::tables::{ClassId, EndpointPolicy, Outcome, PolicyId};

use super::atoms::Atoms;
use super::enforced::{Active, Enforced};
use super::numbers::{Memory, Tables};
use super::population::Population;
use super::program::{Builder, Shared, Side};
use super::universe::{FactsId, Universe, Walk};
use super::views::{Profile, ViewId};
use super::{Decision, Direction};
use crate::policy::model::PolicySet;

/// Classes that may be added before all are found anew, so that those without
/// an address go: this many, or a quarter of them.
const SPARE_CLASSES: usize = 1024;

/// Tables that may be kept beyond those that were in use at first.
const SPARE_TABLES: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Plan {
    enforced: Enforced,
    /// The policies that apply, by number of the label set of a local endpoint.
    applied: HashMap<u32, Vec<u32>>,
    active: Active,
    peers: Universe,
    locals: Universe,
    classes: Classes,
    /// Classes that the tables don't have yet.
    fresh: Vec<(ClassId, bool, FactsId)>,
    builder: Builder,
    shared: Shared,
    /// Tables that no packet passes to the profile, by direction, whether IPv6,
    /// facts and policies: they serve all namespaces.
    closed: HashMap<(Direction, bool, FactsId, Vec<u32>), Table>,
    known: HashMap<(bool, Applies), PolicyId>,
    tables: Vec<Tables>,
    tables_changed: bool,
    /// Numbers of classes and of tables at first.
    first: (usize, usize),
}

/// Classes by family and facts.
#[derive(Debug, Default)]
struct Classes {
    of: [Vec<Option<ClassId>>; 2],
    number: usize,
}

impl Classes {
    fn get(&self, v6: bool, facts: FactsId) -> Option<ClassId> {
        self.of[usize::from(v6)].get(facts as usize).copied().flatten()
    }

    /// Sets a class that is not there yet.
    fn set(&mut self, v6: bool, facts: FactsId, class: ClassId) {
        let of = &mut self.of[usize::from(v6)];
        let place = facts as usize;
        if place >= of.len() {
            of.resize(place + 1, None);
        }
        of[place] = Some(class);
        self.number += 1;
    }

    fn iter(&self) -> impl Iterator<Item = (ClassId, bool, FactsId)> {
        [false, true].into_iter().flat_map(|v6| {
            let of = (0..).zip(&self.of[usize::from(v6)]);
            of.filter_map(move |(facts, class)| Some(((*class)?, v6, facts)))
        })
    }
}

/// All that an endpoint's tables follow from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Applies {
    /// Places of the policies among the enforced ones, ascending.
    policies: Vec<u32>,
    /// What rules see of it as the local end.
    facts: FactsId,
    /// What decides where no tier does.
    profile: Profile,
}

impl Applies {
    /// What holds of packets that no tier decides about.
    fn end(&self, memory: &mut Memory) -> Outcome {
        let Profile { exists, namespace } = &self.profile;
        let name = format!("kns.{namespace}");
        let allow = *exists;
        let decision =
            if allow { Decision::Profile { name } } else { Decision::NoProfile { name } };
        Outcome { allow, rule: memory.decision(decision) }
    }
}

impl Plan {
    /// Finds which policies apply and what they ask. The classes must be asked
    /// for before [`Self::start_tables`].
    pub(super) fn new(set: &PolicySet, population: &Population, memory: &mut Memory) -> Self {
        let enforced = Enforced::new(set, memory);
        let mut applied: HashMap<u32, Vec<u32>> = HashMap::default();
        let used: Vec<ViewId> = population.views.iter().map(|(id, _)| id).collect();
        for (view, labels) in population.locals(&used) {
            applied.entry(labels).or_insert_with(|| enforced.applying(&view.labels));
        }
        let (mut peers, mut locals) = (Atoms::default(), Atoms::default());
        let places: BTreeSet<u32> = applied.values().flatten().copied().collect();
        let active = enforced.active(places, &mut peers, &mut locals, memory);
        let mut classes = Classes::default();
        classes.set(false, 0, ClassId::UNKNOWN_V4);
        classes.set(true, 0, ClassId::UNKNOWN_V6);
        Self {
            peers: Universe::new(peers, set, population),
            locals: Universe::new(locals, set, population),
            enforced,
            applied,
            active,
            classes,
            fresh: Vec::new(),
            builder: Builder::default(),
            shared: Shared::default(),
            closed: HashMap::default(),
            known: HashMap::default(),
            tables: Vec::new(),
            tables_changed: false,
            first: (0, 0),
        }
    }

    /// Whether so much has been added that starting again is worth it.
    pub(super) fn is_bloated(&self) -> bool {
        let (classes, tables) = self.first;
        self.classes.number > classes + (classes / 4).max(SPARE_CLASSES)
            || self.known.len() > 2 * tables + SPARE_TABLES
    }

    /// Goes on under another policy set, if the rules that apply on this node
    /// are the same under it.
    pub(super) fn keep_under(
        &mut self,
        set: &PolicySet,
        population: &Population,
        memory: &mut Memory,
    ) -> Option<()> {
        let enforced = Enforced::new(set, memory);
        let applying = |set: &u32| (*set, enforced.applying(population.views.label_set(*set)));
        let applied: HashMap<u32, Vec<u32>> = self.applied.keys().map(applying).collect();
        let mut old: Vec<u32> = self.active.keys().copied().collect();
        old.sort_unstable();
        let new: BTreeSet<u32> = applied.values().flatten().copied().collect();
        let new: Vec<u32> = new.into_iter().collect();
        if !self.enforced.saying(&old).eq(enforced.saying(&new)) {
            return None;
        }
        let places: HashMap<u32, u32> = old.into_iter().zip(new).collect();
        let moved = |of: &[u32]| -> Vec<u32> { of.iter().map(|place| places[place]).collect() };
        if self.applied.iter().any(|(set, of)| applied.get(set) != Some(&moved(of))) {
            return None;
        }
        self.applied = applied;
        self.enforced = enforced;
        self.closed.clear();
        let active = self.active.drain().map(|(place, rules)| (places[&place], rules));
        self.active = active.collect();
        let known = self.known.drain().map(|((v6, applies), id)| {
            let policies = moved(&applies.policies);
            ((v6, Applies { policies, ..applies }), id)
        });
        self.known = known.collect();
        Some(())
    }

    /// Finds which policies apply to those of an address's owners that are
    /// local; `None` if one of these is not known to this plan.
    pub(super) fn know_locals(&mut self, owners: &[ViewId], population: &Population) -> Option<()> {
        for (view, labels) in population.locals(owners) {
            if !self.applied.contains_key(&labels) {
                let applying = self.enforced.applying(&view.labels);
                if !applying.iter().all(|place| self.active.contains_key(place)) {
                    return None;
                }
                self.applied.insert(labels, applying);
            }
        }
        Some(())
    }

    /// The class of an address.
    pub(super) fn class(
        &mut self,
        addr: Addr,
        owners: &[ViewId],
        population: &Population,
        memory: &mut Memory,
    ) -> ClassId {
        let facts = self.peers.address(addr, owners, population);
        self.class_of(!addr.is_v4(), facts, memory)
    }

    /// The class of the next of many addresses in ascending order.
    pub(super) fn next_class(
        &mut self,
        walk: &mut Walk,
        addr: Addr,
        owners: &[ViewId],
        population: &Population,
        memory: &mut Memory,
    ) -> ClassId {
        let facts = self.peers.next_address(walk, addr, owners, population);
        self.class_of(!addr.is_v4(), facts, memory)
    }

    fn class_of(&mut self, v6: bool, facts: FactsId, memory: &mut Memory) -> ClassId {
        if let Some(class) = self.classes.get(v6, facts) {
            return class;
        }
        let content = self.peers.content(facts, memory);
        let class = memory.class(v6, content);
        self.fresh.push((class, v6, facts));
        self.classes.set(v6, facts, class);
        class
    }

    /// The classes of addresses that nobody has, by longest prefix.
    pub(super) fn prefixes(&mut self, memory: &mut Memory) -> BTreeMap<Prefix, ClassId> {
        let prefixes: Vec<_> = self.peers.prefixes().collect();
        let class = |(prefix, facts): (Prefix, FactsId)| {
            (prefix, self.class_of(!prefix.is_v4(), facts, memory))
        };
        prefixes.into_iter().map(class).collect()
    }

    /// Begins to make tables, of all classes that there are.
    pub(super) fn start_tables(&mut self) {
        let mut all: Vec<_> = self.classes.iter().collect();
        all.sort_unstable();
        self.fresh.clear();
        self.builder = Builder::new(&self.peers, &all);
    }

    /// Gives the tables that there are the classes that are new.
    pub(super) fn extend(&mut self, memory: &mut Memory) {
        if self.fresh.is_empty() {
            return;
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable();
        self.builder.add(&self.peers, &fresh);
        self.closed.clear();
        let mut columns = Builder::new(&self.peers, &fresh);
        for ((v6, applies), id) in &self.known {
            let Some(Some(old)) = self.tables.get(id.0 as usize) else { continue };
            if !fresh.iter().any(|(_, of, _)| of == v6) {
                continue;
            }
            let end = applies.end(memory);
            let local = self.locals.facts(applies.facts);
            let mut extend = |direction, table| {
                let tiers = self.enforced.tiers(direction, &applies.policies, &self.active);
                let side = Side { direction, v6: *v6, tiers: &tiers, local, end };
                columns.extend(&self.peers, &mut self.shared, side, table)
            };
            let ingress = extend(Direction::Ingress, &old.ingress);
            let egress = extend(Direction::Egress, &old.egress);
            if !same(&ingress, &old.ingress) || !same(&egress, &old.egress) {
                self.tables[id.0 as usize] = Some(Arc::new(EndpointPolicy { ingress, egress }));
                self.tables_changed = true;
            }
        }
    }

    /// The policy of an address, if policies apply to it.
    pub(super) fn policy(
        &mut self,
        addr: Addr,
        owners: &[ViewId],
        population: &Population,
        memory: &mut Memory,
    ) -> Option<PolicyId> {
        let mut policies = Vec::new();
        for (_, labels) in population.locals(owners) {
            policies.extend_from_slice(self.applied.get(&labels).map_or(&[], Vec::as_slice));
        }
        let locals = population.locals(owners);
        let profile = locals.filter_map(|(view, _)| view.profile.as_ref()).min()?.clone();
        policies.sort_unstable();
        policies.dedup();
        let facts = self.locals.address(addr, owners, population);
        let applies = Applies { policies, facts, profile };
        Some(self.policy_of(!addr.is_v4(), applies, memory))
    }

    fn policy_of(&mut self, v6: bool, applies: Applies, memory: &mut Memory) -> PolicyId {
        let key = (v6, applies);
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let applies = &key.1;
        let names: Vec<_> = applies.policies.iter().map(|at| self.enforced.name(*at)).collect();
        let facts = self.locals.content(applies.facts, memory);
        let hash = memory.hash((v6, names, facts, &applies.profile));
        let id = memory.policy(hash);
        let ingress = self.table(Direction::Ingress, v6, applies, memory);
        let egress = self.table(Direction::Egress, v6, applies, memory);
        let place = id as usize;
        if place >= self.tables.len() {
            self.tables.resize(place + 1, None);
        }
        self.tables[place] = Some(Arc::new(EndpointPolicy { ingress, egress }));
        self.tables_changed = true;
        self.known.insert(key, PolicyId(id));
        PolicyId(id)
    }

    fn table(
        &mut self,
        direction: Direction,
        v6: bool,
        applies: &Applies,
        memory: &mut Memory,
    ) -> Table {
        let key = (direction, v6, applies.facts, applies.policies.clone());
        if let Some(table) = self.closed.get(&key) {
            return table.clone();
        }
        let tiers = self.enforced.tiers(direction, &applies.policies, &self.active);
        let end = applies.end(memory);
        let local = self.locals.facts(applies.facts);
        let side = Side { direction, v6, tiers: &tiers, local, end };
        let (table, reaches_end) = self.builder.table(&self.peers, &mut self.shared, side);
        if !reaches_end {
            self.closed.insert(key, table.clone());
        }
        table
    }

    /// The tables, if any has changed since this was last asked.
    pub(super) fn changed_tables(&mut self) -> Option<&[Tables]> {
        std::mem::take(&mut self.tables_changed).then_some(&*self.tables)
    }

    /// All tables that are in use are made: those that are what they were
    /// before are the very same. Returns them if any is not.
    pub(super) fn end(&mut self, memory: &mut Memory, before: &[Tables]) -> Option<&[Tables]> {
        memory.end(&mut self.tables, before);
        self.first = (self.classes.number, self.known.len());
        self.tables_changed = false;
        let pointers = |tables: &[Tables]| -> Vec<_> {
            tables.iter().map(|table| table.as_ref().map(Arc::as_ptr)).collect()
        };
        (pointers(&self.tables) != pointers(before)).then_some(&*self.tables)
    }

    /// The tables, when nothing else of the plan is needed any more.
    pub(super) fn into_tables(self) -> Vec<Tables> {
        self.tables
    }
}

/// Whether two tables are one.
fn same(a: &Table, b: &Table) -> bool {
    Arc::ptr_eq(&a.by_class, &b.by_class) && Arc::ptr_eq(&a.programs, &b.programs)
}
