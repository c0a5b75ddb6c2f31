//! Counters of one worker.
//!
//! The worker counts into a plain [`Tally`] and adds it to its shared
//! [`Counters`] once per loop, so that the packet path writes no shared line.
//! Each value is right by itself; values read together may be of different
//! moments.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::verdict::DropReason;

/// Defines the counters once: field, metric label, help text.
macro_rules! counters {
    ($($field:ident $help:literal;)*) => {
        /// What a worker has counted since its last [`Counters::add`].
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $(#[doc = $help] pub $field: u64,)*
            /// Dropped frames by reason.
            pub dropped: [u64; DropReason::COUNT],
        }

        /// A worker's counters, written by it alone.
        #[derive(Debug, Default)]
        pub struct Counters(CachePadded<Totals>);

        #[derive(Debug)]
        struct Totals {
            $($field: AtomicU64,)*
            dropped: [AtomicU64; DropReason::COUNT],
        }

        impl Default for Totals {
            fn default() -> Self {
                Self {
                    $($field: AtomicU64::new(0),)*
                    dropped: std::array::from_fn(|_| AtomicU64::new(0)),
                }
            }
        }

        impl Counters {
            /// Adds a tally and clears it. Called by the owning worker only.
            pub fn add(&self, tally: &mut Tally) {
                $(add(&self.0.$field, &mut tally.$field);)*
                for (total, count) in self.0.dropped.iter().zip(&mut tally.dropped) {
                    add(total, count);
                }
            }

            /// The totals as of now.
            pub fn read(&self) -> Tally {
                let mut dropped = [0; DropReason::COUNT];
                for (count, total) in dropped.iter_mut().zip(self.0.dropped.iter()) {
                    *count = total.load(Ordering::Relaxed);
                }
                Tally { $($field: self.0.$field.load(Ordering::Relaxed),)* dropped }
            }
        }

        impl Tally {
            /// Adds another tally to this one.
            pub fn merge(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
                for (count, other) in self.dropped.iter_mut().zip(&other.dropped) {
                    *count += other;
                }
            }

            /// Name, help text and value of every counter but the drops.
            pub fn named(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($field), $help, self.$field),)*]
            }
        }
    };
}

counters! {
    decapsulated_packets "packets taken out of VXLAN, also those that then found no room to be sent (transmit_full)";
    decapsulated_bytes "bytes of those, inner Ethernet header included";
    encapsulated_packets "packets put into VXLAN, also those that then found no room to be sent (transmit_full)";
    encapsulated_bytes "bytes of those, before encapsulation";
    flow_hits "packets of a known flow";
    flow_misses "packets that were judged by policy";
    flow_rejudged "flows judged again after a change of the tables";
    batches "batches that held at least one frame";
    sleeps "times the worker slept";
}

fn add(total: &AtomicU64, count: &mut u64) {
    if *count != 0 {
        // One writer: a load and a store are enough, and cheaper than an
        // atomic addition.
        total.store(total.load(Ordering::Relaxed).wrapping_add(*count), Ordering::Relaxed);
        *count = 0;
    }
}

impl Tally {
    /// Counts one dropped frame.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// Number of dropped frames of all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_grow_by_tallies() {
        let counters = Counters::default();
        let mut tally = Tally { flow_hits: 3, ..Tally::default() };
        tally.drop(DropReason::NoRoute);
        counters.add(&mut tally);
        assert_eq!(tally, Tally::default());
        tally.flow_hits = 2;
        counters.add(&mut tally);
        let read = counters.read();
        assert_eq!((read.flow_hits, read.dropped[DropReason::NoRoute as usize]), (5, 1));
        assert_eq!(read.dropped_total(), 1);
    }
}
