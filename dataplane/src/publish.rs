//! Handing immutable tables from control to workers.
//!
//! ```text
//!   control                       slot                       worker
//!   publish(new) --> lock, swap, unlock; version += 1
//!                                  version changed? <-- refresh(), per batch
//!                                  try_lock, clone
//! ```
//!
//! A worker's [`Reader::refresh`] is one load while nothing is new. When there
//! is something new it tries the lock once: control holds it for the length of
//! a pointer swap, and if that very moment is hit, the worker keeps what it has
//! for one more batch. So a worker never waits.
//!
//! Nor does it ever free: the publisher keeps every value that it has published
//! until no reader holds it any more, and drops it on its own thread. The model
//! at the end of this file (`RUSTFLAGS="--cfg loom"`) checks both promises for
//! every interleaving of one publisher and two readers; it does not cover how
//! soon a reader sees a new value, which the memory model leaves open.

use crate::sync::{Arc, AtomicU64, Mutex, Ordering};

/// What can be published.
pub trait Supersede {
    /// Called on the new value before readers see it, so that it may note how
    /// it differs from the one before.
    fn supersede(&mut self, previous: &Self);
}

struct Slot<T> {
    version: AtomicU64,
    value: Mutex<Arc<T>>,
}

/// Control's end.
pub struct Publisher<T> {
    slot: Arc<Slot<T>>,
    current: Arc<T>,
    retired: Vec<Arc<T>>,
}

/// A worker's end.
pub struct Reader<T> {
    slot: Arc<Slot<T>>,
    version: u64,
    value: Arc<T>,
}

impl<T: Supersede> Publisher<T> {
    /// A slot that holds `value`.
    pub fn new(value: T) -> Self {
        let current = Arc::new(value);
        let slot = Slot { version: AtomicU64::new(1), value: Mutex::new(current.clone()) };
        Self { slot: Arc::new(slot), current, retired: Vec::new() }
    }

    /// A further reader, which begins with the current value.
    pub fn reader(&self) -> Reader<T> {
        let version = self.slot.version.load(Ordering::Relaxed);
        Reader { slot: self.slot.clone(), version, value: self.current.clone() }
    }

    /// The value that readers find.
    pub fn current(&self) -> &Arc<T> {
        &self.current
    }

    /// Replaces the value, and frees those that no reader holds any more.
    pub fn publish(&mut self, mut value: T) {
        value.supersede(&self.current);
        let new = Arc::new(value);
        let in_slot = {
            let mut slot = match self.slot.value.lock() {
                Ok(slot) => slot,
                Err(poisoned) => poisoned.into_inner(),
            };
            std::mem::replace(&mut *slot, new.clone())
        };
        self.slot.version.fetch_add(1, Ordering::Release);
        drop(in_slot);
        self.retired.push(std::mem::replace(&mut self.current, new));
        self.collect();
    }

    /// Frees the values that no reader holds any more; returns how many are
    /// still held.
    pub fn collect(&mut self) -> usize {
        // A value that has left the slot can't be cloned by anyone else, so
        // once we are alone with it we stay alone.
        self.retired.retain(|value| Arc::strong_count(value) > 1);
        self.retired.len()
    }
}

impl<T> Reader<T> {
    /// Takes over the newest value if there is one; never waits. Returns
    /// whether the value has changed.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let version = self.slot.version.load(Ordering::Acquire);
        version != self.version && self.take(version)
    }

    #[cold]
    fn take(&mut self, version: u64) -> bool {
        let Ok(value) = self.slot.value.try_lock() else { return false };
        self.value = value.clone();
        self.version = version;
        true
    }

    /// The value as of the last [`refresh`](Self::refresh).
    #[inline]
    pub fn get(&self) -> &T {
        &self.value
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    impl Supersede for i32 {
        fn supersede(&mut self, previous: &Self) {
            assert!(*self > *previous);
        }
    }

    #[test]
    fn readers_follow_and_old_values_are_freed_by_the_publisher() {
        let mut publisher = Publisher::new(1);
        let mut a = publisher.reader();
        let mut b = publisher.reader();
        publisher.publish(2);
        assert_eq!(publisher.collect(), 1, "both readers still hold the first value");
        assert!(a.refresh());
        assert!(!a.refresh());
        assert_eq!((*a.get(), *b.get()), (2, 1));
        publisher.publish(3);
        assert!(b.refresh());
        assert_eq!(*b.get(), 3);
        assert_eq!(publisher.collect(), 1, "a still holds the second value");
        assert!(a.refresh());
        assert_eq!(publisher.collect(), 0);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    /// Both halves are written together and must be read together; and a value
    /// must be dropped on the publisher's thread.
    struct Tables {
        a: u32,
        b: u32,
        home: thread::ThreadId,
    }

    impl Supersede for Tables {
        fn supersede(&mut self, previous: &Self) {
            assert!(self.a > previous.a);
        }
    }

    impl Drop for Tables {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.home, "freed by a worker");
        }
    }

    #[test]
    fn loom_readers_see_whole_values_in_order_and_never_free() {
        loom::model(|| {
            let home = thread::current().id();
            let mut publisher = Publisher::new(Tables { a: 0, b: 0, home });
            let readers: Vec<_> = (1..=2)
                .map(|rounds| {
                    let mut reader = publisher.reader();
                    thread::spawn(move || {
                        let mut last = 0;
                        for _ in 0..rounds {
                            reader.refresh();
                            let tables = reader.get();
                            assert_eq!(tables.a, tables.b);
                            assert!(tables.a >= last);
                            last = tables.a;
                        }
                        // Handed back, so that the test's own end frees nothing here.
                        reader
                    })
                })
                .collect();
            publisher.publish(Tables { a: 1, b: 1, home });
            publisher.publish(Tables { a: 2, b: 2, home });
            let readers: Vec<_> = readers.into_iter().map(|r| r.join().unwrap()).collect();
            drop(readers);
            assert_eq!(publisher.collect(), 0);
        });
    }
}
