//! The stages end to end, over in-memory ports.

mod common;

use common::*;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::sync::Arc;
use tieline_dataplane::outer::{OVERHEAD_V4, OVERHEAD_V6};
use tieline_dataplane::tables::Policies;
use tieline_dataplane::verdict::DropReason;

#[test]
fn a_packet_crosses_and_its_answer_comes_back() {
    for v6_underlay in [false, true] {
        for v6 in [false, true] {
            let (mut a, mut b) = pair(v6_underlay);
            let (pod_a, pod_b) = (a.side.pod(v6), b.side.pod(v6));
            let sent = tcp(&pod_a, &pod_b, (40000, 5432), "S");
            let on_wire = a.outbound(&sent).unwrap();
            let overhead = if v6_underlay { OVERHEAD_V6 } else { OVERHEAD_V4 };
            assert_eq!(on_wire.len(), sent.len() + overhead as usize);
            let delivered = b.inbound(&on_wire).unwrap();
            assert_eq!(delivered[..6], mac(0x80).0, "addressed to the gateway");
            assert_eq!(delivered[14..], sent[14..], "the packet itself is untouched");
            let answer = tcp(&pod_b, &pod_a, (5432, 40000), "SA");
            let on_wire = b.outbound(&answer).unwrap();
            assert_eq!(a.inbound(&on_wire).unwrap()[14..], answer[14..]);
        }
    }
}

#[test]
fn the_outer_headers_are_what_the_standards_say() {
    for v6_underlay in [false, true] {
        let (mut a, b) = pair(v6_underlay);
        let frame = udp(&a.side.pod(false), &b.side.pod(false), (1000, 2000), b"hello");
        let on_wire = a.outbound(&frame).unwrap();
        let outer = SlicedPacket::from_ethernet(&on_wire).expect("etherparse reads it");
        let Some(TransportSlice::Udp(udp)) = &outer.transport else { panic!("no UDP") };
        assert_eq!(udp.destination_port(), 4789);
        assert!(udp.source_port() >= 49152, "RFC 7348 section 5");
        match outer.net.expect("an IP header") {
            NetSlice::Ipv4(ip) => {
                assert_eq!(ip.header().source_addr().to_string(), "192.0.2.1");
                assert_eq!(ip.header().destination_addr().to_string(), "192.0.2.2");
                assert_eq!(ip.header().ttl(), 64);
                assert!(ip.header().dont_fragment());
                assert_eq!(
                    ip.header().header_checksum(),
                    ip.header().to_header().calc_header_checksum()
                );
                assert_eq!(udp.checksum(), 0);
            }
            NetSlice::Ipv6(ip) => {
                let (source, destination) = (ip.header().source(), ip.header().destination());
                let expected = udp
                    .to_header()
                    .calc_checksum_ipv6_raw(source, destination, udp.payload())
                    .expect("short");
                assert_eq!(udp.checksum(), expected);
                assert_eq!(ip.header().hop_limit(), 64);
            }
            NetSlice::Arp(_) => panic!("not ARP"),
        }
        let vxlan = udp.payload();
        assert_eq!(vxlan[..8], [8, 0, 0, 0, 0, 0x10, 0, 0], "flag I, VNI 4096");
        assert_eq!(vxlan[8..14], b.side.vtep_mac().0);
        assert_eq!(vxlan[14..20], a.side.vtep_mac().0);
        assert_eq!(&vxlan[20..], &frame[12..]);
    }
}

#[test]
fn both_directions_of_a_flow_have_one_outer_source_port() {
    let (mut a, mut b) = pair(false);
    // One key for both tables, as if both directions were sent by one node.
    let hasher = tieline_dataplane::flow::FlowHasher::from_seed(1);
    let table = |hasher| {
        let timeouts = tieline_dataplane::flow::Timeouts::default();
        tieline_dataplane::flow::FlowTable::with_hasher(64, timeouts, hasher)
    };
    a = Node::with_flows(a.side, b.side, table(hasher.clone()));
    b = Node::with_flows(b.side, a.side, table(hasher));
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    let there = a.outbound(&tcp(&pod_a, &pod_b, (40000, 80), "S")).unwrap();
    let back = b.outbound(&tcp(&pod_b, &pod_a, (80, 40000), "SA")).unwrap();
    assert_eq!(there[34..36], back[34..36]);
}

