//! The daemon: sources, tables, ports and the kernel's side put together.
//!
//! ```text
//! federation --World--> derive --> tables (one swap) --> XDP peers --> kernel routes
//! netlink ----devices, adjacencies----^
//! config file, admin socket, signals: between two steps of the above
//! ```
//!
//! One loop on one thread: [`Daemon::step`] waits for the next thing to happen,
//! deals with it, and never waits for one remote cluster, device or asker.
//! Whatever happens, the outcome follows from the present state of the world,
//! the kernel and the configuration: [`Daemon::reconcile`] may be called at any
//! time and as often as one likes.
//!
//! Start reading at [`Daemon::step`]; `kernel` is the reconciliation, `ports`
//! the workers' life, `open` how they come by their queues, `cpus` where they
//! run, `mirror` what Felix is told, `reload` the configuration file, `report`
//! the status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::Context;
use tieline_config::Config;
use tieline_dataplane::flow::{FlowTable, Tick};
use tieline_dataplane::worker::monotonic_ns;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::flows::Flows;
use crate::admin::server::Server;
use crate::admin::{Asked, Desk, Explained, Request};
use crate::derive::{Derived, Deriver};
use crate::federation::Federation;
use crate::link::{Adjacency, Changed, Gateway, Netlink, Underlay};
use crate::publish::Tables;
use crate::state::{Condition, World};

mod cpus;
pub(crate) mod kernel;
mod log;
mod mirror;
mod open;
mod ports;
pub(crate) mod reload;
mod report;
mod spread;

use mirror::Mirroring;
use ports::Dataplane;
use reload::ConfigFile;

/// How often what nobody tells by itself is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Why there is no answer yet.
const UNKNOWN: &str = "the local cluster is not known yet; see `tieline status`";

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::load(config_path)?;
    let log = log::start(&config.log);
    abort_on_panic();
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut daemon = Daemon::start(config_path, config, log).await?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            ended = daemon.step() => if let Err(error) = ended {
                // The routes must not point at a gateway that nobody serves.
                daemon.stop().await;
                return Err(error);
            },
        }
    }
    daemon.stop().await;
    Ok(())
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

fn signal(kind: tokio::signal::unix::SignalKind) -> anyhow::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(kind).context("cannot listen for signals")
}

/// A panic is a defect of ours. The process ends at once: its XDP links go with
/// it, so the node's traffic goes to the kernel, and whoever supervises the
/// process starts a new one.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// The daemon's parts.
struct Daemon {
    node: String,
    config: ConfigFile,
    log: log::LogControl,
    started: Instant,
    federation: Federation,
    mirroring: Mirroring,
    netlink: Netlink,
    tables: Tables,
    flows: Arc<FlowTable>,
    asked: mpsc::Receiver<Asked>,
    deriver: Deriver,
    /// What the world amounts to; nothing before the local cluster is known.
    derived: Option<Arc<Derived>>,
    underlay: Underlay,
    gateway: Option<Gateway>,
    adjacencies: BTreeMap<IpAddr, Adjacency>,
    dataplane: Option<Dataplane>,
    kernel_routes: usize,
    /// Conditions of the kernel's side.
    conditions: BTreeMap<kernel::Step, Vec<Condition>>,
    ticks: tokio::time::Interval,
    retry: ports::Retry,
    /// Live flows, counted now and then off this thread.
    live_flows: Arc<AtomicUsize>,
    /// What the last change of the world took, from here to the tables.
    last_change: Duration,
}

impl Daemon {
    async fn start(path: &Path, config: Config, log: log::LogControl) -> anyhow::Result<Self> {
        let node = config.node_name()?;
        info!(node, version = env!("CARGO_PKG_VERSION"), "starting");
        let (desk, asked) = Desk::new();
        let socket = &config.admin.socket;
        let server = Server::bind(socket)
            .with_context(|| format!("admin.socket: cannot listen at {}", socket.display()))?;
        tokio::spawn(server.serve(desk.clone()));
        if let Some(address) = config.admin.metrics {
            crate::admin::http::serve(address, desk)
                .await
                .with_context(|| format!("admin.metrics: cannot listen at {address}"))?;
        }
        let entries = usize::try_from(config.flow_table.entries)?;
        let mut flows = FlowTable::new(entries, reload::timeouts(&config.flow_table.timeouts));
        if config.flow_table.counters {
            flows = flows.counting();
        }
        let federation = reload::federation(&node, &config);
        Ok(Self {
            mirroring: Mirroring::new(&config, &federation),
            federation: Federation::new(federation),
            node,
            config: ConfigFile::new(path, config)?,
            log,
            started: Instant::now(),
            netlink: Netlink::open()?,
            tables: Tables::default(),
            flows: Arc::new(flows),
            asked,
            deriver: Deriver::default(),
            derived: None,
            underlay: Underlay::default(),
            gateway: None,
            adjacencies: BTreeMap::new(),
            dataplane: None,
            kernel_routes: 0,
            conditions: BTreeMap::new(),
            ticks: ticks(),
            retry: ports::Retry::default(),
            live_flows: Arc::default(),
            last_change: Duration::ZERO,
        })
    }

