//! One line of the flow table.
//!
//! An entry is written under a sequence number: odd while a writer is at it.
//! Readers copy the words and take them only if the number was even and the
//! same before and after. Whoever looks for a flow waits a moment for a writer.
//! A line that stays odd may hold the flow, and a verdict that denies it: the
//! packet is neither judged anew nor remembered, but dropped (`flow_busy`).
//!
//! A line is vacant until its first flow, and again once ageing has taken a
//! flow away ([`super::sweep`]). The sequence number goes on through all that.

use super::{FlowKey, Tick};
use crate::addr::Addr;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::tables::{RuleId, VtepId};
use crate::wire::protocol;

/// Times that a reader looks again at a line that is being written.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 100 };

/// What is remembered of a flow besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowState {
    /// Whether its packets may pass.
    pub allow: bool,
    /// Whether the low end began it.
    pub from_low: bool,
    /// Whether the low end is the one on this node.
    pub low_is_local: bool,
    /// Whether the other end has answered.
    pub replied: bool,
    /// TCP: whether the end that began has gone on after the answer.
    pub established: bool,
    /// TCP: the end that began has sent FIN.
    pub fin_initiator: bool,
    /// TCP: the other end has sent FIN.
    pub fin_responder: bool,
    /// TCP: either end has sent RST.
    pub reset: bool,
    /// The VTEP of the remote end.
    pub vtep: VtepId,
    /// What decided.
    pub rule: RuleId,
    /// Low 32 bits of the generation of the tables that it was judged by.
    pub generation: u32,
}

const ALLOW: u64 = 1;
const FROM_LOW: u64 = 1 << 1;
const LOW_IS_LOCAL: u64 = 1 << 2;
pub(super) const REPLIED: u64 = 1 << 3;
pub(super) const FIN_INITIATOR: u64 = 1 << 4;
pub(super) const FIN_RESPONDER: u64 = 1 << 5;
pub(super) const RESET: u64 = 1 << 6;
pub(super) const FRAGMENT: u64 = 1 << 7;
pub(super) const ESTABLISHED: u64 = 1 << 8;
/// The line holds a flow, be it live or over.
const USED: u64 = 1 << 9;

/// Whether the bits say that the connection is over.
pub(super) const fn closing(bits: u64) -> bool {
    const BOTH: u64 = FIN_INITIATOR | FIN_RESPONDER;
    bits & RESET != 0 || bits & BOTH == BOTH
}

impl FlowState {
    /// Whether the connection is over.
    pub const fn closing(&self) -> bool {
        self.reset || self.fin_initiator && self.fin_responder
    }

    fn bits(&self, fragment: bool) -> u64 {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        USED | u64::from(self.vtep.0) << 32
            | flag(self.allow, ALLOW)
            | flag(self.from_low, FROM_LOW)
            | flag(self.low_is_local, LOW_IS_LOCAL)
            | flag(self.replied, REPLIED)
            | flag(self.established, ESTABLISHED)
            | flag(self.fin_initiator, FIN_INITIATOR)
            | flag(self.fin_responder, FIN_RESPONDER)
            | flag(self.reset, RESET)
            | flag(fragment, FRAGMENT)
    }

    #[inline(always)]
    fn from_bits(bits: u64, rule: RuleId, generation: u32) -> Self {
        Self {
            allow: bits & ALLOW != 0,
            from_low: bits & FROM_LOW != 0,
            low_is_local: bits & LOW_IS_LOCAL != 0,
            replied: bits & REPLIED != 0,
            established: bits & ESTABLISHED != 0,
            fin_initiator: bits & FIN_INITIATOR != 0,
            fin_responder: bits & FIN_RESPONDER != 0,
            reset: bits & RESET != 0,
            vtep: VtepId((bits >> 32) as u32),
            rule,
            generation,
        }
    }
}

/// One flow: a cache line of atomics.
#[repr(align(64))]
pub(super) struct Line {
    /// Sequence number: odd while being written. Upper half: rule.
    sequence: AtomicU64,
    /// Low end, high end: upper half, lower half of each.
    ends: [AtomicU64; 4],
    tuple: AtomicU64,
    /// Upper half: VTEP; below it the flags.
    pub(super) state: AtomicU64,
    /// Upper half: generation; lower half: tick when last seen.
    pub(super) seen: AtomicU64,
}

