//! What has gone through each flow.
//!
//! Counts stand beside the lines: those are full. A line's counts begin anew with
//! its flow. An addition is a load and a store, so that it costs next to nothing:
//! of two packets of one direction of a flow that two workers see at the same
//! moment, one can go uncounted. Devices spread packets by flow, so that does not
//! happen but when they change how they do.

use std::ops::Add;

use crate::sync::{AtomicU64, Ordering};

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

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

/// One direction of the flow in one line. The two have arrays of their own, so
/// that the workers which see them write to different cache lines, and each line
/// of these holds those of four flows.
#[repr(align(16))]
pub(super) struct Counts {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { packets: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Some more.
    #[inline(always)]
    pub(super) fn add(&self, more: Traffic) {
        let sum = self.read() + more;
        self.set(sum);
    }

    #[inline(always)]
    pub(super) fn set(&self, traffic: Traffic) {
        self.packets.store(traffic.packets, Ordering::Relaxed);
        self.bytes.store(traffic.bytes, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(super) fn read(&self) -> Traffic {
        Traffic {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
