//! `tieline-perf scale`: what the tables cost as they grow.
//!
//! The endpoint table with its routes and VTEPs, and the flow table, are filled
//! to several sizes. Measured are memory per entry, time to fill, a lookup, and
//! for the endpoints the publication of one change, workers' side included.
//! Entries are looked up in an order that no prefetcher guesses.
//!
//! Next to each lookup stands what the memory alone costs at that size: one line
//! touched at a random place among as many bytes. A lookup may grow with that,
//! and with nothing else.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use tieline_dataplane::addr::Addr;
use tieline_dataplane::flow::{FlowState, FlowTable, FlowTuple, Tick, Timeouts, Traffic};
use tieline_dataplane::hint;
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::{RuleId, Snapshot, VtepId};
use tieline_dataplane::wire::Vni;
use tieline_dataplane::wire::packet::Packet;

use crate::Output;
use crate::pipeline::bench::{Clock, pages, publish_change};
use crate::pipeline::world::{World, remote_pod};
use crate::report::median_and_spread;

/// What to fill.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Numbers of entries.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    entries: Vec<usize>,
    /// How to print the result.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Rules of each policy.
const RULES: usize = 100;

/// Changes that are published one by one.
const CHANGES: usize = 200;

/// Lookups per run, and runs.
const LOOKUPS: usize = 1_000_000;
const RUNS: usize = 5;

/// The most that one change may take of control's time among any number of
/// endpoints, in milliseconds.
const PUBLISH_BAR_MS: f64 = 1.0;

/// One table of one size. This is the stable form of `-o json`.
#[derive(Debug, Serialize)]
struct Row {
    /// `endpoints` or `flows`.
    table: &'static str,
    /// Endpoints, or flows, in the table.
    entries: usize,
    /// Bytes of memory for each of them.
    bytes_per_entry: f64,
    /// Nanoseconds for each of them to fill the table.
    fill_ns_per_entry: f64,
    /// Clocks of the time-stamp counter per lookup.
    lookup_clocks: f64,
    /// Clocks to touch one line at a random place among as many bytes.
    line_clocks: f64,
    /// Milliseconds to change one entry and publish it: the middle one, and the
    /// longest.
    publish_ms: Option<f64>,
    publish_longest_ms: Option<f64>,
}

/// Runs the verb.
pub(crate) fn run(options: &Options) -> ExitCode {
    let clock = Clock::calibrate();
    let mut rows = Vec::new();
    // Kept, so that no table lies in memory that another one has given back.
    let mut kept = Vec::new();
    for entries in options.entries.iter().map(|entries| (*entries).max(1)) {
        let (row, publisher) = endpoints(entries, &clock);
        rows.push(row);
        kept.push(publisher);
    }
    rows.extend(options.entries.iter().map(|entries| flows((*entries).max(1), &clock)));
    match options.output {
        Output::Text => {
            print(&rows);
            println!("{}", clock.describe());
        }
        Output::Json => match serde_json::to_string_pretty(&rows) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("can't print the result: {error}");
                return ExitCode::from(2);
            }
        },
    }
    let missed = rows.iter().any(|row| row.publish_ms.is_some_and(|ms| ms > PUBLISH_BAR_MS));
    ExitCode::from(u8::from(missed))
}

