//! A worker's frames: one mapping cut into chunks, and who owns each.
//!
//! A chunk is free, held by the worker, or lent to a socket (in one of its
//! rings, or in the kernel). Bytes are given out for held chunks only: that is
//! what makes a slice of them sound while the kernel writes others. An area may
//! be registered with any number of sockets, each in its own mode; the memory
//! stays mapped until the area and all of them are gone.

use std::io;
use std::sync::Arc;

use crate::hint;
use crate::os::Mapping;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a page.
const PAGE: u32 = 4096;

/// Why there is no area.
#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// The kernel takes powers of two from 2048 bytes to a page.
    #[error("frames of {0} bytes can't be had: the kernel takes 2048 or 4096")]
    ChunkSize(u32),
    /// No memory.
    #[error("{bytes} bytes of memory can't be had: {source}")]
    Map {
        /// How much was asked for.
        bytes: usize,
        /// The system's error.
        source: io::Error,
    },
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Free,
    Worker,
    Socket,
}

/// A place in an area, as sockets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The chunk's number.
    pub chunk: u32,
    /// Offset of the first byte from the start of the chunk, in bytes.
    pub head: u32,
    /// Number of bytes.
    pub len: u32,
}

/// A worker's frames.
#[derive(Debug)]
pub struct Area {
    mapping: Arc<Mapping>,
    chunk_size: u32,
    owners: Box<[Owner]>,
    free: Vec<u32>,
}

