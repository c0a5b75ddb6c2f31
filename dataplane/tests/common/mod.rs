//! Two nodes, each a worker over in-memory ports, joined by their underlay.
#![allow(dead_code, unreachable_pub, reason = "not every test uses every helper")]

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use etherparse::PacketBuilder;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::frame::{Frame, HeapMemory, Memory};
use tieline_dataplane::port::memory::{MemoryPort, MemoryWire};
use tieline_dataplane::port::{Port, PortStatistics};
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::policy::Direction;
use tieline_dataplane::tables::{
    ClassId, Clause, Endpoint, EndpointPolicy, NodeId, Outcome, Overlay, Path, Policies, PolicyId,
    Program, Route, RuleId, Snapshot, VtepId, VtepSpec,
};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::wire::{MacAddr, Vni, checksum};
use tieline_dataplane::worker::{Idle, Worker, WorkerConfig};

pub const CHUNKS: u32 = 64;
pub const SECOND: u64 = 1_000_000_000;

/// The class of the other cluster's pods.
pub const PEER: ClassId = ClassId(2);

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn addr(text: &str) -> Addr {
    ip(text).into()
}

pub fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

pub const fn mac(last: u8) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 0, last])
}

/// A node of the test: everything that differs between the two sides.
#[derive(Clone, Copy)]
pub struct Side {
    pub number: u8,
    pub v6_underlay: bool,
}

impl Side {
    pub fn underlay(&self) -> Addr {
        if self.v6_underlay {
            addr(&format!("fd00:aaaa::{}", self.number))
        } else {
            addr(&format!("192.0.2.{}", self.number))
        }
    }

    pub fn pod(&self, v6: bool) -> String {
        let n = self.number;
        if v6 { format!("fd00:{n}::5") } else { format!("10.{n}.0.5") }
    }

    /// Address of the node itself within the overlay.
    pub fn tunnel(&self) -> String {
        format!("10.{}.0.1", self.number)
    }

    fn ranges(&self) -> [Prefix; 2] {
        let n = self.number;
        [prefix(&format!("10.{n}.0.0/16")), prefix(&format!("fd00:{n}::/64"))]
    }

    pub fn vtep_mac(&self) -> MacAddr {
        mac(0x40 | self.number)
    }
}

/// Allows everything, or what the clauses say.
pub fn policy(ingress: &[Clause], egress: &[Clause]) -> EndpointPolicy {
    let direction = |clauses: &[Clause]| Direction {
        by_class: Arc::new([0, 0, 1]),
        programs: Arc::new([
            Arc::new(Program::new(&[], Outcome { allow: false, rule: RuleId(1) })),
            Arc::new(Program::new(clauses, Outcome { allow: false, rule: RuleId(2) })),
        ]),
    };
    EndpointPolicy { ingress: direction(ingress), egress: direction(egress) }
}

pub fn allow_all() -> Clause {
    Clause {
        protocols: Clause::ANY_PROTOCOL,
        sources: None,
        destinations: None,
        outcome: Outcome { allow: true, rule: RuleId(3) },
    }
}

pub fn allow_tcp(port: u16) -> Clause {
    Clause { protocols: [1 << 6, 0, 0, 0], destinations: Some(vec![port..=port]), ..allow_all() }
}

