//! `tieline check`

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::explain::{Asked, ask_all};
use super::offline::{self, Offline};
use super::text::{Columns, Tone, paint};
use super::{Output, verdict};
use crate::admin::status::ConditionStatus;
use crate::policy::explain::Explainer;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/tieline/tieline.toml")]
    config: PathBuf,
    /// Connections with the verdicts that are expected of them: JSON lines as
    /// for `explain`, each with `"expect": "allow"` or `"deny"`; `-` is
    /// standard input
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What `check -o json` prints.
#[derive(Debug, Serialize)]
struct Report {
    node: String,
    /// Most severe first.
    conditions: Vec<ConditionStatus>,
    counts: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    expectations: Option<Expectations>,
}

#[derive(Debug, Serialize)]
struct Counts {
    remotes: usize,
    routes: usize,
    vteps: usize,
    identities: usize,
    tiers: usize,
    policies: usize,
}

#[derive(Debug, Serialize)]
struct Expectations {
    connections: usize,
    /// Those that come out otherwise.
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    line: usize,
    query: serde_json::Value,
    expected: String,
    found: String,
    reason: String,
}

/// Exits 1 when an object is not in force or a verdict is not the expected one,
/// 2 when the configuration itself is broken.
pub(super) fn main(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let offline = offline::read(&args.config)?;
    let expectations = match &args.expect {
        Some(file) => Some(compare(&offline, ask_all(file)?)?),
        None => None,
    };
    let report = report(&offline, expectations);
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", render(&report)),
    }
    let broken = report.conditions.iter().any(|condition| condition.severity == "error");
    let differs = report.expectations.iter().any(|found| !found.differences.is_empty());
    Ok(verdict(!broken && !differs))
}

fn compare(offline: &Offline, asked: Vec<Asked>) -> anyhow::Result<Expectations> {
    let mut explainer = Explainer::new(offline.derived.clone());
    let mut differences = Vec::new();
    let connections = asked.len();
    for Asked { line, value, query } in asked {
        let Some(expected) = value.get("expect").and_then(serde_json::Value::as_str) else {
            anyhow::bail!("line {line}: no \"expect\"; give it \"allow\" or \"deny\"");
        };
        let answer = explainer.answer_json(&query);
        let field = |name: &str| answer.get(name).and_then(serde_json::Value::as_str);
        let found = field("verdict").unwrap_or("error").to_owned();
        if found != expected {
            let reason = field("reason").or(field("error")).unwrap_or_default().to_owned();
            let expected = expected.to_owned();
            differences.push(Difference { line, query: value, expected, found, reason });
        }
    }
    Ok(Expectations { connections, differences })
}

fn report(offline: &Offline, expectations: Option<Expectations>) -> Report {
    let derived = &offline.derived;
    Report {
        node: derived.world.node.clone(),
        conditions: offline.conditions.iter().map(ConditionStatus::from).collect(),
        counts: Counts {
            remotes: derived.world.remotes.len(),
            routes: derived.resolved.routes.len(),
            vteps: derived.resolved.vteps.len(),
            identities: derived.identities.len(),
            tiers: derived.policies.tiers.len(),
            policies: derived.policies.tiers.iter().map(|tier| tier.policies.len()).sum(),
        },
        expectations,
    }
}

fn render(report: &Report) -> String {
    let mut columns = Columns::default();
    for condition in &report.conditions {
        let tone = if condition.severity == "error" { Tone::Bad } else { Tone::Warn };
        columns.row([
            paint(&condition.severity, tone),
            condition.cluster.clone(),
            condition.object.clone(),
            condition.message.clone(),
        ]);
    }
    let mut out = columns.render(0);
    let counts = &report.counts;
    out.push_str(&format!(
        "node {}: {} remote clusters, {} routes, {} tunnel ends, {} identities, {} policies in {} tiers\n",
        report.node,
        counts.remotes,
        counts.routes,
        counts.vteps,
        counts.identities,
        counts.policies,
        counts.tiers,
    ));
    if let Some(expectations) = &report.expectations {
        for difference in &expectations.differences {
            out.push_str(&format!(
                "{} line {}: expected {}, found {}: {}\n  {}\n",
                paint("differs", Tone::Bad),
                difference.line,
                difference.expected,
                difference.found,
                difference.reason,
                difference.query,
            ));
        }
        let differing = expectations.differences.len();
        let total = expectations.connections;
        out.push_str(&format!("{} of {total} connections as expected\n", total - differing));
    }
    out
}
