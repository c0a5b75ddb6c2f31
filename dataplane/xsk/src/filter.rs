//! The XDP programs: which frames are ours.
//!
//! On an underlay device ([`Filter::underlay`]):
//!
//! ```text
//! if not Ethernet with IPv4 or IPv6 directly in it       pass
//! if IPv4: header broken, not UDP, or a fragment         pass
//! if IPv6: next header is not UDP                        pass
//! if the UDP destination port is not settings.port       pass
//! if the destination is not in own                       pass
//! if the source is not in peers                          pass
//! if now - heartbeats[queue] > settings.liveness         pass
//! redirect to sockets[queue]; if there is none           pass
//! ```
//!
//! On the gateway ([`Filter::gateway`]) the last two lines alone. So whatever
//! is not VXLAN from a known VTEP to this node stays the kernel's, and all of it
//! does when the worker is dead or stuck.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::bpf::asm::{Alu, Assembler, Helper, If, Instruction, Label, Reg, Size};
use crate::bpf::map::Kind;
use crate::bpf::{Map, Program};
use crate::os::Mapping;
use crate::socket::Socket;

pub use crate::bpf::{Action, AttachError, BpfError, Link};

/// VTEPs that can be known at once.
pub const MAX_PEERS: u32 = 65_536;

/// Addresses that this node can have.
const MAX_OWN: u32 = 256;

/// Bytes between two heartbeats: workers must not share a cache line.
const STRIDE: usize = 64;

/// XDP_PASS
const PASS: i32 = 2;

/// How a filter begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    /// VXLAN's UDP port.
    pub port: u16,
    /// A worker without a heartbeat for longer than this gets no frames.
    pub liveness: Duration,
    /// Queues of the device.
    pub queues: u32,
}

/// What the program reads of the settings: nanoseconds, then the port in
/// network order.
fn settings(config: &FilterConfig) -> [u8; 16] {
    let mut bytes = [0; 16];
    let nanoseconds = u64::try_from(config.liveness.as_nanos()).unwrap_or(u64::MAX >> 1);
    bytes[..8].copy_from_slice(&nanoseconds.to_ne_bytes());
    bytes[8..10].copy_from_slice(&config.port.to_be_bytes());
    bytes
}

/// A program with its maps.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    config: FilterConfig,
    maps: Maps,
    heartbeats: Arc<Mapping>,
    peers: BTreeSet<IpAddr>,
    own: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Maps {
    settings: Map,
    sockets: Map,
    heartbeats: Map,
    peers: Map,
    own: Map,
}

impl Filter {
    /// The filter of an underlay device.
    pub fn underlay(config: &FilterConfig) -> Result<Self, BpfError> {
        Self::new(config, "tieline_xdp", underlay)
    }

    /// The filter of the gateway device: every frame is for the worker.
    pub fn gateway(config: &FilterConfig) -> Result<Self, BpfError> {
        Self::new(config, "tieline_gateway", gateway)
    }

    fn new(
        config: &FilterConfig,
        name: &'static str,
        code: impl Fn(&Maps) -> Vec<Instruction>,
    ) -> Result<Self, BpfError> {
        let queues = config.queues.max(1);
        let maps = Maps {
            settings: Map::new(Kind::Array, "tieline_settings", 4, 16, 1, false)?,
            sockets: Map::new(Kind::Xsk, "tieline_sockets", 4, 4, queues, false)?,
            heartbeats: Map::new(Kind::Array, "tieline_beats", 4, STRIDE, queues, true)?,
            peers: Map::new(Kind::Hash, "tieline_peers", 16, 1, MAX_PEERS, false)?,
            own: Map::new(Kind::Hash, "tieline_own", 16, 1, MAX_OWN, false)?,
        };
        maps.settings.set(&0u32.to_ne_bytes(), &settings(config))?;
        let bytes = (queues as usize * STRIDE).next_multiple_of(4096);
        let heartbeats = Mapping::shared(maps.heartbeats.as_raw_fd(), 0, bytes)
            .map_err(|source| BpfError::Map { name: "tieline_beats", source })?;
        Ok(Self {
            program: Program::load(name, &code(&maps))?,
            config: *config,
            maps,
            heartbeats: Arc::new(heartbeats),
            peers: BTreeSet::new(),
            own: BTreeSet::new(),
        })
    }

    /// Changes the UDP port.
    pub fn set_port(&mut self, port: u16) -> Result<(), BpfError> {
        self.config.port = port;
        self.maps.settings.set(&0u32.to_ne_bytes(), &settings(&self.config))
    }

    /// From now on these, and no others, are known VTEPs.
    pub fn set_peers(&mut self, peers: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        replace(&self.maps.peers, &mut self.peers, peers)
    }

    /// From now on these, and no others, are our underlay addresses.
    pub fn set_underlay(&mut self, own: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        replace(&self.maps.own, &mut self.own, own)
    }

