//! The packet socket: the same frames without AF_XDP, for machines and user
//! namespaces where XDP is not permitted.
//!
//! A packet socket sees copies: the kernel gets every frame as well. It must
//! therefore be kept from answering ([`UdpSink`]), and frames to the gateway
//! carry a MAC that is no device's. Frames are taken and sent with a virtio
//! header in front, which tells of unfinished checksums; they are finished
//! here.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::area::{Area, Descriptor};
use crate::os;

/// Bytes left free before every received frame, as XDP leaves them.
const HEADROOM: u32 = 256;

/// Frames per system call.
const BURST: usize = 64;

/// Which frames a packet socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// UDP to this port over untagged IPv4 or IPv6, no fragments.
    UdpTo(u16),
    /// Every untagged frame.
    All,
}

/// `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Virtio {
    flags: u8,
    segmentation: u8,
    header_len: u16,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

/// The checksum from `checksum_start` on is to be finished.
const NEEDS_CHECKSUM: u8 = 1;

/// What a socket has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames lost because we were slow, had no chunk free, or they were
    /// larger than a chunk or several segments in one.
    pub receive_dropped: u64,
    /// Frames that the kernel refused to send.
    pub refused: u64,
}

/// A packet socket on one device.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    received: u64,
    sent: u64,
    dropped: u64,
    refused: u64,
    /// The kernel's own count of lost frames, which reading resets.
    lost: Cell<u64>,
    headers: Box<[Virtio; BURST]>,
}

