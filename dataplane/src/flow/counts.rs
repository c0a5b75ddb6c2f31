//! What has gone through each flow.
//!
//! A packet is counted in its flow's own line, which it has read anyway: in one
//! word for each direction ([`Recent`]). Before such a word is full, what is in it
//! goes to the flow's totals, which stand apart ([`Totals`]).
//!
//! An addition is a load and a store, so that it costs next to nothing: of two
//! packets of one direction of a flow that two workers see at the same moment, one
//! can go uncounted. Devices spread packets by flow, so that does not happen but
//! when they change how they do.

use std::ops::Add;

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Packets that were let pass, and their bytes from the IP header on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    /// One packet of so many bytes.
    #[inline(always)]
    pub const fn packet(bytes: u32) -> Self {
        Self { packets: 1, bytes: bytes as u64 }
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

/// Bits of bytes in a [`Recent`]; those above are packets.
const BYTES: u32 = 21;

/// The highest bit of packets and of bytes: with one of them, the word is full. A
/// packet has at most 65,575 bytes (RFC 8200 section 3), so bytes don't run over.
const FULL: u32 = 1 << 31 | 1 << (BYTES - 1);

/// The word while what was in it is being added to the totals.
const CARRYING: u32 = FULL;

/// Times that a reader looks again at counts that are being changed.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 100 };

/// What has come from one end of a flow since its totals were written.
pub(super) struct Recent(AtomicU32);

impl Recent {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Counts a packet of so many bytes; `totals` are those of the flow's line,
    /// for this direction.
    #[inline(always)]
    pub(super) fn count(&self, bytes: u32, totals: &Totals) {
        let old = self.0.load(Ordering::Relaxed);
        let new = old.wrapping_add(1 << BYTES | bytes);
        if new & FULL == 0 {
            self.0.store(new, Ordering::Relaxed);
        } else {
            self.carry(old, bytes, totals);
        }
    }

    /// Adds everything to the totals, unless another worker is at it.
    #[cold]
    #[inline(never)]
    fn carry(&self, old: u32, bytes: u32, totals: &Totals) {
        let (won, lost) = (Ordering::Acquire, Ordering::Relaxed);
        if old & FULL == 0 && self.0.compare_exchange(old, CARRYING, won, lost).is_ok() {
            // The totals must not be seen to change before the word is full.
            fence(Ordering::Release);
            totals.set(totals.read() + traffic(old) + Traffic::packet(bytes));
            self.0.store(0, Ordering::Release);
        }
    }

    /// Begins anew with a flow.
    pub(super) fn begin(&self, first: Traffic, totals: &Totals) {
        totals.set(first);
        self.0.store(0, Ordering::Release);
    }

    /// What has come in all, unless it is never at rest.
    pub(super) fn read(&self, totals: &Totals) -> Option<Traffic> {
        for _ in 0..PATIENCE {
            let recent = self.0.load(Ordering::Acquire);
            let sum = totals.read();
            // A word of before and totals of after would count twice.
            fence(Ordering::Acquire);
            if recent & FULL == 0 && self.0.load(Ordering::Relaxed) == recent {
                return Some(sum + traffic(recent));
            }
            std::hint::spin_loop();
        }
        None
    }
}

const fn traffic(recent: u32) -> Traffic {
    Traffic { packets: (recent >> BYTES) as u64, bytes: (recent & ((1 << BYTES) - 1)) as u64 }
}

/// One direction of the flow in one line.
#[repr(align(16))]
pub(super) struct Totals {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Totals {
    pub(super) fn new() -> Self {
        Self { packets: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn set(&self, traffic: Traffic) {
        self.packets.store(traffic.packets, Ordering::Relaxed);
        self.bytes.store(traffic.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
