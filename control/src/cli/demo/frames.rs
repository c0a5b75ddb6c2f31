//! Frames as a pod's kernel would send them, for where there is no kernel.

use std::net::{IpAddr, SocketAddr};

use tieline_dataplane::wire::{MacAddr, checksum, ethernet, ipv4, protocol, tcp};

/// TTL or hop limit after the first hop, which is the node.
const HOPS: u8 = 63;
const WINDOW: u16 = 65_535;

/// An Ethernet frame between these MACs (source, destination) with a TCP
/// segment (RFC 9293) and right checksums. Both ends are of one family.
pub(super) fn tcp_frame(
    macs: (MacAddr, MacAddr),
    (from, to): (SocketAddr, SocketAddr),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::with_capacity(tcp::MIN_HEADER_LEN + payload.len());
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(1_u32.to_be_bytes());
    segment.extend(u32::from(flags & tcp::ACK != 0).to_be_bytes());
    segment.extend([(tcp::MIN_HEADER_LEN as u8 / 4) << 4, flags]);
    segment.extend(WINDOW.to_be_bytes());
    // Checksum, to be filled in, and urgent pointer.
    segment.extend([0; 4]);
    segment.extend(payload);
    let addresses = [octets(from.ip()), octets(to.ip())].concat();
    let pseudo = checksum::sum(&addresses)
        + u64::from(protocol::TCP)
        + checksum::sum(&(segment.len() as u32).to_be_bytes());
    let sum = checksum::finish(pseudo + checksum::sum(&segment));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());

    let v4 = from.is_ipv4();
    let ethertype = if v4 { ethernet::ETHERTYPE_IPV4 } else { ethernet::ETHERTYPE_IPV6 };
    let mut frame = [macs.1.0, macs.0.0].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(if v4 { header_v4(segment.len()) } else { header_v6(segment.len()) });
    frame.extend(addresses);
    if v4 {
        let header = ethernet::HEADER_LEN..ethernet::HEADER_LEN + ipv4::MIN_HEADER_LEN;
        let sum = checksum::finish(checksum::sum(&frame[header]));
        frame[ethernet::HEADER_LEN + 10..][..2].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend(segment);
    frame
}

/// An IPv4 header (RFC 791) up to the addresses, with no checksum yet.
fn header_v4(payload: usize) -> Vec<u8> {
    let length = (ipv4::MIN_HEADER_LEN + payload) as u16;
    let dont_fragment = 0x4000_u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0]);
    header.extend(dont_fragment.to_be_bytes());
    header.extend([HOPS, protocol::TCP, 0, 0]);
    header
}

/// An IPv6 header (RFC 8200) up to the addresses.
fn header_v6(payload: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload as u16).to_be_bytes());
    header.extend([protocol::TCP, HOPS]);
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use tieline_dataplane::wire::ethernet::Ethernet;
    use tieline_dataplane::wire::ipv4::Ipv4;
    use tieline_dataplane::wire::ipv6::Ipv6;
    use tieline_dataplane::wire::tcp::Tcp;

    use super::*;

    #[test]
    fn frames_are_read_back_and_their_checksums_hold() {
        let macs = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        for [from, to] in [["10.1.0.1:40000", "10.2.0.1:22"], ["[fd00::1]:40000", "[fd01::1]:22"]] {
            let (from, to): (SocketAddr, SocketAddr) =
                (from.parse().expect("an address"), to.parse().expect("an address"));
            let frame = tcp_frame(macs, (from, to), tcp::SYN, b"odd");
            let outer = Ethernet::new_checked(&frame).expect("Ethernet");
            assert_eq!((outer.source(), outer.destination()), macs);
            let segment = if from.is_ipv4() {
                let ip = Ipv4::new_checked(outer.payload()).expect("IPv4");
                assert!(ip.verify_checksum());
                assert_eq!(IpAddr::from(ip.destination()), to.ip());
                ip.payload()
            } else {
                let ip = Ipv6::new_checked(outer.payload()).expect("IPv6");
                assert_eq!(IpAddr::from(ip.destination()), to.ip());
                ip.payload()
            };
            let header = Tcp::new_checked(segment).expect("TCP");
            assert_eq!((header.destination_port(), header.flags()), (22, tcp::SYN));
            let pseudo = checksum::sum(&octets(from.ip())) + checksum::sum(&octets(to.ip()));
            let length = segment.len() as u64 + u64::from(protocol::TCP);
            assert_eq!(checksum::finish(pseudo + length + checksum::sum(segment)), 0);
        }
    }
}
