//! The packet socket over veth pairs.

mod support;

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use support::frames::*;
use support::*;
use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::device;
use tieline_xsk::packet::{PacketError, PacketSocket, SinkError, Take, UdpSink};

/// A packet socket with an area.
struct Port {
    area: Area,
    socket: PacketSocket,
}

impl Port {
    fn open(ifindex: u32) -> Self {
        Self::taking(ifindex, Take::All)
    }

    fn taking(ifindex: u32, take: Take) -> Self {
        Self {
            area: Area::new(256, 2048).unwrap(),
            socket: PacketSocket::open(ifindex, take).unwrap(),
        }
    }

    /// Waits for one frame, and gives its bytes.
    fn one(&mut self) -> Vec<u8> {
        let mut frame = None;
        eventually("a frame", || {
            self.socket.receive(&mut self.area, 1, |received| frame = Some(received)) == 1
        });
        let frame = frame.unwrap();
        assert_eq!(frame.head, 256, "there is room for outer headers");
        take(&mut self.area, frame)
    }

    fn assert_even(&self) {
        assert_eq!((self.area.free(), self.area.held(), self.area.lent()), (256, 0, 0));
    }
}

/// One's complement sum over big-endian words.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn frames_cross_in_both_directions() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut one, mut other) = (Port::open(a0), Port::open(a1));
        for round in 0..3 {
            let frames: Vec<_> =
                (0..100).map(|n| put(&mut one.area, &numbered(n + round))).collect();
            assert_eq!(one.socket.send(&mut one.area, frames.into_iter()), 100);
            for number in 0..100 {
                assert_eq!(other.one(), numbered(number + round));
            }
        }
        let back = put(&mut other.area, &numbered(7));
        assert_eq!(other.socket.send(&mut other.area, [back].into_iter()), 1);
        assert_eq!(one.one(), numbered(7), "and not what it has sent itself");
        assert_eq!(one.socket.receive(&mut one.area, 64, |_| ()), 0);
        one.assert_even();
        other.assert_even();
        let (one, other) = (one.socket.statistics(), other.socket.statistics());
        assert_eq!((one.sent, one.received, one.refused), (300, 1, 0));
        assert_eq!((other.sent, other.received, other.receive_dropped), (1, 300, 0));
    });
}

#[test]
fn room_is_respected() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut source, mut port) = (Injector::open(a0), Port::open(a1));
        (0..100).for_each(|number| source.send(&numbered(number)));
        let mut frames = Vec::new();
        for (room, expected) in [(0, 0), (1, 1), (70, 70), (100, 29)] {
            let count = port.socket.receive(&mut port.area, room, |frame| frames.push(frame));
            assert_eq!(count, expected);
        }
        for (number, frame) in (0..).zip(frames) {
            assert_eq!(take(&mut port.area, frame), numbered(number));
        }
        port.assert_even();
    });
}

#[test]
fn a_burst_waits_for_the_worker() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut source, mut port) = (Injector::open(a0), Port::open(a1));
        (0..2000).for_each(|number| source.send(&numbered(number as u8)));
        for number in 0..2000 {
            assert_eq!(port.one(), numbered(number as u8));
        }
        assert_eq!(port.socket.statistics().receive_dropped, 0);
    });
}

#[test]
fn an_area_without_free_chunks_receives_nothing_and_loses_nothing() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut source = Injector::open(a0);
        let mut socket = PacketSocket::open(a1, Take::All).unwrap();
        let mut area = Area::new(2, 2048).unwrap();
        (0..3).for_each(|number| source.send(&numbered(number)));
        let mut frames = Vec::new();
        assert_eq!(socket.receive(&mut area, 64, |frame| frames.push(frame)), 2);
        assert_eq!(socket.receive(&mut area, 64, |frame| frames.push(frame)), 0);
        frames.drain(..).for_each(|frame| assert!(area.release(frame.chunk)));
        assert_eq!(socket.receive(&mut area, 64, |frame| frames.push(frame)), 1);
        assert_eq!(take(&mut area, frames[0]), numbered(2));
    });
}

/// A neighbor that does not exist, so that the kernel sends to it over a veth.
fn reachable(device: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0").unwrap();
    ip(&format!("addr add 10.9.0.1/24 dev {device}"));
    ip(&format!("addr add fd09::1/64 dev {device} nodad"));
    ip(&format!("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev {device}"));
    ip(&format!("neigh add fd09::2 lladdr 02:00:00:00:00:02 dev {device}"));
}

