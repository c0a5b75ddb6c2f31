//! What is measured of a subject: each kind of work fills some rows.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tieline_dataplane::xsk::traffic::MOST_FLOWS;
use tieline_lab::{Pktgen, TcpServer, bulk, ping_flood, pktgen_missing, request_response};

use crate::bed::{Bed, Offloads};
use crate::flows::{self, Load};
use crate::iperf;
use crate::outcome::{Measure, Place, Row};
use crate::rig::{Paced, Rig, Trial};
use crate::stream::{Shape, StreamRig};
use crate::subject::{Missing, Subject};
use crate::usage;

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Effort {
    /// Runs, of which the median counts.
    pub(crate) runs: usize,
    /// Length of each.
    pub(crate) trial: Duration,
    /// Steps of a search for a rate: each halves what is open.
    pub(crate) steps: u32,
    /// Part of the packets that a rate without drops may lose. Nothing at all
    /// would be a measure of the machine's other users.
    pub(crate) loss: f64,
}

impl Effort {
    pub(crate) const FULL: Self =
        Self { runs: 5, trial: Duration::from_millis(300), steps: 7, loss: 10e-6 };
    pub(crate) const QUICK: Self =
        Self { runs: 3, trial: Duration::from_millis(100), steps: 5, loss: 10e-6 };

    /// Searches for a rate: each has many trials.
    fn searches(self) -> usize {
        self.runs.div_ceil(2)
    }

    /// Transfers by iperf3: each takes a second.
    fn transfers(self) -> usize {
        self.runs.div_ceil(3)
    }
}

/// Kinds of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    /// As many packets as go through; flows known in both directions before, or
    /// not.
    Flood { established: bool },
    /// Every packet the first of a flow.
    NewFlows,
    /// The rates without drops and with few, latencies at parts of the first,
    /// and CPU time per packet.
    Rate,
    /// The same by AF_XDP sockets, of other kinds of traffic, and what became of
    /// the packets.
    Stream(Shape),
    /// As many packets as go through, made by the kernel's own generator.
    Pktgen,
    /// Pings one after the other.
    Ping,
    /// TCP between two pods, with and without segmentation offload.
    Tcp { offloads: Offloads },
    /// Forwarding while what it is programmed with changes ten times a second.
    Churn,
    /// For how long nothing passes when it is restarted, and when it reloads.
    Interruption,
}

impl Work {
    /// Seconds that it takes about, set-up included.
    pub(crate) fn seconds(self, effort: Effort) -> f64 {
        let runs = effort.runs as f64;
        let trial = effort.trial.as_secs_f64() + 0.25;
        1.2 + match self {
            Self::Flood { .. } | Self::NewFlows | Self::Churn => runs * trial,
            Self::Rate => {
                let searches = effort.searches() as f64;
                (2.0 * f64::from(effort.steps) * searches + 5.0 * searches + 1.0) * trial
            }
            Self::Stream(_) => {
                let searches = effort.searches() as f64;
                (f64::from(effort.steps) * searches + 3.0 * searches + 12.0) * trial
            }
            Self::Pktgen => 2.0 * runs,
            Self::Ping => 2.0 * runs * trial,
            Self::Tcp { .. } => 2.0 * runs * trial + 1.2 * effort.transfers() as f64,
            Self::Interruption => 6.0,
        }
    }
}

