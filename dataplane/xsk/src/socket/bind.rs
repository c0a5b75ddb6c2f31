//! Opening an AF_XDP socket: options, rings, bind, and the meaning of errors.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::mapped::Mapped;
use super::{COPY_BATCH, Mode, SocketConfig};
use crate::area::Area;
use crate::memlock::{self, Limit};
use crate::ring::{Consumer, Producer};
use crate::sys;

/// `XDP_MAX_TX_SKB_BUDGET` (linux/if_xdp.h of newer kernels): how many frames one system
/// call sends in copy mode.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// How long a queue may take to come free after its last socket was closed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// AF_XDP sockets need `CAP_NET_RAW`.
    #[error(
        "no permission to open an AF_XDP socket: it needs CAP_NET_RAW; in Kubernetes, add it to \
         the container's securityContext, or run it privileged"
    )]
    Permission,
    /// The kernel was built without AF_XDP.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    NoKernelSupport,
    /// The area can't be pinned under the memlock limit.
    #[error(
        "registering {bytes} bytes of frames is over the limit on locked memory ({limit}): raise \
         it (ulimit -l; in Kubernetes, LimitMEMLOCK=infinity in the container runtime's systemd \
         unit), add CAP_IPC_LOCK, or use fewer frames"
    )]
    Memlock {
        /// What one socket pins. Others of the same user count as well.
        bytes: u64,
        /// The limit in force.
        limit: Limit,
    },
    /// The device or its driver can't do the mode.
    #[error("device {ifindex} can't do {mode} on queue {queue}: {source}")]
    Mode {
        /// The device's index.
        ifindex: u32,
        /// The queue.
        queue: u32,
        /// What was asked for.
        mode: Mode,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Someone else has a socket there.
    #[error("queue {queue} of device {ifindex} has an AF_XDP socket already; stop its owner")]
    Busy {
        /// The device's index.
        ifindex: u32,
        /// The queue.
        queue: u32,
    },
    /// The device is gone, or in another network namespace.
    #[error("there is no device {ifindex} in this network namespace")]
    NoDevice {
        /// The device's index.
        ifindex: u32,
    },
    /// Ring sizes are powers of two.
    #[error("a ring of {size} frames is not possible: use a power of two up to {MAX_RING}")]
    RingSize {
        /// What was asked for.
        size: u32,
    },
    /// An area serves at most 254 sockets.
    #[error("the area has too many sockets already")]
    TooManySockets,
    /// Sockets on one device share their memory only if it is the same area.
    #[error("a socket can't be bound beside one that uses another area")]
    OtherArea,
    /// Anything else.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Far above any use; keeps sizes in bytes from overflowing.
const MAX_RING: u32 = 1 << 20;

fn failed(step: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::System { step, source }
}

/// An open and bound socket, in pieces.
pub(super) struct Parts {
    pub(super) socket: OwnedFd,
    pub(super) receive: Consumer<Mapped<libc::xdp_desc>>,
    pub(super) transmit: Producer<Mapped<libc::xdp_desc>>,
    pub(super) fill: Producer<Mapped<u64>>,
    pub(super) completion: Consumer<Mapped<u64>>,
    pub(super) zero_copy: bool,
    pub(super) budget: u32,
}

/// With `beside`, the memory is not registered once more, but that socket's is
/// shared.
pub(super) fn open(
    area: &Area,
    ifindex: u32,
    queue: u32,
    mode: Mode,
    config: &SocketConfig,
    beside: Option<BorrowedFd<'_>>,
) -> Result<Parts, SocketError> {
    let rings = [
        (libc::XDP_UMEM_FILL_RING, config.fill),
        (libc::XDP_UMEM_COMPLETION_RING, config.completion),
        (libc::XDP_RX_RING, config.receive),
        (libc::XDP_TX_RING, config.transmit),
    ];
    if let Some((_, size)) =
        rings.iter().find(|(_, size)| !size.is_power_of_two() || *size > MAX_RING)
    {
        return Err(SocketError::RingSize { size: *size });
    }
    let socket = new_socket()?;
    let fd = socket.as_fd();
    if beside.is_none() {
        register(fd, area)?;
    }
    for (ring, size) in rings {
        sys::set_option(fd, libc::SOL_XDP, ring, &size).map_err(failed("making a ring"))?;
    }
    let layout: libc::xdp_mmap_offsets = sys::get_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
        .map_err(failed("reading the rings' layout"))?;
    let fill_at = libc::XDP_UMEM_PGOFF_FILL_RING as i64;
    let completion_at = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
    let fill = Mapped::new(fd, config.fill, fill_at, &layout.fr)
        .map_err(failed("mapping the fill ring"))?;
    let completion = Mapped::new(fd, config.completion, completion_at, &layout.cr)
        .map_err(failed("mapping the completion ring"))?;
    let receive = Mapped::new(fd, config.receive, libc::XDP_PGOFF_RX_RING, &layout.rx)
        .map_err(failed("mapping the receive ring"))?;
    let transmit = Mapped::new(fd, config.transmit, libc::XDP_PGOFF_TX_RING, &layout.tx)
        .map_err(failed("mapping the transmit ring"))?;
    let budget = raise_budget(fd, config.transmit);
    bind(fd, ifindex, queue, mode, beside)?;
    let options: libc::xdp_options = sys::get_option(fd, libc::SOL_XDP, libc::XDP_OPTIONS)
        .map_err(failed("reading the mode back"))?;
    Ok(Parts {
        receive: Consumer::new(receive),
        transmit: Producer::new(transmit),
        fill: Producer::new(fill),
        completion: Consumer::new(completion),
        zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
        budget,
        socket,
    })
}

fn new_socket() -> Result<OwnedFd, SocketError> {
    sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SocketError::Permission,
        Some(libc::EAFNOSUPPORT) => SocketError::NoKernelSupport,
        _ => SocketError::System { step: "opening an AF_XDP socket", source },
    })
}

