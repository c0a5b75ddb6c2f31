//! The packets that are sent, and who they are from and to.
//!
//! One local node and one remote node with 32 pods each. A flow is a pair of
//! pods and a UDP source port; 64 bytes are the whole frame without its check
//! sequence.

use std::net::{Ipv4Addr, Ipv6Addr};

use tieline_dataplane::wire::checksum;
use tieline_dataplane::xsk::traffic::{CheckConfig, PAIRS, STAMP, SourceConfig};

/// The remote node's and the local node's addresses.
pub(crate) const SINK_UNDERLAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub(crate) const ROUTER_UNDERLAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// Bases of the nodes' blocks of addresses, which are their tunnel addresses.
pub(crate) const LOCAL_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);
pub(crate) const REMOTE_TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 0);

pub(crate) const G0: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const D0: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const U0: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub(crate) const S0: [u8; 6] = [2, 0, 0, 0, 0, 4];
pub(crate) const LOCAL_VTEP: [u8; 6] = [0x66, 0, 0, 0, 0, 1];
pub(crate) const REMOTE_VTEP: [u8; 6] = [0x66, 0, 0, 0, 0, 2];

/// Calico's.
pub(crate) const VNI: u32 = 4096;
pub(crate) const VXLAN_PORT: u16 = 4789;

/// Where more of the remote node's blocks begin.
pub(crate) const MORE: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// The same for IPv6, whose tunnel goes over IPv6, as Calico's does.
pub(crate) const SINK_UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 2);
pub(crate) const ROUTER_UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, 1);
pub(crate) const LOCAL_TUNNEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0);
pub(crate) const REMOTE_TUNNEL_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 0, 0);
pub(crate) const LOCAL_VTEP_V6: [u8; 6] = [0x66, 0, 0, 0, 6, 1];
pub(crate) const REMOTE_VTEP_V6: [u8; 6] = [0x66, 0, 0, 0, 6, 2];

/// The port that flows go to.
pub(crate) const PORT: u16 = 443;

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 42;
/// Bytes that VXLAN puts in front.
const TUNNEL: usize = 50;
/// The least frame: headers, stamp and one word of pattern.
pub(crate) const LEAST: usize = HEADERS + STAMP + 4;
/// The same with IPv6.
const HEADERS_V6: usize = 62;
const TUNNEL_V6: usize = 70;
pub(crate) const LEAST_V6: usize = HEADERS_V6 + STAMP + 4;

/// What a run is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Flows that take turns.
    pub(crate) flows: u32,
    /// Bytes of the inner frame, without the frame check sequence.
    pub(crate) size: usize,
}

/// The pods of the local node that flows come from.
pub(crate) fn local_pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(LOCAL_TUNNEL.to_bits() + 1 + number)
}

/// The pods of the remote node that flows go to.
pub(crate) fn remote_pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(REMOTE_TUNNEL.to_bits() + 1 + number)
}

/// Pods of the remote node that flows never go to.
pub(crate) fn more_pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(MORE.to_bits() + number)
}

/// The same pods' IPv6 addresses.
pub(crate) fn local_pod_v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(LOCAL_TUNNEL_V6.to_bits() + 1 + u128::from(number))
}

/// The same pods' IPv6 addresses.
pub(crate) fn remote_pod_v6(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(REMOTE_TUNNEL_V6.to_bits() + 1 + u128::from(number))
}

/// Number of pods on each node.
pub(crate) fn pods() -> std::ops::Range<u32> {
    0..PAIRS
}

/// A MAC address as commands take it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What the generator sends to a router with this MAC address.
pub(crate) fn outgoing(load: Load, to: [u8; 6]) -> SourceConfig {
    let ends = (local_pod(0), remote_pod(PAIRS - 1));
    let frame = datagram(load.size, (G0, to), ends, (0, PORT));
    let stamp_at = HEADERS as u16;
    SourceConfig { frame, stamp_at, flows: load.flows, first: 0, port_at: 34, pair_at: (29, 33) }
}

/// The answers of the same flows, in VXLAN, as the remote node sends them.
pub(crate) fn answers(load: Load) -> SourceConfig {
    let ends = (remote_pod(PAIRS - 1), local_pod(0));
    let inner = datagram(load.size, (REMOTE_VTEP, LOCAL_VTEP), ends, (PORT, 0));
    let mut frame = tunnel(inner.len());
    frame.extend(inner);
    let at = |inner: u16| TUNNEL as u16 + inner;
    SourceConfig {
        frame,
        stamp_at: at(HEADERS as u16),
        flows: load.flows,
        first: 0,
        port_at: at(36),
        pair_at: (at(33), at(29)),
    }
}

/// [`outgoing`] with IPv6. Its UDP checksum is left to who sends.
pub(crate) fn outgoing_v6(load: Load, to: [u8; 6]) -> SourceConfig {
    let ends = (local_pod_v6(0), remote_pod_v6(PAIRS - 1));
    let frame = datagram_v6(load.size, (G0, to), ends, (0, PORT));
    let stamp_at = HEADERS_V6 as u16;
    SourceConfig { frame, stamp_at, flows: load.flows, first: 0, port_at: 54, pair_at: (37, 53) }
}

