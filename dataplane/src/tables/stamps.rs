//! When each of many things has changed last, in generations.
//!
//! There are more things than is worth keeping: each has a place that follows
//! from its hash, and shares it with few others.

use std::sync::Arc;

use crate::addr::{Addr, Prefix, mask};

/// Places of each kind of thing: 16 KiB, which stay in the first-level cache while
/// all flows ask for them after a publication, and are copied by each.
const PLACES: usize = 1 << 12;
/// Bits of the prefixes that have a place: those of Calico's usual blocks of
/// 64 addresses, /26 and /122.
const BLOCK: u8 = 122;
/// A prefix of at most so many blocks has places.
const BLOCKS: u128 = 64;
/// Larger prefixes that are kept one by one.
const LARGE: usize = 16;

/// Whether generation `a` came after `b`. Only the lower halves are kept: half
/// of their range is eight months of a hundred changes a second.
pub(super) const fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

/// By hash.
#[derive(Clone, Debug)]
struct Places {
    changed: Arc<[u32; PLACES]>,
    /// The last change of any.
    last: u32,
}

impl Default for Places {
    fn default() -> Self {
        Self { changed: Arc::new([0; PLACES]), last: 0 }
    }
}

impl Places {
    fn note(&mut self, key: u128, generation: u32) {
        Arc::make_mut(&mut self.changed)[place(key)] = generation;
        self.last = generation;
    }

    #[inline]
    fn changed(&self, key: u128, since: u32) -> bool {
        after(self.last, since) && after(self.changed[place(key)], since)
    }
}

/// Of a cheap hash: who finds addresses of one place has flows judged again, and
/// nothing else.
fn place(key: u128) -> usize {
    let hash = ((key >> 64) as u64 ^ key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 48) as usize % PLACES
}

/// Changes at single addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses(Places);

impl Addresses {
    /// Notes that something else is known of an address than before.
    pub(super) fn note(&mut self, addr: Addr, generation: u32) {
        self.0.note(addr.bits(), generation);
    }

    /// Whether an address may have changed since a generation.
    #[inline]
    pub(super) fn changed(&self, addr: Addr, since: u32) -> bool {
        self.0.changed(addr.bits(), since)
    }
}

/// Changes of prefixes.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefixes {
    blocks: Places,
    /// Latest last.
    large: Arc<Vec<(u32, Prefix)>>,
    /// When the last one of those that were dropped from `large` has changed.
    dropped: u32,
}

impl Prefixes {
    /// Notes that something else holds for a prefix than before.
    pub(super) fn note(&mut self, prefix: &Prefix, generation: u32) {
        let len = prefix.len128();
        if len >= BLOCK {
            self.blocks.note(block(prefix.addr()), generation);
        } else if 1u128 << (BLOCK - len) <= BLOCKS {
            for at in 0..1u128 << (BLOCK - len) {
                self.blocks.note(prefix.addr().bits() + (at << (128 - BLOCK)), generation);
            }
        } else {
            let large = Arc::make_mut(&mut self.large);
            large.retain(|(_, other)| other != prefix);
            large.push((generation, *prefix));
            if large.len() > LARGE {
                self.dropped = large.remove(0).0;
            }
        }
    }

    /// Whether a prefix with this address in it may have changed since a
    /// generation.
    #[inline]
    pub(super) fn changed(&self, addr: Addr, since: u32) -> bool {
        let large = || {
            let newer = self.large.iter().rev().take_while(|(last, _)| after(*last, since));
            newer.into_iter().any(|(_, prefix)| prefix.contains(addr))
        };
        after(self.dropped, since) || self.blocks.changed(block(addr), since) || large()
    }
}

fn block(addr: Addr) -> u128 {
    addr.bits() & mask(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn prefixes_concern_the_addresses_in_them() {
        for (text, within, apart) in [
            ("10.1.2.64/26", ["10.1.2.64", "10.1.2.127"], "10.1.2.128"),
            ("10.1.2.0/24", ["10.1.2.0", "10.1.2.255"], "10.1.3.0"),
            ("10.1.16.0/20", ["10.1.16.0", "10.1.31.255"], "10.1.32.0"),
            ("10.0.0.0/8", ["10.0.0.0", "10.255.255.255"], "11.0.0.0"),
            ("0.0.0.0/0", ["10.0.0.0", "255.255.255.255"], "fd00::1"),
            ("fd00::40/122", ["fd00::40", "fd00::7f"], "fd00::80"),
            ("fd00::/64", ["fd00::", "fd00::ffff:ffff:ffff:ffff"], "fd00:0:0:1::"),
            ("::/0", ["fd00::", "ffff::"], "10.0.0.1"),
        ] {
            let mut prefixes = Prefixes::default();
            prefixes.note(&text.parse().unwrap(), 7);
            for within in within {
                assert!(prefixes.changed(addr(within), 6), "{within} in {text}");
                assert!(!prefixes.changed(addr(within), 7), "{within} in {text}");
            }
            assert!(!prefixes.changed(addr(apart), 6), "{apart} is not in {text}");
        }
    }

    #[test]
    fn a_single_address_stands_for_its_block() {
        let mut prefixes = Prefixes::default();
        prefixes.note(&"10.1.2.3/32".parse().unwrap(), 7);
        assert!(prefixes.changed(addr("10.1.2.3"), 6) && prefixes.changed(addr("10.1.2.9"), 6));
        assert!(!prefixes.changed(addr("10.1.2.70"), 6));
    }

    #[test]
    fn many_large_prefixes_forget_none() {
        let mut prefixes = Prefixes::default();
        for number in 1..=LARGE as u32 + 2 {
            prefixes.note(&format!("{number}.0.0.0/8").parse().unwrap(), number);
        }
        // The first two were dropped: nobody knows any more whom they concerned.
        assert!(prefixes.changed(addr("1.1.1.1"), 0) && prefixes.changed(addr("99.1.1.1"), 1));
        assert!(!prefixes.changed(addr("99.1.1.1"), 2));
        assert!(prefixes.changed(addr("3.1.1.1"), 2) && !prefixes.changed(addr("3.1.1.1"), 3));
    }

    #[test]
    fn few_addresses_share_a_place() {
        let mut addresses = Addresses::default();
        for number in 0..64u32 {
            addresses.note(Addr::from_v4_bytes((0x0a00_0000 + number).to_be_bytes()), 7);
        }
        let others =
            (0..100_000u32).map(|at| Addr::from_v4_bytes((0x0b00_0000 + at).to_be_bytes()));
        let taken = others.filter(|addr| addresses.changed(*addr, 6)).count();
        // 64 of 4,096 places.
        assert!((1000..2200).contains(&taken), "{taken}");
    }
}
