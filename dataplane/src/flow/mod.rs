//! The flows of all workers: which connections are known, and what was decided
//! about them.
//!
//! One table for the node, because the two directions of a flow reach
//! different workers. A flow takes one cache line of plain atomics, without
//! pointers; a lookup reads that line and never locks. What packets seldom need,
//! which rule has decided and the totals of what was counted, stands beside it.
//!
//! A flow may stand in any of the [`WINDOW`] lines that follow from its hash. A
//! byte per line tells in which one it most likely does ([`tags`]): that one alone
//! is fetched ahead. When all of them hold live flows, the one that was idle longest
//! among those that are not established gives way; if all are, the new flow is
//! refused and its packet dropped (`flow_table_full`). A flow is established by
//! an answer, one of TCP by a packet other than a SYN after the answer. So a
//! flood of random packets, or of SYNs that are answered, displaces others of
//! its kind, but no established flow.
//!
//! Ageing needs no timer: a line whose flow has been idle for longer than its
//! kind allows counts as free. A lookup ends at the first vacant line, so those
//! lines are made vacant again now and then, off the packets' path ([`sweep`]).

use crate::hint::Slab;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::tables::RuleId;
use crate::wire::{protocol, tcp};

mod counts;
mod found;
mod hash;
mod key;
mod line;
mod sweep;
mod tags;
mod time;

use counts::Totals;
pub use counts::Traffic;
pub use found::{Found, Glimpse, NotFound, Refused, Seen};
pub use hash::FlowHasher;
pub use key::{FlowKey, FlowTuple};
pub use line::FlowState;
use line::{
    ESTABLISHED, FIN_INITIATOR, FIN_RESPONDER, FRAGMENT, Line, REPLIED, RESET, Words, closing,
};
pub use sweep::SLICES;
use tags::Tags;
use time::FRESH;
pub use time::{TICK_MS, Tick, Timeouts};

/// Lines that one flow may stand in.
pub const WINDOW: usize = if cfg!(loom) { 3 } else { 16 };

/// The table.
pub struct FlowTable {
    lines: Slab<Line>,
    tags: Tags,
    /// The rule that has decided about the flow of each line.
    rules: Slab<AtomicU32>,
    /// What has come from the high and from the low end of each line's flow; none
    /// if flows are not counted.
    totals: Slab<[Totals; 2]>,
    mask: usize,
    hasher: FlowHasher,
    timeouts: Timeouts,
    /// Parts that have been swept so far.
    sweeps: AtomicU64,
}

impl FlowTable {
    /// A table of `capacity` lines (rounded up to a power of two), 69 bytes
    /// each, whose hash is keyed at random. With half as many flows, one in
    /// several thousand finds no place.
    pub fn new(capacity: usize, timeouts: Timeouts) -> Self {
        Self::with_hasher(capacity, timeouts, FlowHasher::random())
    }

    /// A table with a hash of known key: for tests and goldens, which need the
    /// same outer source port in every run.
    pub fn with_hasher(capacity: usize, timeouts: Timeouts, hasher: FlowHasher) -> Self {
        let capacity = capacity.max(1).next_power_of_two();
        // The windows of the last lines reach beyond the power of two.
        let lines = Slab::new(capacity + WINDOW - 1, Line::new);
        let (tags, totals) = (Tags::new(lines.len()), Slab::default());
        let rules = Slab::new(lines.len(), || AtomicU32::new(0));
        let (mask, sweeps) = (capacity - 1, AtomicU64::new(0));
        Self { lines, tags, rules, totals, mask, hasher, timeouts, sweeps }
    }