    /// Waits for the next thing to happen and deals with it. Fails only when
    /// the daemon can't go on.
    async fn step(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            world = self.federation.changed() => self.take_world(world).await,
            changed = self.netlink.changed() => self.reconcile(changed?).await,
            () = self.config.changed() => self.reload().await,
            Some(asked) = self.asked.recv() => self.answer(asked),
            _ = self.ticks.tick() => self.tick().await?,
        }
        Ok(())
    }

    /// Works out what follows from a changed world. Tables come first: the time
    /// from a changed label to its effect is what users feel.
    async fn take_world(&mut self, world: Arc<World>) {
        if self.derived.as_ref().is_some_and(|derived| Arc::ptr_eq(&derived.world, &world)) {
            self.tell_mirror();
            return;
        }
        let begun = Instant::now();
        let new = Arc::new(self.deriver.derive(world));
        let old = self.derived.replace(new.clone());
        self.publish();
        self.last_change = begun.elapsed();
        self.tell_mirror();
        self.reconcile(kernel::due(old.as_deref(), &new)).await;
    }

    fn tell_mirror(&self) {
        if let Some(derived) = &self.derived {
            self.mirroring.tell(derived, &self.federation.status());
        }
    }

    /// What no event tells: workers that have ended or are on another CPU, old
    /// tables to free, a kernel's side that could not be set up or has other settings.
    async fn tick(&mut self) -> anyhow::Result<()> {
        self.tables.collect();
        self.mirroring.begin().await;
        self.tell_mirror();
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.check().context("a worker has ended")?;
            self.place_workers();
        } else if self.derived.is_some() && self.retry.is_due() {
            self.reconcile(Changed::ALL).await;
        }
        if let Some(gateway) = self.gateway.as_ref().filter(|gateway| !gateway.is_open()) {
            warn!(device = gateway.device, "rp_filter is strict, so answers may be dropped");
            self.reconcile(Changed::ALL).await;
        }
        report::age_flows(&self.flows, &self.live_flows);
        Ok(())
    }

    /// Takes over the configuration file's new content, whole or not at all.
    async fn reload(&mut self) {
        if !self.config.reload() {
            return;
        }
        self.log.apply(&self.config.current.log);
        let federation = reload::federation(&self.node, &self.config.current);
        self.mirroring.reconfigure(&self.config.current, &federation);
        self.federation.reconfigure(federation);
        self.reconcile(Changed::ALL).await;
    }

    /// Answers from the present state. What takes time is answered on another
    /// thread, from the state of this moment.
    fn answer(&mut self, asked: Asked) {
        match asked.request {
            Request::Status => asked.answer(&self.status()),
            Request::Ready => asked.answer(&self.ready()),
            Request::Explain { ref lines, text } => match self.derived.clone() {
                Some(derived) => {
                    let lines = lines.clone();
                    tokio::task::spawn_blocking(move || {
                        asked.answer(&Explained::new(&derived, &lines, text));
                    });
                }
                None => asked.refuse(UNKNOWN),
            },
            Request::Flows { ref of, limit } => match self.derived.clone() {
                Some(derived) => {
                    let (of, table) = (of.clone(), self.flows.clone());
                    tokio::task::spawn_blocking(move || {
                        let now = Tick::from_nanoseconds(monotonic_ns());
                        match Flows::new(&derived, &table, now, of.as_deref(), limit) {
                            Ok(flows) => asked.answer(&flows),
                            Err(error) => asked.refuse(&error.to_string()),
                        }
                    });
                }
                None => asked.refuse(UNKNOWN),
            },
        }
    }

    /// Leaves the node as it was found.
    async fn stop(mut self) {
        info!("stopping");
        // The kernel's routes go first, so that no packet is sent to a gateway
        // that nobody serves.
        let removed = self.netlink.remove(&self.gateway_spec()).await;
        if let Err(error) = removed {
            error!(%error, "the gateway is not removed");
        }
        self.dataplane = None;
        self.mirroring.stop().await;
    }
}