/// The next UDP datagram to the test's port, past whatever IPv6 says by itself.
fn one_datagram(port: &mut Port) -> Vec<u8> {
    loop {
        let frame = port.one();
        let at = if frame[12..14] == [0x86, 0xdd] { (20, 54) } else { (23, 34) };
        if frame[at.0] == 17 && frame[at.1 + 2..at.1 + 4] == 9999u16.to_be_bytes() {
            return frame;
        }
    }
}

#[test]
fn checksums_that_were_left_to_the_device_are_finished() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        reachable("a0");
        assert!(!device::offloads_disabled("a0").unwrap(), "the kernel leaves them to the device");
        let mut port = Port::open(a1);
        let v4 = UdpSocket::bind("10.9.0.1:0").unwrap();
        for length in [0, 1, 2, 999, 1400] {
            v4.send_to(&vec![0xa5; length], "10.9.0.2:9999").unwrap();
            let frame = one_datagram(&mut port);
            assert_eq!(frame.len(), 42 + length);
            assert_ne!(frame[40..42], [0, 0]);
            let udp_length = (8 + length as u16).to_be_bytes();
            let total = sum(&[&frame[26..34], &[0, 17], &udp_length, &frame[34..]]);
            assert_eq!(total, 0xffff, "{length} bytes");
        }
        let v6 = UdpSocket::bind("[fd09::1]:0").unwrap();
        for length in [1, 1400] {
            v6.send_to(&vec![0x5a; length], "[fd09::2]:9999").unwrap();
            let frame = one_datagram(&mut port);
            assert_eq!(frame.len(), 62 + length);
            let udp_length = (8 + length as u16).to_be_bytes();
            let total = sum(&[&frame[22..54], &[0, 17], &udp_length, &frame[54..]]);
            assert_eq!(total, 0xffff, "{length} bytes over IPv6");
        }
    });
}

#[test]
fn super_frames_are_dropped_until_offloads_are_off() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        reachable("a0");
        let mut port = Port::open(a1);
        let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
        let segment: libc::c_int = 400;
        // SAFETY: the value is valid for reading four bytes.
        let set = unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const segment).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        let send = || sender.send_to(&[1; 1200], "10.9.0.2:9999").unwrap();
        send();
        eventually("the super-frame is dropped", || {
            assert_eq!(port.socket.receive(&mut port.area, 64, |_| ()), 0);
            port.socket.statistics().receive_dropped == 1
        });
        device::disable_offloads("a0").unwrap();
        assert!(device::offloads_disabled("a0").unwrap());
        send();
        for _ in 0..3 {
            assert_eq!(one_datagram(&mut port).len(), 442);
        }
        device::enable_offloads("a0").unwrap();
        assert!(!device::offloads_disabled("a0").unwrap());
        port.assert_even();
    });
}

#[test]
fn frames_with_a_vlan_tag_are_ignored() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut source, mut port) = (Injector::open(a0), Port::open(a1));
        let mut tagged = numbered(1).to_vec();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        source.send(&tagged);
        source.send(&numbered(2));
        assert_eq!(port.one(), numbered(2));
        assert_eq!(port.socket.statistics().received, 1);
    });
}

#[test]
fn a_socket_for_one_port_takes_nothing_else() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut source = Injector::open(a0);
        let mut port = Port::taking(a1, Take::UdpTo(4789));
        let mut tagged = GOOD.frame();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        let ignored = [
            V4 { port: 53, ..GOOD }.frame(),
            V4 { port: 53, options: 40, ..GOOD }.frame(),
            V4 { protocol: 6, ..GOOD }.frame(),
            V4 { flags_and_offset: 0x2000, ..GOOD }.frame(),
            V4 { flags_and_offset: 1, ..GOOD }.frame(),
            v6(6, 17, PEER6, OWN6, 53),
            v6(6, 6, PEER6, OWN6, 4789),
            v6_extension(0),
            numbered(1).to_vec(),
            GOOD.frame()[..36].to_vec(),
            tagged,
        ];
        let taken = [
            GOOD.frame(),
            V4 { options: 40, ..GOOD }.frame(),
            V4 { flags_and_offset: 0, ..GOOD }.frame(),
            v6(6, 17, PEER6, OWN6, 4789),
        ];
        for frame in &taken {
            ignored.iter().for_each(|frame| source.send(frame));
            source.send(frame);
            assert_eq!(port.one(), *frame);
        }
        assert_eq!(port.socket.statistics().received, 4);
        port.assert_even();
    });
}

