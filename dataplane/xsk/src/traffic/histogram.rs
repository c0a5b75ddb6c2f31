//! How many packets took how long, in the manner of HDR histograms: buckets
//! whose width grows with the time, so that each is at most 1/32 of it wide. They
//! are those that the program in the kernel counts into, so that its latencies
//! and ours are told by the same code.

/// Buckets for each power of two.
pub(super) const STEPS: u32 = 32;
/// Buckets in all: up to 2^37 nanoseconds, two minutes.
pub(super) const BUCKETS: u32 = STEPS * 33;

/// Times in nanoseconds, counted by bucket.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    longest: u64,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS as usize], longest: 0, sum: 0 }
    }
}

impl Histogram {
    /// Counts a time. What is longer than two minutes counts as that long.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        if let Some(count) = self.counts.get_mut(bucket_of(ns) as usize) {
            *count += 1;
        }
        self.longest = self.longest.max(ns);
        self.sum += ns;
    }

    /// The longest time.
    pub fn longest_ns(&self) -> u64 {
        self.longest
    }

    /// The sum of all times.
    pub fn sum_ns(&self) -> u64 {
        self.sum
    }

    /// The shortest time of each bucket that is not empty, and its count.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let all = (0..).zip(&self.counts).filter(|(_, count)| **count > 0);
        all.map(|(bucket, count)| (shortest_of(bucket), *count)).collect()
    }
}

/// The bucket that a time falls into.
#[inline]
fn bucket_of(ns: u64) -> u32 {
    let power = ns.max(1).ilog2();
    if power <= STEPS.ilog2() {
        return ns as u32;
    }
    let shift = power - STEPS.ilog2();
    let bucket = u64::from(shift * STEPS) + (ns >> shift);
    bucket.min(u64::from(BUCKETS - 1)) as u32
}

/// The shortest time that falls into a bucket, in nanoseconds.
pub(super) fn shortest_of(bucket: u32) -> u64 {
    let (power, step) = (bucket / STEPS, u64::from(bucket % STEPS));
    // The first two powers count single nanoseconds.
    if power < 2 { u64::from(bucket) } else { (u64::from(STEPS) + step) << (power - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for bucket in 0..STEPS * 3 {
            let (this, next) = (shortest_of(bucket), shortest_of(bucket + 1));
            assert!(this < next && next - this <= this / 32 + 1, "{bucket}: {this} {next}");
        }
        assert_eq!([shortest_of(31), shortest_of(63), shortest_of(64)], [31, 63, 64]);
        assert_eq!(shortest_of(96), 128);
    }

    #[test]
    fn a_time_falls_into_the_bucket_that_begins_before_it() {
        let times = (0..200).chain((3..37).flat_map(|power| {
            let base = 1u64 << power;
            [base - 1, base, base + 1, base + base / 3]
        }));
        for ns in times {
            let bucket = bucket_of(ns);
            assert!(shortest_of(bucket) <= ns && ns < shortest_of(bucket + 1), "{ns}: {bucket}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_there() {
        let mut histogram = Histogram::default();
        [5, 5, 70, 1_000_000].into_iter().for_each(|ns| histogram.record(ns));
        let counts: Vec<u64> = histogram.buckets().iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert_eq!((histogram.longest_ns(), histogram.sum_ns()), (1_000_000, 1_000_080));
    }
}
