//! The daemon itself: `tieline run` on a directory of manifests.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tieline_lab::{Process, Signal};

use crate::bed::{Bed, PATIENCE};
use crate::flows::{self, LOCAL_TUNNEL, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

use super::{Entry, Missing, Needs, Running, Subject};

/// The daemon's program file.
#[derive(Clone, Debug)]
pub(crate) struct Program(PathBuf);

impl Program {
    /// The file that is named, or the one beside this program.
    pub(crate) fn find(named: Option<&Path>) -> Self {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.join("tieline"));
        Self(named.map(Path::to_owned).or_else(beside).unwrap_or_else(|| "tieline".into()))
    }

    fn check(&self) -> Result<(), Missing> {
        if self.0.is_file() {
            return Ok(());
        }
        let path = self.0.display();
        Err(Missing(format!(
            "no daemon at {path}: build it (cargo build --release -p tieline), or name it with \
             --tieline"
        )))
    }
}

/// How packets come to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Straight into its gateway device: Tieline alone.
    Gateway,
    /// From the pods' link, by way of the kernel's routing to the gateway, as on
    /// a node.
    Node,
}

/// The daemon as a router.
#[derive(Clone, Debug)]
pub(crate) struct Tieline {
    pub(crate) program: Program,
    pub(crate) way: Way,
    /// Rules of the policy on the pods; `None`: no policy.
    pub(crate) rules: Option<u32>,
    /// `underlay.mode`.
    pub(crate) mode: &'static str,
    /// Workers, each on a CPU of its own.
    pub(crate) workers: u32,
    /// `workers.batch`.
    pub(crate) batch: u32,
    /// `workers.idle`.
    pub(crate) idle: &'static str,
    /// Pods of the remote node that are known beside those that take part.
    pub(crate) endpoints: u32,
}

impl Tieline {
    /// With a policy of 100 rules, AF_XDP in the driver, and else as it comes.
    pub(crate) fn new(program: &Program) -> Self {
        Self {
            program: program.clone(),
            way: Way::Gateway,
            rules: Some(100),
            mode: "native-copy",
            workers: 1,
            batch: 64,
            idle: "adaptive",
            endpoints: 0,
        }
    }
}

impl Subject for Tieline {
    fn name(&self) -> String {
        let mut name = "tieline".to_owned();
        if self.way == Way::Node {
            name.push_str("-node");
        }
        match self.mode {
            "native-copy" => {}
            mode => name = format!("{name}-{mode}"),
        }
        if self.idle != "adaptive" {
            name = format!("{name}-{}", self.idle);
        }
        match self.rules {
            Some(100) => {}
            Some(rules) => name = format!("{name}+rules{rules}"),
            None => name.push_str("-no-policy"),
        }
        if self.batch != 64 {
            name = format!("{name}+batch{}", self.batch);
        }
        name
    }

    fn about(&self) -> String {
        let way = match self.way {
            Way::Gateway => "packets put into its gateway device",
            Way::Node => {
                "packets routed to it by the kernel from the pods' link, as on a node, where veth \
                 does it: on the sender's CPU"
            }
        };
        let policy = match self.rules {
            Some(rules) => format!("a policy of {rules} rules on every pod"),
            None => "no policy".to_owned(),
        };
        format!(
            "the daemon, {} port, idle {}, batches of {}, {policy}; {way}",
            self.mode, self.idle, self.batch
        )
    }

    fn cpus(&self) -> u32 {
        self.workers
    }

    fn set_up<'a>(&self, bed: &'a Bed, needs: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        self.program.check()?;
        if self.way == Way::Node {
            // Steered to the worker's CPU, the kernel's routing would leave the
            // worker no time.
            bed.steer("d0", false)?;
        }
        let dir = bed.lab.dir().join("clusters");
        self.write_manifests(&dir, needs.v6)?;
        let (config, socket) = (dir.join("tieline.toml"), dir.join("tieline.sock"));
        let entries = (u64::from(needs.flows) * 4).clamp(65_536, 1 << 26);
        let text = format!(
            "node = 'local'\n[datastore]\nkind = 'files'\npath = '{}'\n[datastore.remotes]\nremote \
             = '{}'\n[underlay]\nmode = '{}'\ndevices = ['u0']\n[workers]\ncpus = '{}'\nidle = \
             '{}'\nbatch = {}\n[flow-table]\nentries = {entries}\n[admin]\nsocket = '{}'\n[log]\n\
             level = 'warn'\n",
            dir.join("local").display(),
            dir.join("remote").display(),
            self.mode,
            list(&bed.router_cpus()),
            self.idle,
            self.batch,
            socket.display(),
        );
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let up = Up {
            process: start(bed, &self.program, &config)?,
            subject: self.clone(),
            bed,
            dir,
            config,
            socket,
            v6: needs.v6,
        };
        up.wait_ready()?;
        Ok(Box::new(up))
    }
}

