//! `tieline-perf run`: the steps of the chosen scenarios one after the other.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tieline_lab::Closer;

use crate::bars;
use crate::bed::{Bed, Cpus, pin};
use crate::devices::Devices;
use crate::machine::{Machine, load};
use crate::outcome::{About, Gap, Place, Results, Row, SCHEMA};
use crate::page;
use crate::plan::{self, Choice, SCENARIOS, Scenario, Step};
use crate::priority::First;
use crate::stream::Capture;
use crate::subject::Program;
use crate::work::{Effort, measure};

/// What to run and how.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Scenarios, as `list` names them; none: all.
    scenarios: Vec<String>,
    /// Fewer and shorter runs of the scenarios that matter most: under two
    /// minutes for the whole.
    #[arg(long)]
    quick: bool,
    /// Only this subject.
    #[arg(long)]
    only: Vec<String>,
    /// A pcap file of Ethernet frames, for `replay`.
    #[arg(long)]
    capture: Option<PathBuf>,
    /// Runs per figure.
    #[arg(long)]
    runs: Option<usize>,
    /// Seconds of each run and trial.
    #[arg(long)]
    trial: Option<f64>,
    /// Packets lost of a million, at most, for a rate to count as without drops.
    #[arg(long, default_value_t = 10.0)]
    loss: f64,
    /// A device of this machine that the generator sends from, instead of a veth.
    #[arg(long, value_name = "DEV", requires = "sink", requires = "between")]
    generator: Option<String>,
    /// The router's devices, the generator's side first.
    #[arg(
        long,
        value_name = "DEV,DEV",
        value_delimiter = ',',
        requires = "generator",
        group = "between"
    )]
    router: Vec<String>,
    /// The router is on another machine, where `route` has set it up; this is its
    /// name in the report.
    #[arg(long, value_name = "NAME", requires = "generator", group = "between")]
    remote: Option<String>,
    /// The device where packets arrive.
    #[arg(long, value_name = "DEV", requires = "generator")]
    sink: Option<String>,
    /// The daemon's program file; without it the one beside this program.
    #[arg(long)]
    tieline: Option<PathBuf>,
    /// Directory for results.json, report.html and report.md.
    #[arg(long, default_value = "tieline-perf")]
    out: PathBuf,
}

impl Options {
    /// The options that decide what is measured, as words of a command.
    fn to_repeat(&self) -> String {
        let mut words = String::new();
        let mut word = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!(" --{name} {value}")));
        };
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        word("capture", file(&self.capture));
        word("generator", self.generator.clone());
        word("router", (!self.router.is_empty()).then(|| self.router.join(",")));
        word("remote", self.remote.clone());
        word("sink", self.sink.clone());
        words
    }
}

/// Prints what there is.
pub(crate) fn list() -> ExitCode {
    let program = Program::find(None);
    for scenario in &SCENARIOS {
        let quick = if scenario.quick { ", quick" } else { "" };
        let steps =
            Choice { program: &program, quick: false, capture: None, cpus: 1 }.steps(scenario);
        let minutes = plan::seconds(&steps, Effort::FULL) / 60.0;
        println!("{:<13} {} (about {minutes:.0} min{quick})", scenario.name, scenario.about);
        let names: Vec<String> = plan::subjects(&steps).into_iter().map(|s| s.name).collect();
        if !names.is_empty() {
            println!("{:<13} subjects: {}", "", names.join(", "));
        }
    }
    ExitCode::SUCCESS
}

