//! What is measured of a subject: each kind of work fills some rows.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tieline_dataplane::xsk::traffic::MOST_FLOWS;
use tieline_lab::{Pktgen, TcpServer, bulk, ping_flood, pktgen_missing, request_response};

use crate::bed::{Bed, Offloads};
use crate::flows::{self, Load};
use crate::iperf;
use crate::outcome::{Found, Measure, Place};
use crate::report::quantile;
use crate::rig::Rig;
use crate::stream::{Shape, StreamRig};
use crate::subject::{Missing, Subject};
use crate::usage;

mod rates;

use rates::IDLE_RATE;

/// How long and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Effort {
    /// Runs, of which the median counts.
    pub(crate) runs: usize,
    /// Turns that these are divided into: what else the machine does changes from
    /// minute to minute, and is to hit all subjects of a case alike.
    pub(crate) turns: usize,
    /// Length of each.
    pub(crate) trial: Duration,
    /// Steps of a search for a rate: each halves what is open.
    pub(crate) steps: u32,
    /// Part of the packets that a rate without drops may lose. Nothing at all
    /// would be a measure of the machine's other users.
    pub(crate) loss: f64,
    /// Packets that latencies are told from, at least: of fewer, the slowest of a
    /// hundred would be one or two.
    pub(crate) packets: f64,
    /// Length of runs whose CPU time is counted in ticks.
    pub(crate) account: Duration,
}

impl Effort {
    pub(crate) const FULL: Self = Self {
        runs: 6,
        turns: 3,
        trial: Duration::from_millis(300),
        steps: 7,
        loss: 10e-6,
        packets: 3000.0,
        account: Duration::from_secs(2),
    };
    /// Without CPU time in ticks.
    pub(crate) const QUICK: Self = Self {
        runs: 3,
        turns: 1,
        trial: Duration::from_millis(100),
        steps: 5,
        packets: 2000.0,
        account: Duration::ZERO,
        ..Self::FULL
    };
    /// To see whether it works, not how well.
    pub(crate) const SHORTEST: Self =
        Self { runs: 1, trial: Duration::from_millis(20), steps: 2, packets: 20.0, ..Self::QUICK };

    /// The efforts of each turn, which have all runs together.
    pub(crate) fn in_turns(self) -> impl Iterator<Item = Self> {
        let turns = self.turns.clamp(1, self.runs.max(1));
        let (each, more) = (self.runs / turns, self.runs % turns);
        (0..turns).map(move |turn| Self { runs: each + usize::from(turn < more), turns: 1, ..self })
    }

    /// Searches for a rate: each has many trials.
    fn searches(self) -> usize {
        self.runs.div_ceil(2)
    }

    /// Transfers by iperf3: each takes a second.
    fn transfers(self) -> usize {
        self.runs.div_ceil(3)
    }

    /// How long a rate has to last for its latencies, and for its CPU time.
    fn length(self, rate: f64, accounted: bool) -> Duration {
        let enough = Duration::from_secs_f64(self.packets / rate.max(1.0)).min(LONGEST);
        let account = if accounted { self.account } else { Duration::ZERO };
        self.trial.max(enough).max(account)
    }
}

/// Of any run, however slow the subject is.
const LONGEST: Duration = Duration::from_secs(5);

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
    /// What arrives of a rate, whether or not it is too much.
    Offered { rate: f64 },
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
        let trial = effort.trial.as_secs_f64() + 0.2;
        1.2 + match self {
            Self::Flood { .. } | Self::NewFlows | Self::Offered { .. } => runs * trial,
            Self::Churn => 2.0 * runs * trial,
            Self::Rate => {
                let searches = effort.searches() as f64;
                let steady = effort.length(IDLE_RATE, false) + 2 * effort.account;
                (2.0 * f64::from(effort.steps) * searches + 4.0 * searches + 1.0) * trial
                    + steady.as_secs_f64() * searches
            }
            Self::Stream(_) => {
                let searches = effort.searches() as f64;
                (f64::from(effort.steps) * searches + 3.0 * searches + 12.0) * trial
                    + effort.account.as_secs_f64() * searches
            }
            Self::Pktgen => 2.0 * runs,
            Self::Ping => 2.0 * runs * trial,
            Self::Tcp { .. } => 2.0 * runs * trial + 1.2 * effort.transfers() as f64,
            Self::Interruption => 5.0 * effort.searches() as f64,
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
) -> anyhow::Result<Found> {
    match work {
        Work::Flood { established } => {
            flood(&Rig::new(bed, subject, load)?, established, effort, at)
        }
        Work::NewFlows => new_flows(bed, subject, load, effort, at),
        Work::Rate => rates::rate(&Rig::new(bed, subject, load)?, effort, at),
        Work::Offered { rate } => rates::offered(&Rig::new(bed, subject, load)?, rate, effort, at),
        Work::Stream(shape) => {
            rates::stream(&StreamRig::new(bed, subject, load, shape)?, shape, effort, at)
        }
        Work::Pktgen => pktgen(bed, &Rig::new(bed, subject, load)?, effort, at),
        Work::Ping => ping(bed, &Rig::new(bed, subject, load)?, effort, at),
        Work::Tcp { offloads } => tcp(bed, &Rig::new(bed, subject, load)?, offloads, effort, at),
        Work::Churn => churn(&Rig::new(bed, subject, load)?, effort, at),
        Work::Interruption => interruption(Rig::new(bed, subject, load)?, effort, at),
    }
}

