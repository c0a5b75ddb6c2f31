//! Three clusters with real API servers, nodes and pods, that can be joined as
//! Calico's guide does it.
//!
//! ```text
//! app    app-1: frontend, backend    Calico's storage group
//! db     db-1:  postgres, cache      Calico's native group
//! ops    ops-1: monitor              storage group, that of RemoteClusterConfiguration too
//! ```
//!
//! Daemons have the rights that are shipped, and no others. [`guide`] has the
//! steps of the guide. Start reading at [`Federated`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tieline_lab::{
    Cluster, ClusterSpec, Lab, Netns, Node, NodeSpec, Outcome, Pod, PodSpec, Process, Stream,
    TcpServer, Underlay, connect,
};

use crate::joined::tieline;
use crate::kube::calico::Group;
use crate::kube::{ApiCluster, access, nodes};

pub mod guide;

/// How long something may take that normally takes a second or two.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long a connection attempt may take that is to succeed; one that is to
/// fail takes as long.
const ATTEMPT: Duration = Duration::from_millis(700);
/// The namespace of all pods.
pub const NAMESPACE: &str = "shop";
/// What every pod serves.
pub const PORTS: [u16; 2] = [22, 5432];

/// A cluster as it is planned.
struct Plan {
    name: &'static str,
    third: u8,
    group: Group,
    /// `apiVersion` of its RemoteClusterConfigurations.
    rcc: &'static str,
    /// Pods and their label `app`.
    pods: &'static [(&'static str, &'static str)],
}

const PLANS: [Plan; 3] = [
    Plan {
        name: "app",
        third: 10,
        group: Group::Storage,
        rcc: "projectcalico.org/v3",
        pods: &[("frontend", "frontend"), ("backend", "backend-app")],
    },
    Plan {
        name: "db",
        third: 20,
        group: Group::Native,
        rcc: "projectcalico.org/v3",
        pods: &[("postgres", "postgres"), ("cache", "redis")],
    },
    Plan {
        name: "ops",
        third: 30,
        group: Group::Storage,
        rcc: "crd.projectcalico.org/v1",
        pods: &[("monitor", "monitor")],
    },
];

/// The clusters; ended when dropped.
#[derive(Debug)]
pub struct Federated {
    /// The clusters by name.
    pub members: BTreeMap<&'static str, Member>,
    // Ends what is in it last.
    _lab: Lab,
}

/// One of the clusters.
#[derive(Debug)]
pub struct Member {
    /// Its name, which is what the others call it.
    pub name: &'static str,
    /// Its API server.
    pub api: ApiCluster,
    /// Its node and pods.
    pub cluster: Cluster,
    group: Group,
    rcc: &'static str,
    apps: &'static [(&'static str, &'static str)],
    dir: PathBuf,
    /// The daemon of its only node, if it runs.
    daemon: RefCell<Option<Process>>,
    starts: RefCell<u32>,
    _servers: Vec<TcpServer>,
}

impl Federated {
    /// Brings up all but daemons. Nothing is joined.
    pub fn new(program: &Path, prefix: &str) -> Self {
        let lab = Lab::new(prefix).unwrap();
        let mut underlay = Underlay::new(&lab, 1500).unwrap();
        let places: Vec<Place> =
            PLANS.iter().map(|plan| Place::new(&lab, &mut underlay, plan)).collect();
        // A cluster takes seconds, most of them waiting.
        let members = std::thread::scope(|scope| {
            let start = |place| scope.spawn(|| Member::start(&lab, program, place));
            let starts: Vec<_> = places.into_iter().map(start).collect();
            let join = |start: std::thread::ScopedJoinHandle<'_, Member>| start.join().unwrap();
            starts.into_iter().map(join).map(|member| (member.name, member)).collect()
        });
        Self { members, _lab: lab }
    }

    /// The cluster of this name.
    pub fn member(&self, name: &str) -> &Member {
        &self.members[name]
    }

    /// The cluster of this name, to have something done to its servers.
    pub fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(name).unwrap()
    }

    /// A pod, and the cluster that it is in.
    pub fn pod(&self, name: &str) -> (&Member, &Pod) {
        let find = |member: &'static str| {
            let member = &self.members[member];
            Some((member, member.cluster.pod(name)?))
        };
        PLANS.iter().find_map(|plan| find(plan.name)).unwrap()
    }

    /// Attempts to connect from one pod to another, over IPv4 and IPv6.
    pub fn connect(&self, from: &str, to: &str, port: u16) -> [Outcome; 2] {
        let (from, to) = (self.pod(from).1, self.pod(to).1);
        to.addresses().map(|to| connect(&from.netns, (to, port).into(), ATTEMPT).unwrap())
    }

    /// Waits until a connection can be made, or can't, over both families.
    pub fn await_connection(&self, from: &str, to: &str, port: u16, wanted: bool) {
        let what = format!("{from} -> {to} tcp {port}: {wanted}");
        self.until(&what, || {
            let outcomes = self.connect(from, to, port);
            outcomes.iter().all(|outcome| (*outcome == Outcome::Connected) == wanted)
        });
    }

    /// A connection that runs on; it sends something every 20 ms.
    pub fn stream(&self, from: &str, to: &str, port: u16) -> Stream {
        let (from, to) = (self.pod(from).1, self.pod(to).1);
        let to = SocketAddr::new(to.v4.into(), port);
        Stream::start(&from.netns, to, Duration::from_millis(20), PATIENCE).unwrap()
    }

    /// Waits for something; panics with what all daemons say if it does not
    /// happen.
    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            if begun.elapsed() > PATIENCE {
                panic!("{what} did not happen\n{}", self.account());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a cluster's daemon is in this state with a remote.
    pub fn await_state(&self, local: &str, remote: &str, wanted: &str) {
        let what = format!("{local}: {remote} is {wanted}");
        self.until(&what, || self.member(local).state_of(remote) == wanted);
    }

    /// What the daemons say: their status and the ends of their logs.
    pub fn account(&self) -> String {
        self.members.values().map(Member::account).collect()
    }
}

