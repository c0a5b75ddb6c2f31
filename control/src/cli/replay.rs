//! `tieline replay`: captures through the packet path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use tieline_dataplane::capture::{Reader, Record, Writer};
use tieline_dataplane::verdict::DropReason;

use super::offline;
use super::pipeline::{Pipeline, Side};
use super::text::{Columns, Tone, paint};
use super::{Output, verdict};

#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/tieline/tieline.toml")]
    config: PathBuf,
    /// Capture of frames that arrive from the underlay
    #[arg(long, value_name = "PCAP", required_unless_present = "gateway")]
    underlay: Option<PathBuf>,
    /// Capture of frames that local pods send
    #[arg(long, value_name = "PCAP")]
    gateway: Option<PathBuf>,
    /// Where to write the frames that are sent over the underlay
    #[arg(long, value_name = "PCAP")]
    to_underlay: Option<PathBuf>,
    /// Where to write the frames that are delivered to local pods
    #[arg(long, value_name = "PCAP")]
    to_gateway: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What `replay -o json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// One for each frame, in the order of time.
    frames: Vec<Fate>,
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct Fate {
    /// Place in its capture, from 1.
    number: usize,
    /// `underlay` or `gateway`.
    from: &'static str,
    /// `sent`, `delivered` or `dropped`.
    fate: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meaning: Option<&'static str>,
}

/// Exits 1 when a frame was dropped.
pub(super) fn main(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let offline = offline::read(&args.config)?;
    let mut pipeline = Pipeline::new(&offline)?;
    let mut frames = read(args.underlay.as_deref(), Side::Underlay)?;
    frames.extend(read(args.gateway.as_deref(), Side::Gateway)?);
    // Stable: frames of one moment keep the order of their captures.
    frames.sort_by_key(|(_, _, record)| record.time_ns);
    let mut to_underlay = args.to_underlay.as_deref().map(create).transpose()?;
    let mut to_gateway = args.to_gateway.as_deref().map(create).transpose()?;
    let mut fates = Vec::with_capacity(frames.len());
    for (side, number, record) in frames {
        let time_ns = record.time_ns;
        let (fate, out) = pass(&mut pipeline, side, number, record)?;
        let writer = match side {
            Side::Underlay => to_gateway.as_mut(),
            Side::Gateway => to_underlay.as_mut(),
        };
        if let (Some(writer), Some(out)) = (writer, out) {
            writer.write(time_ns, &out)?;
        }
        fates.push(fate);
    }
    for writer in [to_underlay, to_gateway].into_iter().flatten() {
        writer.finish().context("an output capture")?;
    }
    let tally = pipeline.tally();
    let counters = tally.named().into_iter().map(|(name, _, count)| (name.to_owned(), count));
    let report = Report { frames: fates, counters: counters.collect() };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", render(&report)),
    }
    Ok(verdict(report.frames.iter().all(|fate| fate.reason.is_none())))
}

/// Passes one frame, and returns what came out for it.
fn pass(
    pipeline: &mut Pipeline,
    side: Side,
    number: usize,
    record: Record,
) -> anyhow::Result<(Fate, Option<Vec<u8>>)> {
    let (from, sent) = match side {
        Side::Underlay => ("underlay", "delivered"),
        Side::Gateway => ("gateway", "sent"),
    };
    let passed = pipeline
        .pass(side, record.frame, record.time_ns)
        .with_context(|| format!("frame {number} from the {from}"))?;
    let fate = Fate {
        number,
        from,
        fate: if passed.dropped.is_some() { "dropped" } else { sent },
        reason: passed.dropped.map(DropReason::label),
        meaning: passed.dropped.map(DropReason::help),
    };
    Ok((fate, passed.out))
}

fn read(path: Option<&Path>, side: Side) -> anyhow::Result<Vec<(Side, usize, Record)>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let place = || format!("capture {}", path.display());
    let file = File::open(path).with_context(place)?;
    let records = Reader::new(BufReader::new(file)).with_context(place)?;
    let numbered = records.zip(1..).map(|(record, number)| Ok((side, number, record?)));
    numbered.collect::<anyhow::Result<_>>().with_context(place)
}

fn create(path: &Path) -> anyhow::Result<Writer<BufWriter<File>>> {
    let place = || format!("capture {}", path.display());
    let file = File::create(path).with_context(place)?;
    Writer::new(BufWriter::new(file)).with_context(place)
}

fn render(report: &Report) -> String {
    let mut columns = Columns::default();
    for fate in &report.frames {
        let tone = if fate.reason.is_some() { Tone::Bad } else { Tone::Good };
        columns.row([
            format!("{} {}", fate.from, fate.number),
            paint(fate.fate, tone),
            fate.reason.unwrap_or_default().to_owned(),
            fate.meaning.unwrap_or_default().to_owned(),
        ]);
    }
    columns.render(0)
}