    /// Frames of a queue go to this socket.
    pub fn set_socket(&self, queue: u32, socket: &Socket) -> Result<(), BpfError> {
        self.maps.sockets.set(&queue.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
    }

    /// The heartbeat of a queue's worker. Until its first beat the worker
    /// counts as dead.
    ///
    /// # Panics
    /// If there is no such queue.
    pub fn heartbeat(&self, queue: u32) -> Heartbeat {
        assert!(queue < self.config.queues.max(1), "queue {queue} is not the filter's");
        Heartbeat { memory: self.heartbeats.clone(), offset: queue as usize * STRIDE }
    }

    /// Puts the program on a device, in the driver or not. Another's program is
    /// never replaced.
    pub fn attach(&self, device: u32, native: bool) -> Result<Link, AttachError> {
        self.program.attach(device, native)
    }

    /// What becomes of a frame of at least 14 bytes on queue 0.
    pub fn test_run(&self, frame: &[u8]) -> Result<Action, BpfError> {
        self.program.test_run(frame)
    }
}

/// A worker's sign of life, read by the program.
#[derive(Debug)]
pub struct Heartbeat {
    memory: Arc<Mapping>,
    offset: usize,
}

impl Heartbeat {
    /// The worker is alive at this time of CLOCK_MONOTONIC, in nanoseconds.
    #[inline]
    pub fn beat(&mut self, monotonic_ns: u64) {
        // SAFETY: the filter has checked that the queue's element lies within
        // the mapping.
        let stamp: NonNull<u8> = unsafe { self.memory.start().add(self.offset) };
        // SAFETY: elements begin at multiples of 64 bytes in a mapping that
        // lives as long as `self`; we write it as an atomic only, and the
        // program reads it as one word.
        let stamp: &AtomicU64 = unsafe { stamp.cast().as_ref() };
        stamp.store(monotonic_ns, Ordering::Relaxed);
    }
}

/// An address as maps hold it: 16 bytes in network order, IPv4 as mapped.
fn key(ip: &IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Makes a map hold `new`, and `known` say so as far as it was done.
fn replace(
    map: &Map,
    known: &mut BTreeSet<IpAddr>,
    new: &BTreeSet<IpAddr>,
) -> Result<(), BpfError> {
    for ip in known.difference(new).copied().collect::<Vec<_>>() {
        map.remove(&key(&ip))?;
        known.remove(&ip);
    }
    for ip in new.difference(known).copied().collect::<Vec<_>>() {
        map.set(&key(&ip), &[1])?;
        known.insert(ip);
    }
    Ok(())
}

/// Where the program keeps things on its stack.
const SOURCE: i16 = -16;
const DESTINATION: i16 = -32;
const INDEX: i16 = -36;

/// Registers that the program keeps: context, start and end of the frame, and
/// the UDP header.
const CONTEXT: Reg = Reg::R6;
const DATA: Reg = Reg::R7;
const END: Reg = Reg::R8;
const UDP: Reg = Reg::R9;

/// A 16-bit field in network order, as the program loads it.
fn half(value: u16) -> i32 {
    i32::from(u16::from_ne_bytes(value.to_be_bytes()))
}

fn underlay(maps: &Maps) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let (v4, v6, udp, pass) = (asm.label(), asm.label(), asm.label(), asm.label());
    asm.alu(Alu::Mov, CONTEXT, Reg::R1).load(Size::Word, DATA, CONTEXT, 0).load(
        Size::Word,
        END,
        CONTEXT,
        4,
    );
    require(&mut asm, DATA, 14, pass);
    asm.load(Size::Half, Reg::R2, DATA, 12)
        .jump(If::Eq, Reg::R2, half(0x0800), v4)
        .jump(If::Eq, Reg::R2, half(0x86dd), v6)
        .goto(pass);
    asm.place(v4);
    ipv4(&mut asm, pass);
    asm.goto(udp);
    asm.place(v6);
    ipv6(&mut asm, pass);
    asm.place(udp);
    require(&mut asm, UDP, 8, pass);
    lookup(&mut asm, &maps.settings, pass);
    asm.load(Size::Half, Reg::R2, Reg::R0, 8).load(Size::Half, Reg::R3, UDP, 2).jump(
        If::Ne,
        Reg::R2,
        Reg::R3,
        pass,
    );
    for (map, address) in [(&maps.own, DESTINATION), (&maps.peers, SOURCE)] {
        asm.load_map(Reg::R1, map)
            .alu(Alu::Mov, Reg::R2, Reg::R10)
            .alu(Alu::Add, Reg::R2, i32::from(address))
            .call(Helper::MapLookup)
            .jump(If::Eq, Reg::R0, 0, pass);
    }
    redirect(&mut asm, maps, pass);
    asm.finish()
}

fn gateway(maps: &Maps) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let pass = asm.label();
    asm.alu(Alu::Mov, CONTEXT, Reg::R1);
    redirect(&mut asm, maps, pass);
    asm.finish()
}

