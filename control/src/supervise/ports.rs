//! Opening the ports, starting the workers, and stopping them again.
//!
//! Every queue of each underlay device belongs to a worker (`spread`). Each
//! worker has its own memory, its underlay port on those queues, and its gateway
//! port on the gateway queue of the worker's own number. In mode `auto` AF_XDP
//! is tried natively with zero copy, natively with copying, and generically;
//! where none of them can be had (and not because another program has the
//! device), the packet socket takes over, and a condition says so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tieline_config::schema::Mode as Wanted;
use tieline_dataplane::flow::FlowTable;
use tieline_dataplane::publish::Reader;
use tieline_dataplane::tables::Snapshot;
use tieline_dataplane::worker::{Heartbeat, Shared, Worker, WorkerConfig};
use tieline_dataplane::xsk::packet::UdpSink;
use tieline_dataplane::xsk::{filter, memlock};
use tracing::{info, warn};

use super::open::{Attached, Lane, Opened, fallback, is_contested};
use super::spread::Share;
use crate::causes::with_causes;
use crate::state::Condition;

/// A device whose queues are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DevicePlan {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) queues: u32,
}

/// What ports and workers follow from: when it changes, they are started anew.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PortPlan {
    pub(super) underlay: Vec<DevicePlan>,
    /// The gateway device that faces the workers, with a queue for each.
    pub(super) gateway: DevicePlan,
    /// What each worker serves.
    pub(super) shares: Vec<Share>,
    pub(super) mode: Wanted,
    /// VXLAN's UDP port.
    pub(super) port: u16,
    pub(super) liveness: Duration,
    /// For each queue that a worker serves.
    pub(super) frames: u32,
    pub(super) frame_size: u32,
    pub(super) worker: WorkerConfig,
}

/// A running worker.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    /// Its underlay device and queues.
    pub(super) underlay: String,
    /// The queues; none with a packet socket, which sees all.
    pub(super) queues: Vec<u32>,
    pub(super) pages: &'static str,
    /// Times that it was taken off its CPU, as far as the log has been told.
    pub(super) pins_lost: u64,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// The heartbeats of a worker: one for each of its queues.
struct Beats(Vec<filter::Heartbeat>);

impl Heartbeat for Beats {
    fn beat(&mut self, monotonic_ns: u64) {
        for heartbeat in &mut self.0 {
            heartbeat.beat(monotonic_ns);
        }
    }
}

/// Ports and workers that run.
pub(super) struct Dataplane {
    pub(super) plan: PortPlan,
    pub(super) workers: Vec<Running>,
    /// How frames are taken, by underlay device, and from the gateway.
    pub(super) underlay_modes: Vec<String>,
    pub(super) gateway_mode: String,
    pub(super) conditions: Vec<Condition>,
    attached: Vec<Attached>,
    /// Keeps the kernel from answering VXLAN that a packet socket has taken.
    _sink: Option<UdpSink>,
}

impl Dataplane {
    /// Opens everything and starts the workers. When it fails, nothing stays
    /// attached. `cpus` has one for each worker; empty: not pinned.
    pub(super) fn start(
        plan: PortPlan,
        cpus: &[usize],
        tables: impl Fn() -> Reader<Snapshot>,
        flows: &Arc<FlowTable>,
    ) -> anyhow::Result<Self> {
        // Where it can't be raised, registering memory says so in its error.
        let _ = memlock::raise();
        let opened = match plan.mode {
            Wanted::Packet => Opened::packet(&plan)?,
            Wanted::Auto => match Opened::xdp(&plan) {
                Err(error) if !is_contested(&error) => {
                    warn!(error = with_causes(&error), "AF_XDP can't be had");
                    let mut opened = Opened::packet(&plan)?;
                    opened.conditions.push(fallback(&error));
                    opened
                }
                other => other?,
            },
            _ => Opened::xdp(&plan)?,
        };
        let Opened { lanes, attached, underlay_modes, gateway_mode, conditions, sink } = opened;
        let mut dataplane = Self {
            plan,
            workers: Vec::new(),
            underlay_modes,
            gateway_mode,
            conditions,
            attached,
            _sink: sink,
        };
        for (number, lane) in lanes.into_iter().enumerate() {
            let cpu = cpus.get(number).copied();
            let running = dataplane.run(number, lane, cpu, tables(), flows.clone())?;
            dataplane.workers.push(running);
        }
        info!(
            workers = dataplane.workers.len(),
            underlay = dataplane.underlay_modes.join(", "),
            gateway = dataplane.gateway_mode,
            "ports open"
        );
        Ok(dataplane)
    }

    fn run(
        &self,
        number: usize,
        lane: Lane,
        cpu: Option<usize>,
        tables: Reader<Snapshot>,
        flows: Arc<FlowTable>,
    ) -> anyhow::Result<Running> {
        let pages = lane.area.pages();
        let config = WorkerConfig { cpu, ..self.plan.worker };
        let worker = Worker::new(
            config,
            lane.area,
            lane.underlay,
            lane.gateway,
            Beats(lane.heartbeats),
            tables,
            flows,
        );
        let shared = worker.shared();
        let thread = std::thread::Builder::new()
            .name(format!("tieline-{number}"))
            .spawn(move || worker.run())
            .context("no worker thread")?;
        let Lane { name: underlay, queues, .. } = lane;
        Ok(Running { shared, underlay, queues, pages, pins_lost: 0, thread: Some(thread) })
    }

    /// The XDP programs hand over VXLAN from exactly these VTEPs to exactly
    /// these addresses.
    pub(super) fn tell_filters(
        &mut self,
        peers: &BTreeSet<IpAddr>,
        own: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<()> {
        for attached in &mut self.attached {
            attached.filter.set_underlay(own)?;
            attached.filter.set_peers(peers)?;
        }
        Ok(())
    }

    /// Whether the kernel gets every frame as well: packet sockets take copies,
    /// only an XDP program keeps a frame from it.
    pub(super) fn takes_copies(&self) -> bool {
        self.attached.is_empty()
    }

    /// Fails when a worker has ended, which none does by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for running in &mut self.workers {
            if running.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                let ended = running.thread.take().map(JoinHandle::join);
                match ended {
                    Some(Ok(Err(error))) => return Err(error).context(running.underlay.clone()),
                    _ => anyhow::bail!("{}: for no known reason", running.underlay),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Dataplane {
    /// Detaches the XDP programs, so that the kernel gets the frames, and ends
    /// the workers.
    fn drop(&mut self) {
        self.attached.clear();
        for running in &self.workers {
            running.shared.stop();
        }
        for running in &mut self.workers {
            if let Some(thread) = running.thread.take() {
                // A worker that failed has said so; it is over either way.
                let _ = thread.join();
            }
        }
    }
}

/// When ports that could not be opened are tried again: later each time, because
/// an attempt takes up to a second of the control thread's time.
#[derive(Debug, Default)]
pub(super) struct Retry {
    at: Option<Instant>,
    wait: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    /// How an attempt has ended.
    pub(super) fn tell(&mut self, opened: bool) {
        if opened {
            *self = Self::default();
        } else {
            self.wait = (self.wait * 2).clamp(Self::FIRST, Self::LONGEST);
            self.at = Some(Instant::now() + self.wait);
        }
    }

    /// Whether it is time for another attempt.
    pub(super) fn is_due(&self) -> bool {
        self.at.is_none_or(|at| at <= Instant::now())
    }
}
