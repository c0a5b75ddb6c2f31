//! All that follows from the policies that apply on this node: the questions
//! that their rules ask, the classes that these make, and the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::{HashMap, HashSet};
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::policy::Direction as Table;
use tieline_dataplane::tables::{ClassId, EndpointPolicy, Outcome, PolicyId};

use super::enforced::{Active, Changes, Enforced, tiers};
use super::numbers::{Memory, Tables};
use super::population::Population;
use super::program::{Builder, Shared, Side};
use super::universe::{FactsId, Grown, Universe, Walk};
use super::views::{Profile, ViewId};
use super::{Decision, Direction};
use crate::policy::model::PolicySet;
use crate::state::ObjectName;

/// Classes that may be added before all are found anew, so that those without
/// an address go: this many, or a quarter of them.
const SPARE_CLASSES: usize = 1024;

/// Tables that may be kept beyond those that were in use at first.
const SPARE_TABLES: usize = 256;

/// Facts that may be added beyond twice those that there were at first.
const SPARE_FACTS: usize = 4096;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The policies that apply, in order, by number of the label set of a local
    /// endpoint.
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
    /// Tables that have not been asked for again yet.
    kept: HashMap<(bool, Applies), Arc<EndpointPolicy>>,
    tables: Vec<Tables>,
    tables_changed: bool,
    /// Whether other policies apply to some endpoint, or other facts.
    turned: bool,
    first: First,
}

/// How much there was at first.
#[derive(Debug, Default)]
struct First {
    classes: usize,
    tables: usize,
    facts: usize,
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
    /// Numbers of the policies, in order.
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
    pub(super) fn new(
        set: &PolicySet,
        enforced: &Enforced,
        population: &Population,
        memory: &mut Memory,
    ) -> Self {
        let mut plan = Self::default();
        plan.classes.set(false, 0, ClassId::UNKNOWN_V4);
        plan.classes.set(true, 0, ClassId::UNKNOWN_V6);
        let used: Vec<ViewId> = population.views.locals().collect();
        for (view, labels) in population.locals(&used) {
            plan.applied.entry(labels).or_insert_with(|| enforced.applying(&view.labels));
        }
        plan.activate(enforced, memory);
        plan.peers.start(set, population);
        plan.locals.start(set, population);
        plan
    }

    /// Looks at the rules of policies that have come to apply.
    fn activate(&mut self, enforced: &Enforced, memory: &mut Memory) {
        let applying = self.applied.values().flatten().copied();
        let new: BTreeSet<u32> = applying.filter(|it| !self.active.contains_key(it)).collect();
        let mut new: Vec<u32> = new.into_iter().collect();
        enforced.sort(&mut new);
        for number in new {
            let (peers, locals) = (&mut self.peers.atoms, &mut self.locals.atoms);
            let policy = enforced.bind(number, peers, locals, memory);
            self.active.extend(policy.map(|policy| (number, policy)));
        }
    }

    /// Whether so much has been added that starting again is worth it.
    pub(super) fn is_bloated(&self) -> bool {
        let first = &self.first;
        self.classes.number > first.classes + (first.classes / 4).max(SPARE_CLASSES)
            || self.known.len() > 2 * first.tables + SPARE_TABLES
            || self.peers.size() + self.locals.size() > 2 * first.facts + SPARE_FACTS
    }

    /// Whether rules ask about one of these services.
    pub(super) fn asks_about(&self, service: &ObjectName) -> bool {
        [&self.peers, &self.locals].iter().any(|it| it.atoms.services.has(service))
    }

    /// Takes over what has become of the policies.
    pub(super) fn follow(
        &mut self,
        changes: &Changes,
        enforced: &Enforced,
        population: &Population,
    ) {
        let mut applying = Vec::with_capacity(changes.come.len());
        for number in &changes.come {
            let chosen = enforced.selector(*number).map(|it| population.views.chosen_by(it));
            applying.push((*number, chosen.unwrap_or_default()));
        }
        if changes.gone.iter().any(|number| self.active.contains_key(number)) {
            let gone: HashSet<u32> = changes.gone.iter().copied().collect();
            self.active.retain(|number, _| !gone.contains(number));
            let stays = |of: &Vec<u32>| !of.iter().any(|number| gone.contains(number));
            self.closed.retain(|(.., policies), _| stays(policies));
            self.known.retain(|(_, applies), _| stays(&applies.policies));
            for of_set in self.applied.values_mut() {
                of_set.retain(|number| !gone.contains(number));
            }
            self.turned = true;
        }
        for (number, sets) in applying {
            for set in sets {
                if let Some(of_set) = self.applied.get_mut(&set) {
                    of_set.push(number);
                    self.turned = true;
                }
            }
        }
        if self.turned || changes.reordered {
            self.applied.values_mut().for_each(|of_set| enforced.sort(of_set));
            self.turned = true;
        }
    }

