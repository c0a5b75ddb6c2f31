//! Tables and frames of the pipeline's fuzz target.

use std::sync::Arc;

use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::policy::Direction;
use tieline_dataplane::tables::{
    ClassId, Clause, Endpoint, EndpointPolicy, NodeId, Outcome, Overlay, Path, Policies, PolicyId,
    Program, Route, RuleId, Snapshot, VtepId, VtepSpec,
};
use tieline_dataplane::wire::{MacAddr, Vni, checksum};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const LOCAL: [u8; 4] = [10, 1, 0, 5];
const REMOTE: [u8; 4] = [10, 2, 0, 5];

fn underlay(v6: bool, last: u8) -> Addr {
    if v6 {
        let mut bytes = [0xfd; 16];
        bytes[15] = last;
        Addr::from_v6_bytes(bytes)
    } else {
        Addr::from_v4_bytes([192, 0, 2, last])
    }
}

/// Tables of a node with one pod and one remote pod; the bits of `variant` take
/// parts of them away.
pub fn tables(v6_underlay: bool, variant: u8) -> Snapshot {
    let mut tables = Snapshot::empty();
    tables.generation = u64::from(variant) + 1;
    tables.overlay = Arc::new(Overlay {
        vni: Vni::new(4096).expect("24 bits"),
        port: 4789,
        mac_v4: MAC,
        mac_v6: MAC,
        underlay: vec![underlay(v6_underlay, 1)],
        verify_checksum: variant & 1 != 0,
        udp6_checksum: variant & 1 == 0,
        gateway_mac: MAC,
        gateway_source_mac: MAC,
    });
    let path = Path { source: underlay(v6_underlay, 1), source_mac: MAC, next_hop_mac: MAC };
    let vtep = VtepSpec {
        node: NodeId(0),
        underlay: underlay(v6_underlay, 2),
        mac: MAC,
        path: (variant & 2 == 0).then_some(path),
    };
    tables.vteps.insert(VtepId(0), vtep);
    for prefix in ["10.2.0.0/16", "fd00:2::/64"] {
        if variant & 4 == 0 {
            tables.routes.insert(prefix.parse().expect("a prefix"), Route::Vtep(VtepId(0)));
        }
    }
    let local = Endpoint { class: ClassId(2), policy: Some(PolicyId(0)), local: variant & 8 == 0 };
    tables.endpoints.insert(Addr::from_v4_bytes(LOCAL), local);
    let deny = Outcome { allow: false, rule: RuleId(1) };
    let allow = Clause {
        protocols: Clause::ANY_PROTOCOL,
        sources: None,
        destinations: (variant & 16 != 0).then(|| vec![0..=80]),
        outcome: Outcome { allow: true, rule: RuleId(2) },
    };
    let direction = |open: bool| Direction {
        by_class: Arc::new([]),
        programs: Arc::new([Arc::new(Program::new(
            if open { std::slice::from_ref(&allow) } else { &[] },
            deny,
        ))]),
    };
    tables.policies = Policies::new([Some(Arc::new(EndpointPolicy {
        ingress: direction(variant & 32 == 0),
        egress: direction(variant & 64 == 0),
    }))]);
    tables
}

/// An IPv4 packet in a frame, over which `bytes` are laid from the fragment
/// field on.
pub fn datagram(bytes: &[u8]) -> Vec<u8> {
    frame(LOCAL, REMOTE, bytes)
}

fn frame(source: [u8; 4], destination: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 44];
    frame[..6].copy_from_slice(&MAC.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[17] = 64;
    frame[22] = 64;
    let (fields, payload) = bytes.split_at(bytes.len().min(4));
    frame[20..20 + fields.len()].copy_from_slice(fields);
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&destination);
    let payload = &payload[..payload.len().min(44)];
    frame[34..34 + payload.len()].copy_from_slice(payload);
    let sum = checksum::finish(checksum::sum(&frame[14..24]) + checksum::sum(&frame[26..34]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The answer's packet, within VXLAN from the other node.
pub fn tunneled(v6_underlay: bool, bytes: &[u8]) -> Vec<u8> {
    let inner = frame(REMOTE, LOCAL, bytes);
    let udp_len = (16 + inner.len()) as u16;
    let mut frame = vec![0; 12];
    if v6_underlay {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(udp_len.to_be_bytes());
        frame.extend([17, 64]);
        frame.extend(underlay(true, 2).bits().to_be_bytes());
        frame.extend(underlay(true, 1).bits().to_be_bytes());
    } else {
        frame.extend([8, 0]);
        let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
        ip[2..4].copy_from_slice(&(udp_len + 20).to_be_bytes());
        let sum = checksum::finish(checksum::sum(&ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
    }
    frame.extend([0xc0, 0, 0x12, 0xb5]);
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0]);
    frame.extend(inner);
    frame
}