/// Nodes and pods, and a namespace for the API server.
struct Place {
    plan: &'static Plan,
    cluster: Cluster,
    netns: Netns,
    address: IpAddr,
}

impl Place {
    fn new(lab: &Lab, underlay: &mut Underlay, plan: &'static Plan) -> Self {
        let segment = underlay.segment().unwrap();
        let pod = |(name, _): &(&str, &str)| PodSpec {
            namespace: NAMESPACE.to_owned(),
            name: (*name).to_owned(),
        };
        let pods = plan.pods.iter().map(pod).collect();
        let spec = ClusterSpec {
            name: plan.name.to_owned(),
            pool_v4: [10, plan.third, 0, 0].into(),
            pool_v6: format!("fd00:{}::", plan.third).parse().unwrap(),
            pod_mtu: 1430,
            nodes: vec![NodeSpec { name: format!("{}-1", plan.name), segment, pods }],
        };
        let cluster = Cluster::new(lab, underlay, &spec).unwrap();
        let netns = lab.netns(&format!("{}-api", plan.name)).unwrap();
        let address = underlay.attach(segment, &netns).unwrap().v4.into();
        Self { plan, cluster, netns, address }
    }
}

/// What is in it, and what is done to that.
impl Member {
    fn start(lab: &Lab, program: &Path, place: Place) -> Self {
        let Place { plan, cluster, netns, address } = place;
        let pods = cluster.nodes.iter().flat_map(|node| &node.pods);
        let servers = pods.flat_map(|pod| PORTS.map(|port| TcpServer::start(&pod.netns, port)));
        let member = Self {
            name: plan.name,
            api: ApiCluster::start(lab, program, plan.name, netns, address),
            _servers: servers.collect::<Result<_, _>>().unwrap(),
            cluster,
            group: plan.group,
            rcc: plan.rcc,
            apps: plan.pods,
            dir: lab.dir().join(plan.name),
            daemon: RefCell::default(),
            starts: RefCell::default(),
        };
        fs::create_dir_all(&member.dir).unwrap();
        member.furnish();
        member
    }

    /// Writes what is there without Tieline, and Tieline's own manifests.
    pub fn furnish(&self) {
        self.api.apply(&self.group.crds());
        self.api.apply(&self.rcc_kind());
        self.api.apply(&manifest("kubernetes.yaml"));
        self.api.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]);
        let felix = json!({
            "apiVersion": self.group.api_version(), "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": {"xdpEnabled": false},
        });
        self.api.apply(&felix.to_string());
        nodes::write(&self.api, &self.cluster, self.group, |pod| {
            vec![("app", self.apps.iter().find(|(name, _)| *name == pod.name).unwrap().1)]
        });
    }

    /// The kind RemoteClusterConfiguration, moved as the manifest says to where
    /// Calico stores its objects, if that is where it belongs here.
    fn rcc_kind(&self) -> String {
        let shipped = manifest("remoteclusterconfigurations.yaml");
        if self.rcc == "projectcalico.org/v3" {
            return shipped;
        }
        let line = |line: &str| match line.strip_suffix("projectcalico.org") {
            Some(start) => format!("{start}crd.projectcalico.org\n"),
            None => line.replace("name: v3", "name: v1") + "\n",
        };
        shipped.lines().map(line).collect()
    }

    /// The cluster's node.
    pub fn node(&self) -> &Node {
        &self.cluster.nodes[0]
    }

    /// Writes a pod anew that was deleted, as it was at first.
    pub fn write_pod(&self, name: &str) {
        let app = self.apps.iter().find(|(pod, _)| *pod == name).unwrap().1;
        let pod = self.cluster.pod(name).unwrap();
        nodes::write_pod(&self.api, self.node(), pod, &[("app", app)]);
    }

    /// Changes a pod's label `app`.
    pub fn relabel(&self, pod: &str, app: &str) {
        let label = format!("app={app}");
        self.api.kubectl(&["-n", NAMESPACE, "label", "--overwrite", "pod", pod, &label]);
    }

    /// Writes a Calico NetworkPolicy in the pods' namespace. The storage group
    /// has the tier in front of names.
    pub fn write_policy(&self, name: &str, spec: &Value) {
        let tier = if self.group == Group::Storage { "default." } else { "" };
        let policy = json!({
            "apiVersion": self.group.api_version(), "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACE, "name": format!("{tier}{name}")}, "spec": spec,
        });
        self.api.apply(&policy.to_string());
    }

    /// `apiVersion` of Calico's objects.
    pub fn calico_group(&self) -> &'static str {
        self.group.api_version()
    }

    /// The plural of a kind of Calico's, with version and group.
    pub fn calico(&self, plural: &str) -> String {
        let (group, version) = self.calico_group().split_once('/').unwrap();
        format!("{plural}.{version}.{group}")
    }

    /// The plural of RemoteClusterConfiguration, with version and group.
    pub fn rcc_plural(&self) -> String {
        let (group, version) = self.rcc.split_once('/').unwrap();
        format!("remoteclusterconfigurations.{version}.{group}")
    }
}

