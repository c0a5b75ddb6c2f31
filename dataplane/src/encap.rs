//! From this node to the underlay: what happens to a frame from the gateway.
//!
//! ```text
//! read     Ethernet and IP headers -> flow name
//! seek     where its line most likely is, prefetched
//! enforce  known flow, or judged -> VTEP of the remote end
//! rewrite  inner MACs, outer headers pushed in front; the packet stays put
//! ```
//!
//! The kernel has routed the packet before it came here: it has decremented
//! the TTL and answered packets that are too big, so neither happens again.

use crate::counters::Tally;
use crate::enforce::{Context, Origin, enforce};
use crate::frame::{Frame, Memory};
use crate::outer::Varying;
use crate::stage::{Batch, Stride, Work, read_inner};
use crate::tables::VtepId;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{ecn, ethernet};

/// Judges and encapsulates the frames of `batch`; the verdicts are left in it.
pub fn encap<M: Memory>(cx: &Context<'_>, memory: &mut M, batch: &mut Batch, tally: &mut Tally) {
    batch.for_each_stride(memory, |memory, stride| {
        read(cx, memory, stride);
        stride.seek(cx);
        finish(cx, memory, stride, tally);
    });
}

#[inline]
fn read<M: Memory>(cx: &Context<'_>, memory: &M, stride: &mut Stride<'_>) {
    for (frame, verdict, work) in stride.iter() {
        *verdict = match read_inner(cx, memory.bytes(frame), work) {
            Ok(()) => {
                // Padding after the packet is not part of it.
                frame.len = ethernet::HEADER_LEN as u32 + work.total_len;
                Verdict::Forward
            }
            Err(reason) => Verdict::Drop(reason),
        };
    }
}

#[inline]
fn finish<M: Memory>(cx: &Context<'_>, memory: &mut M, stride: &mut Stride<'_>, tally: &mut Tally) {
    for (frame, verdict, work) in stride.iter() {
        if *verdict != Verdict::Forward {
            continue;
        }
        let len = frame.len;
        let outcome = enforce(cx, work, || memory.bytes(frame), Origin::Gateway, tally);
        match outcome.and_then(|vtep| rewrite(cx, memory, frame, vtep, work)) {
            Ok(()) => {
                tally.encapsulated_packets += 1;
                tally.encapsulated_bytes += u64::from(len);
            }
            Err(reason) => *verdict = Verdict::Drop(reason),
        }
    }
}

/// Puts the outer headers in front of the frame, and its inner MACs into it.
#[inline]
fn rewrite<M: Memory>(
    cx: &Context<'_>,
    memory: &mut M,
    frame: &mut Frame,
    vtep: VtepId,
    work: &Work,
) -> Result<(), DropReason> {
    let vteps = &cx.tables.vteps;
    let header = vteps.header(vtep).ok_or_else(|| match vteps.get(vtep) {
        Some(_) => DropReason::NoAdjacency,
        None => DropReason::NoVtep,
    })?;
    if !frame.push(header.overhead()) {
        return Err(DropReason::NoHeadroom);
    }
    let varying = Varying { ecn: ecn::encapsulate(work.ecn), hash: work.tuple.hash };
    header.write(memory.bytes_mut(frame), &cx.tables.overlay, varying)
}