/// Registers the area as the socket's UMEM.
fn register(socket: BorrowedFd<'_>, area: &Area) -> Result<(), SocketError> {
    let len = u64::from(area.chunks()) * u64::from(area.chunk_size());
    let registration = libc::xdp_umem_reg {
        addr: area.shared().start().addr().get() as u64,
        len,
        chunk_size: area.chunk_size(),
        // The kernel leaves XDP_PACKET_HEADROOM by itself.
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    sys::set_option(socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::ENOBUFS) => SocketError::Memlock {
                bytes: len,
                limit: memlock::limit().unwrap_or(Limit::Bytes(0)),
            },
            _ => SocketError::System { step: "registering the frames' memory", source },
        }
    })
}

/// Asks for as many frames per system call as the ring holds, and returns what
/// is in force. Older kernels don't know the option.
fn raise_budget(socket: BorrowedFd<'_>, ring: u32) -> u32 {
    match sys::set_option(socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &ring) {
        Ok(()) => ring,
        Err(_) => COPY_BATCH,
    }
}

fn bind(
    socket: BorrowedFd<'_>,
    ifindex: u32,
    queue: u32,
    mode: Mode,
    beside: Option<BorrowedFd<'_>>,
) -> Result<(), SocketError> {
    let copying = match mode {
        Mode::NativeZeroCopy => libc::XDP_ZEROCOPY,
        Mode::NativeCopy | Mode::Generic => libc::XDP_COPY,
    };
    let (flags, shared) = match beside {
        // The rest is as it is for the other socket, and must not be said.
        Some(other) => (libc::XDP_SHARED_UMEM, other.as_raw_fd() as u32),
        None => (copying | libc::XDP_USE_NEED_WAKEUP, 0),
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared,
    };
    let started = Instant::now();
    loop {
        let source = match bind_call(socket, &address) {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        match source.raw_os_error() {
            Some(libc::EBUSY) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Some(libc::EBUSY) => return Err(SocketError::Busy { ifindex, queue }),
            Some(libc::ENODEV) => return Err(SocketError::NoDevice { ifindex }),
            _ => return Err(SocketError::Mode { ifindex, queue, mode, source }),
        }
    }
}

fn bind_call(socket: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let length = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    let pointer = (&raw const *address).cast();
    // SAFETY: `pointer` is valid for reading `length` bytes.
    sys::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) })?;
    Ok(())
}

/// Waits until the kernel has let go of a queue whose socket was closed, which
/// is also when it has let go of that socket's memory (`xp_release_deferred`
/// in net/xdp/xsk_buff_pool.c). What tells is that the queue can be bound
/// again. `false` when it takes too long.
pub(super) fn wait_until_free(ifindex: u32, queue: u32) -> bool {
    let probe = || -> Result<(), SocketError> {
        let area = Area::new(2, crate::area::MIN_CHUNK_SIZE)
            .map_err(|error| failed("probing a queue")(io::Error::other(error)))?;
        let config = SocketConfig { fill: 1, receive: 1, transmit: 1, completion: 1 };
        open(&area, ifindex, queue, Mode::Generic, &config, None).map(drop)
    };
    // A queue that has gone, alone or with its device, has let go as well.
    matches!(probe(), Ok(()) | Err(SocketError::NoDevice { .. } | SocketError::Mode { .. }))
}
