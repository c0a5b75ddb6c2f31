//! From this node to the underlay: what happens to a frame from the gateway.
//!
//! ```text
//! read     Ethernet and IP headers -> flow name, its table line prefetched
//! enforce  known flow, or judged -> VTEP of the remote end
//! rewrite  inner MACs, outer headers pushed in front; the packet stays put
//! ```
//!
//! The kernel has routed the packet before it came here: it has decremented
//! the TTL and answered packets that are too big, so neither happens again.

use crate::counters::Tally;
use crate::enforce::{Context, Origin, enforce};
use crate::flow::FlowTuple;
use crate::frame::{Frame, Memory};
use crate::outer::{self, Varying};
use crate::stage::{Batch, inner_frame, inner_packet};
use crate::tables::VtepId;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{ecn, ethernet};

/// Judges and encapsulates the frames of `batch`; the verdicts are left in it.
pub fn encap<M: Memory>(cx: &Context<'_>, memory: &mut M, batch: &mut Batch, tally: &mut Tally) {
    batch.prefetch(memory);
    for (frame, work) in batch.iter() {
        work.verdict = match inner_frame(memory.bytes(frame)).and_then(|inner| inner_packet(&inner))
        {
            Ok(packet) => {
                // Padding after the packet is not part of it.
                frame.len = ethernet::HEADER_LEN as u32 + packet.total_len;
                work.packet = packet;
                work.tuple = FlowTuple::of(&packet, cx.tables.overlay.vni, cx.flows.hasher());
                cx.flows.prefetch(work.tuple.hash);
                Verdict::Forward
            }
            Err(reason) => Verdict::Drop(reason),
        };
    }
    for (frame, work) in batch.iter() {
        if work.verdict != Verdict::Forward {
            continue;
        }
        let ip = memory.bytes(frame).get(ethernet::HEADER_LEN..).unwrap_or_default();
        let outcome = enforce(cx, &work.packet, ip, &work.tuple, Origin::Gateway, tally);
        let bytes = u64::from(frame.len);
        let varying = Varying { ecn: ecn::encapsulate(work.packet.ecn), hash: work.tuple.hash };
        match outcome.and_then(|vtep| rewrite(cx, memory, frame, vtep, varying)) {
            Ok(()) => {
                tally.encapsulated_packets += 1;
                tally.encapsulated_bytes += bytes;
            }
            Err(reason) => work.verdict = Verdict::Drop(reason),
        }
    }
}

/// Gives the frame its inner MACs and its outer headers.
#[inline]
fn rewrite<M: Memory>(
    cx: &Context<'_>,
    memory: &mut M,
    frame: &mut Frame,
    vtep: VtepId,
    varying: Varying,
) -> Result<(), DropReason> {
    let overlay = &cx.tables.overlay;
    let vtep = cx.tables.vteps.get(vtep).ok_or(DropReason::NoVtep)?;
    let path = vtep.path.as_ref().ok_or(DropReason::NoAdjacency)?;
    let overhead = outer::overhead(vtep.underlay);
    if !frame.push(overhead) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = memory.bytes_mut(frame);
    let inner_mac = if vtep.underlay.is_v4() { overlay.mac_v4 } else { overlay.mac_v6 };
    let at = overhead as usize;
    let macs = bytes.get_mut(at..at + 12).ok_or(DropReason::NoHeadroom)?;
    macs[..6].copy_from_slice(&vtep.mac.0);
    macs[6..].copy_from_slice(&inner_mac.0);
    outer::write(bytes, overlay, vtep, path, varying)
}
