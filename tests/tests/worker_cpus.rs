//! Workers are where they are to be, whatever affinity the daemon was started
//! with and whoever moves them. What cpusets and isolated CPUs make of it, the
//! guests show (`guests.rs`).
#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use tieline_tests::joined::{Daemon, Joined, Outer, PATIENCE, Setup};

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// The daemon's first worker.
fn thread(daemon: &Daemon) -> Pid {
    let tasks = format!("/proc/{}/task", daemon.process.pid());
    let mut tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path());
    let worker = tasks.find(|task| fs::read_to_string(task.join("comm")).unwrap() == "tieline-0\n");
    let number = worker.expect("a worker").file_name().unwrap().to_str().unwrap().parse().unwrap();
    Pid::from_raw(number).unwrap()
}

/// The first worker's status once it is as wanted.
fn worker(daemon: &Daemon, as_wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let status = daemon.status().unwrap_or_default();
        if as_wanted(&status["workers"][0]) {
            assert_eq!(status["conditions"], serde_json::json!([]));
            return status["workers"][0].clone();
        }
        assert!(start.elapsed() < PATIENCE, "{status:#}\n{}", daemon.process.transcript());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_worker_taken_off_its_cpu_goes_back() {
    let all = sched_getaffinity(None).unwrap();
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
    let first = cpus.next().unwrap();
    let last = cpus.next_back().expect("this needs two CPUs");
    // The daemon inherits one CPU, and its worker is to be on another.
    sched_setaffinity(None, &only(first)).unwrap();
    let setup = Setup { cpus: Some(last.to_string().leak()), ..Setup::new(Outer::V4) };
    let joined = Joined::new(setup, &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let control = Pid::from_raw(daemon.process.pid() as i32);
    assert_eq!(sched_getaffinity(control).unwrap(), only(first));
    let at_start = worker(&daemon, |worker| worker["cpu"] == last);
    assert_eq!((&at_start["cpu_wanted"], &at_start["pins_lost"]), (&last.into(), &0.into()));

    let thread = Some(thread(&daemon));
    assert_eq!(sched_getaffinity(thread).unwrap(), only(last));
    for (set, lost) in [(all, 1), (only(first), 2)] {
        sched_setaffinity(thread, &set).unwrap();
        let mended = worker(&daemon, |worker| worker["pins_lost"] == lost);
        assert_eq!(mended["cpu"], last);
        assert_eq!(sched_getaffinity(thread).unwrap(), only(last));
    }
    // The log is told once a second.
    let start = Instant::now();
    while !daemon.process.transcript().contains("a worker was taken off its CPU") {
        assert!(start.elapsed() < PATIENCE, "{}", daemon.process.transcript());
        std::thread::sleep(Duration::from_millis(50));
    }
}
