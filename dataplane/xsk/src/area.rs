//! The memory of one worker, in chunks, and who owns each chunk.
//!
//! An [`Area`] is registered as UMEM on every socket of its worker, so that a
//! frame received on one device is sent on another without being moved. A
//! chunk is at any time free, held by the worker, or lent to one port. The
//! area's books, not the values that pass through the worker, decide what may
//! be touched: [`Area::bytes`] gives nothing of a chunk that the worker does
//! not hold, whatever it is asked for. That is what makes it sound to give out
//! slices of memory that the kernel writes other parts of.
//!
//! The mapping lives as long as the area or any socket on it.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::hint;
use crate::mapping::{self, Mapping};

/// Bytes that AF_XDP leaves free before a received frame
/// (`XDP_PACKET_HEADROOM`, linux/bpf.h). Other ports leave the same.
pub const HEADROOM: u32 = 256;

/// The smallest chunk that AF_XDP accepts (`XDP_UMEM_MIN_CHUNK_SIZE`).
pub const MIN_CHUNK_SIZE: u32 = 2048;

/// Why there is no area.
#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// The kernel takes chunks that are a power of two from 2,048 bytes to a page.
    #[error(
        "chunk size {size} is not possible: use a power of two from {MIN_CHUNK_SIZE} to {page}"
    )]
    ChunkSize {
        /// What was asked for, in bytes.
        size: u32,
        /// Bytes per page on this machine.
        page: usize,
    },
    /// An area has at least one chunk, and fewer than 4 GiB / 2,048.
    #[error("{chunks} chunks are not possible: use 1 to {most}")]
    Chunks {
        /// What was asked for.
        chunks: u32,
        /// The largest number.
        most: u32,
    },
    /// The kernel has no such memory.
    #[error("{bytes} bytes of memory for frames: {source}; use fewer frames")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The number of a port among those of one area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortId(u8);

/// Who owns a chunk: one byte each, so that the books of a large area fit
/// into the first-level cache.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner(u8);

impl Owner {
    const FREE: Self = Self(0);
    const HELD: Self = Self(1);

    const fn port(port: PortId) -> Self {
        Self(port.0 + 2)
    }
}

/// Ports that one area can have at a time: what is left of an [`Owner`]'s byte.
const PORTS: usize = 254;

/// The part of an area that its sockets share.
#[derive(Debug)]
pub(crate) struct Shared {
    mapping: Mapping,
    ports: Mutex<[bool; PORTS]>,
}

impl Shared {
    /// A number for a new port; `None` when all are taken.
    pub(crate) fn register(&self) -> Option<PortId> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let free = ports.iter().position(|taken| !taken)?;
        ports[free] = true;
        Some(PortId(free as u8))
    }

    /// Makes the number of a port available that owns no chunks any more.
    pub(crate) fn unregister(&self, port: PortId) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports[usize::from(port.0)] = false;
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }
}

/// Where in an area one frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// The chunk's number.
    pub chunk: u32,
    /// Offset of the frame's first byte from the start of the chunk, in bytes.
    pub head: u32,
    /// The frame's length in bytes.
    pub len: u32,
}

/// Memory for frames, and the books on who owns which chunk.
pub struct Area {
    shared: Arc<Shared>,
    chunk_size: u32,
    /// log2 of the chunk size.
    shift: u32,
    owners: Box<[Owner]>,
    /// Last in, first out: the chunk that was touched last is the warmest.
    free: Vec<u32>,
    held: u32,
    pages: &'static str,
}

