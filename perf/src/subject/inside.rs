//! The daemon's worker within this program, between a veth in the place of the
//! gateway and the underlay: for ports that the daemon does not have.
//!
//! ```text
//! p0 - p1: port, worker, port: u0
//! ```
//!
//! Tables and policy are those that the daemon makes of the manifests of
//! [`super::tieline`], put together by hand: one VTEP, one route, 32 pods on
//! each side, a policy of 100 rules.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::flow::{FlowTable, Timeouts};
use tieline_dataplane::port::Port;
use tieline_dataplane::port::xsk::XskPort;
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::tables::policy::Direction;
use tieline_dataplane::tables::{
    ClassId, Clause, Endpoint, EndpointPolicy, NodeId, Outcome, Overlay, Path, Policies, PolicyId,
    Program, Route, RuleId, Snapshot, VtepId, VtepSpec,
};
use tieline_dataplane::wire::{MacAddr, Vni};
use tieline_dataplane::worker::{Heartbeat, Idle, Shared, Worker, WorkerConfig};
use tieline_dataplane::xsk::area::Area;
use tieline_dataplane::xsk::filter::{self, Filter, FilterConfig, Link};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig};
use tieline_dataplane::xsk::{device, memlock};

use crate::bed::Bed;
use crate::flows;

use super::{Entry, Needs, Running, Subject};

/// Which sockets the worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// Our own, as in the daemon.
    Own,
    /// Those of the `afxdp` crate.
    Afxdp,
}

/// The worker on some sockets.
pub(crate) struct Inside {
    pub(crate) sockets: Sockets,
    /// Most packets in a batch.
    pub(crate) batch: usize,
}

/// Frames in each ring.
const RING: u32 = 1024;
const RULES: u16 = 100;

impl Subject for Inside {
    fn name(&self) -> String {
        match self.sockets {
            Sockets::Own => "worker",
            Sockets::Afxdp => "worker-afxdp",
        }
        .to_owned()
    }

    fn about(&self) -> String {
        let sockets = match self.sockets {
            Sockets::Own => "our own sockets",
            Sockets::Afxdp => "sockets of the afxdp crate, a copy of each frame in and out",
        };
        format!(
            "Tieline's worker in this program, polling, a policy of {RULES} rules, on {sockets}"
        )
    }

    fn set_up<'a>(&self, bed: &'a Bed, needs: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        #[cfg(not(feature = "port-afxdp"))]
        if self.sockets == Sockets::Afxdp {
            let how = "this program is built without it: cargo build --release -p tieline-perf \
                       --features port-afxdp, which needs make and the headers of libelf and zlib \
                       (apt-get install libelf-dev zlib1g-dev)";
            return Err(super::Missing(how.to_owned()).into());
        }
        let mut up = Up { bed, worker: None };
        bed.router.ip([
            "link add p0 type veth peer name p1",
            "link set p0 up",
            "link set p1 up",
        ])?;
        let Self { sockets, batch } = *self;
        let flows = Arc::new(FlowTable::new(needs.flows as usize * 4, Timeouts::default()));
        let cpu = bed.cpus.router;
        up.worker = Some(bed.router.run(move || start(sockets, batch, cpu, flows))??);
        Ok(Box::new(up))
    }
}

struct Up<'a> {
    bed: &'a Bed,
    worker: Option<Started>,
}

/// A worker's thread, and what must outlive it.
struct Started {
    shared: Arc<Shared>,
    thread: JoinHandle<std::io::Result<()>>,
    // Dropped after the thread has ended.
    _tables: Publisher<Snapshot>,
    _links: Vec<Link>,
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        Entry { netns: self.bed.router.clone(), device: "p0".to_owned(), mac: flows::D0 }
    }

    fn transcript(&self) -> String {
        let shared = self.worker.as_ref().map(|worker| &worker.shared);
        format!("ports: {:?}", shared.map(|shared| shared.ports()))
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if let Some(started) = self.worker.take() {
            started.shared.stop();
            // How it ended has been seen by what was measured.
            let _ = started.thread.join();
        }
        let _ = self.bed.router.ip(["link del p0"]);
    }
}

struct Beats(Vec<filter::Heartbeat>);

impl Heartbeat for Beats {
    fn beat(&mut self, monotonic_ns: u64) {
        self.0.iter_mut().for_each(|heartbeat| heartbeat.beat(monotonic_ns));
    }
}

/// Ports, links, and the heartbeats that the programs look for.
struct Ports {
    area: Area,
    gateway: Box<dyn Port<Area>>,
    underlay: Box<dyn Port<Area>>,
    beats: Beats,
    links: Vec<Link>,
}

