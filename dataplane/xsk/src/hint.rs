//! Advice to the CPU, and its cycle counter.

/// Asks the CPU to load the cache line that `value` begins in.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_address(std::ptr::from_ref(value).cast());
}

/// Asks the CPU to load the cache line that the bytes begin in.
#[inline(always)]
pub fn prefetch_bytes(bytes: &[u8]) {
    prefetch_address(bytes.as_ptr());
}

#[inline(always)]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults and changes no byte, whatever the
        // address; every x86-64 CPU has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Ticks of the CPU's time stamp counter, or nanoseconds where there is none.
/// Earlier loads have completed when it is read.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_lfence() };
        // SAFETY: user space may read the counter unless the kernel forbids
        // it, which Linux does only on request (PR_SET_TSC).
        unsafe { _rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        crate::os::monotonic_ns()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_goes_on() {
        let before = super::cycles();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(super::cycles() > before);
    }
}
