//! An AF_XDP socket on one device queue, over a worker's [`Area`].
//!
//! A socket has four rings: empty frames go to the kernel in the fill ring and
//! come back filled in the receive ring; full frames go out in the transmit
//! ring and come back in the completion ring. The sockets that a worker has on
//! queues of one device share one UMEM ([`Socket::beside`]). On another device
//! the area is registered once more, so that devices can differ in mode:
//! `XDP_SHARED_UMEM` would force the second one into the first one's mode, and
//! a veth never has zero copy. The price is that the pages count against the
//! memlock limit once per device.
//!
//! A socket always asks for wake-up flags (`XDP_USE_NEED_WAKEUP`), and makes a
//! system call only where the kernel wants one. In copy mode that call sends the
//! frames: as many as the ring holds on newer kernels, else 32. The calls of
//! [`Socket::wake`] are bounded, so that a worker is never stuck in it.
//!
//! Chunks that the kernel has are lent to the socket in the area's books.
//! [`Socket::close`] brings them home. A socket that is merely dropped leaves
//! them lent for ever: the kernel could still write to them.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::area::{Area, Descriptor, PortId, Shared};
use crate::ring::{Consumer, Producer};
use crate::sys;

mod bind;
mod mapped;

use bind::Parts;
pub use bind::SocketError;
use mapped::Mapped;

/// The shortest frame that is sent: an Ethernet header.
const MIN_FRAME: u32 = 14;

/// Frames that one system call sends in copy mode (`TX_BATCH_SIZE` in
/// net/xdp/xsk.c), where `XDP_MAX_TX_SKB_BUDGET` is not to be had.
const COPY_BATCH: u32 = 32;

/// How frames get from the device to the socket, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The device reads and writes the area itself.
    NativeZeroCopy,
    /// The driver runs the XDP program; the kernel copies.
    NativeCopy,
    /// The network stack runs the XDP program; any device has this.
    Generic,
}

impl Mode {
    /// All modes in the order to try them in.
    pub const ALL: [Self; 3] = [Self::NativeZeroCopy, Self::NativeCopy, Self::Generic];

    /// Whether the XDP program has to be attached to the driver.
    pub fn native(self) -> bool {
        self != Self::Generic
    }

    /// The name in configuration and metrics: `native-zero-copy`,
    /// `native-copy` or `generic`.
    pub fn label(self) -> &'static str {
        match self {
            Self::NativeZeroCopy => "native-zero-copy",
            Self::NativeCopy => "native-copy",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::NativeZeroCopy => "native zero copy",
            Self::NativeCopy => "native copy",
            Self::Generic => "generic",
        })
    }
}

/// A name that is no mode's label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an AF_XDP mode: use native-zero-copy, native-copy or generic")]
pub struct UnknownMode(String);

impl std::str::FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(label: &str) -> Result<Self, UnknownMode> {
        let mode = Self::ALL.into_iter().find(|mode| mode.label() == label);
        mode.ok_or_else(|| UnknownMode(label.to_owned()))
    }
}

/// Sizes of a socket's rings, in frames; each a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// Empty frames on offer to the kernel.
    pub fill: u32,
    /// Received frames that wait for the worker.
    pub receive: u32,
    /// Frames that wait to be sent.
    pub transmit: u32,
    /// Sent frames that wait to be taken back. Not below `transmit`, or
    /// sending stalls.
    pub completion: u32,
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self { fill: 2048, receive: 2048, transmit: 2048, completion: 2048 }
    }
}

impl SocketConfig {
    /// Frames that one socket can have at a time when all its rings are full.
    /// An area that serves several sockets needs the sum, and the worker's
    /// batches on top.
    pub fn frames(&self) -> u32 {
        [self.fill, self.receive, self.transmit, self.completion]
            .into_iter()
            .fold(0, u32::saturating_add)
    }
}

