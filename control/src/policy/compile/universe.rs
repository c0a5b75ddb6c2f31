//! The facts about every address: from its owners' labels and ports, and from
//! the nets and services that hold it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};

use super::atoms::{Asked, Atoms, Facts, NamedPortFact};
use super::matcher::Matcher;
use super::numbers::{Interner, Memory};
use super::population::Population;
use super::views::{View, ViewId};
use crate::policy::model::PolicySet;

/// Number of some [`Facts`]; 0 are those of an address that no question fits.
pub(super) type FactsId = u32;

const NOT_ASKED: FactsId = FactsId::MAX;

/// About whom there are other facts than before.
pub(super) struct Grown {
    /// Views whose owners give their addresses others.
    pub(super) views: BTreeSet<ViewId>,
    /// Nets of whose addresses others may hold.
    pub(super) nets: Vec<Prefix>,
}

impl Grown {
    pub(super) fn is_empty(&self) -> bool {
        self.views.is_empty() && self.nets.is_empty()
    }
}

/// How far a pass over ascending addresses has come in the nets, IPv4 and IPv6.
#[derive(Debug, Default)]
pub(super) struct Walk([usize; 2]);

/// Answers the questions of one [`Atoms`] for any address. Views must keep
/// their meaning while it is in use. A question that is asked later changes the
/// facts of those to whom it applies and of nobody else; that one is not asked
/// any more changes nothing.
#[derive(Debug, Default)]
pub(super) struct Universe {
    /// The questions.
    pub(super) atoms: Atoms,
    matcher: Matcher,
    /// Which questions are answered here.
    known: Asked,
    /// The questions about ports, by port name.
    names: HashMap<String, Vec<(u32, Option<u32>)>>,
    facts: Interner<Arc<Facts>>,
    /// Selectors that match, by label set; ascending.
    matching: HashMap<u32, Vec<u32>>,
    /// Facts that an owner gives its addresses, by view; `NOT_ASKED` where
    /// nobody has asked.
    given: Vec<FactsId>,
    unions: HashMap<(FactsId, FactsId), FactsId>,
    /// For IPv4 and IPv6.
    nets: [NetTree; 2],
}

impl Universe {
    /// Prepares to answer what has been asked.
    pub(super) fn start(&mut self, policies: &PolicySet, population: &Population) {
        self.facts.id(Arc::new(Facts::default()));
        self.learn();
        self.nets = self.net_trees(policies, population);
    }

    /// Takes in the questions that are new; returns the numbers of those about
    /// selectors and about port names.
    fn learn(&mut self) -> [Range<u32>; 2] {
        let asked = self.atoms.asked();
        let known = std::mem::replace(&mut self.known, asked);
        for id in known.selectors..asked.selectors {
            self.matcher.insert(id, self.atoms.selectors.values()[id as usize].clone());
        }
        for id in known.names..asked.names {
            let (selector, name) = &self.atoms.names.values()[id as usize];
            self.names.entry(name.clone()).or_default().push((id, *selector));
        }
        [known.selectors..asked.selectors, known.names..asked.names]
    }

