//! Tables that are swapped a thousand times a second cost no packet.
//!
//! Two workers on two queues of real devices, a steady stream of many flows and
//! its answers. Where the machine has two CPUs, answers come to the other worker
//! than the packets that they answer. The tables change all the while, also such
//! that every flow is judged again.
#![forbid(unsafe_code)]

#[path = "../../dataplane/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tieline_dataplane::counters::Tally;
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::port::xsk::XskPort;
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::{ClassId, Endpoint, Policies, Snapshot};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::worker::{Heartbeat, Idle, Worker, WorkerConfig};
use tieline_dataplane::xsk::area::{Area, Descriptor};
use tieline_dataplane::xsk::device;
use tieline_dataplane::xsk::filter::{self, Filter, FilterConfig, Link};
use tieline_dataplane::xsk::packet::{PacketSocket, Take};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig};
use tieline_lab::Lab;

const QUEUES: u32 = 2;
const FLOWS: u16 = 256;
const SWAPS: u32 = 3000;
/// Between two swaps, and between two handfuls of packets.
const INTERVAL: Duration = Duration::from_millis(1);
const HANDFUL: u16 = 4;
/// The port that pods may go to; one flow in eight goes to another one.
const ALLOWED: u16 = 443;

struct Beats([filter::Heartbeat; 2]);

impl Heartbeat for Beats {
    fn beat(&mut self, monotonic_ns: u64) {
        self.0.iter_mut().for_each(|heartbeat| heartbeat.beat(monotonic_ns));
    }
}

/// A device with our program on it.
struct Device {
    index: u32,
    filter: Filter,
    _link: Link,
}

impl Device {
    fn new(name: &str, load: fn(&FilterConfig) -> Result<Filter, filter::FilterError>) -> Self {
        let liveness = Duration::from_secs(3600);
        let filter = load(&FilterConfig { port: 4789, liveness, queues: QUEUES }).unwrap();
        let index = device::index(name).unwrap();
        let link = filter.attach(index, true).unwrap();
        Self { index, filter, _link: link }
    }

    fn socket(&mut self, area: &Area, queue: u32) -> Socket {
        let rings = SocketConfig { fill: 1024, receive: 1024, transmit: 1024, completion: 1024 };
        let socket = Socket::bind(area, self.index, queue, Mode::NativeCopy, &rings).unwrap();
        self.filter.set_socket(queue, &socket).unwrap();
        socket
    }
}

/// The far end of a veth.
struct End {
    area: Area,
    socket: PacketSocket,
    sent: u64,
    received: u64,
}

impl End {
    fn new(name: &str) -> Self {
        let area = Area::new(2048, 2048).unwrap();
        let socket = PacketSocket::open(device::index(name).unwrap(), Take::All).unwrap();
        Self { area, socket, sent: 0, received: 0 }
    }

    fn send(&mut self, frame: &[u8]) {
        let chunk = self.area.allocate().expect("a free chunk");
        let descriptor = Descriptor { chunk, head: 256, len: frame.len() as u32 };
        self.area.bytes_mut(chunk, 256, descriptor.len).copy_from_slice(frame);
        let sent = self.socket.send(&mut self.area, std::iter::once(descriptor));
        assert_eq!(sent, 1, "{:?}", self.socket.statistics());
        self.sent += 1;
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.socket.receive(&mut self.area, 256, |frame| frames.push(frame));
        self.received += frames.len() as u64;
        let take = |frame: Descriptor| {
            let bytes = self.area.bytes(frame.chunk, frame.head, frame.len).to_vec();
            assert!(self.area.release(frame.chunk));
            bytes
        };
        frames.into_iter().map(take).collect()
    }
}

/// The CPUs that this thread may use: it sends from each in turn, as a packet
/// socket chooses the queue by the CPU.
struct Cpus(Vec<usize>);

