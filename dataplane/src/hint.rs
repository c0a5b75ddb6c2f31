//! Advice to the CPU; nothing without the `xsk` feature.

/// Asks the CPU to load the line that `value` begins in.
#[inline]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(feature = "xsk")]
    tieline_xsk::hint::prefetch(value);
    #[cfg(not(feature = "xsk"))]
    let _ = value;
}
