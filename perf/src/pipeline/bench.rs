//! How a batch is measured.
//!
//! Every flow is its own packet; the flows are visited in an order that no
//! prefetcher guesses. Before the clock starts, a batch's bytes are put into
//! recycled frame buffers, as a device puts them into the cache; they lie in
//! memory of the kind that the daemon's workers have. Then the stage runs. After
//! the clock has stopped, the output is read back into a checksum. The clock's
//! own cost is left out.

use std::time::{Duration, Instant};

use tieline_dataplane::counters::Tally;
use tieline_dataplane::decap::decap;
use tieline_dataplane::encap::encap;
use tieline_dataplane::enforce::Context;
use tieline_dataplane::flow::{FlowTable, SLICES, Tick};
use tieline_dataplane::frame::{Frame, Memory};
use tieline_dataplane::hint;
use tieline_dataplane::publish::{Publisher, Reader};
use tieline_dataplane::stage::Batch;
use tieline_dataplane::tables::Snapshot;
use tieline_dataplane::verdict::Verdict;
use tieline_dataplane::wire::checksum;
use tieline_dataplane::xsk::area::{Area, AreaError};

use super::world::{self, World};

/// Frame buffers, used in turn.
const BUFFERS: u32 = 2048;
/// Packets that at least go ahead of a run: the buffers' turn several times over.
pub(crate) const LEAST_AHEAD: usize = 8_192;
/// At most: every flow once where a table of as many fits into a cache.
const MOST_AHEAD: usize = 65_536;
/// Flows' lifetimes: those of UDP without an answer are over after half of it.
const MINUTE: Duration = Duration::from_mins(1);
const BUFFER_LEN: u32 = 2048;
const HEADROOM: u32 = 256;

/// The time-stamp counter's rate and its own cost.
pub(crate) struct Clock {
    /// Clocks per nanosecond.
    pub(crate) per_nanosecond: f64,
    /// Clocks that reading it twice costs.
    own: u64,
}

impl Clock {
    pub(crate) fn calibrate() -> Self {
        let own = (0..1000)
            .map(|_| {
                let start = hint::cycles();
                hint::cycles() - start
            })
            .min()
            .unwrap_or(0);
        let (start, since) = (hint::cycles(), Instant::now());
        while since.elapsed().as_millis() < 50 {
            std::hint::spin_loop();
        }
        let clocks = hint::cycles() - start;
        Self { per_nanosecond: clocks as f64 / since.elapsed().as_nanos() as f64, own }
    }

    /// Clocks that `work` takes.
    pub(crate) fn measure(&self, work: impl FnOnce()) -> u64 {
        let start = hint::cycles();
        work();
        (hint::cycles() - start).saturating_sub(self.own)
    }

    pub(crate) fn describe(&self) -> String {
        format!(
            "time-stamp counter at {:.2} GHz; its own {} clocks per batch are left out",
            self.per_nanosecond, self.own
        )
    }
}

/// Memory of the process, in KiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MemoryUse {
    all: u64,
    on_huge_pages: u64,
}

/// How much memory the process has now, as the kernel says; zero where it does
/// not.
pub(crate) fn pages() -> MemoryUse {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let kib = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    MemoryUse { all: kib("Rss:"), on_huge_pages: kib("AnonHugePages:") }
}

impl MemoryUse {
    /// All of it, in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        self.all << 10
    }
}

impl std::fmt::Display for MemoryUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (all, huge) = (self.all >> 10, self.on_huge_pages >> 10);
        write!(f, "at most {all} MiB of memory, {huge} MiB of it on huge pages")
    }
}

/// Which of the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Encap,
    Decap,
}

/// The outcome of one run.
pub(crate) struct Figures {
    /// Clocks per packet.
    pub(crate) clocks: f64,
    /// Batches during which the CPU was taken away.
    pub(crate) left_out: usize,
    pub(crate) checksum: u16,
}

