//! An AF_XDP socket: one queue of one device (linux/if_xdp.h, and
//! Documentation/networking/af_xdp.rst of the kernel).
//!
//! The area is registered anew with every socket, so each has rings of its own
//! and its own mode: a device that can do zero copy and one that can't then
//! share the frames, which the kernel's shared UMEM does not allow.
//!
//! ```text
//! refill    free chunks      -> fill ring
//! receive   receive ring     -> worker
//! send      worker           -> transmit ring
//! reclaim   completion ring  -> free chunks
//! ```

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::area::{Area, Descriptor};
use crate::memlock;
use crate::os::{self, Mapping};
use crate::ring::{Consumer, Place, Producer};

/// How frames get from the device to the socket and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// XDP in the driver; the device writes into our frames.
    NativeZeroCopy,
    /// XDP in the driver; the kernel copies.
    NativeCopy,
    /// XDP on a socket buffer, for any device; the kernel copies.
    Generic,
}

impl Mode {
    /// All modes, best first.
    pub const ALL: [Self; 3] = [Self::NativeZeroCopy, Self::NativeCopy, Self::Generic];

    /// Whether the XDP program must be attached in the driver.
    pub const fn is_native(self) -> bool {
        !matches!(self, Self::Generic)
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NativeZeroCopy => "native zero copy",
            Self::NativeCopy => "native copy",
            Self::Generic => "generic",
        })
    }
}

/// Sizes of a socket's rings, in frames; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketConfig {
    /// Empty frames for the kernel to receive into.
    pub fill: u32,
    /// Received frames.
    pub receive: u32,
    /// Frames to be sent.
    pub transmit: u32,
    /// Frames that were sent.
    pub completion: u32,
}

impl SocketConfig {
    /// Rings for an area that two sockets share: no ring can take so many
    /// chunks that another goes without.
    pub fn for_area(chunks: u32) -> Self {
        let quarter = (chunks / 4).next_power_of_two().clamp(64, 4096);
        Self { fill: quarter, receive: quarter, transmit: quarter, completion: quarter }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No AF_XDP at all.
    #[error("the kernel gives no AF_XDP socket: {0}")]
    Open(#[source] io::Error),
    /// The frames can't be registered.
    #[error(
        "{bytes} bytes of frames can't be registered with the kernel: {source}{}",
        remedy(source)
    )]
    Register {
        /// Size of the area.
        bytes: usize,
        /// The system's error.
        source: io::Error,
    },
    /// A ring can't be made.
    #[error("the {ring} ring can't be set up: {source}")]
    Ring {
        /// Which one.
        ring: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The queue can't be taken in this mode.
    #[error("queue {queue} of device {device} can't be taken in mode {mode}: {}", why(source))]
    Bind {
        /// Device index.
        device: u32,
        /// Queue.
        queue: u32,
        /// The mode that was asked for.
        mode: Mode,
        /// The system's error.
        source: io::Error,
    },
}

impl SocketError {
    /// Whether the kernel refused for want of privileges.
    pub fn is_permission(&self) -> bool {
        let (Self::Open(source)
        | Self::Register { source, .. }
        | Self::Ring { source, .. }
        | Self::Bind { source, .. }) = self;
        matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }
}

fn remedy(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOBUFS | libc::ENOMEM | libc::EPERM) => format!("; {}", memlock::REMEDY),
        _ => String::new(),
    }
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver does not offer it".into(),
        Some(libc::EBUSY) => "another socket has it".into(),
        Some(libc::ENODEV) => "the device is gone".into(),
        Some(libc::ENETDOWN) => "the device is down".into(),
        _ => error.to_string(),
    }
}

/// What a socket has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames received.
    pub received: u64,
    /// Frames handed to the kernel to be sent.
    pub sent: u64,
    /// Frames that the kernel dropped for want of an empty frame, or because
    /// they did not fit one.
    pub receive_dropped: u64,
    /// Frames that the kernel dropped because the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that the kernel refused to send for another reason than being
    /// busy.
    pub refused: u64,
    /// Descriptors that the kernel found invalid.
    pub transmit_invalid: u64,
}

/// An AF_XDP socket and its rings.
#[derive(Debug)]
pub struct Socket {
    fill: Producer<u64>,
    receive: Consumer<libc::xdp_desc>,
    transmit: Producer<libc::xdp_desc>,
    completion: Consumer<u64>,
    mode: Mode,
    chunk_shift: u32,
    received: u64,
    sent: u64,
    refused: u64,
    /// After the rings: they point into these.
    _rings: [Mapping; 4],
    fd: OwnedFd,
    /// The kernel refers to the frames until `fd` is closed.
    _area: Arc<Mapping>,
}

