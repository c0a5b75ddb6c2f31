//! A worker: two ports, the stages between them, and when to sleep.
//!
//! ```text
//!            receive          decap            send
//! underlay ----------> batch -------> gateway ------> kernel -> pods
//!          <---------- batch <------- gateway <------ kernel <- pods
//!             send            encap          receive
//! ```
//!
//! [`Worker::poll`] is one round of that. Every frame that a port hands in
//! leaves `dispatch` with an owner: the queue of the other port, or the
//! memory's free list.
//!
//! A batch is what is there when the worker looks, up to [`WorkerConfig::batch`]:
//! one frame when there is little to do, more the further the worker falls
//! behind. Nothing waits for a batch to fill, so nothing has to adapt its size.
//!
//! A port may be several queues of a device ([`Queues`](crate::port::queues::Queues)):
//! whatever the number, it is one round with the same tables, clock and tally.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::counters::{Counters, Tally};
use crate::decap::decap;
use crate::encap::encap;
use crate::enforce::Context;
use crate::flow::{FlowTable, Tick};
use crate::frame::{Frame, Memory};
use crate::pin::Pin;
use crate::port::{Port, PortStatistics};
use crate::publish::Reader;
use crate::stage::Batch;
use crate::tables::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Look again for ever, after who else has something to do on this CPU: the
    /// lowest latency, a whole CPU.
    Busy,
    /// The same for a while, then sleep until a frame arrives.
    Adaptive,
    /// Sleep until a frame arrives.
    Sleep,
}

/// Nanoseconds without a frame before an adaptive worker sleeps. Within this time
/// the answer to a request is usually back, so that it need not wake the worker.
const ADAPTIVE_NS: u64 = 64_000;

/// Longest sleep, so that the heartbeat goes on when nothing happens.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);

/// How a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The CPU to pin to at first ([`Shared::pin`]).
    pub cpu: Option<usize>,
    /// Most frames per batch. Beyond 16 it matters little.
    pub batch: usize,
    /// What to do when idle.
    pub idle: Idle,
}

/// Tells the kernel's side that the worker lives: called with the monotonic
/// time in nanoseconds once per round.
pub trait Heartbeat: Send {
    /// The worker is alive at this time.
    fn beat(&mut self, monotonic_ns: u64);
}

impl Heartbeat for () {
    fn beat(&mut self, _monotonic_ns: u64) {}
}

impl<H: Heartbeat + ?Sized> Heartbeat for Box<H> {
    fn beat(&mut self, monotonic_ns: u64) {
        (**self).beat(monotonic_ns);
    }
}

/// What others may see of a worker while it runs.
#[derive(Debug, Default)]
pub struct Shared {
    /// Frames and drops.
    pub counters: Counters,
    stop: AtomicBool,
    /// Statistics of the underlay and the gateway port, as of about a second
    /// ago at most.
    ports: std::sync::Mutex<(PortStatistics, PortStatistics)>,
    /// Frames by owner, at the same moment: free, of all.
    frames: std::sync::Mutex<(u32, u32)>,
    /// The generation of the tables that the worker uses.
    generation: std::sync::atomic::AtomicU64,
    /// The CPU to be on.
    pub pin: Pin,
}

impl Shared {
    /// Asks the worker to end; it does so within its longest sleep.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Statistics of the underlay and of the gateway port.
    pub fn ports(&self) -> (PortStatistics, PortStatistics) {
        *unpoisoned(&self.ports)
    }

    /// Free chunks, and all chunks, of the worker's memory.
    pub fn frames(&self) -> (u32, u32) {
        *unpoisoned(&self.frames)
    }

    /// The generation of the tables that the worker uses.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }
}

fn unpoisoned<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One worker with everything that it owns.
pub struct Worker<M, H> {
    config: WorkerConfig,
    memory: M,
    underlay: Box<dyn Port<M>>,
    gateway: Box<dyn Port<M>>,
    heartbeat: H,
    tables: Reader<Snapshot>,
    flows: Arc<FlowTable>,
    shared: Arc<Shared>,
    batch: Batch,
    to_underlay: Vec<Frame>,
    to_gateway: Vec<Frame>,
    tally: Tally,
}

impl<M: Memory, H: Heartbeat> Worker<M, H> {
    /// A worker over two ports that use the same memory.
    pub fn new(
        config: WorkerConfig,
        memory: M,
        underlay: Box<dyn Port<M>>,
        gateway: Box<dyn Port<M>>,
        heartbeat: H,
        tables: Reader<Snapshot>,
        flows: Arc<FlowTable>,
    ) -> Self {
        let capacity = config.batch.max(1);
        Self {
            config,
            memory,
            underlay,
            gateway,
            heartbeat,
            tables,
            flows,
            shared: Arc::new(Shared { pin: Pin::new(config.cpu), ..Shared::default() }),
            batch: Batch::new(capacity),
            // A batch at most goes to a queue before it is sent or dropped.
            to_underlay: Vec::with_capacity(2 * capacity),
            to_gateway: Vec::with_capacity(2 * capacity),
            tally: Tally::default(),
        }
    }