impl Tieline {
    /// Both clusters as their datastores hold them.
    fn write_manifests(&self, dir: &Path, v6: bool) -> anyhow::Result<()> {
        let (mut local, mut remote) = (LOCAL_CLUSTER.manifests(v6), REMOTE_CLUSTER.manifests(v6));
        local.push_str(REMOTE);
        if let Some(rules) = self.rules {
            local.push_str(&policy(rules));
        }
        remote.push_str(&more(self.endpoints));
        for (name, text) in [("local", local), ("remote", remote)] {
            let dir = dir.join(name);
            std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            let (draft, path) = (dir.join(".all.draft"), dir.join("all.yaml"));
            std::fs::write(&draft, text).with_context(|| format!("write {}", draft.display()))?;
            std::fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}

const REMOTE: &str = "---\napiVersion: projectcalico.org/v3\nkind: RemoteClusterConfiguration\n\
    metadata: {name: remote}\nspec: {syncOptions: {overlayRoutingMode: Enabled}}\n";

/// One node and its pods, in both families.
struct Cluster {
    name: &'static str,
    macs: [[u8; 6]; 2],
    underlay: (Ipv4Addr, Ipv6Addr),
    block: (Ipv4Addr, Ipv6Addr),
}

const LOCAL_CLUSTER: Cluster = Cluster {
    name: "local",
    macs: [flows::LOCAL_VTEP, flows::LOCAL_VTEP_V6],
    underlay: (ROUTER_UNDERLAY, flows::ROUTER_UNDERLAY_V6),
    block: (LOCAL_TUNNEL, flows::LOCAL_TUNNEL_V6),
};

const REMOTE_CLUSTER: Cluster = Cluster {
    name: "remote",
    macs: [flows::REMOTE_VTEP, flows::REMOTE_VTEP_V6],
    underlay: (SINK_UNDERLAY, flows::SINK_UNDERLAY_V6),
    block: (REMOTE_TUNNEL, flows::REMOTE_TUNNEL_V6),
};

impl Cluster {
    fn manifests(&self, v6: bool) -> String {
        let Self { name, macs, underlay, block } = self;
        let mut text = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default}}\n---\n\
             apiVersion: crd.projectcalico.org/v1\nkind: FelixConfiguration\nmetadata: {{name: \
             default}}\nspec: {{vxlanVNI: {}, vxlanPort: {}, xdpEnabled: false}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    \
             projectcalico.org/IPv4Address: {}/24\n    \
             projectcalico.org/IPv4VXLANTunnelAddr: {}\n    \
             projectcalico.org/VXLANTunnelMACAddr: '{}'\n",
            flows::VNI,
            flows::VXLAN_PORT,
            underlay.0,
            block.0,
            flows::mac_text(macs[0]),
        );
        // Writing to a string never fails.
        if v6 {
            let _ = write!(
                text,
                "    projectcalico.org/IPv6Address: {}/64\n    \
                 projectcalico.org/IPv6VXLANTunnelAddr: '{}'\n    \
                 projectcalico.org/VXLANTunnelMACAddrV6: '{}'\n",
                underlay.1,
                block.1,
                flows::mac_text(macs[1]),
            );
        }
        let mut blocks = vec![("", format!("{}/24", block.0), format!("{}/26", block.0))];
        if v6 {
            blocks.push(("-v6", format!("{}/112", block.1), format!("{}/122", block.1)));
        }
        for (family, pool, block) in blocks {
            let _ = write!(
                text,
                "---\napiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {{name: \
                 {name}{family}}}\nspec: {{cidr: '{pool}', vxlanMode: Always, ipipMode: \
                 Never}}\n---\napiVersion: crd.projectcalico.org/v1\nkind: IPAMBlock\nmetadata: \
                 {{name: {name}{family}}}\nspec: {{cidr: '{block}', affinity: 'host:{name}'}}\n"
            );
        }
        for number in flows::pods() {
            let address = Ipv4Addr::from_bits(block.0.to_bits() + 1 + number);
            let second = Ipv6Addr::from_bits(block.1.to_bits() + 1 + u128::from(number));
            let second = if v6 { format!(", {{ip: '{second}'}}") } else { String::new() };
            text.push_str(&pod(name, number, address, &second));
        }
        text
    }
}

/// More pods of the remote node, with blocks of their own.
fn more(endpoints: u32) -> String {
    let mut text = String::new();
    // Writing to a string never fails.
    if endpoints > 0 {
        let _ = write!(
            text,
            "---\napiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {{name: \
             more}}\nspec: {{cidr: {}/10, vxlanMode: Always, ipipMode: Never}}\n",
            flows::MORE
        );
    }
    for block in (0..endpoints).step_by(64) {
        let _ = write!(
            text,
            "---\napiVersion: crd.projectcalico.org/v1\nkind: IPAMBlock\nmetadata: {{name: \
             more-{block}}}\nspec: {{cidr: {}/26, affinity: 'host:remote'}}\n",
            flows::more_pod(block)
        );
    }
    let first = flows::pods().end;
    let pods = (0..endpoints).map(|at| pod("remote", first + at, flows::more_pod(at), ""));
    text.extend(pods);
    text
}

