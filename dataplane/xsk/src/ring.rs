//! The index protocol of AF_XDP's rings (linux/if_xdp.h), written once.
//!
//! A ring is an array of a power of two of entries between one producer and one
//! consumer, each with an index that only it advances and that wraps at 2^32.
//! One side of each ring is the kernel's, so an index that it gives is believed
//! only as far as it makes sense.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The kernel wants to be woken by a system call (`XDP_RING_NEED_WAKEUP`).
const NEED_WAKEUP: u32 = 1;

/// Where a ring is: memory shared by both sides.
#[derive(Clone, Copy, Debug)]
pub struct Place<T> {
    /// Index of the next entry to be written.
    pub producer: NonNull<AtomicU32>,
    /// Index of the next entry to be read.
    pub consumer: NonNull<AtomicU32>,
    /// Flags that the kernel sets.
    pub flags: NonNull<AtomicU32>,
    /// The entries.
    pub entries: NonNull<T>,
    /// Number of entries, a power of two.
    pub size: u32,
}

/// What both sides do with the memory.
#[derive(Debug)]
struct Ring<T> {
    place: Place<T>,
    /// Our own index.
    own: u32,
    /// The other side's index when last looked at.
    other: u32,
}

// SAFETY: the memory is reached through this value alone on our side, so it may
// move to another thread with it; entries are plain data.
unsafe impl<T: Copy + Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    fn word(&self, word: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: `Place`'s pointers are valid for as long as the ring lives,
        // by the contract of the constructors; the words are only ever used as
        // atomics, by the kernel too.
        unsafe { word.as_ref() }
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        let at = index & (self.place.size - 1);
        // SAFETY: the mask keeps the index below the number of entries.
        unsafe { self.place.entries.add(at as usize) }
    }

    fn needs_wakeup(&self) -> bool {
        self.word(self.place.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }
}

/// The side that writes.
#[derive(Debug)]
pub struct Producer<T>(Ring<T>);

/// The side that reads.
#[derive(Debug)]
pub struct Consumer<T>(Ring<T>);

impl<T: Copy> Producer<T> {
    /// The producer's side.
    ///
    /// # Safety
    /// `place` must describe memory that stays valid for as long as the
    /// producer lives, with `size` a power of two and that many entries; no
    /// other producer may be at it.
    pub unsafe fn new(place: Place<T>) -> Self {
        let mut ring = Ring { place, own: 0, other: 0 };
        ring.own = ring.word(place.producer).load(Ordering::Relaxed);
        ring.other = ring.word(place.consumer).load(Ordering::Acquire);
        Self(ring)
    }

    /// Entries that can be written now; looks at the other side only if fewer
    /// than `wanted` are known of.
    #[inline]
    pub fn room(&mut self, wanted: u32) -> u32 {
        let ring = &mut self.0;
        let known = ring.place.size.saturating_sub(ring.own.wrapping_sub(ring.other));
        if known >= wanted {
            return known;
        }
        // Pairs with the consumer's release: what it has read may be replaced.
        ring.other = ring.word(ring.place.consumer).load(Ordering::Acquire);
        ring.place.size.saturating_sub(ring.own.wrapping_sub(ring.other))
    }

    /// Writes the entry `at` places after the last published one. It must be
    /// within [`room`](Self::room); entries beyond are not written.
    #[inline]
    pub fn write(&mut self, at: u32, entry: T) {
        let ring = &self.0;
        let index = ring.own.wrapping_add(at);
        if index.wrapping_sub(ring.other) < ring.place.size {
            // SAFETY: the entry is within the array, and not published, so the
            // consumer does not read it.
            unsafe { ring.entry(index).write(entry) };
        }
    }

    /// Publishes the first `count` entries that were written.
    #[inline]
    pub fn publish(&mut self, count: u32) {
        let ring = &mut self.0;
        ring.own = ring.own.wrapping_add(count);
        // Pairs with the consumer's acquire: the entries are written by then.
        ring.word(ring.place.producer).store(ring.own, Ordering::Release);
    }

    /// Entries that the consumer has not taken yet.
    #[inline]
    pub fn pending(&mut self) -> u32 {
        self.0.place.size - self.room(self.0.place.size)
    }

    /// Whether the kernel waits for a system call before it looks at the ring.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

impl<T: Copy> Consumer<T> {
    /// The consumer's side.
    ///
    /// # Safety
    /// As for [`Producer::new`], with no other consumer; and every byte pattern
    /// must be a value of `T`.
    pub unsafe fn new(place: Place<T>) -> Self {
        let mut ring = Ring { place, own: 0, other: 0 };
        ring.own = ring.word(place.consumer).load(Ordering::Relaxed);
        ring.other = ring.word(place.producer).load(Ordering::Acquire);
        Self(ring)
    }

