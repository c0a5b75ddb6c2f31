//! The two clusters: namespaces, pod servers, daemons, and questions to them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tieline_lab::{
    Cluster, ClusterSpec, Lab, Netns, NodeSpec, Pod, PodSpec, Process, Signal, Underlay,
};

use super::manifests::Manifests;
use super::place::ClusterPlace;
use super::script::{CLUSTERS, ClusterPlan, NAMESPACE, PORTS};
use crate::admin::status::Status;
use crate::resolve::{mac_v4, mac_v6};

/// MTU of the underlay; of the pods, which Calico sets for the family that
/// costs more.
const UNDERLAY_MTU: u32 = 1500;
const POD_MTU: u32 = 1430;
/// Longest that anything is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that is up.
#[derive(Debug)]
pub(super) struct Clusters {
    exe: PathBuf,
    clusters: BTreeMap<&'static str, (Cluster, Manifests)>,
    daemons: BTreeMap<String, Daemon>,
    /// Lives as long as the pods.
    servers: Vec<Process>,
}

/// A daemon of a node.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) node: String,
    pub(super) cluster: &'static str,
    pub(super) socket: PathBuf,
    netns: Netns,
    process: Process,
}

impl Clusters {
    /// Stands them up in the lab; `mode` is `underlay.mode` of all daemons.
    pub(super) fn stand_up(lab: &Lab, mode: &str) -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let mut this =
            Self { exe, clusters: BTreeMap::new(), daemons: BTreeMap::new(), servers: Vec::new() };
        let mut underlay = Underlay::new(lab, UNDERLAY_MTU)?;
        let segments = [underlay.segment()?, underlay.segment()?, underlay.segment()?];
        for plan in &CLUSTERS {
            let cluster = Cluster::new(lab, &mut underlay, &spec(plan, &segments)?)?;
            let dir = lab.dir().join("clusters").join(plan.name);
            let manifests = Manifests::write(&dir, plan, ClusterPlace::of(&cluster))?;
            this.clusters.insert(plan.name, (cluster, manifests));
        }
        this.start_servers()?;
        this.start_daemons(lab, mode)?;
        Ok(this)
    }

    /// Gives the nodes the vxlan devices that Calico would have made for the
    /// traffic within each cluster, on the same port as Tieline's.
    pub(super) fn add_kernel_vxlan(&self) -> anyhow::Result<()> {
        for (cluster, _) in self.clusters.values() {
            cluster.join_with_kernel_vxlan(|node, v6| {
                if v6 { mac_v6(node).to_string() } else { mac_v4(node).to_string() }
            })?;
        }
        Ok(())
    }

    fn start_servers(&mut self) -> anyhow::Result<()> {
        let ports = PORTS.map(|port| port.to_string()).join(",");
        for (cluster, _) in self.clusters.values() {
            for pod in cluster.nodes.iter().flat_map(|node| &node.pods) {
                let mut command = Command::new(&self.exe);
                command.args(["demo", "--pod-server", &ports]);
                self.servers.push(pod.netns.spawn(&format!("pod-{}", pod.name), command)?);
            }
        }
        Ok(())
    }

    fn start_daemons(&mut self, lab: &Lab, mode: &str) -> anyhow::Result<()> {
        let cpus = cpus()?;
        // The clusters take turns, so that with two CPUs the ends of every
        // connection are on different ones.
        let nodes = (0..2).flat_map(|at| CLUSTERS.iter().map(move |plan| (plan, &plan.nodes[at])));
        for ((plan, node), cpu) in nodes.zip(cpus.iter().cycle()) {
            let (cluster, _) = &self.clusters[plan.name];
            let up = cluster.nodes.iter().find(|up| up.name == node.name);
            let netns = up.context("a node that is not up")?.netns.clone();
            let config = lab.dir().join(format!("{}.toml", node.name));
            let socket = lab.dir().join(format!("{}.sock", node.name));
            let text = configuration(plan, node.name, lab.dir(), &socket, mode, *cpu);
            std::fs::write(&config, text)
                .with_context(|| format!("cannot write {}", config.display()))?;
            let mut command = Command::new(&self.exe);
            command.arg("run").arg("--config").arg(&config).env("NO_COLOR", "1");
            let process = netns.spawn(node.name, command)?;
            let node = node.name.to_owned();
            let daemon = Daemon { node, cluster: plan.name, socket, netns, process };
            self.daemons.insert(daemon.node.clone(), daemon);
        }
        Ok(())
    }

    /// The daemons in the order of their names.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.daemons.values()
    }

    /// A cluster and its manifests.
    pub(super) fn cluster(&self, name: &str) -> anyhow::Result<&(Cluster, Manifests)> {
        self.clusters.get(name).with_context(|| format!("no cluster {name}"))
    }

    /// A pod of either cluster.
    pub(super) fn pod(&self, name: &str) -> anyhow::Result<&Pod> {
        let pods = self.clusters.values().find_map(|(cluster, _)| cluster.pod(name));
        pods.with_context(|| format!("no pod {name}"))
    }

    /// The daemon of the node that a pod is on.
    pub(super) fn daemon_of(&self, pod: &str) -> anyhow::Result<&Daemon> {
        let node = self.clusters.values().find_map(|(cluster, _)| cluster.node_of(pod));
        let node = node.with_context(|| format!("no pod {pod}"))?;
        self.daemon(&node.name)
    }

    /// The daemon of a node.
    pub(super) fn daemon(&self, node: &str) -> anyhow::Result<&Daemon> {
        self.daemons.get(node).with_context(|| format!("no node {node}"))
    }

    /// `tieline status`. An error while the daemon does not listen yet.
    pub(super) fn status(&self, daemon: &Daemon) -> anyhow::Result<Status> {
        let answer = self.ask(daemon, &["status"])?;
        serde_json::from_value(answer).context("status prints something else than a status")
    }

    /// `tieline explain` for one TCP connection.
    pub(super) fn explain(
        &self,
        daemon: &Daemon,
        from: &str,
        to: &str,
        port: u16,
    ) -> anyhow::Result<Value> {
        let port = port.to_string();
        let words = ["explain", "--from", from, "--to", to, "--protocol", "tcp", "--port", &port];
        self.ask(daemon, &words)
    }

    /// Runs a command that prints JSON; exit code 1 is bad news, not an error.
    fn ask(&self, daemon: &Daemon, words: &[&str]) -> anyhow::Result<Value> {
        if daemon.process.try_wait()?.is_some() {
            bail!("the daemon of {} has ended:\n{}", daemon.node, daemon.last_words());
        }
        let output = Command::new(&self.exe)
            .args(words)
            .args(["-o", "json", "--socket"])
            .arg(&daemon.socket)
            .output()
            .with_context(|| format!("cannot run {}", self.exe.display()))?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("tieline {} for {}: {}", words[0], daemon.node, said.trim())
        })
    }

    /// Asks all daemons until each is as wanted; returns their last states and
    /// how long that took.
    pub(super) fn await_status(
        &self,
        what: &str,
        since: Instant,
        wanted: impl Fn(&Daemon, &Status) -> bool,
    ) -> anyhow::Result<(BTreeMap<String, Status>, Duration)> {
        let mut done = BTreeMap::new();
        let mut waiting: Vec<&Daemon> = self.daemons.values().collect();
        while let Some(daemon) = waiting.pop() {
            let status = self.status(daemon);
            if let Ok(status) = &status
                && wanted(daemon, status)
            {
                done.insert(daemon.node.clone(), status.clone());
                continue;
            }
            if since.elapsed() > PATIENCE || daemon.process.try_wait()?.is_some() {
                let state = status.map(|status| format!("{status:?}"));
                let state = state.unwrap_or_else(|error| format!("{error:#}"));
                let log = daemon.last_words();
                bail!("{}: {what} did not happen: {state}\n{log}", daemon.node);
            }
            waiting.insert(0, daemon);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok((done, since.elapsed()))
    }

    /// Asks all daemons to end; returns those that did not end well or left
    /// something behind, and why.
    pub(super) fn stop(&self) -> anyhow::Result<Vec<String>> {
        let mut faults = Vec::new();
        for daemon in self.daemons.values() {
            daemon.process.signal(Signal::Term)?;
        }
        for daemon in self.daemons.values() {
            let node = &daemon.node;
            let status = daemon.process.wait(PATIENCE)?;
            if !status.success() {
                faults.push(format!("{node} ended with {status}:\n{}", daemon.last_words()));
            }
            let left = daemon.leftovers()?;
            if !left.is_empty() {
                faults.push(format!("{node} left behind: {left}"));
            }
        }
        Ok(faults)
    }
}

