//! How a worker sees a device queue.
//!
//! A worker knows queues only through [`Port`]: receive a batch, send a batch,
//! recycle, sleep, statistics. Which port it is changes nothing in the stages.

use std::os::fd::RawFd;

use crate::frame::{Frame, Memory};

#[cfg(feature = "port-afxdp")]
pub mod afxdp;
pub mod memory;
pub mod queues;
#[cfg(feature = "xsk")]
pub mod xsk;

/// What a port has seen since it was opened, as its kernel side counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStatistics {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames lost because the receive ring was full or had no empty frames.
    pub receive_dropped: u64,
    /// Frames that the device or kernel refused to send.
    pub send_failed: u64,
}

/// One queue of one device, or several as one ([`queues::Queues`]).
pub trait Port<M: Memory>: Send {
    /// Appends received frames to `batch`, at most up to its capacity, and
    /// returns how many. Ownership of the chunks goes to the worker.
    fn receive(&mut self, memory: &mut M, batch: &mut Vec<Frame>) -> usize;

    /// Sends from the front of `frames` and removes what was taken, returning
    /// its number. Frames that stay in `frames` are still the worker's.
    fn send(&mut self, memory: &mut M, frames: &mut Vec<Frame>) -> usize;

    /// Takes back what has been sent, hands empty frames to the receive side,
    /// and wakes the kernel where it asked for it. Called once per loop.
    fn recycle(&mut self, memory: &mut M);

    /// The descriptors to sleep on; without one, sleeping is waiting for time to
    /// pass. Asked for once.
    fn descriptors(&self) -> Vec<RawFd>;

    /// Counters of the port itself.
    fn statistics(&self) -> PortStatistics;
}