impl PacketSocket {
    /// Opens the device with this index.
    pub fn open(device: u32, take: Take) -> io::Result<Self> {
        // No protocol: nothing arrives before the filter is in place.
        let fd = os::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        filter(&fd, &take.program())?;
        os::set_option(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)?;
        os::set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        // A buffer for bursts; the limit is as far as we may go.
        let bytes = 8i32 << 20;
        let _ = os::set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
            .or_else(|_| os::set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes));
        // SAFETY: a structure of numbers, for which zeros are a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = device as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is readable for `len` bytes during the call.
        os::check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        Ok(Self {
            fd,
            received: 0,
            sent: 0,
            dropped: 0,
            refused: 0,
            lost: Cell::new(0),
            headers: Box::new([Virtio::default(); BURST]),
        })
    }

    /// Hands up to `room` received frames to `take`; their chunks are then the
    /// worker's. Returns their number.
    pub fn receive(
        &mut self,
        area: &mut Area,
        room: u32,
        mut take: impl FnMut(Descriptor),
    ) -> usize {
        let mut taken = 0;
        for _ in 0..room {
            let Some(chunk) = area.allocate() else {
                self.discard();
                break;
            };
            match self.receive_into(area, chunk) {
                Some(Received::Frame(descriptor)) => {
                    take(descriptor);
                    taken += 1;
                }
                Some(Received::Unfit) => {
                    self.dropped += 1;
                    let _held = area.release(chunk);
                }
                None => {
                    let _held = area.release(chunk);
                    break;
                }
            }
        }
        self.received += taken as u64;
        taken
    }

    fn receive_into(&mut self, area: &mut Area, chunk: u32) -> Option<Received> {
        let room = area.chunk_size() - HEADROOM;
        let mut virtio = Virtio::default();
        let bytes = area.bytes_mut(chunk, HEADROOM, room);
        let mut parts = [
            libc::iovec { iov_base: (&raw mut virtio).cast(), iov_len: size_of::<Virtio>() },
            libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
        ];
        // SAFETY: a structure of numbers and pointers, for which zeros are a
        // value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_mut_ptr();
        message.msg_iovlen = parts.len();
        // SAFETY: `message` and what it points to are writable for their
        // lengths during the call; `virtio` takes any bytes.
        let read =
            unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let read = usize::try_from(read).ok()?;
        let len = read.saturating_sub(size_of::<Virtio>());
        if message.msg_flags & libc::MSG_TRUNC != 0 || virtio.segmentation != 0 {
            return Some(Received::Unfit);
        }
        if virtio.flags & NEEDS_CHECKSUM != 0 {
            let frame = bytes.get_mut(..len).unwrap_or_default();
            let (start, offset) = (virtio.checksum_start, virtio.checksum_offset);
            finish_checksum(frame, usize::from(start), usize::from(offset));
        }
        Some(Received::Frame(Descriptor { chunk, head: HEADROOM, len: len as u32 }))
    }

    /// Reads a frame away that there is no chunk for.
    fn discard(&mut self) {
        // SAFETY: no buffer is passed; the frame is dropped by the kernel.
        let read =
            unsafe { libc::recv(self.fd.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
        self.dropped += u64::from(read >= 0);
    }

    /// Sends frames of the worker, as many as the kernel takes, and returns
    /// their number; their chunks are then free.
    pub fn send(&mut self, area: &mut Area, frames: impl Iterator<Item = Descriptor>) -> usize {
        let mut burst = [Descriptor { chunk: 0, head: 0, len: 0 }; BURST];
        let mut taken = 0;
        let mut frames = frames.peekable();
        while frames.peek().is_some() {
            let mut count = 0;
            for (at, frame) in burst.iter_mut().zip(&mut frames) {
                *at = frame;
                count += 1;
            }
            let sent = self.send_burst(area, &burst[..count]);
            for frame in &burst[..sent] {
                let held = area.release(frame.chunk);
                debug_assert!(held);
            }
            taken += sent;
            if sent < count {
                break;
            }
        }
        taken
    }

    /// Sends a burst; returns how many frames are done with, the one that the
    /// kernel refused for good included.
    fn send_burst(&mut self, area: &Area, burst: &[Descriptor]) -> usize {
        // SAFETY (both): structures of numbers and pointers, for which zeros
        // are a value.
        let mut parts: [[libc::iovec; 2]; BURST] = unsafe { std::mem::zeroed() };
        // SAFETY: see above.
        let mut messages: [libc::mmsghdr; BURST] = unsafe { std::mem::zeroed() };
        for (at, frame) in burst.iter().enumerate() {
            let bytes = area.bytes(frame.chunk, frame.head, frame.len);
            parts[at] = [
                libc::iovec {
                    iov_base: (&raw mut self.headers[at]).cast(),
                    iov_len: size_of::<Virtio>(),
                },
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() },
            ];
            messages[at].msg_hdr.msg_iov = parts[at].as_mut_ptr();
            messages[at].msg_hdr.msg_iovlen = 2;
        }
        // SAFETY: the messages and what they point to live during the call,
        // which only reads the frames and headers.
        let sent = unsafe {
            libc::sendmmsg(
                self.fd.as_raw_fd(),
                messages.as_mut_ptr(),
                burst.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        if let Ok(sent) = usize::try_from(sent) {
            self.sent += sent as u64;
            return sent;
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => 0,
            // The first frame is the one that it refused.
            _ => {
                self.refused += 1;
                1
            }
        }
    }

    /// Own counts and the kernel's.
    pub fn statistics(&self) -> Statistics {
        // `struct tpacket_stats`: packets, drops.
        let mut kernel = [0u32; 2];
        if os::get_option(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut kernel).is_ok()
        {
            self.lost.set(self.lost.get() + u64::from(kernel[1]));
        }
        Statistics {
            received: self.received,
            sent: self.sent,
            receive_dropped: self.dropped + self.lost.get(),
            refused: self.refused,
        }
    }
}

enum Received {
    Frame(Descriptor),
    /// Too large, or several segments in one.
    Unfit,
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Finishes a checksum whose field holds the sum of the pseudo header (RFC
/// 1071).
fn finish_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let Some(covered) = frame.get_mut(start..) else { return };
    let mut sum: u64 = covered
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let Some(field) = covered.get_mut(offset..offset.saturating_add(2)) else { return };
    // All ones for a sum of zero: right for UDP, and the same value elsewhere.
    let value = match !(sum as u16) {
        0 => 0xffff,
        value => value,
    };
    field.copy_from_slice(&value.to_be_bytes());
}

/// A UDP socket that holds a port and drops all that comes, so that the kernel
/// does not answer with port unreachable what a packet socket has taken.
#[derive(Debug)]
pub struct UdpSink(#[allow(dead_code, reason = "held for its end")] [OwnedFd; 2]);

impl UdpSink {
    /// Holds a port of both families.
    pub fn open(port: u16) -> io::Result<Self> {
        let v4 = os::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let v6 = os::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)?;
        os::set_option(&v6, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1i32)?;
        for socket in [&v4, &v6] {
            filter(socket, &[statement(RETURN, 0)])?;
        }
        // SAFETY (both): structures of numbers, for which zeros are a value.
        let mut any_v4: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        // SAFETY: see above.
        let mut any_v6: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        any_v4.sin_family = libc::AF_INET as u16;
        any_v4.sin_port = port.to_be();
        any_v6.sin6_family = libc::AF_INET6 as u16;
        any_v6.sin6_port = port.to_be();
        let len = |size: usize| size as libc::socklen_t;
        let size = len(size_of_val(&any_v4));
        // SAFETY: the address is readable for its size during the call.
        os::check(unsafe { libc::bind(v4.as_raw_fd(), (&raw const any_v4).cast(), size) })?;
        let size = len(size_of_val(&any_v6));
        // SAFETY: as above.
        os::check(unsafe { libc::bind(v6.as_raw_fd(), (&raw const any_v6).cast(), size) })?;
        Ok(Self([v4, v6]))
    }
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const LOAD_HEADER_LEN: u16 = 0xb1;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Whether the frame had a VLAN tag, which the kernel has taken out
/// (`SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT`).
const VLAN_PRESENT: u32 = (-0x1000i32 + 48) as u32;

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Jumps over `yes` or `no` instructions.
const fn jump(code: u16, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: yes, jf: no, k }
}

impl Take {
    /// The classic BPF program that takes these frames.
    fn program(self) -> Vec<libc::sock_filter> {
        let untagged = [statement(LOAD_WORD, VLAN_PRESENT), jump(JUMP_EQUAL, 0, 1, 0)];
        let (take, drop) = (statement(RETURN, u32::MAX), statement(RETURN, 0));
        match self {
            Self::All => [&untagged[..], &[drop, take]].concat(),
            Self::UdpTo(port) => {
                let port = u32::from(port);
                let udp = libc::IPPROTO_UDP as u32;
                [
                    &untagged[..],
                    &[
                        drop,
                        statement(LOAD_HALF, 12),
                        jump(JUMP_EQUAL, 0x0800, 0, 7),
                        statement(LOAD_BYTE, 23),
                        jump(JUMP_EQUAL, udp, 0, 10),
                        statement(LOAD_HALF, 20),
                        jump(JUMP_SET, 0x3fff, 8, 0),
                        statement(LOAD_HEADER_LEN, 14),
                        statement(LOAD_HALF_INDEXED, 16),
                        jump(JUMP_EQUAL, port, 6, 5),
                        jump(JUMP_EQUAL, 0x86dd, 0, 4),
                        statement(LOAD_BYTE, 20),
                        jump(JUMP_EQUAL, udp, 0, 2),
                        statement(LOAD_HALF, 56),
                        jump(JUMP_EQUAL, port, 1, 0),
                        drop,
                        take,
                    ],
                ]
                .concat()
            }
        }
    }
}

/// Attaches a classic BPF program to a socket.
fn filter(socket: &OwnedFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    os::set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_finished() {
        // A UDP header from port 1 to 2 with the pseudo header's sum 0x1234.
        let mut frame = vec![0xaa; 4];
        frame.extend([0, 1, 0, 2, 0, 9, 0x12, 0x34, 0xff]);
        finish_checksum(&mut frame, 4, 6);
        // 1 + 2 + 9 + 0x1234 + 0xff00 = 0x11140 -> 0x1141 -> !0x1141
        assert_eq!(frame[10..12], [0xee, 0xbe]);
        finish_checksum(&mut frame, 400, 6);
        finish_checksum(&mut frame, 4, 400);
        finish_checksum(&mut [], 0, 0);
    }
}
