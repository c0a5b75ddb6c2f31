//! A worker with several queues of the underlay.

mod common;

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use common::*;
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::frame::{Frame, HeapMemory, Memory};
use tieline_dataplane::port::memory::{MemoryPort, MemoryWire};
use tieline_dataplane::port::queues::Queues;
use tieline_dataplane::port::{Port, PortStatistics};
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::{Policies, Snapshot};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::worker::{Idle, Worker, WorkerConfig};

const QUEUES: usize = 4;
const ALLOWED: u16 = 443;
const NOW: u64 = 100 * SECOND;

struct Node4 {
    worker: Worker<HeapMemory, ()>,
    underlay: Vec<MemoryWire>,
    gateway: MemoryWire,
    publisher: Publisher<Snapshot>,
}

fn sides() -> (Side, Side) {
    (Side { number: 1, v6_underlay: false }, Side { number: 2, v6_underlay: false })
}

/// A node whose worker has four queues; pods may go to [`ALLOWED`].
fn node(batch: usize) -> Node4 {
    let (a, b) = sides();
    let mut tables = snapshot(a, b);
    tables.policies = Policies::new([Some(Arc::new(policy(&[], &[allow_tcp(ALLOWED)])))]);
    let publisher = Publisher::new(tables);
    let (ports, underlay) = (0..QUEUES).map(|_| MemoryPort::new()).unzip();
    let (gateway_port, gateway) = MemoryPort::new();
    let worker = Worker::new(
        WorkerConfig { cpu: None, batch, idle: Idle::Sleep },
        HeapMemory::new(CHUNKS, 2048),
        Box::new(Queues::<MemoryPort>::new(ports)),
        Box::new(gateway_port),
        (),
        publisher.reader(),
        Arc::new(FlowTable::new(1024, Timeouts::default())),
    );
    Node4 { worker, underlay, gateway, publisher }
}

fn drain(wire: &MemoryWire) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| wire.take()).collect()
}

#[test]
fn frames_of_all_queues_are_judged_and_leave_by_the_first() {
    let ((a, b), mut node) = (sides(), node(16));
    let mut other = Node::new(b, a);
    let ports = |flow: u16| (1000 + flow, if flow.is_multiple_of(4) { 22 } else { ALLOWED });
    for flow in 0..64 {
        node.gateway.put(tcp(&a.pod(false), &b.pod(false), ports(flow), "S"));
    }
    while node.worker.poll(NOW) > 0 {}
    assert_eq!(drain(&node.underlay[0]).len(), 48);
    // The answers come by any queue, those to flows that were denied as well.
    for flow in 0..64 {
        let (client, server) = ports(flow);
        let answer = tcp(&b.pod(false), &a.pod(false), (server, client), "A");
        let answer = other.outbound(&answer).expect("is sent");
        node.underlay[usize::from(flow) * 7 % QUEUES].put(answer);
    }
    while node.worker.poll(NOW) > 0 {}
    let arrived = drain(&node.gateway);
    assert_eq!(arrived.len(), 48);
    assert!(arrived.iter().all(|frame| frame[34..36] == ALLOWED.to_be_bytes()));
    assert!(node.underlay.iter().all(|wire| wire.take().is_none()), "nothing by another queue");
    let tally = node.worker.shared().counters.read();
    assert_eq!((tally.encapsulated_packets, tally.decapsulated_packets), (48, 48));
    assert_eq!(tally.dropped[DropReason::EgressDenied as usize], 16);
    assert_eq!(tally.dropped[DropReason::IngressDenied as usize], 16);
    assert_eq!(tally.dropped_total(), 32);
    assert_eq!(node.worker.memory().free(), CHUNKS, "a frame was lost");
    assert_eq!(node.publisher.current().generation, 1);
}

/// One batch a round, so that what another queue has to say is seen by when its
/// frames come out.
#[test]
fn a_full_queue_does_not_keep_the_others_waiting() {
    let ((a, b), mut node) = (sides(), node(4));
    let mut other = Node::new(b, a);
    let mut frame = |flow: u16| {
        let answer = tcp(&b.pod(false), &a.pod(false), (ALLOWED, 2000 + flow), "A");
        other.outbound(&answer).expect("is sent")
    };
    node.publisher.publish({
        let mut open = (**node.publisher.current()).clone();
        let all = policy(&[allow_all()], &[allow_all()]);
        open.policies = Policies::new([Some(Arc::new(all))]);
        open
    });
    for _ in 0..100 {
        node.underlay[1].put(frame(1));
    }
    node.underlay[0].put(frame(0));
    node.underlay[3].put(frame(3));
    let mut rounds = 0;
    let mut seen = Vec::new();
    while !seen.contains(&2000) || !seen.contains(&2003) {
        assert_eq!(node.worker.poll(NOW), 4, "batches are filled from several queues");
        let arrived = drain(&node.gateway);
        seen.extend(arrived.iter().map(|frame| u16::from_be_bytes([frame[36], frame[37]])));
        rounds += 1;
    }
    assert!(rounds <= QUEUES, "{rounds} rounds");
    while node.worker.poll(NOW) > 0 {}
    let received = node.worker.shared().counters.read().decapsulated_packets;
    assert_eq!(received, 102);
}

/// A port with nothing but a descriptor, and numbers that tell ports apart.
struct Quiet(UnixStream, u64);

impl Port<HeapMemory> for Quiet {
    fn receive(&mut self, _memory: &mut HeapMemory, _batch: &mut Vec<Frame>) -> usize {
        0
    }

    fn send(&mut self, _memory: &mut HeapMemory, _frames: &mut Vec<Frame>) -> usize {
        0
    }

    fn recycle(&mut self, _memory: &mut HeapMemory) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }

    fn statistics(&self) -> PortStatistics {
        let n = self.1;
        PortStatistics { received: n, sent: 2 * n, receive_dropped: 3 * n, send_failed: 4 * n }
    }
}

#[test]
fn a_sleeper_waits_for_all_queues_and_their_numbers_are_added_up() {
    let (one, two) = UnixStream::pair().expect("a pair");
    let wanted = vec![one.as_raw_fd(), two.as_raw_fd()];
    let queues = Queues::new(vec![Quiet(one, 1), Quiet(two, 10)]);
    assert_eq!(queues.descriptors(), wanted);
    let sum = PortStatistics { received: 11, sent: 22, receive_dropped: 33, send_failed: 44 };
    assert_eq!(queues.statistics(), sum);
}
