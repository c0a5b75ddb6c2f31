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
//!
//! What packets tell of their flow stands beside that protocol: progress of the
//! connection and time are exchanged word by word, and what is [counted](super::counts)
//! has words of its own.

use super::counts::Recent;
use super::{FlowKey, Tick};
use crate::addr::Addr;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::tables::{Concern, RuleId, VtepId};

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
    /// Whether the end that began has gone on after the answer.
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

const ALLOW: u32 = 1;
const FROM_LOW: u32 = 1 << 1;
const LOW_IS_LOCAL: u32 = 1 << 2;
pub(super) const REPLIED: u32 = 1 << 3;
pub(super) const FIN_INITIATOR: u32 = 1 << 4;
pub(super) const FIN_RESPONDER: u32 = 1 << 5;
pub(super) const RESET: u32 = 1 << 6;
pub(super) const FRAGMENT: u32 = 1 << 7;
pub(super) const ESTABLISHED: u32 = 1 << 8;
/// The line holds a flow, be it live or over.
const USED: u32 = 1 << 9;
/// What packets tell of the connection.
const PROGRESS: u32 = REPLIED | FIN_INITIATOR | FIN_RESPONDER | RESET | ESTABLISHED;
/// Bits below the VTEP's number.
const FLAGS: u32 = VtepId::NONE.0.leading_zeros();

/// Whether the bits say that the connection is over.
pub(super) const fn closing(bits: u32) -> bool {
    const BOTH: u32 = FIN_INITIATOR | FIN_RESPONDER;
    bits & RESET != 0 || bits & BOTH == BOTH
}

/// The VTEP in a line's state.
pub(super) const fn vtep(state: u32) -> VtepId {
    VtepId(state >> FLAGS)
}

/// Which end of the flow of that name is on this node by a line's state, and
/// whether it began.
pub(super) fn concern(state: u32, key: &FlowKey) -> Concern {
    let low_is_local = state & LOW_IS_LOCAL != 0;
    let (local, remote) = if low_is_local { (key.low, key.high) } else { (key.high, key.low) };
    let from_low = state & FROM_LOW != 0;
    let egress = (state & FRAGMENT == 0).then_some(from_low == low_is_local);
    Concern { local, remote, egress }
}

impl FlowState {
    /// Whether the connection is over.
    pub const fn closing(&self) -> bool {
        self.reset || self.fin_initiator && self.fin_responder
    }

