//! Results as data: what `results.json` holds, and what everything that is shown
//! is made from. The stable form; `schema` changes when it does.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::report::{half_width, quantile};

/// The form of this file. Form 1, which this reads, had nothing that is
/// null but `x`.
pub(crate) const SCHEMA: u32 = 2;
/// The subject that others are compared with.
pub(crate) const BASELINE: &str = "kernel";

/// One invocation of `tieline-perf run`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Results {
    pub(crate) schema: u32,
    /// The command line.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// What ran on which CPU.
    pub(crate) placement: String,
    /// What each end of a link left to the other, and in which cases.
    #[serde(default)]
    pub(crate) offloads: Vec<About>,
    pub(crate) subjects: Vec<About>,
    pub(crate) scenarios: Vec<About>,
    pub(crate) rows: Vec<Row>,
    /// What could not be measured, and why.
    pub(crate) gaps: Vec<Gap>,
    pub(crate) bars: Vec<Bar>,
}

/// A name and what it stands for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) about: String,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) subject: String,
    /// What of the scenario it is: `64 flows`, `1450 bytes`.
    pub(crate) case: String,
    /// What was measured: `forwarded`, `latency p99`.
    pub(crate) measure: String,
    /// `packets/s`, `ns`, `bit/s`, `bytes`, `s`.
    pub(crate) unit: String,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// The number that a sweep is over.
    pub(crate) x: Option<f64>,
    /// All runs in their order.
    pub(crate) runs: Vec<f64>,
    pub(crate) median: f64,
    /// Half the distance between the quartiles (of fewer than five runs, half
    /// their range), as a part of the median; null where the runs can't tell: of
    /// one, or around 0.
    pub(crate) spread: Option<f64>,
    /// Repeats this line alone.
    pub(crate) repeat: String,
}

/// What could not be measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Gap {
    pub(crate) scenario: String,
    pub(crate) subject: String,
    pub(crate) reason: String,
}

/// What Tieline is held to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Bar {
    pub(crate) what: String,
    /// The ratio that was measured; null if it was not.
    pub(crate) ratio: Option<f64>,
    pub(crate) wanted: f64,
    /// Whether the ratio must be at least that, or at most.
    pub(crate) at_least: bool,
    pub(crate) met: Option<bool>,
}

/// A measure's name, unit and direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
}

impl Measure {
    const fn new(name: &'static str, unit: &'static str, more_is_better: bool) -> Self {
        Self { name, unit, more_is_better }
    }

    pub(crate) const FORWARDED: Self = Self::new("forwarded", "packets/s", true);
    pub(crate) const NEW_FLOWS: Self = Self::new("new flows", "flows/s", true);
    pub(crate) const NO_DROP: Self = Self::new("no-drop rate", "packets/s", true);
    pub(crate) const PARTIAL_DROP: Self = Self::new("0.5 % drop rate", "packets/s", true);
    pub(crate) const LATENCY: [Self; 5] = [
        Self::new("latency p50", "ns", false),
        Self::new("latency p90", "ns", false),
        Self::new("latency p99", "ns", false),
        Self::new("latency p99.9", "ns", false),
        Self::new("latency max", "ns", false),
    ];
    pub(crate) const FAULTS: [Self; 4] = [
        Self::new("lost", "of a million", false),
        Self::new("reordered", "of a million", false),
        Self::new("duplicated", "of a million", false),
        Self::new("damaged", "of a million", false),
    ];
    pub(crate) const ARRIVED: Self = Self::new("arrived", "packets/s", true);
    pub(crate) const CPU: Self = Self::new("CPU time", "ns/packet", false);
    pub(crate) const CYCLES: Self = Self::new("own count of cycles", "cycles/packet", false);
    pub(crate) const MEMORY: Self = Self::new("resident memory", "bytes", false);
    pub(crate) const ROUND_TRIP: [Self; 2] =
        [Self::new("round trip p50", "ns", false), Self::new("round trip p99", "ns", false)];
    pub(crate) const TRANSFER: Self = Self::new("TCP transfer", "bit/s", true);
    pub(crate) const IPERF: Self = Self::new("TCP transfer by iperf3", "bit/s", true);
    pub(crate) const REQUESTS: Self = Self::new("TCP requests", "requests/s", true);
    pub(crate) const INTERRUPTION: Self = Self::new("interruption", "s", false);
}

