//! The test plays the kernel's side with the same code: a ring in ordinary
//! memory has a producer and a consumer in one process.

use std::sync::Arc;

use super::*;

/// A ring in ordinary memory, over the standard library's or loom's types.
struct Shared<I, C> {
    producer: I,
    consumer: I,
    flags: I,
    slots: Vec<C>,
}

/// A slot; loom's checks that no access overlaps a write.
trait Cell {
    fn get(&self) -> u64;
    fn set(&self, value: u64);
}

struct End<I, C>(Arc<Shared<I, C>>);

// SAFETY: `size` is the slots' number, which `with_counters` makes a power of
// two and nothing changes; `read` and `write` index the slots with a check.
unsafe impl<I: Index, C: Cell> Memory for End<I, C> {
    type Index = I;
    type Item = u64;

    fn size(&self) -> u32 {
        self.0.slots.len() as u32
    }
    fn producer(&self) -> &I {
        &self.0.producer
    }
    fn consumer(&self) -> &I {
        &self.0.consumer
    }
    fn flags(&self) -> &I {
        &self.0.flags
    }
    unsafe fn read(&self, slot: u32) -> u64 {
        self.0.slots[slot as usize].get()
    }
    unsafe fn write(&self, slot: u32, item: u64) {
        self.0.slots[slot as usize].set(item);
    }
}

#[cfg(not(loom))]
mod plain {
    use std::cell::UnsafeCell;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Slot(UnsafeCell<u64>);

    // SAFETY: the protocol under test lets one side at a time have a slot.
    unsafe impl Sync for Slot {}

    impl Cell for Slot {
        fn get(&self) -> u64 {
            // SAFETY: the protocol under test: this side owns the slot.
            unsafe { *self.0.get() }
        }
        fn set(&self, value: u64) {
            // SAFETY: the protocol under test: this side owns the slot.
            unsafe { *self.0.get() = value };
        }
    }

    type Ring = End<AtomicU32, Slot>;

    /// Both ends of a ring whose counters stand at `count`.
    fn with_counters(size: u32, count: u32) -> (Producer<Ring>, Consumer<Ring>) {
        assert!(size.is_power_of_two());
        let shared = Arc::new(Shared {
            producer: AtomicU32::new(count),
            consumer: AtomicU32::new(count),
            flags: AtomicU32::new(0),
            slots: (0..size).map(|_| Slot(UnsafeCell::new(0))).collect(),
        });
        (Producer::new(End(shared.clone())), Consumer::new(End(shared)))
    }

    #[test]
    fn items_come_out_in_order_across_the_wrap_of_the_counters() {
        let (mut producer, mut consumer) = with_counters(4, u32::MAX - 5);
        let (mut sent, mut received) = (0u64, Vec::new());
        while received.len() < 20 {
            for _ in 0..producer.room(3).min(3) {
                assert!(producer.push(sent));
                sent += 1;
            }
            producer.publish();
            consumer.available(1);
            while let Some(item) = consumer.pop() {
                received.push(item);
            }
            consumer.release();
        }
        assert!(received.iter().copied().eq(0..received.len() as u64), "{received:?}");
    }

    #[test]
    fn a_full_ring_takes_nothing_until_slots_are_released() {
        let (mut producer, mut consumer) = with_counters(4, 7);
        assert_eq!(producer.room(1), 4);
        for item in 0..4 {
            assert!(producer.push(item));
        }
        assert!(!producer.push(4));
        assert_eq!(consumer.available(1), 0, "not published");
        assert_eq!(consumer.pop(), None);
        producer.publish();
        assert_eq!((producer.pending(), consumer.available(1)), (4, 4));
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(producer.room(1), 0, "taken but not released");
        consumer.release();
        assert_eq!((producer.room(1), producer.pending()), (1, 3));
        assert!(producer.push(4));
    }

    #[test]
    fn room_and_available_load_the_other_counter_only_at_need() {
        let (mut producer, mut consumer) = with_counters(4, 0);
        producer.push(1);
        producer.push(2);
        producer.publish();
        assert_eq!(consumer.available(1), 2);
        producer.push(3);
        producer.publish();
        assert_eq!(consumer.available(2), 2, "two were known of");
        assert_eq!(consumer.available(3), 3);
        while consumer.pop().is_some() {}
        consumer.release();
        assert_eq!(producer.room(1), 1, "one was known of");
        assert_eq!(producer.room(4), 4);
    }

