//! The packets that almost all are, read in few instructions: whole, without
//! options or extension headers, of TCP or UDP.
//!
//! What is read here, [`Packet`](super::packet::Packet) reads just so; what is
//! not read here is left to it, be it right or wrong. A test compares the two.

use super::ethernet;
use super::tcp::Tcp;
use super::{be16, be32, checksum, ipv4, ipv6, protocol, udp};
use crate::addr::Addr;

/// Where the IP header begins.
const IP: usize = ethernet::HEADER_LEN;
/// Where the transport header begins.
const UPPER_V4: usize = IP + ipv4::MIN_HEADER_LEN;
const UPPER_V6: usize = IP + ipv6::HEADER_LEN;

/// What such a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, and below it the destination port.
    pub ports: u32,
    /// Bytes from the IP header to the packet's end.
    pub total_len: u32,
    /// Protocol.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ECN bits.
    pub ecn: u8,
}

/// The eight bytes from `at` as they lie; the place is known to lie within.
#[inline(always)]
pub(crate) fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

impl Plain {
    /// Reads the IPv4 packet in an Ethernet frame; `None` unless it is plain.
    #[inline(always)]
    pub fn read_v4(frame: &[u8]) -> Option<Self> {
        let front: &[u8; UPPER_V4 + udp::HEADER_LEN] = frame.first_chunk()?;
        let [ip @ .., _, _, _, _, _, _, _, _] = front;
        let header: &[u8; ipv4::MIN_HEADER_LEN] = ip.last_chunk()?;
        let total_len = usize::from(be16(header, 2));
        // No options, no fragment; the reserved flag and DF do not matter.
        let odd = header[0] ^ 0x45 | header[6] & 0x3f | header[7];
        let end = IP + total_len;
        if odd != 0 || end > frame.len() || !checksum::is_right(header) {
            return None;
        }
        let tcp_flags = tcp_flags(header[9], frame.get(UPPER_V4..end)?)?;
        Some(Self {
            src: Addr::from_v4_bytes(be32(header, 12).to_be_bytes()),
            dst: Addr::from_v4_bytes(be32(header, 16).to_be_bytes()),
            ports: be32(front, UPPER_V4),
            total_len: total_len as u32,
            protocol: header[9],
            tcp_flags,
            ecn: header[1] & 3,
        })
    }

    /// The same for IPv6.
    #[inline(always)]
    pub fn read_v6(frame: &[u8]) -> Option<Self> {
        let front: &[u8; UPPER_V6 + udp::HEADER_LEN] = frame.first_chunk()?;
        let end = UPPER_V6 + usize::from(be16(front, IP + 4));
        if front[IP] >> 4 != 6 || end > frame.len() {
            return None;
        }
        let protocol = front[IP + 6];
        let tcp_flags = tcp_flags(protocol, frame.get(UPPER_V6..end)?)?;
        let addr = |at| {
            let bits = u128::from(word(front, at).to_be()) << 64;
            Addr::from_bits(bits | u128::from(word(front, at + 8).to_be()))
        };
        let (src, dst) = (addr(IP + 8), addr(IP + 24));
        if src.is_v4() || dst.is_v4() {
            return None;
        }
        Some(Self {
            src,
            dst,
            ports: be32(front, UPPER_V6),
            total_len: (end - IP) as u32,
            protocol,
            tcp_flags,
            ecn: front[IP + 1] >> 4 & 3,
        })
    }
}

/// The flags of a TCP segment, and none of a UDP datagram.
#[inline(always)]
fn tcp_flags(protocol: u8, payload: &[u8]) -> Option<u8> {
    match protocol {
        protocol::UDP if payload.len() >= udp::HEADER_LEN => Some(0),
        protocol::TCP => Some(Tcp::new_checked(payload).ok()?.flags()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::{Fragment, Packet};
    use proptest::prelude::*;

    /// Whether this may be read in few instructions.
    fn is_plain(packet: &Packet, ip: &[u8]) -> bool {
        let (simple, protocol) = match packet.src.is_v4() {
            true => (ip[0] == 0x45, ip[9]),
            false => (true, ip[6]),
        };
        let transport = matches!(protocol, protocol::TCP | protocol::UDP);
        simple && transport && packet.fragment == Fragment::None
    }

    fn compare(frame: &[u8]) -> Result<bool, TestCaseError> {
        let ip = frame.get(IP..).unwrap_or_default();
        let v4 = ip.first().is_none_or(|first| first >> 4 == 4);
        let packet = if v4 { Packet::parse_v4(ip) } else { Packet::parse_v6(ip) }.ok();
        let plain = if v4 { Plain::read_v4(frame) } else { Plain::read_v6(frame) };
        let expected = packet.filter(|packet| is_plain(packet, ip)).map(|packet| Plain {
            src: packet.src,
            dst: packet.dst,
            ports: u32::from(packet.source_port) << 16 | u32::from(packet.destination_port),
            total_len: packet.total_len,
            protocol: packet.protocol,
            tcp_flags: packet.tcp_flags,
            ecn: packet.ecn,
        });
        prop_assert_eq!(plain, expected);
        Ok(expected.is_some())
    }

    /// A frame with a right IPv4 checksum, if it is one of IPv4.
    fn frame(v4: bool, protocol: u8, len: u16, ecn: u8, mut rest: Vec<u8>) -> Vec<u8> {
        let header = if v4 { UPPER_V4 } else { UPPER_V6 };
        rest.resize(rest.len().max(header), 1);
        let ip = &mut rest[12..];
        if v4 {
            ip[..4].copy_from_slice(&[8, 0, 0x45, ecn]);
            ip[4..6].copy_from_slice(&len.to_be_bytes());
            ip[8..12].copy_from_slice(&[0x40, 0, 64, protocol]);
            ip[12..14].fill(0);
            let sum = checksum::finish(checksum::sum(&ip[2..22]));
            ip[12..14].copy_from_slice(&sum.to_be_bytes());
        } else {
            ip[..4].copy_from_slice(&[0x86, 0xdd, 0x60, ecn << 4]);
            ip[6..8].copy_from_slice(&len.saturating_sub(40).to_be_bytes());
            ip[8] = protocol;
        }
        rest
    }

    #[test]
    fn plain_packets_are_read() {
        for v4 in [true, false] {
            let len = if v4 { 28 } else { 48 };
            let udp = frame(v4, protocol::UDP, len, 2, vec![7; 100]);
            assert!(compare(&udp).unwrap());
            let tcp = frame(v4, protocol::TCP, len + 72, 1, vec![0x52; 140]);
            assert!(compare(&tcp).unwrap());
            let icmp = frame(v4, protocol::ICMP, len, 0, vec![8; 100]);
            assert!(!compare(&icmp).unwrap());
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_long_way(
            v4 in any::<bool>(),
            protocol in prop::sample::select(vec![6u8, 17, 1, 58, 132, 44, 51]),
            len in 0u16..130,
            ecn in 0u8..4,
            rest in prop::collection::vec(any::<u8>(), 0..130),
            damage in prop::collection::vec((0usize..60, any::<u8>()), 0..3),
        ) {
            let mut frame = frame(v4, protocol, len, ecn, rest);
            compare(&frame)?;
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            if frame[14] >> 4 == 4 {
                frame[24..26].fill(0);
                let sum = checksum::finish(checksum::sum(&frame[14..34]));
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            compare(&frame)?;
        }

        #[test]
        fn no_bytes_are_too_odd(frame in prop::collection::vec(any::<u8>(), 0..80)) {
            compare(&frame)?;
        }
    }
}