impl Area {
    /// An area of `chunks` chunks of `chunk_size` bytes, all free.
    ///
    /// # Errors
    /// When the size or number is not possible, or the memory can't be had.
    pub fn new(chunks: u32, chunk_size: u32) -> Result<Self, AreaError> {
        let page = mapping::page_size();
        if !chunk_size.is_power_of_two()
            || chunk_size < MIN_CHUNK_SIZE
            || chunk_size as usize > page
        {
            return Err(AreaError::ChunkSize { size: chunk_size, page });
        }
        let most = u32::MAX / chunk_size;
        if chunks == 0 || chunks > most {
            return Err(AreaError::Chunks { chunks, most });
        }
        let bytes = chunks as usize * chunk_size as usize;
        let mapping =
            Mapping::anonymous(bytes).map_err(|source| AreaError::Memory { bytes, source })?;
        let pages = mapping.pages();
        Ok(Self {
            shared: Arc::new(Shared { mapping, ports: Mutex::new([false; PORTS]) }),
            chunk_size,
            shift: chunk_size.trailing_zeros(),
            owners: vec![Owner::FREE; chunks as usize].into(),
            free: (0..chunks).rev().collect(),
            held: 0,
            pages,
        })
    }

    /// Bytes per chunk.
    #[inline]
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Number of chunks.
    #[inline]
    pub fn chunks(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Number of free chunks.
    #[inline]
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Number of chunks that the worker holds.
    #[inline]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Number of chunks that are lent to ports.
    #[inline]
    pub fn lent(&self) -> u32 {
        self.chunks() - self.free() - self.held
    }

    /// What kind of pages the memory is on: `2 MiB reserved`, `2 MiB
    /// transparent`, the same `in part`, or `4 KiB`.
    pub fn pages(&self) -> &'static str {
        self.pages
    }

    /// Takes a free chunk; the worker holds it until [`release`](Self::release)
    /// or until a port takes it.
    #[inline]
    pub fn allocate(&mut self) -> Option<u32> {
        let chunk = self.free.pop()?;
        self.owners[chunk as usize] = Owner::HELD;
        self.held += 1;
        Some(chunk)
    }

    /// Gives a chunk that the worker holds back to the free ones. `false`, and
    /// no change, when the worker does not hold it.
    #[inline]
    pub fn release(&mut self, chunk: u32) -> bool {
        let held = self.owner(chunk) == Some(Owner::HELD);
        if held {
            self.owners[chunk as usize] = Owner::FREE;
            self.held -= 1;
            self.free.push(chunk);
        }
        held
    }

