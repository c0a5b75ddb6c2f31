//! What Tieline is held to, each in one run: ratios to what a user would have
//! instead.

use crate::outcome::{Bar, Results};

/// One bar: the row of Tieline, the row that it is compared with.
struct Rule {
    what: &'static str,
    scenario: &'static str,
    case: &'static str,
    measure: &'static str,
    subject: &'static str,
    peer: &'static str,
    wanted: f64,
    at_least: bool,
}

const fn at_least(
    what: &'static str,
    (scenario, case, measure): (&'static str, &'static str, &'static str),
    (subject, peer): (&'static str, &'static str),
    wanted: f64,
) -> Rule {
    Rule { what, scenario, case, measure, subject, peer, wanted, at_least: true }
}

const fn at_most(
    what: &'static str,
    place: (&'static str, &'static str, &'static str),
    pair: (&'static str, &'static str),
    wanted: f64,
) -> Rule {
    Rule { at_least: false, ..at_least(what, place, pair, wanted) }
}

const KERNEL: (&str, &str) = ("tieline", "kernel");
const FIREWALL: (&str, &str) = ("tieline", "kernel+ct100");

const RULES: [Rule; 10] = [
    at_least("rate, 64 flows, to the kernel's", ("flood", "64 flows", "forwarded"), KERNEL, 1.6),
    at_least(
        "rate, 64 Ki flows, to the kernel's",
        ("flood", "64 Ki flows", "forwarded"),
        KERNEL,
        1.6,
    ),
    at_least(
        "rate, 64 flows, to the kernel's with conntrack and 100 rules, established",
        ("flood", "64 flows", "forwarded"),
        FIREWALL,
        2.2,
    ),
    at_least(
        "rate, 64 Ki flows, to the kernel's with conntrack and 100 rules, established",
        ("flood", "64 Ki flows", "forwarded"),
        FIREWALL,
        2.2,
    ),
    at_least(
        "rate, 64 flows in one direction, to the kernel's with conntrack and 100 rules",
        ("new-flows", "64 flows, one way", "forwarded"),
        FIREWALL,
        6.0,
    ),
    at_least(
        "new flows a second, to the kernel's with conntrack and 100 rules",
        ("new-flows", "64 Ki flows", "new flows"),
        FIREWALL,
        6.0,
    ),
    at_most(
        "round trip of a ping, to the kernel's",
        ("ping", "56 bytes", "round trip p50"),
        ("tieline-node-busy", "kernel"),
        1.5,
    ),
    at_most(
        "p99 latency at half of the own no-drop rate, to the kernel's",
        ("rate", "64 flows, 50 % of the no-drop rate", "latency p99"),
        ("tieline-busy", "kernel"),
        1.0,
    ),
    at_most(
        "p99 latency at 100 kpps, to the kernel's",
        ("rate", "64 flows, 100 kpps", "latency p99"),
        ("tieline-busy", "kernel"),
        1.0,
    ),
    at_least(
        "TCP transfer without offload, to the kernel's",
        ("tcp", "offload off", "TCP transfer"),
        ("tieline-node", "kernel"),
        1.0,
    ),
];

/// The bars that can be judged by these results.
pub(crate) fn judge(results: &Results) -> Vec<Bar> {
    let judged = RULES.iter().filter_map(|rule| {
        let of = |subject| results.find(rule.scenario, subject, rule.case, rule.measure);
        let ratio = of(rule.subject)?.median / of(rule.peer)?.median;
        let met = if rule.at_least { ratio >= rule.wanted } else { ratio <= rule.wanted };
        let (wanted, at_least) = (rule.wanted, rule.at_least);
        Some(Bar { what: rule.what.to_owned(), ratio, wanted, at_least, met })
    });
    judged.collect()
}
