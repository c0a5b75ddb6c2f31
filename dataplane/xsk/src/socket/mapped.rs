//! A socket's rings as the kernel maps them.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use crate::mapping::Mapping;
use crate::ring::Memory;

/// What the slots of a mapped ring may hold.
///
/// # Safety
/// Every pattern of bits is a value of the type.
pub(super) unsafe trait Item: Copy {}

// SAFETY: an integer has no invalid values.
unsafe impl Item for u64 {}
// SAFETY: integers only.
unsafe impl Item for libc::xdp_desc {}

/// One of the four rings.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    /// Keeps the pointers valid.
    _mapping: Mapping,
    _slots: PhantomData<T>,
}

// SAFETY: the pointers lead into a mapping of the process, which goes along;
// slots are only reached through the ring protocol, by one owner on this side.
unsafe impl<T: Item + Send> Send for Mapped<T> {}

impl<T: Item> Mapped<T> {
    /// Maps a ring of `size` slots, a power of two, at the page offset
    /// `page_offset` of the socket, laid out as `XDP_MMAP_OFFSETS` told.
    pub(super) fn new(
        socket: BorrowedFd<'_>,
        size: u32,
        page_offset: i64,
        layout: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let slots_end = layout.desc as usize + size as usize * size_of::<T>();
        let counter_end = |offset: u64| offset as usize + size_of::<AtomicU32>();
        let len = [layout.producer, layout.consumer, layout.flags]
            .map(counter_end)
            .into_iter()
            .fold(slots_end, usize::max);
        let mapping = Mapping::shared(socket, len, page_offset)?;
        Ok(Self {
            producer: part(&mapping, layout.producer)?,
            consumer: part(&mapping, layout.consumer)?,
            flags: part(&mapping, layout.flags)?,
            slots: part(&mapping, layout.desc)?,
            size,
            _mapping: mapping,
            _slots: PhantomData,
        })
    }
}

/// The place at an offset within the mapping, if it is there and aligned.
fn part<T>(mapping: &Mapping, offset: u64) -> io::Result<NonNull<T>> {
    let offset = offset as usize;
    if offset >= mapping.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the offset is within the mapping.
    let place = unsafe { mapping.start().add(offset) }.cast::<T>();
    if place.is_aligned() { Ok(place) } else { Err(io::ErrorKind::InvalidData.into()) }
}

// SAFETY: `size` is a power of two by `new`'s contract, which `SocketConfig`
// checks and the kernel as well, and never changes. The mapping is long enough
// for `size` slots by `new`.
unsafe impl<T: Item> Memory for Mapped<T> {
    type Index = AtomicU32;
    type Item = T;

    #[inline]
    fn size(&self) -> u32 {
        self.size
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `part` made sure that the place is mapped and aligned; both
        // sides access it atomically only; it lives as long as `self`.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    #[inline]
    unsafe fn read(&self, slot: u32) -> T {
        // SAFETY: the caller keeps `slot` below the size, which the mapping
        // holds.
        let place = unsafe { self.slots.add(slot as usize) };
        // SAFETY: mapped and aligned by `part`, ours to read by the caller's
        // word, and any bits are a value by `Item`.
        unsafe { place.read() }
    }

    #[inline]
    unsafe fn write(&self, slot: u32, item: T) {
        // SAFETY: the caller keeps `slot` below the size, which the mapping
        // holds.
        let place = unsafe { self.slots.add(slot as usize) };
        // SAFETY: mapped and aligned by `part`, and ours to write by the
        // caller's word.
        unsafe { place.write(item) };
    }
}