/// Runs the verb.
///
/// # Errors
/// Wrong use, or the machine can't do it at all. What a single subject can't do
/// is in the report.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let chosen = chosen(options)?;
    let cpus = Cpus::choose()?;
    let (generator, sink) = (options.generator.as_deref(), options.sink.as_deref());
    let devices = match generator {
        Some(_) => Some(Arc::new(Devices::new(generator, &options.router, sink)?)),
        None => None,
    };
    let held = Held::new(devices.clone());
    clear_up_on_signals(&held)?;
    pin(cpus.traffic);
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("make {}", options.out.display()))?;
    let program = Program::find(options.tieline.as_deref());
    let capture = options.capture.as_deref().map(Capture::read).transpose()?;
    // As long as the program.
    let capture = capture.map(|capture| &*Box::leak(Box::new(capture)));
    let cpus_alone = cpus.routers();
    let choice = Choice { program: &program, quick: options.quick, capture, cpus: cpus_alone };
    let mut steps: Vec<Step> = chosen.iter().flat_map(|scenario| choice.steps(scenario)).collect();
    if let Some(name) = &options.remote {
        steps = plan::remote(steps, name);
    }
    if !options.only.is_empty() {
        steps.retain(|step| options.only.contains(&step.subject.name()));
    }
    let mut results = begin(cpus, devices.as_deref(), &chosen, &steps);
    let replayed = results.scenarios.iter_mut().find(|scenario| scenario.name == "replay");
    if let (Some(replayed), Some(capture)) = (replayed, choice.capture) {
        replayed.about = format!("{}: {}", replayed.about, capture.about());
    }
    for scenario in &chosen {
        let reason = plan::why_empty(scenario.name, &choice);
        let all = reason.into_iter().chain(plan::why_partly(scenario.name, cpus));
        results.gaps.extend(all.map(|reason| gap(scenario.name, "all", reason)));
    }
    let effort = if options.quick { Effort::QUICK } else { Effort::FULL };
    let trial = options.trial.map(Duration::try_from_secs_f64).transpose().context("--trial")?;
    let effort = Effort {
        runs: options.runs.unwrap_or(effort.runs).max(1),
        trial: trial.unwrap_or(effort.trial).max(Duration::from_millis(10)),
        loss: options.loss.max(0.0) / 1e6,
        ..effort
    };
    // A run without steps has gaps to tell.
    page::write(&results, &options.out)?;
    let mut progress = Progress::new(plan::seconds(&steps, effort), steps.len());
    for step in &steps {
        progress.next(step, effort);
        let at = Place {
            scenario: step.scenario.to_owned(),
            subject: step.subject.name(),
            case: step.case.clone(),
            x: step.x,
            options: options.to_repeat(),
        };
        match take_step(step, effort, cpus, devices.clone(), &held, &at) {
            Ok(rows) => {
                rows.iter().for_each(|row| progress.tell(row));
                results.rows.extend(rows);
            }
            Err(error) => {
                eprintln!("    not measured: {error:#}");
                let name = step.subject.name();
                let reason = format!("{}: {error:#}", step.case);
                results.gaps.push(gap(step.scenario, &name, reason));
            }
        }
        // What was measured stays, whatever becomes of the rest.
        results.machine.load[1] = load();
        results.bars = bars::judge(&results);
        page::write(&results, &options.out)?;
    }
    print!("{}", page::markdown(&results));
    println!("\nwritten: {}", options.out.join("report.html").display());
    let missed = results.bars.iter().any(|bar| !bar.met);
    Ok(ExitCode::from(u8::from(missed)))
}

fn chosen(options: &Options) -> anyhow::Result<Vec<&'static Scenario>> {
    let known = |name: &String| {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.with_context(|| format!("no scenario {name}: `tieline-perf list` names them"))
    };
    if options.scenarios.is_empty() {
        let all = SCENARIOS.iter().filter(|scenario| scenario.quick || !options.quick);
        return Ok(all.collect());
    }
    options.scenarios.iter().map(known).collect()
}

