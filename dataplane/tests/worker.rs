//! A worker that runs by itself: what it does besides the packets.

mod common;

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use common::*;
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::frame::{Frame, HeapMemory};
use tieline_dataplane::port::memory::MemoryPort;
use tieline_dataplane::port::{Port, PortStatistics};
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::worker::{Idle, Shared, Worker, WorkerConfig};

const ROUNDS: u32 = 200;

/// A port that never has a frame but wakes its worker once for each time that
/// it is asked for one, and ends the worker after [`ROUNDS`] of that: few
/// enough for the bytes to fit the socket unread.
struct Restless {
    ours: UnixStream,
    theirs: UnixStream,
    rounds: u32,
    worker: Arc<OnceLock<Arc<Shared>>>,
    asked_for_statistics: Arc<AtomicU64>,
}

impl Port<HeapMemory> for Restless {
    fn receive(&mut self, _memory: &mut HeapMemory, _batch: &mut Vec<Frame>) -> usize {
        self.theirs.write_all(&[0]).expect("has room");
        self.rounds += 1;
        if self.rounds == ROUNDS {
            self.worker.get().expect("was told").stop();
        }
        0
    }

    fn send(&mut self, _memory: &mut HeapMemory, _frames: &mut Vec<Frame>) -> usize {
        0
    }

    fn recycle(&mut self, _memory: &mut HeapMemory) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.ours.as_raw_fd()]
    }

    fn statistics(&self) -> PortStatistics {
        self.asked_for_statistics.fetch_add(1, Ordering::Relaxed);
        PortStatistics::default()
    }
}

#[test]
fn a_worker_that_often_sleeps_does_not_report_as_often() {
    let (a, b) = (Side { number: 1, v6_underlay: false }, Side { number: 2, v6_underlay: false });
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (worker, asked_for_statistics) = (Arc::default(), Arc::<AtomicU64>::default());
    let port = Restless {
        ours,
        theirs,
        rounds: 0,
        worker: Arc::clone(&worker),
        asked_for_statistics: asked_for_statistics.clone(),
    };
    let publisher = Publisher::new(snapshot(a, b));
    let running = Worker::new(
        WorkerConfig { cpu: None, batch: 16, idle: Idle::Sleep },
        HeapMemory::new(CHUNKS, 2048),
        Box::new(port),
        Box::new(MemoryPort::new().0),
        (),
        publisher.reader(),
        Arc::new(FlowTable::new(64, Timeouts::default())),
    );
    let shared = running.shared();
    worker.set(shared.clone()).expect("is told once");
    running.run().expect("sleeps");
    assert_eq!(shared.counters.read().sleeps, u64::from(ROUNDS));
    let asked = asked_for_statistics.load(Ordering::Relaxed);
    assert!((1..u64::from(ROUNDS) / 4).contains(&asked), "asked {asked} times");
}
