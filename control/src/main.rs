//! The `tieline` command.
#![forbid(unsafe_code)]
fn main() {}
