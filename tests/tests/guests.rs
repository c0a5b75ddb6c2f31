//! The daemon under other kernels: the oldest that is supported, the newest,
//! and one in between. Each runs as a guest (`tieline_tests::guest`).
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tieline_tests::guest::{self, Console};
use tieline_tests::joined;

/// A guest takes half a minute on a machine with little else to do.
const WITHIN: Duration = Duration::from_secs(170);

/// What guest kernels warn of that is no fault of the daemon.
const EXPLAINED: [&str; 4] = [
    // The emulated card has one pair of queues, so the driver has none to spare
    // that XDP programs could send from; ours only hands frames to sockets.
    "XDP_TX and XDP_REDIRECT will operate in a slower locked tx mode",
    // The emulator is slow, and waits for a busy machine.
    "hrtimer: interrupt took",
    "clocksource: ",
    "perf: interrupt took too long",
];

/// 6.1, whose virtio driver has XDP but nothing of AF_XDP: zero copy is refused
/// (EOPNOTSUPP), and the mode in which the kernel copies takes over.
#[test]
fn oldest_supported_kernel() {
    passes_packets("6.1", "AF_XDP native copy");
}

/// 6.12, whose virtio driver does not offer zero copy either: refused in the
/// same way.
#[test]
fn kernel_in_between() {
    passes_packets("6.12", "AF_XDP native copy");
}

/// The newest, whose virtio driver does zero copy, as network cards do.
#[test]
fn newest_kernel() {
    passes_packets("newest", "AF_XDP native zero copy");
}

/// The daemon in mode "auto" ends in `mode` on the underlay, and passes packets
/// both ways, with the kernel's vxlan device at the other end.
fn passes_packets(series: &str, mode: &str) {
    let Some(console) = run(series) else { return };
    let all = console.text();
    let report = console.after("GUEST").next().unwrap_or_else(|| panic!("no report:\n{all}"));
    let report: Value =
        serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}:\n{all}"));
    let (kernel, status) = (report["kernel"].as_str().unwrap(), &report["status"]);
    println!(
        "kernel {kernel}: {}, generated {}",
        status["underlay"][0]["mode"], report["generated"]
    );
    assert!(series == "newest" || kernel.starts_with(&format!("{series}.")), "{kernel}");

    assert_eq!(status["underlay"][0]["mode"], mode, "{all}");
    // A veth never does zero copy.
    assert_eq!(status["gateway"]["mode"], "AF_XDP native copy", "{all}");

    // Both ways in both families, over an underlay that loses nothing and over
    // one that does.
    for run in ["tcp", "lossy"] {
        let connections = report[run].as_array().unwrap();
        let seen: Vec<_> = connections.iter().map(|connection| &connection["outcome"]).collect();
        assert_eq!(seen, ["Connected"; 4], "{run}:\n{all}");
    }
    frames_are_accounted_for(status, &all);
    workers_are_where_they_may_be(&report, &all);
    memory_is_on_large_pages(series, status, &all);
    for (way, generated) in
        ["decapsulated", "encapsulated"].iter().zip(report["generated"].as_array().unwrap())
    {
        let counted = &generated[format!("{way}_or_dropped")];
        assert_eq!(&generated["sent"], counted, "{way}:\n{all}");
    }
    // What was sent on the card came out of the card at the other end.
    let up = &report["generated"][1];
    assert_eq!(up["encapsulated"], up["arrived"], "{all}");
    assert_eq!(report["exit_code"], 0, "{all}");
}

/// What the stages have passed on, the ports have sent; none was refused.
fn frames_are_accounted_for(status: &Value, all: &str) {
    let worker = &status["workers"][0];
    for (port, stage) in [("underlay_port", "encapsulated"), ("gateway_port", "decapsulated")] {
        let passed = &status["counters"][format!("{stage}_packets")];
        assert_ne!(passed, 0, "{port}:\n{all}");
        assert_eq!(&worker[port]["sent"], passed, "{port}:\n{all}");
        assert_eq!(worker[port]["send_failed"], 0, "{port}:\n{all}");
    }
}

/// An isolated CPU can be used by naming it. A cpuset that leaves it out moves
/// the worker, which is reported, and goes back when the cpuset lets it.
fn workers_are_where_they_may_be(report: &Value, all: &str) {
    assert_eq!(report["isolated"], "1", "{all}");
    assert_eq!(report["status"]["workers"][0]["cpu"], 1, "{all}");
    let there = json!({"cpu": 1, "wanted": 1, "conditions": []});
    let elsewhere = json!({"cpu": 0, "wanted": null, "conditions": ["workers.cpus"]});
    assert_eq!(report["cpus"], json!([there, elsewhere, there]), "{all}");
}

/// The oldest kernel has no pages set aside, but makes some.
fn settings(series: &str) -> &'static str {
    if series == "6.1" { "isolcpus=1" } else { "isolcpus=1 hugepages=24" }
}

/// Frames and flow table are on 2 MiB pages, of those set aside if there are any.
fn memory_is_on_large_pages(series: &str, status: &Value, all: &str) {
    let kind = if series == "6.1" { "2 MiB transparent" } else { "2 MiB reserved" };
    let (frames, huge) = (&status["workers"][0]["pages"], |what: &Value| what.as_u64().unwrap());
    assert_eq!(frames, kind, "{all}");
    // 65,536 places of 64 bytes.
    assert!(huge(&status["tables"]["flow_huge_bytes"]) >= 4 << 20, "{all}");
    assert!(huge(&status["memory"]["huge_bytes"]) >= 12 << 20, "{all}");
}

/// Boots a guest and waits for its end. `None` when none can be run here.
fn run(series: &str) -> Option<Console> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let kernels = temporary.with_file_name("guests");
    let scratch = tempfile::tempdir_in(temporary).unwrap();
    let outcome = guest::fetch(&kernels).and_then(|()| {
        let program = Path::new(env!("CARGO_BIN_EXE_guest"));
        let (folder, tieline) = (kernels.join(series), joined::tieline());
        guest::run(&folder, settings(series), program, tieline, scratch.path(), WITHIN)
    });
    let console = match outcome {
        Ok(console) => console,
        Err(fault) => {
            assert!(std::env::var_os("CI").is_none(), "no guest can be run: {fault}");
            println!("SKIPPED: guests: {fault}");
            return None;
        }
    };
    let all = console.text();
    assert!(console.ended, "the guest did not end within {WITHIN:?}:\n{all}");
    assert_eq!(console.after("GUEST-FAULT").count(), 0, "{all}");
    assert_eq!(console.after("GUEST-EXIT").collect::<Vec<_>>(), ["0"], "{all}");
    let explained = |line: &&str| EXPLAINED.iter().any(|words| line.contains(words));
    let mut unexplained = console.kernel_warnings();
    unexplained.retain(|line| !explained(line));
    assert!(unexplained.is_empty(), "the kernel warns: {unexplained:#?}\n{all}");
    Some(console)
}
