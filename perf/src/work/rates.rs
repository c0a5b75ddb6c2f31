//! Work at fixed rates: what goes through without drops, how late it is, and
//! what it costs.

use std::time::Duration;

use anyhow::Context;

use crate::outcome::{Found, Measure, Place, human};
use crate::report::quantile;
use crate::rig::{Paced, Rig, Trial};
use crate::stream::{Shape, StreamRig};

use super::{Effort, repeat};

/// Seconds of CPU time in ticks, below which their steps and the chance with
/// which they hit would be most of the figure.
const ENOUGH_TICKS: f64 = 0.2;
const PARTIAL_LOSS: f64 = 0.005;
/// Packets per second at which subjects are compared at the same load, and CPU
/// time is counted.
const COMMON_RATE: f64 = 100_000.0;
pub(super) const IDLE_RATE: f64 = 1000.0;

pub(super) fn rate(rig: &Rig<'_>, effort: Effort, at: &Place) -> anyhow::Result<Found> {
    rig.verify()?;
    rig.establish()?;
    let most = rig.flood(effort.trial, None)? * 1.2;
    let runs = effort.searches();
    let search = |loss| repeat(runs, || search(rig, most, loss, effort));
    let (without, partly) = (search(effort.loss)?, search(PARTIAL_LOSS)?);
    let no_drop = quantile(&without, 0.5);
    let mut found = Found::default();
    found.row(at, Measure::NO_DROP, without);
    found.row(at, Measure::PARTIAL_DROP, partly);
    let part = |percent: f64, counted| {
        let place = at.with(&format!("{percent:.0} % of the no-drop rate"));
        (no_drop * percent / 100.0, counted, place)
    };
    let fixed = [(IDLE_RATE, false, "idle"), (COMMON_RATE, true, "100 kpps")];
    let fixed = fixed.map(|(rate, counted, words)| (rate, counted, at.with(words)));
    for (rate, counted, at) in
        fixed.into_iter().chain([part(10.0, false), part(50.0, true), part(90.0, false)])
    {
        // Without a rate there are no parts of it.
        if rate < 1.0 {
            found.gap(&at, "no rate goes through without drops");
            continue;
        }
        let trials = repeat(runs, || steady(rig, rate, effort.length(rate, counted)))?;
        latencies(&mut found, &trials, &at);
        if counted && rig.running.is_here() {
            cpu(&mut found, &trials, &at);
        }
    }
    Ok(found)
}

/// CPU time per packet, if enough of it was counted to tell.
fn cpu(found: &mut Found, trials: &[Trial], at: &Place) {
    let all: f64 = trials.iter().map(|trial| trial.cpu.seconds).sum();
    if trials.iter().any(|trial| !trial.cpu.exact) && all < ENOUGH_TICKS {
        let why = format!(
            "{}: {:.0} ms were used, which the kernel counts in steps of 10 ms: too little to tell, \
             longer runs do",
            Measure::CPU.name,
            all * 1e3
        );
        return found.gap(at, why);
    }
    let each = |trial: &Trial| trial.cpu.seconds * 1e9 / trial.seen.received.max(1) as f64;
    found.row(at, Measure::CPU, trials.iter().map(each).collect());
}

