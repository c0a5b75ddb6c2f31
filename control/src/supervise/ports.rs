//! Opening the ports, starting the workers, and stopping them again.
//!
//! One worker per queue of each underlay device. Each has its own memory, its
//! underlay port on that queue, and its gateway port on the gateway queue of
//! the worker's own number. In mode `auto` AF_XDP is tried natively with zero
//! copy, natively with copying, and generically; where none of them can be had
//! (and not because another program has the device), the packet socket takes
//! over, and a condition says so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tieline_config::schema::Mode as Wanted;
use tieline_dataplane::flow::FlowTable;
use tieline_dataplane::port::Port;
use tieline_dataplane::port::xsk::{PacketPort, XskPort};
use tieline_dataplane::publish::Reader;
use tieline_dataplane::tables::Snapshot;
use tieline_dataplane::worker::{Heartbeat, Shared, Worker, WorkerConfig};
use tieline_dataplane::xsk::area::Area;
use tieline_dataplane::xsk::filter::{self, AttachError, Filter, FilterConfig, FilterError, Link};
use tieline_dataplane::xsk::memlock;
use tieline_dataplane::xsk::packet::{PacketSocket, Take, UdpSink};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig, SocketError};
use tracing::{info, warn};

use crate::causes::with_causes;
use crate::state::{ClusterId, Condition, Severity};

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
    pub(super) mode: Wanted,
    /// VXLAN's UDP port.
    pub(super) port: u16,
    pub(super) liveness: Duration,
    pub(super) frames: u32,
    pub(super) frame_size: u32,
    pub(super) worker: WorkerConfig,
    /// A CPU for each worker; empty: not pinned.
    pub(super) cpus: Vec<usize>,
}

impl PortPlan {
    /// Number of workers, and so of gateway queues.
    pub(super) fn workers(underlay: &[DevicePlan], mode: Wanted) -> u32 {
        // A packet socket sees every queue of its device.
        if mode == Wanted::Packet { 1 } else { underlay.iter().map(|device| device.queues).sum() }
    }
}

/// A running worker.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    /// Its underlay device and queue.
    pub(super) underlay: String,
    pub(super) pages: &'static str,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

/// A device with our XDP program on it, which is detached when this is dropped.
struct Attached {
    filter: Filter,
    _link: Link,
}

/// The heartbeats of a worker: one for each of its ports.
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

/// A worker's memory and ports, ready to run.
struct Lane {
    area: Area,
    underlay: Box<dyn Port<Area>>,
    gateway: Box<dyn Port<Area>>,
    heartbeats: Vec<filter::Heartbeat>,
    name: String,
}

