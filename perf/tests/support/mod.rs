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

/// Runs take turns: each changes priorities for a while.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