impl Socket {
    /// Takes a queue. The mode in force is then exactly the one asked for; an
    /// XDP program of the same kind must hand it the queue's frames.
    pub fn bind(
        area: &Area,
        device: u32,
        queue: u32,
        mode: Mode,
        config: &SocketConfig,
    ) -> Result<Self, SocketError> {
        let fd = os::socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(SocketError::Open)?;
        register(&fd, area)?;
        let size = |ring, option, entries: u32| {
            os::set_option(&fd, libc::SOL_XDP, option, &entries)
                .map_err(|source| SocketError::Ring { ring, source })
        };
        size("fill", libc::XDP_UMEM_FILL_RING, config.fill)?;
        size("completion", libc::XDP_UMEM_COMPLETION_RING, config.completion)?;
        size("receive", libc::XDP_RX_RING, config.receive)?;
        size("transmit", libc::XDP_TX_RING, config.transmit)?;
        let offsets = offsets(&fd).map_err(|source| SocketError::Ring { ring: "any", source })?;
        let map = |ring, page: i64, offset: &libc::xdp_ring_offset, entry: usize, size: u32| {
            let len = offset.desc as usize + entry * size as usize;
            Mapping::shared(fd.as_raw_fd(), page, len)
                .map_err(|source| SocketError::Ring { ring, source })
        };
        let page = |page: u64| page as i64;
        let descriptor = size_of::<libc::xdp_desc>();
        let rings = [
            map("fill", page(libc::XDP_UMEM_PGOFF_FILL_RING), &offsets.fr, 8, config.fill)?,
            map("receive", libc::XDP_PGOFF_RX_RING, &offsets.rx, descriptor, config.receive)?,
            map("transmit", libc::XDP_PGOFF_TX_RING, &offsets.tx, descriptor, config.transmit)?,
            map(
                "completion",
                page(libc::XDP_UMEM_PGOFF_COMPLETION_RING),
                &offsets.cr,
                8,
                config.completion,
            )?,
        ];
        bind(&fd, device, queue, mode)?;
        // SAFETY (all four): the place lies in a mapping that the socket keeps
        // for longer than the ring; sizes are what the kernel was told, powers
        // of two, or it would have refused; one end of each ring is made.
        let fill = unsafe { Producer::new(place(&rings[0], &offsets.fr, config.fill)) };
        // SAFETY: see above; descriptors are plain numbers.
        let receive = unsafe { Consumer::new(place(&rings[1], &offsets.rx, config.receive)) };
        // SAFETY: see above.
        let transmit = unsafe { Producer::new(place(&rings[2], &offsets.tx, config.transmit)) };
        // SAFETY: see above.
        let completion = unsafe { Consumer::new(place(&rings[3], &offsets.cr, config.completion)) };
        Ok(Self {
            fill,
            receive,
            transmit,
            completion,
            mode,
            chunk_shift: area.chunk_size().trailing_zeros(),
            received: 0,
            sent: 0,
            refused: 0,
            _rings: rings,
            fd,
            _area: area.mapping().clone(),
        })
    }

    /// The mode in force.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the kernel says that the socket has zero copy (`XDP_OPTIONS`).
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        let mut options = libc::xdp_options { flags: 0 };
        os::get_option(&self.fd, libc::SOL_XDP, libc::XDP_OPTIONS, &mut options)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// Hands up to `room` received frames to `take`; their chunks are then the
    /// worker's. Returns their number.
    #[inline]
    pub fn receive(
        &mut self,
        area: &mut Area,
        room: u32,
        mut take: impl FnMut(Descriptor),
    ) -> usize {
        let count = self.receive.available(room).min(room);
        let mut taken = 0;
        for at in 0..count {
            let descriptor = self.descriptor(&self.receive.read(at));
            if area.receive(descriptor.chunk) {
                take(descriptor);
                taken += 1;
            }
        }
        if count > 0 {
            self.receive.release(count);
            self.received += u64::from(count);
        }
        taken
    }

    #[inline]
    fn descriptor(&self, raw: &libc::xdp_desc) -> Descriptor {
        Descriptor {
            chunk: (raw.addr >> self.chunk_shift) as u32,
            head: (raw.addr & ((1 << self.chunk_shift) - 1)) as u32,
            len: raw.len,
        }
    }

    /// Queues frames of the worker to be sent, as many as the ring takes, and
    /// returns their number; their chunks are then the socket's. Call
    /// [`wake`](Self::wake) afterwards.
    #[inline]
    pub fn send(&mut self, area: &mut Area, frames: impl Iterator<Item = Descriptor>) -> usize {
        let wanted = u32::try_from(frames.size_hint().0).unwrap_or(u32::MAX);
        let room = self.transmit.room(wanted.max(1));
        let mut count = 0;
        for frame in frames {
            if count == room || !area.lend(frame.chunk) {
                break;
            }
            let addr = u64::from(frame.chunk) << self.chunk_shift | u64::from(frame.head);
            self.transmit.write(count, libc::xdp_desc { addr, len: frame.len, options: 0 });
            count += 1;
        }
        if count > 0 {
            self.transmit.publish(count);
            self.sent += u64::from(count);
        }
        count as usize
    }

