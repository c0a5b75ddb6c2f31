//! Measured traffic without a driver of its own: [`Source`] sends numbered,
//! timed packets of many flows at a fixed rate, [`Check`] looks at each of them
//! where it arrives. Both are XDP programs, so that neither a system call nor a
//! wake-up per packet stands between a packet and its time.
//!
//! The times of sending are fixed in advance: packet `n` is due at `start + n *
//! interval`, and carries that time, not the one at which it was really sent. A
//! receiver that stalls is charged for everything that was due meanwhile (no
//! coordinated omission), and so is a source that is late, which is why
//! [`Sent::latest`] says how late it was.
//!
//! ```text
//! frame:   Ethernet, IP, UDP | number (8) | due time (8) | pattern ...
//! number:  run (16 bits), count (48 bits); machine's byte order, as the time is
//! ```

use std::io;
use std::time::{Duration, Instant};

use crate::bpf::{
    Assembler, Condition, Helper, Map, MapKind, MapMemory, Operation, Program, Register, Size,
};
use crate::generator::GeneratorError;
use Register::*;

mod check;
mod histogram;

pub use check::{Check, CheckConfig, Seen};
pub use histogram::Histogram;

/// Bytes of the stamp: number and due time.
pub const STAMP: usize = 16;
/// Bits of a number that count; the others tell the run.
pub const COUNT_BITS: u32 = 48;
/// A packet that is sent so much after it was due counts as late, nanoseconds.
pub const LATE_NS: u16 = 50_000;
/// Bits of a time's fraction of a nanosecond, so that rates are exact.
const FRACTION: u32 = 8;

// Offsets in the state that the source's program works on.
const NEXT: i16 = 0;
const INTERVAL: i16 = 8;
const NUMBER: i16 = 16;
const END: i16 = 24;
const LATEST: i16 = 32;
const LATE: i16 = 40;
const FLOW: i16 = 48;
const STATE: u32 = 56;

/// Addresses that flows are spread over, at each end; a power of two.
pub const PAIRS: u32 = 32;
/// Most flows: all pairs with all source ports.
pub const MOST_FLOWS: u32 = PAIRS << 16;
/// The source port of flow 0; others differ in the low bits first.
pub const FIRST_PORT: u16 = 10_000;

/// What a source sends.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The frame, its headers complete. Behind `stamp_at` follow 16 bytes for
    /// the stamp, then anything.
    pub frame: Vec<u8>,
    /// Offset of the stamp.
    pub stamp_at: u16,
    /// Number of flows, a power of two up to [`MOST_FLOWS`]; they take turns.
    pub flows: u32,
    /// Number of its first flow, a multiple of `flows`: several sources may each
    /// have their own.
    pub first: u32,
    /// Offset of the UDP source port.
    pub port_at: u16,
    /// Offsets of the last bytes of source and destination address, which must
    /// be even or odd both, so that sums over them stay what they are: the
    /// first is counted up from what the frame has, the second down.
    pub pair_at: (u16, u16),
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets that were given to the device, which may have lost some.
    pub packets: u64,
    /// Time from the first due time to the end.
    pub elapsed: Duration,
    /// How long after its time a packet was sent at most.
    pub latest: Duration,
    /// Packets that were sent more than 50 microseconds after their time.
    pub late: u64,
}

/// One run of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Tells this run's packets from those of others.
    pub tag: u16,
    /// Packets to send.
    pub packets: u64,
    /// Packets per second; `None`: as fast as it goes.
    pub rate: Option<f64>,
    /// The flow of the first packet.
    pub first_flow: u32,
    /// Packets that go to the device together at most, 1 to 64.
    pub batch: u32,
}

/// Sends packets out of a device from within the kernel.
///
/// The other end must take redirected frames, as for
/// [`Generator`](crate::generator::Generator).
#[derive(Debug)]
pub struct Source {
    program: Program,
    state: MapMemory,
    frame: Vec<u8>,
    /// What a run of the program costs that sends nothing, in nanoseconds.
    idle_ns: f64,
}