impl Dataplane {
    /// Opens everything and starts the workers. When it fails, nothing stays
    /// attached.
    pub(super) fn start(
        plan: PortPlan,
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
            let running = dataplane.run(number, lane, tables(), flows.clone())?;
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
        tables: Reader<Snapshot>,
        flows: Arc<FlowTable>,
    ) -> anyhow::Result<Running> {
        let pages = lane.area.pages();
        let config = WorkerConfig { cpu: self.plan.cpus.get(number).copied(), ..self.plan.worker };
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
        Ok(Running { shared, underlay: lane.name, pages, thread: Some(thread) })
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

/// Everything that [`Dataplane::start`] has opened.
struct Opened {
    lanes: Vec<Lane>,
    attached: Vec<Attached>,
    underlay_modes: Vec<String>,
    gateway_mode: String,
    conditions: Vec<Condition>,
    sink: Option<UdpSink>,
}

/// One device opened by AF_XDP: a socket and a heartbeat for each queue.
struct OpenedDevice {
    attached: Attached,
    mode: Mode,
    sockets: Vec<Socket>,
}

impl Opened {
    fn xdp(plan: &PortPlan) -> anyhow::Result<Self> {
        let workers = PortPlan::workers(&plan.underlay, plan.mode);
        let areas = (0..workers)
            .map(|_| Area::new(plan.frames, plan.frame_size).context("a worker's frames"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut underlay = Vec::new();
        let mut first = 0;
        for device in &plan.underlay {
            let queues = usize::try_from(device.queues)?;
            let areas = &areas[first..first + queues];
            let modes = wanted_modes(plan.mode);
            underlay.push(open_device(plan, device, Filter::underlay, modes, areas)?);
            first += queues;
        }
        // The gateway is a veth, which never has zero copy.
        let modes: &[Mode] = match plan.mode {
            Wanted::Generic => &[Mode::Generic],
            _ => &[Mode::NativeCopy, Mode::Generic],
        };
        let gateway = open_device(plan, &plan.gateway, Filter::gateway, modes, &areas)?;
        Self::assemble(plan, areas, underlay, gateway)
    }

    fn assemble(
        plan: &PortPlan,
        areas: Vec<Area>,
        underlay: Vec<OpenedDevice>,
        gateway: OpenedDevice,
    ) -> anyhow::Result<Self> {
        let name = |mode: Mode| format!("AF_XDP {mode}");
        let underlay_modes = underlay.iter().map(|device| name(device.mode)).collect();
        let gateway_mode = name(gateway.mode);
        let mut gateway_queues = (0u32..).zip(gateway.sockets);
        let mut areas = areas.into_iter();
        let (mut lanes, mut attached) = (Vec::new(), Vec::new());
        for (device, opened) in plan.underlay.iter().zip(underlay) {
            for (queue, socket) in (0u32..).zip(opened.sockets) {
                let ((gateway_queue, gateway_socket), area) = gateway_queues
                    .next()
                    .zip(areas.next())
                    .context("fewer gateway queues than workers")?;
                lanes.push(Lane {
                    area,
                    underlay: Box::new(XskPort(socket)),
                    gateway: Box::new(XskPort(gateway_socket)),
                    heartbeats: vec![
                        opened.attached.filter.heartbeat(queue),
                        gateway.attached.filter.heartbeat(gateway_queue),
                    ],
                    name: format!("{}:{queue}", device.name),
                });
            }
            attached.push(opened.attached);
        }
        attached.push(gateway.attached);
        let conditions = Vec::new();
        Ok(Self { lanes, attached, underlay_modes, gateway_mode, conditions, sink: None })
    }

    fn packet(plan: &PortPlan) -> anyhow::Result<Self> {
        let [device] = &plan.underlay[..] else {
            anyhow::bail!(
                "a packet socket serves one underlay device, but there are {}; name one in \
                 underlay.devices",
                plan.underlay.len()
            );
        };
        let open = |device: &DevicePlan, take| {
            PacketSocket::open(device.index, take)
                .with_context(|| format!("no packet socket on {}", device.name))
        };
        let lane = Lane {
            area: Area::new(plan.frames, plan.frame_size).context("a worker's frames")?,
            underlay: Box::new(PacketPort(open(device, Take::UdpTo(plan.port))?)),
            gateway: Box::new(PacketPort(open(&plan.gateway, Take::All)?)),
            heartbeats: Vec::new(),
            name: device.name.clone(),
        };
        // Taken already means that the kernel's own vxlan device is there,
        // which does not answer either.
        let sink = UdpSink::open(plan.port).ok();
        Ok(Self {
            lanes: vec![lane],
            attached: Vec::new(),
            underlay_modes: vec!["packet socket".to_owned()],
            gateway_mode: "packet socket".to_owned(),
            conditions: Vec::new(),
            sink,
        })
    }
}

/// The modes to try, best first.
fn wanted_modes(wanted: Wanted) -> &'static [Mode] {
    match wanted {
        Wanted::NativeZeroCopy => &[Mode::NativeZeroCopy],
        Wanted::NativeCopy => &[Mode::NativeCopy],
        Wanted::Generic => &[Mode::Generic],
        Wanted::Auto | Wanted::Packet => &Mode::ALL,
    }
}

/// Opens every queue of a device in the first of `modes` in which all of them
/// open. `areas` has an area for each queue.
fn open_device(
    plan: &PortPlan,
    device: &DevicePlan,
    load: impl Fn(&FilterConfig) -> Result<Filter, FilterError>,
    modes: &[Mode],
    areas: &[Area],
) -> anyhow::Result<OpenedDevice> {
    let config = FilterConfig { port: plan.port, liveness: plan.liveness, queues: device.queues };
    let mut refusals = Vec::new();
    for mode in modes {
        let filter = load(&config)?;
        match open_mode(plan, device, filter, *mode, areas) {
            Ok(opened) => return Ok(opened),
            // Another's program or socket is in the way in every mode.
            Err(error) if is_contested(&error) => return Err(error),
            Err(error) => refusals.push(error),
        }
    }
    let words: Vec<String> = refusals.iter().map(with_causes).collect();
    let words = format!("{}: no mode of AF_XDP works: {}", device.name, words.join("; "));
    // The last refusal is the plainest mode's: its cause counts.
    match refusals.pop() {
        Some(last) => Err(last.context(words)),
        None => anyhow::bail!(words),
    }
}

/// Rings for an area that two sockets share: no fill ring can take so many
/// frames that the other goes without.
fn rings(frames: u32) -> SocketConfig {
    let quarter = (frames / 4).next_power_of_two().clamp(64, 4096);
    SocketConfig { fill: quarter, receive: quarter, transmit: quarter, completion: quarter }
}

fn open_mode(
    plan: &PortPlan,
    device: &DevicePlan,
    mut filter: Filter,
    mode: Mode,
    areas: &[Area],
) -> anyhow::Result<OpenedDevice> {
    let link = filter.attach(device.index, mode.native())?;
    let rings = rings(plan.frames);
    let mut sockets = Vec::new();
    for (queue, area) in (0u32..).zip(areas) {
        let socket = Socket::bind(area, device.index, queue, mode, &rings)?;
        filter.set_socket(queue, &socket)?;
        sockets.push(socket);
    }
    Ok(OpenedDevice { attached: Attached { filter, _link: link }, mode, sockets })
}

/// Whether somebody else has what we need: then we must not work around it.
fn is_contested(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(AttachError::Foreign { .. }))
        || matches!(error.downcast_ref(), Some(SocketError::Busy { .. }))
}

fn fallback(error: &anyhow::Error) -> Condition {
    Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: "underlay.mode".into(),
        message: format!(
            "the packet socket is in use, several times slower than AF_XDP, because AF_XDP can't \
             be had: {}",
            with_causes(error)
        ),
    }
}
