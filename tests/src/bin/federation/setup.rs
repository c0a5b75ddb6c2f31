//! The clusters: one here, three remote ones, and the daemon's life.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tieline::resolve::mac_v4;
use tieline_lab::{
    Capture, Cluster, ClusterSpec, KernelVxlan, Lab, Node, NodeSpec, Pod, PodSpec, Process,
    Underlay, VxlanPeer,
};
use tieline_tests::joined::tieline;
use tieline_tests::kube::calico::Group;
use tieline_tests::kube::{ApiCluster, access, nodes};

const PATIENCE: Duration = Duration::from_secs(120);
const MTU: u32 = 1500;
/// Where the remote's rights and access are, as in Calico's guide.
const ACCESS: (&str, &str) = ("kube-system", "tigera-federation-remote-cluster");
const REMOTES: [&str; 3] = ["one", "two", "three"];
/// What a remote's nodes in bulk have.
const NODES: usize = 100;

/// Packets from here to pods with the label `role: open`, and no others.
const POLICY: &str = "apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkPolicy
metadata: {name: default.only-open}
spec:
  tier: default
  selector: all()
  types: [Egress]
  egress:
    - action: Allow
      destination: {selector: role == 'open'}
";

/// All clusters; gone when dropped.
pub(crate) struct Setup {
    lab: Lab,
    _underlay: Underlay,
    ours: Cluster,
    theirs: Cluster,
    /// The local cluster's API.
    pub(crate) local: ApiCluster,
    /// The remote clusters'.
    pub(crate) remotes: Vec<ApiCluster>,
    pods: usize,
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    /// Its process.
    pub(crate) process: Process,
    socket: PathBuf,
}

impl Setup {
    /// Brings the clusters up, with so many pods in the remote ones together.
    pub(crate) fn new(program: &Path, pods: usize) -> Self {
        let lab = Lab::new("figures").unwrap();
        let mut underlay = Underlay::new(&lab, MTU).unwrap();
        let segment = underlay.segment().unwrap();
        let mut cluster = |name: &str, third: u8| {
            let pod = PodSpec { namespace: "default".to_owned(), name: format!("{name}-pod") };
            let node = NodeSpec { name: format!("{name}-node"), segment, pods: vec![pod] };
            let spec = ClusterSpec {
                name: name.to_owned(),
                pool_v4: [10, 244, third, 0].into(),
                pool_v6: format!("fd00:10:244:{third}::").parse().unwrap(),
                pod_mtu: MTU - 50,
                nodes: vec![node],
            };
            Cluster::new(&lab, &mut underlay, &spec).unwrap()
        };
        let (ours, theirs) = (cluster("ours", 1), cluster("theirs", 2));
        let mut api = |name: &str| ApiCluster::on(&lab, program, name, &mut underlay, segment);
        let local = api("local");
        let remotes = REMOTES.map(&mut api).into();
        let setup = Self { lab, _underlay: underlay, ours, theirs, local, remotes, pods };
        setup.tunnel();
        setup.fill();
        setup.join();
        setup
    }

    /// The kernel's end of the tunnel.
    fn tunnel(&self) {
        let (ours, theirs) = (&self.ours.nodes[0], &self.theirs.nodes[0]);
        let device = KernelVxlan {
            device: "vxlan.calico".to_owned(),
            vni: 4096,
            port: 4789,
            local: theirs.underlay.v4.into(),
            mac: mac_v4(&theirs.name).to_string(),
            mtu: MTU - 50,
            addresses: vec![format!("{}/32", theirs.block_v4)],
        };
        device.create(&theirs.netns).unwrap();
        let peer = VxlanPeer {
            outer: ours.underlay.v4.into(),
            mac: mac_v4(&ours.name).to_string(),
            tunnel: ours.block_v4.into(),
            routes: vec![format!("{}/26", ours.block_v4)],
        };
        device.add_peer(&theirs.netns, &peer).unwrap();
    }

    /// Writes everything but what joins them.
    fn fill(&self) {
        let label = |_: &Pod| vec![("role", "open")];
        for api in std::iter::once(&self.local).chain(&self.remotes) {
            api.apply(&Group::Storage.crds());
        }
        self.local.apply(&manifest("remoteclusterconfigurations.yaml"));
        self.local.apply(&manifest("kubernetes.yaml"));
        let (namespace, _) = ACCESS;
        let role = manifest("secret-access.yaml");
        let args = ["-n", namespace, "apply", "-f", "-"];
        let output = self.local.kubectl_with(&self.local.admin(), &args, Some(&role));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        nodes::write(&self.local, &self.ours, Group::Storage, label);
        self.local.apply(POLICY);
        nodes::write(&self.remotes[0], &self.theirs, Group::Storage, label);
        for (at, api) in self.remotes.iter().enumerate() {
            api.apply(&manifest("remote-access.yaml"));
            self.bulk(at, "load", &[]);
            let kubeconfig = access::guide_kubeconfig(api, namespace, ACCESS.1);
            let file = self.lab.dir().join(format!("{}.kubeconfig", REMOTES[at]));
            std::fs::write(&file, kubeconfig).unwrap();
            self.local.kubectl(&[
                "-n",
                namespace,
                "create",
                "secret",
                "generic",
                &format!("remote-{}", REMOTES[at]),
                "--from-literal=datastoreType=kubernetes",
                &format!("--from-file=kubeconfig={}", file.display()),
            ]);
        }
    }

