//! `tieline-perf pipeline`: the packet path over frames in memory, one core.
//!
//! The stages are the ones that the daemon runs: parse, anti-spoof, flow
//! lookup, policy on a miss, route, rewrite, checksum, VXLAN header, counters.
//! How a batch is measured is told in [`mod@bench`], how runs alternate in
//! [`rounds`], what is in the tables in [`world`], and what nobody can do without
//! in [`floor`].

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::Output;
use crate::report::{Bar, Row, median_and_spread, quantile, table};

pub(crate) mod bench;
mod cases;
mod floor;
mod rounds;
pub(crate) mod world;

use bench::{Clock, Figures};
use cases::{Case, ENDPOINTS, Work};
use rounds::Amount;

/// What to measure and how.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// Only cases with as many flows.
    #[arg(long)]
    flows: Option<usize>,
    /// Rounds, in each of which every case does a run; medians are printed.
    #[arg(long, default_value_t = 41)]
    runs: usize,
    /// Packets per run.
    #[arg(long, default_value_t = 300_000)]
    packets: usize,
    /// Packets per batch.
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// The pages that large memory lies on.
    #[arg(long, value_enum, default_value_t = Pages::Huge)]
    pages: Pages,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<usize>,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Pages that memory lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pages {
    /// 2 MiB, where the kernel has them.
    Huge,
    /// 4 KiB for everything.
    Small,
}

/// The C library's setting by which it asks for huge pages; read when a process
/// starts.
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// Starts this program anew with huge pages, unless that has been done. Returns
/// only where it can't.
fn restart_on_huge_pages() {
    let set = std::env::var_os(TUNABLES.0).is_some_and(|value| value == TUNABLES.1);
    let Ok(program) = std::env::current_exe() else { return };
    if !set {
        let mut command = std::process::Command::new(program);
        let error = command.args(std::env::args_os().skip(1)).env(TUNABLES.0, TUNABLES.1).exec();
        eprintln!("can't ask for huge pages: {error}");
    }
}

/// Runs the verb.
pub(crate) fn run(options: &Options) -> ExitCode {
    match options.pages {
        Pages::Huge => restart_on_huge_pages(),
        Pages::Small => {
            // For the whole process: frames and flow table ask for huge pages.
            if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
                eprintln!("can't do without huge pages: {error}");
                return ExitCode::from(2);
            }
        }
    }
    if let Some(cpu) = options.cpu
        && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
    {
        eprintln!(
            "can't run on CPU {cpu}: choose one that this process may use (see `taskset -p`)"
        );
        return ExitCode::from(2);
    }
    let clock = Clock::calibrate();
    let amount = Amount { rounds: options.runs, packets: options.packets, batch: options.batch };
    let cases = wanted(options);
    let mut rows: Vec<Row> = Vec::new();
    let (mut left_out, mut most_pages) = (0, bench::pages());
    for group in rounds::groups(&cases) {
        let (runs, pages) = match rounds::measure(&group, amount, &clock) {
            Ok(measured) => measured,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        most_pages = most_pages.max(pages);
        left_out += runs.iter().flatten().map(|figures| figures.left_out).sum::<usize>();
        for row in rows_of(&group, &runs, &clock) {
            if rows.iter().any(|before| row.case == "floor" && before.is_of(&row)) {
                continue;
            }
            if options.output == Output::Text {
                eprintln!("{} {}: {:.1} clocks", row.case, row.flows, row.clocks);
            }
            rows.push(row);
        }
    }
    match options.output {
        Output::Text => {
            print!("{}", table(&rows));
            println!("{}", clock.describe());
            println!("{most_pages}");
            println!(
                "cases take turns in {} rounds; `x floor` and `x base` are medians of the ratios \
                 within a round, `low` is the lower quartile",
                options.runs
            );
            println!(
                "batches of {}; {left_out} batches during which the CPU was taken away are left out",
                options.batch
            );
        }
        Output::Json => match serde_json::to_string_pretty(&rows) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("can't print the result: {error}");
                return ExitCode::from(2);
            }
        },
    }
    let missed = rows.iter().any(|row| row.bars.iter().any(|bar| !bar.met));
    ExitCode::from(u8::from(missed))
}

/// What is asked for, and what that is told in terms of.
fn wanted(options: &Options) -> Vec<Case> {
    let mut cases = cases::cases();
    cases.retain(|case| options.flows.is_none_or(|flows| flows == case.flows));
    let is_asked_for = |case: &Case| case.name.contains(&options.case);
    let bases: Vec<_> = cases.iter().filter(|case| is_asked_for(case)).map(|it| it.base).collect();
    cases.retain(|case| {
        case.work == Work::Floor || is_asked_for(case) || bases.contains(&Some(case.name))
    });
    cases
}