impl Cpus {
    fn allowed() -> Self {
        let allowed = sched_getaffinity(None).unwrap();
        Self((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect())
    }

    fn take_turns(&self, turn: usize) {
        let mut set = CpuSet::new();
        set.set(self.0[turn % self.0.len()]);
        sched_setaffinity(None, &set).unwrap();
    }
}

/// The next tables: a pod elsewhere comes or goes; now and then the policy is
/// another one that says the same, so that every flow is judged again.
fn change(publisher: &mut Publisher<Snapshot>, number: u32) {
    let mut next = (**publisher.current()).clone();
    next.generation += 1;
    let elsewhere = addr(&format!("10.2.9.{}", number % 250));
    let endpoint = Endpoint { class: ClassId(number % 5), policy: None, local: false };
    match number % 2 {
        0 => next.endpoints.insert(elsewhere, endpoint),
        _ => next.endpoints.remove(elsewhere),
    }
    if number.is_multiple_of(10) {
        let rules = [allow_tcp(ALLOWED), allow_tcp(40_000 + (number % 100) as u16)];
        next.policies = Policies::new([Some(Arc::new(policy(&[], &rules)))]);
    }
    publisher.publish(next);
}

fn ports(flow: u16) -> (u16, u16) {
    (1000 + flow, if flow.is_multiple_of(8) { 22 } else { ALLOWED })
}

/// The answer to a frame that has come out of the tunnel.
fn answer(inner: &[u8], a: Side, b: Side) -> Vec<u8> {
    let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
    tcp(&b.pod(false), &a.pod(false), (port(36), port(34)), "A")
}

fn swaps() {
    let (a, b) = (Side { number: 1, v6_underlay: false }, Side { number: 2, v6_underlay: false });
    let mut other = Node::new(b, a);
    let mut publisher = Publisher::new(snapshot(a, b));
    change(&mut publisher, 0);
    let flows = Arc::new(FlowTable::new(4096, Timeouts::default()));
    let mut underlay = Device::new("u0", Filter::underlay);
    underlay.filter.set_underlay(&BTreeSet::from([a.underlay().to_ip()])).unwrap();
    underlay.filter.set_peers(&BTreeSet::from([b.underlay().to_ip()])).unwrap();
    let mut gateway = Device::new("g0", Filter::gateway);
    let workers: Vec<_> = (0..QUEUES)
        .map(|queue| {
            let area = Area::new(8192, 2048).unwrap();
            let ports = (underlay.socket(&area, queue), gateway.socket(&area, queue));
            let beats = Beats([underlay.filter.heartbeat(queue), gateway.filter.heartbeat(queue)]);
            let worker = Worker::new(
                WorkerConfig { cpu: None, batch: 64, idle: Idle::Adaptive },
                area,
                Box::new(XskPort(ports.0)),
                Box::new(XskPort(ports.1)),
                beats,
                publisher.reader(),
                flows.clone(),
            );
            (worker.shared(), thread::spawn(move || worker.run()))
        })
        .collect();
    let swapped = Arc::new(AtomicU32::new(0));
    let publishing = thread::spawn({
        let swapped = swapped.clone();
        move || {
            let begun = Instant::now();
            for number in 1..=SWAPS {
                change(&mut publisher, number);
                swapped.store(number, Ordering::Relaxed);
                thread::sleep((INTERVAL * number).saturating_sub(begun.elapsed()));
            }
            begun.elapsed()
        }
    });

    let (mut pod, mut remote) = (End::new("g1"), End::new("u1"));
    let (mut next, mut denied, mut begun) = (0u16, 0u64, Instant::now());
    let (mut patience, cpus) = (None, Cpus::allowed());
    for turn in 0.. {
        cpus.take_turns(turn + 1);
        for frame in remote.receive() {
            let inner = other.inbound(&frame).expect("is taken out of the tunnel");
            remote.send(&other.outbound(&answer(&inner, a, b)).expect("is put into the tunnel"));
        }
        pod.receive();
        if swapped.load(Ordering::Relaxed) < SWAPS {
            cpus.take_turns(turn);
            for _ in 0..HANDFUL {
                next = (next + 1) % FLOWS;
                pod.send(&tcp(&a.pod(false), &b.pod(false), ports(next), "A"));
                denied += u64::from(next.is_multiple_of(8));
            }
            begun += INTERVAL;
        } else if pod.received == pod.sent - denied
            || patience.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(10)
        {
            break;
        }
        thread::sleep(begun.saturating_duration_since(Instant::now()));
    }
    let took = publishing.join().unwrap();

    let mut sum = Tally::default();
    for (shared, thread) in workers {
        shared.stop();
        thread.join().unwrap().unwrap();
        let tally = shared.counters.read();
        let idle = tally.encapsulated_packets == 0 || tally.decapsulated_packets == 0;
        assert!(!idle || cpus.0.len() < 2, "{tally:?}");
        sum.merge(&tally);
        let (underlay, gateway) = shared.ports();
        let lost = [underlay, gateway].map(|port| port.receive_dropped + port.send_failed);
        assert_eq!(lost, [0; 2], "{underlay:?} {gateway:?}");
    }
    println!(
        "{SWAPS} swaps in {:.1} s, {} packets and {} answers, {} judgements anew: {sum:?}",
        took.as_secs_f64(),
        pod.sent,
        remote.sent,
        sum.flow_rejudged
    );
    assert_eq!(sum.dropped[DropReason::EgressDenied as usize], denied);
    assert_eq!(sum.dropped_total(), denied, "{sum:?}");
    assert_eq!(remote.received, pod.sent - denied, "{:?}", remote.socket.statistics());
    assert_eq!(pod.received, remote.sent, "{:?}", pod.socket.statistics());
    assert_eq!(
        (sum.encapsulated_packets, sum.decapsulated_packets),
        (remote.received, pod.received)
    );
    assert!(sum.flow_rejudged > 0);
}

#[test]
fn a_steady_stream_loses_no_packet_while_tables_are_swapped() {
    let lab = Lab::new("swaps").unwrap();
    let netns = lab.netns("node").unwrap();
    let veth = |one: &str, other: &str| {
        let queues = format!("numrxqueues {QUEUES} numtxqueues {QUEUES}");
        let up = |end: &str| format!("link set {end} up");
        [
            format!("link add {one} {queues} type veth peer name {other} {queues}"),
            up(one),
            up(other),
        ]
    };
    let devices = [veth("u0", "u1"), veth("g0", "g1")];
    netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    netns.ip(devices.into_iter().flatten()).unwrap();
    netns.run(swaps).unwrap();
}
