//! Keeping the kernel quiet about VXLAN that a packet socket has taken.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::sys::{self, filter_step};

/// Why there is no sink.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Someone has the port, such as the kernel's vxlan device. No harm: then
    /// the kernel has somewhere to deliver to, and does not answer either.
    #[error("UDP port {port} is in use")]
    InUse {
        /// The port.
        port: u16,
    },
    /// Anything else.
    #[error("UDP port {port}: {source}")]
    System {
        /// The port.
        port: u16,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Takes everything that comes to a UDP port and drops it. Without it, the
/// kernel would answer each VXLAN frame with "port unreachable", because it
/// sees them as well as the packet socket does.
#[derive(Debug)]
pub struct UdpSink {
    _v4: OwnedFd,
    /// None where the kernel has no IPv6.
    _v6: Option<OwnedFd>,
}

impl UdpSink {
    /// Opens a sink on all addresses of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When someone else has the port.
    pub fn open(port: u16) -> Result<Self, SinkError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => SinkError::InUse { port },
            _ => SinkError::System { port, source },
        };
        let v4 = open_v4(port).map_err(failed)?;
        let v6 = match open_v6(port) {
            Ok(v6) => Some(v6),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                ) =>
            {
                None
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { _v4: v4, _v6: v6 })
    }
}

/// Drops everything before it is queued.
fn deaf_socket(domain: libc::c_int) -> io::Result<OwnedFd> {
    const NOTHING: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let socket = sys::socket(domain, libc::SOCK_DGRAM, 0)?;
    sys::attach_filter(socket.as_fd(), &[filter_step(NOTHING, 0, 0, 0)])?;
    Ok(socket)
}

fn open_v4(port: u16) -> io::Result<OwnedFd> {
    let socket = deaf_socket(libc::AF_INET)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    };
    bind(&socket, &address)?;
    Ok(socket)
}

fn open_v6(port: u16) -> io::Result<OwnedFd> {
    let socket = deaf_socket(libc::AF_INET6)?;
    let on: libc::c_int = 1;
    sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &on)?;
    let address = libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as u16,
        sin6_port: port.to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    };
    bind(&socket, &address)?;
    Ok(socket)
}

/// An address that bind(2) takes.
///
/// # Safety
/// The type must be a socket address without padding.
unsafe trait Address {}
// SAFETY: it is one, and names its padding.
unsafe impl Address for libc::sockaddr_in {}
// SAFETY: it is one, and has no padding.
unsafe impl Address for libc::sockaddr_in6 {}

fn bind<A: Address>(socket: &OwnedFd, address: &A) -> io::Result<()> {
    let length = size_of::<A>() as libc::socklen_t;
    let pointer = (&raw const *address).cast();
    // SAFETY: `pointer` is valid for reading `length` bytes.
    sys::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) })?;
    Ok(())
}
