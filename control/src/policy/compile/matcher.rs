//! Many selectors against many label sets, without asking every selector about
//! every set.
//!
//! Most selectors require some label, often with a value, and wait under it. A
//! label set wakes those that wait under one of its labels; only these are
//! evaluated, besides the few that require nothing. The other way round
//! ([`LabelSets`]), label sets wait under their labels for a new selector.

use std::borrow::Borrow;
use std::sync::Arc;

use ahash::{HashMap, RandomState};

use crate::policy::selector::{Requirement, Selector};
use crate::state::Labels;

/// Selectors, by what they require.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    selectors: Vec<Option<Selector>>,
    by_value: HashMap<Box<str>, HashMap<Box<str>, Vec<u32>>>,
    by_key: HashMap<Box<str>, Vec<u32>>,
    unconditional: Vec<u32>,
}

/// Changes what is at a key, which is copied only if it is new: most are not.
fn under<V: Default>(map: &mut HashMap<Box<str>, V>, key: &str, change: impl FnOnce(&mut V)) {
    match map.get_mut(key) {
        Some(value) => change(value),
        None => change(map.entry(key.into()).or_default()),
    }
}

impl Matcher {
    /// Prepares selectors; their numbers are their places.
    pub(crate) fn new<S: Borrow<Selector>>(selectors: &[S]) -> Self {
        let mut matcher = Self::default();
        for (id, selector) in (0..).zip(selectors.iter().map(Borrow::borrow)) {
            matcher.insert(id, selector.clone());
        }
        matcher
    }

    /// Adds a selector under a number that is free.
    pub(crate) fn insert(&mut self, id: u32, selector: Selector) {
        match selector.requirement() {
            None => self.unconditional.push(id),
            Some(Requirement::Present(key)) => {
                under(&mut self.by_key, key, |waiting| waiting.push(id));
            }
            Some(Requirement::OneOf(key, values)) => {
                under(&mut self.by_value, key, |waiting| {
                    for value in values {
                        under(waiting, value, |waiting| waiting.push(id));
                    }
                });
            }
        }
        let place = id as usize;
        if place >= self.selectors.len() {
            self.selectors.resize(place + 1, None);
        }
        self.selectors[place] = Some(selector);
    }

    /// Removes a selector.
    pub(crate) fn remove(&mut self, id: u32) {
        let Some(selector) = self.selectors.get_mut(id as usize).and_then(Option::take) else {
            return;
        };
        let leave = |waiting: &mut Vec<u32>| waiting.retain(|other| *other != id);
        match selector.requirement() {
            None => leave(&mut self.unconditional),
            Some(Requirement::Present(key)) => {
                let Some(waiting) = self.by_key.get_mut(key) else { return };
                leave(waiting);
                if waiting.is_empty() {
                    self.by_key.remove(key);
                }
            }
            Some(Requirement::OneOf(key, values)) => {
                let Some(of_key) = self.by_value.get_mut(key) else { return };
                for value in values {
                    let Some(waiting) = of_key.get_mut(&**value) else { continue };
                    leave(waiting);
                    if waiting.is_empty() {
                        of_key.remove(&**value);
                    }
                }
                if of_key.is_empty() {
                    self.by_value.remove(key);
                }
            }
        }
    }

    /// The selectors that match, ascending.
    pub(crate) fn matching(&self, labels: &Labels) -> Vec<u32> {
        let mut awake = self.unconditional.clone();
        for (key, value) in labels {
            awake.extend(self.by_key.get(key.as_str()).into_iter().flatten());
            let waiting = self.by_value.get(key.as_str());
            let waiting = waiting.and_then(|values| values.get(value.as_str()));
            awake.extend(waiting.into_iter().flatten());
        }
        let selector = |id: &u32| self.selectors[*id as usize].as_ref();
        awake.retain(|id| selector(id).is_some_and(|selector| selector.matches(labels)));
        awake.sort_unstable();
        awake.dedup();
        awake
    }
}

/// Distinct label sets with numbers, by their labels.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    numbers: HashMap<Arc<Labels>, u32>,
    sets: Vec<Arc<Labels>>,
    /// The sets that have a label or a key, by its hash: where two hashes meet,
    /// some that have not.
    having: HashMap<u64, Vec<u32>>,
    hasher: RandomState,
}

impl LabelSets {
    /// The number of a set.
    pub(super) fn number(&mut self, labels: &Arc<Labels>) -> u32 {
        if let Some(number) = self.numbers.get(labels) {
            return *number;
        }
        let number = self.sets.len() as u32;
        self.numbers.insert(labels.clone(), number);
        self.sets.push(labels.clone());
        for (key, value) in &**labels {
            for hash in [self.hash(key.as_str(), None), self.hash(key, Some(value))] {
                self.having.entry(hash).or_default().push(number);
            }
        }
        number
    }

    fn hash(&self, key: &str, value: Option<&str>) -> u64 {
        self.hasher.hash_one((key, value))
    }

    /// The set with a number.
    pub(super) fn get(&self, number: u32) -> &Arc<Labels> {
        &self.sets[number as usize]
    }

    /// The sets that a selector chooses.
    pub(super) fn chosen_by(&self, selector: &Selector) -> Vec<u32> {
        let having = |hash| self.having.get(&hash).into_iter().flatten().copied();
        let mut chosen: Vec<u32> = match selector.requirement() {
            None => (0..self.sets.len() as u32).collect(),
            Some(Requirement::Present(key)) => having(self.hash(key, None)).collect(),
            Some(Requirement::OneOf(key, values)) => {
                values.iter().flat_map(|value| having(self.hash(key, Some(value)))).collect()
            }
        };
        chosen.retain(|set| selector.matches(self.get(*set)));
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}
