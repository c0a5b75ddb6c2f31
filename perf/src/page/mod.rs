//! What people read: `report.html`, complete in one file, and Markdown tables.
//! Both are made from [`Results`] and nothing else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;

use crate::outcome::{BASELINE, Bar, Measure, Results, Row, human};
use crate::plan::SCENARIOS;

mod plot;

use plot::{Point, Series, escape};

/// Writes results.json, report.html and report.md.
///
/// # Errors
/// A file can't be written.
pub(crate) fn write(results: &Results, out: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(results).context("the results")? + "\n";
    let files =
        [("results.json", json), ("report.html", html(results)), ("report.md", markdown(results))];
    for (name, text) in files {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// A table for each scenario, the bars and the gaps.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for scenario in &results.scenarios {
        let rows = rows_of(results, &scenario.name);
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "\n## {}: {}\n\n| case | measure | subject | median | spread | runs | to {BASELINE} \
             |\n|---|---|---|---|---|---|---|",
            scenario.name, scenario.about
        );
        for row in rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                row.case,
                row.measure,
                row.subject,
                human(row.median, &row.unit),
                row.spread_text(),
                row.range_text(),
                ratio(results, row)
            );
        }
    }
    if !results.bars.is_empty() {
        text.push_str("\n## Bars\n\n| what | ratio | wanted | |\n|---|---|---|---|\n");
        for bar in &results.bars {
            let [ratio, wanted, met] = bar_cells(bar);
            let met = if bar.met == Some(false) { format!("**{met}**") } else { met };
            let _ = writeln!(text, "| {} | {ratio} | {wanted} | {met} |", bar.what);
        }
    }
    if !results.gaps.is_empty() {
        text.push_str("\n## Not measured\n\n| scenario | subject | why |\n|---|---|---|\n");
        for gap in &results.gaps {
            let reason = gap.reason.replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(text, "| {} | {} | {reason} |", gap.scenario, gap.subject);
        }
    }
    text
}

fn bar_cells(bar: &Bar) -> [String; 3] {
    let sign = if bar.at_least { "at least" } else { "at most" };
    let met = match bar.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "not measured",
    };
    let ratio = bar.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    [ratio, format!("{sign} {}", bar.wanted), met.to_owned()]
}

fn rows_of<'a>(results: &'a Results, scenario: &str) -> Vec<&'a Row> {
    results.rows.iter().filter(|row| row.scenario == scenario).collect()
}

/// The row's figure over the baseline's.
fn ratio(results: &Results, row: &Row) -> String {
    let base = results.of(BASELINE, row).filter(|base| base.median > 0.0);
    base.map_or("-".to_owned(), |base| format!("{:.2}", row.median / base.median))
}

const STYLE: &str = include_str!("report.css");

/// The subject that is no router.
const CEILING: &str = "wire";

/// The page.
fn html(results: &Results) -> String {
    let mut text = format!(
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' \
         content='width=device-width'><title>tieline-perf</title><style>{STYLE}</style></head>\
         <body><h1>tieline-perf</h1>"
    );
    text.push_str(&machine(results));
    text.push_str(&bars(results));
    for scenario in &results.scenarios {
        let rows = rows_of(results, &scenario.name);
        let _ = write!(
            text,
            "<h2 id='{0}'>{0}</h2><p>{1}.</p>",
            escape(&scenario.name),
            escape(&scenario.about)
        );
        if rows.is_empty() {
            text.push_str("<p>Nothing was measured: see below.</p>");
            continue;
        }
        text.push_str(&plots(results, &scenario.name, &rows));
        text.push_str(&table(results, &rows));
    }
    text.push_str(&gaps(results));
    text.push_str("</body></html>\n");
    text
}

fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = "<h2>What was measured, and on what</h2><table>".to_owned();
    let mut line = |name: &str, value: &str| {
        let _ = write!(text, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(value));
    };
    line("command", &results.command);
    line("version", &machine.version);
    line("CPU", &format!("{} x {}", machine.cpus, machine.cpu));
    line("kernel", &machine.kernel);
    line("mitigations", &machine.mitigations.join("; "));
    line("settings", &machine.settings.join("; "));
    let offloads: Vec<String> = match &results.offloads[..] {
        [] => vec!["nothing was measured".to_owned()],
        [all] => vec![all.name.clone()],
        some => some.iter().map(|set| format!("{} ({})", set.name, set.about)).collect(),
    };
    line("checksum and segmentation offloads", &offloads.join("; "));
    line("placement", &results.placement);
    let [before, after] = machine.load;
    line("load average before and after", &format!("{before:.2}, {after:.2}"));
    line(
        "latency",
        "each packet carries the time at which it was due, fixed before the run; latency counts \
         from then, so that what waits behind a stall is charged for it (no coordinated omission)",
    );
    line(
        "spread, range",
        "spread: half the distance between the quartiles, of fewer than five runs half their range, \
         over the median; range: of all runs, with the probability that the median of many more \
         is within (1 - 2^(1 - runs), whatever the distribution)",
    );
    text.push_str("</table><h3>Subjects</h3><table>");
    for subject in &results.subjects {
        let _ = write!(
            text,
            "<tr><th>{}</th><td>{}</td></tr>",
            escape(&subject.name),
            escape(&subject.about)
        );
    }
    text.push_str("</table>");
    text
}

