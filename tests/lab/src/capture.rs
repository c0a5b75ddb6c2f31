//! Frames seen on a device, through a packet socket.
//!
//! What a packet socket does not see: frames that an XDP program takes away
//! on receipt, and frames that an AF_XDP socket sends through this very
//! device. Capture at the other end of the link.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SocketAddrAny, SocketFlags, SocketType,
    netdevice, recvfrom, socket_with,
};

use crate::{Error, Netns, Result};

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedFrame {
    /// When it was read.
    pub at: SystemTime,
    /// Sent by this namespace through the device, not received.
    pub outgoing: bool,
    /// From the Ethernet header on. A VLAN tag is missing if the kernel keeps
    /// it apart.
    pub bytes: Vec<u8>,
}

/// A running capture; ends when dropped.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<CapturedFrame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Capture {
    /// Starts to capture both directions on `device`.
    ///
    /// # Errors
    /// No such device, or no right to open a packet socket.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let open = || -> rustix::io::Result<(OwnedFd, u32)> {
            // ETH_P_ALL in network byte order; not bound, so that frames of
            // all devices arrive and are sorted out by the index.
            let all = RawProtocol::new(u32::from(3_u16.to_be()));
            let socket = socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                all.map(Protocol::from_raw),
            )?;
            if set_socket_recv_buffer_size_force(&socket, 32 << 20).is_err() {
                set_socket_recv_buffer_size(&socket, 32 << 20)?;
            }
            let index = netdevice::name_to_index(&socket, device)?;
            Ok((socket, index))
        };
        let doing = format!("capture on {device} in {}", netns.short_name());
        let (socket, index) = netns.run(open)?.map_err(Error::errno(doing))?;
        let (frames, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (theirs, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = Some(netns.thread(move || collect(&socket, index, &theirs, &stopped))?);
        Ok(Self { frames, stop, thread })
    }

    /// What was captured so far.
    pub fn frames(&self) -> Vec<CapturedFrame> {
        lock(&self.frames).clone()
    }

    /// Waits until `count` frames for which `wanted` holds were captured, and
    /// returns them.
    ///
    /// # Errors
    /// [`Error::Deadline`] when there are fewer after `within`.
    pub fn wait(
        &self,
        count: usize,
        within: Duration,
        wanted: impl Fn(&CapturedFrame) -> bool,
    ) -> Result<Vec<CapturedFrame>> {
        let start = Instant::now();
        loop {
            let found: Vec<_> =
                lock(&self.frames).iter().filter(|frame| wanted(frame)).cloned().collect();
            if found.len() >= count {
                return Ok(found);
            }
            if start.elapsed() >= within {
                let what = format!("frame {} of {count} of a capture", found.len() + 1);
                return Err(Error::Deadline { what, after: within });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Forgets what was captured so far.
    pub fn clear(&self) {
        lock(&self.frames).clear();
    }

    /// Writes what was captured so far as a classic pcap file with
    /// microseconds.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_pcap(&self, path: &Path) -> Result<()> {
        let doing = format!("write {}", path.display());
        write_pcap(path, &self.frames()).map_err(Error::io(doing))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(frames: &Mutex<Vec<CapturedFrame>>) -> MutexGuard<'_, Vec<CapturedFrame>> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

fn collect(socket: &OwnedFd, index: u32, frames: &Mutex<Vec<CapturedFrame>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let look = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&look));
        while let Ok((len, _, from)) = recvfrom(socket, &mut *buffer, RecvFlags::empty()) {
            let Some((device, outgoing)) = from.as_ref().and_then(link_layer) else { continue };
            if device == index {
                let (at, bytes) = (SystemTime::now(), buffer[..len].to_vec());
                lock(frames).push(CapturedFrame { at, outgoing, bytes });
            }
        }
    }
}

/// Device index and direction out of a `sockaddr_ll` (packet(7)): family,
/// protocol, index (4 bytes at 4), hardware type, packet type (1 byte at 10).
///
/// rustix has no view of this kind of address but feeds its bytes to a hasher.
fn link_layer(address: &SocketAddrAny) -> Option<(u32, bool)> {
    const OUTGOING: u8 = 4;
    struct Bytes(Vec<u8>);
    impl Hasher for Bytes {
        fn write(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
        // The length prefix of a slice's hash is not part of the address.
        fn write_usize(&mut self, _len: usize) {}
        fn finish(&self) -> u64 {
            0
        }
    }
    let mut bytes = Bytes(Vec::new());
    address.hash(&mut bytes);
    let index = bytes.0.get(4..8)?.try_into().ok()?;
    Some((u32::from_ne_bytes(index), *bytes.0.get(10)? == OUTGOING))
}

fn write_pcap(path: &Path, frames: &[CapturedFrame]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    // Magic, version 2.4, time zone, accuracy, snap length, Ethernet.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.write_all(&word.to_le_bytes())?;
    }
    for frame in frames {
        let at = frame.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = frame.bytes.len() as u32;
        for word in [at.as_secs() as u32, at.subsec_micros(), len, len] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(&frame.bytes)?;
    }
    file.flush()
}
