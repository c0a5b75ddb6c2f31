//! Ports over real devices: AF_XDP, and the packet socket where AF_XDP can't be
//! had. Both use a worker's [`Area`].

use std::os::fd::{AsRawFd, RawFd};

use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::packet::PacketSocket;
use tieline_xsk::socket::Socket;

use super::{Port, PortStatistics};
use crate::frame::{Frame, Memory};

impl Memory for Area {
    fn chunk_size(&self) -> u32 {
        Area::chunk_size(self)
    }

    fn chunks(&self) -> u32 {
        Area::chunks(self)
    }

    fn free(&self) -> u32 {
        Area::free(self)
    }

    fn allocate(&mut self) -> Option<u32> {
        Area::allocate(self)
    }

    fn release(&mut self, chunk: u32) {
        let held = Area::release(self, chunk);
        debug_assert!(held, "chunk {chunk} released by someone who does not hold it");
    }

    #[inline]
    fn bytes(&self, frame: &Frame) -> &[u8] {
        Area::bytes(self, frame.chunk, frame.head, frame.len)
    }

    #[inline]
    fn bytes_mut(&mut self, frame: &Frame) -> &mut [u8] {
        Area::bytes_mut(self, frame.chunk, frame.head, frame.len)
    }

    #[inline]
    fn prefetch(&self, frame: &Frame) {
        Area::prefetch(self, frame.chunk, frame.head);
    }
}

#[inline]
fn frame(descriptor: Descriptor) -> Frame {
    let Descriptor { chunk, head, len } = descriptor;
    Frame { chunk, head, len, segment: 0 }
}

#[inline]
fn descriptor(frame: &Frame) -> Descriptor {
    Descriptor { chunk: frame.chunk, head: frame.head, len: frame.len }
}

/// A port on an AF_XDP socket.
pub struct XskPort(pub Socket);

impl Port<Area> for XskPort {
    fn receive(&mut self, memory: &mut Area, batch: &mut Vec<Frame>) -> usize {
        let room = (batch.capacity() - batch.len()) as u32;
        self.0.receive(memory, room, |descriptor| batch.push(frame(descriptor)))
    }

    fn send(&mut self, memory: &mut Area, frames: &mut Vec<Frame>) -> usize {
        let sent = self.0.send(memory, frames.iter().map(descriptor));
        frames.drain(..sent);
        self.0.wake();
        sent
    }

    fn recycle(&mut self, memory: &mut Area) {
        self.0.reclaim(memory);
        self.0.refill(memory);
        self.0.wake();
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }

    fn statistics(&self) -> PortStatistics {
        let counted = self.0.statistics();
        PortStatistics {
            received: counted.received,
            sent: counted.sent,
            receive_dropped: counted.receive_dropped + counted.receive_ring_full,
            send_failed: counted.refused + counted.transmit_invalid,
        }
    }
}

/// A port on a packet socket.
pub struct PacketPort(pub PacketSocket);

impl Port<Area> for PacketPort {
    fn receive(&mut self, memory: &mut Area, batch: &mut Vec<Frame>) -> usize {
        let room = (batch.capacity() - batch.len()) as u32;
        self.0.receive(memory, room, |descriptor| batch.push(frame(descriptor)))
    }

    fn send(&mut self, memory: &mut Area, frames: &mut Vec<Frame>) -> usize {
        let sent = self.0.send(memory, frames.iter().map(descriptor));
        frames.drain(..sent);
        sent
    }

    fn recycle(&mut self, _memory: &mut Area) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }

    fn statistics(&self) -> PortStatistics {
        let counted = self.0.statistics();
        PortStatistics {
            received: counted.received,
            sent: counted.sent,
            receive_dropped: counted.receive_dropped,
            send_failed: counted.refused,
        }
    }
}