fn endpoints(entries: usize, clock: &Clock) -> (Row, Publisher<Snapshot>) {
    let (before, begun) = (pages().bytes(), Instant::now());
    let world = World::new(entries, RULES, false);
    let fill_ns = begun.elapsed().as_nanos() as f64;
    let bytes = pages().bytes().saturating_sub(before) as usize;
    let tables = world.tables;
    let lookup_clocks = per_lookup(entries, clock, |at| {
        let addr = remote_pod(at, false);
        black_box(tables.endpoints.class(addr));
    });
    let mut publisher = Publisher::new(tables);
    // What control pays while a worker follows, who gives the old tables back.
    let mut reader = publisher.reader();
    let mut took: Vec<f64> = (1..=CHANGES)
        .map(|number| {
            let begun = Instant::now();
            publish_change(&mut publisher, number, None);
            let took = begun.elapsed();
            reader.refresh();
            took.as_secs_f64() * 1e3
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let row = Row {
        table: "endpoints",
        entries,
        bytes_per_entry: bytes as f64 / entries as f64,
        fill_ns_per_entry: fill_ns / entries as f64,
        lookup_clocks,
        line_clocks: line_clocks(bytes, clock),
        publish_ms: Some(took[CHANGES / 2]),
        publish_longest_ms: Some(took[CHANGES - 1]),
    };
    (row, publisher)
}

fn flows(entries: usize, clock: &Clock) -> Row {
    let table = FlowTable::new(2 * entries, Timeouts::default());
    let tuples: Vec<FlowTuple> = (0..entries).map(|number| tuple(&table, number)).collect();
    let begun = Instant::now();
    let inserted = tuples
        .iter()
        .filter(|tuple| table.insert(tuple, &STATE, Traffic::default(), Tick(0)).is_ok());
    assert_eq!(inserted.count(), entries, "flows were refused");
    let fill_ns = begun.elapsed().as_nanos() as f64;
    Row {
        table: "flows",
        entries,
        bytes_per_entry: table.bytes() as f64 / entries as f64,
        fill_ns_per_entry: fill_ns / entries as f64,
        lookup_clocks: per_lookup(entries, clock, |at| {
            let flow = tuple(&table, at);
            black_box(table.find(&flow, Tick(0)).is_ok());
        }),
        line_clocks: line_clocks(table.bytes(), clock),
        publish_ms: None,
        publish_longest_ms: None,
    }
}

const STATE: FlowState = FlowState {
    allow: true,
    from_low: true,
    low_is_local: true,
    replied: false,
    established: false,
    fin_initiator: false,
    fin_responder: false,
    reset: false,
    vtep: VtepId(0),
    rule: RuleId(0),
    generation: 1,
};

/// The name of a flow of its own for each number.
fn tuple(table: &FlowTable, number: usize) -> FlowTuple {
    let packet = Packet {
        src: Addr::from_v4_bytes([10, 0, 0, 1]),
        dst: Addr::from_v4_bytes((0x0a80_0000 | (number >> 8) as u32).to_be_bytes()),
        protocol: 17,
        source_port: number as u16 & 0xff,
        destination_port: 443,
        ..Packet::default()
    };
    FlowTuple::of(&packet, Vni::default(), table.hasher())
}

/// Clocks per call of `lookup`, which is told which entry to look up: the median
/// of several runs.
fn per_lookup(entries: usize, clock: &Clock, mut lookup: impl FnMut(usize)) -> f64 {
    let mut next = 0u64;
    let runs: Vec<f64> = (0..RUNS)
        .map(|_| {
            clock.measure(|| {
                for _ in 0..LOOKUPS {
                    next += 1;
                    // A step coprime to any number of entries visits them all.
                    lookup((next * 2_654_435_761 % entries as u64) as usize);
                }
            }) as f64
                / LOOKUPS as f64
        })
        .collect();
    median_and_spread(&runs).0
}

/// Clocks to touch a line at a random place among so many bytes.
fn line_clocks(bytes: usize, clock: &Clock) -> f64 {
    let lines: Vec<[u64; 8]> = vec![[1; 8]; (bytes / 64).max(1)];
    hint::prefer_huge_pages(&lines);
    let mut sum = 0;
    let clocks = per_lookup(lines.len(), clock, |at| sum += lines[at][0]);
    black_box(sum);
    clocks
}

fn print(rows: &[Row]) {
    println!(
        "{:<10} {:>9} {:>12} {:>13} {:>14} {:>12} {:>12} {:>12}",
        "table",
        "entries",
        "bytes/entry",
        "fill ns/entry",
        "lookup clocks",
        "line clocks",
        "publish ms",
        "longest ms"
    );
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    for row in rows {
        println!(
            "{:<10} {:>9} {:>12.0} {:>13.0} {:>14.1} {:>12.1} {:>12} {:>12}",
            row.table,
            row.entries,
            row.bytes_per_entry,
            row.fill_ns_per_entry,
            row.lookup_clocks,
            row.line_clocks,
            ms(row.publish_ms),
            ms(row.publish_longest_ms)
        );
    }
}
