//! A subject between generator and sink, and what can be asked of it.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tieline_dataplane::xsk::generator::Sink;
use tieline_dataplane::xsk::traffic::{Check, Run, Seen, Sent, Source, SourceConfig};
use tieline_dataplane::xsk::{device, hint};
use tieline_lab::Netns;

use crate::bed::{Bed, PATIENCE, pin};
use crate::flows::{self, Load};
use crate::stream::{Pace, Sender, Stream};
use crate::subject::{Entry, Missing, Needs, Running, Subject};
use crate::usage::{self, Used};

/// Packets per second that no generator reaches on this kind of machine: how
/// many are made ready for a flood.
const MOST_RATE: f64 = 6e6;
/// How long stragglers may take at the end of a run.
const SETTLE: Duration = Duration::from_millis(30);
/// How long a flood goes before it is measured.
const RUN_UP: Duration = Duration::from_millis(60);
/// Packets per second at which flows are made known: slow enough for all.
const GENTLE: f64 = 50_000.0;

/// A subject that is up, with traffic of one load.
pub(crate) struct Rig<'a> {
    bed: &'a Bed,
    pub(crate) running: Box<dyn Running + 'a>,
    source: Source,
    /// For floods of a router on two CPUs: a generator for each, which have half
    /// of the flows each.
    halves: Option<[Source; 2]>,
    entry: Entry,
    load: Load,
}

/// What a run at a rate has shown.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    pub(crate) sent: Sent,
    pub(crate) seen: Seen,
    /// CPU time that the router has used.
    pub(crate) cpu: Used,
}

impl Trial {
    /// Packets that did not arrive, as a part of all.
    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.seen.received as f64 / self.sent.packets.max(1) as f64
    }

    /// Whether the generator could do a rate at all.
    pub(crate) fn kept(&self, rate: f64) -> bool {
        self.sent.elapsed.as_secs_f64() <= 1.02 * self.sent.packets as f64 / rate + 0.002
    }
}

/// What sends at a fixed rate, every packet looked at where it arrives.
pub(crate) trait Paced {
    /// One run.
    ///
    /// # Errors
    /// It can't be made.
    fn paced(&self, rate: f64, duration: Duration) -> anyhow::Result<Trial>;
}

impl<'a> Rig<'a> {
    /// Sets a subject up and a generator for it.
    pub(crate) fn new(bed: &'a Bed, subject: &dyn Subject, load: Load) -> anyhow::Result<Self> {
        let running = subject.set_up(bed, Needs { flows: load.flows, v6: false })?;
        let entry = running.entry();
        let config = flows::outgoing(load, entry.mac);
        let half = |first, cpu| {
            let flows = load.flows / 2;
            let config = SourceConfig { flows, first: first * flows, ..config.clone() };
            source(cpu, &entry.netns, &entry.device, &config)
        };
        let halves = match bed.cpus.second.filter(|_| bed.routers > 1) {
            Some((_, second)) => Some([half(0, bed.cpus.traffic)?, half(1, second)?]),
            None => None,
        };
        let source = source(bed.cpus.traffic, &entry.netns, &entry.device, &config)?;
        Ok(Self { bed, running, source, halves, entry, load })
    }

    /// The same subject under another load.
    pub(crate) fn reload(self, load: Load) -> anyhow::Result<Self> {
        let config = flows::outgoing(load, self.entry.mac);
        let cpu = self.bed.cpus.traffic;
        let source = source(cpu, &self.entry.netns, &self.entry.device, &config)?;
        Ok(Self { source, halves: None, load, ..self })
    }

    /// Makes every flow known in both directions, so that a firewall takes it
    /// for established.
    pub(crate) fn establish(&self) -> anyhow::Result<()> {
        let flows = u64::from(self.load.flows);
        let rate = Some(GENTLE.max(self.load.flows as f64));
        let run = Run { tag: tag(), packets: flows, rate, first_flow: 0, batch: 16 };
        self.on_traffic_cpu(&self.entry.netns, || self.source.run(&run))?;
        if !self.running.in_tunnel() {
            return Ok(());
        }
        let cpu = self.bed.cpus.traffic;
        let back = source(cpu, &self.bed.sink, "s0", &flows::answers(self.load))?;
        self.on_traffic_cpu(&self.bed.sink, || back.run(&Run { tag: tag(), ..run }))?;
        Ok(())
    }

    /// Packets per second that come out at the far end while as many are put in
    /// as the generator can; `offered` puts in that many a second instead.
    pub(crate) fn flood(&self, duration: Duration, offered: Option<f64>) -> anyhow::Result<f64> {
        self.flood_from(duration, offered, 0)
    }

    /// The same, beginning with a flow.
    pub(crate) fn flood_from(
        &self,
        duration: Duration,
        offered: Option<f64>,
        first_flow: u32,
    ) -> anyhow::Result<f64> {
        let sink = self.sink()?;
        let seconds = (RUN_UP + duration).as_secs_f64() + 0.1;
        let packets = (offered.unwrap_or(MOST_RATE) * seconds) as u64;
        let run = Run { tag: tag(), packets, rate: offered, first_flow, batch: 64 };
        let (traffic, second) = (self.bed.cpus.traffic, self.bed.cpus.second);
        let sources: Vec<(&Source, usize)> = match (&self.halves, second) {
            (Some([one, other]), Some((_, second))) => vec![(one, traffic), (other, second)],
            _ => vec![(&self.source, traffic)],
        };
        std::thread::scope(|scope| {
            let (run, netns) = (&run, &self.entry.netns);
            let mut threads = Vec::new();
            for (source, cpu) in sources.iter().copied() {
                threads.push(scope.spawn(move || on_cpu(cpu, netns, || source.run(run))));
            }
            let started = Instant::now();
            let idle = || sources.iter().any(|(source, _)| source.progress() == 0);
            while idle() && started.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(RUN_UP);
            let (from, frames) = (Instant::now(), sink.frames());
            std::thread::sleep(duration);
            let (took, frames) = (from.elapsed(), sink.frames() - frames);
            sources.iter().for_each(|(source, _)| source.stop());
            for thread in threads {
                let sent = thread.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?;
                sent.context("generator")?;
            }
            Ok(frames as f64 / took.as_secs_f64())
        })
    }

