//! One byte of each line's hash, close together: where a flow most likely stands,
//! so that a lookup asks the memory for one line, and reads no other.
//!
//! Tags are a guess. They are written after the line, without a protocol of their
//! own; who follows one looks whether the flow is there, and if not, at all lines.

use crate::hint::Slab;
use crate::sync::{AtomicU64, Ordering};

/// Tags of a word.
const EACH: usize = size_of::<u64>();
const ONES: u64 = u64::MAX / 0xff;

/// The tags of all lines, eight to a word, the lowest first.
pub(super) struct Tags {
    words: Slab<AtomicU64>,
}

/// Never that of a vacant line, which is 0. Other bits of the hash choose the line.
const fn tag(hash: u64) -> u8 {
    let tag = (hash >> 56) as u8;
    if tag == 0 { 1 } else { tag }
}

impl Tags {
    /// Tags of so many vacant lines.
    pub(super) fn new(lines: usize) -> Self {
        // Whoever looks for sixteen reads up to three words.
        Self { words: Slab::new(lines / EACH + 3, || AtomicU64::new(0)) }
    }

    /// The memory.
    pub(super) fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// Asks the CPU to load what [`seek`](Self::seek) reads.
    #[inline(always)]
    pub(super) fn prefetch(&self, home: usize) {
        if let Some(word) = self.words.get(home / EACH) {
            crate::hint::prefetch(word);
        }
    }

    /// The first line with this hash's tag among the sixteen from `home` on.
    #[inline(always)]
    pub(super) fn seek(&self, home: usize, hash: u64) -> Option<usize> {
        // Beyond the first eight stand few, unless the table was full once.
        self.seek_eight(home, hash).or_else(|| self.seek_eight(home + EACH, hash))
    }

    #[inline(always)]
    fn seek_eight(&self, at: usize, hash: u64) -> Option<usize> {
        let [low, high] = self.words.get(at / EACH..at / EACH + 2)? else { return None };
        let (low, high) = (low.load(Ordering::Relaxed), high.load(Ordering::Relaxed));
        let bits = at % EACH * 8;
        // In two steps: a shift by a whole word is none.
        let tags = low >> bits | high << 1 << (63 - bits);
        let differs = tags ^ (u64::from(tag(hash)) * ONES);
        // The lowest byte that is zero; bytes above it may seem to be.
        let zeros = differs.wrapping_sub(ONES) & !differs & ONES << 7;
        (zeros != 0).then(|| at + zeros.trailing_zeros() as usize / 8)
    }

    /// Notes the hash of the flow in a line, which the caller has locked; `None`
    /// when it has become vacant.
    pub(super) fn note(&self, line: usize, hash: Option<u64>) {
        let Some(word) = self.words.get(line / EACH) else { return };
        let bits = line % EACH * 8;
        let old = (word.load(Ordering::Relaxed) >> bits) as u8;
        let new = hash.map_or(0, tag);
        // Others write to the same word, but not this byte of it.
        word.fetch_xor(u64::from(old ^ new) << bits, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_tag() {
        let hash = |tag: u64| tag << 56;
        for home in 0..40 {
            for away in 0..2 * EACH {
                let tags = Tags::new(56);
                (home..home + away).for_each(|line| tags.note(line, Some(hash(1))));
                tags.note(home + away, Some(hash(2)));
                assert_eq!(tags.seek(home, hash(2)), Some(home + away));
                assert_eq!(tags.seek(home, hash(0)), Some(home).filter(|_| away > 0), "0 is 1");
                assert_eq!(tags.seek(home, hash(3)), None);
                tags.note(home + away, Some(hash(3)));
                assert_eq!(tags.seek(home, hash(3)), Some(home + away));
                tags.note(home + away, None);
                assert_eq!(tags.seek(home, hash(3)), None);
            }
        }
    }

    #[test]
    fn almost_all_flows_are_seen_at_a_glance() {
        use crate::flow::tests::{plain::tuple, state};
        use crate::flow::{FlowTable, FlowTuple, SLICES, Tick, Timeouts, Traffic};

        let table = FlowTable::new(1 << 16, Timeouts::default());
        let flow = |number: u32| tuple(&table, number, 17);
        // Twice: lines of flows that are over are taken over by others.
        for round in 1..3u32 {
            let now = Tick(round * 100_000_000);
            let _swept: usize = (0..2 * SLICES).map(|_| table.sweep(now)).sum();
            let flows = (round << 16)..(round << 16) + (1 << 15);
            for number in flows.clone() {
                table.insert(&flow(number), &state(1), Traffic::default(), now).unwrap();
            }
            // A few have given way to others.
            let known = flows.map(flow).filter(|flow| table.find(flow, now).is_ok());
            let known: Vec<FlowTuple> = known.collect();
            assert!(known.len() > 32_600, "{}", known.len());
            let glance = |flow: &&FlowTuple| table.glance(table.prefetch(flow), flow, true, now);
            let seen = known.iter().filter(|flow| glance(flow).is_some()).count();
            // Others with the same tag may stand before them.
            assert!(seen >= known.len() * 995 / 1000, "{seen} of {}", known.len());
        }
    }
}
