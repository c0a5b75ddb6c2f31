//! Every key of the configuration file, in one place: what it means, its unit
//! and range, its default, and when a change of it takes effect.
//!
//! Live is what the daemon can change without a packet being lost: what
//! control works out the tables from, and what has nothing to do with packets.
//! Whatever a socket, a device, a worker or the flow table is made with at the
//! start needs a restart: making it anew would lose the frames or the flows
//! that it holds.
//!
//! Ranges and what keys demand of each other are checked in `check`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cpus::CpuList;
use crate::section::section;

section! {
    /// The configuration of one node's daemon.
    Config {
        /// Name of this node, as in the cluster's Node objects. Default: the environment variable
        /// NODE_NAME, else the host name.
        restart node: Option<String> = None => "\"node-a\"",
        /// Where clusters are read from.
        section datastore: Datastore = Datastore::default(),
        /// What is tunneled, and how.
        section overlay: Overlay = Overlay::default(),
        /// The devices that tunneled packets travel on.
        section underlay: Underlay = Underlay::default(),
        /// The way between the kernel and Tieline.
        section gateway: Gateway = Gateway::default(),
        /// The threads that handle packets.
        section workers: Workers = Workers::default(),
        /// What is remembered of connections.
        section flow_table: FlowTable = FlowTable::default(),
        /// Remote clusters.
        section federation: Federation = Federation::default(),
        /// What Calico's Felix is told of remote clusters.
        section felix: Felix = Felix::default(),
        /// How the daemon is talked to.
        section admin: Admin = Admin::default(),
        /// What the daemon writes to standard error.
        section log: Log = Log::default(),
    }
}

section! {
    /// Where clusters are read from.
    Datastore {
        /// Kind of datastore: "files", directories of Kubernetes and Calico manifests; or
        /// "kubernetes", the clusters' API servers.
        restart kind: DatastoreKind = DatastoreKind::Files,
        /// With "files": directory with the manifests of the local cluster. An absolute path.
        restart path: PathBuf = PathBuf::from("/etc/tieline/clusters/local"),
        /// With "files": directories with the manifests of remote clusters, each under the name
        /// of the RemoteClusterConfiguration that joins it. Absolute paths. A
        /// RemoteClusterConfiguration without an entry here is reported as incomplete. Default:
        /// none.
        live remotes: BTreeMap<String, PathBuf> = BTreeMap::new()
            => "{ db = \"/etc/tieline/clusters/db\" }",
        /// With "kubernetes": kubeconfig file for the local cluster's API server. An absolute
        /// path. Default: the pod's service account.
        restart kubeconfig: Option<PathBuf> = None => "\"/etc/tieline/kubeconfig\"",
        /// With "kubernetes": API group that the local cluster's Calico objects are read from,
        /// "crd.projectcalico.org" or "projectcalico.org"; or "auto", the one that Calico stores
        /// them in. Remote clusters' is always found out.
        restart calico_group: CalicoGroup = CalicoGroup::Auto,
        /// With "kubernetes": API group and version of RemoteClusterConfigurations. Default: the
        /// group of the other Calico objects if it has the kind, else the other one of Calico's
        /// two groups.
        restart rcc_group: Option<String> = None => "\"projectcalico.org/v3\"",
        /// With "kubernetes": whether kubeconfigs of remote clusters may have programs run on
        /// this node to get credentials (exec and auth-provider). Whoever may write the Secret of
        /// a RemoteClusterConfiguration then chooses what is run, with the daemon's rights.
        restart exec_plugins: bool = false,
        /// With "kubernetes": seconds that an API server may take to answer, 1 to 300.
        restart answer_timeout_seconds: u32 = 10,
        /// With "kubernetes": seconds of silence after which an API server is asked whether it
        /// still answers, 5 to 3600. Contact with one that hangs is lost after this and the
        /// former time together.
        restart silence_timeout_seconds: u32 = 30,
    }
}

