//! Many selectors against many label sets, without asking every selector about
//! every set.
//!
//! Most selectors require some label, often with a value, and wait under it. A
//! label set wakes those that wait under one of its labels; only these are
//! evaluated, besides the few that require nothing.

use std::borrow::Borrow;

use ahash::HashMap;

use crate::policy::selector::{Requirement, Selector};
use crate::state::Labels;

/// Selectors, by what they require.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    selectors: Vec<Selector>,
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
            matcher.selectors.push(selector.clone());
            match selector.requirement() {
                None => matcher.unconditional.push(id),
                Some(Requirement::Present(key)) => {
                    under(&mut matcher.by_key, key, |waiting| waiting.push(id));
                }
                Some(Requirement::OneOf(key, values)) => {
                    under(&mut matcher.by_value, key, |waiting| {
                        for value in values {
                            under(waiting, value, |waiting| waiting.push(id));
                        }
                    });
                }
            }
        }
        matcher
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
        awake.retain(|id| self.selectors[*id as usize].matches(labels));
        awake.sort_unstable();
        awake.dedup();
        awake
    }
}