    fn bits(&self, fragment: bool) -> u32 {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        USED | self.vtep.min(VtepId::NONE).0 << FLAGS
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
    fn from_bits(bits: u32, rule: RuleId, generation: u32) -> Self {
        Self {
            allow: bits & ALLOW != 0,
            from_low: bits & FROM_LOW != 0,
            low_is_local: bits & LOW_IS_LOCAL != 0,
            replied: bits & REPLIED != 0,
            established: bits & ESTABLISHED != 0,
            fin_initiator: bits & FIN_INITIATOR != 0,
            fin_responder: bits & FIN_RESPONDER != 0,
            reset: bits & RESET != 0,
            vtep: vtep(bits),
            rule,
            generation,
        }
    }
}

/// One flow: a cache line of atomics.
#[repr(align(64))]
pub(super) struct Line {
    /// Sequence number: odd while being written.
    sequence: AtomicU32,
    /// VTEP; below it the flags.
    pub(super) state: AtomicU32,
    /// Upper half: generation; lower half: tick when last seen.
    pub(super) seen: AtomicU64,
    /// What has come lately from the high and from the low end.
    pub(super) recent: [Recent; 2],
    /// Low end, high end: upper half, lower half of each.
    ends: [AtomicU64; 4],
    tuple: AtomicU64,
}

impl Line {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            sequence: AtomicU32::new(0),
            state: AtomicU32::new(0),
            seen: zero(),
            recent: [Recent::new(), Recent::new()],
            ends: [zero(), zero(), zero(), zero()],
            tuple: zero(),
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
            state: self.state.load(Ordering::Relaxed),
            seen: word(&self.seen),
        };
        self.is_still(sequence).then_some(words)
    }

    /// Whether nobody has written the line since it had this sequence number.
    #[inline(always)]
    pub(super) fn is_still(&self, sequence: u32) -> bool {
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == sequence
    }

    /// The same as [`read`](Self::read), but waits a moment for a writer, who is done within
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

    /// Adds what a packet tells of the connection to the words that were read,
    /// unless the line has got another flow meanwhile.
    pub(super) fn learn(&self, words: &Words, more: u32) {
        let mut old = words.state;
        while old | more != old {
            let order = Ordering::Relaxed;
            match self.state.compare_exchange(old, old | more, order, order) {
                // Another worker has learnt something, too.
                Err(now) if (now ^ old) & !PROGRESS == 0 => old = now,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Notes that the verdict still holds by the tables of another generation.
    /// `sequence` and `seen` are of one reading.
    pub(super) fn confirm(&self, sequence: u32, seen: u64, generation: u32) {
        let new = seen & 0xffff_ffff | u64::from(generation) << 32;
        let order = Ordering::Relaxed;
        if self.is_still(sequence)
            && self.seen.compare_exchange(seen, new, order, order).is_ok()
            && !self.is_still(sequence)
        {
            // The line has got another flow just then, which was judged by itself.
            let _changed_again = self.seen.compare_exchange(new, seen, order, order);
        }
    }

    /// Notes when the flow was seen last, unless another worker has done so.
    pub(super) fn see(&self, seen: u64, now: Tick) {
        let new = seen & !0xffff_ffff | u64::from(now.0);
        let order = Ordering::Relaxed;
        let _lost_to_another_worker = self.seen.compare_exchange(seen, new, order, order);
    }

    /// Becomes the line's only writer, if it still has the even sequence number
    /// with which it was read.
    pub(super) fn lock(&self, sequence: u32) -> bool {
        let won = self
            .sequence
            .compare_exchange(sequence, sequence | 1, Ordering::Acquire, Ordering::Relaxed)
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
        self.state.store(words.state, Ordering::Relaxed);
        if cfg!(loom) {
            // The models know an order among exchanges only.
            self.seen.swap(words.seen, Ordering::Relaxed);
        } else {
            store(&self.seen, words.seen);
        }
        self.release(words.sequence);
    }

    /// Gives the flow of a locked line another verdict. What its packets tell
    /// of the connection meanwhile is kept.
    pub(super) fn judge(&self, state: &FlowState, now: Tick) {
        let mut old = self.state.load(Ordering::Relaxed);
        loop {
            let new = state.bits(old & FRAGMENT != 0) | old & PROGRESS;
            let order = Ordering::Relaxed;
            match self.state.compare_exchange(old, new, order, order) {
                Ok(_) => break,
                Err(changed) => old = changed,
            }
        }
        self.seen.store(seen(state.generation, now), Ordering::Relaxed);
    }

    /// Lets readers at a locked line again that had this sequence number.
    pub(super) fn release(&self, sequence: u32) {
        self.sequence.store((sequence & !1).wrapping_add(2), Ordering::Release);
    }
}

const fn seen(generation: u32, now: Tick) -> u64 {
    (generation as u64) << 32 | now.0 as u64
}

/// A copy of a line's words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) sequence: u32,
    ends: [u64; 4],
    pub(super) tuple: u64,
    pub(super) state: u32,
    pub(super) seen: u64,
}

impl Words {
    pub(super) fn new(key: &FlowKey, state: &FlowState, now: Tick, sequence: u32) -> Self {
        let (low, high) = (key.low.bits(), key.high.bits());
        Self {
            sequence,
            ends: [(low >> 64) as u64, low as u64, (high >> 64) as u64, high as u64],
            tuple: key.tuple,
            state: state.bits(key.fragment),
            seen: seen(state.generation, now),
        }
    }

    /// The words of a line without a flow, which held these before.
    pub(super) fn vacated(&self) -> Self {
        let sequence = self.sequence;
        Self { sequence, ends: [0; 4], tuple: 0, state: 0, seen: 0 }
    }

    #[inline]
    pub(super) fn is(&self, key: &FlowKey) -> bool {
        let wanted = if key.fragment { USED | FRAGMENT } else { USED };
        self.differs(key) | u64::from(self.state & (USED | FRAGMENT) ^ wanted) == 0
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
        const MASK: u32 = USED | FRAGMENT | ALLOW | LOW_IS_LOCAL;
        let place = if from_low == outward { LOW_IS_LOCAL } else { 0 };
        let state = self.state & MASK ^ (USED | ALLOW | place);
        self.differs(key) | u64::from(state) == 0
    }

    /// Whether a packet in this direction, of TCP without SYN, FIN and RST, tells
    /// something new of the connection.
    #[inline(always)]
    pub(super) fn learns(&self, from_low: bool) -> bool {
        let from_initiator = (self.state & FROM_LOW != 0) == from_low;
        // Nothing but an answer, nothing but what follows it.
        self.state & (REPLIED | ESTABLISHED) == if from_initiator { REPLIED } else { 0 }
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
    pub(super) fn flow(&self, rule: RuleId) -> FlowState {
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