/// What kind of datastore clusters are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// Directories of manifests on disk.
    Files,
    /// API servers.
    Kubernetes,
}

/// Which API group Calico's objects are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CalicoGroup {
    /// The one that Calico stores them in.
    #[serde(rename = "auto")]
    Auto,
    /// The older one.
    #[serde(rename = "crd.projectcalico.org")]
    Storage,
    /// The newer one.
    #[serde(rename = "projectcalico.org")]
    Native,
}

section! {
    /// What is tunneled, and how. VNI, port and MTU of the tunnels are Calico's and are read from
    /// its FelixConfiguration.
    Overlay {
        /// Which nodes are reached through Tieline: "federated", those of remote clusters only, so
        /// that Calico goes on carrying the traffic within the cluster; or "all", those of the
        /// local cluster as well.
        live scope: Scope = Scope::Federated,
        /// Whether to verify outer UDP checksums on receipt. Network cards have usually done so,
        /// and frames that never left the host carry unfinished ones. A checksum of zero is
        /// accepted either way, as RFC 7348 demands.
        live verify_checksum: bool = false,
        /// Whether to fill in the outer UDP checksum over an IPv6 underlay. Without it the
        /// checksum is zero, which RFC 6935 allows for tunnels but which the receiver must have
        /// been told to accept.
        live udp6_checksum: bool = true,
    }
}

/// Which nodes are reached through Tieline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Nodes of remote clusters.
    Federated,
    /// Nodes of remote clusters and of the local one.
    All,
}

section! {
    /// The devices that tunneled packets travel on.
    Underlay {
        /// Names of the devices. Default: those that have the node's underlay addresses.
        restart devices: Vec<String> = Vec::new() => "[\"eth0\"]",
        /// How packets are exchanged with the devices: "native-zero-copy", "native-copy" and
        /// "generic" are AF_XDP, best first; "packet" is a packet socket; "auto" takes the first of
        /// these four that the device can do. Any other value is a demand: while it can't be
        /// met, the daemon stays up, forwards nothing, reports the error and tries again
        /// every second.
        restart mode: Mode = Mode::Auto,
        /// Milliseconds without a sign of life from a worker after which the XDP program leaves
        /// its packets to the kernel, 500 to 60000. Idle workers give a sign every 200.
        restart liveness_timeout_ms: u32 = 1000,
        /// Number of receive queues of each device that are served, from queue 0 on, 1 to 256;
        /// workers.count says by how many workers. Packets that the device puts into other
        /// queues are left to the kernel, so let it have no others (ethtool -L) or steer the
        /// tunnels' packets away from them (ethtool -N). Default: all.
        restart queues: Option<u32> = None => "4",
    }
}

/// How packets are exchanged with the underlay's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The best that the device can do.
    Auto,
    /// AF_XDP, in the driver, without copying frames.
    NativeZeroCopy,
    /// AF_XDP, in the driver; the kernel copies frames.
    NativeCopy,
    /// AF_XDP on any device, after the kernel has made a socket buffer.
    Generic,
    /// A packet socket.
    Packet,
}

section! {
    /// The way between the kernel and Tieline: a veth pair.
    Gateway {
        /// Name of the end that the kernel routes to, 1 to 15 bytes.
        restart device: String = String::from("tieline0"),
        /// Name of the end that the workers have, 1 to 15 bytes.
        restart peer: String = String::from("tieline1"),
        /// MTU of the gateway and of the routes through it, in bytes, 1280 to 3756; at most 1708
        /// with frames of 2048 bytes. Default: the underlay's MTU less 50 bytes, or less 70 if any
        /// node is reached over IPv6; and no more than Calico's FelixConfiguration says.
        restart mtu: Option<u32> = None => "1450",
        /// Number by which Tieline knows its own routes and neighbors again (the kernel's route
        /// protocol), 5 to 255. It must be nobody else's: routes with this number are removed
        /// unless Tieline wants them.
        restart route_protocol: u8 = 133,
    }
}