impl Source {
    /// A source that sends out of a device of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When the numbers of flows or the offsets are not possible, a privilege
    /// is missing, or the kernel refuses the program.
    pub fn new(ifindex: u32, config: &SourceConfig) -> Result<Self, GeneratorError> {
        let flows = config.flows;
        let possible = flows.is_power_of_two() && config.first.is_multiple_of(flows);
        if !possible || config.first.checked_add(flows).is_none_or(|end| end > MOST_FLOWS) {
            return Err(GeneratorError::Flows { flows, most: MOST_FLOWS });
        }
        let needed = [config.stamp_at + 15, config.port_at + 1, config.pair_at.0, config.pair_at.1];
        if let Some(at) = needed.into_iter().find(|at| usize::from(*at) >= config.frame.len()) {
            return Err(GeneratorError::Short { at });
        }
        let state = Map::new(MapKind::MappableArray, "source", 4, STATE, 1)?;
        let program = Program::load("tieline_source", &source(ifindex, config, &state)?.finish()?)?;
        let state = state.memory()?;
        let mut this = Self { program, state, frame: config.frame.clone(), idle_ns: 25.0 };
        this.idle_ns = this.cost_of_nothing()?;
        Ok(this)
    }

    /// Runs the program without anything due.
    fn cost_of_nothing(&self) -> io::Result<f64> {
        const RUNS: u32 = 1 << 18;
        self.set(END, u64::MAX);
        self.set(NUMBER, 0);
        self.set(INTERVAL, 1);
        self.set(NEXT, u64::MAX >> 1);
        // Setting up costs the same whatever the count: it falls out.
        let mut took = [Duration::ZERO; 2];
        for (runs, took) in [1, RUNS].into_iter().zip(&mut took) {
            let start = Instant::now();
            self.program.run_live(&self.frame, runs, 64)?;
            *took = start.elapsed();
        }
        let ns = took[1].saturating_sub(took[0]).as_nanos() as f64 / f64::from(RUNS);
        Ok(ns.clamp(5.0, 1000.0))
    }

    /// Sends a run's packets and returns when all are sent. It keeps the calling
    /// thread's CPU busy all the time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&self, run: &Run) -> io::Result<Sent> {
        let first = u64::from(run.tag) << COUNT_BITS;
        let interval = run.rate.map_or(0.0, |rate| 1e9 / rate.max(1.0));
        let due_ns = interval * run.packets as f64;
        self.set(INTERVAL, (interval * f64::from(1 << FRACTION)) as u64);
        self.set(NUMBER, first);
        self.set(FLOW, u64::from(run.first_flow));
        self.set(LATEST, 0);
        self.set(LATE, 0);
        // The first call sets things up, and sends nothing.
        self.set(END, first);
        let start = crate::hint::monotonic_ns() + SETUP_NS;
        self.set(NEXT, if run.rate.is_some() { start << FRACTION } else { 0 });
        self.set(END, first + run.packets);
        // One call if it can be: between two nothing is sent for a while. What is
        // left of it at the end costs little.
        let mut idle =
            if run.rate.is_some() { (due_ns + SETUP_NS as f64) / self.idle_ns } else { 0.0 };
        let mut began = None;
        loop {
            let sent = self.number(NUMBER) - first;
            if self.number(END) <= first + sent {
                break;
            }
            began.get_or_insert_with(Instant::now);
            let count = run.packets.saturating_sub(sent) as f64 + idle * 1.7 + 64.0;
            let count = count.min(f64::from(u32::MAX)) as u32;
            self.program.run_live(&self.frame, count, run.batch.clamp(1, 64))?;
            idle = 1e6 / self.idle_ns;
        }
        let took = began.map(|began| began.elapsed()).unwrap_or_default();
        let elapsed = match run.rate {
            Some(_) => Duration::from_nanos(due_ns as u64),
            None => took,
        };
        Ok(Sent {
            packets: self.number(NUMBER) - first,
            elapsed,
            latest: Duration::from_nanos(self.number(LATEST)),
            late: self.number(LATE),
        })
    }

    /// Ends the current run, which is another thread's.
    pub fn stop(&self) {
        self.set(END, 0);
    }

    /// Packets of the current run so far; another thread's run can be watched.
    pub fn progress(&self) -> u64 {
        self.number(NUMBER) & ((1 << COUNT_BITS) - 1)
    }

    fn number(&self, at: i16) -> u64 {
        self.state.number(at as usize).map(|number| number.load()).unwrap_or_default()
    }

    fn set(&self, at: i16, value: u64) {
        if let Some(number) = self.state.number(at as usize) {
            number.store(value);
        }
    }
}

/// Time that the kernel is given to set up a run before the first packet is
/// due, in nanoseconds.
const SETUP_NS: u64 = 30_000_000;

const XDP_DROP: i32 = 1;