    /// Entries that can be read now; looks at the other side only if fewer than
    /// `wanted` are known of.
    #[inline]
    pub fn available(&mut self, wanted: u32) -> u32 {
        let ring = &mut self.0;
        let known = ring.other.wrapping_sub(ring.own);
        if known >= wanted {
            return known.min(ring.place.size);
        }
        // Pairs with the producer's release: the entries are written by then.
        ring.other = ring.word(ring.place.producer).load(Ordering::Acquire);
        ring.other.wrapping_sub(ring.own).min(ring.place.size)
    }

    /// Reads the entry `at` places after the last released one, which must be
    /// within [`available`](Self::available).
    #[inline]
    pub fn read(&self, at: u32) -> T {
        let ring = &self.0;
        debug_assert!(at < ring.other.wrapping_sub(ring.own));
        // SAFETY: the entry is within the array, which was initialized by
        // whoever made it; every byte pattern is a `T`.
        unsafe { ring.entry(ring.own.wrapping_add(at)).read() }
    }

    /// Gives the first `count` entries back to the producer.
    #[inline]
    pub fn release(&mut self, count: u32) {
        let ring = &mut self.0;
        ring.own = ring.own.wrapping_add(count);
        // Pairs with the producer's acquire: the entries are read by then.
        ring.word(ring.place.consumer).store(ring.own, Ordering::Release);
    }

    /// Whether the kernel waits for a system call before it fills the ring.
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of a ring that a test owns.
    struct Memory {
        words: [AtomicU32; 3],
        entries: Box<[u64]>,
    }

    impl Memory {
        fn new(size: usize, start: u32) -> Box<Self> {
            let words = [AtomicU32::new(start), AtomicU32::new(start), AtomicU32::new(0)];
            Box::new(Self { words, entries: vec![0; size].into() })
        }

        fn place(&mut self) -> Place<u64> {
            let size = self.entries.len() as u32;
            Place {
                producer: NonNull::from(&self.words[0]),
                consumer: NonNull::from(&self.words[1]),
                flags: NonNull::from(&self.words[2]),
                entries: NonNull::new(self.entries.as_mut_ptr()).unwrap(),
                size,
            }
        }
    }

    fn ends(place: Place<u64>) -> (Producer<u64>, Consumer<u64>) {
        // SAFETY: the tests keep the memory until both ends are gone, and make
        // one end of each kind.
        let producer = unsafe { Producer::new(place) };
        // SAFETY: as above.
        let consumer = unsafe { Consumer::new(place) };
        (producer, consumer)
    }

    #[test]
    fn entries_come_out_in_order_across_the_wrap_of_the_indices() {
        let mut memory = Memory::new(4, u32::MAX - 5);
        let (mut producer, mut consumer) = ends(memory.place());
        let mut next = 0;
        for round in 0..20u64 {
            let room = producer.room(4).min(3);
            for at in 0..room {
                producer.write(at, round * 10 + u64::from(at));
            }
            producer.publish(room);
            let ready = consumer.available(4);
            assert_eq!(ready, 3);
            for at in 0..ready {
                assert_eq!(consumer.read(at), round * 10 + u64::from(at));
                next += 1;
            }
            consumer.release(ready);
        }
        assert_eq!(next, 60);
        assert_eq!(producer.pending(), 0);
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_empty_one_gives_none() {
        let mut memory = Memory::new(2, 0);
        let (mut producer, mut consumer) = ends(memory.place());
        assert_eq!(consumer.available(1), 0);
        producer.write(0, 1);
        producer.write(1, 2);
        producer.write(2, 3);
        producer.publish(2);
        assert_eq!((producer.room(1), producer.pending()), (0, 2));
        assert_eq!((consumer.available(9), consumer.read(0), consumer.read(1)), (2, 1, 2));
        consumer.release(1);
        assert_eq!(producer.room(1), 1);
    }

    #[test]
    fn an_index_of_the_other_side_that_makes_no_sense_is_bounded() {
        let mut memory = Memory::new(4, 0);
        let (mut producer, mut consumer) = ends(memory.place());
        memory.words[0].store(1000, Ordering::Relaxed);
        assert_eq!(consumer.available(1), 4);
        memory.words[1].store(77, Ordering::Relaxed);
        assert_eq!(producer.room(5), 0);
    }

    #[test]
    fn two_threads_pass_everything_on() {
        const COUNT: u64 = 200_000;
        let mut memory = Memory::new(64, u32::MAX - 100);
        let (mut producer, mut consumer) = ends(memory.place());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < COUNT {
                    let count = producer.room(1).min(u32::try_from(COUNT - next).unwrap_or(64));
                    for at in 0..count {
                        producer.write(at, next + u64::from(at));
                    }
                    producer.publish(count);
                    next += u64::from(count);
                    std::thread::yield_now();
                }
            });
            let mut next = 0;
            while next < COUNT {
                let count = consumer.available(1);
                for at in 0..count {
                    assert_eq!(consumer.read(at), next + u64::from(at));
                }
                consumer.release(count);
                next += u64::from(count);
                std::thread::yield_now();
            }
        });
    }
}