impl Daemon {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The end of its log.
    pub(super) fn last_words(&self) -> String {
        let log = self.process.transcript();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How many routes the kernel has that Tieline has made.
    pub(super) fn kernel_routes(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for family in ["-4", "-6"] {
            let text = self.ip(&[family, "-o", "route", "show", "proto", ROUTE_PROTOCOL])?;
            count += text.lines().count();
        }
        Ok(count)
    }

    /// What is still there of a daemon that has ended.
    fn leftovers(&self) -> anyhow::Result<String> {
        let links = self.ip(&["-o", "link", "show"])?;
        let ours = links.lines().filter(|line| line.contains(": tieline"));
        let mut left: Vec<String> = ours.map(str::to_owned).collect();
        if links.lines().any(|line| line.contains(" xdp")) {
            left.push("an XDP program".to_owned());
        }
        let routes = self.kernel_routes()?;
        if routes > 0 {
            left.push(format!("{routes} routes"));
        }
        Ok(left.join(", "))
    }

    fn ip(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = self.netns.run(|| Command::new("ip").args(words).output())??;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `gateway.route-protocol`.
const ROUTE_PROTOCOL: &str = "133";

fn spec(plan: &ClusterPlan, segments: &[tieline_lab::Segment]) -> anyhow::Result<ClusterSpec> {
    let pod = |pod: &super::script::PodPlan| PodSpec {
        namespace: NAMESPACE.into(),
        name: pod.name.into(),
    };
    let node = |node: &super::script::NodePlan| NodeSpec {
        name: node.name.into(),
        segment: segments[node.segment],
        pods: node.pods.iter().map(pod).collect(),
    };
    Ok(ClusterSpec {
        name: plan.name.into(),
        pool_v4: plan.pool_v4.parse()?,
        pool_v6: plan.pool_v6.parse()?,
        pod_mtu: POD_MTU,
        nodes: plan.nodes.iter().map(node).collect(),
    })
}

/// The CPUs that we may run on, the last one first as the daemon takes them.
fn cpus() -> anyhow::Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None).context("which CPUs may be used")?;
    let max = rustix::thread::CpuSet::MAX_CPU;
    Ok((0..max).rev().filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// A node's configuration file. Four daemons share this machine's CPUs, so
/// each has one and sleeps when idle.
pub(super) fn configuration(
    plan: &ClusterPlan,
    node: &str,
    dir: &Path,
    socket: &Path,
    mode: &str,
    cpu: usize,
) -> String {
    let clusters = dir.join("clusters");
    let ClusterPlan { name, remote, .. } = plan;
    format!(
        "node = \"{node}\"

[datastore]
kind = \"files\"
path = {local:?}

[datastore.remotes]
{remote} = {other:?}

[underlay]
devices = [\"eth0\"]
mode = \"{mode}\"

[gateway]
route-protocol = {ROUTE_PROTOCOL}

[workers]
cpus = \"{cpu}\"
idle = \"sleep\"

[admin]
socket = {socket:?}

[log]
level = \"info\"
",
        local = clusters.join(name),
        other = clusters.join(remote)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Scope, manifest};

    #[test]
    fn configurations_are_valid() {
        for plan in &CLUSTERS {
            let dir = Path::new("/tmp/x");
            let text = configuration(plan, "n", dir, &dir.join("n.sock"), "packet", 0);
            let config = tieline_config::Config::parse(&text, Path::new("demo.toml"));
            assert!(config.is_ok(), "{config:?}\n{text}");
        }
    }

    /// Writes what the demo writes and reads it by the daemon's own reader.
    #[test]
    fn manifests_are_read_without_any_complaint() -> anyhow::Result<()> {
        let lab = Lab::new("demo-test")?;
        let mut underlay = Underlay::new(&lab, UNDERLAY_MTU)?;
        let segments = [underlay.segment()?, underlay.segment()?, underlay.segment()?];
        for plan in &CLUSTERS {
            let cluster = Cluster::new(&lab, &mut underlay, &spec(plan, &segments)?)?;
            let dir = lab.dir().join(plan.name);
            let manifests = Manifests::write(&dir, plan, ClusterPlace::of(&cluster))?;
            manifests.write_remote(plan.remote, true)?;
            manifests.write_policies(plan.name)?;
            let mut objects = 0;
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                let read = manifest::read(&std::fs::read(&path)?, Scope::Local)?;
                assert!(read.ignored.is_empty(), "{}: {:?}", path.display(), read.ignored);
                for item in &read.items {
                    let manifest::Item::Good { converted, .. } = item else {
                        panic!("{}: {item:?}", path.display())
                    };
                    assert!(converted.object.is_some() && converted.warnings.is_empty());
                    objects += 1;
                }
            }
            // 3 namespaces and accounts, 2 nodes, 2 pools, 4 blocks, 4 pods,
            // the join, and the policies with their tiers.
            assert_eq!(objects, 16 + if plan.name == "app" { 2 } else { 4 });
        }
        Ok(())
    }
}
