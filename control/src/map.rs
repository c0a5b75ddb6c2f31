//! A sorted map whose versions share what they have in common.
//!
//! Cloning copies a pointer. A change copies one chunk and the list of chunks
//! (once, however many changes follow before the next clone), so it costs in
//! the order of the square root of the size. [`Map::diff`] skips what two
//! versions share, so finding what changed among 250,000 entries costs
//! microseconds. That is what lets sources tell whole states and everything
//! downstream still work in proportion to what is new.
//!
//! Start reading at [`Map::insert`].

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;

use ahash::HashSet;

/// Chunks hold at most this many entries: near the square root of what one
/// cluster has, so that copying a chunk and the list costs alike.
const CHUNK: usize = 256;

type Chunk<K, V> = Vec<(K, V)>;

/// A sorted map; see the module's documentation. Keys and values are copied
/// with their chunk, so both should be cheap to clone.
#[derive(Clone)]
pub struct Map<K, V> {
    /// Never empty chunks, ascending.
    chunks: Arc<Vec<Arc<Chunk<K, V>>>>,
    len: usize,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<K, V> Map<K, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the two are the same version.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }

    /// Entries, ascending.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.place_on(0, 0)
    }

    /// Keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Values, ascending by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    fn place_on(&self, chunk: usize, at: usize) -> Iter<'_, K, V> {
        let mut rest = self.chunks[chunk.min(self.chunks.len())..].iter();
        let current = rest.next().map_or(&[][..], |chunk| &chunk[at..]);
        Iter { current: current.iter(), rest }
    }

    /// The chunk in which a key is or would be, and its place there.
    fn place<Q>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let after = self.chunks.partition_point(|chunk| chunk[0].0.borrow() <= key);
        let chunk = after.saturating_sub(1);
        let found = self.chunks.get(chunk).map_or(Err(0), |entries| {
            entries.binary_search_by(|(other, _)| other.borrow().cmp(key))
        });
        (chunk, found)
    }

    /// The value at a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (chunk, found) = self.place(key);
        found.ok().map(|at| &self.chunks[chunk][at].1)
    }

    /// Whether there is a value at a key.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        self.place(key).1.is_ok()
    }

    /// Entries from a key on, ascending.
    pub fn starting_at<Q>(&self, key: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (chunk, found) = self.place(key);
        self.place_on(chunk, found.unwrap_or_else(|at| at))
    }
}

impl<K: Ord + Clone, V: Clone> Map<K, V> {
    /// Sets the value at a key and returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (chunk, found) = self.place(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        if chunks.is_empty() {
            chunks.push(Arc::default());
        }
        let entries = Arc::make_mut(&mut chunks[chunk]);
        let at = match found {
            Ok(at) => return Some(std::mem::replace(&mut entries[at].1, value)),
            Err(at) => at,
        };
        self.len += 1;
        if entries.len() < CHUNK {
            if entries.len() == entries.capacity() {
                // Doubling would end beyond a full chunk.
                entries.reserve_exact(entries.len().max(4).min(CHUNK - entries.len()));
            }
            entries.insert(at, (key, value));
            return None;
        }
        // Ascending insertion, as when a list is read, leaves chunks full.
        let mut upper = if at == CHUNK { Vec::new() } else { entries.split_off(CHUNK / 2) };
        match at.checked_sub(entries.len()) {
            Some(at) => upper.insert(at, (key, value)),
            None => entries.insert(at, (key, value)),
        }
        chunks.insert(chunk + 1, Arc::new(upper));
        None
    }

    /// Removes a key and returns the value it had.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let (chunk, Ok(at)) = self.place(key) else { return None };
        let chunks = Arc::make_mut(&mut self.chunks);
        let entries = Arc::make_mut(&mut chunks[chunk]);
        let (_, value) = entries.remove(at);
        self.len -= 1;
        let left = entries.len();
        if left == 0 {
            chunks.remove(chunk);
        } else if left < CHUNK / 4 {
            Self::join(chunks, chunk);
        }
        Some(value)
    }

    /// Joins a small chunk with the one after it, if both fit into one.
    fn join(chunks: &mut Vec<Arc<Chunk<K, V>>>, chunk: usize) {
        let Some(next) = chunks.get(chunk + 1) else { return };
        if chunks[chunk].len() + next.len() <= CHUNK / 2 {
            let next = chunks.remove(chunk + 1);
            Arc::make_mut(&mut chunks[chunk]).extend_from_slice(&next);
        }
    }
}

impl<K: Ord, V: PartialEq> Map<K, V> {
    /// What is different in `new`, ascending by key: the key, its value here
    /// and its value there.
    pub fn diff<'a>(&'a self, new: &'a Self) -> Diff<'a, K, V> {
        if self.is_same(new) {
            let none = || Vec::new().into_iter().flatten().peekable();
            return Diff { old: none(), new: none() };
        }
        // Changes are few: most chunks are shared at the same place.
        let (a, b) = (self.chunks.as_slice(), new.chunks.as_slice());
        let same = |(a, b): &(&Arc<_>, &Arc<_>)| Arc::ptr_eq(a, b);
        let head = a.iter().zip(b).take_while(same).count();
        let (a, b) = (&a[head..], &b[head..]);
        let tail = a.iter().rev().zip(b.iter().rev()).take_while(same).count();
        let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
        let unlike = |chunks: &'a [Arc<Chunk<K, V>>], others: &[Arc<Chunk<K, V>>]| {
            // A chunk that both have is the same entries, wherever it stands.
            let shared: HashSet<_> = others.iter().map(Arc::as_ptr).collect();
            let chunks = chunks.iter().filter(|chunk| !shared.contains(&Arc::as_ptr(chunk)));
            let slices: Vec<&'a [(K, V)]> = chunks.map(|chunk| chunk.as_slice()).collect();
            slices.into_iter().flatten().peekable()
        };
        Diff { old: unlike(a, b), new: unlike(b, a) }
    }
}

/// See [`Map::diff`].
pub struct Diff<'a, K, V> {
    old: Peekable<Entries<'a, K, V>>,
    new: Peekable<Entries<'a, K, V>>,
}

type Entries<'a, K, V> = std::iter::Flatten<std::vec::IntoIter<&'a [(K, V)]>>;

impl<'a, K: Ord, V: PartialEq> Iterator for Diff<'a, K, V> {
    type Item = (&'a K, Option<&'a V>, Option<&'a V>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.old.peek(), self.new.peek()) {
                (None, None) => return None,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = if order.is_le() { self.old.next() } else { None };
            let new = if order.is_ge() { self.new.next() } else { None };
            if let (Some((_, a)), Some((_, b))) = (old, new)
                && a == b
            {
                continue;
            }
            let (key, _) = old.or(new)?;
            return Some((key, old.map(|(_, value)| value), new.map(|(_, value)| value)));
        }
    }
}

/// Entries, ascending.
pub struct Iter<'a, K, V> {
    current: std::slice::Iter<'a, (K, V)>,
    rest: std::slice::Iter<'a, Arc<Chunk<K, V>>>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.current.next() {
                return Some((key, value));
            }
            self.current = self.rest.next()?.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.diff(other).next().is_none()
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V> fmt::Debug for Diff<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diff").finish_non_exhaustive()
    }
}

impl<K, V> fmt::Debug for Iter<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
