//! Running the program as a user does.

// Each test file takes what it needs.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tieline-perf");

/// A directory of the test's own.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

/// Whether namespaces can be made here. In CI nothing is skipped.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: no root");
        println!("SKIPPED: tieline-perf run: needs root");
    }
    root
}

pub(crate) fn run(arguments: &[&str], out: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("run").args(arguments).args(["--quick", "--runs", "1", "--out"]).arg(out);
    command.output().unwrap()
}

pub(crate) fn results(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap()
}

/// What a run could not measure, apart from CPU time that short runs can't tell.
pub(crate) fn gaps(results: &Value) -> Vec<&str> {
    let gaps = results["gaps"].as_array().unwrap().iter();
    let reasons = gaps.map(|gap| gap["reason"].as_str().unwrap());
    reasons.filter(|reason| !reason.contains("CPU time")).collect()
}

/// The daemon's program: the one that the environment variable `TIELINE` names,
/// else it is built with the profile that this code was built with.
pub(crate) fn tieline() -> PathBuf {
    if let Some(path) = std::env::var_os("TIELINE") {
        return path.into();
    }
    let directory = Path::new(PROGRAM).parent().unwrap();
    let profile = directory.file_name().and_then(|name| name.to_str()).unwrap();
    let profile = if profile == "debug" { "dev" } else { profile };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--offline", "-p", "tieline", "--bin", "tieline"]);
    build.args(["--profile", profile]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would make crates whose build scripts
    // look at it be built anew, here and next time.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            build.env_remove(name);
        }
    }
    build.env_remove("CARGO_MANIFEST_DIR");
    assert!(build.status().unwrap().success(), "the daemon is built");
    directory.join("tieline")
}

/// Runs take turns: each changes priorities for a while.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