    /// Prepares to answer what has been asked since. Other network sets or
    /// services than before are known about `nets`.
    pub(super) fn grow(
        &mut self,
        nets: &[Prefix],
        policies: &PolicySet,
        population: &Population,
    ) -> Grown {
        let known = self.known;
        let [selectors, names] = self.learn();
        let mut grown = Grown { views: BTreeSet::new(), nets: nets.to_vec() };
        grown.nets.extend(&self.atoms.nets.values()[known.nets as usize..]);
        for name in &self.atoms.services.values()[known.services as usize..] {
            let endpoints = policies.services.get(name).into_iter().flat_map(|all| all.iter());
            grown.nets.extend(endpoints.map(|it| Prefix::host(it.address.into())));
        }
        let views = &population.views;
        for id in selectors {
            for set in views.chosen_by(&self.atoms.selectors.values()[id as usize]) {
                if let Some(matching) = self.matching.get_mut(&set) {
                    matching.push(id);
                }
                grown.views.extend(views.having(set));
            }
        }
        for (selector, name) in &self.atoms.names.values()[names.start as usize..] {
            let named = |view: &View| view.ports.iter().any(|port| port.name == *name);
            let Some(selector) = selector else {
                let all = views.iter().filter(|(_, view)| named(view));
                grown.views.extend(all.map(|(id, _)| id));
                continue;
            };
            let sets = views.chosen_by(&self.atoms.selectors.values()[*selector as usize]);
            let of_sets = sets.into_iter().flat_map(|set| views.having(set)).copied();
            let named = |id: &ViewId| views.get(*id).is_some_and(|(view, _)| named(view));
            grown.views.extend(of_sets.filter(named));
        }
        grown.views.retain(|view| match self.given.get_mut(*view as usize) {
            Some(given) => std::mem::replace(given, NOT_ASKED) != NOT_ASKED,
            None => false,
        });
        let of_sets = population.nets().iter().filter(|(_, view)| grown.views.contains(view));
        grown.nets.extend(of_sets.map(|(net, _)| *net));
        if !grown.nets.is_empty() {
            self.nets = self.net_trees(policies, population);
        }
        grown
    }

    /// How much has been asked and answered.
    pub(super) fn size(&self) -> usize {
        self.facts.values().len() + self.unions.len()
    }

    /// The facts with a number.
    pub(super) fn facts(&self, id: FactsId) -> &Arc<Facts> {
        &self.facts.values()[id as usize]
    }

    /// A hash of what facts say, the same from one compilation to the next.
    pub(super) fn content(&self, id: FactsId, memory: &Memory) -> u64 {
        self.atoms.content(self.facts(id), memory)
    }

    /// The facts about an address with these owners.
    pub(super) fn address(
        &mut self,
        addr: Addr,
        owners: &[ViewId],
        population: &Population,
    ) -> FactsId {
        let tree = &self.nets[usize::from(!addr.is_v4())];
        let around = tree.holding(addr).map_or(0, |at| tree.0[at].facts);
        self.with_owners(around, owners, population)
    }

    /// The same, of the next of many addresses in ascending order.
    pub(super) fn next_address(
        &mut self,
        walk: &mut Walk,
        addr: Addr,
        owners: &[ViewId],
        population: &Population,
    ) -> FactsId {
        let family = usize::from(!addr.is_v4());
        let tree = &self.nets[family];
        let after = &mut walk.0[family];
        while tree.0.get(*after).is_some_and(|node| node.prefix.addr() <= addr) {
            *after += 1;
        }
        let holding = after.checked_sub(1).and_then(|last| tree.climb(last, addr));
        let around = holding.map_or(0, |at| tree.0[at].facts);
        self.with_owners(around, owners, population)
    }

    fn with_owners(
        &mut self,
        around: FactsId,
        owners: &[ViewId],
        population: &Population,
    ) -> FactsId {
        let mut all = around;
        for owner in owners {
            let given = self.given(*owner, population);
            all = self.union(all, given);
        }
        all
    }

