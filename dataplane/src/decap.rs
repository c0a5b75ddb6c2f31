//! From the underlay to this node: what happens to a VXLAN frame.
//!
//! ```text
//! read     outer and inner headers -> flow name; what almost all frames have
//!          alike is compared at one go
//! seek     where its line most likely is, prefetched
//! enforce  known flow of this sender, or sender known and packet judged
//! rewrite  outer headers pulled off, congestion mark carried over, MACs of
//!          the gateway; the packet stays put
//! ```

use crate::addr::Addr;
use crate::counters::Tally;
use crate::enforce::{Context, Origin, enforce};
use crate::frame::{Frame, Memory};
use crate::outer::OVERHEAD_V4;
use crate::stage::{Batch, Stride, Work, inner_error, read_inner};
use crate::tables::Overlay;
use crate::verdict::{DropReason, Verdict};
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::plain::word;
use crate::wire::udp::{self, Udp};
use crate::wire::vxlan::{self, Vxlan};
use crate::wire::{WireError, be16, checksum, ecn, protocol};

/// Judges and decapsulates the frames of `batch`; the verdicts are left in it.
pub fn decap<M: Memory>(cx: &Context<'_>, memory: &mut M, batch: &mut Batch, tally: &mut Tally) {
    let expected = Expected::of(&cx.tables.overlay);
    batch.for_each_stride(memory, |memory, stride| {
        read(cx, &expected, memory, stride);
        stride.seek(cx);
        finish(cx, memory, stride, tally);
    });
}

#[inline]
fn read<M: Memory>(cx: &Context<'_>, expected: &Expected, memory: &M, stride: &mut Stride<'_>) {
    for (frame, verdict, work) in stride.iter() {
        let bytes = memory.bytes(frame);
        let opened = match expected.open(bytes) {
            Some(outer) => {
                (work.sender, work.outer_ecn) = (outer.source, outer.ecn);
                read_inner(cx, outer.inner, work).map(|()| OVERHEAD_V4)
            }
            None => open(cx, bytes, work),
        };
        *verdict = match opened {
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
    for (frame, verdict, work) in stride.iter() {
        if *verdict != Verdict::Local {
            continue;
        }
        let origin = Origin::Underlay(work.sender);
        let outcome = enforce(cx, work, || memory.bytes(frame), origin, tally);
        match outcome.and_then(|_| rewrite(cx, memory, frame, work)) {
            Ok(()) => {
                tally.decapsulated_packets += 1;
                tally.decapsulated_bytes += u64::from(frame.len);
            }
            Err(reason) => *verdict = Verdict::Drop(reason),
        }
    }
}

/// The outer IP header, read.
struct OuterIp<'a> {
    source: Addr,
    destination: Addr,
    ecn: u8,
    header_len: usize,
    payload: &'a [u8],
}

/// The outer headers that almost all frames for us have, over IPv4 without
/// options: which of their bits are always the same, eight bytes at a time.
struct Expected {
    words: [Masked; 5],
    /// Bits of the UDP checksum that must be zero.
    checksum: u16,
}

/// A word as it lies in the frame, and the bits of it that count.
struct Masked {
    value: u64,
    mask: u64,
}

/// Where the [`Expected`] words are: from the EtherType, from the fragment flags,
/// from the destination address, the VXLAN header, the inner destination MAC.
const PLACES: [usize; 5] = [12, 20, 30, 42, 50];

/// Outer headers that are as expected.
struct Opened<'a> {
    source: Addr,
    ecn: u8,
    inner: &'a [u8],
}

impl Expected {
    /// Works it out for a batch; the MAC is that for IPv4.
    fn of(overlay: &Overlay) -> Self {
        let Some(underlay) = overlay.underlay.iter().find(|addr| addr.is_v4()) else {
            // Nothing is as expected.
            let nothing = std::array::from_fn(|_| Masked { value: 1, mask: 0 });
            return Self { words: nothing, checksum: 0 };
        };
        let [a, b, c, d] = (underlay.bits() as u32).to_be_bytes();
        let [port_high, port_low] = overlay.port.to_be_bytes();
        let [_, x, y, z] = overlay.vni.get().to_be_bytes();
        let [m0, m1, m2, m3, m4, m5] = overlay.mac_v4.0;
        let masked = |value, mask| Masked {
            value: u64::from_ne_bytes(value),
            mask: u64::from_ne_bytes(mask),
        };
        let words = [
            masked([8, 0, 0x45, 0, 0, 0, 0, 0], [0xff, 0xff, 0xff, 0, 0, 0, 0, 0]),
            masked([0, 0, 0, protocol::UDP, 0, 0, 0, 0], [0x3f, 0xff, 0, 0xff, 0, 0, 0, 0]),
            masked(
                [a, b, c, d, 0, 0, port_high, port_low],
                [0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff],
            ),
            masked([8, 0, 0, 0, x, y, z, 0], [8, 0, 0, 0, 0xff, 0xff, 0xff, 0]),
            masked([m0, m1, m2, m3, m4, m5, 0, 0], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        ];
        Self { words, checksum: if overlay.verify_checksum { 0xffff } else { 0 } }
    }

    /// Reads outer headers; `None` unless they are as expected and right.
    #[inline(always)]
    fn open<'a>(&self, bytes: &'a [u8]) -> Option<Opened<'a>> {
        let front: &[u8; 58] = bytes.first_chunk()?;
        let mut differs = u64::from(be16(front, 40) & self.checksum);
        for (masked, at) in self.words.iter().zip(PLACES) {
            differs |= word(front, at) & masked.mask ^ masked.value;
        }
        let ip: &[u8; ipv4::MIN_HEADER_LEN] = front[ethernet::HEADER_LEN..].first_chunk()?;
        let (ip_len, udp_len) = (usize::from(be16(ip, 2)), usize::from(be16(front, 38)));
        let ip_end = ethernet::HEADER_LEN + ip_len;
        let udp_end = ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN + udp_len;
        if differs != 0 || ip_end > bytes.len() || udp_end > ip_end || !checksum::is_right(ip) {
            return None;
        }
        let [.., a, b, c, d, _, _, _, _] = *ip;
        Some(Opened {
            source: Addr::from_v4_bytes([a, b, c, d]),
            ecn: ip[1] & 3,
            inner: bytes.get(OVERHEAD_V4 as usize..udp_end)?,
        })
    }
}

