//! The port for where AF_XDP can't be had: a packet socket.
//!
//! It needs only `CAP_NET_RAW`, works on any device, and copies each frame
//! between the kernel and the worker's [`Area`] once. The kernel goes on to see
//! every frame as well.
//!
//! What it gives the worker is what was on the wire: frames that this machine
//! sends itself are ignored, checksums that a local sender left for the device
//! to finish are finished, and super-frames of several packets are dropped and
//! counted, as they were never on a wire. A VLAN tag is taken off a frame by
//! the kernel before a packet socket sees it, so that tagged frames would look
//! untagged: they are ignored.

use std::cell::Cell;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::area::{Area, Descriptor, HEADROOM};
use crate::sys::{self, filter_step};

mod messages;
mod offload;
mod sink;

use messages::{BATCH, Received};
pub use sink::{SinkError, UdpSink};

/// The shortest frame that is sent: an Ethernet header.
const MIN_FRAME: u32 = 14;

/// Why there is no packet socket.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// Packet sockets need `CAP_NET_RAW`.
    #[error(
        "no permission to open a packet socket: it needs CAP_NET_RAW; in Kubernetes, add it to the \
         container's securityContext"
    )]
    Permission,
    /// The device is gone, or in another network namespace.
    #[error("there is no device {ifindex} in this network namespace")]
    NoDevice {
        /// The device's index.
        ifindex: u32,
    },
    /// Anything else.
    #[error("packet socket on device {ifindex}: {step}: {source}")]
    System {
        /// The device's index.
        ifindex: u32,
        /// What was being done.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Which frames a packet socket takes; never those with a VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// UDP to this port, directly over IPv4 or IPv6, no fragments.
    UdpTo(u16),
    /// Every frame.
    All,
}

/// What a packet socket has seen since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames given to the worker.
    pub received: u64,
    /// Frames that the kernel took to send.
    pub sent: u64,
    /// Frames lost because the worker was too slow, and frames that were
    /// longer than a chunk or no single packet.
    pub receive_dropped: u64,
    /// Frames that were not sent: malformed, longer than the MTU, or refused by
    /// the device.
    pub refused: u64,
}

/// A packet socket on one device.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    received: u64,
    sent: u64,
    refused: u64,
    /// Frames that came whole but are not for the worker.
    unusable: u64,
    /// The kernel's count, which starts anew whenever it is read.
    kernel_dropped: Cell<u64>,
}

