//! Tables that are swapped a thousand times a second cost no packet.
//!
//! An underlay device of four queues, two workers or one, a steady stream of many
//! flows and its answers. Flows are spread over the queues as a card's hash does
//! it; with two workers, every other flow's answers come to the other worker than
//! the packets that they answer. The tables change all the while, also such that
//! every flow is judged again.
#![forbid(unsafe_code)]

#[path = "../../dataplane/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use tieline_dataplane::counters::Tally;
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::port::queues::Queues;
use tieline_dataplane::port::xsk::XskPort;
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::{ClassId, Endpoint, Policies, Snapshot};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::worker::{Heartbeat, Idle, Worker, WorkerConfig, monotonic_ns};
use tieline_dataplane::xsk::area::{Area, Descriptor};
use tieline_dataplane::xsk::device;
use tieline_dataplane::xsk::filter::{self, Filter, FilterConfig, Link};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig};
use tieline_lab::Lab;

/// Of the underlay.
const QUEUES: u32 = 4;
const FLOWS: u16 = 256;
const SWAPS: u32 = 3000;
/// Between two swaps, and between two handfuls of packets.
const INTERVAL: Duration = Duration::from_millis(1);
const HANDFUL: u16 = 4;
/// The port that pods may go to; one flow in eight goes to another one.
const ALLOWED: u16 = 443;

struct Beats(Vec<filter::Heartbeat>);

impl Heartbeat for Beats {
    fn beat(&mut self, monotonic_ns: u64) {
        self.0.iter_mut().for_each(|heartbeat| heartbeat.beat(monotonic_ns));
    }
}

const RINGS: SocketConfig =
    SocketConfig { fill: 1024, receive: 1024, transmit: 1024, completion: 1024 };

/// A device with our program on it.
struct Device {
    index: u32,
    filter: Filter,
    _link: Link,
}

impl Device {
    fn new(
        name: &str,
        queues: u32,
        load: fn(&FilterConfig) -> Result<Filter, filter::FilterError>,
    ) -> Self {
        let liveness = Duration::from_secs(3600);
        let filter = load(&FilterConfig { port: 4789, liveness, queues }).unwrap();
        let index = device::index(name).unwrap();
        let link = filter.attach(index, true).unwrap();
        Self { index, filter, _link: link }
    }

    /// Sockets that share an area, on some of the queues.
    fn sockets(&mut self, area: &Area, queues: impl Iterator<Item = u32>) -> Vec<Socket> {
        let mut sockets: Vec<Socket> = Vec::new();
        for queue in queues {
            let socket = match sockets.first() {
                None => Socket::bind(area, self.index, queue, Mode::NativeCopy, &RINGS).unwrap(),
                Some(first) => first.beside(area, queue, &RINGS).unwrap(),
            };
            self.filter.set_socket(queue, &socket).unwrap();
            sockets.push(socket);
        }
        sockets
    }

    fn port(&mut self, area: &Area, queues: impl Iterator<Item = u32>) -> Queues<XskPort> {
        Queues::new(self.sockets(area, queues).into_iter().map(XskPort).collect())
    }
}

/// The far end of a veth: a socket for each queue. What is sent by one arrives
/// at the queue of the same number.
struct End {
    area: Area,
    sockets: Vec<Socket>,
    sent: u64,
    /// Frames by queue.
    received: Vec<u64>,
    _device: Device,
}

impl End {
    fn new(name: &str, queues: u32) -> Self {
        let mut area = Area::new(4096 * queues, 2048).unwrap();
        let mut device = Device::new(name, queues, Filter::gateway);
        let mut sockets = device.sockets(&area, 0..queues);
        for (queue, socket) in (0..).zip(&mut sockets) {
            device.filter.heartbeat(queue).beat(monotonic_ns());
            socket.refill(&mut area);
        }
        Self { area, sockets, sent: 0, received: vec![0; queues as usize], _device: device }
    }

    fn send(&mut self, queue: usize, frame: &[u8]) {
        let chunk = self.area.allocate().expect("a free chunk");
        let descriptor = Descriptor { chunk, head: 256, len: frame.len() as u32 };
        self.area.bytes_mut(chunk, 256, descriptor.len).copy_from_slice(frame);
        let socket = &mut self.sockets[queue];
        let sent = socket.send(&mut self.area, std::iter::once(descriptor));
        assert_eq!(sent, 1, "{:?}", socket.statistics());
        socket.wake();
        self.sent += 1;
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (socket, received) in self.sockets.iter_mut().zip(&mut self.received) {
            socket.reclaim(&mut self.area);
            socket.refill(&mut self.area);
            *received += socket.receive(&mut self.area, 256, |frame| frames.push(frame)) as u64;
        }
        let take = |frame: Descriptor| {
            let bytes = self.area.bytes(frame.chunk, frame.head, frame.len).to_vec();
            assert!(self.area.release(frame.chunk));
            bytes
        };
        frames.into_iter().map(take).collect()
    }

