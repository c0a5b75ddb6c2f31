//! `tieline-perf pipeline`: the packet path over frames in memory, one core.
//!
//! The stages are the ones that the daemon runs: parse, anti-spoof, flow
//! lookup, policy on a miss, route, rewrite, checksum, VXLAN header, counters.
//! How a batch is measured is told in [`mod@bench`], what is in the tables in
//! [`world`], and what nobody can do without in [`floor`].

use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tieline_dataplane::flow::{FlowTable, Tick, Timeouts};
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::xsk::area::AreaError;

use crate::Output;
use crate::report::{Bar, Row, median_and_spread, table};

pub(crate) mod bench;
mod floor;
pub(crate) mod world;

use bench::{Bench, Clock, Direction, Figures};
use world::World;

/// What to measure and how.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// Only cases with as many flows.
    #[arg(long)]
    flows: Option<usize>,
    /// Runs per case; the median is printed.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Packets per run.
    #[arg(long, default_value_t = 2_000_000)]
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

const FEW: usize = 64;
const MANY: usize = 60_000;
const MOST: usize = 1_000_000;

/// Rules per policy unless a case is about them.
const RULES: usize = 100;
/// Known addresses unless a case is about them.
const ENDPOINTS: usize = 10_000;

/// What a case does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// The least that any router does.
    Floor,
    /// Packets of known flows.
    Hit(Direction),
    /// The first packet of every flow.
    First,
    /// The same in a table that many flows have come to and gone from.
    FirstAged,
    /// Known flows, while 100 endpoints and one policy change a second.
    Churn,
}

