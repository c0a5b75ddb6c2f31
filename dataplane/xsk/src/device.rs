//! What ethtool and the kernel's link tables know of devices.
//!
//! Names and indices are those of the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::os;

/// `struct ifreq` as far as ethtool uses it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut libc::c_void,
    _rest: [u8; 16],
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_CHANNELS: u32 = 0x3c;
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_TSO: u32 = 0x1f;
const SET_GSO: u32 = 0x24;

/// Index of a device by its name.
pub fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `name` ends with a zero and is readable during the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Name of a device by its index.
pub fn name(index: u32) -> io::Result<String> {
    let mut name = [0u8; libc::IFNAMSIZ];
    // SAFETY: `name` is writable for IFNAMSIZ bytes, which is what the call
    // may write.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null() {
        return Err(io::Error::last_os_error());
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Number of receive queues that the device has in use; 1 where the driver does
/// not tell.
pub fn channels(name: &str) -> io::Result<u32> {
    // `struct ethtool_channels`: command, maxima of four kinds, counts of
    // receive, transmit, other and combined channels.
    let mut channels = [0u32; 9];
    channels[0] = GET_CHANNELS;
    match ethtool(name, &mut channels) {
        Ok(()) => Ok((channels[5] + channels[8]).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error),
    }
}

/// Switches off what leaves work on a frame to the device: unfinished
/// checksums, and segments still in one piece. Frames on a veth otherwise arrive
/// that way.
pub fn disable_offloads(name: &str) -> io::Result<()> {
    for command in [SET_TX_CHECKSUM, SET_TSO, SET_GSO] {
        match ethtool(name, &mut [command, 0]) {
            // What the device does not have needs no switching off.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Makes an ethtool request whose structure is all 32-bit words.
fn ethtool<const N: usize>(name: &str, words: &mut [u32; N]) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = os::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request =
        Request { name: [0; libc::IFNAMSIZ], data: words.as_mut_ptr().cast(), _rest: [0; 16] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: `request` is as large as `struct ifreq`, and its pointer leads to
    // `words`, which are as many as the command reads and writes; both live
    // during the call.
    os::check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) })?;
    Ok(())
}

/// An XDP program that is on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// The program's number.
    pub id: u32,
    /// How it is attached: native, generic, offloaded.
    pub way: &'static str,
}

const NLMSG_HEADER: usize = 16;
const IFINFO: usize = 16;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;

/// The XDP program on a device, if there is one.
pub fn xdp_program(index: u32) -> io::Result<Option<XdpProgram>> {
    let socket = os::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    let answer = ask_link(&socket, index)?;
    let body = answer.get(NLMSG_HEADER + IFINFO..).unwrap_or_default();
    let Some((_, xdp)) = attributes(body).find(|(kind, _)| *kind == IFLA_XDP) else {
        return Ok(None);
    };
    let value = |wanted| attributes(xdp).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let way = match value(IFLA_XDP_ATTACHED).and_then(|value| value.first().copied()) {
        None | Some(0) => return Ok(None),
        Some(1) => "native",
        Some(2) => "generic",
        Some(3) => "offloaded",
        Some(_) => "in several ways",
    };
    let id = value(IFLA_XDP_PROG_ID).and_then(|value| value.first_chunk());
    Ok(Some(XdpProgram { id: id.map_or(0, |bytes| u32::from_ne_bytes(*bytes)), way }))
}

/// The kernel's answer to RTM_GETLINK for one device.
fn ask_link(socket: &OwnedFd, index: u32) -> io::Result<Vec<u8>> {
    let mut request = [0u8; NLMSG_HEADER + IFINFO];
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    // SAFETY: `request` is readable for its length during the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    os::check(sent as libc::c_int)?;
    let mut answer = vec![0u8; 64 << 10];
    // SAFETY: `answer` is writable for its length during the call.
    let read =
        unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    answer.truncate(os::check(read as libc::c_int)? as usize);
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if kind != Some(libc::RTM_NEWLINK) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(answer)
}

/// The attributes of a netlink message: kind and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        // The two upper bits are flags.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known() {
        let lo = index("lo").unwrap();
        assert_eq!(name(lo).unwrap(), "lo");
        assert_eq!(channels("lo").unwrap(), 1);
        assert_eq!(xdp_program(lo).unwrap(), None);
    }

    #[test]
    fn devices_that_are_not_there_are_errors() {
        assert!(index("no-such-device").is_err());
        assert!(index("a\0b").is_err());
        assert!(name(u32::MAX).is_err());
        assert!(channels("no-such-device").is_err());
        assert!(channels("a-name-that-is-longer-than-any").is_err());
        assert!(disable_offloads("no-such-device").is_err());
        assert!(xdp_program(0x7fff_fff0).is_err());
    }
}
