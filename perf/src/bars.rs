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

/// The bars of the scenarios that were run; one whose figures are not there says
/// so.
pub(crate) fn judge(results: &Results) -> Vec<Bar> {
    let was_run = |rule: &&Rule| results.scenarios.iter().any(|about| about.name == rule.scenario);
    let judged = RULES.iter().filter(was_run).map(|rule| {
        let of = |subject| {
            let row = results.find(rule.scenario, subject, rule.case, rule.measure);
            Some(row?.median).filter(|median| *median > 0.0)
        };
        let ratio = of(rule.subject).zip(of(rule.peer)).map(|(own, peer)| own / peer);
        let good = |ratio| if rule.at_least { ratio >= rule.wanted } else { ratio <= rule.wanted };
        Bar {
            what: rule.what.to_owned(),
            ratio,
            wanted: rule.wanted,
            at_least: rule.at_least,
            met: ratio.map(good),
        }
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{About, Measure, Place, Row};

    #[test]
    fn a_bar_without_figures_is_not_measured() {
        let mut results = Results::default();
        assert!(judge(&results).is_empty());
        results.scenarios = vec![About { name: "ping".to_owned(), about: String::new() }];
        let judged = |results: &Results| {
            let bars = judge(results);
            assert_eq!(bars.len(), 1);
            (bars[0].ratio, bars[0].met)
        };
        assert_eq!(judged(&results), (None, None));
        let [half, _] = Measure::ROUND_TRIP;
        let row = |subject: &str, ns| {
            let at = Place {
                scenario: "ping".to_owned(),
                subject: subject.to_owned(),
                case: "56 bytes".to_owned(),
                x: None,
                options: String::new(),
            };
            Row::new(&at, half, vec![ns])
        };
        results.rows = vec![row("kernel", 10.0)];
        assert_eq!(judged(&results), (None, None));
        results.rows.push(row("tieline-node-busy", 15.0));
        assert_eq!(judged(&results), (Some(1.5), Some(true)));
        results.rows[1] = row("tieline-node-busy", 16.0);
        assert_eq!(judged(&results), (Some(1.6), Some(false)));
        // Nothing passed: that is no ratio.
        results.rows[0] = row("kernel", 0.0);
        assert_eq!(judged(&results), (None, None));
    }
}
