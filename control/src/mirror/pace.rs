//! How fast to write.
//!
//! Felix's nftables dataplane takes seconds for what iptables does in
//! milliseconds, and every write is work for the API server and all watchers.
//! So the coming and going of pods is written in batches: at once when there is
//! little of it, and no more than one write for a hundred changes when there is
//! much. An address that nobody has any more can wait for one that comes into the
//! same set. What somebody has asked for, a policy or a remote cluster that is new
//! or gone, is written as fast as Felix can take it.

use std::time::{Duration, Instant};

/// Writes that may follow on each other after a quiet time.
const BURST: f64 = 20.0;
/// Writes a second, and for every change of a pod beyond a hundred a second. With
/// the bursts it comes to one a second, and one for a hundred changes, in any
/// minute of unrest.
const STEADY: f64 = 0.8;
const PER_CHANGE: f64 = 0.008;
/// As much of it is left while a burst that was spent is made up for.
const IN_DEBT: f64 = 0.8;
/// Most writes that many changes at once leave to be made.
const MOST: f64 = 300.0;
/// Between two writes of one set: meanwhile further changes gather.
pub const SAME_SET: Duration = Duration::from_secs(1);
/// How long an address that nobody has any more may stay in a set: the pod that
/// takes the place of another usually comes meanwhile, and then both are one
/// write.
pub const GONE: Duration = Duration::from_secs(5);
/// After a write.
const AFTER_PUT: Duration = Duration::from_millis(20);
/// After a deletion: in nftables mode many at once stall Felix for minutes.
const AFTER_DELETE: Duration = Duration::from_millis(100);

/// How many writes may be made.
#[derive(Debug)]
pub struct Pace {
    writes: f64,
    granted: usize,
    /// Whether a burst was spent and is not made up for.
    in_debt: bool,
    /// Steady writes that no changes are counted against.
    uncounted: f64,
    at: Instant,
    not_before: Instant,
}

impl Pace {
    /// As after a quiet time.
    pub fn new(now: Instant) -> Self {
        Self { writes: BURST, granted: 0, in_debt: false, uncounted: 0.0, at: now, not_before: now }
    }

    fn rate(&self) -> f64 {
        if self.in_debt { STEADY * IN_DEBT } else { STEADY }
    }

    fn refill(&mut self, now: Instant) {
        let steady = now.saturating_duration_since(self.at).as_secs_f64() * self.rate();
        self.uncounted = (self.uncounted + steady).min(BURST);
        self.writes = self.writes.max((self.writes + steady).min(BURST));
        self.in_debt &= self.writes < BURST / 2.0;
        self.at = now;
    }

    /// So many addresses have come or gone.
    pub fn changes(&mut self, count: usize, now: Instant) {
        self.refill(now);
        // The first hundred a second are what the steady rate is for.
        let share = if self.in_debt { PER_CHANGE * IN_DEBT } else { PER_CHANGE };
        self.uncounted -= count as f64 * share;
        let beyond = (-self.uncounted).max(0.0);
        self.uncounted = self.uncounted.max(0.0);
        self.writes = self.writes.max((self.writes + beyond).min(MOST));
    }

    /// Something was asked for that takes so many writes.
    pub fn grant(&mut self, writes: usize) {
        self.granted = self.granted.max(writes);
    }

    /// Nothing is left to be written: what was granted was enough.
    pub fn settled(&mut self) {
        self.granted = 0;
    }

    /// Whether one may be made now; else when to ask again. One that can `wait`
    /// leaves half a burst to those that can't.
    pub fn ready(&mut self, can_wait: bool, now: Instant) -> Result<(), Instant> {
        self.refill(now);
        if now < self.not_before {
            return Err(self.not_before);
        }
        let needed = if can_wait { BURST / 2.0 } else { 1.0 };
        if self.granted > 0 || self.writes >= needed {
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((needed - self.writes) / self.rate()))
    }

    /// One was made.
    pub fn spend(&mut self, deletion: bool, now: Instant) {
        self.not_before = now + if deletion { AFTER_DELETE } else { AFTER_PUT };
        if self.granted > 0 {
            self.granted -= 1;
        } else {
            self.writes -= 1.0;
            self.in_debt |= self.writes < 1.0;
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

    /// Writes in each of so many minutes of so many changes a second, with always
    /// something left to be written that can wait or can't, and looked at as often
    /// as the writer does.
    fn writes(changes: usize, minutes: u64, can_wait: bool) -> Vec<u32> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut writes = vec![0; minutes as usize];
        for at in 0..minutes * 60 * 50 {
            let now = start + Duration::from_millis(20 * at);
            // They come in bunches of all sizes.
            if at % 40 == 0 {
                let bunch = [2, 5, 9, 0][(at / 40 % 4) as usize];
                pace.changes(changes * 8 * bunch / 40, now);
            }
            if pace.ready(can_wait, now).is_ok() {
                pace.spend(false, now);
                writes[(at / 3000) as usize] += 1;
            }
        }
        writes
    }

    #[test]
    fn one_write_a_second_for_a_hundred_changes_a_second() {
        for (changes, most) in [(0, 60), (100, 60), (500, 300), (1000, 600)] {
            for can_wait in [false, true] {
                for writes in writes(changes, 5, can_wait) {
                    assert!(writes <= most, "{writes} for {changes} changes a second");
                    assert!(writes * 2 > most, "{writes} for {changes} changes a second");
                }
            }
        }
    }

    #[test]
    fn many_changes_at_once_leave_as_many_writes() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.changes(10_000, start + Duration::from_secs(60));
        let (mut now, mut count) = (start + Duration::from_secs(60), 0);
        while pace.ready(false, now).is_ok() {
            pace.spend(false, now);
            (now, count) = (now + AFTER_PUT, count + 1);
        }
        assert!((60..=130).contains(&count), "{count}");
    }

    #[test]
    fn what_can_wait_leaves_half_a_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut count) = (start, 0);
        while pace.ready(true, now).is_ok() {
            pace.spend(false, now);
            (now, count) = (now + AFTER_PUT, count + 1);
        }
        assert!(f64::from(count) <= BURST / 2.0 + 2.0, "{count}");
        assert_eq!(pace.ready(false, now), Ok(()));
    }

    #[test]
    fn what_was_asked_for_does_not_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.grant(200);
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(5) && count < 200 {
            match pace.ready(true, now) {
                Ok(()) => {
                    pace.spend(false, now);
                    count += 1;
                }
                Err(at) => now = at,
            }
        }
        assert_eq!(count, 200);
        pace.hold_until(now + Duration::from_secs(7));
        assert_eq!(pace.ready(false, now), Err(now + Duration::from_secs(7)));
    }

    #[test]
    fn what_was_granted_and_not_needed_is_not_for_pods() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.grant(1000);
        pace.settled();
        let (mut now, mut count) = (start, 0);
        while pace.ready(false, now).is_ok() {
            pace.spend(false, now);
            (now, count) = (now + AFTER_PUT, count + 1);
        }
        assert!(f64::from(count) <= BURST + 2.0, "{count}");
    }
}
