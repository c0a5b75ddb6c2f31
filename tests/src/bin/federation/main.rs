//! Figures of federation, against real Kubernetes API servers:
//!
//! ```text
//! cargo run --release -p tieline-tests --bin federation [-- PODS]
//! ```
//!
//! One node with a daemon; its cluster and three remote ones, PODS pods in all
//! (50,000), each a real etcd and kube-apiserver. One pod of the first remote is
//! real and on a node whose tunnel end is the kernel's vxlan device: packets to
//! it show when a change is in force. Prints one line a figure. Nothing runs
//! here but this, so everything, the API servers too, shares one machine.
#![forbid(unsafe_code)]

mod setup;
mod stream;

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tieline_tests::kube::program;

use setup::Setup;
use stream::{Stream, UnixNanos};

/// How many changes of a label.
const CHANGES: usize = 200;
/// How many pods a minute are replaced in each of the three remotes, and for how
/// many seconds.
const CHURN: [(&str, &str); 2] = [("--per-minute", "334"), ("--seconds", "30")];
/// How long is looked for requests.
const IDLE: Duration = Duration::from_secs(30);

fn main() {
    let pods = std::env::args().nth(1).map_or(50_000, |pods| pods.parse().expect("a number"));
    let Some(program) = program() else { std::process::exit(1) };
    let setup = Setup::new(program, pods);
    println!("{pods} pods in 3 remote clusters on real API servers");

    let begun = Instant::now();
    let daemon = setup.start("first");
    let synced = setup.wait(&daemon, begun, in_sync);
    let routed = setup.wait(&daemon, begun, |status| in_sync(status) && setup.routed(status));
    print("start to InSync of all", ms(synced));
    print("start to routes in place", ms(routed));
    drop(daemon);

    setup.leave();
    let daemon = setup.start("second");
    setup.wait(&daemon, Instant::now(), |status| status["ready"] == true);
    sleep(Duration::from_secs(2));
    let before = resident(daemon.process.pid());
    let begun = Instant::now();
    setup.join();
    let synced = setup.wait(&daemon, begun, in_sync);
    let routed = setup.wait(&daemon, begun, |status| in_sync(status) && setup.routed(status));
    print("RemoteClusterConfigurations written to InSync of all", ms(synced));
    print("the same to routes in place", ms(routed));
    sleep(Duration::from_secs(2));
    let grown = resident(daemon.process.pid()).saturating_sub(before);
    print("resident without remotes", format!("{} MiB", before >> 20));
    print("resident for each endpoint of a remote", format!("{} B", grown / pods));

    labels(&setup);
    churn(&setup);
    idle(&setup);
}

fn print(what: &str, figure: impl std::fmt::Display) {
    println!("{what:<56} {figure}");
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn in_sync(status: &Value) -> bool {
    let remotes = status["clusters"]["remotes"].as_object();
    remotes.is_some_and(|remotes| {
        remotes.len() == 3 && remotes.values().all(|remote| remote["state"] == "InSync")
    })
}

/// Bytes of a process that are in memory.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// A pod's label goes to and fro between one that a policy allows and one that
/// it does not; packets to the pod every half millisecond show since when.
fn labels(setup: &Setup) {
    let stream = Stream::start(setup, Duration::from_micros(500));
    let times = CHANGES.to_string();
    let pod = setup.server();
    let args = ["--namespace", &pod.namespace, "--name", &pod.name, "--times", &times];
    let changes = setup.remotes[0].bulk("toggle", &args, Duration::from_secs(300));
    let arrivals = stream.end().arrivals;
    let (mut whole, mut own) = (Vec::new(), Vec::new());
    let all = changes.as_array().unwrap();
    for (at, change) in all.iter().enumerate() {
        let time = |key: &str| change[key].as_i64().unwrap() as UnixNanos;
        let until = all.get(at + 1).map_or(UnixNanos::MAX, |next| next["sent"].as_i64().unwrap());
        let mut within = arrivals.iter().filter(|at| **at > time("sent") && **at < until);
        // A cut shows by its last packet, an admission by its first.
        let closed = change["value"] == "closed";
        let shown = if closed { within.next_back() } else { within.next() };
        let shown = match shown {
            Some(at) => *at,
            // Cut before the next packet was due.
            None if closed => time("sent"),
            None => panic!("the pod was never reached after {change}"),
        };
        if !closed || shown + 100_000_000 < until {
            whole.push(shown - time("sent"));
            own.push(shown - time("seen"));
        } else {
            panic!("the pod was reached all the while after {change}");
        }
    }
    print("label written at the remote API to first packet", spread(whole));
    print("of which after a plain watch was told, too", spread(own));
}

fn spread(mut nanos: Vec<UnixNanos>) -> String {
    nanos.sort_unstable();
    let quantile = |share: f64| nanos[((nanos.len() - 1) as f64 * share).round() as usize];
    let ms = |nanos: UnixNanos| nanos as f64 / 1e6;
    let (median, high) = (ms(quantile(0.5)), ms(quantile(0.99)));
    format!("median {median:.1} ms, p99 {high:.1} ms ({} changes)", nanos.len())
}

/// Pods of the remotes come and go beside a steady stream.
fn churn(setup: &Setup) {
    let stream = Stream::start(setup, Duration::from_micros(500));
    let flags: Vec<&str> = CHURN.iter().flat_map(|(flag, value)| [*flag, *value]).collect();
    let replaced: i64 = std::thread::scope(|scope| {
        let all: Vec<_> = (0..3)
            .map(|at| {
                let flags = &flags;
                scope.spawn(move || setup.bulk(at, "churn", flags))
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()["replaced"].as_i64().unwrap()).sum()
    });
    let report = stream.end();
    let lost = report.sent - report.arrivals.len();
    print(
        "packets lost while pods come and go",
        format!("{lost} of {} ({replaced} pods in 30 s)", report.sent),
    );
}

/// What the API servers are asked while nothing happens.
fn idle(setup: &Setup) {
    sleep(Duration::from_secs(5));
    let asked = setup.requests(IDLE);
    let figure = format!("{asked} segments with content in {} s", IDLE.as_secs());
    print("sent to the four API servers while idle", figure);
}
