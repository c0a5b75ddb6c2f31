//! A hash map in shared pieces.
//!
//! Cloning copies one array of pointers; changing a key afterwards copies the
//! one shard that holds it. A lookup is one hash, one pointer, one probe.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

/// Pieces of each map.
const SHARDS: usize = 1024;

type Shard<V> = HashMap<u128, V, RandomState>;

/// A persistent map from 128-bit keys.
#[derive(Clone, Debug)]
pub struct ShardMap<V> {
    hasher: RandomState,
    shards: Arc<[Arc<Shard<V>>]>,
    len: usize,
}

impl<V: Clone> Default for ShardMap<V> {
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(Shard::with_hasher(hasher.clone()));
        Self { shards: std::iter::repeat_n(empty, SHARDS).collect(), hasher, len: 0 }
    }
}

impl<V: Clone> ShardMap<V> {
    /// The number of the shard that `key` is in.
    #[inline]
    fn shard(&self, key: u128) -> usize {
        // The low bits choose the bucket within the shard: use others here.
        (self.hasher.hash_one(key) >> 40) as usize % SHARDS
    }

    /// The value at `key`.
    #[inline]
    pub fn get(&self, key: u128) -> Option<&V> {
        self.shards[self.shard(key)].get(&key)
    }

    /// Sets the value at `key` and returns the one it had.
    pub fn insert(&mut self, key: u128, value: V) -> Option<V> {
        let shard = self.shard(key);
        let old = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes `key` and returns the value it had.
    pub fn remove(&mut self, key: u128) -> Option<V> {
        let shard = self.shard(key);
        if !self.shards[shard].contains_key(&key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard]).remove(&key)
    }

    /// Whether nothing has changed since this map was cloned from `other`.
    pub(super) fn shares_all_with(&self, other: &Self) -> bool {
        self.not_shared_with(other).next().is_none()
    }

    /// The keys with other values than in `previous`, each once, in no order. Looks
    /// only at what the two don't share.
    pub(super) fn changed<'a>(&'a self, previous: &'a Self) -> impl Iterator<Item = u128> + 'a
    where
        V: PartialEq,
    {
        self.not_shared_with(previous).flat_map(|shard| {
            let here = self.shards[shard].iter();
            let other = here.filter(|(key, value)| previous.get(**key) != Some(*value));
            let before = previous.shards[shard].keys();
            let gone = before.filter(|key| self.get(**key).is_none());
            other.map(|(key, _)| *key).chain(gone.copied())
        })
    }

    /// The numbers of the shards that this map does not share with `other`.
    fn not_shared_with(&self, other: &Self) -> impl Iterator<Item = usize> {
        let shards = if Arc::ptr_eq(&self.shards, &other.shards) { 0 } else { SHARDS };
        (0..shards).filter(|at| !Arc::ptr_eq(&self.shards[*at], &other.shards[*at]))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All keys and values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u128, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter().map(|(key, value)| (*key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut map = ShardMap::default();
        for key in 0..5000u128 {
            assert_eq!(map.insert(key, key), None);
        }
        let old = map.clone();
        assert_eq!(map.insert(7, 70), Some(7));
        assert_eq!(map.remove(8), Some(8));
        assert_eq!(map.remove(8), None);
        assert_eq!((old.get(7), old.get(8), old.len()), (Some(&7), Some(&8), 5000));
        assert_eq!((map.get(7), map.get(8), map.len()), (Some(&70), None, 4999));
        assert_eq!(map.iter().count(), 4999);
    }

    #[test]
    fn changed_keys_are_told_once() {
        let mut old = ShardMap::default();
        for key in 0..5000u128 {
            old.insert(key, key);
        }
        let mut map = old.clone();
        assert!(map.shares_all_with(&old) && map.changed(&old).next().is_none());
        map.insert(7, 70);
        map.remove(8);
        map.insert(9, 9);
        map.insert(5000, 1);
        assert!(!map.shares_all_with(&old));
        let sorted = |mut keys: Vec<u128>| {
            keys.sort_unstable();
            keys
        };
        assert_eq!(sorted(map.changed(&old).collect()), [7, 8, 5000]);
        // Also between maps that were made apart.
        let mut apart = ShardMap::default();
        for key in 0..4999u128 {
            apart.insert(key, key);
        }
        assert_eq!(sorted(apart.changed(&old).collect()), [4999]);
        assert_eq!(sorted(old.changed(&apart).collect()), [4999]);
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut map = ShardMap::default();
        for key in 0..5000u128 {
            map.insert(key, key);
        }
        let old = map.clone();
        map.insert(7, 70);
        let copied = old.shards.iter().zip(map.shards.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b));
        assert_eq!(copied.count(), 1);
    }
}