/// One case, and what it is held to.
struct Case {
    name: &'static str,
    work: Work,
    flows: usize,
    rules: usize,
    v6: bool,
    /// Whether each flow's packets are counted, and all counts read once a second
    /// from another CPU.
    counted: bool,
    /// Clocks, multiple of the floor, multiple of the base.
    bars: [Option<f64>; 3],
    /// The case that this one is a variant of.
    base: Option<(&'static str, usize)>,
    peer: Option<(&'static str, f64)>,
}

const VPP: &str = "VPP 26.10, stateful ACL of 101 rules";
const VPP_DECAP: &str = "VPP 26.10, inner route, no ACL";

/// All cases; the floor of as many flows stands before those that need it.
fn cases() -> Vec<Case> {
    let case = |name, work, flows| Case {
        name,
        work,
        flows,
        rules: RULES,
        v6: false,
        counted: false,
        bars: [None; 3],
        base: None,
        peer: None,
    };
    let encap = Work::Hit(Direction::Encap);
    let decap = Work::Hit(Direction::Decap);
    let bars = |clocks, floor| [Some(clocks), Some(floor), None];
    let base = |at_most| [None, None, Some(at_most)];
    let mut cases = vec![
        case("floor", Work::Floor, FEW),
        case("floor", Work::Floor, MANY),
        case("floor", Work::Floor, MOST),
        Case { bars: bars(80.0, 4.5), peer: Some((VPP, 170.0)), ..case("encap", encap, FEW) },
        Case { bars: bars(100.0, 4.0), peer: Some((VPP, 274.0)), ..case("encap", encap, MANY) },
        Case { bars: bars(160.0, 3.0), peer: Some((VPP, 317.0)), ..case("encap", encap, MOST) },
        Case { peer: Some((VPP_DECAP, 241.0)), ..case("decap", decap, FEW) },
        Case {
            bars: [Some(100.0), None, None],
            peer: Some((VPP_DECAP, 241.0)),
            ..case("decap", decap, MANY)
        },
        Case { bars: [Some(160.0), None, None], ..case("decap", decap, MOST) },
        Case {
            bars: [Some(850.0), None, None],
            peer: Some((VPP, 1200.0)),
            ..case("first-packet", Work::First, MOST)
        },
        Case {
            bars: base(1.1),
            base: Some(("first-packet", MOST)),
            ..case("first-aged", Work::FirstAged, MOST)
        },
        Case {
            v6: true,
            bars: base(1.3),
            base: Some(("encap", MANY)),
            ..case("encap-ipv6", encap, MANY)
        },
        Case {
            v6: true,
            bars: base(1.3),
            base: Some(("decap", MANY)),
            ..case("decap-ipv6", decap, MANY)
        },
        Case { bars: base(1.15), base: Some(("encap", MANY)), ..case("churn", Work::Churn, MANY) },
    ];
    for flows in [FEW, MANY, MOST] {
        for (name, base_name, work) in
            [("encap-counted", "encap", encap), ("decap-counted", "decap", decap)]
        {
            let base = Some((base_name, flows));
            let bars = [None, None, Some(1.1)];
            cases.push(Case { counted: true, bars, base, ..case(name, work, flows) });
        }
    }
    for rules in [10, 100, 1_000, 10_000] {
        let bars = if rules == 10 { [None; 3] } else { base(1.1) };
        let base = (rules != 10).then_some(("first-by-rules", MANY));
        cases.push(Case { rules, bars, base, ..case("first-by-rules", Work::First, MANY) });
    }
    cases
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
    let mut rows: Vec<Row> = Vec::new();
    let (mut left_out, mut most_pages) = (0, bench::pages());
    for case in cases() {
        if case.work != Work::Floor && !case.name.contains(&options.case) {
            continue;
        }
        if options.flows.is_some_and(|flows| flows != case.flows) {
            continue;
        }
        let (runs, pages) = match measure(&case, options, &clock) {
            Ok(measured) => measured,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        };
        most_pages = most_pages.max(pages);
        left_out += runs.iter().map(|figures| figures.left_out).sum::<usize>();
        let row = row(&case, &runs, &rows, &clock);
        if options.output == Output::Text {
            eprintln!("{} {}: {:.1} clocks", row.case, row.flows, row.clocks);
        }
        rows.push(row);
    }
    match options.output {
        Output::Text => {
            print!("{}", table(&rows));
            println!("{}", clock.describe());
            println!("{most_pages}");
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

/// The case's runs, and the memory during them.
fn measure(
    case: &Case,
    options: &Options,
    clock: &Clock,
) -> Result<(Vec<Figures>, bench::MemoryUse), AreaError> {
    let world = World::new(ENDPOINTS, case.rules, case.v6);
    let direction = match case.work {
        Work::Hit(direction) => direction,
        _ => Direction::Encap,
    };
    let mut bench = Bench::new(&world, direction, case.flows, options.batch, clock)?;
    let runs = options.runs.max(1);
    let table = || {
        let table = FlowTable::new(case.flows * 2, Timeouts::default());
        if case.counted { table.counting() } else { table }
    };
    let mut pages = bench::pages();
    let figures = match case.work {
        Work::Floor => {
            let mut floor = floor::Floor::new(case.flows * 2);
            (0..runs)
                .map(|_| bench.run(options.packets, |memory, batch| floor.stage(memory, batch)))
                .collect()
        }
        Work::First => (0..runs)
            .map(|_| {
                let flows = table();
                bench.packets(case.flows, &flows)
            })
            .collect(),
        Work::FirstAged => (0..runs)
            .map(|_| {
                let flows = table();
                bench.age(&flows);
                bench.packets(case.flows, &flows)
            })
            .collect(),
        Work::Hit(_) => {
            let flows = table();
            bench.warm(&flows);
            let mut measure =
                || (0..runs).map(|_| bench.packets(options.packets, &flows)).collect();
            let figures = if case.counted { while_read(&flows, measure) } else { measure() };
            pages = bench::pages();
            figures
        }
        Work::Churn => {
            let flows = table();
            bench.warm(&flows);
            let mut publisher = Publisher::new(world.tables.clone());
            (0..runs).map(|_| bench.churn(options.packets, &flows, &mut publisher)).collect()
        }
    };
    // A drop is cheap: figures with drops in them would flatter.
    assert!(case.work == Work::Floor || bench.dropped == 0, "{}: packets were dropped", case.name);
    Ok((figures, pages))
}

/// Does the work while another thread reads all flows once a second.
fn while_read<T>(flows: &FlowTable, work: impl FnOnce() -> T) -> T {
    let (done, over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let second = Duration::from_secs(1);
            while over.recv_timeout(second) == Err(mpsc::RecvTimeoutError::Timeout) {
                let packets =
                    flows.iter(Tick(0)).flat_map(|flow| flow.traffic).map(|it| it.packets);
                std::hint::black_box(packets.sum::<u64>());
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}

fn row(case: &Case, runs: &[Figures], before: &[Row], clock: &Clock) -> Row {
    let per_run: Vec<f64> = runs.iter().map(|figures| figures.clocks).collect();
    let (clocks, spread) = median_and_spread(&per_run);
    let ns = clocks / clock.per_nanosecond;
    let same = |name: &str, flows: usize| {
        before.iter().find(|row| row.case == name && row.flows == flows).map(|row| row.clocks)
    };
    let floor = same("floor", case.flows).filter(|_| case.work != Work::Floor);
    let base = case.base.and_then(|(name, flows)| same(name, flows));
    let (floor_multiple, base_multiple) =
        (floor.map(|floor| clocks / floor), base.map(|base| clocks / base));
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
