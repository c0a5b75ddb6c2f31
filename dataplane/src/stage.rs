//! What the stages share: a batch, and notes on the frames that are being
//! worked on.

use crate::addr::Addr;
use crate::enforce::Context;
use crate::flow::FlowTuple;
use crate::frame::{Frame, Memory};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::packet::Packet;
use crate::wire::plain::Plain;
use crate::wire::{WireError, be16, tcp};

/// Frames that are read before the first of them is judged: enough for the
/// memory to answer meanwhile, few enough for everything about them to stay in
/// the first-level cache.
pub(crate) const STRIDE: usize = 32;

/// A stage's notes on one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    pub(crate) tuple: FlowTuple,
    /// The line of the flow table where it most likely stands.
    pub(crate) line: usize,
    /// Decapsulation: outer source address.
    pub(crate) sender: Addr,
    /// Bytes from the IP header to the packet's end.
    pub(crate) total_len: u32,
    /// Inner ECN bits.
    pub(crate) ecn: u8,
    /// Decapsulation: outer ECN bits.
    pub(crate) outer_ecn: u8,
    /// Whether it is whole, of UDP, or of TCP without SYN, FIN and RST: then
    /// nothing but its direction matters to a flow that is known.
    pub(crate) ordinary: bool,
}

/// Frames that go through a stage together, and the verdicts on them.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    verdicts: Vec<Verdict>,
    work: Box<[Work; STRIDE]>,
}

/// Some frames of a batch, with the verdicts and notes on them.
pub(crate) struct Stride<'a> {
    pub(crate) frames: &'a mut [Frame],
    pub(crate) verdicts: &'a mut [Verdict],
    pub(crate) work: &'a mut [Work; STRIDE],
}

impl Batch {
    /// An empty batch for up to `capacity` frames; it never grows.
    pub fn new(capacity: usize) -> Self {
        let frames: Vec<Frame> = Vec::with_capacity(capacity);
        // Ports fill the vector to its capacity, which may be more than asked.
        let verdicts = vec![Verdict::Drop(DropReason::InnerMalformed); frames.capacity()];
        Self { frames, verdicts, work: Box::new([Work::default(); STRIDE]) }
    }

    /// The frames, for a port to fill.
    pub fn frames_mut(&mut self) -> &mut Vec<Frame> {
        &mut self.frames
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Goes through the batch by strides. The first bytes of the frames of each
    /// are asked for one stride ahead.
    #[inline]
    pub(crate) fn for_each_stride<M: Memory>(
        &mut self,
        memory: &mut M,
        mut work: impl FnMut(&mut M, &mut Stride<'_>),
    ) {
        let prefetch = |memory: &mut M, frames: &[Frame]| {
            for frame in &frames[..frames.len().min(STRIDE)] {
                memory.prefetch(frame);
            }
        };
        let (mut frames, mut verdicts) = (&mut self.frames[..], &mut self.verdicts[..]);
        prefetch(memory, frames);
        while !frames.is_empty() {
            let at = frames.len().min(STRIDE);
            let (these, next) = frames.split_at_mut(at);
            let (their_verdicts, next_verdicts) = verdicts.split_at_mut(at);
            prefetch(memory, next);
            let work_space = &mut *self.work;
            let stride = &mut Stride { frames: these, verdicts: their_verdicts, work: work_space };
            work(memory, stride);
            (frames, verdicts) = (next, next_verdicts);
        }
    }

    /// Empties the batch and yields every frame with its verdict.
    pub fn drain(&mut self) -> impl Iterator<Item = (Frame, Verdict)> {
        self.frames.drain(..).zip(self.verdicts.iter().copied())
    }
}

impl Stride<'_> {
    /// Asks for the lines of the flows that [`read_inner`] has named.
    #[inline(always)]
    pub(crate) fn seek(&mut self, cx: &Context<'_>) {
        for work in self.work.iter_mut().take(self.frames.len()) {
            work.line = cx.flows.prefetch(&work.tuple);
        }
    }

    /// Each frame with its verdict and the notes on it.
    #[inline]
    pub(crate) fn iter(&mut self) -> impl Iterator<Item = (&mut Frame, &mut Verdict, &mut Work)> {
        let frames = self.frames.iter_mut().zip(self.verdicts.iter_mut());
        frames.zip(self.work.iter_mut()).map(|((frame, verdict), work)| (frame, verdict, work))
    }
}

/// Reads the IP packet in an inner frame, names its flow, and asks for what tells
/// where that stands.
///
/// Each family's notes are written where they were read: merged into one value
/// first, an IPv4 packet would cost as much as one of IPv6.
#[inline(always)]
pub(crate) fn read_inner(
    cx: &Context<'_>,
    frame: &[u8],
    work: &mut Work,
) -> Result<(), DropReason> {
    let noted = match frame.first_chunk().map(|header: &[u8; 14]| be16(header, 12)) {
        Some(ethernet::ETHERTYPE_IPV4) => Plain::read_v4(frame).map(|plain| note(cx, plain, work)),
        Some(ethernet::ETHERTYPE_IPV6) => Plain::read_v6(frame).map(|plain| note(cx, plain, work)),
        _ => None,
    };
    if noted.is_none() {
        read_any(cx, frame, work)?;
    }
    cx.flows.prepare(&work.tuple);
    Ok(())
}

#[inline(always)]
fn note(cx: &Context<'_>, plain: Plain, work: &mut Work) {
    let (vni, hasher) = (cx.tables.overlay.vni, cx.flows.hasher());
    let ends = (plain.src, plain.dst);
    work.tuple = FlowTuple::of_ports(ends, plain.ports, plain.protocol, vni, hasher);
    (work.total_len, work.ecn) = (plain.total_len, plain.ecn);
    work.ordinary = plain.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0;
}

/// The same for packets of all kinds.
#[cold]
#[inline(never)]
fn read_any(cx: &Context<'_>, frame: &[u8], work: &mut Work) -> Result<(), DropReason> {
    let packet = parse_inner(frame)?;
    work.tuple = FlowTuple::of(&packet, cx.tables.overlay.vni, cx.flows.hasher());
    (work.total_len, work.ecn) = (packet.total_len, packet.ecn);
    work.ordinary = false;
    Ok(())
}

/// The IP packet in an inner frame, whose EtherType must agree with it.
pub(crate) fn parse_inner(frame: &[u8]) -> Result<Packet, DropReason> {
    let frame = Ethernet::new_checked(frame).map_err(inner_error)?;
    let parsed = match frame.ethertype() {
        ethernet::ETHERTYPE_IPV4 => Packet::parse_v4(frame.payload()),
        ethernet::ETHERTYPE_IPV6 => Packet::parse_v6(frame.payload()),
        _ => Err(WireError::Unsupported),
    };
    parsed.map_err(inner_error)
}

pub(crate) fn inner_error(error: WireError) -> DropReason {
    match error {
        WireError::Truncated => DropReason::InnerTruncated,
        WireError::Malformed => DropReason::InnerMalformed,
        WireError::Checksum => DropReason::InnerChecksum,
        WireError::Unsupported => DropReason::InnerUnsupported,
    }
}