    #[test]
    fn senseless_counters_reach_no_slot_outside() {
        let (mut producer, mut consumer) = with_counters(4, 0);
        let end = End(consumer.memory.0.clone());
        end.consumer().store(1000, Ordering::Release);
        assert!(producer.room(u32::MAX) <= 4);
        while producer.push(9) {}
        assert!(producer.pending() <= 4);
        end.producer().store(u32::MAX, Ordering::Release);
        assert_eq!(consumer.available(u32::MAX), 4);
        for _ in 0..100 {
            consumer.pop();
        }
    }

    #[test]
    fn the_wakeup_flag_is_seen() {
        let (producer, consumer) = with_counters(4, 0);
        assert!(!producer.wants_waking());
        consumer.memory.flags().store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.wants_waking());
    }

    #[test]
    fn two_threads_lose_and_double_nothing() {
        const ITEMS: u64 = 200_000;
        let (mut producer, mut consumer) = with_counters(64, u32::MAX - 1000);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < ITEMS {
                let room = u64::from(producer.room(1));
                if room == 0 {
                    std::thread::yield_now();
                }
                for _ in 0..room.min(ITEMS - next) {
                    assert!(producer.push(next));
                    next += 1;
                }
                producer.publish();
            }
        });
        let mut expected = 0;
        while expected < ITEMS {
            if consumer.available(1) == 0 {
                std::thread::yield_now();
            }
            while let Some(item) = consumer.pop() {
                assert_eq!(item, expected);
                expected += 1;
            }
            consumer.release();
        }
        sender.join().unwrap();
    }
}

/// Run with `RUSTFLAGS="--cfg loom" cargo test -p tieline-xsk --lib loom`.
#[cfg(loom)]
mod loom_tests {
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::{AtomicU32, Ordering, fence};

    use super::*;

    impl Index for AtomicU32 {
        fn load_acquire(&self) -> u32 {
            self.load(Ordering::Acquire)
        }
        fn load_relaxed(&self) -> u32 {
            self.load(Ordering::Relaxed)
        }
        fn store_release(&self, value: u32) {
            self.store(value, Ordering::Release);
        }
        fn fence() {
            fence(Ordering::SeqCst);
        }
    }

    struct Slot(UnsafeCell<u64>);

    // SAFETY: loom reports an access that overlaps a write.
    unsafe impl Sync for Slot {}

    impl Cell for Slot {
        fn get(&self) -> u64 {
            // SAFETY: loom reports an access that overlaps a write.
            self.0.with(|value| unsafe { *value })
        }
        fn set(&self, value: u64) {
            // SAFETY: loom reports an access that overlaps another.
            self.0.with_mut(|slot| unsafe { *slot = value });
        }
    }

    type Ring = End<AtomicU32, Slot>;

    fn ring(size: u32) -> (Producer<Ring>, Consumer<Ring>) {
        let shared = Arc::new(Shared {
            // Just before the wrap, so that the model covers it.
            producer: AtomicU32::new(u32::MAX),
            consumer: AtomicU32::new(u32::MAX),
            flags: AtomicU32::new(0),
            slots: (0..size).map(|_| Slot(UnsafeCell::new(0))).collect(),
        });
        (Producer::new(End(shared.clone())), Consumer::new(End(shared)))
    }

    #[test]
    fn every_interleaving_passes_slots_on_whole_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let sender = loom::thread::spawn(move || {
                let mut next = 0;
                for _ in 0..3 {
                    if producer.room(1) > 0 {
                        assert!(producer.push(next));
                        next += 1;
                        producer.publish();
                    }
                }
                next
            });
            let mut expected = 0;
            for _ in 0..3 {
                consumer.available(1);
                if let Some(item) = consumer.pop() {
                    assert_eq!(item, expected);
                    expected += 1;
                    consumer.release();
                }
            }
            let sent = sender.join().unwrap();
            while consumer.available(1) > 0 {
                assert_eq!(consumer.pop(), Some(expected));
                expected += 1;
            }
            assert_eq!(sent, expected);
        });
    }

    /// The kernel sets the flag and looks again before it sleeps: it is never
    /// asleep with an item in the ring and nobody about to wake it.
    #[test]
    fn no_wakeup_is_lost() {
        loom::model(|| {
            let (mut producer, mut consumer) = ring(2);
            let kernel = loom::thread::spawn(move || {
                consumer.memory.flags().store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                consumer.available(1) == 0
            });
            assert!(producer.push(1));
            producer.publish();
            let woken = producer.wants_waking();
            let sleeps = kernel.join().unwrap();
            assert!(woken || !sleeps);
        });
    }
}
