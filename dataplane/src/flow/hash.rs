//! The keyed hash of flow names.
//!
//! Who may send packets chooses flow names, so the hash has a secret key: no
//! one can aim at one place of the table. Each step multiplies two 64-bit words
//! that were mixed with key words, and folds the halves of the product
//! together, as wyhash and ahash do. Both ends and the numbers are mixed side by
//! side, so a whole name costs two multiplications in a row; ahash's portable
//! form takes the words one after the other. One multiplication alone is not
//! enough for any of them: ports that follow one another would stand at even
//! distances, and with some keys in a few heaps.
//!
//! The hash is the same on every machine and in every build, so captures of
//! what Tieline sends can be compared byte by byte.

use std::hash::BuildHasher;

use crate::addr::Addr;

/// A key, and with it one of many hashes.
#[derive(Clone)]
pub struct FlowHasher {
    key: [u64; 7],
}

impl FlowHasher {
    /// A hash with a secret key drawn from the system's randomness.
    pub fn random() -> Self {
        let secret = std::hash::RandomState::new();
        Self { key: std::array::from_fn(|at| secret.hash_one(at)) }
    }

    /// The hash with the key that follows from this seed: for tests and for
    /// captures to compare.
    pub fn from_seed(seed: u64) -> Self {
        Self { key: std::array::from_fn(|at| spread(seed.wrapping_add(at as u64 + 1))) }
    }

    /// Hash of two addresses and the numbers that belong to them. Whoever wants
    /// the same for both directions gives the addresses in one order.
    #[inline]
    pub fn hash(&self, low: Addr, high: Addr, numbers: u64) -> u64 {
        let (low, high) = (low.bits(), high.bits());
        let low = fold((low >> 64) as u64 ^ self.key[0], low as u64 ^ self.key[1]);
        let high = fold((high >> 64) as u64 ^ self.key[2], high as u64 ^ self.key[3]);
        let numbers = fold(numbers ^ self.key[4], self.key[5]);
        fold(low ^ numbers, high ^ self.key[6])
    }
}

/// The two halves of a product, one over the other.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// The output step of `SplitMix64` (Steele, Lea, Flood 2014).
const fn spread(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl std::fmt::Debug for FlowHasher {
    /// The key stays secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FlowHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(hasher: &FlowHasher, number: u32) -> u64 {
        let low = Addr::from_v4_bytes([10, 0, 0, 1]);
        let high = Addr::from_v4_bytes((0x0a80_0000 | number >> 8).to_be_bytes());
        hasher.hash(low, high, u64::from(number & 0xff) << 48 | 80 << 32 | 6 << 24 | 4096)
    }

    #[test]
    fn keys_differ_and_seeds_repeat() {
        let one = FlowHasher::from_seed(1);
        assert_eq!(hash(&one, 7), hash(&FlowHasher::from_seed(1), 7));
        assert_ne!(hash(&one, 7), hash(&FlowHasher::from_seed(2), 7));
        assert_ne!(hash(&FlowHasher::random(), 7), hash(&FlowHasher::random(), 7));
    }

    /// Names as alike as those of a busy service fill buckets as evenly as
    /// chance would, by the bits that choose lines and by those that choose
    /// outer source ports.
    #[test]
    fn similar_names_spread_evenly() {
        const BUCKETS: usize = 1024;
        const NAMES: u32 = 64 * BUCKETS as u32;
        for seed in 0..20 {
            let hasher = FlowHasher::from_seed(seed);
            for shift in [0, 40, 48] {
                let mut counts = [0u32; BUCKETS];
                for number in 0..NAMES {
                    counts[(hash(&hasher, number) >> shift) as usize % BUCKETS] += 1;
                }
                let square = |count: &u32| (f64::from(*count) - 64.0).powi(2) / 64.0;
                let chi: f64 = counts.iter().map(square).sum();
                // 1023 degrees of freedom: six standard deviations around.
                assert!((750.0..1300.0).contains(&chi), "seed {seed}, shift {shift}: {chi}");
            }
        }
    }
}
