//! The CPU that a worker is to be on, and where it is.
//!
//! A pin doesn't hold by itself. When the process's cpuset changes, as the
//! kubelet's CPU manager changes it, the kernel puts its threads on other CPUs;
//! and anybody with the right to may set a thread's affinity. So a worker looks
//! now and then, and pins itself again where it can.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No CPU in particular.
const ANY: usize = usize::MAX;

/// The CPU that one thread is to be on.
#[derive(Debug)]
pub struct Pin {
    wanted: AtomicUsize,
    seen: Mutex<Placed>,
}

/// Where a thread was when it looked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// The CPU that it was to be pinned to.
    pub wanted: Option<usize>,
    /// The CPU that it is pinned to: the only one that it may run on.
    pub pinned: Option<usize>,
    /// The CPU that it ran on at that moment.
    pub on: usize,
    /// Times that it was found to be pinned no more.
    pub lost: u64,
}

impl Default for Pin {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Pin {
    /// A thread that is to be on `cpu`, and has not looked yet.
    pub fn new(cpu: Option<usize>) -> Self {
        Self { wanted: AtomicUsize::new(cpu.unwrap_or(ANY)), seen: Mutex::default() }
    }

    /// The CPU to be on from now on; the thread goes there when it looks next.
    pub fn assign(&self, cpu: Option<usize>) {
        self.wanted.store(cpu.unwrap_or(ANY), Ordering::Relaxed);
    }

    /// Where the thread was when it looked last.
    pub fn placed(&self) -> Placed {
        *self.lock()
    }

    /// Looks where the calling thread is, and pins it again if need be. With no
    /// CPU to be on, it stays where it is.
    pub fn keep(&self) {
        let wanted = Some(self.wanted.load(Ordering::Relaxed)).filter(|cpu| *cpu != ANY);
        let mut pinned = only_cpu();
        let before = self.placed();
        let lost = wanted.is_some() && before.pinned == wanted && pinned != wanted;
        if let Some(cpu) = wanted.filter(|_| pinned != wanted) {
            // `core_affinity::get_core_ids` hides isolated CPUs: name it ourselves.
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            pinned = only_cpu();
        }
        let lost = before.lost + u64::from(lost);
        *self.lock() = Placed { wanted, pinned, on: rustix::thread::sched_getcpu(), lost };
    }

    fn lock(&self) -> MutexGuard<'_, Placed> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The CPU that the calling thread may run on, if there is but one.
fn only_cpu() -> Option<usize> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    let one = set.count() == 1;
    (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| one && set.is_set(*cpu))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[test]
    fn a_thread_goes_back_to_its_cpu() {
        let all = sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|cpu| all.is_set(*cpu)).unwrap();
        let pin = Pin::new(Some(last));
        assert_eq!(pin.placed(), Placed::default(), "not looked yet");
        pin.keep();
        let there = Placed { wanted: Some(last), pinned: Some(last), on: last, lost: 0 };
        assert_eq!(pin.placed(), there);
        pin.keep();
        assert_eq!(pin.placed(), there);

        sched_setaffinity(None, &all).unwrap();
        pin.keep();
        // With one CPU in all, nothing was lost.
        let lost = u64::from(all.count() > 1);
        assert_eq!(pin.placed(), Placed { lost, ..there });
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
    }

    #[test]
    fn a_cpu_that_cannot_be_had_is_told() {
        let all = sched_getaffinity(None).unwrap();
        let pin = Pin::default();
        pin.keep();
        let free = pin.placed();
        assert_eq!((free.wanted, free.lost), (None, 0));
        // The highest number there can be: hardly a CPU of this machine.
        let absent = CpuSet::MAX_CPU - 1;
        assert!(!all.is_set(absent));
        pin.assign(Some(absent));
        for _ in 0..2 {
            pin.keep();
            let placed = pin.placed();
            assert_eq!((placed.wanted, placed.lost), (Some(absent), 0));
            assert_ne!(placed.pinned, Some(absent));
        }
        // Told to be where it can be, it goes there, and has lost nothing.
        let first = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
        pin.assign(Some(first));
        pin.keep();
        let there = Placed { wanted: Some(first), pinned: Some(first), on: first, lost: 0 };
        assert_eq!(pin.placed(), there);
    }
}
