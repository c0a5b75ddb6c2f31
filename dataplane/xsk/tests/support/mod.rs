//! Namespaces and devices for tests that need a kernel.

// Each test file takes what it needs.
#![allow(dead_code)]

pub(crate) mod frames;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::device;
use tieline_xsk::filter::{Filter, FilterConfig, Link};
use tieline_xsk::hint;
use tieline_xsk::packet::{PacketSocket, Take};
use tieline_xsk::socket::{Mode, Socket, SocketConfig};

/// Runs a test on a thread of its own in a network namespace of its own, which
/// has no name and goes with the thread, whatever becomes of the test.
///
/// Without the privilege the test says so and counts as skipped, but in CI it
/// fails.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let body = move || {
        // SAFETY: takes no pointers; affects this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return skip("no permission to make a network namespace");
        }
        ip("link set lo up");
        test();
    };
    let thread = std::thread::Builder::new().name(name).spawn(body).unwrap();
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Says that the test can't run here. In CI nothing is skipped.
pub(crate) fn skip(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI nothing is skipped: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Not by a macro, whose output the test harness would swallow.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// Runs `ip` in the calling thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// A veth pair, both ends up.
pub(crate) fn veth(one: &str, other: &str) -> (u32, u32) {
    veth_of(1, one, other)
}

/// The same with a number of queues.
pub(crate) fn veth_of(queues: u32, one: &str, other: &str) -> (u32, u32) {
    let queues = format!("numrxqueues {queues} numtxqueues {queues}");
    ip(&format!("link add {one} {queues} type veth peer name {other} {queues}"));
    for end in [one, other] {
        let setting = format!("/proc/sys/net/ipv6/conf/{end}/disable_ipv6");
        // Keeps the kernel from sending frames of its own. /proc/sys/net is
        // that of the calling thread's namespace.
        let _ = std::fs::write(setting, "1");
    }
    for end in [one, other] {
        ip(&format!("link set {end} up"));
    }
    (device::index(one).unwrap(), device::index(other).unwrap())
}

/// Repeats `attempt` until it is true; fails after some seconds.
pub(crate) fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let started = Instant::now();
    while !attempt() {
        assert!(started.elapsed() < Duration::from_secs(10), "it never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) const CONFIG: FilterConfig =
    FilterConfig { port: 4789, liveness: Duration::from_secs(3600), queues: 1 };

/// A socket that gets everything from queue 0 of a device.
pub(crate) struct Tap {
    pub(crate) socket: Socket,
    pub(crate) filter: Filter,
    pub(crate) link: Link,
}

impl Tap {
    pub(crate) fn open(area: &mut Area, ifindex: u32, mode: Mode) -> Self {
        let mut filter = Filter::gateway(&CONFIG).unwrap();
        let link = filter.attach(ifindex, mode.native()).unwrap();
        let mut socket = Socket::bind(area, ifindex, 0, mode, &small_rings()).unwrap();
        filter.set_socket(0, &socket).unwrap();
        filter.heartbeat(0).beat(hint::monotonic_ns());
        socket.refill(area);
        Self { socket, filter, link }
    }
}

pub(crate) fn small_rings() -> SocketConfig {
    SocketConfig { fill: 64, receive: 64, transmit: 64, completion: 64 }
}

/// A frame of 60 bytes whose payload tells its number.
pub(crate) fn numbered(number: u8) -> [u8; 60] {
    let mut frame = [number; 60];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    // A type that nobody answers to: IEEE's for local experiments.
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// Sends a frame by a packet socket with an area of its own.
pub(crate) struct Injector {
    area: Area,
    socket: PacketSocket,
}

impl Injector {
    pub(crate) fn open(ifindex: u32) -> Self {
        Self {
            area: Area::new(256, 2048).unwrap(),
            socket: PacketSocket::open(ifindex, Take::All).unwrap(),
        }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        let sent = self.try_send(frame);
        assert_eq!(sent, 1, "{:?}", self.socket.statistics());
    }

    pub(crate) fn try_send(&mut self, frame: &[u8]) -> usize {
        let descriptor = put(&mut self.area, frame);
        self.socket.send(&mut self.area, [descriptor].into_iter())
    }

    /// What has arrived, as bytes.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let mut descriptors = Vec::new();
        self.socket.receive(&mut self.area, 64, |descriptor| descriptors.push(descriptor));
        descriptors.into_iter().map(|descriptor| take(&mut self.area, descriptor)).collect()
    }
}

/// A frame in the area, behind the usual headroom.
pub(crate) fn put(area: &mut Area, frame: &[u8]) -> Descriptor {
    let chunk = area.allocate().expect("a free chunk");
    let descriptor = Descriptor { chunk, head: 256, len: frame.len() as u32 };
    area.bytes_mut(chunk, 256, descriptor.len).copy_from_slice(frame);
    descriptor
}

/// A frame's bytes; its chunk is freed.
pub(crate) fn take(area: &mut Area, frame: Descriptor) -> Vec<u8> {
    let bytes = area.bytes(frame.chunk, frame.head, frame.len).to_vec();
    assert!(area.release(frame.chunk));
    bytes
}

pub(crate) const CAP_NET_ADMIN: u32 = 12;
pub(crate) const CAP_NET_RAW: u32 = 13;
pub(crate) const CAP_IPC_LOCK: u32 = 14;
pub(crate) const CAP_SYS_ADMIN: u32 = 21;
pub(crate) const CAP_SYS_RESOURCE: u32 = 24;
pub(crate) const CAP_BPF: u32 = 39;

/// Takes capabilities from the calling thread.
pub(crate) fn drop_capabilities(numbers: &[u32]) {
    // _LINUX_CAPABILITY_VERSION_3 and the calling thread; effective, permitted
    // and inheritable for 32 capabilities, then for the next 32.
    let mut header = [0x2008_0522u32, 0];
    let mut sets = [[0u32; 3]; 2];
    let (header, data) = (header.as_mut_ptr(), sets.as_mut_ptr());
    // SAFETY: both are as long as this version demands.
    let got = unsafe { libc::syscall(libc::SYS_capget, header, data) };
    assert_eq!(got, 0);
    for number in numbers {
        for set in &mut sets[*number as usize / 32] {
            *set &= !(1 << (number % 32));
        }
    }
    let data = sets.as_mut_ptr();
    // SAFETY: both are as long as this version demands.
    let set = unsafe { libc::syscall(libc::SYS_capset, header, data) };
    assert_eq!(set, 0);
}
