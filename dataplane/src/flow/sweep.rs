//! Taking away flows that are over, so that the table becomes sparse again.
//!
//! A lookup ends at the first vacant line. So a line may only become vacant if
//! no flow stands behind it whose window begins at it or before: a flow like
//! that would not be found any more. Lines are therefore visited from the last
//! to the first, and one that others stand behind waits until they are over.
//!
//! A worker may be about to put such a flow behind the line just then. Each of
//! the two first locks the line that it wants to change, and looks at the
//! other's only after that: the worker at every line from its flow's home to the
//! one it has locked, which must not be vacant ([`FlowTable::insert`]), the sweep
//! at every line behind the one it has locked, which must neither be locked nor
//! hold a flow from before. With a fence between the two steps on both sides, at
//! least one of them sees the other: a worker then looks for another place, a
//! sweep leaves the line for the next time. A model checks it.

use super::{FRESH, FlowTable, Tick, WINDOW, Words};
use crate::sync::{Ordering, fence};

/// Parts of the table that are swept one at a time.
pub const SLICES: usize = 16;

impl FlowTable {
    /// Makes lines of flows that are over vacant, in the next one of [`SLICES`]
    /// parts of the table. To be called off the packets' path, every second or
    /// so. Returns how many flows it has taken away.
    pub fn sweep(&self, now: Tick) -> usize {
        let turn = self.sweeps.fetch_add(1, Ordering::Relaxed) as usize;
        let slice = SLICES - 1 - turn % SLICES;
        let place = |slice| self.lines.len() * slice / SLICES;
        (place(slice)..place(slice + 1)).rev().filter(|at| self.vacate(*at, now)).count()
    }

    /// Makes one line vacant, if its flow is over and no other needs it.
    pub(super) fn vacate(&self, at: usize, now: Tick) -> bool {
        // A worker whose clock is a second behind still knows its flows.
        let then = Tick(now.0.wrapping_sub(FRESH));
        let line = &self.lines[at];
        let Some(words) = line.read() else { return false };
        let over = !words.vacant() && self.expired(&words, then);
        if !over || self.is_needed(at) || !line.lock(words.sequence) {
            return false;
        }
        fence(Ordering::SeqCst);
        let needed = self.is_needed(at);
        if needed {
            line.release(words.sequence);
        } else {
            self.tags.note(at, None);
            line.unlock(&words.vacated());
        }
        !needed
    }

    /// Whether a lookup may have to get past this line to a flow behind it.
    fn is_needed(&self, at: usize) -> bool {
        let behind = &self.lines[at + 1..self.lines.len().min(at + WINDOW)];
        behind.iter().any(|line| match line.read() {
            Some(words) => !words.vacant() && self.home(self.hash(&words)) <= at,
            None => true,
        })
    }

    fn hash(&self, words: &Words) -> u64 {
        let (low, high) = words.key().ends();
        self.hasher.hash(low, high, words.tuple)
    }
}
