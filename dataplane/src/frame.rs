//! Frames, and the memory that they live in.
//!
//! A [`Frame`] is a small value: which chunk of a worker's memory, where in it
//! the bytes begin, and how many there are. Its bytes are only reached through
//! the [`Memory`] that owns the chunk, so the same stages run over AF_XDP's
//! UMEM and over plain memory. Pushing or pulling a header moves `head`; the
//! bytes stay where they are.

/// A place in a worker's memory that holds one frame.
///
/// Nothing here says that a frame is one packet of one MTU: `segment` is set
/// when a port delivers several TCP segments as one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Frame {
    /// The chunk's number within its [`Memory`].
    pub chunk: u32,
    /// Offset of the first byte from the start of the chunk, in bytes.
    pub head: u32,
    /// Number of bytes.
    pub len: u32,
    /// Payload bytes per TCP segment of a super-frame; 0 for a single packet.
    pub segment: u16,
}

impl Frame {
    /// Grows the frame by `bytes` at its front. `false`, and no change, when
    /// the chunk has no such room before the frame.
    #[inline]
    #[must_use]
    pub fn push(&mut self, bytes: u32) -> bool {
        match self.head.checked_sub(bytes) {
            Some(head) => {
                self.head = head;
                self.len += bytes;
                true
            }
            None => false,
        }
    }

    /// Takes `bytes` off the frame's front. `false`, and no change, when it
    /// has fewer.
    #[inline]
    #[must_use]
    pub fn pull(&mut self, bytes: u32) -> bool {
        match self.len.checked_sub(bytes) {
            Some(len) => {
                self.head += bytes;
                self.len = len;
                true
            }
            None => false,
        }
    }
}

/// The frames of one worker: who owns a chunk, and its bytes.
///
/// Every chunk is at any time either free, held by the worker, or lent to a
/// port. The accounting is the memory's, so that no frame is lost whatever a
/// stage does with its values.
pub trait Memory {
    /// Bytes per chunk.
    fn chunk_size(&self) -> u32;

    /// Number of chunks.
    fn chunks(&self) -> u32;

    /// Number of free chunks.
    fn free(&self) -> u32;

    /// Takes a free chunk; the worker holds it until [`release`](Self::release).
    fn allocate(&mut self) -> Option<u32>;

    /// Gives a chunk that the worker holds back to the free ones.
    fn release(&mut self, chunk: u32);

    /// The frame's bytes. Empty when the frame is not the worker's or does not
    /// lie within its chunk.
    fn bytes(&self, frame: &Frame) -> &[u8];

    /// The frame's bytes for writing, under the same rule.
    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8];

    /// Asks the CPU to load the frame's first line soon.
    fn prefetch(&self, _frame: &Frame) {}
}

/// Plain memory: for the in-memory port, tests and captures.
#[derive(Debug)]
pub struct HeapMemory {
    bytes: Vec<u8>,
    chunk_size: u32,
    held: Vec<bool>,
    free: Vec<u32>,
}

impl HeapMemory {
    /// Memory of `chunks` chunks of `chunk_size` bytes.
    pub fn new(chunks: u32, chunk_size: u32) -> Self {
        Self {
            bytes: vec![0; chunks as usize * chunk_size as usize],
            chunk_size,
            held: vec![false; chunks as usize],
            free: (0..chunks).rev().collect(),
        }
    }

    #[inline]
    fn range(&self, frame: &Frame) -> std::ops::Range<usize> {
        let end = frame.head.saturating_add(frame.len);
        let held = self.held.get(frame.chunk as usize).copied().unwrap_or(false);
        if !held || end > self.chunk_size {
            return 0..0;
        }
        let start = frame.chunk as usize * self.chunk_size as usize;
        start + frame.head as usize..start + end as usize
    }
}

impl Memory for HeapMemory {
    fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    fn chunks(&self) -> u32 {
        self.held.len() as u32
    }

    fn free(&self) -> u32 {
        self.free.len() as u32
    }

    fn allocate(&mut self) -> Option<u32> {
        let chunk = self.free.pop()?;
        self.held[chunk as usize] = true;
        Some(chunk)
    }

    fn release(&mut self, chunk: u32) {
        match self.held.get_mut(chunk as usize) {
            Some(held) if *held => {
                *held = false;
                self.free.push(chunk);
            }
            _ => debug_assert!(false, "chunk {chunk} released by someone who does not hold it"),
        }
    }

    #[inline]
    fn bytes(&self, frame: &Frame) -> &[u8] {
        &self.bytes[self.range(frame)]
    }

    #[inline]
    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        let range = self.range(frame);
        &mut self.bytes[range]
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        let start = frame.chunk as usize * self.chunk_size as usize + frame.head as usize;
        crate::hint::prefetch_bytes(self.bytes.get(start..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn push_and_pull_stay_in_the_chunk() {
        let mut frame = Frame { chunk: 0, head: 50, len: 10, segment: 0 };
        assert!(frame.push(50));
        assert_eq!((frame.head, frame.len), (0, 60));
        assert!(!frame.push(1));
        assert!(frame.pull(60));
        assert!(!frame.pull(1));
    }

    #[test]
    fn bytes_of_a_chunk_that_is_not_held_are_empty() {
        let mut memory = HeapMemory::new(2, 128);
        let frame = Frame { chunk: 0, head: 0, len: 8, segment: 0 };
        assert!(memory.bytes(&frame).is_empty());
        let chunk = memory.allocate().unwrap();
        let frame = Frame { chunk, head: 120, len: 8, segment: 0 };
        assert_eq!(memory.bytes_mut(&frame).len(), 8);
        assert!(memory.bytes(&Frame { len: 9, ..frame }).is_empty());
        assert!(memory.bytes(&Frame { chunk: 7, ..frame }).is_empty());
        memory.release(chunk);
        assert_eq!(memory.free(), 2);
    }
}
