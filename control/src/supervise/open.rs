//! Opening the ports of all workers: memory, XDP programs and sockets.

use anyhow::Context;
use tieline_config::schema::Mode as Wanted;
use tieline_dataplane::port::Port;
use tieline_dataplane::port::queues::Queues;
use tieline_dataplane::port::xsk::{PacketPort, XskPort};
use tieline_dataplane::xsk::area::Area;
use tieline_dataplane::xsk::filter::{self, AttachError, Filter, FilterConfig, FilterError, Link};
use tieline_dataplane::xsk::packet::{PacketSocket, Take, UdpSink};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig, SocketError};

use super::ports::{DevicePlan, PortPlan};
use super::spread::Share;
use crate::causes::with_causes;
use crate::state::{ClusterId, Condition, Severity};

/// A device with our XDP program on it, which is detached when this is dropped.
pub(super) struct Attached {
    pub(super) filter: Filter,
    _link: Link,
}

/// A worker's memory and ports, ready to run.
pub(super) struct Lane {
    pub(super) area: Area,
    pub(super) underlay: Box<dyn Port<Area>>,
    pub(super) gateway: Box<dyn Port<Area>>,
    pub(super) heartbeats: Vec<filter::Heartbeat>,
    pub(super) name: String,
    pub(super) queues: Vec<u32>,
}

/// Everything that workers need, open.
pub(super) struct Opened {
    pub(super) lanes: Vec<Lane>,
    pub(super) attached: Vec<Attached>,
    pub(super) underlay_modes: Vec<String>,
    pub(super) gateway_mode: String,
    pub(super) conditions: Vec<Condition>,
    pub(super) sink: Option<UdpSink>,
}

/// One device opened by AF_XDP.
struct OpenedDevice {
    attached: Attached,
    mode: Mode,
    /// By worker.
    sockets: Vec<Vec<Socket>>,
}

/// The queues of a device that one worker serves, and how long their rings are.
struct Group<'a> {
    area: &'a Area,
    queues: &'a [u32],
    /// Of the first queue, which sends.
    first: SocketConfig,
    /// Of the others.
    others: SocketConfig,
}

impl Opened {
    pub(super) fn xdp(plan: &PortPlan) -> anyhow::Result<Self> {
        let area = |share: &Share| {
            let frames = plan.frames.saturating_mul(share.queues.len() as u32);
            Area::new(frames, plan.frame_size).context("a worker's frames")
        };
        let areas = plan.shares.iter().map(area).collect::<anyhow::Result<Vec<_>>>()?;
        let mut underlay = Vec::new();
        for (number, device) in plan.underlay.iter().enumerate() {
            let workers = plan.shares.iter().zip(&areas);
            let groups: Vec<Group<'_>> = workers
                .filter(|(share, _)| share.device == number)
                .map(|(share, area)| Group::underlay(area, &share.queues))
                .collect();
            underlay.push(open_device(
                plan,
                device,
                Filter::underlay,
                wanted_modes(plan.mode),
                &groups,
            )?);
        }
        // The gateway is a veth, which never has zero copy.
        let modes: &[Mode] = match plan.mode {
            Wanted::Generic => &[Mode::Generic],
            _ => &[Mode::NativeCopy, Mode::Generic],
        };
        let numbers: Vec<u32> = (0..).take(areas.len()).collect();
        let groups = areas.iter().zip(numbers.chunks(1));
        let groups: Vec<_> = groups.map(|(area, queue)| Group::gateway(area, queue)).collect();
        let gateway = open_device(plan, &plan.gateway, Filter::gateway, modes, &groups)?;
        drop(groups);
        Ok(Self::assemble(plan, areas, underlay, gateway))
    }