/// The tables of `me`, whose only peer is `other`.
pub fn snapshot(me: Side, other: Side) -> Snapshot {
    let mut tables = Snapshot::empty();
    tables.generation = 1;
    tables.overlay = Arc::new(Overlay {
        vni: Vni::new(4096).expect("24 bits"),
        port: 4789,
        mac_v4: me.vtep_mac(),
        mac_v6: me.vtep_mac(),
        underlay: vec![me.underlay()],
        verify_checksum: true,
        udp6_checksum: true,
        gateway_mac: mac(0x80),
        gateway_source_mac: mac(0x81),
    });
    tables.vteps.insert(
        VtepId(0),
        VtepSpec {
            node: NodeId(0),
            underlay: other.underlay(),
            mac: other.vtep_mac(),
            path: Some(Path {
                source: me.underlay(),
                source_mac: mac(me.number),
                next_hop_mac: mac(other.number),
            }),
        },
    );
    for range in other.ranges() {
        tables.routes.insert(range, Route::Vtep(VtepId(0)));
    }
    for range in me.ranges() {
        tables.routes.insert(range, Route::Local);
    }
    for v6 in [false, true] {
        let local = Endpoint { class: ClassId(3), policy: Some(PolicyId(0)), local: true };
        tables.endpoints.insert(addr(&me.pod(v6)), local);
        let remote = Endpoint { class: PEER, policy: None, local: false };
        tables.endpoints.insert(addr(&other.pod(v6)), remote);
    }
    let tunnel = Endpoint { class: ClassId::UNKNOWN_V4, policy: None, local: true };
    tables.endpoints.insert(addr(&me.tunnel()), tunnel);
    tables.policies = Policies::new([Some(Arc::new(policy(&[allow_all()], &[allow_all()])))]);
    tables
}

/// A worker with its wires.
pub struct Node {
    pub side: Side,
    pub worker: Worker<HeapMemory, ()>,
    pub underlay: MemoryWire,
    pub gateway: MemoryWire,
    pub publisher: Publisher<Snapshot>,
    pub flows: Arc<FlowTable>,
    pub now: u64,
}

impl Node {
    pub fn new(me: Side, other: Side) -> Self {
        Self::with_flows(me, other, FlowTable::new(1024, Timeouts::default()))
    }

    pub fn with_flows(me: Side, other: Side, flows: FlowTable) -> Self {
        Self::over(me, other, flows, HeapMemory::new(CHUNKS, 2048), Quirk::None)
    }

    /// A node over this memory, whose gateway port may be an odd one.
    pub fn over(
        me: Side,
        other: Side,
        flows: FlowTable,
        memory: HeapMemory,
        gateway: Quirk,
    ) -> Self {
        let (underlay_port, underlay) = MemoryPort::new();
        let (gateway_port, gateway_wire) = MemoryPort::new();
        let publisher = Publisher::new(snapshot(me, other));
        let flows = Arc::new(flows);
        let worker = Worker::new(
            WorkerConfig { cpu: None, batch: 16, idle: Idle::Sleep },
            memory,
            Box::new(underlay_port),
            Box::new(OddPort { port: gateway_port, quirk: gateway }),
            (),
            publisher.reader(),
            flows.clone(),
        );
        let now = 100 * SECOND;
        Self { side: me, worker, underlay, gateway: gateway_wire, publisher, flows, now }
    }

    /// Changes the tables.
    pub fn publish(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = (**self.publisher.current()).clone();
        next.generation += 1;
        change(&mut next);
        self.publisher.publish(next);
    }

    pub fn poll(&mut self) {
        while self.worker.poll(self.now) > 0 {}
        let memory = self.worker.memory();
        assert_eq!(memory.free(), memory.chunks(), "a frame was lost");
    }

    /// What becomes of a frame from this node's pods: sent over the underlay,
    /// or dropped.
    pub fn outbound(&mut self, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.gateway.put(frame);
        self.fate(|node| node.underlay.take())
    }

    /// What becomes of a frame from the underlay.
    pub fn inbound(&mut self, frame: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.underlay.put(frame);
        self.fate(|node| node.gateway.take())
    }

