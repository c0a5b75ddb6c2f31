//! Results: medians, spreads, and how they are printed.

use serde::Serialize;

/// One measured case. Where something rare counts (`churn`), medians are means.
/// This is the stable form of `-o json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Name of the case.
    pub(crate) case: String,
    /// Flows that take part.
    pub(crate) flows: usize,
    /// Known addresses in the tables.
    pub(crate) endpoints: usize,
    /// Rules of each policy.
    pub(crate) rules: usize,
    /// Clocks of the time-stamp counter per packet: median of the runs.
    pub(crate) clocks: f64,
    /// The lower quartile of the runs: what it costs while the machine's other
    /// guests rest.
    pub(crate) clocks_low: f64,
    /// Half the distance between the quartiles of the runs (of fewer than five,
    /// half their range), as a part of the median; null of one run.
    pub(crate) spread: f64,
    /// Nanoseconds per packet.
    pub(crate) ns: f64,
    /// Million packets per second.
    pub(crate) mpps: f64,
    /// What a user would pick instead, as measured on this kind of machine.
    pub(crate) peer: Option<&'static str>,
    /// Its clocks per packet.
    pub(crate) peer_clocks: Option<f64>,
    /// `peer_clocks` over `clocks`: how many times cheaper Tieline is.
    pub(crate) ratio: Option<f64>,
    /// Clocks over those of the floor at as many flows: median of the rounds' ratios.
    pub(crate) floor_multiple: Option<f64>,
    /// The same over those of the case that this one is a variant of.
    pub(crate) base_multiple: Option<f64>,
    /// The bars that hold for the case, and whether it meets them.
    pub(crate) bars: Vec<Bar>,
    /// Sum over all output bytes: the work can't be optimized away.
    pub(crate) checksum: u16,
}

/// A figure that must not be exceeded.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bar {
    /// What is compared: `clocks`, `floor_multiple` or `base_multiple`.
    pub(crate) of: &'static str,
    /// The most that is good.
    pub(crate) at_most: f64,
    /// Whether it holds.
    pub(crate) met: bool,
}

impl Row {
    /// Whether the other one is of the same case.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (&self.case, self.flows) == (&other.case, other.flows)
    }
}

/// Runs from which quartiles say something; of fewer the whole range counts.
pub(crate) const ENOUGH: usize = 5;

/// The value that a part of all stays under, between two of them where it falls
/// there (type 7 of Hyndman and Fan, as most tools have it); NaN of none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = part.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// How far runs are from their middle: half the distance between the quartiles,
/// or half the range of fewer than five runs. One run says nothing of it.
pub(crate) fn half_width(runs: &[f64]) -> Option<f64> {
    let width = |from, to| (quantile(runs, to) - quantile(runs, from)) / 2.0;
    match runs.len() {
        0 | 1 => None,
        2..ENOUGH => Some(width(0.0, 1.0)),
        _ => Some(width(0.25, 0.75)),
    }
}

/// The middle value, and the [`half_width`] over it, which is NaN of one run.
pub(crate) fn median_and_spread(values: &[f64]) -> (f64, f64) {
    let median = quantile(values, 0.5);
    (median, half_width(values).map_or(f64::NAN, |half| half / median))
}

/// A spread as text.
pub(crate) fn percent(spread: f64) -> String {
    if spread.is_finite() { format!("{:.1}%", spread * 100.0) } else { "?".to_owned() }
}

/// The rows as an aligned table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        ["case", "flows", "endpoints", "rules", "clocks", "low", "+/-", "ns", "Mpps"]
            .map(str::to_owned)
            .to_vec(),
    ];
    lines[0].extend(["x floor", "x base", "x peer", "bars"].map(str::to_owned));
    let factor = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        lines.push(vec![
            row.case.clone(),
            row.flows.to_string(),
            row.endpoints.to_string(),
            row.rules.to_string(),
            format!("{:.1}", row.clocks),
            format!("{:.1}", row.clocks_low),
            percent(row.spread),
            format!("{:.1}", row.ns),
            format!("{:.1}", row.mpps),
            factor(row.floor_multiple),
            factor(row.base_multiple),
            row.ratio.map_or("-".to_owned(), |ratio| format!("1/{ratio:.2}")),
            row.bars.iter().map(describe).collect::<Vec<_>>().join(", "),
        ]);
    }
    let columns = lines[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        for (at, cell) in line.iter().enumerate() {
            let width = widths[at];
            // Names to the left, numbers to the right.
            let padded = match at {
                0 => format!("{cell:<width$}"),
                12 => cell.clone(),
                _ => format!("{cell:>width$}"),
            };
            text.push_str(&padded);
            text.push_str(if at + 1 == columns { "\n" } else { "  " });
        }
    }
    text
}

fn describe(bar: &Bar) -> String {
    let what = match bar.of {
        "clocks" => format!("{}", bar.at_most),
        "floor_multiple" => format!("{}x floor", bar.at_most),
        _ => format!("{}x base", bar.at_most),
    };
    format!("{} {what}", if bar.met { "met" } else { "MISSED" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_of_few_runs_are_not_rounded_away() {
        assert!(median_and_spread(&[]).0.is_nan());
        let (median, spread) = median_and_spread(&[7.0]);
        assert!(median == 7.0 && spread.is_nan(), "{median} {spread}");
        for (runs, median, spread) in [
            (&[1.0, 3.0][..], 2.0, 0.5),
            (&[13312.0, 17301504.0, 17301504.0], 17301504.0, 17288192.0 / 2.0 / 17301504.0),
            (&[4.0, 1.0, 2.0, 3.0], 2.5, 0.6),
            (&[5.0, 1.0, 4.0, 2.0, 3.0], 3.0, 1.0 / 3.0),
            (&[1.0, 2.0, 3.0, 4.0, 5.0, 60.0], 3.5, 2.5 / 2.0 / 3.5),
            (&[5.0; 7], 5.0, 0.0),
        ] {
            assert_eq!(median_and_spread(runs), (median, spread), "{runs:?}");
        }
        assert_eq!([half_width(&[9.0]), half_width(&[9.0, 9.0])], [None, Some(0.0)]);
    }

    #[test]
    fn quantiles_are_between_the_values() {
        let runs = [10.0, 20.0, 40.0];
        let parts = [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0].map(|part| quantile(&runs, part));
        assert_eq!(parts, [10.0, 10.0, 15.0, 20.0, 30.0, 40.0, 40.0]);
    }
}
