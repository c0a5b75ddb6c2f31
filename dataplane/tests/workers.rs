//! Several workers over one flow table, while the tables change all the time.
//!
//! Flows are spread over the workers as a device spreads them, and the answers
//! of a flow come to another worker than its requests. At the end every frame
//! is accounted for, and none has got another verdict than its own.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use tieline_dataplane::counters::Tally;
use tieline_dataplane::flow::{FlowTable, Tick, Timeouts};
use tieline_dataplane::frame::HeapMemory;
use tieline_dataplane::port::memory::{MemoryPort, MemoryWire};
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::{ClassId, Endpoint, Policies, Snapshot};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::worker::{Idle, Shared, Worker, WorkerConfig};

const WORKERS: usize = 4;
const FLOWS: u16 = 512;
/// Frames of each flow and direction after the first.
const ROUNDS: usize = 300;
/// The port that pods may go to; one flow in four goes to another one.
const ALLOWED: u16 = 443;

struct Wires {
    underlay: MemoryWire,
    gateway: MemoryWire,
    shared: Arc<Shared>,
}

fn ports(flow: u16) -> (u16, u16) {
    (1000 + flow, if flow.is_multiple_of(4) { 22 } else { ALLOWED })
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
    if number.is_multiple_of(16) {
        // A rule more that no packet meets.
        let rules = [allow_tcp(ALLOWED), allow_tcp(40_000 + (number % 64) as u16)];
        next.policies = Policies::new([Some(Arc::new(policy(&[], &rules)))]);
    }
    publisher.publish(next);
}

fn sum(wires: &[Wires]) -> Tally {
    let mut sum = Tally::default();
    wires.iter().for_each(|wires| sum.merge(&wires.shared.counters.read()));
    sum
}

/// Waits until the workers have dealt with so many frames.
fn wait(wires: &[Wires], frames: u64) {
    let begun = Instant::now();
    loop {
        let tally = sum(wires);
        let done = tally.encapsulated_packets + tally.decapsulated_packets + tally.dropped_total();
        if done == frames {
            return;
        }
        assert!(done < frames, "more frames than were sent");
        assert!(begun.elapsed() < Duration::from_secs(60), "{done} of {frames}: {tally:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn both_directions_on_different_workers_with_changing_tables() {
    let (a, b) = (Side { number: 1, v6_underlay: false }, Side { number: 2, v6_underlay: false });
    let mut publisher = Publisher::new(snapshot(a, b));
    change(&mut publisher, 0);
    let table = Arc::new(FlowTable::new(2048, Timeouts::default()).counting());
    let stop = AtomicBool::new(false);
    // The other node makes the frames that come from the underlay.
    let mut other = Node::new(b, a);
    std::thread::scope(|scope| {
        let stop = &stop;
        let wires: Vec<Wires> = (0..WORKERS)
            .map(|_| {
                let ((underlay_port, underlay), (gateway_port, gateway)) =
                    (MemoryPort::new(), MemoryPort::new());
                let mut worker = Worker::new(
                    WorkerConfig { cpu: None, batch: 32, idle: Idle::Busy },
                    HeapMemory::new(128, 2048),
                    Box::new(underlay_port),
                    Box::new(gateway_port),
                    (),
                    publisher.reader(),
                    table.clone(),
                );
                let shared = worker.shared();
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if worker.poll(100 * SECOND) == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
                Wires { underlay, gateway, shared }
            })
            .collect();
        let publishing = scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                change(&mut publisher, number);
                std::thread::sleep(Duration::from_micros(200));
            }
            number
        });
        let request = |flow| tcp(&a.pod(false), &b.pod(false), ports(flow), "S");
        let ack = |flow| tcp(&a.pod(false), &b.pod(false), ports(flow), "A");
        let answers: Vec<Vec<u8>> = (0..FLOWS)
            .map(|flow| {
                let (client, server) = ports(flow);
                let answer = tcp(&b.pod(false), &a.pod(false), (server, client), "A");
                other.outbound(&answer).expect("is sent")
            })
            .collect();
        let of = |flow: u16| usize::from(flow) * 7 % WORKERS;
        for flow in 0..FLOWS {
            wires[of(flow)].gateway.put(request(flow));
        }
        wait(&wires, u64::from(FLOWS));
        for _ in 0..ROUNDS {
            for flow in 0..FLOWS {
                wires[of(flow)].gateway.put(ack(flow));
                wires[(of(flow) + 1) % WORKERS].underlay.put(answers[usize::from(flow)].clone());
            }
        }
        let (per_way, flows) = (ROUNDS as u64, u64::from(FLOWS));
        wait(&wires, flows + 2 * per_way * flows);
        stop.store(true, Ordering::Relaxed);
        let changes = publishing.join().expect("publishes");

        let tally = sum(&wires);
        let dropped = |reason: DropReason| tally.dropped[reason as usize];
        let (denied, allowed) = (flows / 4, flows - flows / 4);
        // A worker whose CPU is taken away in the middle of a line can hold up
        // another one for so long that it drops its packet, and says so.
        let busy = dropped(DropReason::FlowBusy);
        assert!(busy < 100, "{busy} dropped as busy");
        let passed = tally.encapsulated_packets + tally.decapsulated_packets;
        let refused = dropped(DropReason::EgressDenied) + dropped(DropReason::IngressDenied);
        assert_eq!(passed + refused + busy, flows + 2 * per_way * flows, "{tally:?}");
        let fair = passed <= (1 + 2 * per_way) * allowed && refused <= (1 + 2 * per_way) * denied;
        assert!(fair, "{tally:?}");
        assert_eq!(tally.dropped_total(), refused + busy, "{tally:?}");
        assert!(tally.flow_rejudged > 0 && changes > 16, "{changes} changes, {tally:?}");
        // Each flow's packets were counted by the workers that saw them.
        let counted = table.iter(Tick::from_nanoseconds(100 * SECOND)).fold((0, 0), |sum, flow| {
            let [low, high] = flow.traffic.map(|traffic| traffic.packets);
            let (out, back) = if flow.state.low_is_local { (low, high) } else { (high, low) };
            (sum.0 + out, sum.1 + back)
        });
        assert_eq!(counted, (tally.encapsulated_packets, tally.decapsulated_packets));
        let taken = |wire: fn(&Wires) -> &MemoryWire| {
            let mut frames =
                wires.iter().flat_map(|wires| std::iter::from_fn(|| wire(wires).take()));
            let allowed = |frame: &Vec<u8>, at: usize| {
                let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
                port(at) == ALLOWED || port(at + 2) == ALLOWED
            };
            frames.try_fold(0, |count, frame| {
                let at = if frame.len() > 100 { 50 + 34 } else { 34 };
                allowed(&frame, at).then_some(count + 1u64)
            })
        };
        assert_eq!(taken(|wires| &wires.underlay), Some(tally.encapsulated_packets));
        assert_eq!(taken(|wires| &wires.gateway), Some(tally.decapsulated_packets));
    });
}
