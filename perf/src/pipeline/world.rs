//! The tables of a node in a federation, and the packets of its flows.
//!
//! Local pods, remote pods on nodes of 64 pods each (one block, one VTEP), a
//! policy whose rules name ports, and addresses in several classes.

use std::sync::Arc;

use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::policy::Direction;
use tieline_dataplane::tables::{
    ClassId, Clause, Endpoint, EndpointPolicy, NodeId, Outcome, Overlay, Path, Policies, PolicyId,
    Program, Route, RuleId, Snapshot, VtepId, VtepSpec,
};
use tieline_dataplane::wire::{MacAddr, Vni, checksum};

/// Pods of this node.
pub(crate) const LOCAL_PODS: usize = 64;
/// Pods of each remote node.
const PODS_PER_NODE: usize = 64;
/// Remote pods that flows go to; the others only fill the tables.
const ACTIVE_REMOTES: usize = 1024;
/// Classes that addresses are in.
const CLASSES: u32 = 16;
/// The port that flows go to, which the last rule allows.
const PORT: u16 = 443;

const SOURCE_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const NEXT_HOP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const VTEP_MAC: MacAddr = MacAddr([0x66, 0, 0, 0, 0, 1]);

/// A node's tables, and where its flows go.
pub(crate) struct World {
    pub(crate) tables: Snapshot,
    v6: bool,
    remotes: usize,
}

/// Payload bytes that make an inner frame of 64 bytes over IPv4.
const PAYLOAD: usize = 22;

impl World {
    pub(crate) fn new(endpoints: usize, rules: usize, v6: bool) -> Self {
        let remotes = endpoints.saturating_sub(LOCAL_PODS).max(1);
        let mut tables = Snapshot::empty();
        tables.generation = 1;
        tables.overlay = Arc::new(Overlay {
            vni: Vni::new(4096).unwrap_or_default(),
            port: 4789,
            mac_v4: VTEP_MAC,
            mac_v6: VTEP_MAC,
            underlay: vec![underlay(0)],
            verify_checksum: false,
            udp6_checksum: true,
            gateway_mac: MacAddr([2, 0, 0, 0, 0, 8]),
            gateway_source_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        });
        for node in 0..remotes.div_ceil(PODS_PER_NODE) {
            add_node(&mut tables, node, v6);
        }
        for pod in 0..LOCAL_PODS {
            let endpoint = Endpoint { class: ClassId(2), policy: Some(PolicyId(0)), local: true };
            tables.endpoints.insert(local_pod(pod, v6), endpoint);
        }
        for pod in 0..remotes {
            tables.endpoints.insert(remote_pod(pod, v6), remote_endpoint(pod));
        }
        tables.policies = policies(rules, 0);
        Self { tables, v6, remotes: remotes.min(ACTIVE_REMOTES) }
    }

    /// Bytes of each packet with its Ethernet header.
    pub(crate) fn frame_len(&self) -> usize {
        14 + if self.v6 { 40 } else { 20 } + 8 + PAYLOAD
    }

    /// Local pod, remote pod and the local end's port of a flow.
    fn ends(&self, flow: usize) -> (usize, usize, u16) {
        let (local, rest) = (flow % LOCAL_PODS, flow / LOCAL_PODS);
        (local, rest % self.remotes, 1024 + (rest / self.remotes) as u16)
    }

    /// Writes the packet that the local pod sends in this flow, as the kernel
    /// hands it to the gateway.
    pub(crate) fn write_outgoing(&self, flow: usize, frame: &mut [u8]) {
        let (local, remote, port) = self.ends(flow);
        let ends = (local_pod(local, self.v6), remote_pod(remote, self.v6));
        write_datagram(frame, ends, (port, PORT));
    }

    /// Writes the packet that the remote pod sends, as it arrives in VXLAN.
    /// Returns its length.
    pub(crate) fn write_incoming(&self, flow: usize, frame: &mut [u8]) -> usize {
        let (local, remote, port) = self.ends(flow);
        let (outer, rest) = frame.split_at_mut(50);
        let inner = &mut rest[..self.frame_len()];
        let ends = (remote_pod(remote, self.v6), local_pod(local, self.v6));
        write_datagram(inner, ends, (port, PORT));
        inner[..6].copy_from_slice(&VTEP_MAC.0);
        outer[12..14].copy_from_slice(&[8, 0]);
        outer[14..].fill(0);
        (outer[14], outer[22], outer[23]) = (0x45, 64, 17);
        let udp_len = (16 + inner.len()) as u16;
        outer[16..18].copy_from_slice(&(udp_len + 20).to_be_bytes());
        let v4 = |addr: Addr| (addr.bits() as u32).to_be_bytes();
        outer[26..30].copy_from_slice(&v4(underlay(1 + remote / PODS_PER_NODE)));
        outer[30..34].copy_from_slice(&v4(underlay(0)));
        let sum = checksum::finish(checksum::sum(&outer[14..34]));
        outer[24..26].copy_from_slice(&sum.to_be_bytes());
        outer[34..36].copy_from_slice(&(0xc000 | port).to_be_bytes());
        outer[36..38].copy_from_slice(&4789u16.to_be_bytes());
        outer[38..40].copy_from_slice(&udp_len.to_be_bytes());
        (outer[42], outer[47]) = (8, 0x10);
        50 + self.frame_len()
    }
}