    /// Does something to the subject while packets pass at a steady rate, until
    /// they do again. Returns the longest time in seconds from one that arrived
    /// to the next.
    ///
    /// The generator sleeps between packets: whatever is started meanwhile needs
    /// its CPU.
    ///
    /// # Errors
    /// What is done fails, or nothing passes afterwards.
    pub(crate) fn interrupted(
        &mut self,
        act: impl FnOnce(&mut (dyn Running + 'a)) -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        const RATE: f64 = 20_000.0;
        let check = self.check()?;
        let run = Run { tag: tag(), packets: 1 << 40, rate: Some(RATE), first_flow: 0, batch: 64 };
        check.start(run.tag);
        let (netns, device) = (&self.entry.netns, &self.entry.device);
        let stream = Stream::plain(self.load, self.entry.mac);
        let mut sender = netns.run(|| Sender::open(device, stream))??;
        let (cpu, stop, running) =
            (self.bed.cpus.traffic, AtomicBool::new(false), &mut *self.running);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(cpu);
                sender.begin(Pace { run, burst: 1 }, hint::monotonic_ns());
                while !stop.load(Ordering::Relaxed) && !sender.step() {
                    std::thread::sleep(Duration::from_micros(20));
                }
            });
            let outcome = passes(&check, 0, RATE).and_then(|()| act(running)).and_then(|()| {
                // Those that came before are none that pass again.
                passes(&check, check.received(), RATE)
            });
            stop.store(true, Ordering::Relaxed);
            outcome
        })
        .map_err(|error| match error.is::<Missing>() {
            true => error,
            false => error.context(self.running.transcript()),
        })?;
        Ok(check.seen().longest_gap_ns as f64 / 1e9)
    }

    /// Counts what arrives, without looking at it.
    pub(crate) fn sink(&self) -> anyhow::Result<Sink> {
        self.bed.sink.run(|| Sink::attach(device::index("s0")?, true).context("sink on s0"))?
    }

    fn check(&self) -> anyhow::Result<Check> {
        let config = flows::arriving(self.load, self.running.in_tunnel());
        let attach = || Check::attach(device::index("s0")?, true, &config).context("check on s0");
        self.bed.sink.run(attach)?
    }

    /// Sends a handful of packets and looks whether they arrive as they should.
    ///
    /// # Errors
    /// They don't: what is measured would be something else.
    pub(crate) fn verify(&self) -> anyhow::Result<()> {
        const PACKETS: f64 = 256.0;
        let try_it = || self.paced(10_000.0, Duration::from_secs_f64(PACKETS / 10_000.0));
        let mut trial = try_it()?;
        for _ in 0..9 {
            // On a machine that others use as well, some may come too late.
            if trial.loss() <= 0.05 {
                break;
            }
            trial = try_it()?;
        }
        let Seen { received, corrupt, duplicated, missing, .. } = trial.seen;
        // The first may go while something else is being set up.
        ensure!(
            received as f64 >= PACKETS * 0.95 && corrupt == 0 && duplicated == 0,
            "of {} packets {received} arrived, {corrupt} were damaged, {duplicated} came twice, \
             {missing} were passed over: {}",
            trial.sent.packets,
            self.running.transcript()
        );
        Ok(())
    }

    fn on_traffic_cpu<T: Send>(
        &self,
        netns: &Netns,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> anyhow::Result<T> {
        on_cpu(self.bed.cpus.traffic, netns, work)
    }
}

impl Paced for Rig<'_> {
    fn paced(&self, rate: f64, duration: Duration) -> anyhow::Result<Trial> {
        let tag = tag();
        let check = self.check()?;
        check.start(tag);
        let packets = ((rate * duration.as_secs_f64()) as u64).max(1);
        // The fewer are handed over together, the closer each is to its time.
        let run = Run { tag, packets, rate: Some(rate), first_flow: 0, batch: 16 };
        let used = || usage::of_router(self.bed.cpus.router, self.running.pid());
        let before = used();
        let sent = self.on_traffic_cpu(&self.entry.netns, || self.source.run(&run))?;
        let cpu = used().since(before);
        std::thread::sleep(SETTLE);
        Ok(Trial { sent, seen: check.seen(), cpu })
    }
}

/// Waits until a good part of a second's packets have come behind the first so
/// many, and as long as they take.
fn passes(check: &Check, before: u64, rate: f64) -> anyhow::Result<()> {
    const LONG: Duration = Duration::from_millis(700);
    let began = Instant::now();
    let wanted = before + (rate * LONG.as_secs_f64() / 2.0) as u64;
    while check.received() < wanted || began.elapsed() < LONG {
        let arrived = check.received() - before;
        ensure!(began.elapsed() < PATIENCE, "{arrived} packets pass within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn on_cpu<T: Send>(
    cpu: usize,
    netns: &Netns,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> anyhow::Result<T> {
    let run = || {
        pin(cpu);
        work()
    };
    Ok(netns.run(run)??)
}

fn source(cpu: usize, netns: &Netns, name: &str, config: &SourceConfig) -> anyhow::Result<Source> {
    let make = || {
        pin(cpu);
        Source::new(device::index(name)?, config).with_context(|| format!("generator on {name}"))
    };
    netns.run(make)?
}

/// Another number for each run.
pub(crate) fn tag() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
