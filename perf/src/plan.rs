//! Scenarios: which work on which subjects under which loads.
//!
//! A scenario is a name, a sentence and its [`Step`]s; each step stands on a test
//! bed of its own.

use crate::bed::{Cpus, Offloads};
use crate::flows::Load;
use crate::iperf;
use crate::outcome::{About, BASELINE, Place, human};
use crate::stream::{Capture, Shape};
use crate::subject::{
    Inside, Kernel, Ovs, Program, Remote, Sockets, Subject, Tieline, Vpp, Way, Wire, renamed,
};
use crate::work::{Effort, Work};

/// One subject under one load.
pub(crate) struct Step {
    pub(crate) scenario: &'static str,
    pub(crate) subject: Box<dyn Subject>,
    pub(crate) load: Load,
    pub(crate) work: Work,
    /// What tells it from the others of the scenario.
    pub(crate) case: String,
    /// The number that a sweep is over.
    pub(crate) x: Option<f64>,
}

impl Step {
    /// How it is measured, turn by turn. Very many flows take longer to be made
    /// known than to be measured: they have one turn.
    pub(crate) fn turns(&self, effort: Effort) -> Vec<Effort> {
        let turns = if self.load.flows > FLOWS[1] { 1 } else { effort.turns };
        Effort { turns, ..effort }.in_turns().collect()
    }

    /// Where its figures belong; `options` is what else repeats them.
    pub(crate) fn place(&self, options: &str) -> Place {
        Place {
            scenario: self.scenario.to_owned(),
            subject: self.subject.name(),
            case: self.case.clone(),
            x: self.x,
            options: options.to_owned(),
        }
    }

    /// Seconds that it takes about.
    fn seconds(&self, effort: Effort) -> f64 {
        self.turns(effort).into_iter().map(|effort| self.work.seconds(effort)).sum()
    }
}

/// Steps that are compared with each other, which take turns.
pub(crate) fn cases(steps: &[Step]) -> impl Iterator<Item = &[Step]> {
    steps.chunk_by(|one, other| (one.scenario, &one.case) == (other.scenario, &other.case))
}

/// What a sweep is over, for the axis of its plot.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Label of the axis, for sweeps.
    pub(crate) axis: Option<&'static str>,
    /// Whether `--quick` includes it.
    pub(crate) quick: bool,
}

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: [Scenario; 18] = [
    plain("flood", "as many packets as go through, 64 bytes, flows known before", true),
    plain(
        "new-flows",
        "first packets of flows a second; and a stream in one direction only, which \
           a firewall never takes for established",
        true,
    ),
    plain("rate", "no-drop rate (RFC 2544), latency at parts of it, CPU time per packet", true),
    sweep("offered", "what arrives of a rate, too much as well", "packets offered a second"),
    plain(
        "streams",
        "other kinds of traffic by AF_XDP sockets of our own, every packet judged where it \
           arrives: no-drop rate, latency, and what became of the packets",
        false,
    ),
    plain("replay", "a capture's lengths, flows and times (--capture FILE)", false),
    plain("ping", "round trips of pings, one after the other, between pods", true),
    plain(
        "tcp",
        "TCP between pods, bulk and request by request, segmentation offload on and off",
        true,
    ),
    plain(
        "ports",
        "Tieline's ports, with policy and without, and other routers in user space",
        false,
    ),
    sweep("sizes", "packets of other sizes", "bytes in the frame"),
    sweep("flows", "other numbers of flows", "flows"),
    sweep("rules", "other numbers of rules: first packets of flows a second", "rules"),
    sweep("endpoints", "other numbers of known pods on the remote node", "endpoints"),
    sweep("batch", "other batch sizes of Tieline's workers", "packets in a batch"),
    sweep(
        "workers",
        "more CPUs for the router; for two there are two senders with half of the flows each",
        "workers",
    ),
    plain("pktgen", "as many packets as go through, from the kernel's own packet generator", false),
    plain("churn", "forwarding while policies change ten times a second", false),
    plain("interruption", "for how long nothing passes at a reload and at a restart", false),
];

