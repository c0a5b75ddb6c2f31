//! The whole pipeline under random tables and frames, good and bad.
//!
//! Whatever comes in: nothing panics, every frame is sent or counted as dropped
//! for one reason, none is lost, and what is sent parses. `TIELINE_FRAMES` sets
//! the number of frames (100 million take some minutes in a release build),
//! `TIELINE_SEED` the seed, which a failure prints.

mod common;

use std::sync::Arc;

use common::*;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, SlicedPacket, TransportSlice};
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::outer::{OVERHEAD_V4, OVERHEAD_V6};
use tieline_dataplane::tables::{ClassId, Endpoint, Policies, PolicyId, Route, Snapshot, VtepId};

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")),
        Err(_) => default,
    }
}

/// Numbers that repeat with their seed (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const ADDRESSES_V4: [&str; 8] = [
    "10.1.0.5",
    "10.2.0.5",
    "10.1.0.1",
    "10.2.0.1",
    "10.1.7.7",
    "10.2.7.7",
    "192.0.2.1",
    "224.0.0.1",
];
const ADDRESSES_V6: [&str; 5] = ["fd00:1::5", "fd00:2::5", "fd00:1::7", "fd00:2::7", "fe80::1"];

/// A well-formed frame, often one that the tables let pass.
fn good_frame(random: &mut Random) -> Vec<u8> {
    let pool = if random.one_in(3) { &ADDRESSES_V6[..] } else { &ADDRESSES_V4[..] };
    let few = &pool[..2];
    let (source, destination) = match random.one_in(4) {
        true => (random.pick(pool), random.pick(pool)),
        false => (random.pick(few), random.pick(few)),
    };
    let ports = (random.below(40) as u16, random.pick(&[22, 53, 80, 5432]));
    let ports = if random.one_in(2) { (ports.1, ports.0) } else { ports };
    match random.below(5) {
        0 => udp(source, destination, ports, &vec![0; random.below(200)]),
        1 => {
            let quoted = good_ip(random);
            let step = builder(source, destination);
            write(|out| match source.contains(':') {
                true => step.icmpv6_raw(1, 0, [0; 4]).write(out, &quoted).expect("fits"),
                false => step.icmpv4_raw(3, 1, [0; 4]).write(out, &quoted).expect("fits"),
            })
        }
        2 if !source.contains(':') => {
            let whole = udp(source, destination, ports, &[0; 64]);
            match random.one_in(2) {
                true => fragment(&whole, 0x2000, 34..66),
                false => fragment(&whole, 4, 66..106),
            }
        }
        3 => {
            let step = builder(source, destination);
            write(|out| step.icmpv4_echo_request(7, 1).write(out, b"").expect("fits"))
        }
        _ => tcp(source, destination, ports, random.pick(&["S", "SA", "A", "FA", "R"])),
    }
}

fn good_ip(random: &mut Random) -> Vec<u8> {
    let ports = (random.below(40) as u16, 80);
    let mut packet = tcp("10.1.0.5", "10.2.0.5", ports, "S");
    packet.drain(..14);
    packet.truncate(random.below(60));
    packet
}

/// Some bytes of a frame changed, cut off or added.
fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        if let Some(at) = frame.len().checked_sub(1).map(|last| random.below(last + 1)) {
            frame[at] = random.pick(&[0, 0xff, random.0 as u8, frame[at] ^ 1]);
        }
    }
    match random.below(8) {
        0 => frame.truncate(random.below(frame.len() + 1)),
        1 => frame.resize(frame.len() + random.below(70), 0),
        _ => {}
    }
    // A right checksum lets the damage get further.
    for ip in [14, OVERHEAD_V4 as usize + 14, OVERHEAD_V6 as usize + 14] {
        if random.one_in(2) && frame.len() >= ip + 60 && frame[ip] >> 4 == 4 {
            seal(&mut frame[ip..]);
        }
    }
}

fn random_bytes(random: &mut Random) -> Vec<u8> {
    let len = random.below(300);
    (0..len).map(|_| random.next() as u8).collect()
}

