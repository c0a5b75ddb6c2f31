//! Many frames in one system call, read and written in the area itself.

use std::ffi::c_void;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use super::offload::VnetHeader;
use crate::area::{Area, Descriptor};

/// Frames per system call.
pub(super) const BATCH: usize = 64;

/// What one frame came with.
#[derive(Clone, Copy, Default)]
pub(super) struct Received {
    pub(super) header: VnetHeader,
    /// The frame's length; `None` when it did not fit.
    pub(super) length: Option<u32>,
}

/// The arguments of recvmmsg and sendmmsg: each message is an offload header
/// and a frame.
struct Arguments {
    headers: [VnetHeader; BATCH],
    parts: [[libc::iovec; 2]; BATCH],
    messages: [libc::mmsghdr; BATCH],
}

impl Arguments {
    fn new() -> Self {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: all zeros are null pointers and empty lengths.
        let message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        Self {
            headers: [VnetHeader::default(); BATCH],
            parts: [[nothing; 2]; BATCH],
            messages: [message; BATCH],
        }
    }

    /// Points the messages at frames, up to the first that the worker does not
    /// hold, and returns their number. The pointers are good until `self` or
    /// `area` is touched again.
    fn point_at(&mut self, area: &mut Area, frames: &[Descriptor]) -> usize {
        let messages = self.messages.iter_mut().zip(&mut self.parts).zip(&mut self.headers);
        let mut count = 0;
        for (frame, ((message, parts), header)) in frames.iter().zip(messages) {
            let Some(place) = area.address(frame.chunk, frame.head, frame.len) else { break };
            parts[0].iov_base = (&raw mut *header).cast::<c_void>();
            parts[0].iov_len = size_of::<VnetHeader>();
            parts[1].iov_base = place.as_ptr().cast();
            parts[1].iov_len = frame.len as usize;
            message.msg_hdr.msg_iov = parts.as_mut_ptr();
            message.msg_hdr.msg_iovlen = 2;
            count += 1;
        }
        count
    }
}

/// Receives into frames that the worker holds, as many as wait and fit, and
/// returns their number.
pub(super) fn receive(
    socket: &OwnedFd,
    area: &mut Area,
    frames: &[Descriptor],
) -> (usize, [Received; BATCH]) {
    let mut received = [Received::default(); BATCH];
    let mut arguments = Arguments::new();
    let count = arguments.point_at(area, frames) as u32;
    if count == 0 {
        return (0, received);
    }
    let messages = arguments.messages.as_mut_ptr();
    let (descriptor, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    let no_timeout = std::ptr::null_mut();
    // SAFETY: the first `count` messages point to headers in `arguments` and
    // frames that the worker holds, each valid for writing its length; `area`
    // is borrowed mutably, so nobody else refers to them.
    let came = unsafe { libc::recvmmsg(descriptor, messages, count, flags, no_timeout) };
    // Nothing there is an error as well; and any other shows in a later call.
    let came = usize::try_from(came).unwrap_or(0);
    for (index, slot) in received.iter_mut().enumerate().take(came) {
        let message = &arguments.messages[index];
        slot.header = arguments.headers[index];
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        let length = message.msg_len.checked_sub(size_of::<VnetHeader>() as u32);
        slot.length = length.filter(|_| whole);
    }
    (came, received)
}

/// Sends frames that the worker holds, and returns how many the kernel has
/// taken, and the errno of the one after those.
pub(super) fn send(
    socket: &OwnedFd,
    area: &mut Area,
    frames: &[Descriptor],
) -> (usize, Option<i32>) {
    let mut arguments = Arguments::new();
    let count = arguments.point_at(area, frames);
    let messages = arguments.messages.as_mut_ptr();
    let (descriptor, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT);
    let mut sent = 0;
    // An error after the first message is only told by the next call.
    while sent < count {
        // SAFETY: `sent` is below the number of messages.
        let rest = unsafe { messages.add(sent) };
        // SAFETY: the messages from `sent` to `count` point to headers in
        // `arguments` and frames that the worker holds, each valid for reading
        // its length; `area` is borrowed mutably, so nobody writes to them.
        let taken = unsafe { libc::sendmmsg(descriptor, rest, (count - sent) as u32, flags) };
        match usize::try_from(taken) {
            Ok(0) => break,
            Ok(taken) => sent += taken,
            Err(_) => return (sent, io::Error::last_os_error().raw_os_error()),
        }
    }
    (sent, None)
}