impl Row {
    /// A row from its runs.
    pub(crate) fn new(at: &Place, measure: Measure, runs: Vec<f64>) -> Self {
        let mut row = Self {
            scenario: at.scenario.clone(),
            subject: at.subject.clone(),
            case: at.case.clone(),
            measure: measure.name.to_owned(),
            unit: measure.unit.to_owned(),
            more_is_better: measure.more_is_better,
            x: at.x,
            runs: Vec::new(),
            median: f64::NAN,
            spread: None,
            repeat: format!("tieline-perf run {} --only {}{}", at.scenario, at.subject, at.options),
        };
        row.add(runs);
        row
    }

    /// Takes in more runs of the same.
    fn add(&mut self, runs: Vec<f64>) {
        self.runs.extend(runs);
        self.median = quantile(&self.runs, 0.5);
        let part = |half| if half == 0.0 { 0.0 } else { half / self.median };
        self.spread = half_width(&self.runs).map(part).filter(|spread| spread.is_finite());
    }

    /// The range of all runs, and the probability that the median of many more
    /// is within: that it is not below or above all of them, whatever they are
    /// spread like. `None` of one run.
    pub(crate) fn range(&self) -> Option<([f64; 2], f64)> {
        let count = i32::try_from(self.runs.len()).ok().filter(|count| *count > 1)?;
        let ends = [0.0, 1.0].map(|part| quantile(&self.runs, part));
        Some((ends, 1.0 - 0.5f64.powi(count - 1)))
    }

    /// The spread for people.
    pub(crate) fn spread_text(&self) -> String {
        self.spread.map_or("?".to_owned(), |spread| format!("{:.1} %", spread * 100.0))
    }

    /// Number of runs, their range, and how sure it is of the median.
    pub(crate) fn range_text(&self) -> String {
        let Some(([least, most], sure)) = self.range() else { return "one run".to_owned() };
        let [least, most] = [least, most].map(|end| human(end, &self.unit));
        let ends = if least == most { least } else { format!("{least} to {most}") };
        format!("{} runs, {ends} ({:.0} %)", self.runs.len(), sure * 100.0)
    }

    /// Whether another row is about the same, maybe of another subject.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.scenario == other.scenario && self.case == other.case && self.measure == other.measure
    }
}

/// Where in a run a figure belongs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) scenario: String,
    pub(crate) subject: String,
    pub(crate) case: String,
    pub(crate) x: Option<f64>,
    /// What else a command takes to repeat it, with a space before each word.
    pub(crate) options: String,
}

/// What a piece of work has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) rows: Vec<Row>,
    pub(crate) gaps: Vec<Gap>,
}

impl Found {
    /// A figure from its runs, or a gap where there is none.
    pub(crate) fn row(&mut self, at: &Place, measure: Measure, runs: Vec<f64>) {
        if runs.is_empty() || runs.iter().any(|run| !run.is_finite()) {
            return self.gap(at, format!("{}: no packet arrived to tell it by", measure.name));
        }
        self.rows.push(Row::new(at, measure, runs));
    }

    /// What could not be measured of a case.
    pub(crate) fn gap(&mut self, at: &Place, why: impl fmt::Display) {
        self.gaps.push(at.gap(why));
    }
}

impl Place {
    /// A part of the case, with more words for it.
    pub(crate) fn with(&self, words: &str) -> Self {
        Self { case: format!("{}, {words}", self.case), ..self.clone() }
    }

    /// A gap of the case.
    pub(crate) fn gap(&self, why: impl fmt::Display) -> Gap {
        let Self { scenario, subject, case, .. } = self;
        let (scenario, subject) = (scenario.clone(), subject.clone());
        Gap { scenario, subject, reason: format!("{case}: {why}") }
    }
}

impl Results {
    /// Takes in what a turn has found: more runs of what is there, or new rows.
    pub(crate) fn add(&mut self, found: Found) {
        for row in found.rows {
            let like = |known: &&mut Row| known.subject == row.subject && known.is_like(&row);
            match self.rows.iter_mut().find(like) {
                Some(known) => known.add(row.runs),
                None => self.rows.push(row),
            }
        }
        for gap in found.gaps {
            if !self.gaps.contains(&gap) {
                self.gaps.push(gap);
            }
        }
    }