    /// Tells the kernel that there is something to send, if it wants to be
    /// told. In copy mode the kernel sends a few dozen frames per call: it is
    /// called until the ring is empty or the device takes no more.
    pub fn wake(&mut self) {
        // A bound for the worst case, not the usual one.
        for _ in 0..64 {
            if !self.transmit.needs_wakeup() || self.transmit.pending() == 0 {
                return;
            }
            let before = self.transmit.pending();
            // SAFETY: no data is passed; the call only makes the kernel look at
            // the ring.
            let outcome = os::check(unsafe {
                libc::sendto(
                    self.fd.as_raw_fd(),
                    std::ptr::null(),
                    0,
                    libc::MSG_DONTWAIT,
                    std::ptr::null(),
                    0,
                ) as libc::c_int
            });
            match outcome.map_err(|error| error.raw_os_error()) {
                Ok(_) => {}
                // It has sent its share of one call, or memory is short.
                Err(Some(libc::EAGAIN)) if self.transmit.pending() < before => {}
                // Busy: the completion ring is full, or another call is at it.
                Err(Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR)) => return,
                Err(_) => {
                    self.refused += 1;
                    return;
                }
            }
        }
    }

    /// Takes back the chunks of frames that were sent.
    #[inline]
    pub fn reclaim(&mut self, area: &mut Area) {
        let count = self.completion.available(1);
        for at in 0..count {
            let chunk = (self.completion.read(at) >> self.chunk_shift) as u32;
            let ours = area.reclaim(chunk);
            debug_assert!(ours, "the kernel gave back chunk {chunk}, which it did not have");
        }
        if count > 0 {
            self.completion.release(count);
        }
    }

    /// Hands empty frames to the kernel: the ring is kept full, because drivers
    /// ask for many at once.
    #[inline]
    pub fn refill(&mut self, area: &mut Area) {
        let room = self.fill.room(u32::MAX).min(area.free());
        for at in 0..room {
            let Some(chunk) = area.lend_free() else { return self.fill.publish(at) };
            self.fill.write(at, u64::from(chunk) << self.chunk_shift);
        }
        if room > 0 {
            self.fill.publish(room);
        }
        if self.fill.needs_wakeup() {
            self.poke();
        }
    }

    /// Makes the driver look at the fill ring. Copy modes never ask for it.
    #[cold]
    fn poke(&self) {
        // SAFETY: no buffer is passed; the call only makes the kernel look.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }

    /// Own counts and the kernel's.
    pub fn statistics(&self) -> Statistics {
        // SAFETY: a structure of numbers, for which zeros are a value.
        let mut kernel: libc::xdp_statistics = unsafe { std::mem::zeroed() };
        // Older kernels fill less of it; what they don't know stays zero.
        let known = os::get_option(&self.fd, libc::SOL_XDP, libc::XDP_STATISTICS, &mut kernel);
        let known = known.is_ok();
        let of = |count: u64| if known { count } else { 0 };
        Statistics {
            received: self.received,
            sent: self.sent,
            receive_dropped: of(kernel.rx_dropped),
            receive_ring_full: of(kernel.rx_ring_full),
            refused: self.refused,
            transmit_invalid: of(kernel.tx_invalid_descs),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn register(fd: &OwnedFd, area: &Area) -> Result<(), SocketError> {
    let bytes = area.chunks() as usize * area.chunk_size() as usize;
    // The layout of the first kernels with AF_XDP, which all later ones take.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Registration {
        addr: u64,
        len: u64,
        chunk_size: u32,
        headroom: u32,
        flags: u32,
        _padding: u32,
    }
    let registration = Registration {
        addr: area.mapping().start().as_ptr().expose_provenance() as u64,
        len: bytes as u64,
        chunk_size: area.chunk_size(),
        headroom: 0,
        flags: 0,
        _padding: 0,
    };
    os::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
        .map_err(|source| SocketError::Register { bytes, source })
}

fn offsets(fd: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: a structure of numbers, for which zeros are a value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let read = os::get_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    if read == size_of_val(&offsets) { Ok(offsets) } else { Err(io::ErrorKind::Unsupported.into()) }
}

fn bind(fd: &OwnedFd, device: u32, queue: u32, mode: Mode) -> Result<(), SocketError> {
    let copying = match mode {
        Mode::NativeZeroCopy => libc::XDP_ZEROCOPY,
        Mode::NativeCopy | Mode::Generic => libc::XDP_COPY,
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: copying | libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: device,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is readable for `len` bytes during the call.
    os::check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })
        .map_err(|source| SocketError::Bind { device, queue, mode, source })?;
    Ok(())
}

/// The place of a ring within its mapping.
fn place<T>(mapping: &Mapping, offset: &libc::xdp_ring_offset, size: u32) -> Place<T> {
    let at = |offset: u64| -> NonNull<u8> {
        assert!((offset as usize) < mapping.len());
        // SAFETY: within the mapping, as just asserted.
        unsafe { mapping.start().add(offset as usize) }
    };
    Place {
        producer: at(offset.producer).cast(),
        consumer: at(offset.consumer).cast(),
        flags: at(offset.flags).cast(),
        entries: at(offset.desc).cast(),
        size,
    }
}