/// The program: is a packet due, what is in it, out it goes.
fn source(ifindex: u32, config: &SourceConfig, state: &Map) -> Result<Assembler, GeneratorError> {
    let offset = |at: u16| i16::try_from(at).map_err(|_| GeneratorError::Short { at });
    let mut program = Assembler::new();
    let (drop, on_time, not_late, not_latest) =
        (program.label(), program.label(), program.label(), program.label());
    // Data and end of the frame.
    program.load(Size::Word, R6, R1, 0);
    program.load(Size::Word, R7, R1, 4);
    program.load_map_value(R8, state, 0);
    program.load(Size::Double, R1, R8, NUMBER);
    program.load(Size::Double, R2, R8, END);
    program.jump_if(Condition::GreaterOrEqual, R1, R2, drop);
    program.call(Helper::MonotonicTime);
    // R9: when it is due; without a rate, now.
    program.load(Size::Double, R3, R8, INTERVAL);
    program.set(R9, R0);
    program.jump_if(Condition::Equal, R3, 0, on_time);
    program.load(Size::Double, R4, R8, NEXT);
    program.set(R9, R4);
    program.compute(Operation::ShiftRight, R9, FRACTION as i32);
    program.jump_if(Condition::Greater, R9, R0, drop);
    program.compute(Operation::Add, R4, R3);
    program.store(Size::Double, R8, NEXT, R4);
    // How late it is.
    program.compute(Operation::Subtract, R0, R9);
    program.load(Size::Double, R3, R8, LATEST);
    program.jump_if(Condition::GreaterOrEqual, R3, R0, not_latest);
    program.store(Size::Double, R8, LATEST, R0);
    program.place(not_latest);
    program.jump_if(Condition::Less, R0, i32::from(LATE_NS), not_late);
    program.load(Size::Double, R3, R8, LATE);
    program.compute(Operation::Add, R3, 1);
    program.store(Size::Double, R8, LATE, R3);
    program.place(not_late);
    program.place(on_time);
    let stamp_at = offset(config.stamp_at)?;
    program.set(R2, R6);
    program.compute(Operation::Add, R2, i32::from(stamp_at) + STAMP as i32);
    program.jump_if(Condition::Greater, R2, R7, drop);
    // Number and flow, counted on.
    program.load(Size::Double, R5, R8, NUMBER);
    program.set(R3, R5);
    program.compute(Operation::Add, R3, 1);
    program.store(Size::Double, R8, NUMBER, R3);
    program.load(Size::Double, R4, R8, FLOW);
    program.set(R3, R4);
    program.compute(Operation::Add, R3, 1);
    program.compute(Operation::And, R3, MOST_FLOWS as i32 - 1);
    program.store(Size::Double, R8, FLOW, R3);
    // A frame comes back as the router left it: all headers are written anew.
    write_bytes(&mut program, &config.frame[..usize::from(config.stamp_at)]);
    program.store(Size::Double, R6, stamp_at, R5);
    program.store(Size::Double, R6, stamp_at + 8, R9);
    // R4: the flow; its low bits choose the pair, the others the port.
    program.compute(Operation::And, R4, config.flows as i32 - 1);
    program.compute(Operation::Or, R4, config.first as i32);
    program.set(R3, R4);
    program.compute(Operation::And, R3, PAIRS as i32 - 1);
    for (at, operation) in
        [(config.pair_at.0, Operation::Add), (config.pair_at.1, Operation::Subtract)]
    {
        program.set(R2, i32::from(config.frame[usize::from(at)]));
        program.compute(operation, R2, R3);
        program.store(Size::Byte, R6, offset(at)?, R2);
    }
    program.compute(Operation::ShiftRight, R4, PAIRS.trailing_zeros() as i32);
    program.compute(Operation::Xor, R4, i32::from(FIRST_PORT));
    let port_at = offset(config.port_at)?;
    program.store(Size::Byte, R6, port_at + 1, R4);
    program.compute(Operation::ShiftRight, R4, 8);
    program.store(Size::Byte, R6, port_at, R4);
    program.set(R1, ifindex as i32);
    program.set(R2, 0);
    program.call(Helper::Redirect);
    program.exit();
    program.place(drop);
    program.set(R0, XDP_DROP);
    program.exit();
    Ok(program)
}

/// Writes bytes to the start of the frame at R6.
fn write_bytes(program: &mut Assembler, bytes: &[u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let (size, number, len) = match bytes[at..] {
            [a, b, c, d, ..] => (Size::Word, i32::from_ne_bytes([a, b, c, d]), 4),
            [a, b, ..] => (Size::Half, i32::from(u16::from_ne_bytes([a, b])), 2),
            [a, ..] => (Size::Byte, i32::from(a), 1),
            [] => break,
        };
        program.store(size, R6, at as i16, number);
        at += len;
    }
}
