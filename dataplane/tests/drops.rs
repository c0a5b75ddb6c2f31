//! Every reason to drop a frame, reached over in-memory ports.

mod common;

use std::sync::Arc;

use common::*;
use tieline_dataplane::flow::{FlowTable, Timeouts, WINDOW};
use tieline_dataplane::frame::HeapMemory;
use tieline_dataplane::tables::{Policies, Route, VtepId};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::wire::Vni;

/// What became of a frame.
type Fate = Result<Vec<u8>, DropReason>;

#[test]
fn every_reason_is_reached() {
    for reason in DropReason::ALL {
        assert_eq!(provoke(*reason), Err(*reason), "{}", reason.label());
    }
}

/// Does something that a frame is dropped for with just this reason. The match
/// has no other arm: a new reason does not compile without its case.
fn provoke(reason: DropReason) -> Fate {
    match reason {
        DropReason::OuterTruncated => arriving(|frame| frame.truncate(40)),
        DropReason::OuterMalformed => arriving(|frame| frame[37] ^= 1),
        DropReason::OuterChecksum => arriving(|frame| frame[22] -= 1),
        DropReason::OuterNotOurs => arriving_resealed(|frame| frame[33] = 77),
        DropReason::UnknownVtep => arriving_resealed(|frame| frame[29] = 77),
        DropReason::UnknownVni => arriving(|frame| frame[48] ^= 1),
        DropReason::EcnInvalid => arriving_resealed(|frame| frame[15] |= 3),
        DropReason::InnerMac => arriving(|frame| frame[50] ^= 1),
        DropReason::InnerTruncated => leaving(|frame| frame.truncate(33)),
        DropReason::InnerMalformed => leaving(|frame| frame[14] = 0x44),
        DropReason::InnerChecksum => leaving(|frame| frame[24] ^= 1),
        DropReason::InnerUnsupported => leaving(|frame| frame[12..14].fill(6)),
        DropReason::NeverForwarded => between("169.254.1.1", "10.2.0.5"),
        DropReason::SourceNotOwned => source_not_owned(),
        DropReason::DestinationNotLocal => arriving_inner("10.1.0.5", "10.2.0.99"),
        DropReason::SourceNotLocal => between("10.1.0.99", "10.2.0.5"),
        DropReason::DestinationLocal => between("10.1.0.5", "10.1.0.99"),
        DropReason::NoRoute => between("10.1.0.5", "10.3.0.5"),
        DropReason::NoVtep => no_vtep(),
        DropReason::NoAdjacency => no_adjacency(),
        DropReason::EgressDenied => egress_denied(),
        DropReason::IngressDenied => ingress_denied(),
        DropReason::FragmentUnmatched => fragment_unmatched(),
        DropReason::FlowTableFull => flow_table_full(),
        DropReason::FlowBusy => flow_busy(),
        DropReason::NoHeadroom => no_headroom(),
        DropReason::TooBig => too_big(),
        DropReason::TransmitFull => transmit_full(),
    }
}

/// A datagram between the two pods.
fn datagram() -> Vec<u8> {
    udp("10.1.0.5", "10.2.0.5", (1000, 2000), b"payload")
}

/// Node 1 sends the datagram, changed.
fn leaving(change: impl FnOnce(&mut Vec<u8>)) -> Fate {
    let (mut a, _) = pair(false);
    let mut frame = datagram();
    change(&mut frame);
    a.outbound(&frame)
}

/// Node 1 sends a datagram between these addresses.
fn between(source: &str, destination: &str) -> Fate {
    let (mut a, _) = pair(false);
    a.outbound(&udp(source, destination, (1000, 2000), b""))
}

/// Node 2 receives the datagram with its outer headers, changed.
fn arriving(change: impl FnOnce(&mut Vec<u8>)) -> Fate {
    let (mut a, mut b) = pair(false);
    let mut frame = a.outbound(&datagram())?;
    change(&mut frame);
    b.inbound(&frame)
}

/// The same, with the outer header's checksum made right again.
fn arriving_resealed(change: impl FnOnce(&mut Vec<u8>)) -> Fate {
    arriving(|frame| {
        change(frame);
        seal(&mut frame[14..]);
    })
}

/// Node 2 receives a datagram between these addresses from node 1.
fn arriving_inner(source: &str, destination: &str) -> Fate {
    let inner = udp(source, destination, (1000, 2000), b"payload");
    arriving(|frame| {
        frame.truncate(50 + 12);
        frame.extend(&inner[12..]);
    })
}