    /// What others may see of the worker.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// The worker's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// One round: both ports received from, judged, sent to. `monotonic_ns` is
    /// the time in nanoseconds. Returns the number of frames received.
    pub fn poll(&mut self, monotonic_ns: u64) -> usize {
        self.tables.refresh();
        let now = Tick::from_nanoseconds(monotonic_ns);
        self.underlay.recycle(&mut self.memory);
        self.gateway.recycle(&mut self.memory);

        let cx = Context { tables: self.tables.get(), flows: &self.flows, now };
        let from_underlay = self.underlay.receive(&mut self.memory, self.batch.frames_mut());
        if from_underlay > 0 {
            decap(&cx, &mut self.memory, &mut self.batch, &mut self.tally);
            dispatch(&mut self.batch, &mut self.memory, &mut self.to_gateway, &mut self.tally);
        }
        let from_gateway = self.gateway.receive(&mut self.memory, self.batch.frames_mut());
        if from_gateway > 0 {
            encap(&cx, &mut self.memory, &mut self.batch, &mut self.tally);
            dispatch(&mut self.batch, &mut self.memory, &mut self.to_underlay, &mut self.tally);
        }
        flush(&mut *self.gateway, &mut self.memory, &mut self.to_gateway, &mut self.tally);
        flush(&mut *self.underlay, &mut self.memory, &mut self.to_underlay, &mut self.tally);

        self.heartbeat.beat(monotonic_ns);
        let received = from_underlay + from_gateway;
        if received > 0 {
            self.tally.batches += 1;
            self.shared.counters.add(&mut self.tally);
        }
        received
    }

    /// Runs until [`Shared::stop`]. Fails only where sleeping can't be set up.
    pub fn run(mut self) -> std::io::Result<()> {
        self.shared.pin.keep();
        let descriptors = [self.underlay.descriptors(), self.gateway.descriptors()].concat();
        let mut sleeper = Sleeper::new(&descriptors)?;
        let mut idle_since = None;
        let mut reported_ns = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now_ns = monotonic_ns();
            if self.poll(now_ns) > 0 {
                idle_since = None;
            } else {
                let since = *idle_since.get_or_insert(now_ns);
                let awake = match self.config.idle {
                    Idle::Busy => true,
                    Idle::Adaptive => now_ns.saturating_sub(since) < ADAPTIVE_NS,
                    Idle::Sleep => false,
                };
                if awake {
                    // What the kernel has put off on this CPU, often our own packets'
                    // delivery, is best done now: later, the kernel would take the
                    // CPU from us for milliseconds.
                    rustix::thread::sched_yield();
                } else {
                    self.tally.sleeps += 1;
                    self.shared.counters.add(&mut self.tally);
                    sleeper.sleep()?;
                }
            }
            if now_ns.saturating_sub(reported_ns) > 500_000_000 {
                reported_ns = now_ns;
                self.report();
            }
        }
        self.report();
        Ok(())
    }

    fn report(&self) {
        self.shared.pin.keep();
        *unpoisoned(&self.shared.ports) = (self.underlay.statistics(), self.gateway.statistics());
        *unpoisoned(&self.shared.frames) = (self.memory.free(), self.memory.chunks());
        self.shared.generation.store(self.tables.get().generation, Ordering::Relaxed);
    }
}

/// Gives every frame of the batch its next owner: the queue to the other port,
/// or the free list.
fn dispatch<M: Memory>(batch: &mut Batch, memory: &mut M, out: &mut Vec<Frame>, tally: &mut Tally) {
    for (frame, verdict) in batch.drain() {
        match verdict {
            Verdict::Forward | Verdict::Local => out.push(frame),
            Verdict::Drop(reason) => {
                tally.drop(reason);
                memory.release(frame.chunk);
            }
        }
    }
}

/// Sends what is queued; what a port does not take in two attempts is dropped,
/// so that a stuck device never holds the worker's frames.
fn flush<M: Memory>(
    port: &mut dyn Port<M>,
    memory: &mut M,
    out: &mut Vec<Frame>,
    tally: &mut Tally,
) {
    if out.is_empty() {
        return;
    }
    port.send(memory, out);
    if !out.is_empty() {
        port.recycle(memory);
        port.send(memory, out);
    }
    for frame in out.drain(..) {
        tally.drop(DropReason::TransmitFull);
        memory.release(frame.chunk);
    }
}

/// Waits for frames on the ports' descriptors.
struct Sleeper {
    poll: Poll,
    events: Events,
}

impl Sleeper {
    fn new(descriptors: &[RawFd]) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        for (token, descriptor) in descriptors.iter().enumerate() {
            poll.registry().register(
                &mut SourceFd(descriptor),
                Token(token),
                Interest::READABLE,
            )?;
        }
        Ok(Self { poll, events: Events::with_capacity(8) })
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        match self.poll.poll(&mut self.events, Some(LONGEST_SLEEP)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }
}

/// The kernel's monotonic clock in nanoseconds, which the XDP program reads too.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
