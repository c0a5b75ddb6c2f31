//! The demo from outside: its exit code, its JSON, and that nothing is left.
//!
//! Needs root, or a kernel that allows unprivileged user namespaces, but for
//! the last level, which needs neither.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

fn demo(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tieline"))
        .arg("demo")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary under test")
}

/// Namespaces and directories of a demo, which have its process id in their
/// names.
fn left_of(pid: u32) -> Vec<PathBuf> {
    let places = [PathBuf::from("/run/netns"), std::env::temp_dir()];
    let entries = places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let start = format!("tl-demo-{pid}-");
    paths.filter(|path| path.to_string_lossy().contains(&start)).collect()
}

/// Plays the demo with real sockets to its end and checks the account; returns
/// it.
fn play(child: Child) -> serde_json::Value {
    let account = play_scenes(child, 7);
    let cut = lines(&account).find_map(|line| line["figures"]["cut_milliseconds"].as_f64());
    assert!(cut.is_some_and(|cut| cut >= 0.0));
    account
}

fn lines(account: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let scenes = account["scenes"].as_array().into_iter().flatten();
    scenes.filter_map(|scene| scene["lines"].as_array()).flatten()
}

/// Plays the demo to its end and checks what holds at every level.
fn play_scenes(mut child: Child, scenes: usize) -> serde_json::Value {
    let pid = child.id();
    let mut text = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
    let status = child.wait().expect("an exit status");
    let account: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(status.success() && account["ok"] == true, "{account:#}");
    assert_eq!(account["scenes"].as_array().map(Vec::len), Some(scenes));
    assert!(lines(&account).all(|line| line["ok"] == true));
    let denied: Vec<_> = lines(&account).filter(|line| line["verdict"] == "deny").collect();
    assert!(denied.len() >= 10 && denied.iter().all(|line| line["connected"] == false));
    assert_eq!(left_of(pid), Vec::<PathBuf>::new());
    account
}

#[test]
fn every_expectation_holds_and_nothing_is_left() {
    play(demo(&["-o", "json"]));
}

#[test]
fn without_root_it_steps_down() {
    // Nobody may not be able to reach the binary under test.
    let dir = tempfile::tempdir().expect("a directory");
    let binary = dir.path().join("tieline");
    std::fs::copy(env!("CARGO_BIN_EXE_tieline"), &binary).expect("to copy the binary");
    for path in [dir.path(), &binary] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("to open it");
    }
    let mut command = Command::new(binary);
    command.args(["demo", "-o", "json"]).current_dir("/").stdout(Stdio::piped());
    if rustix::process::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let account = play(command.spawn().expect("the binary under test"));
    assert_eq!(account["ground"], "user-namespace");
}

#[test]
fn without_any_namespace_frames_tell_the_story() {
    let account = play_scenes(demo(&["-o", "json", "--ground", "captures"]), 6);
    assert_eq!(account["ground"], "captures");
    let fate = |from: &str, to: &str, port: u16, verdict: &str| {
        let mut lines = lines(&account).filter(|line| line["kind"] == "connection");
        let line = lines.find(|line| {
            line["from"] == from
                && line["to"] == to
                && line["port"] == port
                && line["verdict"] == verdict
        });
        line.map(|line| line["socket"].as_str().unwrap_or_default().to_owned())
    };
    let fates = [
        fate("backend", "postgres", 5432, "no-route"),
        fate("backend", "postgres", 5432, "allow"),
        fate("backend", "postgres", 22, "deny"),
        fate("frontend", "postgres", 5432, "deny"),
    ];
    let expected = [
        "dropped at app-1: no_route",
        "SYN and answer delivered",
        "dropped at app-1: egress_denied",
        "dropped at db-1: ingress_denied",
    ];
    assert_eq!(fates, expected.map(|text| Some(text.to_owned())));
}

#[test]
fn an_interrupt_in_the_middle_leaves_nothing() {
    let mut child = demo(&[]);
    let pid = child.id();
    let begun = Instant::now();
    // Far enough to have namespaces, processes and daemons.
    while left_of(pid).len() < 10 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no namespaces");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    kill_process(Pid::from_child(&child), Signal::INT).expect("to signal a child");
    let status = child.wait().expect("an exit status");
    assert_eq!(status.code(), Some(130));
    assert_eq!(left_of(pid), Vec::<PathBuf>::new());
}
