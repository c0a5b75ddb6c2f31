//! What the stages share: a batch, and notes on the frames that are being
//! worked on.

use crate::addr::Addr;
use crate::enforce::Context;
use crate::flow::FlowTuple;
use crate::frame::{Frame, Memory};
use crate::verdict::{DropReason, Verdict};
use crate::wire::WireError;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::packet::{Fragment, Packet};

/// Frames that are read before the first of them is judged: enough for the
/// memory to answer meanwhile, few enough for everything about them to stay in
/// the first-level cache.
pub(crate) const STRIDE: usize = 32;

/// A stage's notes on one frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) packet: Packet,
    pub(crate) tuple: FlowTuple,
    /// Decapsulation: outer source address, and outer ECN bits.
    pub(crate) sender: Addr,
    pub(crate) ecn: u8,
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
    /// Each frame with its verdict and the notes on it.
    #[inline]
    pub(crate) fn iter(&mut self) -> impl Iterator<Item = (&mut Frame, &mut Verdict, &mut Work)> {
        let frames = self.frames.iter_mut().zip(self.verdicts.iter_mut());
        frames.zip(self.work.iter_mut()).map(|((frame, verdict), work)| (frame, verdict, work))
    }
}

/// The view of an inner frame.
#[inline]
pub(crate) fn inner_frame(bytes: &[u8]) -> Result<Ethernet<'_>, DropReason> {
    Ethernet::new_checked(bytes).map_err(inner_error)
}

/// Reads the IP packet in an inner frame, whose EtherType must agree with it,
/// names its flow, and asks for the flow's line.
///
/// Each family's notes are written where they were read: merged into one value
/// first, they would be copied through the stack.
#[inline(always)]
pub(crate) fn read_inner(
    cx: &Context<'_>,
    frame: &Ethernet<'_>,
    work: &mut Work,
) -> Result<(), DropReason> {
    match frame.ethertype() {
        ethernet::ETHERTYPE_IPV4 => {
            note(cx, Packet::parse_v4(frame.payload()).map_err(inner_error)?, work);
        }
        ethernet::ETHERTYPE_IPV6 => {
            note(cx, Packet::parse_v6(frame.payload()).map_err(inner_error)?, work);
        }
        _ => return Err(DropReason::InnerUnsupported),
    }
    cx.flows.prefetch(work.tuple.hash);
    Ok(())
}

#[inline(always)]
fn note(cx: &Context<'_>, packet: Packet, work: &mut Work) {
    let (vni, hasher) = (cx.tables.overlay.vni, cx.flows.hasher());
    work.packet = packet;
    match packet.fragment {
        Fragment::Later { ident } => {
            work.tuple = FlowTuple::of_fragments(packet, ident, vni, hasher);
        }
        _ => work.tuple = FlowTuple::of_whole(&packet, vni, hasher),
    }
}

fn inner_error(error: WireError) -> DropReason {
    match error {
        WireError::Truncated => DropReason::InnerTruncated,
        WireError::Malformed => DropReason::InnerMalformed,
        WireError::Checksum => DropReason::InnerChecksum,
        WireError::Unsupported => DropReason::InnerUnsupported,
    }
}
