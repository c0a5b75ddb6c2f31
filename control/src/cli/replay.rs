//! `tieline replay`: captures through the packet path.
//!
//! The stages, tables and policies are those of the daemon; the ports are
//! memory. Next hops, which only a kernel could know, are made up.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Serialize;
use tieline_dataplane::capture::{Reader, Record, Writer};
use tieline_dataplane::flow::{FlowHasher, FlowTable};
use tieline_dataplane::frame::HeapMemory;
use tieline_dataplane::port::memory::{MemoryPort, MemoryWire};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::wire::MacAddr;
use tieline_dataplane::worker::{Idle, Shared, Worker, WorkerConfig};

use super::offline::{self, Offline};
use super::text::{Columns, Tone, paint};
use super::{Output, verdict};
use crate::link::Adjacency;
use crate::publish::Tables;
use crate::supervise::{kernel, reload};

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

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Underlay,
    Gateway,
}

/// Exits 1 when a frame was dropped.
pub(super) fn main(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let offline = offline::read(&args.config)?;
    let mut replay = Replay::new(&offline)?;
    let mut frames = read(args.underlay.as_deref(), Side::Underlay)?;
    frames.extend(read(args.gateway.as_deref(), Side::Gateway)?);
    // Stable: frames of one moment keep the order of their captures.
    frames.sort_by_key(|(_, _, record)| record.time_ns);
    let mut to_underlay = args.to_underlay.as_deref().map(create).transpose()?;
    let mut to_gateway = args.to_gateway.as_deref().map(create).transpose()?;
    let mut fates = Vec::with_capacity(frames.len());
    for (side, number, record) in frames {
        let (fate, out) = replay.pass(side, number, record.frame, record.time_ns)?;
        let writer = match side {
            Side::Underlay => to_gateway.as_mut(),
            Side::Gateway => to_underlay.as_mut(),
        };
        if let (Some(writer), Some(out)) = (writer, out) {
            writer.write(record.time_ns, &out)?;
        }
        fates.push(fate);
    }
    for writer in [to_underlay, to_gateway].into_iter().flatten() {
        writer.finish().context("an output capture")?;
    }
    let tally = replay.shared.counters.read();
    let counters = tally.named().into_iter().map(|(name, _, count)| (name.to_owned(), count));
    let report = Report { frames: fates, counters: counters.collect() };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", render(&report)),
    }
    Ok(verdict(report.frames.iter().all(|fate| fate.reason.is_none())))
}

/// A worker over memory.
struct Replay {
    worker: Worker<HeapMemory, ()>,
    shared: Arc<Shared>,
    underlay: MemoryWire,
    gateway: MemoryWire,
}

impl Replay {
    fn new(offline: &Offline) -> anyhow::Result<Self> {
        let derived = &offline.derived;
        let mac = |last| MacAddr([0x02, 0, 0, 0, 0, last]);
        let own = &derived.resolved.own.underlay;
        let adjacency = |vtep: &crate::resolve::ResolvedVtep| {
            let source = own.iter().find(|ip| ip.is_ipv4() == vtep.underlay.is_ipv4())?;
            let resolved = Adjacency::Resolved {
                source: *source,
                source_mac: mac(1),
                next_hop_mac: mac(2),
                device: 1,
            };
            Some((vtep.underlay, resolved))
        };
        let adjacencies = derived.resolved.vteps.values().filter_map(adjacency).collect();
        let overlay = kernel::overlay(&derived.resolved, &offline.config.overlay, (mac(3), mac(4)));
        let mut tables = Tables::default();
        tables.apply(overlay, &derived.resolved, &derived.compiled, &adjacencies);
        let flow_table = &offline.config.flow_table;
        let (entries, timeouts) =
            (usize::try_from(flow_table.entries)?, reload::timeouts(&flow_table.timeouts));
        // A fixed key: the same captures give the same bytes.
        let flows = FlowTable::with_hasher(entries, timeouts, FlowHasher::from_seed(0));
        let (underlay_port, underlay) = MemoryPort::new();
        let (gateway_port, gateway) = MemoryPort::new();
        let worker = Worker::new(
            WorkerConfig { cpu: None, batch: 1, idle: Idle::Sleep },
            HeapMemory::new(16, 1 << 17),
            Box::new(underlay_port),
            Box::new(gateway_port),
            (),
            tables.reader(),
            Arc::new(flows),
        );
        Ok(Self { shared: worker.shared(), worker, underlay, gateway })
    }

    /// Passes one frame, and returns what came out for it.
    fn pass(
        &mut self,
        side: Side,
        number: usize,
        frame: Vec<u8>,
        time_ns: u64,
    ) -> anyhow::Result<(Fate, Option<Vec<u8>>)> {
        let before = self.shared.counters.read().dropped;
        let (from, into, out, sent) = match side {
            Side::Underlay => ("underlay", &self.underlay, &self.gateway, "delivered"),
            Side::Gateway => ("gateway", &self.gateway, &self.underlay, "sent"),
        };
        into.put(frame);
        while self.worker.poll(time_ns) > 0 {}
        let after = self.shared.counters.read().dropped;
        let dropped = DropReason::ALL.iter().zip(before.iter().zip(after));
        let reason =
            dropped.filter(|(_, (before, after))| **before != *after).map(|(r, _)| *r).next();
        let frame = out.take();
        if frame.is_none() && reason.is_none() {
            bail!("frame {number} from the {from} is too long for the packet path");
        }
        let fate = Fate {
            number,
            from,
            fate: if reason.is_some() { "dropped" } else { sent },
            reason: reason.map(DropReason::label),
            meaning: reason.map(DropReason::help),
        };
        Ok((fate, frame))
    }
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
