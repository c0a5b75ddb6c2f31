//! Which XDP program a device has: only netlink tells (`IFLA_XDP` in
//! linux/if_link.h).

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys;

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Native,
    Generic,
    Hardware,
}

impl Hook {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Hardware => "hardware",
        }
    }
}

const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
/// Bytes of `struct nlmsghdr` and of `struct ifinfomsg`.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;

/// The ids of the programs on a device.
pub(crate) fn programs(ifindex: u32) -> io::Result<Vec<(u32, Hook)>> {
    let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    send(&socket, &request(ifindex))?;
    let mut buffer = vec![0; 64 * 1024];
    let length = receive(&socket, &mut buffer)?;
    let message = buffer.get(..length).unwrap_or_default();
    parse(message)
}

fn request(ifindex: u32) -> [u8; HEADER + LINK_HEADER] {
    let mut bytes = [0; HEADER + LINK_HEADER];
    bytes[0..4].copy_from_slice(&((HEADER + LINK_HEADER) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let pointer: *const c_void = bytes.as_ptr().cast();
    // SAFETY: `pointer` is valid for reading the bytes' length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), pointer, bytes.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    let pointer: *mut c_void = bytes.as_mut_ptr().cast();
    // SAFETY: `pointer` is valid for writing the bytes' length.
    let received = unsafe { libc::recv(socket.as_raw_fd(), pointer, bytes.len(), 0) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

fn parse(message: &[u8]) -> io::Result<Vec<(u32, Hook)>> {
    let kind = message.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if kind == Some(libc::NLMSG_ERROR as u16) {
        let errno = number(message.get(HEADER..).unwrap_or_default()).unwrap_or(0) as i32;
        return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
    }
    let attributes = message.get(HEADER + LINK_HEADER..).ok_or(io::ErrorKind::InvalidData)?;
    let mut programs = Vec::new();
    for (_, nested) in Attributes(attributes).filter(|(kind, _)| *kind == IFLA_XDP) {
        for (kind, value) in Attributes(nested) {
            let hook = match kind {
                IFLA_XDP_DRV_PROG_ID => Hook::Native,
                IFLA_XDP_SKB_PROG_ID => Hook::Generic,
                IFLA_XDP_HW_PROG_ID => Hook::Hardware,
                _ => continue,
            };
            programs.extend(number(value).map(|id| (id, hook)));
        }
    }
    Ok(programs)
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The attributes in a netlink message: length, kind, value, padding to four.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.0.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The two highest bits are flags.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn the_loopback_device_has_no_program() {
        assert_eq!(programs(1).unwrap(), []);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = programs(0x7fff_ffff).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn nested_ids_are_found() {
        let mut nested = attribute(2, &[1]);
        nested.extend(attribute(IFLA_XDP_DRV_PROG_ID, &42u32.to_ne_bytes()));
        let mut message = vec![0; HEADER + LINK_HEADER];
        message.extend(attribute(3, b"name\0"));
        message.extend(attribute(IFLA_XDP | 0x8000, &nested));
        assert_eq!(parse(&message).unwrap(), [(42, Hook::Native)]);
    }

    #[test]
    fn cut_messages_are_not_read_past_their_end() {
        let mut message = vec![0; HEADER + LINK_HEADER];
        message.extend(attribute(IFLA_XDP, &attribute(IFLA_XDP_SKB_PROG_ID, &[1, 0])));
        for end in 0..=message.len() {
            if let Ok(programs) = parse(&message[..end]) {
                assert_eq!(programs, []);
            }
        }
    }
}