    /// The same table, which also counts what goes through each flow: 32 bytes
    /// more a line.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.totals = Slab::new(self.lines.len(), || [Totals::new(), Totals::new()]);
        self
    }

    /// The keyed hash of this table.
    pub fn hasher(&self) -> &FlowHasher {
        &self.hasher
    }

    /// Bytes that the table occupies.
    pub fn bytes(&self) -> usize {
        let beside =
            size_of_val(self.tags.words()) + size_of_val(&*self.rules) + size_of_val(&*self.totals);
        size_of_val(&*self.lines) + beside
    }

    /// How many of these are on huge pages, as far as the kernel tells.
    pub fn huge_bytes(&self) -> usize {
        use std::ops::Range;
        fn addresses<T>(values: &[T]) -> Range<usize> {
            let Range { start, end } = values.as_ptr_range();
            start.addr()..end.addr()
        }
        let (lines, tags) = (addresses(&self.lines), addresses(self.tags.words()));
        let parts = [lines, tags, addresses(&self.rules), addresses(&self.totals)];
        crate::hint::huge_bytes(&parts)
    }

    /// Number of lines; the table works best with half as many flows.
    pub fn capacity(&self) -> usize {
        self.mask + 1
    }

    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    /// Asks the CPU to load what tells where a flow stands.
    #[inline(always)]
    pub fn prepare(&self, tuple: &FlowTuple) {
        self.tags.prefetch(self.home(tuple.hash));
    }

    /// Asks the CPU to load the line where a flow most likely stands; its number.
    /// If it is a new one, those where it will.
    #[inline(always)]
    pub fn prefetch(&self, tuple: &FlowTuple) -> usize {
        let home = self.home(tuple.hash);
        let Some(line) = self.tags.seek(home, tuple.hash) else {
            self.lines[home..home + 2].iter().for_each(crate::hint::prefetch);
            return home;
        };
        if let Some(line) = self.lines.get(line) {
            crate::hint::prefetch(line);
        }
        line
    }

    /// Asks the CPU to load what [`insert`](Self::insert) will write of a flow besides
    /// its line.
    #[inline]
    pub fn expect(&self, tuple: &FlowTuple) {
        let home = self.home(tuple.hash);
        crate::hint::prefetch(&self.rules[home]);
        if let Some(totals) = self.totals.get(home) {
            crate::hint::prefetch(totals);
        }
    }

    /// Counts a packet of so many bytes, at most 65,575, of a flow that was found.
    #[inline(always)]
    pub fn count(&self, found: &Glimpse, from_low: bool, bytes: u32) {
        if let Some(totals) = self.totals.get(found.line) {
            let way = usize::from(from_low);
            self.lines[found.line].recent[way].count(bytes, &totals[way]);
        }
    }

    /// The flow with this name, if it stands in the line that [`prefetch`](Self::prefetch)
    /// said, a packet of it may pass in this direction by what was decided, and
    /// tells nothing new of it. The packet must be whole, neither ICMP nor TCP with
    /// SYN, FIN or RST. `None` says nothing: [`find`](Self::find) does.
    #[inline(always)]
    pub fn glance(
        &self,
        line: usize,
        tuple: &FlowTuple,
        outward: bool,
        now: Tick,
    ) -> Option<Glimpse> {
        let at = self.lines.get(line)?;
        let words = at.read()?;
        let idle = now.since(words.last_seen());
        let good = words.lets_pass(&tuple.key, tuple.from_low, outward)
            && !words.learns(tuple.from_low)
            && (idle <= FRESH || self.renew(at, (words.state, words.seen), words.protocol(), now));
        good.then(|| Glimpse::new(line, &words))
    }

    /// Notes that a flow is seen again, unless it has been idle for too long. By
    /// value: what is lent out has to be in memory.
    #[inline(never)]
    fn renew(&self, line: &Line, (state, seen): (u32, u64), protocol: u8, now: Tick) -> bool {
        let live = !self.timed_out(state, protocol, now.since(Tick(seen as u32)));
        if live {
            line.see(seen, now);
        }
        live
    }

    /// The flow with this name, unless it has been idle for too long.
    #[inline(always)]
    pub fn find(&self, tuple: &FlowTuple, now: Tick) -> Result<Found, NotFound> {
        let home = self.home(tuple.hash);
        let mut missing = NotFound::Unknown;
        for (at, line) in self.lines[home..home + WINDOW].iter().enumerate() {
            let Some(words) = line.read_patiently() else {
                missing = NotFound::Busy;
                continue;
            };
            if words.is(&tuple.key) {
                if self.expired(&words, now) {
                    return Err(NotFound::Unknown);
                }
                match self.read_whole(home + at) {
                    Some(found) if found.words.is(&tuple.key) => return Ok(found),
                    // It has just given way, or is being written for too long.
                    _ => missing = NotFound::Busy,
                }
            }
            if words.vacant() {
                break;
            }
        }
        Err(missing)
    }

    /// What stands in a line, with what belongs to it elsewhere. Waits a moment
    /// for a writer.
    fn read_whole(&self, line: usize) -> Option<Found> {
        for _ in 0..4 {
            let words = self.lines[line].read_patiently()?;
            let rule = RuleId(self.rules[line].load(Ordering::Relaxed));
            if self.lines[line].is_still(words.sequence) {
                return Some(Found { line, words, rule });
            }
        }
        None
    }

    /// Notes a packet of a flow that was found: when, and what it tells of the
    /// connection. Writes only what has changed.
    #[inline(always)]
    pub fn touch(&self, found: &Found, from_low: bool, tcp_flags: u8, now: Tick) {
        let line = &self.lines[found.line];
        // Should the line have got another flow meanwhile, the words differ and
        // the exchange fails. If by chance they are equal, that flow may age
        // as this one would; its verdict and generation are never touched here.
        let known = found.words.state;
        let mut bits = 0;
        let from_initiator = from_low == found.state().from_low;
        if !from_initiator {
            bits |= REPLIED;
        } else if known & (REPLIED | ESTABLISHED) == REPLIED && tcp_flags & tcp::SYN == 0 {
            bits |= ESTABLISHED;
        }
        if tcp_flags & (tcp::FIN | tcp::RST) != 0 && found.words.protocol() == protocol::TCP {
            bits |= match (tcp_flags & tcp::RST != 0, from_initiator) {
                (true, _) => RESET,
                (false, true) => FIN_INITIATOR,
                (false, false) => FIN_RESPONDER,
            };
        }
        line.learn(&found.words, bits);
        if now.since(found.words.last_seen()) > FRESH {
            line.see(found.words.seen, now);
        }
    }

    /// Notes that the verdict on a flow that was found still holds by the tables
    /// of this generation. Without effect when another worker has changed it
    /// meanwhile: it may be another flow.
    #[inline]
    pub fn confirm(&self, found: &Glimpse, generation: u32) {
        self.lines[found.line].confirm(found.sequence, found.seen, generation);
    }

    /// Replaces what was decided about a flow that was found; what its packets
    /// have told of the connection stays. Without effect when another worker has
    /// changed it meanwhile.
    pub fn update(&self, found: &Found, state: &FlowState, now: Tick) {
        let line = &self.lines[found.line];
        if line.lock(found.words.sequence) {
            self.rules[found.line].store(state.rule.0, Ordering::Relaxed);
            line.judge(state, now);
            line.release(found.words.sequence);
        }
    }

    /// Remembers a new flow, whose counts begin with `first`, unless one with its
    /// name is live and not over: that one stays as it is, and is returned. So no
    /// packet that was judged by itself changes what was decided about the flow
    /// that it belongs to.
    pub fn insert(
        &self,
        tuple: &FlowTuple,
        state: &FlowState,
        first: Traffic,
        now: Tick,
    ) -> Result<Option<Found>, Refused> {
        // A place can be lost to another worker; every loss means that some
        // worker has progressed, so a few attempts are plenty.
        for _ in 0..4 {
            let (at, words) = self.place(tuple, now)?;
            let live = !self.expired(&words, now) && !closing(words.state);
            if words.is(&tuple.key) && live {
                match self.read_whole(at) {
                    Some(found) if found.words.is(&tuple.key) => return Ok(Some(found)),
                    _ => continue,
                }
            }
            let line = &self.lines[at];
            if !line.lock(words.sequence) {
                continue;
            }
            if self.leads_to(at, tuple.hash) {
                self.rules[at].store(state.rule.0, Ordering::Relaxed);
                self.begin_counts(at, tuple.from_low, first);
                self.tags.note(at, Some(tuple.hash));
                line.unlock(&Words::new(&tuple.key, state, now, words.sequence));
                return Ok(None);
            }
            line.release(words.sequence);
        }
        Err(Refused::Busy)
    }

    fn begin_counts(&self, line: usize, from_low: bool, first: Traffic) {
        let Some(totals) = self.totals.get(line) else { return };
        let ways = self.lines[line].recent.iter().zip(totals);
        for ((recent, totals), way) in ways.zip([false, true]) {
            recent.begin(if way == from_low { first } else { Traffic::default() }, totals);
        }
    }

    /// Whether a lookup of this hash gets to a line, which the caller has locked:
    /// no line before it is vacant. What is found here stays true while the lock
    /// is held, as [`sweep`] explains.
    fn leads_to(&self, at: usize, hash: u64) -> bool {
        fence(Ordering::SeqCst);
        let before = &self.lines[self.home(hash)..at];
        before.iter().all(Line::is_surely_used)
    }

    /// The line for a new flow: that of its name, a free one, or that of the
    /// flow which gives way.
    fn place(&self, tuple: &FlowTuple, now: Tick) -> Result<(usize, Words), Refused> {
        let home = self.home(tuple.hash);
        let mut busy = false;
        let mut free = None;
        let mut oldest: Option<(usize, Words)> = None;
        for (at, line) in self.lines[home..home + WINDOW].iter().enumerate() {
            let Some(words) = line.read_patiently() else {
                busy = true;
                continue;
            };
            let here = (home + at, words);
            if words.vacant() {
                free = free.or(Some(here));
                break;
            }
            if words.is(&tuple.key) {
                return Ok(here);
            }
            if self.expired(&words, now) {
                free = free.or(Some(here));
            } else if !lasting(words.state, words.protocol()) {
                let older = |(_, other): &(usize, Words)| {
                    now.since(words.last_seen()) > now.since(other.last_seen())
                };
                if oldest.as_ref().is_none_or(older) {
                    oldest = Some(here);
                }
            }
        }
        // The line that is being written may be the flow's own.
        if busy { Err(Refused::Busy) } else { free.or(oldest).ok_or(Refused::Full) }
    }

    /// Leaves every line as if its writer had stopped in the middle, for ever:
    /// for tests of what happens then.
    pub fn stall(&self) {
        for line in &*self.lines {
            let _already_stalled = line.read().is_none_or(|words| line.lock(words.sequence));
        }
    }

    #[inline(always)]
    fn expired(&self, words: &Words, now: Tick) -> bool {
        let idle = now.since(words.last_seen());
        idle > FRESH && self.timed_out(words.state, words.protocol(), idle)
    }

    #[cold]
    fn timed_out(&self, state: u32, protocol: u8, idle: u32) -> bool {
        u64::from(idle) * TICK_MS > u64::from(self.timeout(state, protocol)) * 1000
    }

    fn timeout(&self, state: u32, protocol: u8) -> u32 {
        let timeouts = &self.timeouts;
        let replied = state & REPLIED != 0;
        if state & FRAGMENT != 0 {
            return timeouts.fragments;
        }
        match protocol {
            protocol::TCP if closing(state) => timeouts.tcp_closing,
            protocol::TCP if lasting(state, protocol) => timeouts.tcp_established,
            protocol::TCP => timeouts.tcp_syn,
            protocol::UDP if replied => timeouts.udp_replied,
            protocol::UDP => timeouts.udp,
            protocol::ICMP | protocol::ICMPV6 => timeouts.icmp,
            _ => timeouts.other,
        }
    }

    /// The live flows, for a look from outside; each is right by itself.
    pub fn iter(&self, now: Tick) -> impl Iterator<Item = Seen> {
        self.lines.iter().enumerate().filter_map(move |(at, line)| {
            if line.read()?.vacant() {
                return None;
            }
            let found = self.read_whole(at)?;
            let words = &found.words;
            if words.vacant() || self.expired(words, now) {
                return None;
            }
            let totals = self.totals.get(at);
            let traffic = [1, 0].map(|way| {
                totals.and_then(|totals| line.recent[way].read(&totals[way])).unwrap_or_default()
            });
            Some(Seen { key: words.key(), state: found.state(), last: words.last_seen(), traffic })
        })
    }
}

/// Whether a flow never gives way to a new one: it has had an answer, and if it
/// is TCP, the end that began has gone on after that. Otherwise an end that
/// only ever sends SYNs could fill the table, as it gets an answer to each.
const fn lasting(state: u32, protocol: u8) -> bool {
    let needed = if protocol == protocol::TCP { ESTABLISHED } else { REPLIED };
    state & needed != 0
}

impl std::fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlowTable").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