/// Changes the tables as one pod that comes, goes or is relabeled.
pub(crate) fn change_endpoint(tables: &mut Snapshot, number: usize) {
    // Pods that no flow goes to: the pods of other nodes.
    let pod = ACTIVE_REMOTES + number % 8000;
    let class = ClassId(3 + number as u32 % (CLASSES - 3));
    let endpoint = Endpoint { class, policy: None, local: false };
    tables.endpoints.insert(remote_pod(pod, false), endpoint);
}

/// Changes the tables as one edit of a policy.
pub(crate) fn change_policy(tables: &mut Snapshot, rules: usize, number: usize) {
    tables.policies = policies(rules, number);
}

fn add_node(tables: &mut Snapshot, node: usize, v6: bool) {
    let id = VtepId(node as u32);
    let path = Path { source: underlay(0), source_mac: SOURCE_MAC, next_hop_mac: NEXT_HOP_MAC };
    let vtep = VtepSpec {
        node: NodeId(node as u32),
        underlay: underlay(1 + node),
        mac: MacAddr([0x66, 0, 0, 1, (node >> 8) as u8, node as u8]),
        path: Some(path),
    };
    tables.vteps.insert(id, vtep);
    let block = remote_pod(node * PODS_PER_NODE, v6).to_ip();
    if let Some(prefix) = Prefix::new(block, if v6 { 122 } else { 26 }) {
        tables.routes.insert(prefix, Route::Vtep(id));
    }
}

fn remote_endpoint(pod: usize) -> Endpoint {
    let class = ClassId(3 + pod as u32 % (CLASSES - 3));
    Endpoint { class, policy: None, local: false }
}

fn policies(rules: usize, number: usize) -> Policies {
    let clause = |port: u16, allow| Clause {
        protocols: [1 << 6 | 1 << 17, 0, 0, 0],
        sources: None,
        destinations: Some(vec![port..=port]),
        outcome: Outcome { allow, rule: RuleId(number as u32) },
    };
    // Every rule but the last is about ports that the flows don't use.
    let mut clauses: Vec<Clause> =
        (1..rules).map(|rule| clause((2000 + 3 * rule) as u16, rule % 2 == 0)).collect();
    clauses.push(clause(PORT, true));
    let deny = Outcome { allow: false, rule: RuleId(0) };
    let open = Arc::new(Program::new(&clauses, deny));
    let closed = Arc::new(Program::new(&[], deny));
    let direction = Direction {
        by_class: (0..CLASSES).map(|class| u32::from(class >= 3)).collect(),
        programs: Arc::new([closed, open]),
    };
    let policy = EndpointPolicy { ingress: direction.clone(), egress: direction };
    Policies::new([Some(Arc::new(policy))])
}

fn underlay(node: usize) -> Addr {
    Addr::from_v4_bytes((0xac10_0000 | node as u32).to_be_bytes())
}

fn local_pod(pod: usize, v6: bool) -> Addr {
    // Half of them below the remote ones and half above: which end of a flow
    // has the lower address must not be a foregone conclusion.
    let range = if pod.is_multiple_of(2) { 0x0001_0000 } else { 0x00c8_0000 };
    pod_address(range | pod as u32, v6)
}

pub(crate) fn remote_pod(pod: usize, v6: bool) -> Addr {
    pod_address(0x0040_0000 | pod as u32, v6)
}

fn pod_address(number: u32, v6: bool) -> Addr {
    if v6 {
        Addr::from_bits(0xfd00_0000_0000_0000 << 64 | u128::from(number))
    } else {
        Addr::from_v4_bytes((0x0a00_0000 | number).to_be_bytes())
    }
}

fn write_datagram(frame: &mut [u8], (source, destination): (Addr, Addr), ports: (u16, u16)) {
    let v4 = source.is_v4();
    let header = if v4 { 20 } else { 40 };
    let udp_len = (8 + PAYLOAD) as u16;
    frame[..12].fill(2);
    frame[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
    let (ip, udp) = frame[14..].split_at_mut(header);
    ip.fill(0);
    if v4 {
        (ip[0], ip[8], ip[9]) = (0x45, 63, 17);
        ip[2..4].copy_from_slice(&(udp_len + 20).to_be_bytes());
        ip[12..16].copy_from_slice(&(source.bits() as u32).to_be_bytes());
        ip[16..20].copy_from_slice(&(destination.bits() as u32).to_be_bytes());
        let sum = checksum::finish(checksum::sum(ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        (ip[0], ip[6], ip[7]) = (0x60, 17, 63);
        ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
        ip[8..24].copy_from_slice(&source.bits().to_be_bytes());
        ip[24..40].copy_from_slice(&destination.bits().to_be_bytes());
    }
    udp[..2].copy_from_slice(&ports.0.to_be_bytes());
    udp[2..4].copy_from_slice(&ports.1.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    udp[6..8].fill(0);
}