/// One change of the tables.
fn change(random: &mut Random, tables: &mut Snapshot) {
    let range = |random: &mut Random| {
        let text = random.pick(&["10.1.0.0/16", "10.2.0.0/16", "fd00:1::/64", "fd00:2::/64"]);
        prefix(text)
    };
    match random.below(12) {
        0 => {
            let range = range(random);
            tables.routes.remove(&range);
        }
        1 | 2 => {
            let route =
                random.pick(&[Route::Local, Route::Vtep(VtepId(0)), Route::Vtep(VtepId(1))]);
            tables.routes.insert(range(random), route);
        }
        3 => {
            let at = addr(random.pick(&ADDRESSES_V4));
            let endpoint = Endpoint {
                class: ClassId(random.below(5) as u32),
                policy: random.pick(&[None, Some(PolicyId(0)), Some(PolicyId(7))]),
                local: random.one_in(2),
            };
            tables.endpoints.insert(at, endpoint);
        }
        4 => {
            let clauses = match random.below(3) {
                0 => vec![],
                1 => vec![allow_tcp(80)],
                _ => vec![allow_all()],
            };
            let policy = policy(&clauses, &clauses);
            tables.policies = Policies::new([Some(Arc::new(policy))]);
        }
        5 => {
            if let Some(mut spec) = tables.vteps.get(VtepId(0)).copied() {
                spec.path = if random.one_in(4) { None } else { spec.path };
                tables.vteps.insert(VtepId(0), spec);
            }
        }
        // Back to tables that let traffic pass.
        _ => {
            let number = tables.overlay.mac_v4.0[5] & 3;
            let v6_underlay = !tables.overlay.underlay[0].is_v4();
            let side = |number| Side { number, v6_underlay };
            let generation = tables.generation;
            *tables = snapshot(side(number), side(3 - number));
            tables.generation = generation;
        }
    }
}

/// What is sent to the gateway: one IP packet of exactly the frame's length.
fn check_packet(frame: &[u8]) {
    let ip = &frame[14..];
    match u16::from_be_bytes([frame[12], frame[13]]) {
        0x0800 => {
            let header = Ipv4HeaderSlice::from_slice(ip).expect("an IPv4 header");
            assert_eq!(usize::from(header.total_len()), ip.len());
            // Theirs leaves the reserved flag out.
            if ip[6] & 0x80 == 0 && header.header_checksum() != 0xffff {
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
            }
        }
        0x86dd => {
            let header = Ipv6HeaderSlice::from_slice(ip).expect("an IPv6 header");
            assert_eq!(usize::from(header.payload_length()) + 40, ip.len());
        }
        other => panic!("EtherType {other:#06x}"),
    }
}

/// What is sent over the underlay: such a packet within VXLAN.
fn check_tunnel(frame: &[u8]) {
    let outer = SlicedPacket::from_ethernet(frame).expect("outer headers");
    let Some(TransportSlice::Udp(udp)) = outer.transport else { panic!("no UDP") };
    assert_eq!(udp.destination_port(), 4789);
    assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0x10, 0, 0]);
    check_packet(&udp.payload()[8..]);
}

#[test]
fn no_frame_is_lost_and_all_output_parses() {
    let seed = setting("TIELINE_SEED", 1);
    let frames = setting("TIELINE_FRAMES", 200_000);
    println!("TIELINE_SEED={seed} TIELINE_FRAMES={frames}");
    let random = &mut Random(seed.max(1));
    let mut done = 0;
    let mut sent = [0u64; 2];
    while done < frames {
        let v6_underlay = random.one_in(2);
        let (a, b) = (Side { number: 1, v6_underlay }, Side { number: 2, v6_underlay });
        let flows = |size| FlowTable::new(size, Timeouts::default());
        let size = random.pick(&[1, 64, 4096]);
        let (mut a, mut b) =
            (Node::with_flows(a, b, flows(size)), Node::with_flows(b, a, flows(size)));
        for _ in 0..100 {
            if random.one_in(6) {
                let node = if random.one_in(2) { &mut a } else { &mut b };
                node.publish(|tables| change(random, tables));
            }
            done += round(random, &mut a, &mut b, &mut sent);
        }
    }
    // The test would prove nothing if everything were dropped.
    assert!(sent.iter().all(|sent| *sent > frames / 20), "sent only {sent:?} of {frames}");
}

/// A round of frames through both nodes; returns their number.
fn round(random: &mut Random, a: &mut Node, b: &mut Node, sent: &mut [u64; 2]) -> u64 {
    let step = random.pick(&[0, 1_000_000, 10 * SECOND, 100 * SECOND]);
    let mut done = 0;
    for _ in 0..random.below(40) {
        let mut frame = if random.one_in(10) { random_bytes(random) } else { good_frame(random) };
        if random.one_in(3) {
            damage(random, &mut frame);
        }
        let node = if random.one_in(2) { &mut *a } else { &mut *b };
        let wire = if random.one_in(8) { &node.underlay } else { &node.gateway };
        wire.put(frame);
        done += 1;
    }
    done + exchange(random, a, b, step, sent) + exchange(random, b, a, step, sent)
}

/// Lets one node work, and hands what it sends to the other one; returns the
/// number of frames handed over.
fn exchange(
    random: &mut Random,
    from: &mut Node,
    to: &mut Node,
    step: u64,
    sent: &mut [u64; 2],
) -> u64 {
    let mut done = 0;
    from.now += step;
    from.poll();
    while let Some(mut frame) = from.underlay.take() {
        check_tunnel(&frame);
        sent[0] += 1;
        if random.one_in(4) {
            damage(random, &mut frame);
        }
        to.underlay.put(frame);
        done += 1;
    }
    while let Some(frame) = from.gateway.take() {
        check_packet(&frame);
        sent[1] += 1;
    }
    done
}
