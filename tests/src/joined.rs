//! One of our nodes joined to a node of another cluster whose tunnel end is the
//! Linux kernel's vxlan device.
//!
//! ```text
//! client pod -- ours (tieline run) -- router -- theirs (kernel vxlan) -- server pod
//! ```
//!
//! The kernel's side is programmed as Felix does it. [`Joined`] writes the
//! manifests that describe both clusters to the daemon and starts it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tieline_lab::{
    Cluster, ClusterSpec, KernelVxlan, Lab, Netns, Node, NodeSpec, Pod, PodSpec, Process, Segment,
    Underlay, VxlanPeer,
};

/// How long something may take that normally takes well under a second.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// MTU of the underlay.
pub const UNDERLAY_MTU: usize = 1500;

/// Which tunnel ends both nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// Only IPv4: pods of both families over IPv4.
    V4,
    /// Only IPv6: pods of both families over IPv6.
    V6,
    /// Both: each family over its own.
    Both,
}

impl Outer {
    fn has(self, v6: bool) -> bool {
        self == Self::Both || (self == Self::V6) == v6
    }

    /// Largest packet of the pods: what the underlay carries less outer IP, UDP
    /// and VXLAN headers and the inner Ethernet header.
    pub fn mtu(self) -> usize {
        UNDERLAY_MTU - if self.has(true) { 70 } else { 50 }
    }
}

/// What is to be joined.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Tunnel ends.
    pub outer: Outer,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU of the pods' devices.
    pub pod_mtu: usize,
    /// How the daemon exchanges packets (`underlay.mode`).
    pub mode: &'static str,
    /// Pods on each node.
    pub pods: usize,
    /// Queues of the nodes' underlay devices.
    pub queues: u32,
    /// How many workers the daemon has (`workers.count`).
    pub workers: Option<u32>,
    /// The CPUs that the daemon's workers are to be on (`workers.cpus`).
    pub cpus: Option<&'static str>,
}

impl Setup {
    /// Calico's VNI and port, and pods that know the tunnel's MTU.
    pub fn new(outer: Outer) -> Self {
        Self {
            outer,
            vni: 4096,
            port: 4789,
            pod_mtu: outer.mtu(),
            mode: "auto",
            pods: 1,
            queues: 1,
            workers: None,
            cpus: None,
        }
    }
}

/// Two clusters side by side; ended when dropped.
#[derive(Debug)]
pub struct Joined {
    /// What it was made from.
    pub setup: Setup,
    /// Owns everything.
    pub lab: Lab,
    /// The network between the nodes.
    pub underlay: Underlay,
    /// The segment of our nodes.
    pub segment: Segment,
    /// Our cluster; the daemon is for the first node.
    pub ours: Cluster,
    /// The other cluster: one node.
    pub theirs: Cluster,
}

impl Joined {
    /// Brings both clusters up, the kernel's tunnel end included; ours is left
    /// to the daemon. Our cluster has nodes of these names.
    pub fn new(setup: Setup, our_nodes: &[&str]) -> Self {
        let lab = Lab::new("joined").unwrap();
        let mut underlay = Underlay::new(&lab, UNDERLAY_MTU as u32).unwrap();
        underlay.set_queues(setup.queues);
        let segments = (underlay.segment().unwrap(), underlay.segment().unwrap());
        Self::on(setup, lab, underlay, segments, our_nodes)
    }

    /// The same with one node on each side, over two devices that are there and
    /// joined already instead of over the router: ours takes the first, theirs
    /// the second.
    pub fn over(setup: Setup, devices: [&str; 2]) -> Self {
        let lab = Lab::new("joined").unwrap();
        let mut underlay = Underlay::new(&lab, UNDERLAY_MTU as u32).unwrap();
        let segment = underlay.segment_of(devices.map(str::to_owned));
        Self::on(setup, lab, underlay, (segment, segment), &["node-a"])
    }