/// Its daemon.
impl Member {
    /// Starts the daemon on its node, with the rights that are shipped.
    pub fn start_daemon(&self) {
        self.renew_account();
        let config = self.configure("");
        let mut command = Command::new(tieline());
        command.arg("run").arg("--config").arg(&config);
        let name = format!("{}-daemon-{}", self.name, self.starts.replace_with(|count| *count + 1));
        *self.daemon.borrow_mut() = Some(self.node().netns.spawn(&name, command).unwrap());
    }

    /// Writes the daemon's configuration, with `more` at its end. One that runs
    /// takes it over.
    pub fn configure(&self, more: &str) -> PathBuf {
        let text = format!(
            "node = '{}'\n[datastore]\nkind = 'kubernetes'\nkubeconfig = '{}'\n\
             answer-timeout-seconds = 2\nsilence-timeout-seconds = 5\n\
             [workers]\ncpus = '0'\nidle = 'sleep'\n[admin]\nsocket = '{}'\n{more}",
            self.node().name,
            access::account_path(&self.api, "tieline-system", "tieline").display(),
            self.socket().display()
        );
        let config = self.dir.join("tieline.toml");
        fs::write(&config, text).unwrap();
        config
    }

    /// What `tieline uninstall` does, with an admin's rights.
    pub fn uninstall(&self) -> Output {
        let mut command = Command::new(tieline());
        command.args(["uninstall", "--kubeconfig"]).arg(self.api.admin());
        self.api.netns().output("uninstall", command, PATIENCE).unwrap()
    }

    /// Writes the daemon's kubeconfig anew.
    pub fn renew_account(&self) -> PathBuf {
        access::account_kubeconfig(&self.api, "tieline-system", "tieline")
    }

    /// Kills the daemon.
    pub fn kill_daemon(&self) {
        *self.daemon.borrow_mut() = None;
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("tieline.sock")
    }

    /// What a command prints as JSON that asks the daemon.
    fn ask(&self, args: &[&str]) -> Option<Value> {
        let mut command = Command::new(tieline());
        command.args(args).args(["-o", "json", "--socket"]).arg(self.socket());
        serde_json::from_slice(&command.output().ok()?.stdout).ok()
    }

    /// What `tieline status -o json` prints, if the daemon answers.
    pub fn status(&self) -> Option<Value> {
        self.ask(&["status"])
    }

    /// What `tieline status` prints for people.
    pub fn status_text(&self) -> String {
        let mut command = Command::new(tieline());
        command.args(["status", "--socket"]).arg(self.socket());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What the daemon says of a remote; null when nothing.
    pub fn remote(&self, name: &str) -> Value {
        self.status().map(|status| status["clusters"]["remotes"][name].clone()).unwrap_or_default()
    }

    /// The state of a remote, empty when there is none of this name.
    pub fn state_of(&self, remote: &str) -> String {
        self.remote(remote)["state"].as_str().unwrap_or_default().to_owned()
    }

    /// What the daemon says is wrong with a remote.
    pub fn error_of(&self, remote: &str) -> String {
        self.remote(remote)["error"].as_str().unwrap_or_default().to_owned()
    }

    /// What `tieline explain` answers about a TCP connection.
    pub fn explain(&self, from: &str, to: &str, port: u16) -> Value {
        let port = port.to_string();
        self.ask(&["explain", "--from", from, "--to", to, "--port", &port]).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.daemon.borrow().as_ref().unwrap().pid()
    }

    fn account(&self) -> String {
        let daemon = self.daemon.borrow();
        let Some(daemon) = &*daemon else { return format!("=== {}: no daemon\n", self.name) };
        let log = daemon.transcript();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("=== {}\n{}\n{last}\n", self.name, self.status_text())
    }
}

/// A manifest that is shipped.
pub fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/manifests").join(name);
    fs::read_to_string(path).unwrap()
}
