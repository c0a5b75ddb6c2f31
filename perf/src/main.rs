//! Tieline's perf harness: measures the parts of Tieline, side by side with
//! what they have to beat.
//!
//! Exit codes: 0 good, 1 a bar was missed, 2 wrong use.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

mod pipeline;
mod report;
mod scale;

/// Measures the parts of Tieline.
#[derive(Debug, Parser)]
#[command(name = "tieline-perf", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The packet path over frames in memory, one core.
    Pipeline(pipeline::Options),
    /// What the tables cost as they grow: memory, lookups, publication.
    Scale(scale::Options),
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// An aligned table.
    Text,
    /// A JSON array.
    Json,
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Pipeline(options) => pipeline::run(&options),
        Verb::Scale(options) => scale::run(&options),
    }
}