/// In the router's namespace.
fn start(
    sockets: Sockets,
    batch: usize,
    cpu: usize,
    flows: Arc<FlowTable>,
) -> anyhow::Result<Started> {
    // Where it can't be raised, registering memory says so.
    let _ = memlock::raise();
    let ports = match sockets {
        Sockets::Own => own()?,
        Sockets::Afxdp => of_crate()?,
    };
    let tables = Publisher::new(snapshot());
    let config = WorkerConfig { cpu: Some(cpu), batch, idle: Idle::Busy };
    let Ports { area, gateway, underlay, beats, links } = ports;
    let worker = Worker::new(config, area, underlay, gateway, beats, tables.reader(), flows);
    let shared = worker.shared();
    let thread = std::thread::Builder::new().name("worker".to_owned());
    let thread = thread.spawn(move || worker.run()).context("no worker thread")?;
    Ok(Started { shared, thread, _tables: tables, _links: links })
}

fn own() -> anyhow::Result<Ports> {
    let area = Area::new(4 * RING, 2048)?;
    let (mut links, mut beats) = (Vec::new(), Vec::new());
    let mut open = |name: &str| {
        let liveness = std::time::Duration::from_secs(1);
        let config = FilterConfig { port: flows::VXLAN_PORT, liveness, queues: 1 };
        let mut filter = Filter::gateway(&config)?;
        let ifindex = device::index(name)?;
        links.push(filter.attach(ifindex, true)?);
        let rings = SocketConfig { fill: RING, receive: RING, transmit: RING, completion: RING };
        let socket = Socket::bind(&area, ifindex, 0, Mode::NativeCopy, &rings)?;
        filter.set_socket(0, &socket)?;
        beats.push(filter.heartbeat(0));
        anyhow::Ok(Box::new(XskPort(socket)))
    };
    let (gateway, underlay) = (open("p1")?, open("u0")?);
    Ok(Ports { area, gateway, underlay, beats: Beats(beats), links })
}

#[cfg(feature = "port-afxdp")]
fn of_crate() -> anyhow::Result<Ports> {
    use tieline_dataplane::port::afxdp::AfxdpPort;
    let area = Area::new(4 * RING, 2048)?;
    let (gateway, underlay) = (AfxdpPort::open("p1", RING)?, AfxdpPort::open("u0", RING)?);
    let (gateway, underlay) = (Box::new(gateway), Box::new(underlay));
    Ok(Ports { area, gateway, underlay, beats: Beats(Vec::new()), links: Vec::new() })
}

#[cfg(not(feature = "port-afxdp"))]
fn of_crate() -> anyhow::Result<Ports> {
    anyhow::bail!("built without the feature port-afxdp")
}

fn snapshot() -> Snapshot {
    let mut tables = Snapshot::empty();
    tables.generation = 1;
    let local = Addr::from_v4_bytes(flows::ROUTER_UNDERLAY.octets());
    tables.overlay = Arc::new(Overlay {
        vni: Vni::new(flows::VNI).unwrap_or_default(),
        port: flows::VXLAN_PORT,
        mac_v4: MacAddr(flows::LOCAL_VTEP),
        mac_v6: MacAddr(flows::LOCAL_VTEP),
        underlay: vec![local],
        verify_checksum: false,
        udp6_checksum: true,
        gateway_mac: MacAddr(flows::D0),
        gateway_source_mac: MacAddr(flows::G0),
    });
    let path =
        Path { source: local, source_mac: MacAddr(flows::U0), next_hop_mac: MacAddr(flows::S0) };
    let vtep = VtepSpec {
        node: NodeId(0),
        underlay: Addr::from_v4_bytes(flows::SINK_UNDERLAY.octets()),
        mac: MacAddr(flows::REMOTE_VTEP),
        path: Some(path),
    };
    tables.vteps.insert(VtepId(0), vtep);
    if let Some(block) = Prefix::new(flows::REMOTE_TUNNEL.into(), 26) {
        tables.routes.insert(block, Route::Vtep(VtepId(0)));
    }
    for pod in flows::pods() {
        let address = |pod: std::net::Ipv4Addr| Addr::from_v4_bytes(pod.octets());
        let here = Endpoint { class: ClassId(2), policy: Some(PolicyId(0)), local: true };
        tables.endpoints.insert(address(flows::local_pod(pod)), here);
        let there = Endpoint { class: ClassId(3), policy: None, local: false };
        tables.endpoints.insert(address(flows::remote_pod(pod)), there);
    }
    tables.policies = policies();
    tables
}

/// The last of the rules is about the flows.
fn policies() -> Policies {
    let clause = |port: u16, allow| Clause {
        protocols: [1 << 17, 0, 0, 0],
        sources: None,
        destinations: Some(vec![port..=port]),
        outcome: Outcome { allow, rule: RuleId(u32::from(port)) },
    };
    let mut clauses: Vec<Clause> =
        (1..RULES).map(|rule| clause(2000 + 3 * rule, rule % 2 == 0)).collect();
    clauses.push(clause(flows::PORT, true));
    let deny = Outcome { allow: false, rule: RuleId(0) };
    let (closed, open) = (Program::new(&[], deny), Program::new(&clauses, deny));
    let direction = Direction {
        by_class: (0..4).map(|class| u32::from(class == 3)).collect(),
        programs: Arc::new([Arc::new(closed), Arc::new(open)]),
    };
    let policy = EndpointPolicy { ingress: direction.clone(), egress: direction };
    Policies::new([Some(Arc::new(policy))])
}
