//! Several queues of one device as one port, for a worker that serves more than
//! one.
//!
//! A batch is filled from the queues in turn, each time beginning with the next
//! one, so that of as many rounds as there are queues, a queue that is always
//! full takes one and leaves the others theirs. Frames of several queues are
//! judged together and sent together.
//!
//! Frames leave by the first queue, whatever queue the frames that they answer
//! come by: a worker has one place to send from, as each CPU has with a card's
//! own transmit queues; a flow stays in order; and a batch costs one wake-up,
//! not one per queue.

use std::os::fd::RawFd;

use super::{Port, PortStatistics};
use crate::frame::{Frame, Memory};

/// Ports on the queues of one device.
#[derive(Debug)]
pub struct Queues<P> {
    ports: Vec<P>,
    /// The port that is asked first the next time.
    turn: usize,
}

impl<P> Queues<P> {
    /// The first is the one that frames leave by.
    pub fn new(ports: Vec<P>) -> Self {
        Self { ports, turn: 0 }
    }
}

impl<M: Memory, P: Port<M>> Port<M> for Queues<P> {
    fn receive(&mut self, memory: &mut M, batch: &mut Vec<Frame>) -> usize {
        let (last, first) = self.ports.split_at_mut(self.turn);
        let mut received = 0;
        for port in first.iter_mut().chain(last) {
            if batch.len() == batch.capacity() {
                break;
            }
            received += port.receive(memory, batch);
        }
        self.turn = if self.turn + 1 < self.ports.len() { self.turn + 1 } else { 0 };
        received
    }

    fn send(&mut self, memory: &mut M, frames: &mut Vec<Frame>) -> usize {
        self.ports.first_mut().map_or(0, |port| port.send(memory, frames))
    }

    fn recycle(&mut self, memory: &mut M) {
        for port in &mut self.ports {
            port.recycle(memory);
        }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.ports.iter().flat_map(Port::descriptors).collect()
    }

    fn statistics(&self) -> PortStatistics {
        let mut sum = PortStatistics::default();
        for counted in self.ports.iter().map(Port::statistics) {
            sum.received += counted.received;
            sum.sent += counted.sent;
            sum.receive_dropped += counted.receive_dropped;
            sum.send_failed += counted.send_failed;
        }
        sum
    }
}