    fn fate(&mut self, take: impl Fn(&Self) -> Option<Vec<u8>>) -> Result<Vec<u8>, DropReason> {
        let shared = self.worker.shared();
        let before = shared.counters.read().dropped;
        self.poll();
        let after = shared.counters.read().dropped;
        let dropped: Vec<DropReason> = DropReason::ALL
            .iter()
            .copied()
            .filter(|reason| after[*reason as usize] != before[*reason as usize])
            .collect();
        match (take(self), dropped[..].first()) {
            (Some(frame), None) => Ok(frame),
            (None, Some(reason)) => {
                assert_eq!(dropped.len(), 1, "one frame, one reason");
                Err(*reason)
            }
            (frame, _) => panic!("frame {frame:?}, dropped {dropped:?}"),
        }
    }
}

/// What an [`OddPort`] does differently.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    None,
    /// Received frames begin at the very start of their chunk.
    NoHeadroom,
    /// Frames to send are never taken.
    Stuck,
}

/// An in-memory port with a quirk.
struct OddPort {
    port: MemoryPort,
    quirk: Quirk,
}

impl Port<HeapMemory> for OddPort {
    fn receive(&mut self, memory: &mut HeapMemory, batch: &mut Vec<Frame>) -> usize {
        let received = self.port.receive(memory, batch);
        if self.quirk == Quirk::NoHeadroom {
            for frame in batch {
                let bytes = memory.bytes(frame).to_vec();
                frame.head = 0;
                memory.bytes_mut(frame).copy_from_slice(&bytes);
            }
        }
        received
    }

    fn send(&mut self, memory: &mut HeapMemory, frames: &mut Vec<Frame>) -> usize {
        if self.quirk == Quirk::Stuck { 0 } else { self.port.send(memory, frames) }
    }

    fn recycle(&mut self, memory: &mut HeapMemory) {
        self.port.recycle(memory);
    }

    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn statistics(&self) -> PortStatistics {
        Port::<HeapMemory>::statistics(&self.port)
    }
}

/// Recomputes the checksum of an IPv4 header.
pub fn seal(ip: &mut [u8]) {
    let len = usize::from(ip[0] & 0xf) * 4;
    ip[10..12].fill(0);
    let sum = checksum::finish(checksum::sum(&ip[..len]));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// A fragment of an IPv4 frame without options: `place` is the header's field
/// for flags and offset, `payload` the part of the frame that it carries.
pub fn fragment(whole: &[u8], place: u16, payload: std::ops::Range<usize>) -> Vec<u8> {
    let mut frame = whole[..34].to_vec();
    frame.extend(&whole[payload]);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[18..20].copy_from_slice(&[0x12, 0x34]);
    frame[20..22].copy_from_slice(&place.to_be_bytes());
    seal(&mut frame[14..]);
    frame
}

/// Two joined nodes.
pub fn pair(v6_underlay: bool) -> (Node, Node) {
    let (a, b) = (Side { number: 1, v6_underlay }, Side { number: 2, v6_underlay });
    (Node::new(a, b), Node::new(b, a))
}

/// A TCP frame as the kernel hands it to the gateway.
pub fn tcp(source: &str, destination: &str, ports: (u16, u16), flags: &str) -> Vec<u8> {
    let mut step = builder(source, destination).tcp(ports.0, ports.1, 1, 1000);
    for flag in flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(1),
            'F' => step.fin(),
            'R' => step.rst(),
            other => panic!("no TCP flag {other}"),
        };
    }
    write(|out| step.write(out, b"payload").expect("writes to memory"))
}

pub fn udp(source: &str, destination: &str, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let step = builder(source, destination).udp(ports.0, ports.1);
    write(|out| step.write(out, payload).expect("writes to memory"))
}

pub fn builder(
    source: &str,
    destination: &str,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([0x66; 6], [0x77; 6]);
    match (ip(source), ip(destination)) {
        (IpAddr::V4(s), IpAddr::V4(d)) => ethernet.ipv4(s.octets(), d.octets(), 63),
        (IpAddr::V6(s), IpAddr::V6(d)) => ethernet.ipv6(s.octets(), d.octets(), 63),
        _ => panic!("addresses of two families"),
    }
}

pub fn write(body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    body(&mut out);
    out
}
