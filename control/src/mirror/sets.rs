//! From the sets that exist to the sets that are wanted, one write at a time.
//!
//! Promises: however far a plan is carried out, and wherever it starts,
//!
//! - whether a selector matches an address changes at most once on the way, and
//!   only from what it was to what it is to be;
//! - so a selector that matches rightly at the start does so after every
//!   write: no address is absent for a moment, and none is there too early.
//!
//! A selector that is new does not match rightly at the start: Felix sees the
//! policy when we do. Most match too little, until the sets have the labels that
//! they ask for; one that asks for a label not to be there may match too much.
//! Nothing that is written later can help that, so it is told.
//!
//! The promises follow from one rule: an address leaves a set only when every set that
//! is to hold it does hold it. A set's name follows from its labels, so a set
//! never changes its labels, unless somebody else has changed them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::{HashMap, HashSet};
use sha1::{Digest, Sha1};
use tieline_dataplane::addr::Prefix;

use super::group::{Group, Groups};
use super::object::owner;
use crate::state::Labels;

/// Most addresses of a set. A change of one address writes the whole set, some
/// 20 bytes for each; Felix's own cost goes with addresses, not with sets of
/// this size.
pub const LARGEST_SET: usize = 1000;

/// A set: what it is to hold, or holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The remote cluster that its addresses are of, as the owner's label has
    /// it.
    pub cluster: Arc<str>,
    /// Its labels, but for the owner's.
    pub labels: Arc<Labels>,
    /// Its addresses.
    pub nets: BTreeSet<Prefix>,
}

/// Sets by name.
pub type Sets = BTreeMap<String, Set>;

/// What is done to one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is created, or replaced.
    Put(Set),
    /// It is deleted.
    Delete,
}

/// The first part of the names of a group's sets.
fn base(group: &Group) -> String {
    let mut hash = Sha1::new();
    let texts = group.labels.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    for text in std::iter::once(&*group.cluster).chain(texts) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    let hash: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    // Names have 253 bytes at most.
    let cluster: String = group.cluster.chars().take(200).collect();
    format!("tieline-{cluster}-{hash}")
}

/// The sets that are to exist for `groups`. Addresses stay in the sets that hold
/// them, so that a small change is a small change of few sets.
pub fn wanted(groups: &Groups, existing: &Sets) -> Sets {
    with_largest(groups, existing, LARGEST_SET)
}

fn with_largest(groups: &Groups, existing: &Sets, largest: usize) -> Sets {
    let mut all = Sets::new();
    for (group, nets) in &groups.sets {
        let base = base(group);
        for (number, nets) in shards(&base, group, nets, existing, largest) {
            let set = Set { cluster: owner(&group.cluster), labels: group.labels.clone(), nets };
            all.insert(format!("{base}-{number}"), set);
        }
    }
    all
}

/// Divides the addresses of a group, by number of the set.
fn shards(
    base: &str,
    group: &Group,
    nets: &BTreeSet<Prefix>,
    existing: &Sets,
    largest: usize,
) -> BTreeMap<usize, BTreeSet<Prefix>> {
    let numbered = existing
        .range(format!("{base}-")..)
        .take_while(|(name, _)| name.strip_prefix(base).is_some_and(|rest| rest.starts_with('-')));
    let owner = owner(&group.cluster);
    let mut present: Vec<(usize, &Set)> = numbered
        .filter(|(_, set)| set.labels == group.labels && set.cluster == owner)
        .filter_map(|(name, set)| Some((name[base.len() + 1..].parse().ok()?, set)))
        .collect();
    // A group that has become small goes back into few sets: the smallest are
    // given up.
    let enough = 1 + 2 * nets.len() / largest;
    present.sort_by_key(|(number, set)| (std::cmp::Reverse(set.nets.len()), *number));
    present.truncate(enough);

    let mut shards: BTreeMap<usize, BTreeSet<Prefix>> = BTreeMap::new();
    let mut placed: BTreeSet<Prefix> = BTreeSet::new();
    let mut touched: BTreeSet<usize> = BTreeSet::new();
    for (number, set) in present {
        let keep = set.nets.iter().filter(|net| nets.contains(net) && !placed.contains(net));
        let keep: BTreeSet<Prefix> = keep.take(largest).copied().collect();
        placed.extend(&keep);
        if keep.len() != set.nets.len() {
            touched.insert(number);
        }
        shards.insert(number, keep);
    }
    // Into a set that is written anyway, else into the first with room.
    let mut new = nets.iter().filter(|net| !placed.contains(net)).copied().peekable();
    let order: Vec<usize> = touched.iter().copied().chain(0..).take(2 * enough + 2).collect();
    for number in order {
        if new.peek().is_none() {
            break;
        }
        let shard = shards.entry(number).or_default();
        let room = largest.saturating_sub(shard.len());
        shard.extend(new.by_ref().take(room));
    }
    let mut number = shards.keys().next_back().map_or(0, |last| last + 1);
    while new.peek().is_some() {
        shards.insert(number, new.by_ref().take(largest).collect());
        number += 1;
    }
    shards.retain(|_, nets| !nets.is_empty());
    shards
}

