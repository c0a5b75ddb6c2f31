//! Small numbers for things, and keeping them from one compilation to the next.
//!
//! Workers cache what they were told by number. So that a change makes them
//! forget no more than it must, what stays keeps its number ([`Numbers`]).

use std::hash::Hash;
use std::sync::Arc;

use ahash::{HashMap, HashSet, RandomState};
use tieline_dataplane::tables::{ClassId, EndpointPolicy, RuleId};

use super::Decision;

/// Gives equal values equal small numbers, from 0 in order of appearance.
#[derive(Debug)]
pub(super) struct Interner<T> {
    of: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { of: HashMap::default(), values: Vec::new() }
    }
}

impl<T: Hash + Eq + Clone> Interner<T> {
    /// The number of a value.
    pub(super) fn id(&mut self, value: T) -> u32 {
        if let Some(id) = self.of.get(&value) {
            return *id;
        }
        let id = self.values.len() as u32;
        self.values.push(value.clone());
        self.of.insert(value, id);
        id
    }

    /// Whether a value has a number.
    pub(super) fn has(&self, value: &T) -> bool {
        self.of.contains_key(value)
    }

    /// All values, by number.
    pub(super) fn values(&self) -> &[T] {
        &self.values
    }
}

/// Numbers that things keep as long as each round has them. Things are known
/// by a hash of their content: when two hashes meet, one of the two things does
/// not keep its number, and no more.
#[derive(Debug, Default)]
struct Numbers {
    of: HashMap<u64, u32>,
    taken: HashSet<u64>,
    free: Vec<u32>,
    next: u32,
    /// Numbers given in this round to things whose hash was taken.
    twins: Vec<u32>,
}

impl Numbers {
    fn take(&mut self, hash: u64) -> u32 {
        let first = self.taken.insert(hash);
        if let Some(number) = self.of.get(&hash).filter(|_| first) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        if first {
            self.of.insert(hash, number);
        } else {
            self.twins.push(number);
        }
        number
    }

    /// Begins a round, in which nothing is taken yet.
    fn begin(&mut self) {
        self.taken.clear();
        self.free.append(&mut self.twins);
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Gives free the numbers that nobody has taken since the round began. More
    /// can be taken after that.
    fn sweep(&mut self) {
        let Self { of, taken, free, .. } = self;
        of.retain(|hash, number| {
            let kept = taken.contains(hash);
            if !kept {
                free.push(*number);
            }
            kept
        });
        // The lowest are given first, to keep arrays short.
        free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

/// The tables at a number, if it is in use.
pub(super) type Tables = Option<Arc<EndpointPolicy>>;

/// What one compilation leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    hasher: RandomState,
    classes: Numbers,
    policies: Numbers,
    decisions: Interner<Arc<Decision>>,
    /// All decisions, when they were last asked for.
    told: Arc<[Arc<Decision>]>,
    /// How many decisions the last round asked for, or has by now.
    used: usize,
    /// Whether a round has begun and not ended.
    counts: bool,
}

/// Decisions that are in use no more are kept up to this many, or half of all.
const SPARE_DECISIONS: usize = 4096;

impl Memory {
    /// Begins a round.
    pub(super) fn begin(&mut self) {
        if self.is_bloated() {
            self.decisions = Interner::default();
            self.told = Arc::default();
        }
        self.classes.begin();
        self.policies.begin();
        self.decisions.id(Arc::new(Decision::NoPolicy));
        (self.used, self.counts) = (0, true);
        for (v6, unknown) in [(false, ClassId::UNKNOWN_V4), (true, ClassId::UNKNOWN_V6)] {
            let class = self.class(v6, 0);
            debug_assert_eq!(class, unknown);
        }
    }

    /// Begins a round for endpoint policies alone.
    pub(super) fn begin_policies(&mut self) {
        self.policies.begin();
    }

    /// Ends it with the tables: those that are what they were before are the
    /// very same. Numbers that are asked for after this are such that nothing
    /// has.
    pub(super) fn end_policies(&mut self, tables: &mut [Tables], before: &[Tables]) {
        for (new, old) in tables.iter_mut().zip(before) {
            let same = |(new, old): (&Arc<_>, &Arc<_>)| Arc::ptr_eq(new, old) || new == old;
            if new.as_ref().zip(old.as_ref()).is_some_and(same) {
                new.clone_from(old);
            }
        }
        self.policies.sweep();
    }

    /// Ends a round for all else, likewise.
    pub(super) fn end(&mut self) {
        self.classes.sweep();
        self.counts = false;
    }

    /// Whether more decisions are kept without use than with.
    pub(super) fn is_bloated(&self) -> bool {
        self.decisions.values().len() > 2 * self.used + SPARE_DECISIONS
    }

    /// A hash that stays the same from round to round.
    pub(super) fn hash(&self, content: impl Hash) -> u64 {
        self.hasher.hash_one(content)
    }

    /// The number of a class that this round has not asked for; until the round
    /// ends it may be one that had another meaning before.
    pub(super) fn class(&mut self, v6: bool, facts: u64) -> ClassId {
        let hash = self.hash((v6, facts));
        ClassId(self.classes.take(hash))
    }

    /// The number of an endpoint policy that this round has not asked for.
    pub(super) fn policy(&mut self, hash: u64) -> u32 {
        self.policies.take(hash)
    }

    /// The number of a decision.
    pub(super) fn decision(&mut self, decision: Decision) -> RuleId {
        self.used += usize::from(self.counts);
        RuleId(self.decisions.id(Arc::new(decision)))
    }

    /// All decisions, by number.
    pub(super) fn decisions(&mut self) -> Arc<[Arc<Decision>]> {
        if self.told.len() != self.decisions.values().len() {
            self.told = self.decisions.values().into();
        }
        self.told.clone()
    }
}