/// What a socket has seen since it was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames given to the worker.
    pub received: u64,
    /// Frames that the kernel has reported as sent.
    pub sent: u64,
    /// Frames that the kernel dropped because the fill ring was empty, or the
    /// frame was longer than a chunk holds.
    pub receive_dropped: u64,
    /// Frames that the kernel dropped because the receive ring was full.
    pub receive_ring_full: u64,
    /// Frames that [`Socket::send`] refused: not held by the worker, outside
    /// their chunk, or shorter than an Ethernet header.
    pub refused: u64,
    /// Frames whose place in the area the kernel refused.
    pub transmit_invalid: u64,
}

/// A bound AF_XDP socket.
#[derive(Debug)]
pub struct Socket {
    // The rings and the descriptor go before the memory that they refer to.
    receive: Consumer<Mapped<libc::xdp_desc>>,
    transmit: Producer<Mapped<libc::xdp_desc>>,
    fill: Producer<Mapped<u64>>,
    completion: Consumer<Mapped<u64>>,
    socket: OwnedFd,
    shared: Arc<Shared>,
    port: PortId,
    ifindex: u32,
    queue: u32,
    mode: Mode,
    /// Frames that one system call sends in copy mode.
    budget: u32,
    received: u64,
    sent: u64,
    refused: u64,
    /// Why the kernel last refused to work, until it works again: an errno.
    fault: Cell<Option<i32>>,
}

impl Socket {
    /// Binds a socket to a queue of a device in the calling thread's network
    /// namespace.
    ///
    /// What tells native copy from generic is how the XDP program is attached,
    /// which is the caller's part; here both mean copying. Right after another
    /// socket on the same queue was closed the kernel may take some
    /// milliseconds to let go of it; that is waited for, up to a second.
    ///
    /// # Errors
    /// When a privilege, the memlock limit, the device, or the mode on this
    /// device is missing; the error says what to do about it.
    pub fn bind(
        area: &Area,
        ifindex: u32,
        queue: u32,
        mode: Mode,
        config: &SocketConfig,
    ) -> Result<Self, SocketError> {
        Self::open(area, ifindex, queue, mode, config, None)
    }

    /// Binds a socket to another queue of the same device, in the same mode.
    /// The kernel has the area once for both, but each has rings of its own.
    /// `area` must be the one that this socket was bound with. Either may be
    /// closed first.
    ///
    /// # Errors
    /// As [`bind`](Self::bind). Kernels before 5.10 can't do it.
    pub fn beside(
        &self,
        area: &Area,
        queue: u32,
        config: &SocketConfig,
    ) -> Result<Self, SocketError> {
        if !area.is(&self.shared) {
            return Err(SocketError::OtherArea);
        }
        let beside = Some(self.socket.as_fd());
        Self::open(area, self.ifindex, queue, self.mode, config, beside)
    }

