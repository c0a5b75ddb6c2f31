//! `tieline-perf pipeline` as a program.

use std::process::Command;

/// What it prints about 60,000 flows on these pages.
fn pipeline(pages: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tieline-perf"))
        .args(["pipeline", "--case", "encap", "--flows", "60000", "--pages", pages])
        .args(["--runs", "1", "--packets", "100000"])
        .output()
        .expect("tieline-perf runs");
    // 1: a bar was missed, as it may be in a build for tests.
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn small_pages_are_small_for_frames_and_flows() {
    let text = pipeline("small");
    assert!(text.contains("\nencap-ipv6"), "{text}");
    assert!(text.contains(", 0 MiB of it on huge pages"), "{text}");
}
