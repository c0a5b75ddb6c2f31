//! Tieline's perf harness: measures Tieline and its parts, side by side with
//! what they have to beat.
//!
//! ```text
//! run       plan (scenarios, steps) -> work on a rig -> outcome -> page, bars
//!           rig: bed (namespaces, CPUs, devices) + subject (who routes)
//!                + generator and sink: programs in the kernel, or sockets (stream)
//! route     a subject alone, for `run` on another machine
//! compare   two results
//! report    the page of kept results
//! pipeline  the packet path over frames in memory
//! ```
//!
//! Exit codes: 0 good, 1 a bar was missed or a figure got worse, 2 wrong use or a
//! machine that can't do it. Start reading at [`plan`].

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

mod bars;
mod bed;
mod compare;
mod devices;
mod flows;
mod iperf;
mod machine;
mod outcome;
mod page;
mod pipeline;
mod plan;
mod priority;
mod report;
mod rig;
mod route;
mod run;
mod scale;
mod stream;
mod subject;
mod usage;
mod work;

/// Measures Tieline, side by side with what it has to beat.
#[derive(Debug, Parser)]
#[command(name = "tieline-perf", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Routers side by side over devices; writes a report.
    Run(run::Options),
    /// A router between two devices of this machine, for `run --remote` on
    /// another.
    Route(route::Options),
    /// The scenarios and subjects of `run`.
    List,
    /// What got better or worse from one results.json to another.
    Compare(compare::Options),
    /// Writes the page and the tables of a results.json anew.
    Report {
        /// The results.
        results: PathBuf,
        /// Directory to write to.
        #[arg(long, default_value = "tieline-perf")]
        out: PathBuf,
    },
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

fn report_of(results: &Path, out: &Path) -> anyhow::Result<ExitCode> {
    let results = outcome::Results::read(results)?;
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    page::write(&results, out)?;
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run(options) => run::check_root().and_then(|()| run::run(&options)),
        Verb::Route(options) => run::check_root().and_then(|()| route::run(&options)),
        Verb::List => Ok(run::list()),
        Verb::Compare(options) => compare::run(&options),
        Verb::Report { results, out } => report_of(&results, &out),
        Verb::Pipeline(options) => Ok(pipeline::run(&options)),
        Verb::Scale(options) => Ok(scale::run(&options)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("tieline-perf: {error:#}");
        ExitCode::from(2)
    })
}
