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
    /// Half the distance between the quartiles of the runs, as a part of the
    /// median.
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

/// The middle value, and half the distance of the quartiles over it.
pub(crate) fn median_and_spread(values: &[f64]) -> (f64, f64) {
    let [low, middle, high] = quartiles(values);
    (middle, (high - low) / 2.0 / middle)
}

/// The values that cut them into four parts of as many.
pub(crate) fn quartiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|part| {
        let place = part * (sorted.len().saturating_sub(1)) as f64;
        sorted.get(place.round() as usize).copied().unwrap_or(f64::NAN)
    })
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
            format!("{:.1}%", row.spread * 100.0),
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
    fn medians_and_spreads() {
        assert_eq!(median_and_spread(&[5.0, 1.0, 4.0, 2.0, 3.0]), (3.0, 1.0 / 3.0));
        assert_eq!(median_and_spread(&[5.0; 7]), (5.0, 0.0));
        assert!(median_and_spread(&[]).0.is_nan());
    }
}
