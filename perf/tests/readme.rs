//! The README's figures are those that are kept in `perf/results`.
//!
//! `TIELINE_WRITE_README=1 cargo test -p tieline-perf --test readme` writes the
//! lines of the measured table anew from the files.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use serde_json::Value;

const BEGIN: &str = "<!-- from perf/results/devices.json -->";
const END: &str = "<!-- end -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn json(name: &str) -> Value {
    let path = root().join("perf/results").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Medians by scenario, case, measure and subject.
struct Devices(Value);

impl Devices {
    fn of(&self, place: [&str; 3], subject: &str) -> f64 {
        let [scenario, case, measure] = place;
        let row = self.0["rows"].as_array().unwrap().iter().find(|row| {
            row["scenario"] == scenario
                && row["case"] == case
                && row["measure"] == measure
                && row["subject"] == subject
        });
        let row = row.unwrap_or_else(|| panic!("no {place:?} of {subject}"));
        row["median"].as_f64().unwrap()
    }

    /// One cell: the figures of the subjects in a unit, with slashes between.
    fn cell(&self, place: [&str; 3], subjects: &[&str], per: f64, digits: usize) -> String {
        let figures: Vec<String> = subjects
            .iter()
            .map(|subject| format!("{:.digits$}", self.of(place, subject) / per))
            .collect();
        figures.join(" / ")
    }
}

/// The lines between the marks.
fn lines(devices: &Devices) -> String {
    let routers = ["kernel", "kernel+ct100", "tieline"];
    let ends = ["kernel", "tieline-node"];
    let mut text = "| what | figure | printed by |\n|---|---|---|\n".to_owned();
    let mut line = |what: &str, figures: String, unit: &str, scenario: &str| {
        text.push_str(&format!("| {what} | {figures} {unit} | `tieline-perf run {scenario}` |\n"));
    };
    let flood = |flows| ["flood", flows, "forwarded"];
    line(
        "64 B over veth, router alone on a CPU, 64 flows: kernel's vxlan / the same with conntrack \
         and 100 rules / Tieline with a policy of 100 rules",
        devices.cell(flood("64 flows"), &routers, 1e6, 2),
        "Mpps",
        "flood",
    );
    line(
        "the same, 64 Ki flows",
        devices.cell(flood("64 Ki flows"), &routers, 1e6, 2),
        "Mpps",
        "flood",
    );
    line(
        "the same, a stream in one direction, which conntrack never takes for established",
        devices.cell(["new-flows", "64 flows, one way", "forwarded"], &routers, 1e6, 2),
        "Mpps",
        "new-flows",
    );
    line(
        "first packets of flows",
        devices.cell(["new-flows", "64 Ki flows", "new flows"], &routers, 1e3, 0),
        "thousand/s",
        "new-flows",
    );
    line(
        "latency at 100 kpps, median: kernel's vxlan / Tieline, polling",
        devices.cell(
            ["rate", "64 flows, 100 kpps", "latency p50"],
            &["kernel", "tieline-busy"],
            1e3,
            1,
        ),
        "us",
        "rate",
    );
    line(
        "the same, p99, on a machine that others used as well",
        devices.cell(
            ["rate", "64 flows, 100 kpps", "latency p99"],
            &["kernel", "tieline-busy"],
            1e3,
            0,
        ),
        "us",
        "rate",
    );
    line(
        "ping between pods, median: kernel's vxlan / Tieline on a node",
        devices.cell(["ping", "56 bytes", "round trip p50"], &ends, 1e3, 0),
        "us",
        "ping",
    );
    let tcp = |case| ["tcp", case, "TCP transfer"];
    line(
        "TCP between pods, no segmentation offload: kernel's vxlan / Tieline on a node",
        devices.cell(tcp("offload off"), &ends, 1e9, 1),
        "Gbit/s",
        "tcp",
    );
    line(
        "the same, with offload in the pods",
        devices.cell(tcp("offload in pods"), &ends, 1e9, 1),
        "Gbit/s",
        "tcp",
    );
    text
}

#[test]
fn figures_over_devices_are_the_kept_ones() {
    let wanted = lines(&Devices(json("devices.json")));
    let path = root().join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the mark before the figures");
    let (found, after) = rest.split_once(END).expect("the mark behind the figures");
    if std::env::var_os("TIELINE_WRITE_README").is_some() {
        fs::write(&path, format!("{before}{BEGIN}\n{wanted}\n{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found.trim(), wanted.trim());
}

/// Figures of one column of the rows that have this value in another.
fn column(rows: &Value, which: (&str, &str), key: &str, digits: usize) -> String {
    let (name, value) = which;
    let rows = rows.as_array().unwrap().iter().filter(|row| row[name] == value);
    let figures: Vec<String> =
        rows.map(|row| format!("{:.digits$}", row[key].as_f64().unwrap())).collect();
    assert!(!figures.is_empty(), "no row of {value}");
    figures.join(" / ")
}

#[track_caller]
fn assert_quoted(all: &[String]) {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for quoted in all {
        assert!(readme.contains(quoted), "README.md has not: {quoted}");
    }
}

#[test]
fn figures_of_the_packet_path_are_the_kept_ones() {
    let rows = json("pipeline.json");
    let of = |case, key, digits| column(&rows, ("case", case), key, digits);
    let small = json("pipeline-small-pages.json");
    assert_quoted(&[
        format!("floors in it were {} clocks", of("floor", "clocks", 0)),
        format!("policies once a second | {} of quiet", of("churn", "base_multiple", 2)),
        format!("encapsulation | {} of without", of("encap-counted", "base_multiple", 2)),
        format!("encapsulation | {} clocks a packet", of("encap", "clocks", 0)),
        format!("decapsulation | {} clocks", of("decap", "clocks", 0)),
        format!("encapsulation {}", of("encap", "floor_multiple", 1)),
        format!("decapsulation {}", of("decap", "floor_multiple", 1)),
        format!(
            "{} clocks: {} M flows/s",
            of("first-packet", "clocks", 0),
            of("first-packet", "mpps", 1)
        ),
        format!(
            "pages of 4 KiB: encapsulation | {} clocks",
            column(&small, ("case", "encap"), "clocks", 0)
        ),
    ]);
}

#[test]
fn figures_of_growing_tables_are_the_kept_ones() {
    let rows = json("scale.json");
    let of = |table, key, digits| column(&rows, ("table", table), key, digits);
    assert_quoted(&[
        format!("one change published | {} ms", of("endpoints", "publish_ms", 3)),
        format!("memory of an endpoint | {} B", of("endpoints", "bytes_per_entry", 0)),
        format!("memory of a flow | {} B", of("flows", "bytes_per_entry", 0)),
    ]);
}
