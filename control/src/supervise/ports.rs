//! Opening the ports, starting the workers, and stopping them again.
//!
//! One worker per queue of each underlay device. Each has its own memory, its
//! underlay port on that queue, and its gateway port on the gateway queue of
//! the worker's own number. In mode `auto` AF_XDP is tried natively with zero
//! copy, natively with copying, and generically; where the kernel lets us do
//! none of them for want of privileges, the packet socket takes over, and that
//! is said in `status`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tieline_config::PortMode;
use tieline_dataplane::flow::FlowTable;
use tieline_dataplane::port::Port;
use tieline_dataplane::port::xsk::{Beats, PacketPort, XskPort};
use tieline_dataplane::publish::Reader;
use tieline_dataplane::tables::Snapshot;
use tieline_dataplane::worker::{Shared, Worker, WorkerConfig};
use tieline_dataplane::xsk::area::{Area, AreaError};
use tieline_dataplane::xsk::filter::{AttachError, BpfError, Filter, FilterConfig, Link};
use tieline_dataplane::xsk::packet::{PacketSocket, UdpSink};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig, SocketError};
use tracing::{info, warn};

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
    pub(super) mode: PortMode,
    /// VXLAN's UDP port.
    pub(super) port: u16,
    pub(super) liveness: Duration,
    pub(super) frames: u32,
    pub(super) frame_size: u32,
    pub(super) worker: WorkerConfig,
    /// CPUs for the workers in turn; empty: not pinned.
    pub(super) cpus: Vec<usize>,
}

/// Why ports can't be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error("no memory for a worker's frames: {0}")]
    Area(#[from] AreaError),
    #[error("no XDP program for {device}: {source}")]
    Filter { device: String, source: BpfError },
    #[error("{device}: {}", tried(reasons))]
    NoMode { device: String, reasons: Vec<(Mode, String)> },
    #[error("{device}: no packet socket: {source}")]
    Packet { device: String, source: std::io::Error },
    #[error("underlay.mode is \"packet\", which takes one underlay device, but there are {0}")]
    PacketDevices(usize),
    #[error("no worker thread: {0}")]
    Thread(std::io::Error),
}

fn tried(reasons: &[(Mode, String)]) -> String {
    let reasons: Vec<_> = reasons.iter().map(|(mode, why)| format!("{mode}: {why}")).collect();
    format!("no AF_XDP mode works ({})", reasons.join("; "))
}

/// A running worker.
pub(super) struct Running {
    pub(super) shared: Arc<Shared>,
    pub(super) underlay: String,
    pub(super) pages: &'static str,
    thread: JoinHandle<std::io::Result<()>>,
}

/// The XDP side of one device.
struct Attached {
    filter: Filter,
    /// Detaches when dropped.
    _link: Link,
}

/// Ports and workers that run.
pub(super) struct Dataplane {
    pub(super) plan: PortPlan,
    pub(super) workers: Vec<Running>,
    /// How frames are taken, by underlay device, and from the gateway.
    pub(super) underlay_modes: Vec<String>,
    pub(super) gateway_mode: String,
    underlay: Vec<Attached>,
    gateway: Option<Attached>,
    /// Keeps the kernel from answering VXLAN that a packet socket has taken.
    _sink: Option<UdpSink>,
}

impl Dataplane {
    /// Opens everything and starts the workers. When it fails, nothing stays
    /// attached.
    pub(super) fn start(
        plan: PortPlan,
        tables: impl Fn() -> Reader<Snapshot>,
        flows: &Arc<FlowTable>,
    ) -> Result<Self, PortError> {
        match Self::start_xdp(&plan, &tables, flows) {
            Err(PortError::NoMode { device, reasons })
                if plan.mode == PortMode::Auto && unprivileged(&reasons) =>
            {
                warn!(device, "AF_XDP is not permitted here: taking the packet socket");
                Self::start_packet(plan, &tables, flows)
            }
            Err(PortError::Filter { device, source })
                if plan.mode == PortMode::Auto && source.is_permission() =>
            {
                warn!(device, "XDP programs are not permitted here: taking the packet socket");
                Self::start_packet(plan, &tables, flows)
            }
            other => other,
        }
    }
}