    fn on(
        setup: Setup,
        lab: Lab,
        mut underlay: Underlay,
        (near, far): (Segment, Segment),
        our_nodes: &[&str],
    ) -> Self {
        let cluster = |name: &str, third: u8, nodes: Vec<NodeSpec>| ClusterSpec {
            name: name.to_owned(),
            pool_v4: [10, 244, third, 0].into(),
            pool_v6: format!("fd00:10:244:{third}::").parse().unwrap(),
            pod_mtu: setup.pod_mtu as u32,
            nodes,
        };
        let node = |name, segment, pod: &str| node(name, segment, pod, setup.pods);
        let nodes = our_nodes.iter().map(|name| node(name, near, &format!("on-{name}")));
        let ours = cluster("ours", 1, nodes.collect());
        let ours = Cluster::new(&lab, &mut underlay, &ours).unwrap();
        let theirs = cluster("theirs", 2, vec![node("kernel", far, "server")]);
        let theirs = Cluster::new(&lab, &mut underlay, &theirs).unwrap();
        let joined = Self { setup, lab, underlay, segment: near, ours, theirs };
        // A wire has no offloads: checksums are complete on it and packets no
        // longer than its MTU.
        disable_offloads(&joined.their_node().netns, "eth0");
        for v6 in [false, true] {
            if setup.outer.has(v6) {
                joined.tunnel(joined.their_node(), joined.our_node(), v6);
            }
        }
        joined
    }

    /// The node that the daemon runs on.
    pub fn our_node(&self) -> &Node {
        &self.ours.nodes[0]
    }

    /// The node with the kernel's tunnel end.
    pub fn their_node(&self) -> &Node {
        &self.theirs.nodes[0]
    }

    /// The first pod on our node.
    pub fn client(&self) -> &Pod {
        &self.our_node().pods[0]
    }

    /// The first pod on their node.
    pub fn server(&self) -> &Pod {
        &self.their_node().pods[0]
    }

    /// Gives a node the kernel's tunnel end of a family and the other node as
    /// its peer.
    pub fn tunnel(&self, at: &Node, peer: &Node, v6: bool) {
        let device = KernelVxlan {
            device: if v6 { "vxlan-v6.calico" } else { "vxlan.calico" }.to_owned(),
            vni: self.setup.vni,
            port: self.setup.port,
            local: underlay_address(at, v6),
            mac: mac(&at.name, v6),
            mtu: self.setup.outer.mtu() as u32,
            addresses: self.families(v6).map(|v6| host(tunnel_address(at, v6))).collect(),
        };
        device.create(&at.netns).unwrap();
        for inner_v6 in self.families(v6) {
            let peer = VxlanPeer {
                outer: underlay_address(peer, v6),
                mac: mac(&peer.name, v6),
                tunnel: tunnel_address(peer, inner_v6),
                routes: vec![block(peer, inner_v6)],
            };
            device.add_peer(&at.netns, &peer).unwrap();
        }
    }

    /// The inner families that a tunnel of this family carries.
    fn families(&self, v6: bool) -> impl Iterator<Item = bool> {
        let both = self.setup.outer != Outer::Both;
        [false, true].into_iter().filter(move |inner| both || *inner == v6)
    }

    /// Writes configuration and manifests and starts the daemon; several may
    /// follow each other under different names.
    pub fn start(&self, name: &str) -> Daemon {
        let write = |path: &Path, text: String| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let at = |name: &str| self.lab.dir().join(name);
        let mut local = self.manifests(&self.ours);
        local.push_str(REMOTE);
        write(&at("local/all.yaml"), local);
        write(&at("remote/all.yaml"), self.manifests(&self.theirs));
        let (socket, config) = (at("tieline.sock"), at("tieline.toml"));
        let text = format!(
            "node = '{}'\n[datastore]\nkind = 'files'\npath = '{}'\n[datastore.remotes]\n\
             theirs = '{}'\n[underlay]\nmode = '{}'\n[admin]\nsocket = '{}'\n[workers]\n{}{}",
            self.our_node().name,
            at("local").display(),
            at("remote").display(),
            self.setup.mode,
            socket.display(),
            self.setup.workers.map(|count| format!("count = {count}\n")).unwrap_or_default(),
            self.setup.cpus.map(|list| format!("cpus = '{list}'\n")).unwrap_or_default(),
        );
        write(&config, text);
        let mut command = Command::new(tieline());
        command.arg("run").arg("--config").arg(&config);
        let process = self.our_node().netns.spawn(name, command).unwrap();
        Daemon { process, netns: self.our_node().netns.clone(), socket }
    }