/// A plan: see the module's documentation.
#[derive(Debug)]
pub struct Plan<'a> {
    wanted: &'a Sets,
    existing: Sets,
    /// For each address how many sets are to hold it and don't.
    lacking: HashMap<Prefix, u32>,
}

impl<'a> Plan<'a> {
    /// Plans the way from `existing` to `wanted`.
    pub fn new(existing: Sets, wanted: &'a Sets) -> Self {
        let mut lacking: HashMap<Prefix, u32> = HashMap::default();
        for (name, set) in wanted {
            let holds = existing.get(name).filter(|present| present.labels == set.labels);
            for net in &set.nets {
                if !holds.is_some_and(|present| present.nets.contains(net)) {
                    *lacking.entry(*net).or_default() += 1;
                }
            }
        }
        Self { wanted, existing, lacking }
    }

    /// The sets as they are after the writes that were carried out.
    pub fn existing(&self) -> &Sets {
        &self.existing
    }

    /// The names of the sets that differ from what is wanted.
    pub fn differing(&self) -> BTreeSet<&str> {
        let wrong = self.wanted.iter().filter(|(name, set)| self.existing.get(*name) != Some(set));
        let unwanted = self.existing.keys().filter(|name| !self.wanted.contains_key(*name));
        wrong.map(|(name, _)| name).chain(unwanted).map(String::as_str).collect()
    }

    /// What may be done to a set now, if anything: it may have to wait for
    /// other sets.
    pub fn next(&self, name: &str) -> Option<Write> {
        let present = self.existing.get(name);
        let kept = |present: &Set| -> BTreeSet<Prefix> {
            present.nets.iter().filter(|net| self.lacking.contains_key(net)).copied().collect()
        };
        let Some(wanted) = self.wanted.get(name) else {
            return kept(present?).is_empty().then_some(Write::Delete);
        };
        let Some(present) = present else { return Some(Write::Put(wanted.clone())) };
        let mut next = wanted.clone();
        if present.labels == wanted.labels {
            let mut leaving = kept(present);
            // What it is to hold itself is lacking only elsewhere.
            leaving.retain(|net| !next.nets.contains(net));
            next.nets.extend(leaving);
        } else if !self.others_are_right(name) {
            return None;
        }
        (next != *present).then_some(Write::Put(next))
    }

    /// Whether a set still holds addresses for others that lack them: written
    /// before those it would have to be written again.
    pub fn holds_for_others(&self, name: &str) -> bool {
        let wanted = self.wanted.get(name).map(|wanted| &wanted.nets);
        let leaves = |net: &&Prefix| wanted.is_none_or(|wanted| !wanted.contains(*net));
        let present = self.existing.get(name).into_iter().flat_map(|present| &present.nets);
        present.filter(leaves).any(|net| self.lacking.contains_key(net))
    }

    /// Whether all that is wrong with a set is that it holds addresses which
    /// nobody has any more.
    pub fn can_wait(&self, name: &str, gone: &HashSet<Prefix>) -> bool {
        let Some(present) = self.existing.get(name) else { return false };
        let nothing = BTreeSet::new();
        let wanted = match self.wanted.get(name) {
            Some(wanted) if wanted.labels == present.labels => &wanted.nets,
            Some(_) => return false,
            None => &nothing,
        };
        wanted.is_subset(&present.nets)
            && present.nets.difference(wanted).all(|net| gone.contains(net))
    }

    /// Whether nothing is lacking but in sets of which somebody has changed the
    /// labels: what such a set matches wrongly may be what holds an address
    /// that the others still lack.
    fn others_are_right(&self, name: &str) -> bool {
        self.wanted.iter().all(|(other, set)| {
            other == name
                || match self.existing.get(other) {
                    Some(present) if present.labels == set.labels => {
                        set.nets.is_subset(&present.nets)
                    }
                    Some(_) => true,
                    None => false,
                }
        })
    }

    /// Notes that a write was carried out.
    pub fn done(&mut self, name: &str, write: &Write) {
        match write {
            Write::Delete => {
                self.existing.remove(name);
            }
            Write::Put(set) => {
                let before = self.existing.insert(name.to_owned(), set.clone());
                let before = before.filter(|before| before.labels == set.labels);
                let Some(wanted) = self.wanted.get(name).filter(|it| it.labels == set.labels)
                else {
                    return;
                };
                for net in set.nets.intersection(&wanted.nets) {
                    if before.as_ref().is_some_and(|before| before.nets.contains(net)) {
                        continue;
                    }
                    if let Some(count) = self.lacking.get_mut(net) {
                        *count -= 1;
                        if *count == 0 {
                            self.lacking.remove(net);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
