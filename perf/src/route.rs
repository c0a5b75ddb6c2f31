//! `tieline-perf route`: a subject between two devices of this machine, for a
//! generator and a sink on another.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;

use crate::bed::{Bed, Cpus, pin};
use crate::devices::Devices;
use crate::plan::{self, Choice};
use crate::run::Held;
use crate::subject::{Needs, Program};

/// What routes, and between which devices.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The subject, as `list` names it: `kernel`, `kernel+ct100`, `tieline-node`.
    subject: String,
    /// The generator's side first.
    #[arg(long, value_name = "DEV,DEV", value_delimiter = ',', required = true)]
    router: Vec<String>,
    /// Flows that it must hold.
    #[arg(long, default_value_t = 1 << 20)]
    flows: u32,
    /// The daemon's program file; without it the one beside this program.
    #[arg(long)]
    tieline: Option<PathBuf>,
}

/// Runs the verb: until it is ended by a signal.
///
/// # Errors
/// The subject can't be set up.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let program = Program::find(options.tieline.as_deref());
    let choice = Choice { program: &program, quick: false, capture: None, cpus: 1 };
    let subject = plan::subject(&choice, &options.subject).with_context(|| {
        format!("no subject {}: `tieline-perf list` names them", options.subject)
    })?;
    let cpus = Cpus::choose()?;
    let devices = Arc::new(Devices::new(None, &options.router, None)?);
    let held = Held::new(Some(devices.clone()))?;
    pin(cpus.traffic);
    let bed = Bed::new(held.lab()?, cpus, Some(devices.clone()), 1)?;
    bed.wire_v6()?;
    let running = subject.set_up(&bed, Needs { flows: options.flows, v6: true })?;
    let entry = running.entry();
    ensure!(
        entry.device == "g0",
        "packets for {} are put into {}, which no other machine reaches",
        options.subject,
        entry.device
    );
    println!("{} routes: {}; Ctrl-C ends it", options.subject, devices.about());
    loop {
        std::thread::park();
    }
}