#[test]
fn frames_that_can_not_be_sent_are_refused_and_the_rest_goes_on() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut port, mut sink) = (Port::open(a0), Injector::open(a1));
        let area = &mut port.area;
        let good = put(area, &numbered(1));
        let long = put(area, &[0xff; 1600]);
        let short = Descriptor { len: 13, ..put(area, &numbered(2)) };
        let outside = Descriptor { head: 2000, ..put(area, &numbered(3)) };
        let last = put(area, &numbered(4));
        let frames = [good, good, long, short, outside, last];
        // A frame that is given twice goes out twice, but is freed once.
        assert_eq!(port.socket.send(&mut port.area, frames.into_iter()), 6);
        let mut arrived = Vec::new();
        eventually("the good ones", || {
            arrived.extend(sink.received());
            arrived.last().is_some_and(|frame| *frame == numbered(4))
        });
        assert!(
            arrived.iter().all(|frame| [numbered(1), numbered(4)].iter().any(|f| f == &frame[..]))
        );
        assert_eq!(port.socket.statistics().refused, 3);
        port.assert_even();
    });
}

#[test]
fn a_device_that_goes_down_or_vanishes_loses_frames_and_nothing_else() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut port, mut sink) = (Port::open(a0), Port::open(a1));
        let send = |port: &mut Port, number| {
            let frame = put(&mut port.area, &numbered(number));
            assert_eq!(port.socket.send(&mut port.area, [frame].into_iter()), 1);
            port.socket.receive(&mut port.area, 64, |_| ());
        };
        ip("link set a0 down");
        send(&mut port, 1);
        assert_eq!(port.socket.statistics().refused, 1);
        ip("link set a0 up");
        eventually("it is up again", || {
            send(&mut port, 2);
            port.socket.statistics().sent > 0
        });
        assert_eq!(sink.one(), numbered(2));
        ip("link del a0");
        send(&mut port, 3);
        assert!(port.socket.statistics().refused >= 2);
        port.assert_even();
    });
}

#[test]
fn a_device_that_is_not_there_can_not_be_opened() {
    in_namespace(|| {
        for ifindex in [9999, u32::MAX] {
            let error = PacketSocket::open(ifindex, Take::All).unwrap_err();
            assert!(matches!(error, PacketError::NoDevice { .. }), "{error}");
        }
    });
}

/// IPv4 UDP from 10.9.0.9 to port 4789 of `a1`, which has 10.9.0.2.
fn vxlan_to_a1() -> Vec<u8> {
    let mut frame = device::mac("a1").unwrap().to_vec();
    frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0]);
    let mut header = vec![0x45, 0, 0, 36, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 9, 10, 9, 0, 2];
    let checksum = (!sum(&[&header])).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    frame.extend(header);
    frame.extend([0xc0, 1, 0x12, 0xb5, 0, 16, 0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0]);
    frame
}

#[test]
fn the_sink_keeps_the_kernel_from_answering() {
    in_namespace(|| {
        let (a0, _) = veth("a0", "a1");
        ip("addr add 10.9.0.2/24 dev a1");
        ip("neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev a1");
        let mut port = Port::open(a0);
        let mut source = Injector::open(a0);
        let frame = vxlan_to_a1();
        let is_unreachable =
            |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 3;

        let sink = UdpSink::open(4789).unwrap();
        let error = UdpSink::open(4789).unwrap_err();
        assert!(matches!(error, SinkError::InUse { port: 4789 }), "{error}");
        source.send(&frame);
        // A ping that the kernel answers shows that it was done with the first.
        let mut ping = frame[..34].to_vec();
        ping[23] = 1;
        ping[24..26].copy_from_slice(&[0, 0]);
        let checksum = (!sum(&[&ping[14..34]])).to_be_bytes();
        ping[24..26].copy_from_slice(&checksum);
        ping.extend([8, 0, 0, 0, 0, 0, 0, 0]);
        ping.extend([0; 8]);
        let checksum = (!sum(&[&ping[34..]])).to_be_bytes();
        ping[36..38].copy_from_slice(&checksum);
        source.send(&ping);
        let answer = port.one();
        assert!(!is_unreachable(&answer), "{answer:?}");
        assert_eq!((answer[23], answer[34]), (1, 0), "an echo reply");

        drop(sink);
        source.send(&frame);
        assert!(is_unreachable(&port.one()), "without the sink the kernel answers");
    });
}