    /// The prefixes whose addresses have other facts than those around them,
    /// each with these facts; ascending, IPv4 first.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (Prefix, FactsId)> {
        self.nets.iter().flat_map(|tree| {
            tree.0.iter().filter_map(|node| {
                let around = node.parent.map_or(0, |at| tree.0[at].facts);
                (node.facts != around).then_some((node.prefix, node.facts))
            })
        })
    }

    /// The facts that an owner gives its addresses.
    fn given(&mut self, id: ViewId, population: &Population) -> FactsId {
        let place = id as usize;
        match self.given.get(place) {
            Some(&NOT_ASKED) => {}
            Some(given) => return *given,
            None => self.given.resize(place + 1, NOT_ASKED),
        }
        let Some((view, labels)) = population.view(id) else { return 0 };
        let matching =
            self.matching.entry(labels).or_insert_with(|| self.matcher.matching(&view.labels));
        let mut ports: Vec<NamedPortFact> = Vec::new();
        for port in view.ports.iter().filter(|_| !self.names.is_empty()) {
            for (name, selector) in self.names.get(port.name.as_str()).into_iter().flatten() {
                if selector.is_none_or(|id| matching.binary_search(&id).is_ok()) {
                    ports.push((*name, port.protocol, port.port));
                }
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let facts = Facts { selectors: matching.clone(), ports, ..Facts::default() };
        let given = self.facts.id(Arc::new(facts));
        self.given[place] = given;
        given
    }

    fn union(&mut self, a: FactsId, b: FactsId) -> FactsId {
        if a == 0 || b == 0 || a == b {
            return a.max(b);
        }
        let (a, b) = (a.min(b), a.max(b));
        let facts = &mut self.facts;
        *self.unions.entry((a, b)).or_insert_with(|| {
            let union = facts.values()[a as usize].union(&facts.values()[b as usize]);
            facts.id(Arc::new(union))
        })
    }

    /// Arranges rules' nets, network sets' nets and services' addresses.
    fn net_trees(&mut self, policies: &PolicySet, population: &Population) -> [NetTree; 2] {
        let mut items: Vec<(Prefix, FactsId)> = Vec::new();
        for (id, net) in (0..).zip(self.atoms.nets.values()) {
            let facts = Facts { nets: vec![id], ..Facts::default() };
            items.push((*net, self.facts.id(Arc::new(facts))));
        }
        for (id, name) in (0..).zip(self.atoms.services.values()) {
            for endpoint in policies.services.get(name).into_iter().flat_map(|all| all.iter()) {
                let facts = Facts { services: vec![(id, endpoint.port)], ..Facts::default() };
                let prefix = Prefix::host(endpoint.address.into());
                items.push((prefix, self.facts.id(Arc::new(facts))));
            }
        }
        for (net, view) in population.nets() {
            items.push((*net, self.given(*view, population)));
        }
        // Containing prefixes first, as building the tree needs them.
        items.sort_by_key(|(prefix, _)| (!prefix.is_v4(), prefix.addr(), prefix.len128()));
        let mut trees = <[NetTree; 2]>::default();
        for (prefix, facts) in items {
            let tree = usize::from(!prefix.is_v4());
            let parent = trees[tree].0.len().checked_sub(1);
            let parent = parent.and_then(|last| trees[tree].climb(last, prefix.addr()));
            let around = parent.map_or(0, |at| trees[tree].0[at].facts);
            let facts = self.union(around, facts);
            match parent {
                Some(at) if trees[tree].0[at].prefix == prefix => trees[tree].0[at].facts = facts,
                _ => trees[tree].0.push(NetNode { prefix, parent, facts }),
            }
        }
        trees
    }
}

/// Prefixes of a family in order, each after those that hold it.
#[derive(Debug, Default)]
struct NetTree(Vec<NetNode>);

/// A prefix and all that is known of its addresses by it and by those that
/// hold it.
#[derive(Debug)]
struct NetNode {
    prefix: Prefix,
    /// The next larger prefix that holds this one.
    parent: Option<usize>,
    facts: FactsId,
}

impl NetTree {
    /// The smallest prefix that holds an address.
    fn holding(&self, addr: Addr) -> Option<usize> {
        let after = self.0.partition_point(|node| node.prefix.addr() <= addr);
        self.climb(after.checked_sub(1)?, addr)
    }

    /// The first prefix that holds `addr` from `at` upwards.
    fn climb(&self, at: usize, addr: Addr) -> Option<usize> {
        std::iter::successors(Some(at), |at| self.0[*at].parent)
            .find(|at| self.0[*at].prefix.contains(addr))
    }
}
