//! `tieline-perf compare`: what got better or worse beyond the noise.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::outcome::{Results, Row, human};

/// Two files.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The results before.
    before: PathBuf,
    /// The results after.
    after: PathBuf,
    /// Print rows that did not change as well.
    #[arg(long)]
    all: bool,
}

/// Below this part a difference is noise, whatever the spreads say: a median of
/// few runs moves by as much.
const NOISE: f64 = 0.03;

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Better,
    Worse,
    Same,
}

/// Runs the verb. Exit code 1 when anything got worse.
///
/// # Errors
/// A file can't be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let (before, after) = (Results::read(&options.before)?, Results::read(&options.after)?);
    if before.machine.cpu != after.machine.cpu || before.machine.kernel != after.machine.kernel {
        println!("note: the machines differ ({} / {})", before.machine.cpu, after.machine.cpu);
    }
    let mut worse = 0;
    for new in &after.rows {
        let Some(old) = before.of(&new.subject, new) else {
            println!("new     {}", name(new));
            continue;
        };
        let change = compare(old, new);
        worse += usize::from(change == Change::Worse);
        if change != Change::Same || options.all {
            println!("{}", describe(change, old, new));
        }
    }
    for old in before.rows.iter().filter(|old| after.of(&old.subject, old).is_none()) {
        println!("gone    {}", name(old));
    }
    Ok(ExitCode::from(u8::from(worse > 0)))
}

/// A change counts when the middle halves of the runs are apart: a distance of
/// more than both spreads, and more than the noise.
fn compare(old: &Row, new: &Row) -> Change {
    let difference = new.median - old.median;
    let spreads = old.spread * old.median.abs() + new.spread * new.median.abs();
    if difference.abs() <= spreads.max(NOISE * old.median.abs()) {
        return Change::Same;
    }
    if (difference > 0.0) == new.more_is_better { Change::Better } else { Change::Worse }
}

fn name(row: &Row) -> String {
    format!("{}: {}, {}, {}", row.scenario, row.subject, row.case, row.measure)
}

fn describe(change: Change, old: &Row, new: &Row) -> String {
    let word = match change {
        Change::Better => "better",
        Change::Worse => "WORSE",
        Change::Same => "same",
    };
    format!(
        "{word:<7} {}: {} -> {} ({:+.1} %)",
        name(new),
        human(old.median, &old.unit),
        human(new.median, &new.unit),
        (new.median / old.median - 1.0) * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Measure, Place};

    fn row(measure: Measure, runs: &[f64]) -> Row {
        let text = || "x".to_owned();
        let at =
            Place { scenario: text(), subject: text(), case: text(), x: None, options: text() };
        Row::new(&at, measure, runs.to_vec())
    }

    #[test]
    fn only_what_leaves_the_noise_counts() {
        let rate = |runs: &[f64]| row(Measure::FORWARDED, runs);
        let before = rate(&[99.0, 100.0, 101.0]);
        assert_eq!(compare(&before, &rate(&[101.0, 102.0, 103.0])), Change::Same);
        assert_eq!(compare(&before, &rate(&[109.0, 110.0, 111.0])), Change::Better);
        assert_eq!(compare(&before, &rate(&[89.0, 90.0, 91.0])), Change::Worse);
        // A wide spread makes the same difference noise.
        assert_eq!(compare(&before, &rate(&[60.0, 90.0, 120.0])), Change::Same);
        let latency = |ns: f64| row(Measure::LATENCY[2], &[ns; 3]);
        assert_eq!(compare(&latency(100.0), &latency(120.0)), Change::Worse);
    }
}
