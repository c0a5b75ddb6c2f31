//! Large tables in memory of their own, on huge pages where the machine gives
//! them: read at random places, they cost less address translation there.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Deref;

use crate::mapping::{Mapping, page_size};

/// Values side by side; as many as at first, for good. All of the memory is there
/// from the start: pages that a packet is the first to touch would cost it
/// milliseconds each.
#[derive(Debug)]
pub struct Slab<T> {
    mapping: Mapping,
    len: usize,
    values: PhantomData<T>,
}

impl<T> Slab<T> {
    /// `len` values, each made by `make`. Ends the process when there is no
    /// memory, as other collections do.
    pub fn new(len: usize, make: impl Fn() -> T) -> Self {
        const { assert!(!std::mem::needs_drop::<T>(), "nothing here is dropped") };
        assert!(align_of::<T>() <= page_size());
        let Ok(layout) = Layout::array::<T>(len) else { handle_alloc_error(Layout::new::<T>()) };
        let Ok(mapping) = Mapping::anonymous(layout.size().max(1)) else {
            handle_alloc_error(layout)
        };
        let start = mapping.start().cast::<T>();
        for at in 0..len {
            // SAFETY: the mapping has room for `len` values, and `at` is less.
            let place = unsafe { start.add(at) };
            // SAFETY: the place is valid for writing, aligned, as it is a multiple
            // of the type's size from the start of a page, and nobody else's.
            unsafe { place.write(make()) };
        }
        Self { mapping, len, values: PhantomData }
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new(0, || unreachable!("there are no values"))
    }
}

impl<T> Deref for Slab<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let start = self.mapping.start().cast::<T>().as_ptr();
        // SAFETY: `new` has written `len` values there, which nothing takes away
        // before `self` goes. They are changed through shared references only, by
        // what allows that.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn values_are_where_they_were_put() {
        for len in [1usize, 511, 1 << 19] {
            let next = Cell::new(0);
            let slab = Slab::new(len, || AtomicU64::new(next.replace(next.get() + 1)));
            assert_eq!(slab.len(), len);
            assert!(slab.iter().zip(0..).all(|(value, at)| value.load(Ordering::Relaxed) == at));
            slab[len - 1].store(7, Ordering::Relaxed);
            assert_eq!(slab.last().map(|value| value.load(Ordering::Relaxed)), Some(7));
        }
        assert_eq!(Slab::<u64>::default().len(), 0);
        assert_eq!(Slab::new(0, || 1u64).len(), 0);
    }

    #[test]
    fn a_large_slab_begins_at_a_huge_page() {
        let slab = Slab::new(1 << 18, || [0u64; 8]);
        assert_eq!(slab.as_ptr().addr() % crate::mapping::HUGE_PAGE, 0);
    }
}
