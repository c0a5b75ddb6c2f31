//! Frames that differ only in stamp and flow: as they are sent, and as they
//! have to arrive.

use tieline_dataplane::wire::checksum;
use tieline_dataplane::xsk::traffic::{FIRST_PORT, PAIRS, SourceConfig};

/// What is written into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Run and count, as [`tieline_dataplane::xsk::traffic`] has them.
    pub(crate) number: u64,
    /// When it was due.
    pub(crate) due_ns: u64,
    pub(crate) flow: u32,
}

/// A frame, its headers complete but for what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    stamp_at: usize,
    port_at: usize,
    pair_at: (usize, usize),
    /// Offsets of IPv6 headers whose UDP checksum is to be written, inner first.
    sums: Vec<usize>,
}

/// Offset of the IP header behind Ethernet.
const IP: usize = 14;

impl Template {
    pub(crate) fn new(config: &SourceConfig) -> Self {
        let mut sums = Vec::new();
        let outer = is_v6(&config.frame);
        // Behind the outer headers, if the stamp is too far for one set of them.
        let inner_at = if outer { 70 } else { 50 };
        let tunnel = usize::from(config.stamp_at) > inner_at;
        if tunnel && config.frame.get(inner_at..).is_some_and(is_v6) {
            sums.push(inner_at + IP);
        }
        if outer {
            sums.push(IP);
        }
        Self {
            bytes: config.frame.clone(),
            stamp_at: usize::from(config.stamp_at),
            port_at: usize::from(config.port_at),
            pair_at: (usize::from(config.pair_at.0), usize::from(config.pair_at.1)),
            sums,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Turns a copy of the template, or what this has written before, into one
    /// packet.
    pub(crate) fn fill(&self, frame: &mut [u8], stamp: Stamp) {
        frame[self.stamp_at..][..8].copy_from_slice(&stamp.number.to_ne_bytes());
        frame[self.stamp_at + 8..][..8].copy_from_slice(&stamp.due_ns.to_ne_bytes());
        let (pair, port) = (stamp.flow % PAIRS, FIRST_PORT ^ (stamp.flow / PAIRS) as u16);
        let (up, down) = self.pair_at;
        frame[up] = self.bytes[up].wrapping_add(pair as u8);
        frame[down] = self.bytes[down].wrapping_sub(pair as u8);
        frame[self.port_at..][..2].copy_from_slice(&port.to_be_bytes());
        for ip_at in &self.sums {
            write_checksum(&mut frame[*ip_at..]);
        }
    }

    /// Whether a packet that came through a router is what [`fill`](Self::fill)
    /// has made: addresses of the link, time to live and the sum over it may
    /// differ.
    pub(crate) fn matches(made: &[u8], found: &[u8]) -> bool {
        if made.len() != found.len() || made[12..14] != found[12..14] {
            return false;
        }
        if is_v6(made) {
            return made[14..21] == found[14..21] && made[22..] == found[22..];
        }
        let header = found[14..].first_chunk();
        header.is_some_and(checksum::is_right)
            && made[14..22] == found[14..22]
            && made[23] == found[23]
            && made[26..] == found[26..]
    }
}

fn is_v6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd][..])
}

/// Where the stamp is in a frame, by its type.
pub(crate) fn stamp_at(frame: &[u8]) -> usize {
    if is_v6(frame) { 62 } else { 42 }
}

/// Sum over the UDP datagram behind an IPv6 header and its pseudo header.
fn datagram_sum(packet: &[u8]) -> u64 {
    checksum::sum(&packet[8..]) + (packet.len() as u64 - 40) + 17
}

fn write_checksum(packet: &mut [u8]) {
    packet[46..48].fill(0);
    let sum = match checksum::finish(datagram_sum(packet)) {
        0 => 0xffff,
        sum => sum,
    };
    packet[46..48].copy_from_slice(&sum.to_be_bytes());
}

/// Whether the checksum of the UDP datagram behind an IPv6 header is right, or
/// left out, which a tunnel may do (RFC 6935).
pub(crate) fn checksum_holds(packet: &[u8]) -> bool {
    packet[46..48] == [0, 0] || checksum::finish(datagram_sum(packet)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::{self, Load};

    const LOAD: Load = Load { flows: 64, size: 100 };

    fn made(template: &Template, flow: u32) -> Vec<u8> {
        let mut frame = template.bytes().to_vec();
        template.fill(&mut frame, Stamp { number: 7, due_ns: 9, flow });
        frame
    }

    #[test]
    fn flows_differ_in_addresses_and_port_and_their_sums_hold() {
        let v4 = Template::new(&flows::outgoing(LOAD, flows::D0));
        let v6 = Template::new(&flows::outgoing_v6(LOAD, flows::D0));
        let frames = [made(&v4, 0), made(&v4, 33), made(&v6, 33)];
        assert_eq!(frames[0][26..34], [10, 244, 1, 1, 10, 244, 2, 32]);
        assert_eq!(frames[1][26..34], [10, 244, 1, 2, 10, 244, 2, 31]);
        assert_eq!(frames[0][34..36], 10_000u16.to_be_bytes());
        assert_eq!(frames[1][34..36], (10_000u16 ^ 1).to_be_bytes());
        assert!(checksum::is_right(frames[1][14..].first_chunk().unwrap()));
        assert!(frames[2][60..62] != [0, 0] && checksum_holds(&frames[2][14..]));
        let answer = made(&Template::new(&flows::answers_v6(LOAD)), 33);
        assert!(checksum_holds(&answer[14..]) && checksum_holds(&answer[84..]));
        assert!(answer[60..62] != [0, 0] && answer[130..132] != [0, 0]);
        let mut broken = answer;
        broken[140] ^= 1;
        assert!(!checksum_holds(&broken[14..]));
    }

    #[test]
    fn a_routed_packet_matches_and_a_damaged_one_does_not() {
        for config in [flows::outgoing(LOAD, flows::D0), flows::outgoing_v6(LOAD, flows::D0)] {
            let template = Template::new(&config);
            let sent = made(&template, 5);
            let mut routed = sent.clone();
            routed[..12].fill(3);
            let ttl = if is_v6(&sent) { 21 } else { 22 };
            routed[ttl] -= 1;
            if !is_v6(&sent) {
                assert!(!Template::matches(&sent, &routed), "the header's sum is of before");
                routed[24..26].fill(0);
                let sum = checksum::finish(checksum::sum(&routed[14..34]));
                routed[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            assert!(Template::matches(&sent, &routed));
            for at in [13, 30, 40, sent.len() - 1] {
                let mut damaged = routed.clone();
                damaged[at] ^= 4;
                assert!(!Template::matches(&sent, &damaged), "byte {at}");
            }
            assert!(!Template::matches(&sent, &routed[..sent.len() - 1]));
        }
    }
}
