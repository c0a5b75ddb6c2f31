//! Frames out of nowhere and into nothing, both in the kernel, for
//! measurements: [`Generator`] makes them with live test runs of an XDP
//! program, [`Sink`] counts and drops them where they arrive. Neither takes a
//! device, a driver or a module beyond XDP itself.

use std::io;

use crate::bpf::{
    AssembleError, Assembler, Condition, Helper, Link, LinkError, LoadError, Map, MapKind,
    MapMemory, Operation, Program, Register, Size,
};
use Register::*;

const XDP_ABORTED: i32 = 0;
const XDP_DROP: i32 = 1;
/// `struct xdp_md` of linux/bpf.h.
const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_QUEUE: i16 = 16;
/// Frames per batch: as many as a receiving driver takes in one go
/// (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;

/// Why there is no generator or sink.
#[derive(Debug, thiserror::Error)]
pub enum GeneratorError {
    /// The program can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program can't be put together.
    #[error("the program can't be put together: {0}")]
    Assemble(#[from] AssembleError),
    /// The sink's counters can't be had.
    #[error("map of counters: {0}")]
    Map(#[from] io::Error),
    /// The sink can't be attached.
    #[error(transparent)]
    Attach(#[from] LinkError),
    /// The frame is too short for what is to vary in it, or the number of
    /// values is no power of two.
    #[error("{values} values at byte {at} are not possible: use a power of two up to 65,536")]
    Vary {
        /// Offset of the two bytes.
        at: u16,
        /// What was asked for.
        values: u32,
    },
    /// A number of flows that is not possible.
    #[error("{flows} flows are not possible: use a power of two up to {most}")]
    Flows {
        /// What was asked for.
        flows: u32,
        /// The most.
        most: u32,
    },
    /// The frame is too short, or the program can't reach as far.
    #[error("byte {at} is outside the frame")]
    Short {
        /// What was asked for.
        at: u16,
    },
}

/// Two bytes of a frame that differ from copy to copy, at random: a UDP port
/// for instance, so that there are several flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vary {
    /// Offset of the bytes from the start of the frame.
    pub at: u16,
    /// Number of different values, a power of two up to 65,536. They count
    /// from zero, in the machine's byte order.
    pub values: u32,
}

/// Sends copies of a frame out of a device.
///
/// The other end must be able to take frames that were redirected: the peer of
/// a veth has to have an XDP program.
#[derive(Debug)]
pub struct Generator {
    program: Program,
}

impl Generator {
    /// A generator that sends out of a device of the calling thread's network
    /// namespace.
    ///
    /// # Errors
    /// When `vary` is not possible, a privilege is missing, or the kernel
    /// refuses the program.
    pub fn new(ifindex: u32, vary: Option<Vary>) -> Result<Self, GeneratorError> {
        let mut program = Assembler::new();
        let broken = program.label();
        if let Some(Vary { at, values }) = vary {
            let offset = i16::try_from(at).ok();
            let (Some(offset), true) = (offset, values.is_power_of_two() && values <= 1 << 16)
            else {
                return Err(GeneratorError::Vary { at, values });
            };
            program.load(Size::Word, R7, R1, CONTEXT_DATA);
            program.load(Size::Word, R8, R1, CONTEXT_DATA_END);
            program.set(R2, R7);
            program.compute(Operation::Add, R2, i32::from(offset) + 2);
            program.jump_if(Condition::Greater, R2, R8, broken);
            program.call(Helper::Random);
            program.compute(Operation::And, R0, values as i32 - 1);
            program.store(Size::Half, R7, offset, R0);
        }
        program.set(R1, ifindex as i32);
        program.set(R2, 0);
        program.call(Helper::Redirect);
        program.exit();
        program.place(broken);
        program.set(R0, XDP_ABORTED);
        program.exit();
        Ok(Self { program: Program::load("tieline_generate", &program.finish()?)? })
    }

    /// Sends `count` copies of `frame`, as fast as the calling thread can. What
    /// the device does not take is lost without a trace: count on the other
    /// side. A call takes some ten milliseconds to set up and clear away, so
    /// that only a large count gives a steady stream.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` before Linux 5.18, or for a frame that does not
    /// fit into a page.
    pub fn send(&self, frame: &[u8], count: u32) -> io::Result<()> {
        self.program.run_live(frame, count, BATCH)
    }
}

/// Queues that are counted apart, so that they need no atomic operations.
const QUEUES: u32 = 64;
/// Bytes from one queue's counter to the next.
const STRIDE: u32 = 64;

/// Counts and drops everything that a device receives.
#[derive(Debug)]
pub struct Sink {
    counters: MapMemory,
    _link: Link,
}

impl Sink {
    /// Attaches a sink to a device of the calling thread's network namespace,
    /// in the driver or in the network stack.
    ///
    /// # Errors
    /// As for any XDP program.
    pub fn attach(ifindex: u32, native: bool) -> Result<Self, GeneratorError> {
        let counters = Map::new(MapKind::MappableArray, "counters", 4, QUEUES * STRIDE, 1)?;
        let mut program = Assembler::new();
        program.load(Size::Word, R2, R1, CONTEXT_QUEUE);
        program.compute(Operation::And, R2, QUEUES as i32 - 1);
        program.compute(Operation::ShiftLeft, R2, STRIDE.trailing_zeros() as i32);
        program.load_map_value(R1, &counters, 0);
        program.compute(Operation::Add, R1, R2);
        program.load(Size::Double, R3, R1, 0);
        program.compute(Operation::Add, R3, 1);
        program.store(Size::Double, R1, 0, R3);
        program.set(R0, XDP_DROP);
        program.exit();
        let program = Program::load("tieline_sink", &program.finish()?)?;
        let link = Link::attach(&program, ifindex, native)?;
        Ok(Self { counters: counters.memory()?, _link: link })
    }

    /// Frames since it was attached.
    pub fn frames(&self) -> u64 {
        (0..QUEUES)
            .filter_map(|queue| self.counters.number((queue * STRIDE) as usize))
            .map(|counter| counter.load())
            .sum()
    }
}
