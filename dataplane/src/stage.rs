//! What the stages share: a batch with room for their notes on each frame.

use crate::flow::FlowTuple;
use crate::frame::{Frame, Memory};
use crate::tables::VtepId;
use crate::verdict::{DropReason, Verdict};
use crate::wire::WireError;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::packet::Packet;

/// A stage's notes on one frame.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// What becomes of the frame.
    pub verdict: Verdict,
    pub(crate) packet: Packet,
    pub(crate) tuple: FlowTuple,
    /// Decapsulation: who sent it, and its outer ECN bits.
    pub(crate) sender: VtepId,
    pub(crate) ecn: u8,
}

/// Frames that go through a stage together.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    work: Vec<Work>,
}

impl Batch {
    /// An empty batch for up to `capacity` frames; it never grows.
    pub fn new(capacity: usize) -> Self {
        let packet = Packet::default();
        let work = Work {
            verdict: Verdict::Drop(DropReason::InnerMalformed),
            packet,
            tuple: FlowTuple::default(),
            sender: VtepId(0),
            ecn: 0,
        };
        let frames: Vec<Frame> = Vec::with_capacity(capacity);
        // Ports fill the vector to its capacity, which may be more than asked.
        let work = vec![work; frames.capacity()];
        Self { frames, work }
    }

    /// The frames, for a port to fill.
    pub fn frames_mut(&mut self) -> &mut Vec<Frame> {
        &mut self.frames
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Each frame with the notes on it.
    #[inline]
    pub(crate) fn iter(&mut self) -> impl Iterator<Item = (&mut Frame, &mut Work)> {
        self.frames.iter_mut().zip(self.work.iter_mut())
    }

    #[inline]
    pub(crate) fn prefetch<M: Memory>(&self, memory: &M) {
        for frame in &self.frames {
            memory.prefetch(frame);
        }
    }

    /// Empties the batch and yields every frame with its verdict.
    pub fn drain(&mut self) -> impl Iterator<Item = (Frame, Verdict)> {
        self.frames.drain(..).zip(self.work.iter().map(|work| work.verdict))
    }
}

/// The view of an inner frame.
#[inline]
pub(crate) fn inner_frame(bytes: &[u8]) -> Result<Ethernet<'_>, DropReason> {
    Ethernet::new_checked(bytes).map_err(inner_error)
}

/// Reads the IP packet in an inner frame, whose EtherType must agree with it.
#[inline]
pub(crate) fn inner_packet(frame: &Ethernet<'_>) -> Result<Packet, DropReason> {
    let packet = match frame.ethertype() {
        ethernet::ETHERTYPE_IPV4 => Packet::parse_v4(frame.payload()),
        ethernet::ETHERTYPE_IPV6 => Packet::parse_v6(frame.payload()),
        _ => return Err(DropReason::InnerUnsupported),
    };
    packet.map_err(inner_error)
}

fn inner_error(error: WireError) -> DropReason {
    match error {
        WireError::Truncated => DropReason::InnerTruncated,
        WireError::Malformed => DropReason::InnerMalformed,
        WireError::Checksum => DropReason::InnerChecksum,
        WireError::Unsupported => DropReason::InnerUnsupported,
    }
}
