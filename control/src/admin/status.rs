//! What `tieline status` shows: the daemon's state at one moment.
//!
//! The JSON form of these types is what `status -o json` prints. Fields are
//! only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state::{Condition, Severity};

/// The state of a daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Whether tables are in force and every worker runs.
    pub ready: bool,
    /// Memory of the daemon, with frames and all tables.
    #[serde(default)]
    pub memory: MemoryStatus,
    /// The configuration file.
    pub config: ConfigStatus,
    /// Underlay devices.
    pub underlay: Vec<DeviceStatus>,
    /// The gateway, once it exists.
    pub gateway: Option<GatewayStatus>,
    /// Workers with their two ports.
    pub workers: Vec<WorkerStatus>,
    /// Local and remote clusters, as [`crate::federation`] tells them.
    pub clusters: serde_json::Value,
    /// What Felix is told of remote clusters, as [`crate::mirror`] tells it;
    /// null where clusters are read from files.
    #[serde(default)]
    pub felix: serde_json::Value,
    /// Tables in force.
    pub tables: TableStatus,
    /// The other ends of the tunnels.
    pub vteps: Vec<VtepStatus>,
    /// Counters of all workers together.
    pub counters: BTreeMap<String, u64>,
    /// Dropped packets of all workers together, by reason; only those that
    /// occurred.
    pub drops: BTreeMap<String, u64>,
    /// What the operator should know, most severe first.
    pub conditions: Vec<ConditionStatus>,
}

/// Memory of the daemon.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Bytes that are there.
    pub resident_bytes: usize,
    /// What of it is on pages of 2 MiB.
    pub huge_bytes: usize,
}

/// The configuration file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its path.
    pub path: String,
    /// Why its present content is not in force, if it is not.
    pub error: Option<String>,
    /// Keys whose new values need a restart.
    pub restart_needed_for: Vec<String>,
}

/// An underlay device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// The underlay addresses that it has.
    pub addresses: Vec<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// How frames are taken from it, as in `AF_XDP native copy`.
    pub mode: String,
    /// Its queues.
    pub queues: u32,
}

/// The gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// The device that faces the kernel.
    pub device: String,
    /// The device that faces the workers.
    pub peer: String,
    /// MTU in bytes of packets to remote clusters.
    pub mtu: u32,
    /// How frames are taken from it.
    pub mode: String,
    /// Routes to remote prefixes that are in the kernel.
    pub routes: usize,
}

/// A worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: usize,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// The CPU that it should be pinned to.
    #[serde(default)]
    pub cpu_wanted: Option<usize>,
    /// Times that it was found to be pinned no more.
    #[serde(default)]
    pub pins_lost: u64,
    /// The underlay device and the queues that it serves, as in `eth0:0` or
    /// `eth0:0,2`.
    pub underlay: String,
    /// Those queues; none with a packet socket, which sees all.
    pub queues: Vec<u32>,
    /// Generation of the tables that it uses.
    pub generation: u64,
    /// Free frames.
    pub frames_free: u32,
    /// All frames.
    pub frames: u32,
    /// Pages that the frames are on, as in `2 MiB transparent` or `2 MiB
    /// reserved`.
    pub pages: String,
    /// Statistics of its underlay port.
    pub underlay_port: PortStatus,
    /// Statistics of its gateway port.
    pub gateway_port: PortStatus,
}

/// Statistics of a port.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct PortStatus {
    /// Frames received.
    pub received: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames lost before they reached the worker.
    pub receive_dropped: u64,
    /// Frames that the device or kernel refused to send.
    pub send_failed: u64,
}

/// Sizes of the tables in force.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct TableStatus {
    /// Grows by one with each change.
    pub generation: u64,
    /// Prefixes with an owner.
    pub routes: usize,
    /// Tunnel ends.
    pub vteps: usize,
    /// Addresses with an identity.
    pub endpoints: usize,
    /// Prefixes with a class.
    pub prefixes: usize,
    /// Policies of local endpoints.
    pub policies: usize,
    /// Places of the flow table; it works best half full.
    pub flow_capacity: usize,
    /// Bytes of the flow table.
    pub flow_bytes: usize,
    /// What of it is on pages of 2 MiB.
    #[serde(default)]
    pub flow_huge_bytes: usize,
    /// Live flows.
    pub flows: usize,
    /// Microseconds that the last change took from world to tables.
    pub last_change_microseconds: u64,
}

/// The other end of a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VtepStatus {
    /// Its cluster.
    pub cluster: String,
    /// Its node.
    pub node: String,
    /// Its underlay address.
    pub underlay: String,
    /// Its MAC within the overlay.
    pub mac: String,
    /// MAC of the next hop towards it, or why there is none.
    pub adjacency: String,
    /// Whether the next hop is resolved.
    pub resolved: bool,
}

/// Something that the operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionStatus {
    /// `error` or `warning`.
    pub severity: String,
    /// The cluster that the object is of.
    pub cluster: String,
    /// Kind and name.
    pub object: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl From<&Condition> for ConditionStatus {
    fn from(condition: &Condition) -> Self {
        Self {
            severity: match condition.severity {
                Severity::Warning => "warning",
                Severity::Error => "error",
            }
            .into(),
            cluster: condition.cluster.to_string(),
            object: condition.object.clone(),
            message: condition.message.clone(),
        }
    }
}
