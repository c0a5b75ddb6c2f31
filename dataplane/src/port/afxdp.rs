//! A port on the `afxdp` crate, for comparison with our own sockets only
//! (feature `port-afxdp`).
//!
//! With that crate a frame's place in its memory is fixed, so no header can be
//! pushed or pulled there, and memory can't be handed from one device's socket to
//! another's that we would have opened ourselves. So each port has a memory of
//! its own, and every frame is copied once on the way in and once on the way out.
//! The crate loads an XDP program that takes everything, counts nothing that is
//! lost, and ends the process on an unexpected error of the kernel.

use std::os::fd::RawFd;
use std::sync::Arc;

use afxdp::PENDING_LEN;
use afxdp::buf::Buf;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue};
use arraydeque::{ArrayDeque, Wrapping};

use super::{Port, PortStatistics};
use crate::frame::{Frame, Memory};
use crate::port::memory::HEADROOM;

/// Nothing of ours is kept with a buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Nothing;

type Buffer = BufMmap<'static, Nothing>;
type Ring = ArrayDeque<[Buffer; PENDING_LEN], Wrapping>;

const BUFFER: usize = 2048;

/// Why a port can't be opened, in the crate's words.
#[derive(Debug, thiserror::Error)]
#[error("afxdp: {doing} on {device}: {why}")]
pub struct AfxdpError {
    doing: &'static str,
    device: String,
    why: String,
}

/// A port on queue 0 of a device, in copy mode.
pub struct AfxdpPort {
    _socket: Arc<Socket<'static, Nothing>>,
    receive: SocketRx<'static, Nothing>,
    transmit: SocketTx<'static, Nothing>,
    fill: UmemFillQueue<'static, Nothing>,
    completion: UmemCompletionQueue<'static, Nothing>,
    arrived: Box<Ring>,
    leaving: Box<Ring>,
    free: Vec<Buffer>,
    ring: usize,
    /// Buffers that the fill ring holds, and received frames that it lost.
    filled: usize,
    statistics: PortStatistics,
}

impl AfxdpPort {
    /// Opens a port on a device of the calling thread's network namespace.
    /// `ring` is the size of each of its rings in frames, a power of two up to
    /// 2048.
    ///
    /// # Errors
    /// The crate's.
    pub fn open(device: &str, ring: u32) -> Result<Self, AfxdpError> {
        let failed = |doing| {
            let device = device.to_owned();
            move |why: String| AfxdpError { doing, device, why }
        };
        let buffers = 4 * ring as usize;
        let options = MmapAreaOptions { huge_tlb: false };
        let (area, free) = MmapArea::new(buffers, BUFFER, options)
            .map_err(|error| failed("memory")(format!("{error:?}")))?;
        let (umem, completion, fill) = Umem::new(area, ring, ring)
            .map_err(|error| failed("registering memory")(error.to_string()))?;
        let options = SocketOptions { copy_mode: true, ..SocketOptions::default() };
        let (socket, receive, transmit) = Socket::new(umem, device, 0, ring, ring, options)
            .map_err(|error| failed("socket")(error.to_string()))?;
        let mut this = Self {
            _socket: socket,
            receive,
            transmit,
            fill,
            completion,
            arrived: Box::default(),
            leaving: Box::default(),
            free,
            ring: ring as usize,
            filled: 0,
            statistics: PortStatistics::default(),
        };
        this.restock();
        Ok(this)
    }

    /// In copy mode one wake-up sends so many frames (`TX_BATCH_SIZE` of the
    /// kernel's net/xdp/xsk.c), and the crate wakes the kernel once a call.
    const PER_WAKE: usize = 32;

    fn push_out(&mut self) {
        while !self.leaving.is_empty() {
            match self.transmit.try_send(&mut self.leaving, Self::PER_WAKE) {
                Ok(sent) if sent > 0 => self.statistics.sent += sent as u64,
                _ => return,
            }
        }
    }

    fn restock(&mut self) {
        // Half of the buffers at most, so that there are always some to send.
        let room = self.ring.saturating_sub(self.filled);
        self.filled += self.fill.fill(&mut self.free, room).unwrap_or(0);
    }
}

impl<M: Memory> Port<M> for AfxdpPort {
    fn receive(&mut self, memory: &mut M, batch: &mut Vec<Frame>) -> usize {
        let room = batch.capacity() - batch.len();
        let Ok(taken) = self.receive.try_recv(&mut self.arrived, room, Nothing) else { return 0 };
        self.filled = self.filled.saturating_sub(taken);
        let before = batch.len();
        while let Some(buffer) = self.arrived.pop_front() {
            let bytes = buffer.get_data().get(..usize::from(buffer.get_len()));
            match bytes.and_then(|bytes| put(memory, bytes)) {
                Some(frame) => batch.push(frame),
                None => self.statistics.receive_dropped += 1,
            }
            self.free.push(buffer);
        }
        let received = batch.len() - before;
        self.statistics.received += received as u64;
        received
    }

    fn send(&mut self, memory: &mut M, frames: &mut Vec<Frame>) -> usize {
        let mut taken = 0;
        for frame in frames.iter() {
            let Some(mut buffer) = self.free.pop() else { break };
            let bytes = memory.bytes(frame);
            match buffer.get_data_mut().get_mut(..bytes.len()) {
                Some(room) => {
                    room.copy_from_slice(bytes);
                    buffer.set_len(bytes.len() as u16);
                    // There is as much room as there are buffers.
                    self.leaving.push_back(buffer);
                }
                None => {
                    self.statistics.send_failed += 1;
                    self.free.push(buffer);
                }
            }
            memory.release(frame.chunk);
            taken += 1;
        }
        frames.drain(..taken);
        self.push_out();
        taken
    }

    fn recycle(&mut self, _memory: &mut M) {
        let _ = self.completion.service(&mut self.free, self.ring);
        self.restock();
        self.push_out();
    }

    /// The crate does not give it: a worker has to look again and again.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn statistics(&self) -> PortStatistics {
        self.statistics
    }
}

/// Copies a received packet to where headers can be pushed before it.
fn put<M: Memory>(memory: &mut M, bytes: &[u8]) -> Option<Frame> {
    let chunk = memory.allocate()?;
    let frame = Frame { chunk, head: HEADROOM, len: bytes.len() as u32, segment: 0 };
    let room = memory.bytes_mut(&frame);
    if room.len() == bytes.len() {
        room.copy_from_slice(bytes);
        return Some(frame);
    }
    memory.release(chunk);
    None
}