const fn plain(name: &'static str, about: &'static str, quick: bool) -> Scenario {
    Scenario { name, about, axis: None, quick }
}

const fn sweep(name: &'static str, about: &'static str, axis: &'static str) -> Scenario {
    Scenario { name, about, axis: Some(axis), quick: false }
}

/// Numbers of flows: few, about 60,000, about a million.
const FLOWS: [u32; 3] = [64, 1 << 16, 1 << 20];
const SMALL: usize = 64;
/// Packets a second, from what every router can do to what none can.
const OFFERED: [f64; 6] = [1e5, 2e5, 4e5, 8e5, 1.2e6, 1.6e6];

/// Lines of sweeps over what the names of subjects would tell.
const FIREWALL: &str = "kernel+ct";
const FIREWALL_ABOUT: &str = "the kernel's vxlan device with nftables: established connections \
                              pass, others go through as many rules as the axis says";
const TIELINE: &str = "tieline";
const TIELINE_ABOUT: &str = "the daemon, packets put into its gateway device, a policy of 100 \
                             rules unless the axis says otherwise";

/// What there is to choose from.
pub(crate) struct Choice<'a> {
    pub(crate) program: &'a Program,
    pub(crate) quick: bool,
    /// What `replay` sends.
    pub(crate) capture: Option<&'static Capture>,
    /// Most CPUs that a router can have alone.
    pub(crate) cpus: u32,
}

