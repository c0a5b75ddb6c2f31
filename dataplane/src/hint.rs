//! Advice to the CPU, and its clock. Without the `xsk` feature the advice does
//! nothing and the clock counts nanoseconds.

/// Asks the CPU to load the line that `value` begins in.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(feature = "xsk")]
    tieline_xsk::hint::prefetch(value);
    #[cfg(not(feature = "xsk"))]
    let _ = value;
}

/// Asks the CPU to load the line that `bytes` begin in.
#[inline]
pub fn prefetch_bytes(bytes: &[u8]) {
    #[cfg(feature = "xsk")]
    tieline_xsk::hint::prefetch_bytes(bytes);
    #[cfg(not(feature = "xsk"))]
    let _ = bytes;
}

/// Asks the kernel to keep the memory of `values` on huge pages.
pub fn prefer_huge_pages<T>(values: &[T]) {
    #[cfg(feature = "xsk")]
    tieline_xsk::hint::prefer_huge_pages(values);
    #[cfg(not(feature = "xsk"))]
    let _ = values;
}

/// The CPU's cycle counter, which runs at a constant rate.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(feature = "xsk")]
    return tieline_xsk::hint::cycles();
    #[cfg(not(feature = "xsk"))]
    return crate::worker::monotonic_ns();
}