    fn open(
        area: &Area,
        ifindex: u32,
        queue: u32,
        mode: Mode,
        config: &SocketConfig,
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<Self, SocketError> {
        let shared = area.shared().clone();
        let port = shared.register().ok_or(SocketError::TooManySockets)?;
        match bind::open(area, ifindex, queue, mode, config, beside) {
            Ok(Parts { socket, receive, transmit, fill, completion, zero_copy, budget }) => {
                let mode = match (zero_copy, mode) {
                    (true, _) => Mode::NativeZeroCopy,
                    (false, Mode::NativeZeroCopy) => Mode::NativeCopy,
                    (false, mode) => mode,
                };
                Ok(Self {
                    receive,
                    transmit,
                    fill,
                    completion,
                    socket,
                    shared,
                    port,
                    ifindex,
                    queue,
                    mode,
                    budget,
                    received: 0,
                    sent: 0,
                    refused: 0,
                    fault: Cell::new(None),
                })
            }
            Err(error) => {
                shared.unregister(port);
                Err(error)
            }
        }
    }

    /// The mode in force: whether it is zero copy was read back from the kernel.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The device's index and the queue.
    pub fn queue(&self) -> (u32, u32) {
        (self.ifindex, self.queue)
    }

    /// Gives up to `room` received frames to `take`, and returns their number.
    /// The worker holds their chunks from then on. Nothing when `area` is not
    /// the one that the socket was bound with.
    #[inline]
    pub fn receive(
        &mut self,
        area: &mut Area,
        room: u32,
        mut take: impl FnMut(Descriptor),
    ) -> usize {
        if !area.is(&self.shared) {
            return 0;
        }
        let waiting = self.receive.available(room).min(room);
        let mut taken = 0;
        for _ in 0..waiting {
            let Some(slot) = self.receive.pop() else { break };
            // A frame that is not lent to this socket would be the kernel's
            // error; it is left alone.
            if let Some(frame) = area.receive(self.port, slot.addr, slot.len) {
                taken += 1;
                take(frame);
            }
        }
        if waiting > 0 {
            self.receive.release();
        }
        self.received += taken as u64;
        taken
    }

    /// Takes frames from the worker to send, as many as the transmit ring has
    /// room for, and returns their number; the kernel gets to work on them with
    /// [`wake`](Self::wake). Frames beyond that are still the worker's. A frame
    /// that can't be sent is taken, counted as refused, and its chunk freed.
    #[inline]
    pub fn send(&mut self, area: &mut Area, frames: impl Iterator<Item = Descriptor>) -> usize {
        if !area.is(&self.shared) {
            return 0;
        }
        let wanted = u32::try_from(frames.size_hint().0).unwrap_or(u32::MAX).max(1);
        let room = self.transmit.room(wanted);
        let mut taken = 0;
        for frame in frames.take(room as usize) {
            taken += 1;
            if frame.len >= MIN_FRAME && area.lend(self.port, frame) {
                let addr = area.offset(frame.chunk, frame.head);
                self.transmit.push(libc::xdp_desc { addr, len: frame.len, options: 0 });
            } else {
                area.release(frame.chunk);
                self.refused += 1;
            }
        }
        if taken > 0 {
            self.transmit.publish();
        }
        taken
    }

    /// Makes the kernel send what it was given, where it waits to be told.
    #[inline]
    pub fn wake(&mut self) {
        if self.transmit.pending() > 0 && self.transmit.wants_waking() {
            self.kick();
        }
    }

    /// The system calls of [`wake`](Self::wake). In copy mode the frames are
    /// sent during the call, `budget` at a time; with zero copy the driver is
    /// only set going.
    fn kick(&mut self) {
        let calls = match self.mode {
            Mode::NativeZeroCopy => 1,
            _ => self.transmit.size().div_ceil(self.budget),
        };
        for _ in 0..calls {
            let before = self.transmit.pending();
            match self.send_call() {
                Ok(()) => self.fault.set(None),
                // Copy mode says so when the budget is used up with frames
                // left, or the completion ring is full; a driver, when it is
                // at work already.
                Err(libc::EAGAIN) => {}
                // No memory for a packet, or a queue of the device is full.
                // The frames stay in the ring for the next time.
                Err(libc::ENOBUFS | libc::ENOMEM | libc::EBUSY | libc::EINTR) => return,
                // The device is down or gone; or something that nobody has
                // met. Either way the frames stay; `fault` says why.
                Err(errno) => {
                    self.fault.set(Some(errno));
                    return;
                }
            }
            let after = self.transmit.pending();
            if after == 0 || after == before {
                return;
            }
        }
    }

    fn send_call(&self) -> Result<(), i32> {
        let nothing = std::ptr::null();
        // SAFETY: no data and no address are passed.
        let sent = unsafe {
            libc::sendto(self.socket.as_raw_fd(), nothing, 0, libc::MSG_DONTWAIT, nothing.cast(), 0)
        };
        if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    }

    /// Takes back the frames that have been sent.
    #[inline]
    pub fn reclaim(&mut self, area: &mut Area) {
        if !area.is(&self.shared) {
            return;
        }
        let waiting = self.completion.available(u32::MAX);
        for _ in 0..waiting {
            let Some(offset) = self.completion.pop() else { break };
            self.sent += u64::from(area.complete(self.port, offset));
        }
        if waiting > 0 {
            self.completion.release();
        }
    }

    /// Stocks the fill ring from the area's free chunks, and wakes a driver
    /// that has run out of frames.
    #[inline]
    pub fn refill(&mut self, area: &mut Area) {
        if !area.is(&self.shared) {
            return;
        }
        // Full batches only, so that the kernel's counter is not loaded, and
        // ours not stored, for every frame.
        let batch = self.fill.size() / 8;
        let room = self.fill.room(batch);
        if room >= batch.max(1) {
            for _ in 0..room {
                let Some(chunk) = area.lend_free(self.port) else { break };
                self.fill.push(area.offset(chunk, 0));
            }
            self.fill.publish();
        }
        if self.mode == Mode::NativeZeroCopy && self.fill.wants_waking() {
            self.receive_call();
        }
    }

    /// Lets the driver look at the fill ring again.
    fn receive_call(&self) {
        let nothing = std::ptr::null_mut();
        let (descriptor, flags) = (self.socket.as_raw_fd(), libc::MSG_DONTWAIT);
        let no_address = std::ptr::null_mut();
        let no_length = std::ptr::null_mut();
        // The result tells nothing that the flag will not tell again.
        // SAFETY: neither a buffer nor an address is passed.
        unsafe { libc::recvfrom(descriptor, nothing, 0, flags, no_address, no_length) };
    }

    /// Counters since the socket was bound.
    pub fn statistics(&self) -> Statistics {
        let kernel: libc::xdp_statistics =
            sys::get_option(self.socket.as_fd(), libc::SOL_XDP, libc::XDP_STATISTICS)
                .unwrap_or_else(|_| sys::zeroed());
        Statistics {
            received: self.received,
            sent: self.sent,
            receive_dropped: kernel.rx_dropped,
            receive_ring_full: kernel.rx_ring_full,
            refused: self.refused,
            transmit_invalid: kernel.tx_invalid_descs,
        }
    }

    /// Why the kernel does not work on this socket at the moment: `ENETDOWN`
    /// when the device is down or gone. It clears when frames go out again.
    pub fn fault(&self) -> Option<io::Error> {
        // The kernel leaves a note here when the device is unregistered.
        let pending: i32 =
            sys::get_option(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0);
        if pending != 0 {
            self.fault.set(Some(pending));
        }
        self.fault.get().map(io::Error::from_raw_os_error)
    }

    /// Whether the device is down or gone, as far as has been noticed.
    pub fn is_down(&self) -> bool {
        let errno = self.fault().and_then(|fault| fault.raw_os_error());
        matches!(errno, Some(libc::ENETDOWN | libc::ENODEV | libc::ENXIO))
    }

    /// Closes the socket and frees the chunks that it had; their number is
    /// returned. Frames that were received but not taken, or not yet sent, are
    /// lost.
    ///
    /// The kernel lets go of the memory some time after the descriptor is
    /// closed. That is waited for, up to a second: when it takes longer, the
    /// chunks stay lent and zero is returned. The same when `area` is not the
    /// one that the socket was bound with. Call it in the network namespace
    /// that the device is in.
    pub fn close(self, area: &mut Area) -> u32 {
        let Self { receive, transmit, fill, completion, socket, shared, port, .. } = self;
        drop((receive, transmit, fill, completion, socket));
        if !area.is(&shared) || !bind::wait_until_free(self.ifindex, self.queue) {
            return 0;
        }
        let returned = area.return_all(port);
        shared.unregister(port);
        returned
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_by_their_labels() {
        for mode in Mode::ALL {
            assert_eq!(mode.label().parse(), Ok(mode));
        }
        assert_eq!("auto".parse::<Mode>(), Err(UnknownMode("auto".to_owned())));
        assert_eq!(Mode::NativeZeroCopy.to_string(), "native zero copy");
        assert!(Mode::NativeCopy.native() && !Mode::Generic.native());
    }

    #[test]
    fn a_socket_can_move_to_its_worker() {
        fn sendable<T: Send>() {}
        sendable::<Socket>();
        sendable::<Area>();
    }
}
