//! `tieline-perf run`: the steps of the chosen scenarios, those of one case in turns.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tieline_lab::{Closer, Lab};

use crate::bars;
use crate::bed::{Bed, Cpus, pin};
use crate::devices::Devices;
use crate::machine::{Machine, load};
use crate::outcome::{About, Found, Gap, Results, SCHEMA};
use crate::page;
use crate::plan::{self, Choice, SCENARIOS, Scenario, Step};
use crate::priority::First;
use crate::stream::Capture;
use crate::subject::Program;
use crate::work::{Effort, Work, measure};

/// Packets of a million.
const LOSS: f64 = 10.0;

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
    #[arg(long, default_value_t = LOSS)]
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
    /// One case of each kind, as short as can be: to see whether it works.
    #[arg(long, hide = true)]
    shortest: bool,
    /// Directory for results.json, report.html and report.md.
    #[arg(long, default_value = "tieline-perf")]
    out: PathBuf,
}

impl Options {
    /// The options that decide what is measured, and how, as words of a command.
    fn to_repeat(&self) -> String {
        let mut words = String::new();
        let mut word = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!(" --{name} {}", quoted(&value))));
        };
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        word("runs", self.runs.map(|runs| runs.to_string()));
        word("trial", self.trial.map(|trial| trial.to_string()));
        word("loss", (self.loss != LOSS).then(|| self.loss.to_string()));
        word("tieline", file(&self.tieline));
        word("capture", file(&self.capture));
        word("generator", self.generator.clone());
        word("router", (!self.router.is_empty()).then(|| self.router.join(",")));
        word("remote", self.remote.clone());
        word("sink", self.sink.clone());
        for (name, on) in [("quick", self.quick), ("shortest", self.shortest)] {
            words.extend(on.then(|| format!(" --{name}")));
        }
        words
    }

    fn effort(&self) -> anyhow::Result<Effort> {
        let effort = match (self.shortest, self.quick) {
            (true, _) => Effort::SHORTEST,
            (_, true) => Effort::QUICK,
            _ => Effort::FULL,
        };
        let trial = self.trial.map(Duration::try_from_secs_f64).transpose().context("--trial")?;
        Ok(Effort {
            runs: self.runs.unwrap_or(effort.runs).max(1),
            trial: trial.unwrap_or(effort.trial).max(Duration::from_millis(10)),
            loss: self.loss.max(0.0) / 1e6,
            ..effort
        })
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./,:+=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
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
    let held = Held::new(devices.clone())?;
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
    if options.shortest {
        steps = plan::one_of_a_kind(steps);
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
    let effort = options.effort()?;
    // A run without steps has gaps to tell.
    page::write(&results, &options.out)?;
    let progress = Progress::new(&steps, effort);
    let (repeat, out) = (options.to_repeat(), options.out.clone());
    let mut session = Session { held, cpus, devices, repeat, out, results, progress };
    for steps in plan::cases(&steps) {
        session.case(steps, effort)?;
    }
    let results = session.results;
    print!("{}", page::markdown(&results));
    println!("\nwritten: {}", options.out.join("report.html").display());
    let missed = results.bars.iter().any(|bar| bar.met == Some(false));
    Ok(ExitCode::from(u8::from(missed)))
}

/// A run, as far as it has got.
struct Session {
    held: Held,
    cpus: Cpus,
    devices: Option<Arc<Devices>>,
    /// Options that a line alone is repeated with.
    repeat: String,
    out: PathBuf,
    results: Results,
    progress: Progress,
}

impl Session {
    /// Measures what is compared with each other, each as often as the others, in
    /// turns. One that can't be measured has one turn.
    fn case(&mut self, steps: &[Step], effort: Effort) -> anyhow::Result<()> {
        let mut all: Vec<_> = steps.iter().map(|step| (step, step.turns(effort))).collect();
        while all.iter().any(|(_, turns)| !turns.is_empty()) {
            for (step, turns) in &mut all {
                let Some(effort) = turns.pop() else { continue };
                if !self.turn(step, effort)? {
                    turns.clear();
                }
            }
        }
        Ok(())
    }

    /// Measures a step once; whether it can be.
    fn turn(&mut self, step: &Step, effort: Effort) -> anyhow::Result<bool> {
        self.progress.next(step, effort);
        let at = step.place(&self.repeat);
        let bed = self
            .held
            .lab()
            .and_then(|lab| Bed::new(lab, self.cpus, self.devices.clone(), step.subject.cpus()));
        let found = bed.and_then(|bed| {
            let found = measure(&bed, &*step.subject, step.load, step.work, effort, &at);
            note_offloads(&mut self.results.offloads, bed.offloads_text(), step);
            found
        });
        // One that a signal has ended has found nothing.
        self.held.go_on();
        let can_be = found.is_ok();
        let found = found.unwrap_or_else(|error| {
            let mut found = Found::default();
            found.gap(&at, format!("{error:#}"));
            found
        });
        self.progress.tell(&found);
        // What was measured stays, whatever becomes of the rest.
        self.results.add(found);
        self.results.machine.load[1] = load();
        self.results.bars = bars::judge(&self.results);
        page::write(&self.results, &self.out)?;
        Ok(can_be)
    }
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
             there as well, for every subject. The subjects of a case take turns. Our processes and ksoftirqd run with the highest niceness.",
            cpus.router,
            cpus.second.map_or(String::new(), |(router, sender)| format!(
                ", and CPU {router} for one on two, with a second generator on CPU {sender}"
            )),
            cpus.traffic,
            cpus.sink,
            devices.map_or("veth pairs".to_owned(), Devices::about)
        ),
        offloads: Vec::new(),
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

/// What has to be undone, at the end as on a signal. All that others would keep
/// is made under its lock, so that a signal comes before it or behind.
pub(crate) struct Held(Arc<Mutex<Undo>>);

#[derive(Default)]
struct Undo {
    devices: Option<Arc<Devices>>,
    lab: Option<Closer>,
    priorities: Option<First>,
    /// A signal has come: nothing is made any more.
    ended: bool,
}

impl Held {
    /// Waits for signals from now on, then puts the measured processes first.
    ///
    /// # Errors
    /// Signals can't be caught.
    pub(crate) fn new(devices: Option<Arc<Devices>>) -> anyhow::Result<Self> {
        let held = Self(Arc::new(Mutex::new(Undo { devices, ..Undo::default() })));
        held.undo_on_signals()?;
        held.make(|undo| undo.priorities = Some(First::take()));
        Ok(held)
    }

    /// An empty lab, which a signal removes from now on.
    ///
    /// # Errors
    /// It can't be made.
    pub(crate) fn lab(&self) -> anyhow::Result<Lab> {
        self.make(|undo| {
            let lab = Lab::new("perf")?;
            undo.lab = Some(lab.closer());
            Ok(lab)
        })
    }

    /// Returns, unless a signal has ended everything.
    fn go_on(&self) {
        self.make(|_| ());
    }

    fn make<T>(&self, make: impl FnOnce(&mut Undo) -> T) -> T {
        let mut undo = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if undo.ended {
            drop(undo);
            // The thread that has undone everything ends the program.
            loop {
                std::thread::park();
            }
        }
        make(&mut undo)
    }

    /// Undoes everything and ends this program when it is told to end.
    fn undo_on_signals(&self) -> anyhow::Result<()> {
        let held = self.0.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catch signals")?;
        std::thread::spawn(move || {
            let Some(signal) = signals.forever().next() else { return };
            Self::undo(&held, true);
            eprintln!("ended by signal {signal}; everything is removed");
            std::process::exit(128 + signal);
        });
        Ok(())
    }

    fn undo(held: &Mutex<Undo>, ended: bool) {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.ended |= ended;
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
        Self::undo(&self.0, false);
    }
}

/// Adds a case to those with the same offloads.
fn note_offloads(all: &mut Vec<About>, name: String, step: &Step) {
    let case = match step.work {
        // Others are the same in all cases.
        Work::Tcp { .. } => format!("{}: {}", step.scenario, step.case),
        _ => step.scenario.to_owned(),
    };
    match all.iter_mut().find(|known| known.name == name) {
        Some(known) if known.about.split(", ").any(|known| known == case) => {}
        Some(known) => known.about = format!("{}, {case}", known.about),
        None => all.push(About { name, about: case }),
    }
}

/// Tells how far it is.
struct Progress {
    started: Instant,
    total: f64,
    done: f64,
    turns: usize,
    turn: usize,
}

impl Progress {
    fn new(steps: &[Step], effort: Effort) -> Self {
        let turns = steps.iter().map(|step| step.turns(effort).len()).sum();
        let total = plan::seconds(steps, effort);
        Self { started: Instant::now(), total, done: 0.0, turns, turn: 0 }
    }

    fn next(&mut self, step: &Step, effort: Effort) {
        // What is left goes as fast as what was, once something was.
        let pace =
            if self.done > 10.0 { self.started.elapsed().as_secs_f64() / self.done } else { 1.0 };
        let left = Duration::from_secs_f64((self.total - self.done).max(0.0) * pace);
        self.turn += 1;
        self.done += step.work.seconds(effort);
        eprintln!(
            "[{}/{}, {}:{:02} left] {}: {}, {}",
            self.turn,
            self.turns,
            left.as_secs() / 60,
            left.as_secs() % 60,
            step.scenario,
            step.subject.name(),
            step.case
        );
    }

    fn tell(&self, found: &Found) {
        for row in &found.rows {
            let value = crate::outcome::human(row.median, &row.unit);
            eprintln!("    {}: {value} +/- {}", row.measure, row.spread_text());
        }
        found.gaps.iter().for_each(|gap| eprintln!("    not measured: {}", gap.reason));
    }
}

/// Refuses what would fail later.
pub(crate) fn check_root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("namespaces and XDP programs need root: run it with sudo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Options {
        // As a shell takes it, as far as this test needs that.
        let parts = line.split('\'').enumerate();
        let words = parts.flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        });
        Words::try_parse_from(["run".to_owned()].into_iter().chain(words)).unwrap().options
    }

    #[test]
    fn a_repeated_line_has_every_option_that_matters() {
        for line in [
            "",
            "--quick --runs 2 --trial 0.05 --loss 0 --tieline '/some where/tieline'",
            "--shortest --loss 12.5 --capture a.pcap",
            "--generator a --router b,c --sink d",
            "--generator a --remote other --sink d",
        ] {
            let options = parse(line);
            let again = parse(&format!("flood --only kernel{}", options.to_repeat()));
            let wanted = Options {
                scenarios: vec!["flood".to_owned()],
                only: vec!["kernel".to_owned()],
                ..options
            };
            assert_eq!(format!("{again:?}"), format!("{wanted:?}"));
        }
    }
}
