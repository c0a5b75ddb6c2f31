//! `tieline-perf compare`: what got better or worse beyond the noise.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::outcome::{Results, Row, human};
use crate::report::{ENOUGH, half_width, quantile};

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
    /// Apart, but one side has one run only, which may have been any.
    Unsure,
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

/// A change counts when the medians are apart by more than the noise, and so are
/// the runs: their middle halves, or all of them where there are few.
fn compare(old: &Row, new: &Row) -> Change {
    let difference = new.median - old.median;
    if difference.abs() <= NOISE * old.median.abs() {
        return Change::Same;
    }
    let (Some(before), Some(after)) = (half_width(&old.runs), half_width(&new.runs)) else {
        return Change::Unsure;
    };
    if difference.abs() <= before + after || overlap(old, new) {
        return Change::Same;
    }
    if (difference > 0.0) == new.more_is_better { Change::Better } else { Change::Worse }
}

/// Whether some runs of either side are within the other's, of which one has too
/// few for quartiles.
fn overlap(old: &Row, new: &Row) -> bool {
    let few = old.runs.len().min(new.runs.len()) < ENOUGH;
    let ends = |row: &Row| [0.0, 1.0].map(|part| quantile(&row.runs, part));
    let ([least, most], [low, high]) = (ends(old), ends(new));
    few && low <= most && least <= high
}

fn name(row: &Row) -> String {
    format!("{}: {}, {}, {}", row.scenario, row.subject, row.case, row.measure)
}

fn describe(change: Change, old: &Row, new: &Row) -> String {
    let word = match change {
        Change::Better => "better",
        Change::Worse => "WORSE",
        Change::Same => "same",
        Change::Unsure => "unsure",
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
        // Two that agree and one that does not are no certainty.
        assert_eq!(compare(&rate(&[60.0, 100.0, 100.0]), &rate(&[80.0; 3])), Change::Same);
        // Of enough, the ends may be anywhere.
        let many = |base: f64| rate(&[base - 40.0, base - 1.0, base, base + 1.0, base + 40.0]);
        assert_eq!(compare(&many(100.0), &many(110.0)), Change::Better);
        // One run may have been any.
        for (one, other) in [(1, 3), (3, 1), (1, 1)] {
            let (one, other) = (vec![100.0; one], vec![50.0; other]);
            assert_eq!(compare(&rate(&one), &rate(&other)), Change::Unsure);
        }
        assert_eq!(compare(&rate(&[100.0]), &rate(&[101.0])), Change::Same);
        let latency = |ns: f64| row(Measure::LATENCY[2], &[ns; 3]);
        assert_eq!(compare(&latency(100.0), &latency(120.0)), Change::Worse);
    }
}
