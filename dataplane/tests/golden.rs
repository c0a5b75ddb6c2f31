//! Golden captures: what comes in, what goes out, and the counters.
//!
//! The files in `tests/golden` are ordinary captures; look at them with any
//! tool. After a wanted change of what Tieline sends, write them anew with
//! `TIELINE_BLESS=1 cargo test -p tieline-dataplane --test golden`, and review
//! the difference.

mod common;

use std::fmt::Write as _;
use std::path::PathBuf;

use common::*;
use tieline_dataplane::capture::{Reader, Record, Writer};
use tieline_dataplane::flow::{FlowHasher, FlowTable, Timeouts};
use tieline_dataplane::port::memory::MemoryWire;
use tieline_dataplane::verdict::DropReason;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn blessing() -> bool {
    std::env::var_os("TIELINE_BLESS").is_some_and(|value| value == "1")
}

fn read(name: &str) -> Vec<Record> {
    let bytes = std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let records: Result<_, _> = Reader::new(&bytes[..]).expect(name).collect();
    records.expect(name)
}

/// Compares with the file, or writes it.
fn golden(name: &str, bytes: &[u8]) {
    if blessing() {
        std::fs::write(path(name), bytes).expect(name);
    } else {
        let expected = std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(expected == bytes, "{name} differs; see the head of this file");
    }
}

fn capture(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).expect("writes to memory");
    for record in records {
        writer.write(record.time_ns, &record.frame).expect("writes to memory");
    }
    writer.finish().expect("writes to memory")
}

fn node(me: Side, other: Side) -> Node {
    let hasher = FlowHasher::from_seed(1);
    Node::with_flows(me, other, FlowTable::with_hasher(1024, Timeouts::default(), hasher))
}

/// Frames of node 1's pods, one millisecond apart, and those of node 2 for
/// them, which are sent half a millisecond later.
fn traffic() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for (a, b) in [("10.1.0.5", "10.2.0.5"), ("fd00:1::5", "fd00:2::5")] {
        for (flags, answer) in [("S", "SA"), ("A", "A"), ("FA", "FA"), ("A", "A")] {
            there.push(tcp(a, b, (40000, 5432), flags));
            back.push(tcp(b, a, (5432, 40000), answer));
        }
        there.push(udp(a, b, (5000, 53), b"question"));
        back.push(udp(b, a, (53, 5000), b"answer"));
    }
    let echo =
        |step: etherparse::PacketBuilderStep<etherparse::IpHeaders>| step.icmpv4_echo_request(7, 1);
    there.push(write(|out| echo(builder("10.1.0.5", "10.2.0.5")).write(out, b"ping").expect("ok")));
    let reply = builder("10.2.0.5", "10.1.0.5").icmpv4_echo_reply(7, 1);
    back.push(write(|out| reply.write(out, b"ping").expect("ok")));
    // Fragments, and what is dropped.
    let whole = udp("10.1.0.5", "10.2.0.5", (5000, 53), &[7; 64]);
    there.extend([fragment(&whole, 4, 66..106), fragment(&whole, 0x2000, 34..66)]);
    there.extend([fragment(&whole, 4, 66..106), udp("10.1.0.9", "10.2.0.5", (1, 2), b"spoofed")]);
    back.push(udp("10.2.0.1", "10.1.0.99", (1, 2), b"nobody there"));
    (there, back)
}

/// The two inputs: from node 1's pods, and from the underlay.
fn inputs(me: Side, other: Side) -> (Vec<Record>, Vec<Record>) {
    let (there, back) = traffic();
    let mut sender = node(other, me);
    let on_wire = back.iter().map(|frame| sender.outbound(frame).expect("leaves node 2"));
    let at = |offset: u64| {
        move |(number, frame): (u64, Vec<u8>)| Record {
            time_ns: SECOND + offset + number * 1_000_000,
            frame,
        }
    };
    let underlay: Vec<_> = (0..).zip(on_wire).map(at(500_000)).collect();
    ((0..).zip(there).map(at(0)).collect(), underlay)
}

#[test]
fn what_goes_out_is_what_it_was() {
    for (name, v6_underlay) in [("over-ipv4", false), ("over-ipv6", true)] {
        let me = Side { number: 1, v6_underlay };
        let other = Side { number: 2, v6_underlay };
        if blessing() {
            let (gateway, underlay) = inputs(me, other);
            std::fs::write(path(&format!("{name}-gateway-in.pcap")), capture(&gateway)).unwrap();
            std::fs::write(path(&format!("{name}-underlay-in.pcap")), capture(&underlay)).unwrap();
        }
        replay(name, node(me, other));
    }
}

fn replay(name: &str, mut node: Node) {
    let put = |wire: &MemoryWire, record: &Record| wire.put(record.frame.clone());
    let gateway = read(&format!("{name}-gateway-in.pcap"));
    let underlay = read(&format!("{name}-underlay-in.pcap"));
    let mut all: Vec<_> = gateway.iter().map(|record| (record, node.gateway.clone())).collect();
    all.extend(underlay.iter().map(|record| (record, node.underlay.clone())));
    all.sort_by_key(|(record, _)| record.time_ns);
    let (mut to_gateway, mut to_underlay) = (Vec::new(), Vec::new());
    for (record, wire) in all {
        node.now = record.time_ns;
        put(&wire, record);
        node.poll();
        let seen = |frame| Record { time_ns: record.time_ns, frame };
        to_gateway.extend(std::iter::from_fn(|| node.gateway.take()).map(seen));
        to_underlay.extend(std::iter::from_fn(|| node.underlay.take()).map(seen));
    }
    golden(&format!("{name}-gateway-out.pcap"), &capture(&to_gateway));
    golden(&format!("{name}-underlay-out.pcap"), &capture(&to_underlay));
    golden(&format!("{name}-counters.txt"), counters(&node).as_bytes());
}

fn counters(node: &Node) -> String {
    let tally = node.worker.shared().counters.read();
    let mut text = String::new();
    for (name, _, value) in tally.named() {
        writeln!(text, "{name} {value}").expect("writes to memory");
    }
    for (reason, count) in DropReason::ALL.iter().zip(tally.dropped) {
        if count != 0 {
            writeln!(text, "dropped {} {count}", reason.label()).expect("writes to memory");
        }
    }
    text
}
