//! The control plane's program, `tests/kube`, built when it is first asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The program, or `None` where it can't be built, after saying so: the test
/// then ends, and is counted as skipped. The first time takes minutes.
///
/// The environment variable `TIELINE_KUBE` names a program that is there.
///
/// # Panics
/// In CI, where no test is skipped.
pub fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(find) {
        Ok(path) => Some(path),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "no Kubernetes control plane: {why}");
            println!("SKIPPED: no Kubernetes control plane: {why}");
            None
        }
    }
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("TIELINE_KUBE") {
        return Ok(path.into());
    }
    let mut build = Command::new("bash");
    build.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/build"));
    // What it says while it builds is for whoever waits, past the test harness.
    build.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = build.output().map_err(|error| format!("run tests/kube/build: {error}"))?;
    if !output.status.success() {
        return Err(format!("tests/kube/build failed with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}