#[test]
fn answers_pass_where_the_policy_admits_only_the_opening() {
    let (mut a, mut b) = pair(false);
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_tcp(5432)])))]);
    });
    b.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[allow_tcp(5432)], &[])))]);
    });
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    let on_wire = a.outbound(&tcp(&pod_a, &pod_b, (40000, 5432), "S")).unwrap();
    b.inbound(&on_wire).unwrap();
    let on_wire = b.outbound(&tcp(&pod_b, &pod_a, (5432, 40000), "SA")).unwrap();
    a.inbound(&on_wire).unwrap();
    // Neither another port, nor the same from the other end.
    let other = tcp(&pod_a, &pod_b, (40000, 22), "S");
    assert_eq!(a.outbound(&other), Err(DropReason::EgressDenied));
    let reverse = tcp(&pod_b, &pod_a, (40001, 5432), "S");
    assert_eq!(b.outbound(&reverse), Err(DropReason::EgressDenied));
}

#[test]
fn a_revoked_permission_cuts_a_running_connection_and_its_answers() {
    let (mut a, mut b) = pair(false);
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    let there = tcp(&pod_a, &pod_b, (40000, 5432), "A");
    let back = tcp(&pod_b, &pod_a, (5432, 40000), "A");
    a.outbound(&tcp(&pod_a, &pod_b, (40000, 5432), "S")).unwrap();
    let back_on_wire = b.outbound(&back).unwrap();
    a.inbound(&back_on_wire).unwrap();
    // Ingress stays wide open: the answers must not begin the flow anew.
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[allow_all()], &[])))]);
    });
    assert_eq!(a.inbound(&back_on_wire), Err(DropReason::EgressDenied));
    assert_eq!(a.outbound(&there), Err(DropReason::EgressDenied));
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_all()])))]);
    });
    a.outbound(&there).unwrap();
    a.inbound(&back_on_wire).unwrap();
    assert_eq!(a.worker.shared().counters.read().flow_rejudged, 2, "once per change");
}

#[test]
fn changes_elsewhere_keep_a_flow() {
    let (mut a, b) = pair(false);
    let frame = tcp(&a.side.pod(false), &b.side.pod(false), (40000, 5432), "S");
    a.outbound(&frame).unwrap();
    for number in 0..10u8 {
        a.publish(|tables| {
            tables.routes.insert(
                prefix(&format!("10.99.{number}.0/24")),
                tieline_dataplane::tables::Route::Local,
            );
        });
        a.outbound(&frame).unwrap();
    }
    let counted = a.worker.shared().counters.read();
    assert_eq!((counted.flow_misses, counted.flow_hits), (1, 10));
}

#[test]
fn only_flows_that_a_change_concerns_are_judged_again() {
    let (mut a, b) = pair(false);
    let frame = tcp(&a.side.pod(false), &b.side.pod(false), (40000, 5432), "S");
    a.outbound(&frame).unwrap();
    let endpoint =
        |class| tieline_dataplane::tables::Endpoint { class, policy: None, local: false };
    for number in 0..100 {
        let elsewhere = addr(&format!("10.99.0.{number}"));
        a.publish(|tables| tables.endpoints.insert(elsewhere, endpoint(PEER)));
        a.outbound(&frame).unwrap();
        let prefix = format!("10.98.{number}.0/26").parse().unwrap();
        a.publish(|tables| {
            tables.routes.insert(prefix, tieline_dataplane::tables::Route::Local);
            tables.endpoints.insert_prefix(prefix, PEER);
        });
        a.outbound(&frame).unwrap();
    }
    // One in 4,096 addresses and blocks shares its place among the changes with the flow's.
    let rejudged = a.worker.shared().counters.read().flow_rejudged;
    assert!(rejudged < 2, "judged again {rejudged} times");
    // The peer loses the labels that it was allowed by.
    let peer = addr(&b.side.pod(false));
    a.publish(|tables| {
        tables.endpoints.insert(peer, endpoint(tieline_dataplane::tables::ClassId::UNKNOWN_V4));
    });
    assert_eq!(a.outbound(&frame), Err(DropReason::EgressDenied));
    assert_eq!(a.worker.shared().counters.read().flow_rejudged, rejudged + 1);
}

