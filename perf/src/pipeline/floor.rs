//! The floor: what no router can do without, so that figures from different
//! machines can be compared.
//!
//! Over the same batches: the 42 header bytes are read, the five-tuple hashed
//! with the same hash, one 64-byte line chosen by the hash touched in a table
//! twice as large as the flows (prefetched across the batch), and 50 constant
//! bytes copied in front of the frame.

use tieline_dataplane::addr::Addr;
use tieline_dataplane::flow::FlowHasher;
use tieline_dataplane::frame::Memory;
use tieline_dataplane::hint;
use tieline_dataplane::stage::Batch;

/// One cache line.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line([u64; 8]);

const CONSTANT: [u8; 50] = [0x5a; 50];

pub(crate) struct Floor {
    hasher: FlowHasher,
    lines: Vec<Line>,
    mask: usize,
    chosen: Vec<usize>,
    /// Of all lines touched.
    sum: u64,
}

impl Floor {
    pub(crate) fn new(lines: usize) -> Self {
        let lines = lines.next_power_of_two();
        Self {
            hasher: FlowHasher::from_seed(1),
            lines: (0..lines as u64).map(|at| Line([at; 8])).collect(),
            mask: lines - 1,
            chosen: Vec::new(),
            sum: 0,
        }
    }

    #[inline(never)]
    pub(crate) fn stage<M: Memory>(&mut self, memory: &mut M, batch: &mut Batch) {
        self.chosen.clear();
        for frame in batch.frames_mut() {
            let Some(header) = memory.bytes(frame).first_chunk::<42>() else { continue };
            let [.., s0, s1, s2, s3, d0, d1, d2, d3, p0, p1, p2, p3, _, _, _, _] = *header;
            let tuple = u64::from(u32::from_be_bytes([p0, p1, p2, p3])) << 32;
            let low = Addr::from_v4_bytes([s0, s1, s2, s3]);
            let high = Addr::from_v4_bytes([d0, d1, d2, d3]);
            let at =
                self.hasher.hash(low, high, tuple | u64::from(header[23])) as usize & self.mask;
            hint::prefetch(&self.lines[at]);
            self.chosen.push(at);
        }
        for (frame, at) in batch.frames_mut().iter_mut().zip(&self.chosen) {
            self.sum = self.sum.wrapping_add(self.lines[*at].0[0]);
            if frame.push(CONSTANT.len() as u32)
                && let Some(front) = memory.bytes_mut(frame).first_chunk_mut()
            {
                *front = CONSTANT;
            }
        }
        std::hint::black_box(self.sum);
    }
}
