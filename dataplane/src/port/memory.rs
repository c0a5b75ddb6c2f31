//! A port without a device: frames are put in and taken out by its owner.
//!
//! For tests, benchmarks and the replay of captures. The two ends share a
//! queue of byte strings, so that one end may be on another thread.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Port, PortStatistics};
use crate::frame::{Frame, Memory};

/// Bytes left free before every received frame, as XDP leaves them.
pub const HEADROOM: u32 = 256;

#[derive(Debug, Default)]
struct Wires {
    to_port: VecDeque<Vec<u8>>,
    from_port: VecDeque<Vec<u8>>,
}

/// The owner's end of a [`MemoryPort`].
#[derive(Clone, Debug, Default)]
pub struct MemoryWire(Arc<Mutex<Wires>>);

impl MemoryWire {
    fn lock(&self) -> MutexGuard<'_, Wires> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame where the port will receive it.
    pub fn put(&self, frame: impl Into<Vec<u8>>) {
        self.lock().to_port.push_back(frame.into());
    }

    /// Takes the oldest frame that the port has sent.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.lock().from_port.pop_front()
    }
}

/// A port whose other end is a [`MemoryWire`].
#[derive(Debug)]
pub struct MemoryPort {
    wire: MemoryWire,
    statistics: PortStatistics,
}

impl MemoryPort {
    /// A port and the wire that it is connected to.
    pub fn new() -> (Self, MemoryWire) {
        let wire = MemoryWire::default();
        (Self { wire: wire.clone(), statistics: PortStatistics::default() }, wire)
    }
}

impl<M: Memory> Port<M> for MemoryPort {
    fn receive(&mut self, memory: &mut M, batch: &mut Vec<Frame>) -> usize {
        let mut wires = self.wire.lock();
        let before = batch.len();
        while batch.len() < batch.capacity() {
            let Some(bytes) = wires.to_port.pop_front() else { break };
            let Some(chunk) = memory.allocate() else {
                self.statistics.receive_dropped += 1;
                continue;
            };
            let frame = Frame { chunk, head: HEADROOM, len: bytes.len() as u32, segment: 0 };
            let room = memory.bytes_mut(&frame);
            if room.len() != bytes.len() {
                memory.release(chunk);
                self.statistics.receive_dropped += 1;
                continue;
            }
            room.copy_from_slice(&bytes);
            batch.push(frame);
        }
        let received = batch.len() - before;
        self.statistics.received += received as u64;
        received
    }

    fn send(&mut self, memory: &mut M, frames: &mut Vec<Frame>) -> usize {
        let mut wires = self.wire.lock();
        for frame in frames.iter() {
            wires.from_port.push_back(memory.bytes(frame).to_vec());
            memory.release(frame.chunk);
        }
        let sent = frames.len();
        frames.clear();
        self.statistics.sent += sent as u64;
        sent
    }

    fn recycle(&mut self, _memory: &mut M) {}

    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }
}
