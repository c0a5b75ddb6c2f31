//! The far end of measured traffic.

use crate::bpf::{
    Assembler, Condition, Helper, Link, Map, MapKind, MapMemory, Operation, Program, Register, Size,
};
use crate::generator::GeneratorError;
use Register::*;

use super::histogram::{BUCKETS, STEPS, shortest_of};
use super::{COUNT_BITS, STAMP};

const XDP_DROP: i32 = 1;

// Offsets in the state of the program.
const TAG: i16 = 0;
const RECEIVED: i16 = 8;
const FOREIGN: i16 = 16;
const NEXT: i16 = 24;
const MISSING: i16 = 32;
const BEHIND: i16 = 40;
const DUPLICATE: i16 = 48;
const CORRUPT: i16 = 56;
const LONGEST: i16 = 64;
const SUM: i16 = 72;
const LAST: i16 = 80;
const GAP: i16 = 88;
/// Where the numbers of the last packets stand, to know a packet again.
const RECENT: u32 = 128;
/// How many of them there are.
const WINDOW: u32 = 1024;
/// Where the histogram of latencies stands.
const HISTOGRAM: u32 = RECENT + 8 * WINDOW;
const STATE: u32 = HISTOGRAM + 8 * BUCKETS;

/// What packets are to look like when they arrive.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// Offset of the stamp in the frames that arrive.
    pub stamp_at: u16,
    /// Four bytes each at an offset: the tunnel's headers, or what of the inner
    /// ones is the same in all.
    pub expected: Vec<(u16, [u8; 4])>,
    /// What follows the stamp.
    pub pattern: Vec<u8>,
}

/// What has arrived since the last [`Check::start`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets of this run, damaged ones not among them.
    pub received: u64,
    /// Numbers that were passed over and have not come since.
    pub missing: u64,
    /// Packets that came after one with a higher number.
    pub reordered: u64,
    /// Packets that came a second time.
    pub duplicated: u64,
    /// Packets that differ from what they should be.
    pub corrupt: u64,
    /// Frames that are not of this run.
    pub foreign: u64,
    /// Longest latency in nanoseconds.
    pub longest_ns: u64,
    /// Longest time from a packet's arrival to the next one's, in nanoseconds.
    pub longest_gap_ns: u64,
    /// Sum of all latencies in nanoseconds.
    pub sum_ns: u64,
    /// How many packets took how long: the shortest time of a bucket in
    /// nanoseconds, and its packets. A bucket's longest is at most 1/32 longer.
    pub latencies: Vec<(u64, u64)>,
}

impl Seen {
    /// The latency that a share (0 to 1) of the packets stayed under, in
    /// nanoseconds; `None` when there were none.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let all: u64 = self.latencies.iter().map(|(_, packets)| packets).sum();
        let wanted = ((all as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut below = 0;
        self.latencies.iter().find_map(|(shortest, packets)| {
            below += packets;
            (below >= wanted).then_some(*shortest)
        })
    }
}

/// Looks at every packet that a device receives, and drops it.
#[derive(Debug)]
pub struct Check {
    state: MapMemory,
    _link: Link,
}

impl Check {
    /// Attaches the check to a device of the calling thread's network namespace,
    /// in the driver or in the network stack.
    ///
    /// # Errors
    /// When an offset is too far for the program, or as for any XDP program.
    pub fn attach(
        ifindex: u32,
        native: bool,
        config: &CheckConfig,
    ) -> Result<Self, GeneratorError> {
        let state = Map::new(MapKind::MappableArray, "check", 4, STATE, 1)?;
        let program = Program::load("tieline_check", &check(config, &state)?.finish()?)?;
        let link = Link::attach(&program, ifindex, native)?;
        Ok(Self { state: state.memory()?, _link: link })
    }

    /// Forgets everything and counts the packets of one run from now on.
    pub fn start(&self, tag: u16) {
        for at in (0..STATE).step_by(8) {
            self.set(at, 0);
        }
        self.set(TAG as u32, u64::from(tag));
    }

    /// Packets of this run so far.
    pub fn received(&self) -> u64 {
        self.number(RECEIVED as u32)
    }

