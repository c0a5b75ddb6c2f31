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

#[cfg(feature = "xsk")]
pub(crate) use tieline_xsk::slab::Slab;

/// A large table; with the `xsk` feature, on huge pages.
#[cfg(not(feature = "xsk"))]
pub(crate) struct Slab<T>(Box<[T]>);

#[cfg(not(feature = "xsk"))]
impl<T> Slab<T> {
    pub(crate) fn new(len: usize, make: impl Fn() -> T) -> Self {
        Self(std::iter::repeat_with(make).take(len).collect())
    }
}

#[cfg(not(feature = "xsk"))]
impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

#[cfg(not(feature = "xsk"))]
impl<T> std::ops::Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// Bytes of these ranges of addresses that are on huge pages, as far as known.
pub fn huge_bytes(ranges: &[std::ops::Range<usize>]) -> usize {
    #[cfg(feature = "xsk")]
    return tieline_xsk::pages::huge_bytes(ranges);
    #[cfg(not(feature = "xsk"))]
    {
        let _ = ranges;
        0
    }
}

/// The CPU's cycle counter, which runs at a constant rate.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(feature = "xsk")]
    return tieline_xsk::hint::cycles();
    #[cfg(not(feature = "xsk"))]
    return crate::worker::monotonic_ns();
}
