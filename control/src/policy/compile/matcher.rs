//! Many selectors against many label sets, without asking every selector about
//! every set.
//!
//! Most selectors require some label, often with a value, and wait under it. A
//! label set wakes those that wait under one of its labels; only these are
//! evaluated, besides the few that require nothing.

use std::sync::Arc;

use ahash::HashMap;

use crate::policy::selector::{Requirement, Selector};
use crate::state::{Identity, Labels};

/// The distinct label sets of some identities.
#[derive(Debug, Default)]
pub(super) struct LabelSets<'a> {
    /// Of each identity.
    pub(super) of: Vec<u32>,
    /// By number.
    pub(super) sets: Vec<&'a Labels>,
}

impl<'a> LabelSets<'a> {
    /// Finds them.
    pub(super) fn new(identities: &'a [Identity]) -> Self {
        let mut sets = Vec::new();
        let mut by_content: HashMap<&Labels, u32> = HashMap::default();
        // Identities with equal labels usually share them: comparing pointers
        // saves reading most of the sets.
        let mut by_pointer: HashMap<*const Labels, u32> = HashMap::default();
        let of = identities.iter().map(|identity| {
            *by_pointer.entry(Arc::as_ptr(&identity.labels)).or_insert_with(|| {
                *by_content.entry(&identity.labels).or_insert_with(|| {
                    sets.push(&*identity.labels);
                    sets.len() as u32 - 1
                })
            })
        });
        Self { of: of.collect(), sets }
    }
}

/// Selectors, by what they require.
#[derive(Debug, Default)]
pub(crate) struct Matcher<'a> {
    selectors: Vec<&'a Selector>,
    by_value: HashMap<&'a str, HashMap<&'a str, Vec<u32>>>,
    by_key: HashMap<&'a str, Vec<u32>>,
    unconditional: Vec<u32>,
}

impl<'a> Matcher<'a> {
    /// Prepares selectors; their numbers are their places.
    pub(crate) fn new(selectors: &[&'a Selector]) -> Self {
        let mut matcher = Self { selectors: selectors.to_vec(), ..Self::default() };
        for (id, selector) in (0..).zip(selectors) {
            match selector.requirement() {
                None => matcher.unconditional.push(id),
                Some(Requirement::Present(key)) => matcher.by_key.entry(key).or_default().push(id),
                Some(Requirement::OneOf(key, values)) => {
                    let waiting = matcher.by_value.entry(key).or_default();
                    for value in values {
                        waiting.entry(value).or_default().push(id);
                    }
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