/// A row for each case of a group.
fn rows_of(group: &[&Case], runs: &[Vec<Figures>], clock: &Clock) -> Vec<Row> {
    let clocks: Vec<Vec<f64>> =
        runs.iter().map(|runs| runs.iter().map(|figures| figures.clocks).collect()).collect();
    let row = |at: usize| {
        let case = group[at];
        let place = |name| group.iter().position(|other| other.name == name);
        let floor = place("floor").filter(|_| case.work != Work::Floor);
        let multiple = |of: Option<usize>| of.map(|of| multiple(case, &clocks[at], &clocks[of]));
        let multiples = [multiple(floor), multiple(case.base.and_then(place))];
        row(case, &runs[at], &clocks[at], multiples, clock)
    };
    (0..group.len()).map(row).collect()
}

/// What the case costs in terms of another: the middle one of the rounds' ratios.
fn multiple(case: &Case, clocks: &[f64], of: &[f64]) -> f64 {
    if case.work == Work::Churn {
        return mean(clocks) / mean(of);
    }
    let ratios: Vec<f64> = clocks.iter().zip(of).map(|(clocks, of)| clocks / of).collect();
    median_and_spread(&ratios).0
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn row(
    case: &Case,
    runs: &[Figures],
    clocks: &[f64],
    [floor_multiple, base_multiple]: [Option<f64>; 2],
    clock: &Clock,
) -> Row {
    let (median, spread) = median_and_spread(clocks);
    let clocks_low = quantile(clocks, 0.25);
    // What happens once a second is in few of the runs, but it counts.
    let clocks = if case.work == Work::Churn { mean(clocks) } else { median };
    let ns = clocks / clock.per_nanosecond;
    let values = [Some(clocks), floor_multiple, base_multiple];
    let names = ["clocks", "floor_multiple", "base_multiple"];
    let bars = names
        .into_iter()
        .zip(values)
        .zip(case.bars)
        .filter_map(|((of, value), at_most)| {
            let (value, at_most) = (value?, at_most?);
            Some(Bar { of, at_most, met: value <= at_most })
        })
        .collect();
    Row {
        case: case.name.to_owned(),
        flows: case.flows,
        endpoints: ENDPOINTS,
        rules: case.rules,
        clocks,
        clocks_low,
        spread,
        ns,
        mpps: 1000.0 / ns,
        peer: case.peer.map(|(name, _)| name),
        peer_clocks: case.peer.map(|(_, clocks)| clocks),
        ratio: case.peer.map(|(_, peer)| peer / clocks),
        floor_multiple,
        base_multiple,
        bars,
        checksum: runs.iter().fold(0, |sum, figures| sum ^ figures.checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str) -> Case {
        cases::cases().into_iter().find(|case| case.name == name).unwrap()
    }

    #[test]
    fn a_phase_of_the_machine_is_in_both_sides_of_a_ratio() {
        let base = [10.0, 10.0, 14.0, 14.0, 14.0];
        let variant = base.map(|clocks| clocks * 1.2);
        assert!((multiple(&case("encap-ipv6"), &variant, &base) - 1.2).abs() < 1e-9);
    }

    #[test]
    fn what_is_rare_in_churn_counts() {
        let (base, churn) = ([10.0; 5], [10.0, 10.0, 10.0, 10.0, 20.0]);
        assert!((multiple(&case("encap-ipv6"), &churn, &base) - 1.0).abs() < 1e-9);
        assert!((multiple(&case("churn"), &churn, &base) - 1.2).abs() < 1e-9);
    }

    #[test]
    fn a_case_is_in_one_group_with_its_floor_and_its_base() {
        let cases = cases::cases();
        let groups = rounds::groups(&cases);
        for case in &cases {
            let is_in = |group: &&Vec<&Case>| group.iter().any(|other| std::ptr::eq(*other, case));
            let of: Vec<_> = groups.iter().filter(is_in).collect();
            assert!(!of.is_empty(), "{}", case.name);
            assert!(case.work == Work::Floor || of.len() == 1, "{}", case.name);
            for group in of {
                assert_eq!((group[0].name, group[0].flows), ("floor", case.flows));
                let has = |base| group.iter().any(|other| other.name == base);
                assert!(case.base.is_none_or(has), "{}", case.name);
            }
        }
    }
}