#[test]
fn fragments_follow_their_first_one() {
    let (mut a, mut b) = pair(false);
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_all()])))]);
    });
    let whole = udp(&a.side.pod(false), &b.side.pod(false), (1000, 2000), &[7; 64]);
    let first = fragment(&whole, 0x2000, 34..66);
    let later = fragment(&whole, 32 / 8, 66..106);
    assert_eq!(a.outbound(&later), Err(DropReason::FragmentUnmatched));
    let first_on_wire = a.outbound(&first).unwrap();
    let later_on_wire = a.outbound(&later).unwrap();
    assert_eq!(b.inbound(&later_on_wire), Err(DropReason::FragmentUnmatched));
    b.inbound(&first_on_wire).unwrap();
    assert_eq!(b.inbound(&later_on_wire).unwrap()[14..], later[14..]);
    a.now += 31 * SECOND;
    assert_eq!(a.outbound(&later), Err(DropReason::FragmentUnmatched), "long after it");
}

#[test]
fn fragments_of_an_answer_end_with_the_flow_that_it_answers() {
    let (mut a, mut b) = pair(false);
    let everything = || Some(Arc::new(policy(&[allow_all()], &[allow_all()])));
    for node in [&mut a, &mut b] {
        node.publish(|tables| tables.policies = Policies::new([everything()]));
    }
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    b.inbound(&a.outbound(&udp(&pod_a, &pod_b, (1000, 2000), b"ask")).unwrap()).unwrap();
    let answer = udp(&pod_b, &pod_a, (2000, 1000), &[7; 64]);
    let first = b.outbound(&fragment(&answer, 0x2000, 34..66)).unwrap();
    let later = b.outbound(&fragment(&answer, 32 / 8, 66..106)).unwrap();
    a.inbound(&first).unwrap();
    a.inbound(&later).unwrap();
    // What has begun the flow may not any more; packets of the peer's own may.
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[allow_all()], &[])))]);
    });
    assert_eq!(a.inbound(&later), Err(DropReason::FragmentUnmatched));
    assert_eq!(a.inbound(&first), Err(DropReason::EgressDenied));
    assert_eq!(a.inbound(&later), Err(DropReason::FragmentUnmatched));
}

#[test]
fn fragments_of_an_authenticated_packet_follow_their_first_one() {
    let (mut a, b) = pair(false);
    let mut whole = udp(&a.side.pod(false), &b.side.pod(false), (1000, 2000), &[7; 64]);
    // Next header, length in words less 2 (RFC 4302), and the rest of 24 bytes.
    let mut header = [0; 24];
    header[..2].copy_from_slice(&[17, 4]);
    whole.splice(34..34, header);
    whole[23] = 51;
    a.outbound(&fragment(&whole, 0x2000, 34..74)).unwrap();
    a.outbound(&fragment(&whole, 40 / 8, 74..130)).unwrap();
}

