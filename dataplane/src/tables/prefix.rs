//! Longest-prefix match for both families.
//!
//! One shared-shard hash map per prefix length in use, longest first. Calico's
//! tables have few lengths (blocks, borrowed hosts, pools), so a lookup is two
//! or three probes whatever the number of prefixes, and a change copies one
//! shard.

use super::shard::ShardMap;
use crate::addr::{Addr, Prefix, mask};

/// A map from prefixes, looked up by address.
#[derive(Clone, Debug)]
pub struct PrefixMap<V> {
    /// Longest first; no empty maps.
    lengths: Vec<(u8, ShardMap<V>)>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { lengths: Vec::new() }
    }
}

impl<V: Clone> PrefixMap<V> {
    /// The value of the longest prefix that holds `addr`.
    #[inline]
    pub fn get(&self, addr: Addr) -> Option<&V> {
        self.matches(addr).next()
    }

    /// The values of all prefixes that hold `addr`, longest prefix first.
    #[inline]
    pub fn matches(&self, addr: Addr) -> impl Iterator<Item = &V> {
        // A short IPv6 prefix such as ::/0 must not catch mapped addresses.
        let shortest = if addr.is_v4() { 96 } else { 0 };
        self.lengths
            .iter()
            .take_while(move |(len, _)| *len >= shortest)
            .filter_map(move |(len, map)| map.get(addr.bits() & mask(*len)))
    }

    /// The value of exactly this prefix.
    pub fn get_exact(&self, prefix: &Prefix) -> Option<&V> {
        self.of_length(prefix.len128())?.get(prefix.addr().bits())
    }

    /// Sets the value of a prefix and returns the one it had.
    pub fn insert(&mut self, prefix: Prefix, value: V) -> Option<V> {
        let len = prefix.len128();
        let at = match self.lengths.binary_search_by(|(other, _)| len.cmp(other)) {
            Ok(at) => at,
            Err(at) => {
                self.lengths.insert(at, (len, ShardMap::default()));
                at
            }
        };
        self.lengths[at].1.insert(prefix.addr().bits(), value)
    }

    /// Removes a prefix and returns the value it had.
    pub fn remove(&mut self, prefix: &Prefix) -> Option<V> {
        let at = self.lengths.iter().position(|(len, _)| *len == prefix.len128())?;
        let old = self.lengths[at].1.remove(prefix.addr().bits());
        if self.lengths[at].1.is_empty() {
            self.lengths.remove(at);
        }
        old
    }

    /// Whether nothing has changed since this map was cloned from `other`.
    pub(super) fn shares_all_with(&self, other: &Self) -> bool {
        self.lengths.len() == other.lengths.len()
            && self.lengths.iter().zip(&other.lengths).all(|((len, map), (other_len, other))| {
                len == other_len && map.shares_all_with(other)
            })
    }

    /// The prefixes with other values than in `previous`, each once.
    pub(super) fn changed(&self, previous: &Self) -> Vec<Prefix>
    where
        V: PartialEq,
    {
        let mut changed = Vec::new();
        for (len, map) in &self.lengths {
            let prefix = |bits| Prefix::from_bits(bits, *len);
            match previous.of_length(*len) {
                Some(previous) => changed.extend(map.changed(previous).map(prefix)),
                None => changed.extend(map.iter().map(|(bits, _)| prefix(bits))),
            }
        }
        for (len, map) in previous.lengths.iter().filter(|(len, _)| self.of_length(*len).is_none())
        {
            changed.extend(map.iter().map(|(bits, _)| Prefix::from_bits(bits, *len)));
        }
        changed
    }

    fn of_length(&self, len: u8) -> Option<&ShardMap<V>> {
        self.lengths.iter().find(|(other, _)| *other == len).map(|(_, map)| map)
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.lengths.iter().map(|(_, map)| map.len()).sum()
    }

    /// Whether there are no prefixes.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// All prefixes and values, longest first, otherwise in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &V)> {
        self.lengths.iter().flat_map(|(len, map)| {
            map.iter().map(|(bits, value)| (Prefix::from_bits(bits, *len), value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn prefix() -> impl Strategy<Value = Prefix> {
        // Few distinct bits, so that prefixes nest and addresses hit.
        let v4 = (0u32..16, 0u8..=32)
            .prop_map(|(bits, len)| Prefix::new(IpAddr::from((bits << 28).to_be_bytes()), len));
        let v6 = (0u128..16, 0u8..=128)
            .prop_map(|(bits, len)| Prefix::new(IpAddr::from((bits << 124).to_be_bytes()), len));
        prop_oneof![v4, v6].prop_map(|prefix| prefix.expect("length in range"))
    }

    fn addr() -> impl Strategy<Value = Addr> {
        prop_oneof![
            (0u32..16).prop_map(|bits| Addr::from_v4_bytes((bits << 28).to_be_bytes())),
            (0u128..16).prop_map(|bits| Addr::from_v6_bytes((bits << 124).to_be_bytes())),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(
            inserts in prop::collection::vec((prefix(), 0u32..100), 0..40),
            removes in prop::collection::vec(prefix(), 0..10),
            addrs in prop::collection::vec(addr(), 1..20),
        ) {
            let mut map = PrefixMap::default();
            let mut list: Vec<(Prefix, u32)> = Vec::new();
            for (prefix, value) in inserts {
                map.insert(prefix, value);
                list.retain(|(other, _)| *other != prefix);
                list.push((prefix, value));
            }
            for prefix in removes {
                map.remove(&prefix);
                list.retain(|(other, _)| *other != prefix);
            }
            prop_assert_eq!(map.len(), list.len());
            for addr in addrs {
                let mut holding: Vec<_> = list.iter().filter(|(p, _)| p.contains(addr)).collect();
                holding.sort_by_key(|(p, _)| std::cmp::Reverse(p.len128()));
                let expected: Vec<u32> = holding.iter().map(|(_, value)| *value).collect();
                let found: Vec<u32> = map.matches(addr).copied().collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