section! {
    /// The threads that handle packets; one in all with packet sockets.
    Workers {
        /// Number of workers, 1 to 256. Each serves queues of one device, and the queues are
        /// spread evenly: no more workers run than there are queues, and no fewer than there are
        /// devices. Default: one for each CPU in workers.cpus, or one for each served queue
        /// if that is not set.
        restart count: Option<u32> = None => "2",
        /// CPUs to pin workers to, in this order, as a list of numbers and ranges such as "2-3,6".
        /// Workers share CPUs if there are more workers; CPUs outside the daemon's cpuset are left
        /// out. Isolated CPUs (isolcpus) can be named; nothing else puts workers there. Default:
        /// the CPUs that the daemon was given, the last one first, because the first ones take the
        /// most interrupts.
        restart cpus: Option<CpuList> = None => "\"2-3,6\"",
        /// What a worker does when there are no packets: "busy", look again as soon as nobody else
        /// wants the CPU, for the lowest latency and a whole CPU; "sleep" until the kernel reports
        /// one, for less than a thousandth of a CPU and a later first packet (57 us from device to
        /// device at the median where busy ones took 13); or "adaptive", look again for a while,
        /// then sleep.
        restart idle: Idle = Idle::Adaptive,
        /// Most packets that are handled together, 1 to 256. Larger batches spread fixed costs,
        /// smaller ones have less latency under load.
        restart batch: u32 = 64,
        /// Number of frames in the memory of each worker for each queue that it serves, a power of
        /// two, 512 to 1048576, and at least 8 batches. A quarter of them can wait in each direction,
        /// so that a worker that others keep from its CPU for some milliseconds loses none. The memory
        /// is locked, and on pages of 2 MiB where the machine gives them: reserved ones
        /// (vm.nr_hugepages) if enough are free, else transparent ones. So is the flow table.
        restart frames: u32 = 8192,
        /// Size of a frame in bytes, 2048 or 4096. Packets of more than 1708 bytes need 4096.
        restart frame_size: u32 = 2048,
    }
}

/// What a worker does when there are no packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// Look again as soon as nobody else wants the CPU.
    Busy,
    /// Look again for a while, then sleep.
    Adaptive,
    /// Sleep until the kernel reports a packet.
    Sleep,
}

section! {
    /// What is remembered of connections.
    FlowTable {
        /// Number of places for connections, 1024 to 67108864; taken up to the next power of two.
        /// Each takes 69 bytes, with counters 101. Plan two for each connection: fuller than half,
        /// new connections begin to find no place.
        restart entries: u32 = 65_536,
        /// Whether packets and bytes of each connection are counted, for `tieline flows`.
        restart counters: bool = true,
        /// How long a connection without packets is remembered.
        section timeouts: Timeouts = Timeouts::default(),
    }
}

section! {
    /// How long a connection without packets is remembered. All 1 to 2592000 (30 days).
    Timeouts {
        /// TCP until its initiator has gone on after the answer, in seconds.
        restart tcp_syn_seconds: u32 = 60,
        /// TCP after that, in seconds.
        restart tcp_established_seconds: u32 = 86_400,
        /// TCP after a reset, or after both ends have finished, in seconds.
        restart tcp_closing_seconds: u32 = 10,
        /// UDP without an answer, in seconds.
        restart udp_seconds: u32 = 30,
        /// UDP with an answer, in seconds.
        restart udp_replied_seconds: u32 = 120,
        /// ICMP and ICMPv6, in seconds.
        restart icmp_seconds: u32 = 30,
        /// Any other protocol, in seconds.
        restart other_seconds: u32 = 600,
        /// How long the later fragments of a packet are known by its first one, in seconds.
        restart fragments_seconds: u32 = 30,
    }
}