impl Choice<'_> {
    fn tieline(&self) -> Tieline {
        Tieline::new(self.program)
    }

    /// The router that is compared, and what with.
    fn routers(&self) -> Vec<Box<dyn Subject>> {
        vec![
            Box::new(Kernel::new(None)),
            Box::new(Kernel::new(Some(100))),
            Box::new(self.tieline()),
        ]
    }

    fn routers_and_wire(&self) -> Vec<Box<dyn Subject>> {
        let mut all = self.routers();
        all.insert(0, Box::new(Wire));
        all
    }

    /// Those that pods reach as they do on a node.
    fn nodes(&self) -> Vec<Box<dyn Subject>> {
        let node = Tieline { way: Way::Node, ..self.tieline() };
        vec![
            Box::new(Kernel::new(None)),
            Box::new(Kernel::new(Some(100))),
            Box::new(Tieline { idle: "busy", ..node.clone() }),
            Box::new(node),
        ]
    }

    /// The steps of a scenario.
    pub(crate) fn steps(&self, scenario: &Scenario) -> Vec<Step> {
        let name = scenario.name;
        let step = |subject, load: Load, work| Step {
            scenario: name,
            subject,
            load,
            work,
            case: format!("{} flows", count(load.flows)),
            x: None,
        };
        let small = |flows| Load { flows, size: SMALL };
        let flood = Work::Flood { established: true };
        let mut steps = Vec::new();
        match name {
            "flood" => {
                let flows = if self.quick { &FLOWS[..2] } else { &FLOWS[..] };
                for flows in flows {
                    let mut subjects = self.routers_and_wire();
                    subjects.push(Box::new(Tieline { way: Way::Node, ..self.tieline() }));
                    let new = |subject| step(subject, small(*flows), flood);
                    steps.extend(subjects.into_iter().map(new));
                }
            }
            "new-flows" => {
                for subject in self.routers() {
                    steps.push(step(subject, small(FLOWS[1]), Work::NewFlows));
                }
                for subject in self.routers() {
                    let work = Work::Flood { established: false };
                    let one_way = step(subject, small(FLOWS[0]), work);
                    steps.push(Step { case: "64 flows, one way".to_owned(), ..one_way });
                }
            }
            "rate" => {
                let mut subjects = self.routers();
                subjects.push(Box::new(Tieline { idle: "busy", ..self.tieline() }));
                steps.extend(subjects.into_iter().map(|s| step(s, small(FLOWS[0]), Work::Rate)));
            }
            "offered" => {
                for rate in OFFERED {
                    for subject in self.routers_and_wire() {
                        let step = step(subject, small(FLOWS[0]), Work::Offered { rate });
                        let case = human(rate, "packets/s");
                        steps.push(Step { case, x: Some(rate), ..step });
                    }
                }
            }
            "streams" => {
                let of = |size| Load { flows: FLOWS[0], size };
                let kinds = [
                    ("64 bytes", of(SMALL), Shape::Plain),
                    ("IMIX", of(SMALL), Shape::Imix),
                    ("IPv6, 128 bytes", of(128), Shape::V6),
                    ("64 bytes, bursts of 64", of(SMALL), Shape::Bursts(64)),
                ];
                for (case, load, shape) in kinds {
                    for subject in self.routers_and_wire() {
                        let step = step(subject, load, Work::Stream(shape));
                        steps.push(Step { case: case.to_owned(), ..step });
                    }
                }
            }
            "replay" => {
                for subject in self.capture.iter().flat_map(|_| self.routers_and_wire()) {
                    let Some(capture) = self.capture else { continue };
                    let load = Load { flows: capture.flows, size: SMALL };
                    let step = step(subject, load, Work::Stream(Shape::Replay(capture)));
                    steps.push(Step { case: "capture".to_owned(), ..step });
                }
            }
            "ping" => {
                let new = |s| Step { case: "56 bytes".into(), ..step(s, small(1), Work::Ping) };
                steps.extend(self.nodes().into_iter().map(new));
            }
            "tcp" => {
                let cases = [
                    ("offload off", Offloads::Off),
                    ("offload in pods", Offloads::Pods),
                    ("offload everywhere", Offloads::All),
                ];
                for (case, offloads) in if self.quick { &cases[..1] } else { &cases[..] } {
                    for subject in self.nodes() {
                        let step = step(subject, small(1), Work::Tcp { offloads: *offloads });
                        steps.push(Step { case: (*case).to_owned(), ..step });
                    }
                }
            }
            "ports" => {
                let base = self.tieline();
                // Without a program in the driver a veth takes no redirected frames,
                // so these get theirs from the kernel.
                let of = |mode| Tieline { mode, way: Way::Node, ..base.clone() };
                let kinds = [
                    base.clone(),
                    Tieline { rules: None, ..base.clone() },
                    Tieline { way: Way::Node, ..base.clone() },
                    of("generic"),
                    of("packet"),
                ];
                steps.push(step(Box::new(Kernel::new(None)), small(FLOWS[0]), flood));
                for kind in kinds {
                    steps.push(step(Box::new(kind), small(FLOWS[0]), flood));
                }
                let others: [Box<dyn Subject>; 3] = [
                    Box::new(Ovs { conntrack: false }),
                    Box::new(Ovs { conntrack: true }),
                    Box::new(Vpp),
                ];
                steps.extend(others.into_iter().map(|other| step(other, small(FLOWS[0]), flood)));
                for sockets in [Sockets::Own, Sockets::Afxdp] {
                    steps.push(step(
                        Box::new(Inside { sockets, batch: 64 }),
                        small(FLOWS[0]),
                        flood,
                    ));
                }
            }
            "sizes" => {
                for size in [64, 128, 256, 512, 1024, 1450] {
                    for subject in self.routers() {
                        let step = step(subject, Load { flows: FLOWS[0], size }, flood);
                        let (case, x) = (format!("{size} bytes"), Some(size as f64));
                        steps.push(Step { case, x, ..step });
                    }
                }
            }
            "flows" => {
                for flows in [1, 64, 1024, 1 << 14, 1 << 16, 1 << 18, 1 << 20] {
                    for subject in self.routers() {
                        let x = Some(f64::from(flows));
                        steps.push(Step { x, ..step(subject, small(flows), flood) });
                    }
                }
            }
            "rules" => {
                for rules in [1, 10, 100, 1000, 10_000] {
                    let kernel = Kernel::new(Some(rules));
                    let tieline = Tieline { rules: Some(rules), ..self.tieline() };
                    for subject in [
                        renamed(FIREWALL, FIREWALL_ABOUT, Box::new(kernel)),
                        renamed(TIELINE, TIELINE_ABOUT, Box::new(tieline)),
                    ] {
                        let step = step(subject, small(FLOWS[1]), Work::NewFlows);
                        let (case, x) = (format!("{rules} rules"), Some(f64::from(rules)));
                        steps.push(Step { case, x, ..step });
                    }
                }
            }
            "endpoints" => {
                for endpoints in [64, 1024, 1 << 14, 1 << 16] {
                    let more = endpoints - 32;
                    let kernel = |rules| Box::new(Kernel { endpoints: more, ..Kernel::new(rules) });
                    let tieline = Box::new(Tieline { endpoints: more, ..self.tieline() });
                    let subjects: [Box<dyn Subject>; 3] =
                        [kernel(None), kernel(Some(100)), tieline];
                    for subject in subjects {
                        let step = step(subject, small(FLOWS[1]), flood);
                        let case = format!("{} endpoints", count(endpoints));
                        steps.push(Step { case, x: Some(f64::from(endpoints)), ..step });
                    }
                }
            }
            "batch" => {
                for batch in [1, 4, 16, 32, 64, 128, 256] {
                    let inside = |sockets| Box::new(Inside { sockets, batch: batch as usize });
                    let tieline = Box::new(Tieline { batch, ..self.tieline() });
                    let subjects: [Box<dyn Subject>; 3] = [
                        renamed(TIELINE, TIELINE_ABOUT, tieline),
                        inside(Sockets::Own),
                        inside(Sockets::Afxdp),
                    ];
                    for subject in subjects {
                        let step = step(subject, small(FLOWS[0]), flood);
                        let (case, x) = (format!("batch {batch}"), Some(f64::from(batch)));
                        steps.push(Step { case, x, ..step });
                    }
                }
            }
            "workers" => {
                for workers in 1..=self.cpus {
                    let kernel = |rules| Box::new(Kernel { cpus: workers, ..Kernel::new(rules) });
                    let tieline = Box::new(Tieline { workers, ..self.tieline() });
                    let subjects: [Box<dyn Subject>; 3] =
                        [kernel(None), kernel(Some(100)), tieline];
                    for subject in subjects {
                        let step = step(subject, small(FLOWS[0]), flood);
                        let case =
                            format!("{workers} worker{}", if workers == 1 { "" } else { "s" });
                        steps.push(Step { case, x: Some(f64::from(workers)), ..step });
                    }
                }
            }
            "pktgen" => {
                for subject in self.nodes() {
                    steps.push(step(subject, small(FLOWS[0]), Work::Pktgen));
                }
            }
            "churn" => {
                let subjects: [Box<dyn Subject>; 2] =
                    [Box::new(Kernel::new(Some(100))), Box::new(self.tieline())];
                let new = |subject| step(subject, small(FLOWS[1]), Work::Churn);
                steps.extend(subjects.into_iter().map(new));
            }
            "interruption" => {
                let node = Tieline { way: Way::Node, ..self.tieline() };
                let subjects: [Box<dyn Subject>; 2] =
                    [Box::new(Kernel::new(Some(100))), Box::new(node)];
                let new = |subject| step(subject, small(FLOWS[0]), Work::Interruption);
                steps.extend(subjects.into_iter().map(new));
            }
            _ => {}
        }
        steps
    }
}

