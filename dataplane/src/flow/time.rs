//! Time as the flow table knows it, and how long flows may be idle.

/// Milliseconds in one tick of [`Tick`].
pub const TICK_MS: u64 = 100;

/// Ticks for which a flow that was seen needs neither a look at its timeout nor
/// a note of having been seen again: one second. So a busy flow's line is
/// written once a second, and ages at most that much too early.
pub(super) const FRESH: u32 = (1000 / TICK_MS) as u32;

/// Coarse time: [`TICK_MS`] since some fixed moment; 32 bits are 13 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick at a monotonic time in nanoseconds.
    pub const fn from_nanoseconds(ns: u64) -> Self {
        Self((ns / (TICK_MS * 1_000_000)) as u32)
    }

    /// Whole seconds from this tick to a later one; none if it is not later.
    pub const fn seconds_until(self, later: Self) -> u64 {
        later.since(self) as u64 * TICK_MS / 1000
    }

    pub(super) const fn since(self, earlier: Self) -> u32 {
        let ticks = self.0.wrapping_sub(earlier.0);
        // Another worker's clock may be a tick ahead of ours.
        if ticks > u32::MAX / 2 { 0 } else { ticks }
    }
}

/// How long a flow may be idle, in seconds, at least one. The defaults are conntrack's
/// orders of magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP until the end that began has gone on after an answer.
    pub tcp_syn: u32,
    /// TCP thereafter.
    pub tcp_established: u32,
    /// TCP after a reset or after both ends have finished.
    pub tcp_closing: u32,
    /// UDP without an answer.
    pub udp: u32,
    /// UDP with an answer.
    pub udp_replied: u32,
    /// ICMP and ICMPv6.
    pub icmp: u32,
    /// Any other protocol.
    pub other: u32,
    /// Fragments of a packet after its first one.
    pub fragments: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn: 60,
            tcp_established: 24 * 3600,
            tcp_closing: 10,
            udp: 30,
            udp_replied: 120,
            icmp: 30,
            other: 600,
            fragments: 30,
        }
    }
}