#[test]
fn an_icmp_error_passes_with_the_flow_that_it_quotes() {
    let (mut a, mut b) = pair(false);
    for node in [&mut a, &mut b] {
        node.publish(|tables| {
            tables.policies =
                Policies::new([Some(Arc::new(policy(&[allow_tcp(80)], &[allow_tcp(80)])))]);
        });
    }
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    let opening = tcp(&pod_a, &pod_b, (40000, 80), "S");
    let on_wire = a.outbound(&opening).unwrap();
    b.inbound(&on_wire).unwrap();
    // Node b's own address reports that the port is unreachable.
    let error = |quoted: &[u8]| {
        let step = builder(&b.side.tunnel(), &pod_a).icmpv4_raw(3, 3, [0; 4]);
        write(|out| step.write(out, quoted).expect("writes"))
    };
    let (about_this, about_other) =
        (error(&opening[14..]), error(&tcp(&pod_a, &pod_b, (40000, 81), "S")[14..]));
    let on_wire = b.outbound(&about_this).unwrap();
    assert_eq!(a.inbound(&on_wire).unwrap()[14..], about_this[14..]);
    let on_wire = b.outbound(&about_other).unwrap();
    assert_eq!(a.inbound(&on_wire), Err(DropReason::IngressDenied));
    // Nor about one that may not go on, though none of its packets has come since.
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[allow_tcp(80)], &[])))]);
    });
    let on_wire = b.outbound(&about_this).unwrap();
    assert_eq!(a.inbound(&on_wire), Err(DropReason::IngressDenied));
}

#[test]
fn only_an_echo_reply_answers_and_no_identifier_is_a_type() {
    let (mut a, mut b) = pair(false);
    let (pod_a, pod_b) = (a.side.pod(false), b.side.pod(false));
    let icmp = |from: &str, to: &str, kind: u8, ident: u16| {
        let [high, low] = ident.to_be_bytes();
        let step = builder(from, to).icmpv4_raw(kind, 0, [high, low, 0, 1]);
        write(|out| step.write(out, &[]).expect("writes"))
    };
    // Node a's pod may send what it likes and get nothing but answers. The
    // identifier is type and code of a timestamp request.
    let egress_only = |tables: &mut tieline_dataplane::tables::Snapshot| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_all()])))]);
    };
    a.publish(egress_only);
    let mut back = |a: &mut Node, kind, ident| {
        let on_wire = b.outbound(&icmp(&pod_b, &pod_a, kind, ident)).unwrap();
        a.inbound(&on_wire).map(|_| ())
    };
    a.outbound(&icmp(&pod_a, &pod_b, 8, 0x0d00)).unwrap();
    assert_eq!(back(&mut a, 0, 0x0d00), Ok(()));
    assert_eq!(back(&mut a, 8, 0x0d00), Err(DropReason::IngressDenied), "a request");
    assert_eq!(back(&mut a, 13, 0), Err(DropReason::IngressDenied), "another type");
    a.outbound(&icmp(&pod_a, &pod_b, 13, 0)).unwrap();
    assert_eq!(back(&mut a, 13, 0), Err(DropReason::IngressDenied), "sent, not asked");
    // Still the same for the flow that was known before.
    assert_eq!(back(&mut a, 0, 0x0d00), Ok(()));
}

#[test]
fn congestion_marks_survive_the_tunnel() {
    let (mut a, mut b) = pair(false);
    let mut frame = udp(&a.side.pod(true), &b.side.pod(true), (1, 2), b"x");
    frame[15] = 0x20; // ECT(0) in the traffic class
    let mut on_wire = a.outbound(&frame).unwrap();
    assert_eq!(on_wire[15] & 3, 2, "copied to the outer header");
    on_wire[15] |= 3; // a router marks congestion
    let sum = u16::from_be_bytes([on_wire[24], on_wire[25]]) - 1;
    on_wire[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(b.inbound(&on_wire).unwrap()[15] >> 4 & 3, 3, "and back to the inner one");
}

#[test]
fn padding_of_short_frames_is_not_encapsulated() {
    let (mut a, b) = pair(false);
    let mut frame = udp(&a.side.pod(false), &b.side.pod(false), (1, 2), b"");
    let len = frame.len();
    frame.resize(60, 0);
    assert_eq!(a.outbound(&frame).unwrap().len(), len + OVERHEAD_V4 as usize);
}
