//! The count that `.ci/test` closes with.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the count says of a log, if cargo ended with this exit code.
fn count(log: &str, status: u8) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/count.awk");
    let mut awk = Command::new("awk")
        .args(["-v", &format!("status={status}"), "-f"])
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    awk.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = awk.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

// The marker is put together here, so that this file's own output has none.
const MARKER: &str = concat!("SKIPPED", ":");

#[test]
fn results_of_all_binaries_are_added_up() {
    let log = "
     Running unittests src/lib.rs (target/debug/deps/a-1)

running 3 tests
test a ... ok
test b ... ignored
test c - should panic ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.00s

   Doc-tests a

running 1 test
test src/lib.rs - a (line 3) ... FAILED

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s
";
    assert_eq!(count(log, 101), "failed: src/lib.rs\n2 passed, 1 failed, 1 skipped\n");
}

#[test]
fn a_test_that_says_so_is_skipped_once_and_a_failed_one_is_not() {
    let log = format!(
        "
     Running unittests src/lib.rs (target/debug/deps/a-1)

running 3 tests
test a ... ok
test b ... ok
test c ... FAILED

successes:

---- b stdout ----
{MARKER} not root
{MARKER} not root, again

failures:

---- c stdout ----
{MARKER} half of it

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s

     Running tests/other.rs (target/debug/deps/other-1)

running 1 test
test b ... ok

---- b stdout ----
{MARKER} another b

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"
    );
    let counted = count(&log, 101);
    let (named, last) = counted.trim_end().rsplit_once('\n').unwrap();
    let expected = format!(
        "skipped: b: {MARKER} not root\nskipped: b: {MARKER} another b\n\
         failed: c\n  {MARKER} half of it"
    );
    assert_eq!(named, expected);
    assert_eq!(last, "1 passed, 1 failed, 2 skipped");
}

#[test]
fn what_did_not_come_to_an_end_has_failed() {
    let killed = "
running 4 tests
test a ... ok
test b ... ignored
error: test failed, to rerun pass `--test b`

Caused by:
  process didn't exit successfully: `b-1` (signal: 6, SIGABRT: process abort signal)

running 2 tests
test a ... ok
";
    assert_eq!(count(killed, 101), "2 passed, 3 failed, 1 skipped\n");
    assert_eq!(count("error: could not compile `a`\n", 101), "0 passed, 1 failed, 0 skipped\n");
    assert_eq!(count("", 0), "0 passed, 0 failed, 0 skipped\n");
}