    /// `len` bytes from `head` of a chunk. Empty when the worker does not hold
    /// the chunk or the range is not within it.
    #[inline]
    pub fn bytes(&self, chunk: u32, head: u32, len: u32) -> &[u8] {
        match self.address(chunk, head, len) {
            // SAFETY: `address` vouches for `len` bytes inside the mapping, in
            // a chunk that no port has, so the kernel does not write to it;
            // nobody in this process does while `self` is borrowed. The memory
            // was zeroed when mapped, and lives as long as `self`.
            Some(start) => unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) },
            None => &[],
        }
    }

    /// The same for writing.
    #[inline]
    pub fn bytes_mut(&mut self, chunk: u32, head: u32, len: u32) -> &mut [u8] {
        match self.address(chunk, head, len) {
            // SAFETY: as in `bytes`; `self` is borrowed mutably, so there is
            // no other slice of this area.
            Some(start) => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len as usize) },
            None => &mut [],
        }
    }

    /// Asks the CPU to load the line at `head` of a chunk, whoever owns it.
    #[inline]
    pub fn prefetch(&self, chunk: u32, head: u32) {
        let offset = self.offset(chunk, head);
        hint::prefetch_address(self.shared.start().as_ptr().wrapping_add(offset as usize));
    }

    /// The address of `len` bytes that the worker holds.
    #[inline]
    pub(crate) fn address(&self, chunk: u32, head: u32, len: u32) -> Option<NonNull<u8>> {
        let end = head.checked_add(len)?;
        if self.owner(chunk) != Some(Owner::HELD) || end > self.chunk_size {
            return None;
        }
        let offset = self.offset(chunk, head) as usize;
        // SAFETY: the chunk is one of the area's and `head` at most its size,
        // so the offset is at most the mapping's length.
        Some(unsafe { self.shared.start().add(offset) })
    }

    #[inline]
    fn owner(&self, chunk: u32) -> Option<Owner> {
        self.owners.get(chunk as usize).copied()
    }

    // === impl Area: the ports' side ===

    /// Whether `shared` is this area's.
    #[inline]
    pub(crate) fn is(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A place in the area as AF_XDP counts it: bytes from the start.
    #[inline]
    pub(crate) fn offset(&self, chunk: u32, head: u32) -> u64 {
        (u64::from(chunk) << self.shift) + u64::from(head)
    }

    /// Moves a free chunk to a port.
    #[inline]
    pub(crate) fn lend_free(&mut self, port: PortId) -> Option<u32> {
        let chunk = self.free.pop()?;
        self.owners[chunk as usize] = Owner::port(port);
        Some(chunk)
    }

    /// Moves a frame's chunk from the worker to a port. `false`, and no
    /// change, when the worker does not hold it or the frame leaves the chunk.
    #[inline]
    pub(crate) fn lend(&mut self, port: PortId, frame: Descriptor) -> bool {
        let lent = self.address(frame.chunk, frame.head, frame.len).is_some();
        if lent {
            self.owners[frame.chunk as usize] = Owner::port(port);
            self.held -= 1;
        }
        lent
    }

    /// Moves the chunk of a received frame from a port to the worker. `None`,
    /// and no change, when the port does not have it.
    #[inline]
    pub(crate) fn receive(&mut self, port: PortId, offset: u64, len: u32) -> Option<Descriptor> {
        let chunk = u32::try_from(offset >> self.shift).ok()?;
        let head = offset as u32 & (self.chunk_size - 1);
        if self.owner(chunk) != Some(Owner::port(port)) || len > self.chunk_size - head {
            return None;
        }
        self.owners[chunk as usize] = Owner::HELD;
        self.held += 1;
        Some(Descriptor { chunk, head, len })
    }

    /// Frees the chunk of a sent frame. `false`, and no change, when the port
    /// does not have it.
    #[inline]
    pub(crate) fn complete(&mut self, port: PortId, offset: u64) -> bool {
        let Ok(chunk) = u32::try_from(offset >> self.shift) else { return false };
        let lent = self.owner(chunk) == Some(Owner::port(port));
        if lent {
            self.owners[chunk as usize] = Owner::FREE;
            self.free.push(chunk);
        }
        lent
    }

    /// Frees everything that a port has, and returns the number. Only for a
    /// port whose kernel side is gone.
    pub(crate) fn return_all(&mut self, port: PortId) -> u32 {
        let mut returned = 0;
        for (chunk, owner) in (0u32..).zip(self.owners.iter_mut()) {
            if *owner == Owner::port(port) {
                *owner = Owner::FREE;
                self.free.push(chunk);
                returned += 1;
            }
        }
        returned
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Area")
            .field("chunks", &self.chunks())
            .field("chunk_size", &self.chunk_size)
            .field("free", &self.free())
            .field("held", &self.held)
            .field("lent", &self.lent())
            .field("pages", &self.pages)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(area: &Area) -> (u32, u32, u32) {
        (area.free(), area.held(), area.lent())
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 1024, 2049, 3000, 1 << 20] {
            assert!(matches!(Area::new(8, size), Err(AreaError::ChunkSize { .. })), "{size}");
        }
        assert!(matches!(Area::new(0, 2048), Err(AreaError::Chunks { .. })));
        assert!(matches!(Area::new(u32::MAX, 4096), Err(AreaError::Chunks { .. })));
    }

    #[test]
    fn only_held_chunks_have_bytes() {
        let mut area = Area::new(4, 2048).unwrap();
        let chunk = area.allocate().unwrap();
        area.bytes_mut(chunk, 256, 3).copy_from_slice(&[1, 2, 3]);
        assert_eq!(area.bytes(chunk, 257, 3), [2, 3, 0]);
        assert_eq!(area.bytes(chunk, 0, 2048).len(), 2048);
        assert!(area.release(chunk));
        assert!(area.bytes(chunk, 256, 3).is_empty());
        assert!(area.bytes_mut(chunk, 256, 3).is_empty());
    }

    #[test]
    fn ranges_outside_the_chunk_are_empty() {
        let mut area = Area::new(4, 2048).unwrap();
        let chunk = area.allocate().unwrap();
        assert!(area.bytes(chunk, 1, 2048).is_empty());
        assert!(area.bytes(chunk, 2049, 0).is_empty());
        assert!(area.bytes(chunk, u32::MAX, 2).is_empty());
        assert!(area.bytes(chunk, 2, u32::MAX).is_empty());
        assert!(area.bytes(4, 0, 1).is_empty());
        assert!(area.bytes(u32::MAX, 0, 1).is_empty());
        area.prefetch(u32::MAX, u32::MAX);
    }

    #[test]
    fn a_chunk_is_released_once() {
        let mut area = Area::new(2, 2048).unwrap();
        let chunk = area.allocate().unwrap();
        assert!(area.release(chunk));
        assert!(!area.release(chunk));
        assert!(!area.release(99));
        assert_eq!(counts(&area), (2, 0, 0));
    }

    #[test]
    fn chunks_run_out() {
        let mut area = Area::new(2, 4096).unwrap();
        assert!(area.allocate().is_some());
        assert!(area.allocate().is_some());
        assert_eq!(area.allocate(), None);
        assert_eq!(counts(&area), (0, 2, 0));
    }

    #[test]
    fn a_chunk_travels_between_ports() {
        let mut area = Area::new(4, 2048).unwrap();
        let one = area.shared().register().unwrap();
        let other = area.shared().register().unwrap();
        let chunk = area.lend_free(one).unwrap();
        let offset = area.offset(chunk, 256);
        assert_eq!(counts(&area), (3, 0, 1));
        assert_eq!(area.receive(other, offset, 60), None, "not lent to this port");
        assert_eq!(area.receive(one, offset, 1793), None, "longer than the chunk");
        let frame = area.receive(one, offset, 60).unwrap();
        assert_eq!(frame, Descriptor { chunk, head: 256, len: 60 });
        assert_eq!(area.receive(one, offset, 60), None, "received twice");
        assert!(area.lend(other, frame));
        assert!(!area.lend(other, frame), "sent twice");
        assert!(area.bytes(chunk, 256, 60).is_empty(), "lent");
        assert!(!area.release(chunk), "lent");
        assert!(!area.complete(one, offset), "another port's");
        assert!(area.complete(other, offset));
        assert!(!area.complete(other, offset), "completed twice");
        assert_eq!(counts(&area), (4, 0, 0));
    }

    #[test]
    fn offsets_outside_the_area_belong_to_nobody() {
        let mut area = Area::new(4, 2048).unwrap();
        let port = area.shared().register().unwrap();
        for offset in [4 * 2048, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(area.receive(port, offset, 0), None);
            assert!(!area.complete(port, offset));
        }
    }

    #[test]
    fn a_closed_port_gives_everything_back() {
        let mut area = Area::new(8, 2048).unwrap();
        let one = area.shared().register().unwrap();
        let other = area.shared().register().unwrap();
        for _ in 0..3 {
            area.lend_free(one).unwrap();
        }
        area.lend_free(other).unwrap();
        assert_eq!(area.return_all(one), 3);
        assert_eq!(counts(&area), (7, 0, 1));
        assert_eq!(area.return_all(other), 1);
    }

    #[test]
    fn port_numbers_are_given_again() {
        let area = Area::new(1, 2048).unwrap();
        let ports: Vec<_> = std::iter::from_fn(|| area.shared().register()).collect();
        assert_eq!(ports.len(), PORTS);
        area.shared().unregister(ports[5]);
        assert_eq!(area.shared().register(), Some(ports[5]));
    }
}