    /// A cluster's objects as its datastore holds them.
    fn manifests(&self, cluster: &Cluster) -> String {
        let mut text = String::new();
        let mut document = |kind: &str, name: &str, rest: &str| {
            let api = match kind {
                "Node" | "Pod" | "Namespace" => "v1",
                _ => "crd.projectcalico.org/v1",
            };
            let head = format!("apiVersion: {api}\nkind: {kind}\nmetadata:\n  name: {name}\n");
            text.push_str(&format!("{head}{rest}---\n"));
        };
        document("Namespace", "default", "");
        let (vni, port) = (self.setup.vni, self.setup.port);
        let felix = format!("spec: {{vxlanVNI: {vni}, vxlanPort: {port}, xdpEnabled: false}}\n");
        document("FelixConfiguration", "default", &felix);
        for v6 in [false, true] {
            let base = tunnel_address(&cluster.nodes[0], v6);
            let cidr = format!("{base}/{}", if v6 { 112 } else { 24 });
            let pool = format!("spec: {{cidr: '{cidr}', vxlanMode: Always, ipipMode: Never}}\n");
            document("IPPool", if v6 { "v6" } else { "v4" }, &pool);
        }
        for node in &cluster.nodes {
            document("Node", &node.name, &self.annotations(node));
            for v6 in [false, true] {
                let cidr = block(node, v6);
                let spec = format!("spec: {{cidr: '{cidr}', affinity: 'host:{}'}}\n", node.name);
                document("IPAMBlock", &cidr.replace([':', '.', '/'], "-"), &spec);
            }
            for pod in &node.pods {
                let (node, [v4, v6]) = (&node.name, pod.addresses());
                let rest = format!(
                    "  namespace: default\nspec: {{nodeName: {node}}}\n\
                     status: {{phase: Running, podIP: '{v4}', podIPs: [{{ip: '{v4}'}}, {{ip: '{v6}'}}]}}\n"
                );
                document("Pod", &pod.name, &rest);
            }
        }
        text
    }

    fn annotations(&self, node: &Node) -> String {
        let mut text = "  annotations:\n".to_owned();
        for v6 in [false, true].into_iter().filter(|v6| self.setup.outer.has(*v6)) {
            let (family, suffix) = if v6 { ("IPv6", "V6") } else { ("IPv4", "") };
            let length = if v6 { 64 } else { 24 };
            let (underlay, tunnel) = (underlay_address(node, v6), tunnel_address(node, v6));
            let mac = mac(&node.name, v6);
            for (key, value) in [
                (format!("{family}Address"), format!("{underlay}/{length}")),
                (format!("{family}VXLANTunnelAddr"), tunnel.to_string()),
                (format!("VXLANTunnelMACAddr{suffix}"), mac),
            ] {
                writeln!(text, "    projectcalico.org/{key}: '{value}'").unwrap();
            }
        }
        text
    }
}

const REMOTE: &str = "apiVersion: crd.projectcalico.org/v1\nkind: RemoteClusterConfiguration\n\
    metadata:\n  name: theirs\nspec: {syncOptions: {overlayRoutingMode: Enabled}}\n";

/// Its pods are called `POD`, `POD-2` and so on.
fn node(name: &str, segment: Segment, pod: &str, pods: usize) -> NodeSpec {
    let pods = (1..=pods).map(|number| {
        let name = if number == 1 { pod.to_owned() } else { format!("{pod}-{number}") };
        PodSpec { namespace: "default".to_owned(), name }
    });
    NodeSpec { name: name.to_owned(), segment, pods: pods.collect() }
}

