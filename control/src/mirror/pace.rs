//! How fast to write.
//!
//! Felix's nftables dataplane takes seconds for what iptables does in
//! milliseconds, and every write is work for the API server and all watchers.
//! So the coming and going of pods is written in batches: at once when there is
//! little of it, and no more than one write for a hundred changes when there is
//! much. What somebody has asked for, a policy or a remote cluster that is new
//! or gone, is written as fast as Felix can take it.

use std::time::{Duration, Instant};

/// Writes that may follow on each other after a quiet time.
const BURST: f64 = 30.0;
/// Writes a second, at any time.
const STEADY: f64 = 1.0;
/// Writes for one change of a pod beyond that.
const PER_CHANGE: f64 = 0.01;
/// Between two writes of one set: meanwhile further changes gather.
pub const SAME_SET: Duration = Duration::from_secs(1);
/// After a write.
const AFTER_PUT: Duration = Duration::from_millis(20);
/// After a deletion: in nftables mode many at once stall Felix for minutes.
const AFTER_DELETE: Duration = Duration::from_millis(100);

/// How many writes may be made.
#[derive(Debug)]
pub struct Pace {
    writes: f64,
    granted: f64,
    at: Instant,
    not_before: Instant,
}

impl Pace {
    /// As after a quiet time.
    pub fn new(now: Instant) -> Self {
        Self { writes: BURST, granted: 0.0, at: now, not_before: now }
    }

    fn refill(&mut self, now: Instant) {
        let steady = (now.saturating_duration_since(self.at).as_secs_f64() * STEADY).max(0.0);
        self.writes = (self.writes + steady).min(BURST);
        self.at = now;
    }

    /// So many addresses have come or gone.
    pub fn changes(&mut self, count: usize, now: Instant) {
        // The first hundred a second are what the steady rate is for.
        let quiet = 100.0 * now.saturating_duration_since(self.at).as_secs_f64();
        self.refill(now);
        let beyond = (count as f64 - quiet).max(0.0);
        self.writes = (self.writes + beyond * PER_CHANGE).min(BURST);
    }

    /// Something was asked for that takes so many writes.
    pub fn grant(&mut self, writes: usize) {
        self.granted = self.granted.max(writes as f64);
    }

    /// Whether one may be made now; else when to ask again.
    pub fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if now < self.not_before {
            return Err(self.not_before);
        }
        if self.writes + self.granted >= 1.0 {
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.writes) / STEADY))
    }

    /// One was made.
    pub fn spend(&mut self, deletion: bool, now: Instant) {
        self.not_before = now + if deletion { AFTER_DELETE } else { AFTER_PUT };
        if self.granted >= 1.0 {
            self.granted -= 1.0;
        } else {
            self.writes -= 1.0;
        }
    }

    /// The API asks for patience.
    pub fn hold_until(&mut self, at: Instant) {
        self.not_before = self.not_before.max(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes in ten minutes of so many changes a second, with always something
    /// left to be written.
    fn writes(changes: usize) -> u32 {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut writes = 0;
        for tenth in 0..6000 {
            let now = start + Duration::from_millis(100 * tenth);
            pace.changes(changes / 10, now);
            if pace.ready(now).is_ok() {
                pace.spend(false, now);
                writes += 1;
            }
        }
        writes
    }

    #[test]
    fn one_write_a_second_for_a_hundred_changes_a_second() {
        for (changes, most) in [(0, 630), (100, 630), (500, 3030), (1000, 6030)] {
            let writes = writes(changes);
            assert!(writes <= most, "{writes} for {changes} changes a second");
            assert!(writes + 200 >= most - 30, "{writes} for {changes} changes a second");
        }
    }

    #[test]
    fn what_was_asked_for_does_not_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.grant(200);
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(5) && count < 200 {
            match pace.ready(now) {
                Ok(()) => {
                    pace.spend(false, now);
                    count += 1;
                }
                Err(at) => now = at,
            }
        }
        assert_eq!(count, 200);
        pace.hold_until(now + Duration::from_secs(7));
        assert_eq!(pace.ready(now), Err(now + Duration::from_secs(7)));
    }
}