    fn all_received(&self) -> u64 {
        self.received.iter().sum()
    }

    fn lost(&self) -> u64 {
        let statistics = self.sockets.iter().map(Socket::statistics);
        statistics.map(|all| all.receive_dropped + all.receive_ring_full + all.refused).sum()
    }
}

/// The queue, of so many, that a card's hash would choose for a flow; `way` has
/// the two directions go to different ones.
fn queue(flow: u16, way: u16, queues: u32) -> usize {
    usize::from((flow / 8 + flow + way * (flow % 2)) % queues as u16)
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

/// The answer to a frame that has come out of the tunnel, and its flow.
fn answer(inner: &[u8], a: Side, b: Side) -> (u16, Vec<u8>) {
    let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
    (port(34) - 1000, tcp(&b.pod(false), &a.pod(false), (port(36), port(34)), "A"))
}

fn swaps(count: u32) {
    let (a, b) = (Side { number: 1, v6_underlay: false }, Side { number: 2, v6_underlay: false });
    let mut other = Node::new(b, a);
    let mut publisher = Publisher::new(snapshot(a, b));
    change(&mut publisher, 0);
    let flows = Arc::new(FlowTable::new(4096, Timeouts::default()));
    let mut underlay = Device::new("u0", QUEUES, Filter::underlay);
    underlay.filter.set_underlay(&BTreeSet::from([a.underlay().to_ip()])).unwrap();
    underlay.filter.set_peers(&BTreeSet::from([b.underlay().to_ip()])).unwrap();
    let mut gateway = Device::new("g0", count, Filter::gateway);
    let workers: Vec<_> = (0..count)
        .map(|number| {
            let area = Area::new(16_384, 2048).unwrap();
            let own = || (number..QUEUES).step_by(count as usize);
            let ports = (underlay.port(&area, own()), gateway.port(&area, number..=number));
            let mut beats: Vec<_> = own().map(|queue| underlay.filter.heartbeat(queue)).collect();
            beats.push(gateway.filter.heartbeat(number));
            let worker = Worker::new(
                WorkerConfig { cpu: None, batch: 64, idle: Idle::Adaptive },
                area,
                Box::new(ports.0),
                Box::new(ports.1),
                Beats(beats),
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

    let (mut pod, mut remote) = (End::new("g1", count), End::new("u1", QUEUES));
    let (mut next, mut denied, mut begun) = (0u16, 0u64, Instant::now());
    let mut patience = None;
    loop {
        for frame in remote.receive() {
            let inner = other.inbound(&frame).expect("is taken out of the tunnel");
            let (flow, answer) = answer(&inner, a, b);
            let answer = other.outbound(&answer).expect("is put into the tunnel");
            remote.send(queue(flow, 1, QUEUES), &answer);
        }
        pod.receive();
        if swapped.load(Ordering::Relaxed) < SWAPS {
            for _ in 0..HANDFUL {
                next = (next + 1) % FLOWS;
                let frame = tcp(&a.pod(false), &b.pod(false), ports(next), "A");
                pod.send(queue(next, 0, count), &frame);
                denied += u64::from(next.is_multiple_of(8));
            }
            begun += INTERVAL;
        } else if pod.all_received() == pod.sent - denied
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
        assert!(tally.encapsulated_packets > 0 && tally.decapsulated_packets > 0, "{tally:?}");
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
    assert_eq!(remote.all_received(), pod.sent - denied);
    assert_eq!(pod.all_received(), remote.sent);
    assert_eq!((pod.lost(), remote.lost()), (0, 0));
    let passed = (sum.encapsulated_packets, sum.decapsulated_packets);
    assert_eq!(passed, (remote.all_received(), pod.all_received()));
    // Each worker sends by its first queue.
    let used: Vec<bool> = remote.received.iter().map(|frames| *frames > 0).collect();
    let first: Vec<bool> = (0..QUEUES).map(|queue| queue < count).collect();
    assert_eq!(used, first, "{:?}", remote.received);
    assert!(sum.flow_rejudged > 0);
}

fn on_workers(count: u32) {
    let lab = Lab::new("swaps").unwrap();
    let netns = lab.netns("node").unwrap();
    let veth = |one: &str, other: &str, queues: u32| {
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        let up = |end: &str| format!("link set {end} up");
        [
            format!("link add {one} {queues} type veth peer name {other} {queues}"),
            up(one),
            up(other),
        ]
    };
    let devices = [veth("u0", "u1", QUEUES), veth("g0", "g1", count)];
    netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    netns.ip(devices.into_iter().flatten()).unwrap();
    netns.run(|| swaps(count)).unwrap();
}

#[test]
fn a_steady_stream_loses_no_packet_while_tables_are_swapped() {
    on_workers(2);
}

#[test]
fn nor_does_it_with_all_queues_on_one_worker() {
    on_workers(1);
}
