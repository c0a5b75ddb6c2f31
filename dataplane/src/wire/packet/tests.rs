use super::*;
use crate::wire::checksum;
use etherparse::{IpNumber, PacketBuilder};
use proptest::prelude::*;

fn v4() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 61)
}

fn v6() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let addr = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    PacketBuilder::ipv6(addr(1), addr(2), 61)
}

fn bytes(
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), etherparse::err::packet::BuildWriteError>,
) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out).expect("writes to memory");
    out
}

/// Recomputes an IPv4 header's checksum.
fn seal(ip: &mut [u8]) {
    let header = usize::from(ip[0] & 0xf) * 4;
    ip[10..12].fill(0);
    let sum = checksum::finish(checksum::sum(&ip[..header]));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn transports_of_both_families() {
    let tcp = bytes(|out| v4().tcp(1000, 80, 7, 9).syn().write(out, b"abc"));
    let packet = Packet::parse(&tcp).unwrap();
    let expected = Packet {
        src: Addr::from_v4_bytes([10, 0, 0, 1]),
        dst: Addr::from_v4_bytes([10, 0, 0, 2]),
        total_len: 43,
        source_port: 1000,
        destination_port: 80,
        protocol: 6,
        tcp_flags: 2,
        ttl: 61,
        ..Packet::default()
    };
    assert_eq!(packet, expected);

    let udp = bytes(|out| v6().udp(5, 53).write(out, b"abc"));
    let packet = Packet::parse(&udp).unwrap();
    assert_eq!((packet.source_port, packet.destination_port, packet.protocol), (5, 53, 17));
    assert_eq!((packet.total_len, packet.ttl, packet.src.is_v4()), (51, 61, false));

    let echo = bytes(|out| v4().icmpv4_echo_request(0x1234, 1).write(out, b""));
    let packet = Packet::parse(&echo).unwrap();
    assert_eq!((packet.destination_port, packet.icmp_ident), (0x0800, 0x1234));
    let echo = bytes(|out| v6().icmpv6_echo_reply(0x1234, 1).write(out, b""));
    let packet = Packet::parse(&echo).unwrap();
    assert_eq!((packet.destination_port, packet.icmp_ident), (0x8100, 0x1234));
    assert_eq!((packet.source_port, packet.is_icmp_error()), (0, false));

    let sctp = bytes(|out| v4().write(out, IpNumber(132), &[0, 9, 0, 10, 0, 0, 0, 0, 1, 1, 1, 1]));
    let packet = Packet::parse(&sctp).unwrap();
    assert_eq!((packet.source_port, packet.destination_port), (9, 10));
    let esp = bytes(|out| v4().write(out, IpNumber(50), &[0, 9, 0, 10]));
    let packet = Packet::parse(&esp).unwrap();
    assert_eq!((packet.protocol, packet.source_port, packet.destination_port), (50, 0, 0));
}

#[test]
fn an_authentication_header_is_passed_over() {
    let mut payload = vec![17, 1];
    payload.resize(12, 0);
    payload.extend([0, 9, 0, 10, 0, 8, 0, 0]);
    let packet = Packet::parse(&bytes(|out| v4().write(out, IpNumber(51), &payload))).unwrap();
    assert_eq!((packet.protocol, packet.source_port, packet.destination_port), (17, 9, 10));
    let cut = bytes(|out| v4().write(out, IpNumber(51), &payload[..9]));
    assert_eq!(Packet::parse(&cut), Err(WireError::Truncated));
}

#[test]
fn fragments_of_ipv4() {
    let whole = bytes(|out| v4().tcp(1000, 80, 7, 9).write(out, &[0; 60]));
    let part = |field: u16| {
        let mut ip = whole.clone();
        ip[4..6].copy_from_slice(&[0xab, 0xcd]);
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        seal(&mut ip);
        Packet::parse(&ip)
    };
    let first = part(0x2000).unwrap();
    assert_eq!(first.fragment, Fragment::First { ident: 0x06_abcd });
    assert_eq!(first.destination_port, 80);
    let later = part(0x2004).unwrap();
    assert_eq!(later.fragment, Fragment::Later { ident: 0x06_abcd });
    assert_eq!((later.destination_port, later.tcp_flags), (0, 0));
    assert_eq!(part(0x0001), Err(WireError::Malformed), "RFC 3128");
    assert_eq!(part(0x4000).unwrap().fragment, Fragment::None);
}

#[test]
fn a_first_fragment_must_hold_its_transport_header() {
    let mut tiny = bytes(|out| v4().write(out, IpNumber::TCP, &[0; 16]));
    tiny[6] = 0x20;
    seal(&mut tiny);
    assert_eq!(Packet::parse(&tiny), Err(WireError::Truncated));
}

#[test]
fn what_policy_could_be_deceived_by_is_refused() {
    let mut mapped = bytes(|out| v6().udp(1, 2).write(out, b""));
    mapped[24..40].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    assert_eq!(Packet::parse(&mapped), Err(WireError::Malformed));

    let mut routed = vec![0x47, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    routed.extend([131, 7, 4, 10, 9, 9, 9, 0, 0, 9, 0, 10, 0, 8, 0, 0]);
    seal(&mut routed);
    assert_eq!(Packet::parse(&routed), Err(WireError::Unsupported));
    routed[20] = 1;
    routed[21] = 0;
    seal(&mut routed);
    assert_eq!(Packet::parse(&routed).unwrap().destination_port, 10);
    routed[11] ^= 1;
    assert_eq!(Packet::parse(&routed), Err(WireError::Checksum));
}

#[test]
fn errors_quote_the_packet_that_they_are_about() {
    let about = bytes(|out| v4().tcp(1000, 80, 7, 9).write(out, &[0; 60]));
    let error = |quoted: &[u8]| {
        let ip = PacketBuilder::ipv4([10, 9, 9, 9], [10, 0, 0, 1], 64);
        bytes(|out| ip.icmpv4_raw(3, 1, [0; 4]).write(out, quoted))
    };
    let quoted_in = |ip: &[u8]| Packet::parse(ip).unwrap().quoted(ip);
    // The least that RFC 792 asks for: header and eight bytes.
    let quoted = quoted_in(&error(&about[..28])).unwrap();
    assert_eq!((quoted.source_port, quoted.destination_port), (1000, 80));
    assert_eq!((quoted.src, quoted.dst), {
        let packet = Packet::parse(&about).unwrap();
        (packet.src, packet.dst)
    });
    assert_eq!(quoted_in(&error(&about[..27])), None);
    assert_eq!(quoted_in(&error(&[])), None);
    // Routers on the way have changed the checksum, not always rightly.
    let mut changed = about.clone();
    changed[10] ^= 0xff;
    assert!(quoted_in(&error(&changed)).is_some());
    // Anything else quotes nothing.
    assert_eq!(quoted_in(&about), None);

    let about = bytes(|out| v6().udp(1000, 53).write(out, &[0; 60]));
    let ip = PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64);
    let error = bytes(|out| ip.icmpv6_raw(2, 0, [0, 0, 5, 0]).write(out, &about[..48]));
    let quoted = quoted_in(&error).unwrap();
    assert_eq!((quoted.source_port, quoted.destination_port, quoted.protocol), (1000, 53, 17));
}

proptest! {
    #[test]
    fn no_bytes_panic(mut ip in prop::collection::vec(any::<u8>(), 0..120), version in 0usize..4) {
        if let Some(first) = ip.first_mut() {
            *first = [0x45, 0x60, 0x4f, *first][version];
        }
        if let Ok(packet) = Packet::parse(&ip) {
            prop_assert!(packet.total_len as usize <= ip.len());
            let _quoted = packet.quoted(&ip);
        }
    }

    /// Whole packets with one byte changed: what we read of them is what
    /// etherparse reads of them.
    #[test]
    fn agrees_with_etherparse(
        six in any::<bool>(),
        kind in 0usize..4,
        ports in any::<(u16, u16)>(),
        payload in prop::collection::vec(any::<u8>(), 0..20),
        change in (0usize..60, any::<u8>()),
    ) {
        let ip = if six { v6() } else { v4() };
        let mut ip = bytes(|out| match kind {
            0 => ip.udp(ports.0, ports.1).write(out, &payload),
            1 => ip.tcp(ports.0, ports.1, 1, 2).ack(3).write(out, &payload),
            2 if six => ip.icmpv6_echo_request(ports.0, ports.1).write(out, &payload),
            2 => ip.icmpv4_echo_request(ports.0, ports.1).write(out, &payload),
            _ => ip.write(out, IpNumber(ports.0 as u8 | 0x80), &payload),
        });
        let at = change.0 % ip.len();
        ip[at] = change.1;
        if ip[0] == 0x45 {
            seal(&mut ip);
        }
        let Ok(ours) = Packet::parse(&ip) else { return Ok(()) };
        let Ok(theirs) = etherparse::LaxSlicedPacket::from_ip(&ip) else {
            return Err(TestCaseError::fail("we read what etherparse does not"));
        };
        match theirs.net.expect("an IP header") {
            etherparse::LaxNetSlice::Ipv4(theirs) => {
                prop_assert_eq!(ours.src, Addr::from(theirs.header().source_addr()));
                prop_assert_eq!(ours.dst, Addr::from(theirs.header().destination_addr()));
                prop_assert_eq!(ours.total_len, u32::from(theirs.header().total_len()));
                prop_assert_eq!(ours.protocol, theirs.payload().ip_number.0);
                prop_assert_eq!(ours.fragment != Fragment::None, theirs.is_payload_fragmented());
            }
            etherparse::LaxNetSlice::Ipv6(theirs) => {
                prop_assert_eq!(ours.src, Addr::from(theirs.header().source_addr()));
                prop_assert_eq!(ours.dst, Addr::from(theirs.header().destination_addr()));
                prop_assert_eq!(ours.total_len, 40 + u32::from(theirs.header().payload_length()));
                if ours.fragment == Fragment::None {
                    prop_assert_eq!(ours.protocol, theirs.payload().ip_number.0);
                }
            }
            etherparse::LaxNetSlice::Arp(_) => prop_assert!(false, "no ARP was made"),
        }
        use etherparse::TransportSlice::{Icmpv4, Icmpv6, Tcp, Udp};
        let read = (ours.source_port, ours.destination_port);
        match theirs.transport {
            Some(Udp(theirs)) => {
                prop_assert_eq!(read, (theirs.source_port(), theirs.destination_port()));
            }
            Some(Tcp(theirs)) => {
                prop_assert_eq!(read, (theirs.source_port(), theirs.destination_port()));
            }
            Some(Icmpv4(theirs)) => prop_assert_eq!(read.1 >> 8, u16::from(theirs.type_u8())),
            Some(Icmpv6(theirs)) => prop_assert_eq!(read.1 >> 8, u16::from(theirs.type_u8())),
            Some(etherparse::TransportSlice::Igmp(_)) => prop_assert_eq!(ours.protocol, 2),
            None => prop_assert!(
                !matches!(ours.protocol, 6 | 17) || ours.fragment != Fragment::None
                    || ours.protocol == 17 // their UDP also checks the length field
            ),
        }
    }
}