    /// All that was seen.
    pub fn seen(&self) -> Seen {
        let number = |at: i16| self.number(at as u32);
        let latencies = (0..BUCKETS)
            .map(|bucket| (shortest_of(bucket), self.number(HISTOGRAM + 8 * bucket)))
            .filter(|(_, packets)| *packets > 0);
        let (behind, duplicated) = (number(BEHIND), number(DUPLICATE));
        Seen {
            received: number(RECEIVED),
            missing: number(MISSING).saturating_sub(behind),
            reordered: behind,
            duplicated,
            corrupt: number(CORRUPT),
            foreign: number(FOREIGN),
            longest_ns: number(LONGEST),
            longest_gap_ns: number(GAP),
            sum_ns: number(SUM),
            latencies: latencies.collect(),
        }
    }

    fn number(&self, at: u32) -> u64 {
        self.state.number(at as usize).map(|number| number.load()).unwrap_or_default()
    }

    fn set(&self, at: u32, value: u64) {
        if let Some(number) = self.state.number(at as usize) {
            number.store(value);
        }
    }
}

fn check(config: &CheckConfig, state: &Map) -> Result<Assembler, GeneratorError> {
    let mut program = Assembler::new();
    let labels: [_; 7] = std::array::from_fn(|_| program.label());
    let [foreign, corrupt, in_order, behind, duplicate, counted, drop] = labels;
    program.load(Size::Word, R6, R1, 0);
    program.load(Size::Word, R7, R1, 4);
    program.load_map_value(R8, state, 0);
    let stamp = usize::from(config.stamp_at);
    let end = stamp + STAMP + config.pattern.len();
    let last = config.expected.iter().map(|(at, _)| usize::from(*at) + 4).max().unwrap_or(0);
    let too_far = || GeneratorError::Short { at: config.stamp_at };
    let needed = i16::try_from(end.max(last)).map_err(|_| too_far())?;
    program.set(R2, R6);
    program.compute(Operation::Add, R2, i32::from(needed));
    program.jump_if(Condition::Greater, R2, R7, foreign);
    // R5: the number.
    program.load(Size::Double, R5, R6, stamp as i16);
    program.set(R2, R5);
    program.compute(Operation::ShiftRight, R2, COUNT_BITS as i32);
    program.load(Size::Double, R3, R8, TAG);
    program.jump_if(Condition::NotEqual, R2, R3, foreign);
    for (at, bytes) in words(config) {
        program.load(Size::Word, R2, R6, at as i16);
        // Loads come without a sign, so the number must as well.
        program.set(R3, i32::from_ne_bytes(bytes));
        program.compute(Operation::ShiftLeft, R3, 32);
        program.compute(Operation::ShiftRight, R3, 32);
        program.jump_if(Condition::NotEqual, R2, R3, corrupt);
    }
    program.compute(Operation::ShiftLeft, R5, 64 - COUNT_BITS as i32);
    program.compute(Operation::ShiftRight, R5, 64 - COUNT_BITS as i32);
    // The order. Numbers count from 1 here, so that 0 means nothing.
    program.set(R9, R5);
    program.compute(Operation::Add, R9, 1);
    program.load(Size::Double, R3, R8, NEXT);
    program.set(R2, R5);
    program.compute(Operation::And, R2, WINDOW as i32 - 1);
    program.compute(Operation::ShiftLeft, R2, 3);
    program.set(R4, R8);
    program.compute(Operation::Add, R4, R2);
    program.load(Size::Double, R2, R4, RECENT as i16);
    program.jump_if(Condition::Equal, R2, R9, duplicate);
    program.store(Size::Double, R4, RECENT as i16, R9);
    program.jump_if(Condition::Greater, R3, R5, behind);
    program.jump_if(Condition::Equal, R3, R5, in_order);
    // Some were passed over.
    program.set(R2, R5);
    program.compute(Operation::Subtract, R2, R3);
    program.load(Size::Double, R4, R8, MISSING);
    program.compute(Operation::Add, R4, R2);
    program.store(Size::Double, R8, MISSING, R4);
    program.place(in_order);
    program.store(Size::Double, R8, NEXT, R9);
    program.jump(counted);
    program.place(behind);
    increment(&mut program, BEHIND);
    program.place(counted);
    increment(&mut program, RECEIVED);
    latency(&mut program, stamp);
    program.place(drop);
    program.set(R0, XDP_DROP);
    program.exit();
    for (label, counter) in [(foreign, FOREIGN), (corrupt, CORRUPT), (duplicate, DUPLICATE)] {
        program.place(label);
        increment(&mut program, counter);
        program.jump(drop);
    }
    Ok(program)
}

/// What has to stand where, four bytes at a time; the rest of the pattern's
/// length is not compared.
fn words(config: &CheckConfig) -> impl Iterator<Item = (usize, [u8; 4])> {
    let headers = config.expected.iter().map(|(at, bytes)| (usize::from(*at), *bytes));
    let pattern_at = usize::from(config.stamp_at) + STAMP;
    let pattern = config.pattern.chunks_exact(4).enumerate();
    headers.chain(pattern.map(move |(number, bytes)| {
        let bytes = bytes.try_into().unwrap_or_default();
        (pattern_at + 4 * number, bytes)
    }))
}

fn increment(program: &mut Assembler, counter: i16) {
    program.load(Size::Double, R2, R8, counter);
    program.compute(Operation::Add, R2, 1);
    program.store(Size::Double, R8, counter, R2);
}

/// Adds the packet's latency to the figures.
fn latency(program: &mut Assembler, stamp: usize) {
    let labels: [_; 4] = std::array::from_fn(|_| program.label());
    let [positive, not_longest, small, no_gap] = labels;
    program.load(Size::Double, R9, R6, stamp as i16 + 8);
    program.call(Helper::MonotonicTime);
    // Since the last packet, if there was one.
    program.load(Size::Double, R2, R8, LAST);
    program.store(Size::Double, R8, LAST, R0);
    program.jump_if(Condition::Equal, R2, 0, no_gap);
    program.set(R3, R0);
    program.compute(Operation::Subtract, R3, R2);
    program.load(Size::Double, R2, R8, GAP);
    program.jump_if(Condition::GreaterOrEqual, R2, R3, no_gap);
    program.store(Size::Double, R8, GAP, R3);
    program.place(no_gap);
    program.jump_if(Condition::Greater, R0, R9, positive);
    program.set(R0, R9);
    program.place(positive);
    program.compute(Operation::Subtract, R0, R9);
    program.load(Size::Double, R2, R8, SUM);
    program.compute(Operation::Add, R2, R0);
    program.store(Size::Double, R8, SUM, R2);
    program.load(Size::Double, R2, R8, LONGEST);
    program.jump_if(Condition::GreaterOrEqual, R2, R0, not_longest);
    program.store(Size::Double, R8, LONGEST, R0);
    program.place(not_longest);
    // R3: the number of the highest bit. R0 becomes the bucket.
    program.set(R3, 0);
    program.jump_if(Condition::Less, R0, 2 * STEPS as i32, small);
    program.set(R4, R0);
    for bits in [32, 16, 8, 4, 2, 1] {
        let low = program.label();
        program.set(R2, R4);
        program.compute(Operation::ShiftRight, R2, bits);
        program.jump_if(Condition::Equal, R2, 0, low);
        program.set(R4, R2);
        program.compute(Operation::Add, R3, bits);
        program.place(low);
    }
    program.compute(Operation::Subtract, R3, STEPS.trailing_zeros() as i32);
    program.compute(Operation::ShiftRight, R0, R3);
    program.compute(Operation::ShiftLeft, R3, STEPS.trailing_zeros() as i32);
    program.compute(Operation::Add, R0, R3);
    program.place(small);
    let inside = program.label();
    program.jump_if(Condition::Less, R0, BUCKETS as i32, inside);
    program.set(R0, BUCKETS as i32 - 1);
    program.place(inside);
    program.compute(Operation::ShiftLeft, R0, 3);
    program.compute(Operation::Add, R0, R8);
    program.load(Size::Double, R2, R0, HISTOGRAM as i16);
    program.compute(Operation::Add, R2, 1);
    program.store(Size::Double, R0, HISTOGRAM as i16, R2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_packets() {
        let seen = Seen { latencies: vec![(10, 50), (20, 40), (300, 10)], ..Seen::default() };
        let quantiles = [0.0, 0.5, 0.51, 0.9, 0.99, 1.0].map(|share| seen.quantile_ns(share));
        assert_eq!(quantiles, [10, 10, 20, 20, 300, 300].map(Some));
        assert_eq!(Seen::default().quantile_ns(0.5), None);
    }
}