/// Does it.
pub(crate) fn measure(
    bed: &Bed,
    subject: &dyn Subject,
    load: Load,
    work: Work,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Vec<Row>> {
    match work {
        Work::Flood { established } => {
            flood(&Rig::new(bed, subject, load)?, established, effort, at)
        }
        Work::NewFlows => new_flows(bed, subject, load, effort, at),
        Work::Rate => rate(&Rig::new(bed, subject, load)?, effort, at),
        Work::Stream(shape) => {
            stream(&StreamRig::new(bed, subject, load, shape)?, shape, effort, at)
        }
        Work::Pktgen => pktgen(bed, &Rig::new(bed, subject, load)?, effort, at),
        Work::Ping => ping(bed, &Rig::new(bed, subject, load)?, effort, at),
        Work::Tcp { offloads } => tcp(bed, &Rig::new(bed, subject, load)?, offloads, effort, at),
        Work::Churn => churn(&Rig::new(bed, subject, load)?, effort, at),
        Work::Interruption => interruption(Rig::new(bed, subject, load)?, at),
    }
}

fn repeat<T>(runs: usize, mut run: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    (0..runs).map(|_| run()).collect()
}

fn flood(rig: &Rig<'_>, established: bool, effort: Effort, at: &Place) -> anyhow::Result<Vec<Row>> {
    rig.verify()?;
    if established {
        rig.establish()?;
    }
    let rates = repeat(effort.runs, || rig.flood(effort.trial, None))?;
    let mut rows = vec![Row::new(at, Measure::FORWARDED, rates)];
    rows.extend(memory(rig, at));
    Ok(rows)
}

fn memory(rig: &Rig<'_>, at: &Place) -> Option<Row> {
    let bytes = usage::resident(rig.running.pid()?)?;
    Some(Row::new(at, Measure::MEMORY, vec![bytes as f64]))
}

/// Offers somewhat more than goes through: far more would mostly show how fast
/// the subject's queue refuses packets.
fn new_flows(
    bed: &Bed,
    subject: &dyn Subject,
    load: Load,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Vec<Row>> {
    let rig = Rig::new(bed, subject, load)?;
    rig.verify()?;
    // Set up for few flows, it is flooded with many.
    let rig = rig.reload(Load { flows: MOST_FLOWS, ..load })?;
    let mut next = 1 << 16;
    let mut run = |offered: Option<f64>, trial: Duration| {
        let rate = rig.flood_from(trial, offered, next)?;
        let seconds = trial.as_secs_f64() + 0.2;
        next = (next + (offered.unwrap_or(rate * 8.0) * seconds) as u32) % MOST_FLOWS;
        anyhow::Ok(rate)
    };
    // Connections are remembered for a while, and only so many.
    let trial = effort.trial.min(Duration::from_millis(120));
    let mut offered = 150_000.0;
    while offered < 2e6 {
        // One that falls behind may have been disturbed; two are at their end.
        let rate = run(Some(offered), trial)?.max(run(Some(offered), trial)?);
        if rate < 0.93 * offered {
            break;
        }
        offered *= 1.6;
    }
    // The search may have been disturbed both times: what goes through with more
    // on offer counts if it is more.
    let mut row = |offered| {
        let rates = repeat(effort.runs.min(3), || run(Some(offered), trial))?;
        anyhow::Ok(Row::new(at, Measure::NEW_FLOWS, rates))
    };
    let rows = [row(offered)?, row(offered * 1.6)?];
    Ok(rows
        .into_iter()
        .max_by(|one, other| one.median.total_cmp(&other.median))
        .into_iter()
        .collect())
}

const PARTIAL_LOSS: f64 = 0.005;
/// Packets per second at which subjects are compared at the same load, and CPU
/// time is counted.
const COMMON_RATE: f64 = 100_000.0;
const IDLE_RATE: f64 = 1000.0;

fn rate(rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Vec<Row>> {
    rig.verify()?;
    rig.establish()?;
    let most = rig.flood(effort.trial, None)? * 1.2;
    let runs = effort.searches();
    let search = |loss| repeat(runs, || search(rig, most, loss, effort));
    let mut rows = vec![
        Row::new(at, Measure::NO_DROP, search(effort.loss)?),
        Row::new(at, Measure::PARTIAL_DROP, search(PARTIAL_LOSS)?),
    ];
    let no_drop = rows[0].median;
    let with = |words: String| Place { case: format!("{}, {words}", at.case), ..at.clone() };
    let parts = [0.1, 0.5, 0.9]
        .map(|part| (no_drop * part, with(format!("{:.0} % of the no-drop rate", part * 100.0))));
    let others = [(IDLE_RATE, with("idle".to_owned())), (COMMON_RATE, with("100 kpps".to_owned()))];
    for (rate, at) in others.into_iter().chain(parts) {
        let trials = repeat(runs, || steady(rig, rate, effort.trial))?;
        rows.extend(latencies(&trials, &at));
        let cpu = |trial: &Trial| trial.cpu * 1e9 / trial.seen.received.max(1) as f64;
        if rate > IDLE_RATE && rig.running.is_here() {
            rows.push(Row::new(&at, Measure::CPU, trials.iter().map(cpu).collect()));
        }
    }
    Ok(rows)
}

/// The highest rate at which no larger part is lost, by halving (RFC 2544,
/// section 26.1).
fn search(rig: &dyn Paced, most: f64, loss: f64, effort: Effort) -> anyhow::Result<f64> {
    let (mut good, mut bad) = (0.0, most);
    for _ in 0..effort.steps {
        let rate = (good + bad) / 2.0;
        if steady_loss(rig, rate, effort.trial, loss)? { good = rate } else { bad = rate }
    }
    Ok(good)
}

/// Whether a rate holds. A trial that fails while the generator was late says
/// nothing: what it was late with came as a burst. It is tried again.
fn steady_loss(rig: &dyn Paced, rate: f64, trial: Duration, loss: f64) -> anyhow::Result<bool> {
    for _ in 0..3 {
        let trial = rig.paced(rate, trial)?;
        if trial.loss() <= loss && trial.kept(rate) {
            return Ok(true);
        }
        if trial.kept(rate) && !is_disturbed(&trial) {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Whether the generator did not keep its times.
fn is_disturbed(trial: &Trial) -> bool {
    trial.sent.late as f64 > 0.001 * trial.sent.packets as f64
}

/// A trial during which the generator kept its times, if one of five is.
fn steady(rig: &dyn Paced, rate: f64, length: Duration) -> anyhow::Result<Trial> {
    let mut best: Option<Trial> = None;
    for _ in 0..5 {
        let trial = rig.paced(rate, length)?;
        let fewer = best.as_ref().is_none_or(|best| trial.sent.late < best.sent.late);
        if fewer {
            best = Some(trial);
        }
        if best.as_ref().is_some_and(|best| !is_disturbed(best)) {
            break;
        }
    }
    best.context("no trial")
}

fn latencies(trials: &[Trial], at: &Place) -> Vec<Row> {
    let quantiles = [0.5, 0.9, 0.99, 0.999];
    let of = |share: f64| {
        trials
            .iter()
            .filter_map(|trial| trial.seen.quantile_ns(share))
            .map(|ns| ns as f64)
            .collect()
    };
    let longest = trials.iter().map(|trial| trial.seen.longest_ns as f64).collect();
    let all = quantiles.into_iter().map(of).chain([longest]);
    Measure::LATENCY
        .into_iter()
        .zip(all)
        .map(|(measure, runs)| Row::new(at, measure, runs))
        .collect()
}

/// Packets per second at which kinds of traffic are compared.
const STREAM_RATE: f64 = 50_000.0;

fn stream(
    rig: &StreamRig<'_>,
    shape: Shape,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Vec<Row>> {
    rig.verify()?;
    let runs = effort.searches();
    // Somewhat above the first rate that is too much.
    let mut most = STREAM_RATE;
    while most < 1e7 && steady_loss(rig, most, effort.trial, PARTIAL_LOSS)? {
        most *= 1.6;
    }
    let rates = repeat(runs, || search(rig, most, effort.loss, effort))?;
    let mut rows = vec![Row::new(at, Measure::NO_DROP, rates)];
    let half = rows[0].median / 2.0;
    let (words, rate) = match shape {
        Shape::Replay(capture) => ("at its own rate".to_owned(), capture.rate),
        _ => (format!("{} kpps", STREAM_RATE / 1e3), STREAM_RATE),
    };
    let with = |words: &str| Place { case: format!("{}, {words}", at.case), ..at.clone() };
    for (rate, at) in [(rate, with(&words)), (half, with("50 % of the no-drop rate"))] {
        let trials = repeat(runs, || steady(rig, rate.max(1.0), effort.trial))?;
        rows.extend(latencies(&trials, &at));
        rows.extend(faults(&trials, &at));
        let cpu = |trial: &Trial| trial.cpu * 1e9 / trial.seen.received.max(1) as f64;
        // The wire has no router whose time it would be.
        if rig.running.in_tunnel() && rig.running.is_here() {
            rows.push(Row::new(&at, Measure::CPU, trials.iter().map(cpu).collect()));
        }
    }
    Ok(rows)
}

/// What became of packets on the way, of a million that were sent.
fn faults(trials: &[Trial], at: &Place) -> [Row; 4] {
    let of = |measure, count: &dyn Fn(&Trial) -> u64| {
        let part = |trial: &Trial| count(trial) as f64 * 1e6 / trial.sent.packets.max(1) as f64;
        Row::new(at, measure, trials.iter().map(part).collect())
    };
    let [lost, reordered, duplicated, damaged] = Measure::FAULTS;
    [
        of(lost, &|trial| trial.sent.packets.saturating_sub(trial.seen.received)),
        of(reordered, &|trial| trial.seen.reordered),
        of(duplicated, &|trial| trial.seen.duplicated),
        of(damaged, &|trial| trial.seen.corrupt),
    ]
}

fn pktgen(bed: &Bed, rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Vec<Row>> {
    if let Some(missing) = pktgen_missing() {
        return Err(Missing(missing).into());
    }
    let entry = rig.running.entry();
    let pktgen = Pktgen {
        device: entry.device.clone(),
        cpu: bed.cpus.traffic,
        packets: 500_000,
        size: 64,
        rate: None,
        mac: flows::mac_text(entry.mac),
        addresses: (flows::local_pod(0), flows::remote_pod(0)),
        source_ports: (10_000, 10_063),
        port: flows::PORT,
    };
    let rates = repeat(effort.runs, || {
        let sink = rig.sink()?;
        let generated = pktgen.run(&entry.netns)?;
        Ok(sink.frames() as f64 * 1e6 / generated.microseconds.max(1) as f64)
    })?;
    Ok(vec![Row::new(at, Measure::FORWARDED, rates)])
}

fn ping(bed: &Bed, rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Vec<Row>> {
    let to = flows::remote_pod(0).into();
    let flood = |duration| ping_flood(&bed.generator, to, 56, duration);
    flood(Duration::from_millis(50)).with_context(|| rig.running.transcript())?;
    let trips = repeat(effort.runs, || Ok(flood(effort.trial)?))?;
    let quantile =
        |share: f64| trips.iter().map(|trips| trips.quantile(share).as_nanos() as f64).collect();
    let [half, most] = Measure::ROUND_TRIP;
    Ok(vec![Row::new(at, half, quantile(0.5)), Row::new(at, most, quantile(0.99))])
}

const TCP_PORT: u16 = 5001;

fn tcp(
    bed: &Bed,
    rig: &Rig<'_>,
    offloads: Offloads,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Vec<Row>> {
    bed.offloads(offloads)?;
    let _server = TcpServer::start(&bed.sink, TCP_PORT)?;
    let to = SocketAddr::new(flows::remote_pod(0).into(), TCP_PORT);
    let from = &bed.generator;
    let transfer = |duration| bulk(from, to, duration);
    transfer(Duration::from_millis(50)).with_context(|| match offloads {
        Offloads::All => "on an underlay that hands over super-frames with unfinished checksums, \
                          which no wire does"
            .to_owned(),
        _ => rig.running.transcript(),
    })?;
    let trial = effort.trial.max(Duration::from_millis(300));
    let requests = repeat(effort.runs, || {
        let trips = request_response(from, to, 64, effort.trial)?;
        Ok(trips.count() as f64 / effort.trial.as_secs_f64())
    })?;
    // After the requests, which would pay for the way to another CPU.
    bed.steer_ends()?;
    let rates = repeat(effort.runs, || Ok(transfer(trial)?.bits_per_second()))?;
    let mut rows =
        vec![Row::new(at, Measure::TRANSFER, rates), Row::new(at, Measure::REQUESTS, requests)];
    if iperf::is_installed() {
        let rates = iperf::transfers(from, &bed.sink, to.ip(), effort.transfers())?;
        rows.push(Row::new(at, Measure::IPERF, rates));
    }
    Ok(rows)
}

fn churn(rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Vec<Row>> {
    rig.verify()?;
    rig.establish()?;
    let quiet = repeat(effort.runs, || rig.flood(effort.trial, None))?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let changed = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rig.running.change(number)?;
                number += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            anyhow::Ok(())
        });
        let rates = repeat(effort.runs, || rig.flood(effort.trial, None));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        changes.join().map_err(|_| anyhow::anyhow!("the changes panicked"))??;
        rates
    })?;
    let with = |words: &str| Place { case: format!("{}, {words}", at.case), ..at.clone() };
    Ok(vec![
        Row::new(&with("quiet"), Measure::FORWARDED, quiet),
        Row::new(&with("10 changes a second"), Measure::FORWARDED, changed),
    ])
}

/// The time is that for which packets of a steady stream did not arrive.
fn interruption(mut rig: Rig<'_>, at: &Place) -> anyhow::Result<Vec<Row>> {
    const RATE: f64 = 20_000.0;
    rig.verify()?;
    rig.establish()?;
    let with = |words: &str| Place { case: format!("{}, {words}", at.case), ..at.clone() };
    let time = |trial: &Trial| vec![trial.loss() * trial.sent.packets as f64 / RATE];
    let reload = rig.interrupted(RATE, Duration::from_secs(1), |running| running.change(1))?;
    let mut rows = vec![Row::new(&with("reload"), Measure::INTERRUPTION, time(&reload))];
    match rig.interrupted(RATE, Duration::from_secs(3), |running| running.restart()) {
        Ok(restart) => {
            ensure!(restart.seen.received > 0, "nothing passes after the restart");
            rows.push(Row::new(&with("restart"), Measure::INTERRUPTION, time(&restart)));
        }
        // The kernel has nothing that could be restarted.
        Err(error) if error.is::<Missing>() => {}
        Err(error) => return Err(error),
    }
    Ok(rows)
}