/// Passes unless the frame has `bytes` from `from` on.
fn require(asm: &mut Assembler, from: Reg, bytes: i32, pass: Label) {
    asm.alu(Alu::Mov, Reg::R2, from).alu(Alu::Add, Reg::R2, bytes).jump(If::Gt, Reg::R2, END, pass);
}

/// Copies `words` words of four bytes from the frame to the stack.
fn copy(asm: &mut Assembler, from: i16, to: i16, words: i16) {
    for word in 0..words {
        asm.load(Size::Word, Reg::R2, DATA, from + 4 * word).store(
            Size::Word,
            Reg::R10,
            to + 4 * word,
            Reg::R2,
        );
    }
}

fn ipv4(asm: &mut Assembler, pass: Label) {
    require(asm, DATA, 14 + 20, pass);
    asm.load(Size::Byte, Reg::R3, DATA, 14)
        .alu(Alu::Mov, Reg::R2, Reg::R3)
        .alu(Alu::Rsh, Reg::R2, 4)
        .jump(If::Ne, Reg::R2, 4, pass)
        .alu(Alu::And, Reg::R3, 0xf)
        .jump(If::Lt, Reg::R3, 5, pass)
        .load(Size::Byte, Reg::R2, DATA, 14 + 9)
        .jump(If::Ne, Reg::R2, libc::IPPROTO_UDP, pass)
        // More fragments, or an offset.
        .load(Size::Half, Reg::R2, DATA, 14 + 6)
        .jump(If::Set, Reg::R2, half(0x3fff), pass);
    for address in [SOURCE, DESTINATION] {
        asm.store_number(Size::Double, Reg::R10, address, 0).store_number(
            Size::Word,
            Reg::R10,
            address + 8,
            i32::from_ne_bytes([0, 0, 0xff, 0xff]),
        );
    }
    copy(asm, 14 + 12, SOURCE + 12, 1);
    copy(asm, 14 + 16, DESTINATION + 12, 1);
    asm.alu(Alu::Lsh, Reg::R3, 2).alu(Alu::Mov, UDP, DATA).alu(Alu::Add, UDP, 14).alu(
        Alu::Add,
        UDP,
        Reg::R3,
    );
}

fn ipv6(asm: &mut Assembler, pass: Label) {
    require(asm, DATA, 14 + 40, pass);
    asm.load(Size::Byte, Reg::R2, DATA, 14 + 6).jump(If::Ne, Reg::R2, libc::IPPROTO_UDP, pass);
    copy(asm, 14 + 8, SOURCE, 4);
    copy(asm, 14 + 24, DESTINATION, 4);
    asm.alu(Alu::Mov, UDP, DATA).alu(Alu::Add, UDP, 14 + 40);
}

/// `R0` = element 0 of an array, never null.
fn lookup(asm: &mut Assembler, map: &Map, pass: Label) {
    asm.store_number(Size::Word, Reg::R10, INDEX, 0);
    at_index(asm, map, pass);
}

/// `R0` = the element whose number is at [`INDEX`], never null.
fn at_index(asm: &mut Assembler, map: &Map, pass: Label) {
    asm.load_map(Reg::R1, map)
        .alu(Alu::Mov, Reg::R2, Reg::R10)
        .alu(Alu::Add, Reg::R2, i32::from(INDEX))
        .call(Helper::MapLookup)
        .jump(If::Eq, Reg::R0, 0, pass);
}

/// Hands the frame to the queue's socket if its worker is alive. Ends the
/// program, and places `pass`.
fn redirect(asm: &mut Assembler, maps: &Maps, pass: Label) {
    lookup(asm, &maps.settings, pass);
    // The frame is not looked at any more: its registers are free.
    asm.load(Size::Double, END, Reg::R0, 0).load(Size::Word, Reg::R2, CONTEXT, 16).store(
        Size::Word,
        Reg::R10,
        INDEX,
        Reg::R2,
    );
    at_index(asm, &maps.heartbeats, pass);
    // The stamp may be a little ahead of another CPU's clock: compare signed.
    asm.load(Size::Double, UDP, Reg::R0, 0)
        .call(Helper::KtimeGetNs)
        .alu(Alu::Sub, Reg::R0, UDP)
        .jump(If::Sgt, Reg::R0, END, pass)
        .load_map(Reg::R1, &maps.sockets)
        .load(Size::Word, Reg::R2, CONTEXT, 16)
        .alu(Alu::Mov, Reg::R3, PASS)
        .call(Helper::RedirectMap)
        .exit()
        .place(pass)
        .alu(Alu::Mov, Reg::R0, PASS)
        .exit();
}