    /// Runs a verb of the bulk loader for a remote; its report.
    pub(crate) fn bulk(&self, at: usize, verb: &str, flags: &[&str]) -> Value {
        let pool = format!("10.{}.0.0/14", 128 + 4 * at);
        let underlay = format!("10.{}.0.0/16", 200 + at);
        let (pods, nodes) = ((self.pods / 3).to_string(), NODES.to_string());
        let mut all = vec![
            "--prefix",
            REMOTES[at],
            "--pods",
            &pods,
            "--nodes",
            &nodes,
            "--namespaces",
            "50",
            "--roles",
            "100",
            "--pool",
            &pool,
            "--underlay",
            &underlay,
        ];
        all.extend(flags);
        self.remotes[at].bulk(verb, &all, Duration::from_secs(600))
    }

    /// Writes the RemoteClusterConfigurations.
    pub(crate) fn join(&self) {
        let all = REMOTES.map(|name| {
            format!(
                "apiVersion: projectcalico.org/v3\nkind: RemoteClusterConfiguration\n\
                 metadata: {{name: {name}}}\nspec:\n  clusterAccessSecret: {{kind: Secret, \
                 namespace: {}, name: remote-{name}}}\n  syncOptions: \
                 {{overlayRoutingMode: Enabled}}\n",
                ACCESS.0
            )
        });
        self.local.apply(&all.join("---\n"));
    }

    /// Deletes the RemoteClusterConfigurations.
    pub(crate) fn leave(&self) {
        self.local.kubectl(&["delete", "remoteclusterconfigurations.projectcalico.org", "--all"]);
    }

    /// Starts the daemon, with the rights that are shipped.
    pub(crate) fn start(&self, name: &str) -> Daemon {
        let at = |file: &str| self.lab.dir().join(file);
        let kubeconfig = access::account_kubeconfig(&self.local, "tieline-system", "tieline");
        let text = format!(
            "node = '{}'\n[datastore]\nkind = 'kubernetes'\nkubeconfig = '{}'\n[admin]\n\
             socket = '{}'\n",
            self.ours.nodes[0].name,
            kubeconfig.display(),
            at("tieline.sock").display(),
        );
        std::fs::write(at("tieline.toml"), text).unwrap();
        let mut command = Command::new(tieline());
        command.arg("run").arg("--config").arg(at("tieline.toml"));
        let process = self.node().netns.spawn(name, command).unwrap();
        Daemon { process, socket: at("tieline.sock") }
    }

    /// Waits until the status is as wanted; how long that was since `begun`.
    pub(crate) fn wait(
        &self,
        daemon: &Daemon,
        begun: Instant,
        wanted: impl Fn(&Value) -> bool,
    ) -> Duration {
        loop {
            let status = self.status(daemon);
            if status.as_ref().is_some_and(&wanted) {
                return begun.elapsed();
            }
            assert!(
                begun.elapsed() < PATIENCE && daemon.process.try_wait().unwrap().is_none(),
                "the daemon does not get there; status: {status:#?}\nlog: {}",
                daemon.process.transcript()
            );
            sleep(Duration::from_millis(10));
        }
    }

    fn status(&self, daemon: &Daemon) -> Option<Value> {
        let mut command = Command::new(tieline());
        command.args(["status", "-o", "json", "--socket"]).arg(&daemon.socket);
        let output = self.node().netns.output("status", command, PATIENCE).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Whether the kernel has a route for every block of the remotes.
    pub(crate) fn routed(&self, status: &Value) -> bool {
        let blocks = REMOTES.len() * (self.pods / 3).div_ceil(63).max(NODES);
        status["gateway"]["routes"].as_u64().is_some_and(|routes| routes as usize >= blocks)
    }

    /// Counts what the node sends to API servers for so long: segments with
    /// content. TLS records of an HTTP request are such; acknowledgements not.
    pub(crate) fn requests(&self, within: Duration) -> usize {
        let capture = Capture::start(&self.node().netns, "eth0").unwrap();
        sleep(within);
        capture.frames().iter().filter(|frame| frame.outgoing && asks(&frame.bytes)).count()
    }

    fn node(&self) -> &Node {
        &self.ours.nodes[0]
    }

    /// The pod here.
    pub(crate) fn client(&self) -> &Pod {
        &self.node().pods[0]
    }

    /// The pod there.
    pub(crate) fn server(&self) -> &Pod {
        &self.theirs.nodes[0].pods[0]
    }
}

/// Whether a frame is a TCP segment with content to an API server, over IPv4.
fn asks(frame: &[u8]) -> bool {
    const PORT: [u8; 2] = 6443_u16.to_be_bytes();
    let Some([8, 0]) = frame.get(12..14) else { return false };
    let Some(packet) = frame.get(14..) else { return false };
    let header = usize::from(packet.first().unwrap_or(&0) & 15) * 4;
    let total = packet.get(2..4).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let Some(segment) = packet.get(header..total) else { return false };
    let is_tcp = packet.get(9) == Some(&6) && segment.get(2..4) == Some(&PORT);
    is_tcp && segment.get(12).is_some_and(|offset| segment.len() > usize::from(offset >> 4) * 4)
}

fn manifest(name: &str) -> String {
    let path = format!("{}/../config/manifests/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}