impl Line {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            sequence: zero(),
            ends: [zero(), zero(), zero(), zero()],
            tuple: zero(),
            state: zero(),
            seen: zero(),
        }
    }

    /// The line's words, if nobody was writing them.
    #[inline(always)]
    pub(super) fn read(&self) -> Option<Words> {
        let sequence = self.sequence.load(Ordering::Acquire);
        if sequence & 1 == 1 {
            return None;
        }
        let word = |at: &AtomicU64| at.load(Ordering::Relaxed);
        let words = Words {
            sequence,
            ends: [
                word(&self.ends[0]),
                word(&self.ends[1]),
                word(&self.ends[2]),
                word(&self.ends[3]),
            ],
            tuple: word(&self.tuple),
            state: word(&self.state),
            seen: word(&self.seen),
        };
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some(words)
    }

    /// The same, but waits a moment for a writer, who is done within
    /// nanoseconds unless the kernel has taken its CPU away just then.
    #[inline(always)]
    pub(super) fn read_patiently(&self) -> Option<Words> {
        // One place in the code that reads, so that the words stay in registers.
        let mut attempts = 0;
        loop {
            let words = self.read();
            if words.is_some() || attempts == PATIENCE {
                return words;
            }
            attempts += 1;
            std::hint::spin_loop();
        }
    }

    /// Whether the line is not vacant, and nobody is about to change that. Waits
    /// a moment for a writer.
    pub(super) fn is_surely_used(&self) -> bool {
        // A writer stores the state before it makes the number even.
        (0..=PATIENCE).any(|_| self.sequence.load(Ordering::Acquire) & 1 == 0)
            && self.state.load(Ordering::Relaxed) & USED != 0
    }

    /// Notes when the flow was seen last, unless another worker has done so.
    pub(super) fn see(&self, seen: u64, now: Tick) {
        let new = seen & !0xffff_ffff | u64::from(now.0);
        let order = Ordering::Relaxed;
        let _lost_to_another_worker = self.seen.compare_exchange(seen, new, order, order);
    }

    /// Becomes the line's only writer, if it still is as it was read.
    pub(super) fn lock(&self, words: &Words) -> bool {
        let odd = words.sequence | 1;
        let won = self
            .sequence
            .compare_exchange(words.sequence, odd, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        // The words below must not be seen to change before the number is odd.
        fence(Ordering::Release);
        won
    }

    /// Writes the words and lets readers at them again.
    pub(super) fn unlock(&self, words: &Words) {
        let store = |at: &AtomicU64, value| at.store(value, Ordering::Relaxed);
        for (at, end) in self.ends.iter().zip(words.ends) {
            store(at, end);
        }
        store(&self.tuple, words.tuple);
        store(&self.state, words.state);
        store(&self.seen, words.seen);
        self.release(words);
    }

    /// Lets readers at a locked line again, with the words that it has; `words`
    /// says its rule.
    pub(super) fn release(&self, words: &Words) {
        let number = (words.sequence as u32 & !1).wrapping_add(2);
        let sequence = words.sequence & !0xffff_ffff | u64::from(number);
        self.sequence.store(sequence, Ordering::Release);
    }
}

/// A copy of a line's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) sequence: u64,
    ends: [u64; 4],
    pub(super) tuple: u64,
    pub(super) state: u64,
    pub(super) seen: u64,
}

impl Words {
    pub(super) fn new(key: &FlowKey, state: &FlowState, now: Tick, sequence: u64) -> Self {
        let (low, high) = (key.low.bits(), key.high.bits());
        Self {
            sequence: u64::from(state.rule.0) << 32 | sequence & 0xffff_ffff,
            ends: [(low >> 64) as u64, low as u64, (high >> 64) as u64, high as u64],
            tuple: key.tuple,
            state: state.bits(key.fragment),
            seen: u64::from(state.generation) << 32 | u64::from(now.0),
        }
    }

    /// The words of a line without a flow, which held these before.
    pub(super) fn vacated(&self) -> Self {
        let sequence = self.sequence & 0xffff_ffff;
        Self { sequence, ends: [0; 4], tuple: 0, state: 0, seen: 0 }
    }

    #[inline]
    pub(super) fn is(&self, key: &FlowKey) -> bool {
        let wanted = if key.fragment { USED | FRAGMENT } else { USED };
        self.differs(key) | (self.state & (USED | FRAGMENT) ^ wanted) == 0
    }

    /// Zero if ends and tuple are those of this name.
    #[inline(always)]
    fn differs(&self, key: &FlowKey) -> u64 {
        let (low, high) = (key.low.bits(), key.high.bits());
        let [a, b, c, d] = self.ends;
        // Word by word and without branches: compared as arrays, the words
        // would be stored and loaded again at another width.
        (a ^ (low >> 64) as u64)
            | (b ^ low as u64)
            | (c ^ (high >> 64) as u64)
            | (d ^ high as u64)
            | (self.tuple ^ key.tuple)
    }

    /// Whether this is a flow of that name that is allowed, and `from_low` the
    /// direction of those of its packets that go out from this node or, if not
    /// `outward`, come to it. The name must not be that of fragments.
    #[inline(always)]
    pub(super) fn lets_pass(&self, key: &FlowKey, from_low: bool, outward: bool) -> bool {
        const MASK: u64 = USED | FRAGMENT | ALLOW | LOW_IS_LOCAL;
        let place = if from_low == outward { LOW_IS_LOCAL } else { 0 };
        let state = self.state & MASK ^ (USED | ALLOW | place);
        self.differs(key) | state == 0
    }

    /// Whether a packet in this direction, of TCP without SYN, FIN and RST, tells
    /// something new of the connection.
    #[inline(always)]
    pub(super) fn learns(&self, from_low: bool) -> bool {
        let from_initiator = (self.state & FROM_LOW != 0) == from_low;
        if from_initiator {
            self.state & (REPLIED | ESTABLISHED) == REPLIED && self.protocol() == protocol::TCP
        } else {
            self.state & REPLIED == 0
        }
    }

    pub(super) fn vtep(&self) -> VtepId {
        VtepId((self.state >> 32) as u32)
    }

    pub(super) fn protocol(&self) -> u8 {
        (self.tuple >> 24) as u8
    }

    pub(super) fn vacant(&self) -> bool {
        self.state & USED == 0
    }

    pub(super) fn last_seen(&self) -> Tick {
        Tick(self.seen as u32)
    }

    #[inline(always)]
    pub(super) fn flow(&self) -> FlowState {
        let rule = RuleId((self.sequence >> 32) as u32);
        FlowState::from_bits(self.state, rule, (self.seen >> 32) as u32)
    }

    pub(super) fn key(&self) -> FlowKey {
        let addr = |high: u64, low: u64| Addr::from_bits(u128::from(high) << 64 | u128::from(low));
        FlowKey {
            low: addr(self.ends[0], self.ends[1]),
            high: addr(self.ends[2], self.ends[3]),
            tuple: self.tuple,
            fragment: self.state & FRAGMENT != 0,
        }
    }
}
