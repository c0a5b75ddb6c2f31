//! The daemon: sources, tables, ports and the kernel's side put together.
//!
//! ```text
//! federation --World--> derive --> tables (one swap) --> XDP peers --> kernel routes
//! netlink ----adjacency, devices------^
//! config file, admin socket, signals: between two steps of the above
//! ```
//!
//! One loop on one thread: [`Daemon::step`] waits for the next thing to happen,
//! deals with it, and never waits for one remote cluster, device or asker.
//! Whatever happens, the outcome follows from the present state of the world,
//! the devices and the configuration: [`Daemon::reconcile`] may be called at
//! any time and as often as one likes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tieline_config::Config;
use tieline_dataplane::flow::FlowTable;
use tieline_dataplane::outer::{OVERHEAD_V4, OVERHEAD_V6};
use tieline_dataplane::tables::Overlay;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::server::Server;
use crate::admin::{Asked, Desk, Request, Response};
use crate::derive::{Derived, derive};
use crate::federation::Federation;
use crate::link::{Adjacency, Gateway, GatewaySpec, Netlink, UnderlayDevice};
use crate::policy::explain::Explainer;
use crate::publish::Tables;
use crate::state::{ClusterId, Condition, Severity, World};

mod log;
mod ports;
mod reload;
mod report;

use ports::{Dataplane, PortPlan};
use reload::ConfigFile;

/// How often what the kernel does not tell by itself is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Runs the daemon until SIGTERM or SIGINT.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = Config::load(config_path)?;
    let log = log::start(&config.log);
    abort_on_panic();
    let mut daemon = Daemon::start(config_path, config, log).await?;
    let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = daemon.step() => {}
        }
    }
    info!("stopping");
    daemon.stop().await;
    Ok(())
}

fn signal(kind: tokio::signal::unix::SignalKind) -> anyhow::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(kind).context("cannot listen for signals")
}

/// A panic is a defect of ours. The process ends at once: its XDP links go with
/// it, so the node's traffic goes to the kernel, and the kubelet starts a new
/// one.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// The daemon's parts.
struct Daemon {
    config: ConfigFile,
    log: log::LogControl,
    started: Instant,
    federation: Federation,
    netlink: Netlink,
    tables: Tables,
    flows: Arc<FlowTable>,
    asked: mpsc::Receiver<Asked>,
    metrics: report::Published,
    /// What the world amounts to; nothing before the local cluster is in sync.
    derived: Option<Derived>,
    explainer: Option<Explainer>,
    /// What the kernel's side looks like.
    devices: Vec<UnderlayDevice>,
    gateway: Option<Gateway>,
    adjacencies: BTreeMap<IpAddr, Adjacency>,
    kernel_routes: usize,
    dataplane: Option<Dataplane>,
    /// Conditions of the kernel's side, anew with every reconciliation.
    conditions: Vec<Condition>,
    last_change: Duration,
}

impl Daemon {
    async fn start(path: &Path, config: Config, log: log::LogControl) -> anyhow::Result<Self> {
        let (desk, asked) = Desk::new();
        let socket = &config.admin.socket;
        let server = Server::bind(socket)
            .with_context(|| format!("admin.socket: cannot listen at {}", socket.display()))?;
        tokio::spawn(server.serve(desk.clone()));
        let metrics = report::Published::default();
        if let Some(address) = config.admin.metrics {
            crate::admin::http::serve(address, metrics.clone())
                .await
                .with_context(|| format!("admin.metrics: cannot listen at {address}"))?;
        }
        tieline_dataplane::xsk::memlock::raise();
        let netlink = Netlink::open().context("cannot talk to the kernel's routing (netlink)")?;
        let flows = FlowTable::new(config.flow_table.entries, reload::timeouts(&config));
        info!(node = config.node, version = env!("CARGO_PKG_VERSION"), "starting");
        Ok(Self {
            federation: Federation::new(reload::federation(&config)),
            config: ConfigFile::new(path, config)?,
            log,
            started: Instant::now(),
            netlink,
            tables: Tables::default(),
            flows: Arc::new(flows),
            asked,
            metrics,
            derived: None,
            explainer: None,
            devices: Vec::new(),
            gateway: None,
            adjacencies: BTreeMap::new(),
            kernel_routes: 0,
            dataplane: None,
            conditions: Vec::new(),
            last_change: Duration::ZERO,
        })
    }

    /// Waits for the next thing to happen and deals with it.
    async fn step(&mut self) {
        tokio::select! {
            world = self.federation.changed() => self.take_world(world).await,
            () = self.netlink.changed() => self.reconcile().await,
            () = self.config.changed() => self.reload().await,
            Some(asked) = self.asked.recv() => self.answer(asked),
            () = tokio::time::sleep(TICK) => self.tick().await,
        }
    }

    /// Works out what follows from a changed world. Tables come first: the time
    /// from a changed label to its effect is what users feel.
    async fn take_world(&mut self, world: Arc<World>) {
        let begun = Instant::now();
        let derived = derive(world);
        self.derived = Some(derived);
        self.explainer = None;
        self.publish();
        self.last_change = begun.elapsed();
        self.reconcile().await;
    }

    /// Puts tables into force that follow from what is known right now.
    fn publish(&mut self) {
        let (Some(derived), Some(gateway)) = (&self.derived, &self.gateway) else { return };
        let overlay = overlay(&self.config.current, derived, gateway);
        let changed = self.tables.apply(
            overlay,
            &derived.resolved,
            &derived.compiled,
            &self.adjacencies,
        );
        if changed {
            info!(generation = self.tables.current().generation, "tables changed");
        }
    }

    /// Brings devices, ports, tables and kernel routes to what the present
    /// world, devices and configuration ask for.
    async fn reconcile(&mut self) {
        let Some(derived) = self.derived.clone() else { return };
        self.conditions.clear();
        let own = &derived.resolved.own;
        self.devices = match self.netlink.underlay(&own.underlay).await {
            Ok(devices) => devices,
            Err(error) => return self.stand_down("underlay", &error),
        };
        let plans = match self.device_plans() {
            Ok(plans) => plans,
            Err(error) => return self.stand_down("underlay.devices", &error),
        };
        let spec = self.gateway_spec(&derived, &plans);
        match self.netlink.ensure_gateway(&spec).await {
            Ok(gateway) => self.gateway = Some(gateway),
            Err(error) => return self.stand_down("gateway", &error),
        }
        self.ensure_ports(plans);
        let underlays = derived.resolved.vteps.values().map(|vtep| vtep.underlay).collect();
        self.adjacencies = self.netlink.adjacencies(&underlays).await;
        self.publish();
        self.tell_filters();
        self.sync_routes(&derived).await;
        self.report();
    }
}