fn repeat<T>(runs: usize, mut run: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    (0..runs).map(|_| run()).collect()
}

fn flood(rig: &Rig<'_>, established: bool, effort: Effort, at: &Place) -> anyhow::Result<Found> {
    rig.verify()?;
    if established {
        rig.establish()?;
    }
    let mut cycles = Vec::new();
    let rates = repeat(effort.runs, || {
        rig.running.count_cycles()?;
        let rate = rig.flood(effort.trial, None)?;
        cycles.extend(rig.running.cycles()?);
        Ok(rate)
    })?;
    let mut found = Found::default();
    found.row(at, Measure::FORWARDED, rates);
    if !cycles.is_empty() {
        found.row(at, Measure::CYCLES, cycles);
    }
    if let Some(bytes) = rig.running.pid().and_then(usage::resident) {
        found.row(at, Measure::MEMORY, vec![bytes as f64]);
    }
    Ok(found)
}

fn only(at: &Place, measure: Measure, runs: Vec<f64>) -> Found {
    let mut found = Found::default();
    found.row(at, measure, runs);
    found
}

/// Offers somewhat more than goes through: far more would mostly show how fast
/// the subject's queue refuses packets.
fn new_flows(
    bed: &Bed,
    subject: &dyn Subject,
    load: Load,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Found> {
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
    let mut repeated = |offered| repeat(effort.runs.min(3), || run(Some(offered), trial));
    let (rates, more) = (repeated(offered)?, repeated(offered * 1.6)?);
    let better = quantile(&more, 0.5) > quantile(&rates, 0.5);
    Ok(only(at, Measure::NEW_FLOWS, if better { more } else { rates }))
}

fn pktgen(bed: &Bed, rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Found> {
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
    Ok(only(at, Measure::FORWARDED, rates))
}

fn ping(bed: &Bed, rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Found> {
    let to = flows::remote_pod(0).into();
    let flood = |duration| ping_flood(&bed.generator, to, 56, duration);
    flood(Duration::from_millis(50)).with_context(|| rig.running.transcript())?;
    let trips = repeat(effort.runs, || Ok(flood(effort.trial)?))?;
    let quantile =
        |share: f64| trips.iter().map(|trips| trips.quantile(share).as_nanos() as f64).collect();
    let [half, most] = Measure::ROUND_TRIP;
    let mut found = only(at, half, quantile(0.5));
    found.row(at, most, quantile(0.99));
    Ok(found)
}

const TCP_PORT: u16 = 5001;

fn tcp(
    bed: &Bed,
    rig: &Rig<'_>,
    offloads: Offloads,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Found> {
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
    let mut found = only(at, Measure::TRANSFER, rates);
    found.row(at, Measure::REQUESTS, requests);
    if iperf::is_installed() {
        match iperf::transfers(from, &bed.sink, to.ip(), effort.transfers()) {
            Ok(rates) => found.row(at, Measure::IPERF, rates),
            Err(error) => found.gap(at, format!("iperf3: {error:#}")),
        }
    }
    Ok(found)
}

fn churn(rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Found> {
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
    let mut found = only(&at.with("quiet"), Measure::FORWARDED, quiet);
    found.row(&at.with("10 changes a second"), Measure::FORWARDED, changed);
    Ok(found)
}

/// The longest time from a packet of a steady stream to the next. Of a stream
/// that nothing is done to as well: what lies below comes from elsewhere.
fn interruption(mut rig: Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Found> {
    rig.verify()?;
    rig.establish()?;
    let runs = effort.searches();
    let mut found = Found::default();
    let quiet = repeat(runs, || rig.interrupted(|_| Ok(())))?;
    found.row(&at.with("undisturbed"), Measure::INTERRUPTION, quiet);
    let mut number = 0;
    let reload = repeat(runs, || {
        number += 1;
        rig.interrupted(|running| running.change(number))
    })?;
    found.row(&at.with("reload"), Measure::INTERRUPTION, reload);
    let at = at.with("restart");
    match repeat(runs, || rig.interrupted(|running| running.restart())) {
        Ok(restart) => found.row(&at, Measure::INTERRUPTION, restart),
        Err(error) if error.is::<Missing>() => found.gap(&at, error),
        Err(error) => return Err(error),
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_have_all_runs_together() {
        for (runs, turns, wanted) in [(6, 3, &[2, 2, 2][..]), (5, 3, &[2, 2, 1]), (1, 3, &[1])] {
            let effort = Effort { runs, turns, ..Effort::FULL };
            let all: Vec<usize> = effort.in_turns().map(|turn| turn.runs).collect();
            assert_eq!(all, wanted);
        }
    }
}