/// A pod of the node that is called as its cluster, maybe with a second address.
fn pod(cluster: &str, number: u32, address: Ipv4Addr, second: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {cluster}-{number}\n  namespace: \
         default\n  labels: {{app: {cluster}}}\nspec: {{nodeName: {cluster}}}\nstatus: {{phase: \
         Running, podIP: {address}, podIPs: [{{ip: {address}}}{second}]}}\n"
    )
}

/// Rules of one policy at most: more would be an object that no API server takes.
const RULES_PER_POLICY: u32 = 500;

/// Policies on the local pods. Every rule but the last few is about ports that
/// the flows don't use; those let them pass, and pings and TCP.
fn policy(rules: u32) -> String {
    let others: Vec<u32> = (1..rules).collect();
    let chunks = others.chunks(RULES_PER_POLICY as usize);
    let mut text = String::new();
    for (number, chunk) in chunks.enumerate() {
        text.push_str(&policy_head(number));
        for rule in chunk {
            let action = if rule % 2 == 0 { "Allow" } else { "Deny" };
            text.push_str(&egress(action, &format!("UDP, {}", ports(2000 + 3 * rule))));
        }
    }
    text.push_str(&policy_head(others.len()));
    text.push_str(&egress("Allow", &format!("UDP, {}", ports(u32::from(flows::PORT)))));
    for protocol in ["TCP", "ICMP"] {
        let to = "destination: {selector: app == 'remote'}";
        text.push_str(&egress("Allow", &format!("{protocol}, {to}")));
    }
    text
}

fn policy_head(number: usize) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: \
         perf-{number}}}\nspec:\n  order: {number}\n  selector: app == 'local'\n  types: [Ingress, \
         Egress]\n  ingress:\n  - {{action: Allow, source: {{selector: app == 'remote'}}}}\n  \
         egress:\n"
    )
}

fn ports(port: u32) -> String {
    format!("destination: {{selector: app == 'remote', ports: [{port}]}}")
}

fn egress(action: &str, what: &str) -> String {
    format!("  - {{action: {action}, protocol: {what}}}\n")
}

/// CPUs as a list.
fn list(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn start(bed: &Bed, program: &Program, config: &Path) -> anyhow::Result<Process> {
    // This program keeps to the traffic's CPU, and the daemon would inherit that.
    let cpus = format!("{},{}", bed.cpus.traffic, list(&bed.router_cpus()));
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpus]).arg(&program.0);
    command.arg("run").arg("--config").arg(config);
    Ok(bed.router.spawn("tieline", command)?)
}

struct Up<'a> {
    process: Process,
    subject: Tieline,
    bed: &'a Bed,
    dir: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    v6: bool,
}

impl Up<'_> {
    fn status(&self) -> Option<serde_json::Value> {
        let mut command = Command::new(&self.subject.program.0);
        command.args(["status", "-o", "json", "--socket"]).arg(&self.socket);
        let output = self.bed.router.output("status", command, PATIENCE).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let status = self.status();
            if status.as_ref().is_some_and(is_ready) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE || self.process.try_wait()?.is_some() {
                bail!(
                    "the daemon does not get ready: conditions: {}; log: {}",
                    status.map(|status| status["conditions"].to_string()).unwrap_or_default(),
                    self.process.transcript()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn is_ready(status: &serde_json::Value) -> bool {
    let list = |key: &str| status[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let errors = list("conditions").iter().any(|condition| condition["severity"] == "error");
    let resolved = list("vteps").iter().all(|vtep| vtep["resolved"] == true);
    status["ready"] == true && !list("vteps").is_empty() && resolved && !errors
}

impl Running for Up<'_> {
    fn entry(&self) -> Entry {
        match self.subject.way {
            Way::Gateway => Entry {
                netns: self.bed.router.clone(),
                device: "tieline0".to_owned(),
                mac: flows::D0,
            },
            Way::Node => {
                Entry { netns: self.bed.generator.clone(), device: "g0".to_owned(), mac: flows::D0 }
            }
        }
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    fn change(&self, number: u32) -> anyhow::Result<()> {
        // Another policy, and the pods' labels as they were.
        let rules = self.subject.rules.unwrap_or(1) + number % 2;
        Tieline { rules: Some(rules), ..self.subject.clone() }.write_manifests(&self.dir, self.v6)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::Term)?;
        self.process.wait(PATIENCE)?;
        self.process = start(self.bed, &self.subject.program, &self.config)?;
        self.wait_ready()
    }

    fn transcript(&self) -> String {
        let status = self.status().unwrap_or_default();
        let part = |key: &str| format!("{key}: {}", status[key]);
        [self.process.transcript(), part("counters"), part("drops"), part("conditions")].join(" ")
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        // It takes its devices and routes with it; killed it would leave them to
        // the next subject.
        let _ = self.process.signal(Signal::Term);
        let _ = self.process.wait(PATIENCE);
    }
}