/// Reads any outer headers and the packet within. Returns the number of bytes
/// before the inner frame.
#[cold]
#[inline(never)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{FlowHasher, FlowTable, Tick, Timeouts};
    use crate::tables::Snapshot;
    use crate::wire::MacAddr;
    use proptest::prelude::*;
    use std::sync::Arc;

    const MAC: MacAddr = MacAddr([0x66, 1, 2, 3, 4, 5]);

    fn tables(underlay: &[Addr], verify_checksum: bool) -> Snapshot {
        let mut tables = Snapshot::empty();
        let overlay = (*tables.overlay).clone();
        let underlay = underlay.to_vec();
        tables.overlay = Arc::new(Overlay { underlay, mac_v4: MAC, verify_checksum, ..overlay });
        tables
    }

    /// A packet of 28 bytes within VXLAN, from 172.16.0.2 to 172.16.0.1.
    fn frame() -> [u8; 92] {
        let mut frame = [0; 92];
        frame[12..].copy_from_slice(&[
            8, 0, 0x45, 2, 0, 78, 0, 0, 0x40, 0, 64, 17, 0, 0, 172, 16, 0, 2, 172, 16, 0,
            1, // IP
            0xc0, 0, 0x12, 0xb5, 0, 58, 0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0, // UDP, VXLAN
            0x66, 1, 2, 3, 4, 5, 0x66, 0, 0, 0, 0, 1, 8, 0, // inner Ethernet
            0x45, 0, 0, 28, 0, 0, 0, 0, 63, 17, 0, 0, 10, 2, 0, 5, 10, 1, 0, 5, // IP
            0, 9, 1, 0xbb, 0, 8, 0, 0, // UDP
        ]);
        seal(&mut frame);
        frame
    }

    /// Sets the checksums of both IPv4 headers.
    fn seal(frame: &mut [u8; 92]) {
        for ip in [14, 64] {
            frame[ip + 10..ip + 12].fill(0);
            let sum = checksum::finish(checksum::sum(&frame[ip..ip + 20]));
            frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        }
    }

    type Read = (Result<u32, DropReason>, Work);

    /// What the short way says, if anything, and what the long way says.
    fn both(tables: &Snapshot, bytes: &[u8]) -> (Option<Read>, Read) {
        let flows = FlowTable::with_hasher(1, Timeouts::default(), FlowHasher::from_seed(1));
        let cx = Context { tables, flows: &flows, now: Tick(0) };
        let expected = Expected::of(&tables.overlay);
        let short = expected.open(bytes).map(|outer| {
            let work = &mut Work { sender: outer.source, outer_ecn: outer.ecn, ..Work::default() };
            let read = read_inner(&cx, outer.inner, work);
            (read.map(|()| OVERHEAD_V4), *work)
        });
        let mut work = Work::default();
        let long = open(&cx, bytes, &mut work);
        (short, (long, work))
    }

    #[test]
    fn frames_as_expected_take_the_short_way() {
        let ours = Addr::from_v4_bytes([172, 16, 0, 1]);
        let (short, long) = both(&tables(&[ours], true), &frame());
        assert_eq!((short, long.0), (Some(long), Ok(OVERHEAD_V4)));
        let (work, sender) = (long.1, Addr::from_v4_bytes([172, 16, 0, 2]));
        assert_eq!((work.sender, work.outer_ecn, work.ordinary), (sender, 2, true));
        let other = Addr::from_bits(1);
        for (underlay, why) in
            [(&[][..], "none"), (&[other][..], "of IPv6"), (&[sender][..], "else")]
        {
            let (short, long) = both(&tables(underlay, true), &frame());
            assert_eq!((short, long.0), (None, Err(DropReason::OuterNotOurs)), "{why}");
        }
    }

    proptest! {
        #[test]
        fn both_ways_say_the_same(
            damage in prop::collection::vec((0usize..92, any::<u8>()), 0..3),
            len in 0usize..110,
            sealed in any::<bool>(),
            verify in any::<bool>(),
        ) {
            let mut frame = frame();
            for (at, value) in damage {
                frame[at] = value;
            }
            if sealed {
                seal(&mut frame);
            }
            let mut bytes = frame.to_vec();
            bytes.resize(len.max(80), 0);
            let (short, long) = both(&tables(&[Addr::from_v4_bytes([172, 16, 0, 1])], verify), &bytes);
            if let Some(short) = short {
                prop_assert_eq!(short.0, long.0);
                if short.0.is_ok() {
                    prop_assert_eq!(short.1, long.1);
                }
            }
        }
    }
}
