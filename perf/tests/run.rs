//! `tieline-perf run` and `compare` as a user runs them, on short runs: that
//! there are figures, not which.
#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use support::{PROGRAM, is_root, results, run, scratch, turn};

/// What exists of a process's beds.
fn left_behind(pid: u32) -> Vec<PathBuf> {
    let mark = format!("tl-perf-{pid}-");
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let all = entries(Path::new("/run/netns")).chain(entries(&std::env::temp_dir()));
    let ours = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&mark));
    ours.map(|entry| entry.path()).collect()
}

/// Of the kernel's threads for postponed packet work, in the order of their ids.
fn niceness_of_postponed_work() -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let threads = stats.filter(|stat| stat.contains("(ksoftirqd/"));
    let mut all: Vec<(u32, String)> = threads
        .filter_map(|stat| {
            let (head, tail) = stat.rsplit_once(") ")?;
            let pid = head.split(' ').next()?.parse().ok()?;
            Some((pid, tail.split(' ').nth(16)?.to_owned()))
        })
        .collect();
    all.sort();
    all.into_iter().map(|(_, nice)| nice).collect()
}

#[test]
fn a_run_has_figures_a_page_and_no_silent_gap() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let before = niceness_of_postponed_work();
    let out = scratch("run");
    let arguments = ["flood", "--only", "wire", "--only", "kernel", "--only", "tieline"];
    let output = run(&[&arguments[..], &["--tieline", "/nowhere/tieline"]].concat(), &out);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&out);
    let rows = results["rows"].as_array().unwrap();
    let of = |subject: &str| {
        let rows = rows.iter().filter(|row| row["subject"] == subject);
        rows.map(|row| row["median"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (wire, kernel) = (of("wire"), of("kernel"));
    assert_eq!((wire.len(), kernel.len()), (2, 2), "{rows:#?}");
    // Whatever the machine, a router is no faster than the wire.
    assert!(kernel.iter().zip(&wire).all(|(kernel, wire)| *kernel > 0.0 && kernel < wire));
    // What could not be measured is there, with the remedy.
    let gaps = results["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 2, "{gaps:#?}");
    assert!(gaps[0]["reason"].as_str().unwrap().contains("cargo build"), "{gaps:#?}");
    assert_eq!(niceness_of_postponed_work(), before, "priorities are put back");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Not measured"));
    // It opens without a network.
    let links = ["<script", "<link", "<img", "src=", "href="];
    assert!(links.iter().all(|link| !page.contains(link)));
    fs::remove_dir_all(out).unwrap();
}

/// Starts a run, as a shell does in a group of its own, and presses Ctrl-C.
fn interrupt(out: &Path, until: impl Fn(u32) -> bool, wait: Duration) -> ExitStatus {
    // Whoever runs these tests in the background has them ignore Ctrl-C.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", PROGRAM]);
    command.args(["run", "flood", "--only", "kernel", "--runs", "100", "--out"]).arg(out);
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let program = fs::canonicalize(PROGRAM).unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    let begun = || fs::read_link(&exe).is_ok_and(|exe| exe == program);
    while !(begun() && until(child.id())) {
        assert!(started.elapsed() < Duration::from_secs(30), "there is no bed");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(wait);
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(left_behind(child.id()), Vec::<PathBuf>::new(), "{wait:?}, {status}");
    status
}

#[test]
fn a_run_interrupted_at_any_moment_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("interrupted");
    let before = niceness_of_postponed_work();
    // While it starts, before it can have caught anything too.
    for ms in [0, 1, 2, 4, 8, 15, 30, 60, 120] {
        let status = interrupt(&out, |_| true, Duration::from_millis(ms));
        let ended = status.code() == Some(130) || status.signal() == Some(Signal::INT.as_raw());
        assert!(ended, "after {ms} ms: {status}");
        assert_eq!(niceness_of_postponed_work(), before, "after {ms} ms");
    }
    // While the bed is made, from the first of it on, and within its traffic.
    for (parts, ms) in [(1, 0), (1, 2), (2, 0), (2, 3), (3, 0), (4, 0), (4, 20), (4, 1500)] {
        let there = |pid| left_behind(pid).len() >= parts;
        let status = interrupt(&out, there, Duration::from_millis(ms));
        assert_eq!(status.code(), Some(130), "{parts} parts, {ms} ms: {status}");
        assert_eq!(niceness_of_postponed_work(), before, "{parts} parts, {ms} ms");
    }
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn comparing_tells_change_from_noise_by_the_exit_code() {
    let out = scratch("compare");
    fs::create_dir_all(&out).unwrap();
    let file_of = |name: &str, median: f64, runs: usize| {
        let row = serde_json::json!({
            "scenario": "flood", "subject": "kernel", "case": "64 flows", "measure": "forwarded",
            "unit": "packets/s", "more_is_better": true, "x": null, "runs": vec![median; runs],
            "median": median, "spread": 0.01, "repeat": "",
        });
        let machine = serde_json::json!({
            "cpu": "", "cpus": 2, "kernel": "", "time": 0, "mitigations": [], "settings": [],
            "load": [0.0, 0.0], "version": "",
        });
        let all = serde_json::json!({
            "schema": 1, "command": "", "machine": machine, "placement": "", "subjects": [],
            "scenarios": [], "rows": [row], "gaps": [], "bars": [],
        });
        let path = out.join(name);
        fs::write(&path, all.to_string()).unwrap();
        path
    };
    let file = |name: &str, median: f64| file_of(name, median, 3);
    let compare = |before: &Path, after: &Path| {
        let output = Command::new(PROGRAM).arg("compare").args([before, after]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (old, same, worse) = (file("a", 1e6), file("b", 1.01e6), file("c", 0.8e6));
    assert_eq!(compare(&old, &same), (Some(0), String::new()));
    let (code, text) = compare(&old, &worse);
    assert!(code == Some(1) && text.starts_with("WORSE") && text.contains("-20.0 %"), "{text}");
    assert_eq!(compare(&worse, &old).0, Some(0));
    let (code, text) = compare(&old, &file_of("d", 0.8e6, 1));
    assert!(code == Some(0) && text.starts_with("unsure"), "{text}");
    assert_eq!(compare(&old, &out.join("nothing")).0, Some(2));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn wrong_use_is_told() {
    let output = Command::new(PROGRAM).args(["run", "no-such-scenario"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let list = Command::new(PROGRAM).arg("list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for name in ["flood", "rate", "tcp", "sizes"] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}: {list}");
    }
}