impl PacketSocket {
    /// Opens a packet socket on a device of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When the privilege or the device is missing.
    pub fn open(ifindex: u32, take: Take) -> Result<Self, PacketError> {
        let failed = |step| move |source| PacketError::System { ifindex, step, source };
        // Protocol 0: nothing is received before the socket is set up.
        let socket =
            sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(|source| {
                match source.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => PacketError::Permission,
                    _ => failed("opening")(source),
                }
            })?;
        let on: libc::c_int = 1;
        for (option, step) in [
            (libc::PACKET_VNET_HDR, "asking for offload headers"),
            (libc::PACKET_IGNORE_OUTGOING, "ignoring outgoing frames"),
            (libc::PACKET_QDISC_BYPASS, "bypassing queueing"),
        ] {
            sys::set_option(socket.as_fd(), libc::SOL_PACKET, option, &on).map_err(failed(step))?;
        }
        enlarge_buffers(&socket);
        sys::attach_filter(socket.as_fd(), &take.program()).map_err(failed("choosing frames"))?;
        bind(&socket, ifindex).map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => PacketError::NoDevice { ifindex },
            _ => failed("binding")(source),
        })?;
        let (received, sent, refused, unusable) = (0, 0, 0, 0);
        Ok(Self { socket, received, sent, refused, unusable, kernel_dropped: Cell::new(0) })
    }

    /// Gives up to `room` received frames to `take`, and returns their number.
    /// The worker holds their chunks from then on.
    pub fn receive(
        &mut self,
        area: &mut Area,
        room: u32,
        mut take: impl FnMut(Descriptor),
    ) -> usize {
        let mut taken = 0;
        while taken < room as usize {
            let wanted = (room as usize - taken).min(BATCH);
            let (messages, usable) = self.receive_batch(area, wanted, &mut take);
            taken += usable;
            if messages < wanted {
                break;
            }
        }
        self.received += taken as u64;
        taken
    }

    /// One system call; returns how many frames came, and how many of those
    /// were given on.
    fn receive_batch(
        &mut self,
        area: &mut Area,
        wanted: usize,
        take: &mut impl FnMut(Descriptor),
    ) -> (usize, usize) {
        let mut frames = [Descriptor::default(); BATCH];
        let (head, len) = (HEADROOM, area.chunk_size() - HEADROOM);
        let mut count = 0;
        while count < wanted {
            let Some(chunk) = area.allocate() else { break };
            frames[count] = Descriptor { chunk, head, len };
            count += 1;
        }
        let frames = &mut frames[..count];
        let (came, messages) = messages::receive(&self.socket, area, frames);
        let mut usable = 0;
        for (index, (frame, message)) in frames.iter_mut().zip(&messages).enumerate() {
            if index < came && self.finish(area, message, frame) {
                usable += 1;
                take(*frame);
            } else {
                area.release(frame.chunk);
            }
        }
        (came, usable)
    }

    /// Makes a received message a frame; `false` when it is none.
    fn finish(&mut self, area: &mut Area, message: &Received, frame: &mut Descriptor) -> bool {
        let usable = message.length.is_some_and(|length| {
            frame.len = length;
            let bytes = area.bytes_mut(frame.chunk, frame.head, frame.len);
            !message.header.is_super_frame() && message.header.finish_checksum(bytes)
        });
        self.unusable += u64::from(!usable);
        usable
    }

    /// Sends frames of the worker, as many as the kernel takes, frees their
    /// chunks, and returns their number. Frames beyond that are still the
    /// worker's. A frame that can't be sent is taken and counted as refused.
    pub fn send(&mut self, area: &mut Area, mut frames: impl Iterator<Item = Descriptor>) -> usize {
        let mut taken = 0;
        loop {
            let mut batch = [Descriptor::default(); BATCH];
            let mut count = 0;
            for (slot, frame) in batch.iter_mut().zip(frames.by_ref()) {
                *slot = frame;
                count += 1;
            }
            let sent = self.send_batch(area, &batch[..count]);
            taken += sent;
            if sent < count || count < BATCH {
                return taken;
            }
        }
    }

    /// Returns how many of the frames are done with, from the front.
    fn send_batch(&mut self, area: &mut Area, frames: &[Descriptor]) -> usize {
        let mut done = 0;
        while let Some(frame) = frames.get(done) {
            let sendable = |frame: &&Descriptor| {
                frame.len >= MIN_FRAME && area.address(frame.chunk, frame.head, frame.len).is_some()
            };
            let run = frames[done..].iter().take_while(sendable).count();
            if run == 0 {
                area.release(frame.chunk);
                self.refused += 1;
                done += 1;
                continue;
            }
            let run = &frames[done..done + run];
            let (sent, errno) = messages::send(&self.socket, area, run);
            for frame in &run[..sent] {
                area.release(frame.chunk);
            }
            self.sent += sent as u64;
            done += sent;
            match errno {
                None => {}
                // The socket's own buffer is full: later.
                Some(libc::EAGAIN | libc::EINTR) => return done,
                // The kernel has dropped the next frame, or never will send
                // it: too long, no memory, the device full, down or gone.
                Some(_) => {
                    if let Some(frame) = run.get(sent) {
                        area.release(frame.chunk);
                        self.refused += 1;
                        done += 1;
                    }
                }
            }
        }
        done
    }

    /// Counters since the socket was opened.
    pub fn statistics(&self) -> Statistics {
        let kernel: libc::tpacket_stats =
            sys::get_option(self.socket.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)
                .unwrap_or_else(|_| sys::zeroed());
        let dropped = self.kernel_dropped.get() + u64::from(kernel.tp_drops);
        self.kernel_dropped.set(dropped);
        Statistics {
            received: self.received,
            sent: self.sent,
            receive_dropped: dropped + self.unusable,
            refused: self.refused,
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
/// Beyond the header whose length was loaded last.
const LOAD_HALF_BEYOND: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
/// The length of the IPv4 header that begins at `k`.
const LOAD_HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The frame's VLAN tag was taken off by the kernel.
const TAG_PRESENT: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT) as u32;

impl Take {
    /// The classic BPF program that takes these frames; comments give the
    /// steps' numbers.
    fn program(self) -> Vec<libc::sock_filter> {
        let (take, drop) = (filter_step(RETURN, 0, 0, u32::MAX), filter_step(RETURN, 0, 0, 0));
        let untagged =
            [filter_step(LOAD_BYTE, 0, 0, TAG_PRESENT), filter_step(JUMP_EQUAL, 1, 0, 0), drop];
        let Self::UdpTo(port) = self else { return [&untagged[..], &[take]].concat() };
        let (port, udp) = (u32::from(port), libc::IPPROTO_UDP as u32);
        let vxlan = [
            filter_step(LOAD_HALF, 0, 0, 12),
            /* 4 */ filter_step(JUMP_EQUAL, 0, 7, 0x0800),
            filter_step(LOAD_BYTE, 0, 0, 14 + 9),
            /* 6 */ filter_step(JUMP_EQUAL, 0, 10, udp),
            // More fragments, or an offset.
            filter_step(LOAD_HALF, 0, 0, 14 + 6),
            /* 8 */ filter_step(JUMP_SET, 8, 0, 0x3fff),
            filter_step(LOAD_HEADER_LENGTH, 0, 0, 14),
            filter_step(LOAD_HALF_BEYOND, 0, 0, 14 + 2),
            /* 11 */ filter_step(JUMP_EQUAL, 6, 5, port),
            /* 12 */ filter_step(JUMP_EQUAL, 0, 4, 0x86dd),
            filter_step(LOAD_BYTE, 0, 0, 14 + 6),
            /* 14 */ filter_step(JUMP_EQUAL, 0, 2, udp),
            filter_step(LOAD_HALF, 0, 0, 14 + 40 + 2),
            /* 16 */ filter_step(JUMP_EQUAL, 1, 0, port),
            /* 17 */ drop,
            /* 18 */ take,
        ];
        [&untagged[..], &vxlan].concat()
    }
}

/// Bytes that may wait in each direction. The kernel counts some 700 for the
/// shortest frame, so that its default of 208 KiB is a burst of 300.
const BUFFER: libc::c_int = 8 << 20;

/// Past the system's limit with `CAP_NET_ADMIN`, else as far as that goes.
fn enlarge_buffers(socket: &OwnedFd) {
    for (forced, limited) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        let set = |option| sys::set_option(socket.as_fd(), libc::SOL_SOCKET, option, &BUFFER);
        // A small buffer works as well; it only drops sooner, which is counted.
        let _ = set(forced).or_else(|_| set(limited));
    }
}

fn bind(socket: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(ifindex)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    let pointer = (&raw const address).cast();
    // SAFETY: `pointer` is valid for reading `length` bytes.
    sys::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) })?;
    Ok(())
}
