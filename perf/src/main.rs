//! Tieline's perf harness.
#![forbid(unsafe_code)]
fn main() {}