    fn assemble(
        plan: &PortPlan,
        areas: Vec<Area>,
        underlay: Vec<OpenedDevice>,
        gateway: OpenedDevice,
    ) -> Self {
        let name = |mode: Mode| format!("AF_XDP {mode}");
        let underlay_modes = underlay.iter().map(|device| name(device.mode)).collect();
        let gateway_mode = name(gateway.mode);
        let (mut attached, mut sockets) = (Vec::new(), Vec::new());
        for opened in underlay {
            attached.push(opened.attached);
            sockets.extend(opened.sockets);
        }
        let mut lanes = Vec::new();
        let ports = sockets.into_iter().zip(gateway.sockets);
        let shares = plan.shares.iter().zip(areas);
        for (((share, area), (underlay, gateway_sockets)), number) in shares.zip(ports).zip(0..) {
            let filter = &attached[share.device].filter;
            let beats = share.queues.iter().map(|queue| filter.heartbeat(*queue));
            let gateway_beat = gateway.attached.filter.heartbeat(number);
            let queues: Vec<_> = share.queues.iter().map(ToString::to_string).collect();
            lanes.push(Lane {
                area,
                underlay: port(underlay),
                gateway: port(gateway_sockets),
                heartbeats: beats.chain([gateway_beat]).collect(),
                name: format!("{}:{}", plan.underlay[share.device].name, queues.join(",")),
                queues: share.queues.clone(),
            });
        }
        attached.push(gateway.attached);
        Self { lanes, attached, underlay_modes, gateway_mode, conditions: Vec::new(), sink: None }
    }

    pub(super) fn packet(plan: &PortPlan) -> anyhow::Result<Self> {
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
            queues: Vec::new(),
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

/// A worker's sockets on one device as its port.
fn port(sockets: Vec<Socket>) -> Box<dyn Port<Area>> {
    match <[Socket; 1]>::try_from(sockets) {
        Ok([socket]) => Box::new(XskPort(socket)),
        Err(sockets) => Box::new(Queues::new(sockets.into_iter().map(XskPort).collect())),
    }
}

/// Opens every queue of a device in the first of `modes` in which all of them
/// open. The queues of each worker are in one of `groups`.
fn open_device(
    plan: &PortPlan,
    device: &DevicePlan,
    load: impl Fn(&FilterConfig) -> Result<Filter, FilterError>,
    modes: &[Mode],
    groups: &[Group<'_>],
) -> anyhow::Result<OpenedDevice> {
    let config = FilterConfig { port: plan.port, liveness: plan.liveness, queues: device.queues };
    let mut refusals = Vec::new();
    for mode in modes {
        let filter = load(&config)?;
        match open_mode(device, filter, *mode, groups) {
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

impl<'a> Group<'a> {
    /// Half of the area's frames are for receiving, one half of these for the
    /// underlay's queues, the other for the gateway: no fill ring can take so
    /// many that others go without.
    fn underlay(area: &'a Area, queues: &'a [u32]) -> Self {
        let one = ring(area.chunks() / queues.len().max(1) as u32);
        let all = ring(area.chunks());
        // What they send leaves by the first.
        let others = SocketConfig { fill: one, receive: one, transmit: 1, completion: 1 };
        let first = SocketConfig { transmit: all, completion: all, ..others };
        Self { area, queues, first, others }
    }

    fn gateway(area: &'a Area, queue: &'a [u32]) -> Self {
        let all = ring(area.chunks());
        let first = SocketConfig { fill: all, receive: all, transmit: all, completion: all };
        Self { area, queues: queue, first, others: first }
    }

    /// Binds the sockets, which share the area's registration.
    fn open(&self, device: &DevicePlan, mode: Mode) -> Result<Vec<Socket>, SocketError> {
        let mut sockets: Vec<Socket> = Vec::new();
        for queue in self.queues {
            sockets.push(match sockets.first() {
                None => Socket::bind(self.area, device.index, *queue, mode, &self.first)?,
                Some(first) => first.beside(self.area, *queue, &self.others)?,
            });
        }
        Ok(sockets)
    }
}

/// A quarter of these frames, as far as a ring can have so many.
fn ring(frames: u32) -> u32 {
    1 << (frames / 4).clamp(64, 4096).ilog2()
}

fn open_mode(
    device: &DevicePlan,
    mut filter: Filter,
    mode: Mode,
    groups: &[Group<'_>],
) -> anyhow::Result<OpenedDevice> {
    let link = filter.attach(device.index, mode.native())?;
    let mut sockets = Vec::new();
    for group in groups {
        let opened = group.open(device, mode)?;
        for (queue, socket) in group.queues.iter().zip(&opened) {
            filter.set_socket(*queue, socket)?;
        }
        sockets.push(opened);
    }
    Ok(OpenedDevice { attached: Attached { filter, _link: link }, mode, sockets })
}

/// Whether somebody else has what we need: then we must not work around it.
pub(super) fn is_contested(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(AttachError::Foreign { .. }))
        || matches!(error.downcast_ref(), Some(SocketError::Busy { .. }))
}

pub(super) fn fallback(error: &anyhow::Error) -> Condition {
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
