//! From the state of the world to the objects that are to exist.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::HashSet;
use tieline_dataplane::addr::Prefix;

use super::group::Grouper;
use super::object::{Storage, owner};
use super::pools::{self, Pools};
use super::sets::{self, Sets};
use super::{checks, group};
use crate::derive::Derived;
use crate::federation::RemoteStatus;
use crate::policy::convert::rule_selectors;
use crate::policy::selector::Selector;
use crate::state::Condition;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// `felix.mirror` is `auto`.
    pub mirror: bool,
    /// `felix.pools` is `auto`.
    pub pools: bool,
}

/// What the mirror follows from.
#[derive(Clone, Debug)]
pub struct Input {
    /// The state of the world, and what it amounts to.
    pub derived: Arc<Derived>,
    /// Remote clusters of which nothing is known yet, by
    /// RemoteClusterConfiguration: what is there of them stays.
    pub unknown: BTreeSet<Arc<str>>,
    /// Remote clusters, for their RemoteClusterConfigurations' status.
    pub remotes: BTreeMap<String, RemoteStatus>,
    /// Where Calico stores its objects, if it does.
    pub storage: Option<Storage>,
}

/// The objects that are to exist.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// GlobalNetworkSets.
    pub sets: Sets,
    /// IPPools.
    pub pools: Pools,
    /// What Felix can't do as Tieline does.
    pub conditions: Vec<Condition>,
    /// What somebody has asked for, as opposed to what pods do.
    pub asked: Asked,
    /// Addresses in existing sets that nobody in their remote cluster has any
    /// more.
    pub gone: HashSet<Prefix>,
}

/// What changes when somebody changes policies or remote clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    selectors: BTreeSet<Selector>,
    clusters: BTreeSet<Arc<str>>,
}

impl Asked {
    /// Whether a policy that is new since `before` asks for a label not to be
    /// there, or not to have a value. Felix sees the policy before sets that
    /// have no such label yet follow, so it matches too much for as long.
    pub fn denies_labels_since(&self, before: &Self) -> bool {
        let mut new = self.selectors.difference(&before.selectors);
        new.any(|selector| selector.questions().iter().any(|question| question.answer(None)))
    }
}

/// Works out the objects that are to exist, near to those that do.
pub fn work_out(
    grouper: &mut Grouper,
    input: &Input,
    modes: Modes,
    existing: (&Sets, &Pools),
) -> Wanted {
    let derived = &input.derived;
    let unknown: BTreeSet<Arc<str>> = input.unknown.iter().map(|name| owner(name)).collect();
    let mut wanted = Wanted::default();
    if modes.mirror {
        let selectors = rule_selectors(&derived.policies, &derived.world.local.policy);
        let groups = grouper.group(&selectors, derived.identities());
        wanted.sets = sets::wanted(&groups, existing.0);
        let kept = existing.0.iter().filter(|(_, set)| unknown.contains(&set.cluster));
        wanted.sets.extend(kept.map(|(name, set)| (name.clone(), set.clone())));
        wanted.conditions.extend(groups.inexpressible.iter().map(group::Inexpressible::condition));
        wanted.conditions.extend(checks::named_ports(derived));
        wanted.asked.selectors = selectors;
        wanted.gone = gone(derived, existing.0, &wanted.sets);
    }
    if modes.pools {
        let (pools, conditions) = pools::wanted(&derived.world);
        wanted.pools = pools;
        wanted.conditions.extend(conditions);
        let kept = existing.1.iter().filter_map(|(name, pool)| {
            let mut pool = pool.clone();
            pool.clusters.retain(|cluster| input.unknown.contains(cluster));
            (!pool.clusters.is_empty()).then_some((name, pool))
        });
        for (name, kept) in kept {
            let pool = wanted.pools.entry(name.clone()).or_insert_with(|| kept.clone());
            pool.clusters.extend(kept.clusters);
        }
    }
    wanted.asked.clusters = wanted.sets.values().map(|set| set.cluster.clone()).collect();
    wanted
}

/// Addresses that are to leave sets and that no identity has. Those of a remote
/// cluster that was left are not among them: somebody waits for that.
fn gone(derived: &Derived, existing: &Sets, wanted: &Sets) -> HashSet<Prefix> {
    let remotes: BTreeSet<Arc<str>> = derived.world.remotes.keys().map(|it| owner(it)).collect();
    let mut gone = HashSet::default();
    for (name, set) in existing.iter().filter(|(_, set)| remotes.contains(&set.cluster)) {
        match wanted.get(name) {
            Some(wanted) => gone.extend(set.nets.difference(&wanted.nets)),
            None => gone.extend(&set.nets),
        }
    }
    if !gone.is_empty() {
        for net in derived.identities().iter().flat_map(|identity| &identity.nets) {
            gone.remove(net);
        }
    }
    gone
}

impl Wanted {
    /// How many addresses have come to sets or left them since `before`.
    pub fn changes_since(&self, before: &Self) -> usize {
        let none = BTreeSet::new();
        let gone = before.sets.keys().filter(|name| !self.sets.contains_key(*name));
        let mut changed: HashSet<Prefix> = HashSet::default();
        for name in self.sets.keys().chain(gone) {
            let now = self.sets.get(name).map_or(&none, |set| &set.nets);
            let before = before.sets.get(name).map_or(&none, |set| &set.nets);
            if now != before {
                changed.extend(now.symmetric_difference(before));
            }
        }
        changed.len()
    }
}