    /// The row of a subject like another row.
    pub(crate) fn of(&self, subject: &str, like: &Row) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == subject && row.is_like(like))
    }

    /// The row of a scenario, subject, case and measure.
    pub(crate) fn find(
        &self,
        scenario: &str,
        subject: &str,
        case: &str,
        measure: &str,
    ) -> Option<&Row> {
        self.rows.iter().find(|row| {
            row.scenario == scenario
                && row.subject == subject
                && row.case == case
                && row.measure == measure
        })
    }

    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let results: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} holds no results", path.display()))?;
        anyhow::ensure!(
            (1..=SCHEMA).contains(&results.schema),
            "{} has form {}, this program knows those up to {SCHEMA}",
            path.display(),
            results.schema
        );
        Ok(results)
    }
}

/// A number with its unit, short enough to read.
pub(crate) fn human(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let step = steps.iter().find(|(least, _)| value.abs() >= *least).or(steps.last());
        let (least, name) = step.copied().unwrap_or((1.0, ""));
        let number = value / least;
        let digits = if number.abs() >= 100.0 {
            0
        } else if number.abs() >= 10.0 {
            1
        } else {
            2
        };
        format!("{number:.digits$} {name}")
    };
    let si = |unit: &str| {
        let text = scaled(&[(1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]);
        format!(
            "{}{unit}",
            text.trim_end_matches(' ').to_owned() + if text.ends_with(' ') { " " } else { "" }
        )
    };
    match unit {
        "packets/s" => si("pps"),
        "ns/packet" => human(value, "ns") + "/packet",
        "ns" => scaled(&[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")]),
        "s" => scaled(&[(1.0, "s"), (1e-3, "ms"), (1e-6, "us")]),
        "bytes" => {
            scaled(&[(1073741824.0, "GiB"), (1048576.0, "MiB"), (1024.0, "KiB"), (1.0, "B")])
        }
        "of a million" | "cycles/packet" => format!("{value:.0} {unit}"),
        other => si(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(runs: &[f64]) -> Row {
        let text = || "x".to_owned();
        let at =
            Place { scenario: text(), subject: text(), case: text(), x: None, options: text() };
        Row::new(&at, Measure::NO_DROP, runs.to_vec())
    }

    #[test]
    fn a_row_says_how_sure_it_is() {
        assert_eq!((row(&[5.0]).spread, row(&[5.0]).range()), (None, None));
        assert_eq!((row(&[0.0; 3]).spread, row(&[0.0, 0.0, 5.0]).spread), (Some(0.0), None));
        assert_eq!(row(&[3e3, 1e3, 2e3]).range(), Some(([1e3, 3e3], 0.75)));
        assert_eq!(row(&[3e3, 1e3, 2e3]).range_text(), "3 runs, 1.00 kpps to 3.00 kpps (75 %)");
        assert_eq!(row(&[1.0; 6]).range().map(|(_, sure)| sure > 0.95), Some(true));
        assert_eq!(row(&[1e3]).range_text(), "one run");
        // What is written can be read, without a spread too.
        let text = serde_json::to_string(&row(&[5.0])).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row(&[5.0]));
    }

    #[test]
    fn turns_add_to_what_is_there() {
        let found = |runs: &[f64]| Found {
            rows: vec![row(runs)],
            gaps: vec![Gap { scenario: "x".into(), subject: "x".into(), reason: "y".into() }],
        };
        let mut results = Results::default();
        results.add(found(&[3.0, 1.0]));
        results.add(found(&[8.0]));
        assert_eq!((results.rows.len(), results.gaps.len()), (1, 1));
        assert_eq!(results.rows, [row(&[3.0, 1.0, 8.0])]);
        let other = Row { subject: "z".into(), ..row(&[1.0]) };
        results.add(Found { rows: vec![other], gaps: Vec::new() });
        assert_eq!(results.rows.len(), 2);
    }

    #[test]
    fn numbers_are_short_and_have_units() {
        for (value, unit, text) in [
            (886_000.0, "packets/s", "886 kpps"),
            (1_234_567.0, "packets/s", "1.23 Mpps"),
            (12_345.0, "ns", "12.3 us"),
            (0.0123, "s", "12.3 ms"),
            (5e9, "bit/s", "5.00 Gbit/s"),
            (2_097_152.0, "bytes", "2.00 MiB"),
            (950.0, "ns/packet", "950 ns/packet"),
            (43_000.0, "ns/packet", "43.0 us/packet"),
            (12.4, "of a million", "12 of a million"),
            (1234.5, "cycles/packet", "1234 cycles/packet"),
            (0.0, "s", "0.00 us"),
        ] {
            assert_eq!(human(value, unit), text);
        }
    }
}