/// Sends a rate, whether or not it is too much, and counts what arrives.
pub(super) fn offered(
    rig: &Rig<'_>,
    rate: f64,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Found> {
    rig.verify()?;
    rig.establish()?;
    let trials = repeat(effort.runs, || steady(rig, rate, effort.trial))?;
    let mut found = Found::default();
    // A generator that falls behind for good is late with nearly all of them.
    let keeps_up = |trial: &&Trial| trial.sent.late * 2 <= trial.sent.packets;
    let kept: Vec<&Trial> = trials.iter().filter(keeps_up).collect();
    if let Some(trial) = trials.first().filter(|_| kept.is_empty()) {
        let seconds = (trial.sent.elapsed + trial.sent.latest).as_secs_f64();
        let reached = human(trial.sent.packets as f64 / seconds, "packets/s");
        let why = format!(
            "the generator reaches {reached}: what hands packets to the router is done on its CPU"
        );
        found.gap(at, why);
        return Ok(found);
    }
    let per_second = |trial: &Trial| trial.seen.received as f64 / trial.sent.elapsed.as_secs_f64();
    found.row(at, Measure::ARRIVED, trials.iter().map(per_second).collect());
    let [lost, ..] = Measure::FAULTS;
    found.row(at, lost, kept.iter().map(|trial| trial.loss().max(0.0) * 1e6).collect());
    Ok(found)
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

/// A trial during which the generator kept its times, if one of some is.
fn steady(rig: &dyn Paced, rate: f64, length: Duration) -> anyhow::Result<Trial> {
    let mut best: Option<Trial> = None;
    let tries = if length > Duration::from_secs(1) { 2 } else { 5 };
    for _ in 0..tries {
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

fn latencies(found: &mut Found, trials: &[Trial], at: &Place) {
    let seen = || trials.iter().map(|trial| &trial.seen).filter(|seen| seen.received > 0);
    let of = |share: f64| {
        seen().filter_map(|seen| seen.quantile_ns(share)).map(|ns| ns as f64).collect()
    };
    let [p50, p90, p99, p999, max] = Measure::LATENCY;
    for (measure, share) in [(p50, 0.5), (p90, 0.9), (p99, 0.99), (p999, 0.999)] {
        found.row(at, measure, of(share));
    }
    found.row(at, max, seen().map(|seen| seen.longest_ns as f64).collect());
}

/// Packets per second at which kinds of traffic are compared.
const STREAM_RATE: f64 = 50_000.0;

pub(super) fn stream(
    rig: &StreamRig<'_>,
    shape: Shape,
    effort: Effort,
    at: &Place,
) -> anyhow::Result<Found> {
    rig.verify()?;
    let runs = effort.searches();
    // Somewhat above the first rate that is too much.
    let mut most = STREAM_RATE;
    while most < 1e7 && steady_loss(rig, most, effort.trial, PARTIAL_LOSS)? {
        most *= 1.6;
    }
    let rates = repeat(runs, || search(rig, most, effort.loss, effort))?;
    let half = quantile(&rates, 0.5) / 2.0;
    let mut found = Found::default();
    found.row(at, Measure::NO_DROP, rates);
    let (words, rate) = match shape {
        Shape::Replay(capture) => ("at its own rate".to_owned(), capture.rate),
        _ => (format!("{} kpps", STREAM_RATE / 1e3), STREAM_RATE),
    };
    let half = (half, "50 % of the no-drop rate", false);
    for (rate, words, counted) in [(rate, words.as_str(), true), half] {
        let at = at.with(words);
        if rate < 1.0 {
            found.gap(&at, "no rate goes through without drops");
            continue;
        }
        let trials = repeat(runs, || steady(rig, rate, effort.length(rate, counted)))?;
        latencies(&mut found, &trials, &at);
        faults(&mut found, &trials, &at);
        // The wire has no router whose time it would be.
        if counted && rig.running.in_tunnel() && rig.running.is_here() {
            cpu(&mut found, &trials, &at);
        }
    }
    Ok(found)
}

/// What became of packets on the way, of a million that were sent.
fn faults(found: &mut Found, trials: &[Trial], at: &Place) {
    let mut add = |measure, count: &dyn Fn(&Trial) -> u64| {
        let part = |trial: &Trial| count(trial) as f64 * 1e6 / trial.sent.packets.max(1) as f64;
        found.row(at, measure, trials.iter().map(part).collect());
    };
    let [lost, reordered, duplicated, damaged] = Measure::FAULTS;
    add(lost, &|trial| trial.sent.packets.saturating_sub(trial.seen.received));
    add(reordered, &|trial| trial.seen.reordered);
    add(duplicated, &|trial| trial.seen.duplicated);
    add(damaged, &|trial| trial.seen.corrupt);
}