pub(crate) struct Bench<'a> {
    world: &'a World,
    clock: &'a Clock,
    direction: Direction,
    flows: usize,
    /// Number of the first of the flows.
    first_flow: usize,
    batch_len: usize,
    memory: Area,
    batch: Batch,
    tally: Tally,
    /// Flows and buffers used so far.
    next: usize,
    /// Packets that the stage has dropped; the floor gives no verdicts.
    pub(crate) dropped: usize,
    /// How long this one has run; its clock stands still while others do.
    age: Duration,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(
        world: &'a World,
        direction: Direction,
        flows: usize,
        batch_len: usize,
        clock: &'a Clock,
    ) -> Result<Self, AreaError> {
        let mut memory = Area::new(BUFFERS, BUFFER_LEN)?;
        // Hold every buffer: they are used in turn, not as they come free.
        while memory.allocate().is_some() {}
        Ok(Self {
            world,
            clock,
            direction,
            flows,
            first_flow: 0,
            batch_len: batch_len.clamp(1, flows.min(BUFFERS as usize)),
            memory,
            batch: Batch::new(batch_len),
            tally: Tally::default(),
            next: 0,
            dropped: 0,
            age: Duration::ZERO,
        })
    }

    /// Begins every flow.
    pub(crate) fn warm(&mut self, flows: &FlowTable) {
        let direction = self.direction;
        let tables = &self.world.tables;
        self.run(self.flows, |memory, batch| {
            stage(direction, tables, flows, Tick(0), memory, batch, &mut Tally::default());
        });
    }

    /// Lets other flows come to the table and go again, several times as many as
    /// it has lines.
    pub(crate) fn age(&mut self, flows: &FlowTable) {
        const MINUTES: usize = 8;
        for _ in 0..MINUTES {
            self.packets(self.flows, flows);
            (self.first_flow, self.age) = (self.first_flow + self.flows, self.age + MINUTE);
        }
    }

    /// Lets the flows of the table go, sweeps it as the daemon does, and turns to
    /// other flows.
    pub(crate) fn turn_over(&mut self, flows: &FlowTable) {
        (self.first_flow, self.age) = (self.first_flow + self.flows, self.age + MINUTE);
        let now = Tick::from_nanoseconds(self.age.as_nanos() as u64);
        for _ in 0..SLICES {
            flows.sweep(now);
        }
    }

    /// How many packets of known flows are to go ahead of a run: others have used
    /// the caches meanwhile.
    pub(crate) fn ahead(&self) -> usize {
        self.flows.clamp(LEAST_AHEAD, MOST_AHEAD)
    }

    /// Lets so many packets through the stage.
    pub(crate) fn packets(&mut self, packets: usize, flows: &FlowTable) -> Figures {
        self.through(packets, flows, &self.world.tables)
    }

    fn through(&mut self, packets: usize, flows: &FlowTable, tables: &Snapshot) -> Figures {
        let (direction, age, begun) = (self.direction, self.age, Instant::now());
        let mut tally = std::mem::take(&mut self.tally);
        let figures = self.run(packets, |memory, batch| {
            let now = Tick::from_nanoseconds((age + begun.elapsed()).as_nanos() as u64);
            stage(direction, tables, flows, now, memory, batch, &mut tally);
        });
        (self.tally, self.age) = (tally, age + begun.elapsed());
        figures
    }

    /// The same while tables are published, 100 endpoint changes and one
    /// policy change per second of measured time. Control's own work is not
    /// measured, as it runs on another CPU; what it does to the worker is.
    pub(crate) fn churn(
        &mut self,
        packets: usize,
        flows: &FlowTable,
        churn: &mut Churn,
    ) -> Figures {
        let per_change = self.clock.per_nanosecond * 10_000_000.0;
        self.through(self.ahead(), flows, churn.reader.get());
        let mut done = 0;
        let mut all = Vec::new();
        while done < packets {
            while ((churn.changes + 1) as f64) * per_change <= churn.measured {
                churn.change();
            }
            churn.reader.refresh();
            let packets = 64 * self.batch_len;
            let figures = self.through(packets, flows, churn.reader.get());
            done += packets;
            churn.measured += figures.clocks * packets as f64;
            all.push(figures);
        }
        Figures {
            clocks: all.iter().map(|figures| figures.clocks).sum::<f64>() / all.len() as f64,
            left_out: all.iter().map(|figures| figures.left_out).sum(),
            checksum: all.iter().fold(0, |sum, figures| sum ^ figures.checksum),
        }
    }

    /// Measures `stage` over so many packets.
    pub(crate) fn run(
        &mut self,
        packets: usize,
        mut stage: impl FnMut(&mut Area, &mut Batch),
    ) -> Figures {
        let mut samples = Vec::with_capacity(packets / self.batch_len + 1);
        let mut sum = 0;
        for _ in 0..packets.div_ceil(self.batch_len) {
            self.fill();
            let start = hint::cycles();
            stage(&mut self.memory, &mut self.batch);
            let clocks = hint::cycles() - start;
            samples.push(clocks.saturating_sub(self.clock.own) as f64 / self.batch_len as f64);
            sum += self.drain();
        }
        let (clocks, left_out) = mean_without_interruptions(&mut samples);
        Figures { clocks, left_out, checksum: checksum::finish(sum) }
    }

    /// Puts the next packets into the next buffers.
    fn fill(&mut self) {
        for _ in 0..self.batch_len {
            // A step coprime to any number of flows visits them all.
            let flow = (self.next as u64 * 2_654_435_761 % self.flows as u64) as usize;
            let flow = self.first_flow + flow;
            let chunk = self.next as u32 % BUFFERS;
            self.next += 1;
            let frame = Frame { chunk, head: HEADROOM, len: 256, segment: 0 };
            let bytes = Memory::bytes_mut(&mut self.memory, &frame);
            let len = match self.direction {
                Direction::Encap => {
                    let len = self.world.frame_len();
                    self.world.write_outgoing(flow, &mut bytes[..len]);
                    len
                }
                Direction::Decap => self.world.write_incoming(flow, bytes),
            };
            self.batch.frames_mut().push(Frame { len: len as u32, ..frame });
        }
    }

    /// Reads the output.
    fn drain(&mut self) -> u64 {
        let mut sum = 0;
        for (frame, verdict) in self.batch.drain() {
            self.dropped += usize::from(matches!(verdict, Verdict::Drop(_)));
            sum += checksum::sum(Memory::bytes(&self.memory, &frame));
        }
        sum
    }
}

