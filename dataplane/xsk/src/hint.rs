//! Advice to the CPU, and the clocks that are cheap to read.

use crate::mapping::HUGE_PAGE;

/// Asks the CPU to load the cache line that `value` begins in.
#[inline]
pub fn prefetch<T>(value: &T) {
    prefetch_address((&raw const *value).cast());
}

/// Asks the CPU to load the cache line that `bytes` begins in.
#[inline]
pub fn prefetch_bytes(bytes: &[u8]) {
    prefetch_address(bytes.as_ptr());
}

/// A prefetch never faults, so any address will do.
#[inline]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64; the instruction reads nothing that
        // the program could see, and ignores addresses that are not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM is a hint: it changes nothing that the program could see,
    // and ignores addresses that are not mapped.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address,
            options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// `MADV_COLLAPSE` (linux/mman.h, 6.1): put what is there on huge pages now.
pub(crate) const MADV_COLLAPSE: libc::c_int = 25;

/// Asks the kernel to keep the memory of `values` on huge pages, as far as whole
/// ones fit, and to have all of them there. Large tables that are read at random
/// places spend less time on address translation then; and memory that was given
/// out as zeros, and never written to, is not cleared when a packet touches it,
/// which takes milliseconds for a huge page. Whether the kernel follows changes
/// nothing else.
pub fn prefer_huge_pages<T>(values: &[T]) {
    let begin = values.as_ptr().addr();
    let start = begin.next_multiple_of(HUGE_PAGE);
    let end = (begin + size_of_val(values)) / HUGE_PAGE * HUGE_PAGE;
    if start >= end {
        return;
    }
    let memory = values.as_ptr().cast::<u8>().wrapping_add(start - begin).cast_mut();
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE, MADV_COLLAPSE] {
        // SAFETY: the range lies within `values`; no advice changes a byte or
        // takes a page away, they only say what pages the bytes are kept on, and
        // that these are to be there.
        unsafe { libc::madvise(memory.cast(), end - start, advice) };
    }
}

/// A clock to measure short stretches of code with: the time-stamp counter on
/// x86-64, the monotonic clock in nanoseconds elsewhere. Instructions before
/// the call are not counted, those after it are.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: SSE2 is part of x86-64. RDTSC may run ahead of earlier
        // instructions; the fence keeps it in its place.
        unsafe { _mm_lfence() };
        // SAFETY: RDTSC is part of x86-64 and permitted to user space on Linux.
        unsafe { _rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    monotonic_ns()
}

/// Now, by the clock that heartbeats are stamped with (`CLOCK_MONOTONIC`), in
/// nanoseconds.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing. The clock always exists, so the
    // result needs no look.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_about_pages_changes_no_byte() {
        let values: Vec<u64> = (0..1 << 20).collect();
        prefer_huge_pages(&values);
        prefer_huge_pages(&values[..1]);
        prefer_huge_pages::<u64>(&[]);
        assert!(values.iter().zip(0..).all(|(value, expected)| *value == expected));
    }

    /// Pages that this thread had to be given so far.
    fn faults() -> libc::c_long {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` is valid for writing one `rusage`.
        let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
        assert_eq!(result, 0);
        // SAFETY: the call has succeeded, so all of it is written.
        unsafe { usage.assume_init() }.ru_minflt
    }

    #[test]
    fn memory_that_was_never_written_to_is_there_afterwards() {
        // Zeros of this size are the kernel's: no page of them is there yet.
        let mut values = vec![0u64; 4 << 20];
        prefer_huge_pages(&values);
        let before = faults();
        for page in values.chunks_mut(512) {
            page[0] = 1;
        }
        let needed = faults() - before;
        // The address sanitizer has pages of its own, an eighth as many.
        assert!(needed < 4096, "{needed} of 8192 pages were missing");
    }

    #[test]
    fn the_clock_goes_on() {
        let before = cycles();
        let mut work = 0u64;
        for number in 0..10_000u64 {
            work = std::hint::black_box(work.wrapping_add(number));
        }
        assert!(cycles() > before);
        assert!(monotonic_ns() > 0);
    }

    #[test]
    fn any_address_may_be_prefetched() {
        prefetch(&1u64);
        prefetch_bytes(&[]);
        prefetch_address(std::ptr::null());
    }
}