fn begin(cpus: Cpus, devices: Option<&Devices>, chosen: &[&Scenario], steps: &[Step]) -> Results {
    let about = |scenario: &&Scenario| About {
        name: scenario.name.to_owned(),
        about: scenario.about.to_owned(),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    Results {
        schema: SCHEMA,
        command: format!("tieline-perf {}", arguments.join(" ")),
        machine: Machine::read(),
        placement: format!(
            "CPU {} is the router's alone{}; generator, sink and this program are on CPU {}, the \
             sink that polls on CPU {}. Devices: {}. On veth pairs the \
             hand-over to the router (the copy into an AF_XDP socket's memory; for the kernel the \
             making of an skb) is done on the generator's CPU for every subject; the kernel's forwarding is \
             taken to the router's CPU by receive packet steering, and the far end's drop is \
             there as well, for every subject. Our processes and ksoftirqd run with the highest niceness.",
            cpus.router,
            cpus.second.map_or(String::new(), |(router, sender)| format!(
                ", and CPU {router} for one on two, with a second generator on CPU {sender}"
            )),
            cpus.traffic,
            cpus.sink,
            devices.map_or("veth pairs".to_owned(), Devices::about)
        ),
        subjects: plan::subjects(steps),
        scenarios: chosen.iter().map(about).collect(),
        rows: Vec::new(),
        gaps: Vec::new(),
        bars: Vec::new(),
    }
}

fn gap(scenario: &str, subject: &str, reason: String) -> Gap {
    Gap { scenario: scenario.to_owned(), subject: subject.to_owned(), reason }
}

/// What has to be undone, at the end as on a signal.
pub(crate) struct Held(Arc<Mutex<Undo>>);

struct Undo {
    devices: Option<Arc<Devices>>,
    lab: Option<Closer>,
    priorities: Option<First>,
}

impl Held {
    pub(crate) fn new(devices: Option<Arc<Devices>>) -> Self {
        let priorities = Some(First::take());
        Self(Arc::new(Mutex::new(Undo { devices, lab: None, priorities })))
    }

    pub(crate) fn lab(&self, closer: Closer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lab = Some(closer);
    }

    fn undo(held: &Mutex<Undo>) {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        // Before their namespaces go.
        if let Some(devices) = held.devices.take() {
            devices.give_back(true);
        }
        if let Some(closer) = held.lab.take() {
            closer.close();
        }
        held.priorities = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        Self::undo(&self.0);
    }
}

fn take_step(
    step: &Step,
    effort: Effort,
    cpus: Cpus,
    devices: Option<Arc<Devices>>,
    held: &Held,
    at: &Place,
) -> anyhow::Result<Vec<Row>> {
    let bed = Bed::new(cpus, devices, step.subject.cpus())?;
    held.lab(bed.lab.closer());
    measure(&bed, &*step.subject, step.load, step.work, effort, at)
}

/// Undoes everything and ends this program when it is told to end.
pub(crate) fn clear_up_on_signals(held: &Held) -> anyhow::Result<()> {
    let held = held.0.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catch signals")?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        Held::undo(&held);
        eprintln!("ended by signal {signal}; everything is removed");
        std::process::exit(128 + signal);
    });
    Ok(())
}

/// Tells how far it is.
struct Progress {
    started: Instant,
    total: f64,
    done: f64,
    steps: usize,
    step: usize,
}

impl Progress {
    fn new(total: f64, steps: usize) -> Self {
        Self { started: Instant::now(), total, done: 0.0, steps, step: 0 }
    }

    fn next(&mut self, step: &Step, effort: Effort) {
        // What is left goes as fast as what was, once something was.
        let pace =
            if self.done > 10.0 { self.started.elapsed().as_secs_f64() / self.done } else { 1.0 };
        let left = Duration::from_secs_f64((self.total - self.done).max(0.0) * pace);
        self.step += 1;
        self.done += step.work.seconds(effort);
        eprintln!(
            "[{}/{}, {}:{:02} left] {}: {}, {}",
            self.step,
            self.steps,
            left.as_secs() / 60,
            left.as_secs() % 60,
            step.scenario,
            step.subject.name(),
            step.case
        );
    }

    fn tell(&self, row: &Row) {
        let value = crate::outcome::human(row.median, &row.unit);
        eprintln!("    {}: {value} +/- {:.1} %", row.measure, row.spread * 100.0);
    }
}

/// Refuses what would fail later.
pub(crate) fn check_root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("namespaces and XDP programs need root: run it with sudo");
    }
    Ok(())
}