/// Those steps that are about traffic and not about the router, once for each
/// case, with a router on another machine.
pub(crate) fn remote(steps: Vec<Step>, name: &str) -> Vec<Step> {
    let of_baseline = |step: &Step| step.subject.name() == BASELINE && step.scenario != "endpoints";
    let remote = |step: Step| Step { subject: Box::new(Remote(name.to_owned())), ..step };
    steps.into_iter().filter(of_baseline).map(remote).collect()
}

/// The first step of each scenario, subject and kind of work.
pub(crate) fn one_of_a_kind(steps: Vec<Step>) -> Vec<Step> {
    let mut all: Vec<Step> = Vec::new();
    let kind = |step: &Step| {
        let work = match step.work {
            Work::Offered { .. } => Work::Offered { rate: 0.0 },
            other => other,
        };
        (step.scenario, step.subject.name(), work)
    };
    for step in steps {
        if !all.iter().any(|known| kind(known) == kind(&step)) {
            all.push(step);
        }
    }
    all
}

/// The subject of a name.
pub(crate) fn subject(choice: &Choice<'_>, name: &str) -> Option<Box<dyn Subject>> {
    let steps = SCENARIOS.iter().flat_map(|scenario| choice.steps(scenario));
    steps.map(|step| step.subject).find(|subject| subject.name() == name)
}