/// [`answers`] with IPv6. Both UDP checksums are left to who sends.
pub(crate) fn answers_v6(load: Load) -> SourceConfig {
    let ends = (remote_pod_v6(PAIRS - 1), local_pod_v6(0));
    let inner = datagram_v6(load.size, (REMOTE_VTEP_V6, LOCAL_VTEP_V6), ends, (PORT, 0));
    let mut frame = [&U0[..], &S0[..], &[0x86, 0xdd]].concat();
    frame.extend(ipv6(8 + 8 + inner.len(), (SINK_UNDERLAY_V6, ROUTER_UNDERLAY_V6)));
    frame.extend(udp(8 + inner.len(), (0xc000, VXLAN_PORT)));
    frame.extend(vxlan());
    frame.extend(inner);
    let at = |inner: u16| TUNNEL_V6 as u16 + inner;
    SourceConfig {
        frame,
        stamp_at: at(HEADERS_V6 as u16),
        flows: load.flows,
        first: 0,
        port_at: at(56),
        pair_at: (at(53), at(37)),
    }
}

/// What arrives of outgoing packets: in VXLAN, or as they were sent.
pub(crate) fn arriving(load: Load, in_tunnel: bool) -> CheckConfig {
    let inner = outgoing(load, D0);
    let pattern = inner.frame[HEADERS + STAMP..].to_vec();
    if !in_tunnel {
        return CheckConfig {
            stamp_at: inner.stamp_at,
            expected: vec![(12, *b"\x08\0\x45\0")],
            pattern,
        };
    }
    let udp_len = (8 + 8 + load.size) as u16;
    let port_and_len = [VXLAN_PORT.to_be_bytes(), udp_len.to_be_bytes()].concat();
    let expected = vec![
        (12, *b"\x08\0\x45\0"),
        (26, ROUTER_UNDERLAY.octets()),
        (30, SINK_UNDERLAY.octets()),
        (36, port_and_len.try_into().unwrap_or_default()),
        // Flags and VNI; reserved bytes are zero.
        (42, [8, 0, 0, 0]),
        (46, (VNI << 8).to_be_bytes()),
    ];
    CheckConfig { stamp_at: TUNNEL as u16 + inner.stamp_at, expected, pattern }
}

/// Outer headers from the remote to the local node.
fn tunnel(inner: usize) -> Vec<u8> {
    let mut frame = ethernet((S0, U0));
    frame.extend(ipv4(8 + 8 + inner, (SINK_UNDERLAY, ROUTER_UNDERLAY)));
    frame.extend(udp(8 + inner, (0xc000, VXLAN_PORT)));
    frame.extend(vxlan());
    frame
}

/// Flags and VNI; reserved bytes are zero.
pub(crate) fn vxlan() -> [u8; 8] {
    (0x0800_0000_0000_0000 | u64::from(VNI) << 8).to_be_bytes()
}

fn datagram(
    size: usize,
    macs: ([u8; 6], [u8; 6]),
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
) -> Vec<u8> {
    let payload = size.max(LEAST) - HEADERS;
    let mut frame = ethernet(macs);
    frame.extend(ipv4(8 + payload, ends));
    frame.extend(udp(payload, ports));
    // The stamp's place, then a pattern that differs from byte to byte.
    frame.extend((0..payload).map(|at| (at * 7) as u8));
    frame
}

fn datagram_v6(
    size: usize,
    (source, destination): ([u8; 6], [u8; 6]),
    ends: (Ipv6Addr, Ipv6Addr),
    ports: (u16, u16),
) -> Vec<u8> {
    let payload = size.max(LEAST_V6) - HEADERS_V6;
    let mut frame = [&destination[..], &source[..], &[0x86, 0xdd]].concat();
    frame.extend(ipv6(8 + payload, ends));
    frame.extend(udp(payload, ports));
    frame.extend((0..payload).map(|at| (at * 7) as u8));
    frame
}

fn ipv6(payload: usize, (source, destination): (Ipv6Addr, Ipv6Addr)) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    header[6..8].copy_from_slice(&[17, 64]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..].copy_from_slice(&destination.octets());
    header
}

fn ethernet((source, destination): ([u8; 6], [u8; 6])) -> Vec<u8> {
    [&destination[..], &source[..], &[8, 0]].concat()
}

fn ipv4(payload: usize, (source, destination): (Ipv4Addr, Ipv4Addr)) -> [u8; 20] {
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = checksum::finish(checksum::sum(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Without a checksum, which IPv4 allows.
fn udp(payload: usize, (source, destination): (u16, u16)) -> [u8; 8] {
    let mut header = [0; 8];
    header[..2].copy_from_slice(&source.to_be_bytes());
    header[2..4].copy_from_slice(&destination.to_be_bytes());
    header[4..6].copy_from_slice(&((8 + payload) as u16).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use tieline_dataplane::wire::checksum::{finish, sum};

    const LOAD: Load = Load { flows: 64, size: 64 };

    #[test]
    fn frames_are_as_long_as_asked_and_their_headers_add_up() {
        for size in [64, 512, 1450] {
            let load = Load { size, ..LOAD };
            let (out, back) = (outgoing(load, D0), answers(load));
            assert_eq!((out.frame.len(), back.frame.len()), (size, size + 50));
            assert_eq!(finish(sum(&out.frame[14..34])), 0);
            assert_eq!(finish(sum(&back.frame[14..34])), 0);
            assert_eq!(finish(sum(&back.frame[64..84])), 0);
        }
    }

    #[test]
    fn what_is_expected_is_what_the_other_side_sends() {
        // Both directions are built alike, so the answers of the far end, with
        // the ends exchanged, must pass for what arrives there.
        let (check, sent) = (arriving(LOAD, true), answers(LOAD));
        assert_eq!(check.stamp_at, sent.stamp_at);
        for at in [12, 36, 42, 46] {
            let (_, bytes) = check.expected.iter().find(|(offset, _)| *offset == at).unwrap();
            assert_eq!(bytes[..], sent.frame[usize::from(at)..][..4], "at {at}");
        }
        assert_eq!(check.pattern, sent.frame[usize::from(sent.stamp_at) + STAMP..]);
    }
}