/// Tables that change, over all runs of a case.
pub(crate) struct Churn {
    publisher: Publisher<Snapshot>,
    reader: Reader<Snapshot>,
    /// Clocks of measured time.
    measured: f64,
    changes: usize,
}

impl Churn {
    pub(crate) fn new(tables: Snapshot) -> Self {
        let publisher = Publisher::new(tables);
        Self { reader: publisher.reader(), publisher, measured: 0.0, changes: 0 }
    }

    fn change(&mut self) {
        self.changes += 1;
        // In the middle of a second, so that in part of one it is as likely as not.
        let policy = (self.changes % 100 == 50).then_some(super::cases::RULES);
        publish_change(&mut self.publisher, self.changes, policy);
    }
}

/// Publishes a change of one endpoint, and with it one of the policy if it is
/// given a number of rules.
pub(crate) fn publish_change(
    publisher: &mut Publisher<Snapshot>,
    number: usize,
    policy: Option<usize>,
) {
    let mut next = (**publisher.current()).clone();
    next.generation += 1;
    world::change_endpoint(&mut next, number);
    if let Some(rules) = policy {
        world::change_policy(&mut next, rules, number);
    }
    publisher.publish(next);
}

#[inline(never)]
fn stage(
    direction: Direction,
    tables: &Snapshot,
    flows: &FlowTable,
    now: Tick,
    memory: &mut Area,
    batch: &mut Batch,
    tally: &mut Tally,
) {
    let cx = Context { tables, flows, now };
    match direction {
        Direction::Encap => encap(&cx, memory, batch, tally),
        Direction::Decap => decap(&cx, memory, batch, tally),
    }
}

/// The mean of the samples without those in which the kernel took the CPU away
/// (four times the middle one and more), and the number of those.
fn mean_without_interruptions(samples: &mut [f64]) -> (f64, usize) {
    samples.sort_by(f64::total_cmp);
    let Some(middle) = samples.get(samples.len() / 2) else { return (f64::NAN, 0) };
    let limit = middle * 4.0;
    let kept = samples.partition_point(|sample| *sample < limit);
    (samples[..kept].iter().sum::<f64>() / kept as f64, samples.len() - kept)
}