/// The underlay address of a node.
pub fn underlay_address(node: &Node, v6: bool) -> IpAddr {
    if v6 { node.underlay.v6.into() } else { node.underlay.v4.into() }
}

fn tunnel_address(node: &Node, v6: bool) -> IpAddr {
    if v6 { node.block_v6.into() } else { node.block_v4.into() }
}

fn block(node: &Node, v6: bool) -> String {
    format!("{}/{}", tunnel_address(node, v6), if v6 { 122 } else { 26 })
}

fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// MAC of a node's tunnel end, as annotated: differs by node and family.
pub fn mac(node: &str, v6: bool) -> String {
    let sum = node.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    format!("66:00:00:00:{:02x}:{sum:02x}", u8::from(v6))
}

/// Makes the kernel finish checksums and cut segments before it hands a packet
/// to the device.
pub fn disable_offloads(netns: &Netns, device: &str) {
    netns.run(|| tieline_dataplane::xsk::device::disable_offloads(device)).unwrap().unwrap();
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    /// Its process.
    pub process: Process,
    netns: Netns,
    socket: PathBuf,
}

impl Daemon {
    /// What `tieline status -o json` prints, if the daemon answers.
    pub fn status(&self) -> Option<serde_json::Value> {
        let mut command = Command::new(tieline());
        command.args(["status", "-o", "json", "--socket"]).arg(&self.socket);
        let output = self.netns.output("status", command, PATIENCE).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// What `tieline explain -o json` answers to JSON lines in a file, line by
    /// line.
    pub fn explain(&self, queries: &Path) -> Vec<serde_json::Value> {
        let mut command = Command::new(tieline());
        command.args(["explain", "-o", "json", "--socket"]).arg(&self.socket);
        command.arg("--queries").arg(queries);
        let output = self.netns.output("explain", command, PATIENCE).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What `tieline flows -o json` prints of the flows of one end.
    pub fn flows(&self, of: &str) -> serde_json::Value {
        let mut command = Command::new(tieline());
        command.args(["flows", "-o", "json", "--of", of, "--socket"]).arg(&self.socket);
        let output = self.netns.output("flows", command, PATIENCE).unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the daemon is ready, knows the way to every tunnel end and
    /// has no error to report.
    pub fn wait_ready(&self) {
        let start = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(is_ready) {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE && self.process.try_wait().unwrap().is_none(),
                "the daemon does not get ready; status: {status:#?}\nlog: {}",
                self.process.transcript()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn is_ready(status: &serde_json::Value) -> bool {
    let list = |key: &str| status[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let errors = list("conditions").iter().any(|condition| condition["severity"] == "error");
    let resolved = list("vteps").iter().all(|vtep| vtep["resolved"] == true);
    status["ready"] == true && !list("vteps").is_empty() && resolved && !errors
}

/// The daemon's program: the one that the environment variable `TIELINE` names,
/// else it is built with the profile that this code was built with.
pub fn tieline() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("TIELINE") {
            return path.into();
        }
        // target/PROFILE/deps/TEST-HASH, or target/PROFILE/PROGRAM
        let own = std::env::current_exe().expect("the program's own path");
        let directory = own.ancestors().skip(1).find(|parent| !parent.ends_with("deps"));
        let directory = directory.expect("the target directory");
        let profile = directory.file_name().and_then(|name| name.to_str()).expect("a profile");
        let profile = if profile == "debug" { "dev" } else { profile };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--offline", "-p", "tieline", "--bin", "tieline"]);
        build.args(["--profile", profile]).current_dir(env!("CARGO_MANIFEST_DIR"));
        // What cargo tells a test of its package would make crates whose build
        // scripts look at it (ring) be built anew, here and next time.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
                build.env_remove(name);
            }
        }
        build.env_remove("CARGO_MANIFEST_DIR");
        assert!(build.status().expect("cargo must run").success(), "the daemon is built");
        directory.join("tieline")
    })
}