    /// Finds which policies apply to those of an address's owners that are
    /// local.
    pub(super) fn know_locals(
        &mut self,
        owners: &[ViewId],
        enforced: &Enforced,
        population: &Population,
    ) {
        for (view, labels) in population.locals(owners) {
            self.applied.entry(labels).or_insert_with(|| enforced.applying(&view.labels));
        }
    }

    /// Looks at the rules that are new. Returns who has other facts for that, or
    /// because other sets or services than before are known about `nets`.
    pub(super) fn grow(
        &mut self,
        nets: &[Prefix],
        set: &PolicySet,
        enforced: &Enforced,
        population: &Population,
        memory: &mut Memory,
    ) -> Grown {
        self.activate(enforced, memory);
        self.turned |= !self.locals.grow(nets, set, population).is_empty();
        let grown = self.peers.grow(nets, set, population);
        self.builder.add(&self.peers, &[]);
        grown
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

    /// Whether the tables of all local endpoints must be asked for again.
    pub(super) fn is_turned(&self) -> bool {
        self.turned
    }

    /// Begins to ask for them, and returns those that there were: they serve as
    /// long as all that they follow from is the same.
    pub(super) fn renew_tables(&mut self, memory: &mut Memory) -> Vec<Tables> {
        memory.begin_policies();
        let known = self.known.drain();
        let kept =
            known.filter_map(|(key, id)| Some((key, self.tables.get(id.0 as usize)?.clone()?)));
        self.kept = kept.collect();
        std::mem::take(&mut self.tables)
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
                let tiers = tiers(direction, &applies.policies, &self.active);
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
        self.shared.forget();
    }

    /// The policy of an address, if policies apply to it.
    pub(super) fn policy(
        &mut self,
        addr: Addr,
        owners: &[ViewId],
        enforced: &Enforced,
        population: &Population,
        memory: &mut Memory,
    ) -> Option<PolicyId> {
        let mut policies = Vec::new();
        let mut sets = 0;
        for (_, labels) in population.locals(owners) {
            policies.extend_from_slice(self.applied.get(&labels).map_or(&[], Vec::as_slice));
            sets += 1;
        }
        let locals = population.locals(owners);
        let profile = locals.filter_map(|(view, _)| view.profile.as_ref()).min()?.clone();
        if sets > 1 {
            enforced.sort(&mut policies);
            policies.dedup();
        }
        let facts = self.locals.address(addr, owners, population);
        let applies = Applies { policies, facts, profile };
        Some(self.policy_of(!addr.is_v4(), applies, enforced, memory))
    }

    fn policy_of(
        &mut self,
        v6: bool,
        applies: Applies,
        enforced: &Enforced,
        memory: &mut Memory,
    ) -> PolicyId {
        let key = (v6, applies);
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let applies = &key.1;
        let names: Vec<_> = applies.policies.iter().map(|at| enforced.name(*at)).collect();
        let facts = self.locals.content(applies.facts, memory);
        let hash = memory.hash((v6, names, facts, &applies.profile));
        let id = memory.policy(hash);
        let table = self.kept.remove(&key).unwrap_or_else(|| {
            let ingress = self.table(Direction::Ingress, v6, applies, memory);
            let egress = self.table(Direction::Egress, v6, applies, memory);
            Arc::new(EndpointPolicy { ingress, egress })
        });
        let place = id as usize;
        if place >= self.tables.len() {
            self.tables.resize(place + 1, None);
        }
        self.tables[place] = Some(table);
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
        let tiers = tiers(direction, &applies.policies, &self.active);
        let end = applies.end(memory);
        let local = self.locals.facts(applies.facts);
        let side = Side { direction, v6, tiers: &tiers, local, end };
        let (table, reaches_end) = self.builder.table(&self.peers, &mut self.shared, side);
        if !reaches_end {
            self.closed.insert(key, table.clone());
        }
        table
    }

    /// Whether a table has changed since this was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.tables_changed)
    }

    /// All tables that are in use are made: those that are what they were
    /// before are the very same. Returns whether any is not.
    pub(super) fn end_tables(&mut self, memory: &mut Memory, before: &[Tables]) -> bool {
        memory.end_policies(&mut self.tables, before);
        self.kept.clear();
        (self.turned, self.tables_changed) = (false, false);
        self.shared.forget();
        let pointers = |tables: &[Tables]| -> Vec<_> {
            tables.iter().map(|table| table.as_ref().map(Arc::as_ptr)).collect()
        };
        pointers(&self.tables) != pointers(before)
    }

    /// Everything is made anew: growth is measured from here.
    pub(super) fn end(&mut self) {
        let facts = self.peers.size() + self.locals.size();
        self.first = First { classes: self.classes.number, tables: self.known.len(), facts };
    }

    /// The tables, by number.
    pub(super) fn tables(&self) -> &[Tables] {
        &self.tables
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
