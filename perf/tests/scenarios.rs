//! Every scenario, one case of each kind, as short as can be, with the daemon: that
//! each subject has figures or a reason why not.
#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use support::{PROGRAM, is_root, results, run, scratch, tieline, turn};

/// Subjects that must be there for everything.
const FIRST: [&str; 2] = ["kernel", "tieline"];

/// Scenarios, and which subjects they are tried with: all that have not been
/// tried under the same kind of work.
const SCENARIOS: [(&str, &[&str]); 18] = [
    ("flood", &["wire", "kernel", "kernel+ct100", "tieline", "tieline-node"]),
    ("new-flows", &["kernel", "kernel+ct100", "tieline"]),
    ("rate", &["kernel", "tieline", "tieline-busy"]),
    ("offered", &["wire", "kernel", "tieline"]),
    ("streams", &["wire", "tieline"]),
    ("replay", &[]),
    ("ping", &["kernel", "tieline-node", "tieline-node-busy"]),
    ("tcp", &["kernel", "tieline-node"]),
    (
        "ports",
        &[
            "tieline-no-policy",
            "tieline-node-generic",
            "tieline-node-packet",
            "worker",
            "worker-afxdp",
            "ovs-dpdk",
            "vpp",
        ],
    ),
    ("sizes", &["kernel", "tieline"]),
    ("flows", &["tieline"]),
    ("rules", &["kernel+ct", "tieline"]),
    ("endpoints", &["kernel+ct100", "tieline"]),
    ("batch", &["tieline", "worker"]),
    ("workers", &["tieline"]),
    ("pktgen", &["kernel"]),
    ("churn", &["kernel+ct100", "tieline"]),
    ("interruption", &["kernel+ct100", "tieline-node"]),
];

/// What each row is about, of those of one scenario and subject.
fn measures(results: &Value, scenario: &str, subject: &str) -> BTreeSet<String> {
    let rows = results["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["scenario"] == scenario && row["subject"] == subject)
        .map(|row| row["measure"].as_str().unwrap().to_owned())
        .collect()
}

/// The reasons of gaps.
fn reasons<'a>(results: &'a Value, scenario: &str, subject: &str) -> Vec<&'a str> {
    let gaps = results["gaps"].as_array().unwrap().iter();
    gaps.filter(|gap| gap["scenario"] == scenario)
        .filter(|gap| gap["subject"] == subject || gap["subject"] == "all")
        .map(|gap| gap["reason"].as_str().unwrap())
        .collect()
}

#[test]
fn every_scenario_has_figures_or_reasons() {
    let list = Command::new(PROGRAM).arg("list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let listed: Vec<&str> = list
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(listed, SCENARIOS.map(|(name, _)| name), "each is tried");
    if !is_root() {
        return;
    }
    let tieline = tieline();
    let _turn = turn();
    for (scenario, subjects) in SCENARIOS {
        let began = Instant::now();
        let out = scratch(&format!("scenario-{scenario}"));
        let mut arguments = vec![scenario, "--shortest", "--tieline", tieline.to_str().unwrap()];
        arguments.extend(subjects.iter().flat_map(|subject| ["--only", subject]));
        let output = run(&arguments, &out);
        let said = String::from_utf8_lossy(&output.stderr);
        // A bar may be missed by runs as short as these.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{scenario}: {said}");
        let results = results(&out);
        for subject in subjects {
            check(&results, scenario, subject, &said);
        }
        if subjects.is_empty() {
            assert!(!reasons(&results, scenario, "all").is_empty(), "{scenario}: {said}");
        }
        let page = fs::read_to_string(out.join("report.html")).unwrap();
        assert!(page.contains(&format!("<h2 id='{scenario}'>")));
        fs::remove_dir_all(out).unwrap();
        println!("{scenario}: {:?}", began.elapsed());
    }
}

fn check(results: &Value, scenario: &str, subject: &str, said: &str) {
    let found = measures(results, scenario, subject);
    let reasons = reasons(results, scenario, subject);
    let at = format!("{scenario}, {subject}: {found:?} {reasons:?}: {said}");
    assert!(!found.is_empty() || !reasons.is_empty(), "{at}");
    assert!(reasons.iter().all(|reason| reason.len() > 10), "{at}");
    // What this repository brings itself must run.
    let ours = subject.starts_with("tieline") || FIRST.contains(&subject) || subject == "worker";
    if ours && !["pktgen", "offered"].contains(&scenario) {
        assert!(!found.is_empty(), "{at}");
    }
    let has = |measure: &str| found.contains(measure);
    let gap = |words: &str| reasons.iter().any(|reason| reason.contains(words));
    match (scenario, subject) {
        ("rate", "kernel") => assert!(has("latency p99") && gap("CPU time"), "{at}"),
        ("rate", _) => assert!(has("latency p99") && has("CPU time"), "{at}"),
        // On a machine with other work the generator may not keep up.
        ("offered", _) => {
            let told = (has("arrived") && has("lost")) || gap("the generator reaches");
            assert!(told, "{at}");
        }
        ("pktgen", _) => assert!(has("forwarded") || gap("CONFIG_NET_PKTGEN"), "{at}"),
        ("interruption", "kernel+ct100") => {
            assert!(has("interruption") && gap("nothing to restart"), "{at}");
        }
        ("interruption", _) => {
            let rows = results["rows"].as_array().unwrap();
            let of = |case: &str| {
                let row = rows.iter().find(|row| row["case"].as_str().unwrap().ends_with(case));
                row.unwrap_or_else(|| panic!("{case}: {at}"))["median"].as_f64().unwrap()
            };
            let [undisturbed, _, restart] = ["undisturbed", "reload", "restart"].map(of);
            assert!(undisturbed > 0.0 && restart > 0.0, "{at}");
        }
        _ => {}
    }
}