/// All the ways to send from an address that is not one's own.
fn source_not_owned() -> Fate {
    for stranger in ["10.3.0.5", "10.2.0.6"] {
        assert_eq!(arriving_inner(stranger, "10.2.0.5"), Err(DropReason::SourceNotOwned));
    }
    // Nor may one join a flow that is known already, from its other end.
    let (mut a, mut b) = pair(false);
    let mut frame = a.outbound(&datagram())?;
    b.inbound(&frame)?;
    let reverse = udp("10.2.0.5", "10.1.0.5", (2000, 1000), b"payload");
    frame.truncate(50 + 12);
    frame.extend(&reverse[12..]);
    b.inbound(&frame)
}

fn no_vtep() -> Fate {
    let (mut a, _) = pair(false);
    a.publish(|tables| {
        tables.routes.insert(prefix("10.2.0.0/16"), Route::Vtep(VtepId(9)));
    });
    a.outbound(&datagram())
}

fn no_adjacency() -> Fate {
    let (mut a, _) = pair(false);
    a.publish(|tables| {
        let mut spec = *tables.vteps.get(VtepId(0)).expect("the peer");
        spec.path = None;
        tables.vteps.insert(VtepId(0), spec);
    });
    a.outbound(&datagram())
}

fn egress_denied() -> Fate {
    let (mut a, _) = pair(false);
    a.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[allow_all()], &[])))]);
    });
    a.outbound(&datagram())
}

fn ingress_denied() -> Fate {
    let (mut a, mut b) = pair(false);
    b.publish(|tables| {
        tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_all()])))]);
    });
    let frame = a.outbound(&datagram())?;
    b.inbound(&frame)
}

fn fragment_unmatched() -> Fate {
    let (mut a, _) = pair(false);
    a.outbound(&fragment(&datagram(), 1, 42..49))
}

fn flow_table_full() -> Fate {
    let (a, b) = pair(false);
    let mut a = Node::with_flows(a.side, b.side, FlowTable::new(1, Timeouts::default()));
    let mut b = Node::new(b.side, a.side);
    // Established flows don't give way.
    for port in 0..WINDOW as u16 {
        a.outbound(&udp("10.1.0.5", "10.2.0.5", (port, 80), b""))?;
        let answer = b.outbound(&udp("10.2.0.5", "10.1.0.5", (80, port), b""))?;
        a.inbound(&answer)?;
    }
    a.outbound(&datagram())
}

fn flow_busy() -> Fate {
    let (mut a, _) = pair(false);
    a.outbound(&datagram())?;
    a.flows.stall();
    a.outbound(&datagram())
}

fn no_headroom() -> Fate {
    let (a, b) = pair(false);
    let flows = FlowTable::new(64, Timeouts::default());
    let memory = HeapMemory::new(CHUNKS, 2048);
    Node::over(a.side, b.side, flows, memory, Quirk::NoHeadroom).outbound(&datagram())
}

fn too_big() -> Fate {
    let (a, b) = pair(false);
    let flows = FlowTable::new(64, Timeouts::default());
    let memory = HeapMemory::new(2, 1 << 17);
    let mut node = Node::over(a.side, b.side, flows, memory, Quirk::None);
    // 28 bytes of headers; the outer headers within IP add 50.
    let largest = 65535 - 28 - 50;
    let fits = udp("10.1.0.5", "10.2.0.5", (1, 2), &vec![0; largest]);
    assert_eq!(node.outbound(&fits)?.len(), 14 + 65535);
    node.outbound(&udp("10.1.0.5", "10.2.0.5", (1, 2), &vec![0; largest + 1]))
}

fn transmit_full() -> Fate {
    let (mut a, b) = pair(false);
    let flows = FlowTable::new(64, Timeouts::default());
    let memory = HeapMemory::new(CHUNKS, 2048);
    let mut stuck = Node::over(b.side, a.side, flows, memory, Quirk::Stuck);
    let frame = a.outbound(&datagram())?;
    stuck.inbound(&frame)
}

#[test]
fn the_overlay_s_network_is_the_configured_one() {
    let (mut a, mut b) = pair(false);
    let other = Vni::new(77).expect("24 bits");
    for node in [&mut a, &mut b] {
        node.publish(|tables| Arc::make_mut(&mut tables.overlay).vni = other);
    }
    let frame = a.outbound(&datagram()).expect("leaves");
    assert_eq!(frame[46..49], [0, 0, 77]);
    b.inbound(&frame).expect("arrives");
}
