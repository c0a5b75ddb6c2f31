//! `tieline check`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use super::offline::{self, Offline};
use super::text::{Columns, Tone, paint};
use super::{Output, verdict};
use crate::admin::status::ConditionStatus;
use crate::policy::explain::{Explainer, Verdict};

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
        Some(file) => Some(compare(&offline, file)?),
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

fn compare(offline: &Offline, file: &Path) -> anyhow::Result<Expectations> {
    let mut explainer = Explainer::new(&offline.derived).brief();
    let mut expectations = Expectations { connections: 0, differences: Vec::new() };
    for (at, text) in super::explain::read(file)?.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        expectations.connections += 1;
        let place = || format!("{}: line {}", file.display(), at + 1);
        let query: serde_json::Value = serde_json::from_str(text).with_context(place)?;
        let (found, reason) = find(&mut explainer, &query).with_context(place)?;
        let expected = query["expect"].as_str();
        let Some(expected @ ("allow" | "deny")) = expected else {
            bail!("{}: expect: say \"allow\" or \"deny\"", place());
        };
        if found != expected {
            let (line, expected) = (at + 1, expected.to_owned());
            expectations.differences.push(Difference { line, query, expected, found, reason });
        }
    }
    Ok(expectations)
}

/// The verdict on a connection and its reason.
fn find(
    explainer: &mut Explainer<'_>,
    query: &serde_json::Value,
) -> anyhow::Result<(String, String)> {
    let mut asked = query.clone();
    if let Some(fields) = asked.as_object_mut() {
        fields.remove("expect");
    }
    let answer = explainer.explain(&serde_json::from_value(asked)?)?;
    let allowed = answer.verdict == Verdict::Allow;
    let sides = [&answer.egress, &answer.ingress].into_iter().flatten();
    let reasons: Vec<_> = sides
        .filter(|side| allowed || side.verdict == Verdict::Deny)
        .map(|side| side.reason.clone())
        .collect();
    let found = if allowed { "allow" } else { "deny" };
    Ok((found.to_owned(), reasons.join("; ")))
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
            identities: derived.identities().len(),
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
