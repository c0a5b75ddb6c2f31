//! From the underlay to this node: what happens to a VXLAN frame.
//!
//! ```text
//! read     outer and inner headers -> flow name, its table line prefetched
//! enforce  known flow of this sender, or sender known and packet judged
//! rewrite  outer headers pulled off, congestion mark carried over, MACs of
//!          the gateway; the packet stays put
//! ```

use crate::addr::Addr;
use crate::counters::Tally;
use crate::enforce::{Context, Origin, enforce};
use crate::frame::{Frame, Memory};
use crate::stage::{Batch, Stride, Work, inner_error, read_inner};
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{WireError, checksum, ecn, protocol};

/// Judges and decapsulates the frames of `batch`; the verdicts are left in it.
pub fn decap<M: Memory>(cx: &Context<'_>, memory: &mut M, batch: &mut Batch, tally: &mut Tally) {
    batch.for_each_stride(memory, |memory, stride| {
        read(cx, memory, stride);
        finish(cx, memory, stride, tally);
    });
}

#[inline]
fn read<M: Memory>(cx: &Context<'_>, memory: &M, stride: &mut Stride<'_>) {
    for (frame, verdict, work) in stride.iter() {
        *verdict = match open(cx, memory.bytes(frame), work) {
            Ok(outer_len) => {
                // The inner packet was read within these bytes.
                let whole = frame.pull(outer_len);
                debug_assert!(whole);
                frame.len = ethernet::HEADER_LEN as u32 + work.total_len;
                Verdict::Local
            }
            Err(reason) => Verdict::Drop(reason),
        };
    }
}

#[inline]
fn finish<M: Memory>(cx: &Context<'_>, memory: &mut M, stride: &mut Stride<'_>, tally: &mut Tally) {
    // Counted here first: in registers.
    let (mut packets, mut bytes) = (0, 0);
    for (frame, verdict, work) in stride.iter() {
        if *verdict != Verdict::Local {
            continue;
        }
        let origin = Origin::Underlay(work.sender);
        let outcome = enforce(cx, work, || memory.bytes(frame), origin, tally);
        match outcome.and_then(|_| rewrite(cx, memory, frame, work)) {
            Ok(()) => {
                packets += 1;
                bytes += u64::from(frame.len);
            }
            Err(reason) => *verdict = Verdict::Drop(reason),
        }
    }
    tally.decapsulated_packets += packets;
    tally.decapsulated_bytes += bytes;
}

/// The outer IP header, read.
struct OuterIp<'a> {
    source: Addr,
    destination: Addr,
    ecn: u8,
    header_len: usize,
    payload: &'a [u8],
}

/// Reads the outer headers and the packet within. Returns the number of bytes
/// before the inner frame.
#[inline(always)]
fn open(cx: &Context<'_>, bytes: &[u8], work: &mut Work) -> Result<u32, DropReason> {
    let overlay = &cx.tables.overlay;
    let ip = outer_ip(bytes)?;
    if !overlay.underlay.contains(&ip.destination) {
        return Err(DropReason::OuterNotOurs);
    }
    let udp = Udp::new_checked(ip.payload).map_err(outer_error)?;
    if udp.destination_port() != overlay.port {
        return Err(DropReason::OuterMalformed);
    }
    if overlay.verify_checksum && udp.checksum() != 0 {
        verify_checksum(&ip, &udp)?;
    }
    let vxlan = Vxlan::new_checked(udp.payload()).map_err(outer_error)?;
    if vxlan.vni() != overlay.vni {
        return Err(DropReason::UnknownVni);
    }
    let mac = Ethernet::new_checked(vxlan.inner()).map_err(inner_error)?.destination();
    if mac != overlay.mac_v4 && mac != overlay.mac_v6 {
        return Err(DropReason::InnerMac);
    }
    (work.sender, work.outer_ecn) = (ip.source, ip.ecn);
    read_inner(cx, vxlan.inner(), work)?;
    let outer_len = ethernet::HEADER_LEN + ip.header_len + udp::HEADER_LEN + vxlan::HEADER_LEN;
    Ok(outer_len as u32)
}

#[inline(always)]
fn outer_ip(bytes: &[u8]) -> Result<OuterIp<'_>, DropReason> {
    let ethernet = Ethernet::new_checked(bytes).map_err(outer_error)?;
    match ethernet.ethertype() {
        ethernet::ETHERTYPE_IPV4 => {
            let ip = Ipv4::new_checked(ethernet.payload()).map_err(outer_error)?;
            if !ip.verify_checksum() {
                return Err(DropReason::OuterChecksum);
            }
            if ip.protocol() != protocol::UDP || ip.is_fragment() {
                return Err(DropReason::OuterMalformed);
            }
            Ok(OuterIp {
                source: Addr::from_v4_bytes(ip.source()),
                destination: Addr::from_v4_bytes(ip.destination()),
                ecn: ip.ecn(),
                header_len: ip.header_len(),
                payload: ip.payload(),
            })
        }
        ethernet::ETHERTYPE_IPV6 => {
            let ip = Ipv6::new_checked(ethernet.payload()).map_err(outer_error)?;
            // Nobody puts extension headers before VXLAN.
            if ip.next_header() != protocol::UDP {
                return Err(DropReason::OuterMalformed);
            }
            Ok(OuterIp {
                source: Addr::from_v6_bytes(ip.source()),
                destination: Addr::from_v6_bytes(ip.destination()),
                ecn: ip.ecn(),
                header_len: ipv6::HEADER_LEN,
                payload: ip.payload(),
            })
        }
        _ => Err(DropReason::OuterMalformed),
    }
}

/// The pseudo header (RFC 768, RFC 8200 section 8.1) and the datagram must add
/// up. The prefix of an IPv4-mapped address is ffff, which adds nothing.
#[cold]
fn verify_checksum(ip: &OuterIp<'_>, udp: &Udp<'_>) -> Result<(), DropReason> {
    let addresses = checksum::sum(&ip.source.bits().to_be_bytes())
        + checksum::sum(&ip.destination.bits().to_be_bytes());
    let pseudo = addresses + u64::from(udp.length()) + u64::from(protocol::UDP);
    match checksum::finish(pseudo + checksum::sum(udp.bytes())) {
        0 => Ok(()),
        _ => Err(DropReason::OuterChecksum),
    }
}

fn outer_error(error: WireError) -> DropReason {
    match error {
        WireError::Truncated => DropReason::OuterTruncated,
        WireError::Checksum => DropReason::OuterChecksum,
        WireError::Malformed | WireError::Unsupported => DropReason::OuterMalformed,
    }
}

/// Carries the congestion mark over and addresses the frame to the gateway.
#[inline]
fn rewrite<M: Memory>(
    cx: &Context<'_>,
    memory: &mut M,
    frame: &mut Frame,
    work: &Work,
) -> Result<(), DropReason> {
    let overlay = &cx.tables.overlay;
    let mark = ecn::decapsulate(work.outer_ecn, work.ecn).ok_or(DropReason::EcnInvalid)?;
    let bytes = memory.bytes_mut(frame);
    let (macs, rest) = bytes.split_at_mut_checked(12).ok_or(DropReason::InnerTruncated)?;
    macs[..6].copy_from_slice(&overlay.gateway_mac.0);
    macs[6..].copy_from_slice(&overlay.gateway_source_mac.0);
    if mark != work.ecn {
        ecn::set_ecn(rest.get_mut(2..).unwrap_or_default(), mark);
    }
    Ok(())
}