/// Why a scenario has no steps.
pub(crate) fn why_empty(name: &str, choice: &Choice<'_>) -> Option<String> {
    let gap = name == "replay" && choice.capture.is_none();
    gap.then(|| "there is no capture: name a pcap file with --capture".to_owned())
}

/// What of a scenario is left out on this machine, and why.
pub(crate) fn why_partly(name: &str, cpus: Cpus) -> Option<String> {
    match name {
        "tcp" if !iperf::is_installed() => {
            Some("iperf3 is not installed: apt-get install iperf3".to_owned())
        }
        "workers" if cpus.routers() == 1 => {
            Some(format!("one worker only: {}", cpus.why_one_router()))
        }
        _ => None,
    }
}

/// All subjects of some steps, once each, the baseline first.
pub(crate) fn subjects(steps: &[Step]) -> Vec<About> {
    let mut all: Vec<About> = Vec::new();
    for step in steps {
        let about = About { name: step.subject.name(), about: step.subject.about() };
        if !all.iter().any(|known| known.name == about.name) {
            all.push(about);
        }
    }
    all.sort_by_key(|about| about.name != BASELINE);
    all
}

fn count(flows: u32) -> String {
    match flows {
        0..1024 => flows.to_string(),
        1024..1_048_576 => format!("{} Ki", flows / 1024),
        _ => format!("{} Mi", flows >> 20),
    }
}

/// Seconds that some steps take about.
pub(crate) fn seconds(steps: &[Step], effort: Effort) -> f64 {
    steps.iter().map(|step| step.seconds(effort)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_steps_or_says_why_not() {
        let program = Program::find(None);
        let choice = Choice { program: &program, quick: false, capture: None, cpus: 1 };
        for scenario in &SCENARIOS {
            let steps = choice.steps(scenario);
            let reason = why_empty(scenario.name, &choice);
            assert_eq!(steps.is_empty(), reason.is_some(), "{}", scenario.name);
            assert!(steps.iter().all(|step| step.x.is_some() == scenario.axis.is_some()));
        }
    }

    #[test]
    fn workers_are_as_many_as_cpus_allow() {
        let program = Program::find(None);
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == "workers").unwrap();
        for cpus in [1, 2] {
            let choice = Choice { program: &program, quick: false, capture: None, cpus };
            let steps = choice.steps(scenario);
            let most = steps.iter().map(|step| step.subject.cpus()).max();
            assert_eq!((most, steps.len()), (Some(cpus), 3 * cpus as usize));
            assert!(steps.iter().all(|step| step.x == Some(f64::from(step.subject.cpus()))));
        }
        let cpus = |second| Cpus { router: 3, traffic: 0, sink: 1, second };
        assert_eq!(why_partly("workers", cpus(Some((2, 1)))), None);
        let reason = why_partly("workers", cpus(None)).expect("one worker only");
        assert!(reason.contains("CPU 3 for the router"), "{reason}");
    }

    #[test]
    fn the_quick_run_stays_under_two_minutes() {
        let program = Program::find(None);
        let choice = Choice { program: &program, quick: true, capture: None, cpus: 1 };
        let quick = SCENARIOS.iter().filter(|scenario| scenario.quick);
        let steps: Vec<_> = quick.flat_map(|scenario| choice.steps(scenario)).collect();
        assert!(seconds(&steps, Effort::QUICK) < 120.0, "{}", seconds(&steps, Effort::QUICK));
    }
}