section! {
    /// Remote clusters.
    Federation {
        /// What happens to what is known of a remote cluster that can't be reached any more:
        /// "keep" it; "expire-identities", keep the routes but forget who the endpoints are, so
        /// that rules which select them stop to match; or "withdraw" all of it.
        live stale: Stale = Stale::Keep,
        /// Seconds without contact after which that happens, 1 to 2592000 (30 days). Without
        /// meaning for "keep".
        live stale_after_seconds: u32 = 600,
    }
}

/// What happens to what is known of a remote cluster that can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stale {
    /// It stays.
    Keep,
    /// Routes stay, identities go.
    ExpireIdentities,
    /// All of it goes.
    Withdraw,
}

section! {
    /// What Calico's Felix is told of remote clusters: it enforces policy on every pod too, and knows
    /// only what is in the local cluster's API. One daemon of the cluster writes there, if clusters
    /// are read from Kubernetes APIs and Felix is found.
    Felix {
        /// Remote endpoints' labels and addresses as GlobalNetworkSets, as far as local policies
        /// ask for them: "auto", unless Calico has a federation of its own; or "off", which
        /// removes those that there are.
        live mirror: Told = Told::Auto,
        /// Disabled IPPools over remote ranges, without which Felix rewrites the source of what
        /// local pods send there: "auto", where a pool has natOutgoing and none covers the range;
        /// or "off", which removes those that there are.
        live pools: Told = Told::Auto,
    }
}

/// Whether Felix is told of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// If it needs to be.
    Auto,
    /// Never.
    Off,
}

section! {
    /// How the daemon is talked to.
    Admin {
        /// Unix socket for the command line, readable by root only. An absolute path of at most 107
        /// bytes.
        restart socket: PathBuf = PathBuf::from("/run/tieline/tieline.sock"),
        /// Address and port to serve Prometheus metrics at, over HTTP, path /metrics. Default:
        /// metrics are not served.
        restart metrics: Option<SocketAddr> = None => "\"127.0.0.1:9095\"",
    }
}

section! {
    /// What the daemon writes to standard error.
    Log {
        /// The least level that is written: "error", "warn", "info", "debug" or "trace".
        live level: Level = Level::Info,
        /// "text" for people or "json" for machines, one object a line.
        live format: Format = Format::Text,
    }
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something may not work, or not for long.
    Warn,
    /// Something changed.
    Info,
    /// Why it changed.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// Its name in the file, which is also that of the `tracing` level.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Underlay {
    /// `liveness-timeout-ms` as a duration.
    pub const fn liveness_timeout(&self) -> Duration {
        Duration::from_millis(self.liveness_timeout_ms as u64)
    }
}

impl Workers {
    /// How many there are to be; `None`: as many as queues.
    pub fn wanted(&self) -> Option<u32> {
        let listed = || u32::try_from(self.cpus.as_ref()?.iter().count()).ok();
        self.count.or_else(listed)
    }

    /// The CPU of each of `workers` workers, of those that the daemon may run
    /// on. CPUs of the list that are not allowed are left out
    /// ([`Workers::forbidden`] names them); the result is empty if none is left.
    pub fn placement(&self, workers: usize, allowed: &[usize]) -> Vec<usize> {
        let cpus: Vec<usize> = match &self.cpus {
            Some(list) => list.iter().filter(|cpu| allowed.contains(cpu)).collect(),
            None => allowed.iter().rev().copied().collect(),
        };
        cpus.iter().copied().cycle().take(if cpus.is_empty() { 0 } else { workers }).collect()
    }

    /// CPUs of the list that the daemon may not run on: absent ones, or ones
    /// that its cgroup leaves out.
    pub fn forbidden(&self, allowed: &[usize]) -> Vec<usize> {
        self.cpus.iter().flat_map(CpuList::iter).filter(|cpu| !allowed.contains(cpu)).collect()
    }
}

impl Federation {
    /// `stale-after-seconds` as a duration.
    pub const fn stale_after(&self) -> Duration {
        Duration::from_secs(self.stale_after_seconds as u64)
    }
}