impl Area {
    /// An area of `chunks` chunks of `chunk_size` bytes.
    pub fn new(chunks: u32, chunk_size: u32) -> Result<Self, AreaError> {
        if !chunk_size.is_power_of_two() || !(2048..=PAGE).contains(&chunk_size) {
            return Err(AreaError::ChunkSize(chunk_size));
        }
        let bytes = (chunks as usize * chunk_size as usize).next_multiple_of(HUGE_PAGE);
        let mapping = Mapping::anonymous(bytes);
        let mapping = mapping.map_err(|source| AreaError::Map { bytes, source })?;
        // Advice only: small pages do as well, a little slower.
        let _ = mapping.advise(libc::MADV_HUGEPAGE);
        // A forked child must not share pages that the kernel writes to.
        let _ = mapping.advise(libc::MADV_DONTFORK);
        Ok(Self {
            mapping: Arc::new(mapping),
            chunk_size,
            owners: vec![Owner::Free; chunks as usize].into(),
            free: (0..chunks).rev().collect(),
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

    /// Takes a free chunk for the worker.
    #[inline]
    pub fn allocate(&mut self) -> Option<u32> {
        let chunk = self.free.pop()?;
        self.owners[chunk as usize] = Owner::Worker;
        Some(chunk)
    }

    /// Gives a chunk that the worker holds back to the free ones. `false`, and
    /// no change, when the worker does not hold it.
    #[inline]
    #[must_use]
    pub fn release(&mut self, chunk: u32) -> bool {
        self.hand(chunk, Owner::Worker, Owner::Free)
    }

    /// A free chunk for a socket.
    #[inline]
    pub(crate) fn lend_free(&mut self) -> Option<u32> {
        let chunk = self.free.pop()?;
        self.owners[chunk as usize] = Owner::Socket;
        Some(chunk)
    }

    /// A chunk of the worker for a socket.
    #[inline]
    pub(crate) fn lend(&mut self, chunk: u32) -> bool {
        self.hand(chunk, Owner::Worker, Owner::Socket)
    }

    /// A chunk from a socket for the worker.
    #[inline]
    pub(crate) fn receive(&mut self, chunk: u32) -> bool {
        self.hand(chunk, Owner::Socket, Owner::Worker)
    }

    /// A chunk from a socket to the free ones.
    #[inline]
    pub(crate) fn reclaim(&mut self, chunk: u32) -> bool {
        self.hand(chunk, Owner::Socket, Owner::Free)
    }

    #[inline]
    fn hand(&mut self, chunk: u32, from: Owner, to: Owner) -> bool {
        match self.owners.get_mut(chunk as usize) {
            Some(owner) if *owner == from => {
                *owner = to;
                if to == Owner::Free {
                    self.free.push(chunk);
                }
                true
            }
            _ => false,
        }
    }

    /// Where the bytes of a held chunk begin, if `head..head + len` lies in it.
    #[inline]
    fn place(&self, chunk: u32, head: u32, len: u32) -> Option<usize> {
        let held = self.owners.get(chunk as usize) == Some(&Owner::Worker);
        let fits = head.checked_add(len).is_some_and(|end| end <= self.chunk_size);
        (held && fits).then(|| chunk as usize * self.chunk_size as usize + head as usize)
    }

    /// Bytes of a chunk that the worker holds; empty otherwise, or when they
    /// don't lie within it.
    #[inline]
    pub fn bytes(&self, chunk: u32, head: u32, len: u32) -> &[u8] {
        let Some(place) = self.place(chunk, head, len) else { return &[] };
        // SAFETY: `place` is within the mapping: chunks cover no more than it.
        let start = unsafe { self.mapping.start().add(place) };
        // SAFETY: the bytes lie in one chunk of the mapping, which is
        // initialized (zeros, or what was written since) and lives as long as
        // `self`. The worker holds the chunk, so no socket was given it; nobody
        // writes it but through `bytes_mut`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) }
    }

    /// The same bytes for writing.
    #[inline]
    pub fn bytes_mut(&mut self, chunk: u32, head: u32, len: u32) -> &mut [u8] {
        let Some(place) = self.place(chunk, head, len) else { return &mut [] };
        // SAFETY: as in `bytes`.
        let start = unsafe { self.mapping.start().add(place) };
        // SAFETY: as in `bytes`; and `&mut self` means that no other slice of
        // this area exists.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len as usize) }
    }

    /// Asks the CPU to load the first bytes of a frame soon.
    #[inline]
    pub fn prefetch(&self, chunk: u32, head: u32) {
        let offset = chunk as usize * self.chunk_size as usize + head as usize;
        hint::prefetch_address(self.mapping.start().as_ptr().wrapping_add(offset));
    }

    /// What pages the area is on, as far as the kernel tells.
    pub fn pages(&self) -> &'static str {
        if huge_pages_at(self.mapping.start().as_ptr().addr()).unwrap_or(false) {
            "2 MiB transparent"
        } else {
            "4 KiB"
        }
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

/// Whether the mapping that begins at or holds `address` has huge pages, by
/// /proc/self/smaps.
fn huge_pages_at(address: usize) -> io::Result<bool> {
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bound = |text| usize::from_str_radix(text, 16).ok();
        if let Some((start, end)) = range.and_then(|(a, b)| bound(a).zip(bound(b))) {
            inside = (start..end).contains(&address);
        } else if let (true, Some(rest)) = (inside, line.strip_prefix("AnonHugePages:")) {
            return Ok(!rest.trim().starts_with("0 "));
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_given_out_for_held_chunks_only() {
        let mut area = Area::new(4, 2048).unwrap();
        assert_eq!((area.chunks(), area.free()), (4, 4));
        assert!(area.bytes(0, 0, 1).is_empty());
        let chunk = area.allocate().unwrap();
        area.bytes_mut(chunk, 2040, 8).fill(7);
        assert_eq!(area.bytes(chunk, 2040, 8), [7; 8]);
        assert!(area.bytes(chunk, 2040, 9).is_empty());
        assert!(area.bytes(chunk, u32::MAX, 2).is_empty());
        assert!(area.bytes(99, 0, 1).is_empty());
        assert!(area.lend(chunk));
        assert!(area.bytes(chunk, 2040, 8).is_empty());
        assert!(!area.release(chunk));
        assert!(area.receive(chunk));
        assert_eq!(area.bytes(chunk, 2040, 8), [7; 8]);
        assert!(area.release(chunk));
        assert!(!area.release(chunk), "released twice");
        assert_eq!(area.free(), 4);
    }

    #[test]
    fn sizes_that_the_kernel_refuses_are_refused() {
        for size in [0, 1024, 3000, 8192] {
            assert!(matches!(Area::new(4, size), Err(AreaError::ChunkSize(_))));
        }
    }
}