fn bars(results: &Results) -> String {
    if results.bars.is_empty() {
        return String::new();
    }
    let mut text =
        "<h2>Bars</h2><table><tr><th>what</th><th>ratio</th><th>wanted</th><th></th></tr>"
            .to_owned();
    for bar in &results.bars {
        let [ratio, wanted, met] = bar_cells(bar);
        let class = match bar.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let what = escape(&bar.what);
        let _ = write!(
            text,
            "<tr><td>{what}</td><td class='n'>{ratio}</td><td>{wanted}</td><td class='{class}'>\
             {met}</td></tr>"
        );
    }
    text.push_str("</table>");
    text
}

fn gaps(results: &Results) -> String {
    let mut text = "<h2>Not measured</h2>".to_owned();
    if results.gaps.is_empty() {
        text.push_str("<p>Nothing was left out.</p>");
        return text;
    }
    text.push_str("<table><tr><th>scenario</th><th>subject</th><th>why</th></tr>");
    for gap in &results.gaps {
        let cells = [&gap.scenario, &gap.subject, &gap.reason].map(|cell| escape(cell));
        let _ = write!(text, "<tr><td>{}</td></tr>", cells.join("</td><td>"));
    }
    text.push_str("</table>");
    text
}

/// Measures that are in the table only.
fn is_drawn(row: &Row) -> bool {
    // What memory grows with is worth a plot.
    if row.measure == Measure::MEMORY.name {
        return row.scenario == "endpoints";
    }
    let [_, p90, _, p999, max] = Measure::LATENCY;
    let faults = Measure::FAULTS.map(|fault| fault.name);
    let name = row.measure.as_str();
    ![p90.name, p999.name, max.name].contains(&name) && !faults.contains(&name)
}

/// One plot for each measure, all subjects in it.
fn plots(results: &Results, scenario: &str, rows: &[&Row]) -> String {
    let axis = SCENARIOS.iter().find(|known| known.name == scenario).and_then(|known| known.axis);
    let mut text = String::new();
    let mut measures: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| is_drawn(row)) {
        if !measures.contains(&row.measure.as_str()) {
            measures.push(&row.measure);
        }
    }
    for measure in measures {
        let all = || rows.iter().copied().filter(|row| row.measure == measure);
        // The wire is so far ahead of every router that their bars would vanish.
        let of: Vec<&Row> = all().filter(|row| row.subject != CEILING).collect();
        let ceiling: Vec<String> = all()
            .filter(|row| row.subject == CEILING)
            .map(|row| format!("{} ({})", human(row.median, &row.unit), row.case))
            .collect();
        let ceiling = match &ceiling[..] {
            [] => String::new(),
            all => format!("; the ceiling, the wire alone: {}", all.join(", ")),
        };
        let unit = of.first().map(|row| row.unit.as_str()).unwrap_or_default();
        let direction = match of.first() {
            Some(row) if row.more_is_better => "more is better",
            _ => "less is better",
        };
        let plot = match axis {
            Some(axis) => plot::lines(unit, axis, &series(results, &of, |row| row.x)),
            None => {
                let mut groups: Vec<String> = Vec::new();
                for row in &of {
                    if !groups.contains(&row.case) {
                        groups.push(row.case.clone());
                    }
                }
                let place = |row: &Row, groups: &[String]| {
                    groups.iter().position(|group| *group == row.case).map(|at| at as f64)
                };
                plot::bars(unit, &groups, &series(results, &of, |row| place(row, &groups)))
            }
        };
        let _ = write!(
            text,
            "<figure><figcaption>{}, {direction}; bars and points are medians, thin lines the \
             range of all runs{ceiling}</figcaption>{plot}</figure>",
            escape(measure)
        );
    }
    text
}

fn series(results: &Results, rows: &[&Row], x: impl Fn(&Row) -> Option<f64>) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    let colour = |name: &str| results.subjects.iter().position(|about| about.name == name);
    for row in rows {
        let Some(x) = x(row) else { continue };
        let least = row.runs.iter().copied().fold(row.median, f64::min);
        let most = row.runs.iter().copied().fold(row.median, f64::max);
        let point = Point { x, value: row.median, least, most };
        match all.iter_mut().find(|series| series.name == row.subject) {
            Some(series) => series.points.push(point),
            None => all.push(Series {
                name: row.subject.clone(),
                colour: colour(&row.subject).unwrap_or(0),
                points: vec![point],
            }),
        }
    }
    all
}

fn table(results: &Results, rows: &[&Row]) -> String {
    let mut text = format!(
        "<details><summary>{} figures</summary><table><tr><th>case</th><th>measure</th>\
         <th>subject</th><th>median</th><th>spread</th><th>range</th><th>to {BASELINE}</th>\
         <th>runs</th><th>repeat</th></tr>",
        rows.len()
    );
    for row in rows {
        let runs: Vec<String> = row.runs.iter().map(|run| human(*run, &row.unit)).collect();
        let _ = write!(
            text,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class='n'>{}</td><td class='n'>{}</td>\
             <td class='n'>{}</td><td class='n'>{}</td><td class='n'>{}</td><td><code>{}</code></td>\
             </tr>",
            escape(&row.case),
            escape(&row.measure),
            escape(&row.subject),
            human(row.median, &row.unit),
            row.spread_text(),
            row.range_text(),
            ratio(results, row),
            runs.join(", "),
            escape(&row.repeat)
        );
    }
    text.push_str("</table></details>");
    text
}
