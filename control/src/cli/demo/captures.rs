//! The story where not even a network namespace can be had: every node is its
//! packet path over memory.
//!
//! Configuration files and manifests are written and read as a daemon reads
//! them, and a frame goes from the source's node to the destination's as the
//! bytes that the one sends over the underlay. What only a kernel has is
//! missing: sockets, routes of its own, speeds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::wire::{ethernet, tcp};
use tieline_lab::Lab;

use super::Stage;
use super::account::{
    Decision, Fact, Line, Tried, Verdict, identity, policies_in_words, who_is_there,
};
use super::clusters::configuration;
use super::frames::tcp_frame;
use super::manifests::Manifests;
use super::place::ClusterPlace;
use super::script::{Act, CLUSTERS, Connection, Expect, pod_name};
use crate::admin::Explained;
use crate::cli::offline::{self, Offline};
use crate::cli::pipeline::{KERNEL_MAC, NEIGHBOR_MAC, Pipeline, Side};
use crate::resolve::RouteTarget;

/// Time between two frames: they are not to be of one moment.
const STEP_NS: u64 = 1_000_000;
/// Source port of the first connection; each has its own, and so its own flow.
const FIRST_PORT: u16 = 40_000;

/// A play without a kernel.
pub(super) struct Captures<'a> {
    /// Holds the directory.
    lab: &'a Lab,
    clusters: BTreeMap<&'static str, Cluster>,
    nodes: BTreeMap<&'static str, Node>,
    clock_ns: u64,
    next_port: u16,
}

struct Cluster {
    place: ClusterPlace,
    manifests: Manifests,
}

struct Node {
    name: &'static str,
    cluster: &'static str,
    config: PathBuf,
    offline: Offline,
    pipeline: Pipeline,
}

impl Node {
    fn explain(&self, from: &str, to: &str, port: u16) -> anyhow::Result<Value> {
        let query = json!({ "from": from, "to": to, "protocol": "tcp", "port": port });
        let said = Explained::new(&self.offline.derived, &query.to_string(), false);
        let answer: Value = serde_json::from_str(&said.output).context("explain")?;
        if said.errors > 0 {
            bail!("{}: explain: {}", self.name, answer["error"]);
        }
        Ok(answer)
    }

    /// Routes to nodes of other clusters.
    fn routes(&self) -> usize {
        let routes = self.offline.derived.resolved.routes.values();
        routes.filter(|route| matches!(route.target, RouteTarget::Node { .. })).count()
    }

    fn vteps(&self) -> usize {
        self.offline.derived.resolved.vteps.len()
    }
}

/// What became of a frame between two pods.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Delivered,
    /// By this node.
    Dropped(&'static str, DropReason),
    /// What came out is not what was sent.
    Harmed,
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delivered => f.write_str("delivered"),
            Self::Dropped(node, reason) => write!(f, "dropped at {node}: {}", reason.label()),
            Self::Harmed => f.write_str("delivered, but changed"),
        }
    }
}

impl<'a> Captures<'a> {
    pub(super) fn new(lab: &'a Lab) -> Self {
        let (clusters, nodes) = (BTreeMap::new(), BTreeMap::new());
        Self { lab, clusters, nodes, clock_ns: 0, next_port: FIRST_PORT }
    }

    fn cluster(&self, name: &str) -> anyhow::Result<&Cluster> {
        self.clusters.get(name).with_context(|| format!("no cluster {name}"))
    }

    /// The node that a pod is on, and the pod's address of a family.
    fn pod(&self, name: &str, v6: bool) -> anyhow::Result<(&Node, std::net::IpAddr)> {
        let mut clusters = self.clusters.values();
        let found = clusters.find_map(|cluster| cluster.place.pod(name));
        let (node, pod) = found.with_context(|| format!("no pod {name}"))?;
        let node = self.nodes.get(&*node.name).with_context(|| format!("no node {}", node.name))?;
        Ok((node, pod.address(v6)))
    }

    /// Reads all configurations again and puts them into force.
    fn reload(&mut self) -> anyhow::Result<()> {
        for node in self.nodes.values_mut() {
            node.offline = offline::read(&node.config).with_context(|| node.name.to_owned())?;
            node.pipeline.apply(&node.offline);
        }
        Ok(())
    }

    fn stand_up(&mut self) -> anyhow::Result<Vec<Fact>> {
        let begun = Instant::now();
        let dir = self.lab.dir();
        for plan in &CLUSTERS {
            let place = ClusterPlace::planned(plan)?;
            let at = dir.join("clusters").join(plan.name);
            let manifests = Manifests::write(&at, plan, place.clone())?;
            self.clusters.insert(plan.name, Cluster { place, manifests });
        }
        for (plan, node) in
            CLUSTERS.iter().flat_map(|plan| plan.nodes.iter().map(move |n| (plan, n)))
        {
            let config = dir.join(format!("{}.toml", node.name));
            let socket = dir.join(format!("{}.sock", node.name));
            let text = configuration(plan, node.name, dir, &socket, "auto", 0);
            std::fs::write(&config, text)
                .with_context(|| format!("cannot write {}", config.display()))?;
            let offline = offline::read(&config).with_context(|| node.name.to_owned())?;
            let pipeline = Pipeline::new(&offline)?;
            let (name, cluster) = (node.name, plan.name);
            self.nodes.insert(name, Node { name, cluster, config, offline, pipeline });
        }
        let mut facts = who_is_there();
        let (count, took) = (self.nodes.len(), begun.elapsed().as_millis());
        facts.push(Fact::new(
            true,
            format!(
                "{count} configurations written and read in {took} ms; each node's packet path \
                 is in memory, with both families"
            ),
        ));
        Ok(facts)
    }

    fn join(&mut self) -> anyhow::Result<Vec<Fact>> {
        let begun = Instant::now();
        for plan in &CLUSTERS {
            self.cluster(plan.name)?.manifests.write_remote(plan.remote, true)?;
        }
        self.reload()?;
        let joined = self.nodes.values().all(|node| node.vteps() == 4 && node.routes() > 0);
        let routes: usize = self.nodes.values().map(Node::routes).sum();
        let (count, took) = (self.nodes.len(), begun.elapsed().as_millis());
        let text = format!(
            "RCC db into app, RCC app into db: {routes} routes and the identities of the other \
             side on {count} nodes after {took} ms"
        );
        Ok(vec![Fact::new(joined, text), self.identity_known(true)?])
    }

    fn identity_known(&self, expected: bool) -> anyhow::Result<Fact> {
        let (node, _) = self.pod("backend", false)?;
        let (_, postgres) = self
            .clusters
            .values()
            .find_map(|c| c.place.pod("postgres"))
            .context("no pod postgres")?;
        let answer = node.explain(&pod_name("backend"), &postgres.v4.to_string(), 5432)?;
        Ok(identity(node.name, postgres.v4, &answer, expected))
    }

    fn apply_policies(&mut self) -> anyhow::Result<Vec<Fact>> {
        for plan in &CLUSTERS {
            self.cluster(plan.name)?.manifests.write_policies(plan.name)?;
        }
        self.reload()?;
        Ok(policies_in_words())
    }

    /// A connection that works, then the label, then its next segment.
    fn relabel(&mut self) -> anyhow::Result<Vec<Fact>> {
        let ends = self.ends("backend", "postgres", 5432, false)?;
        let before = self.handshake("backend", "postgres", ends)?;
        let running = self.send("backend", "postgres", ends, tcp::ACK, b"before")?;
        self.cluster("db")?.manifests.write_pod("postgres", "postgres-canary")?;
        self.reload()?;
        let after = self.send("backend", "postgres", ends, tcp::ACK, b"after")?;
        let established = before == Fate::Delivered && running == Fate::Delivered;
        let cut = matches!(after, Fate::Dropped("app-1", DropReason::EgressDenied));
        Ok(vec![
            Fact::new(true, "postgres: app=postgres becomes app=postgres-canary"),
            Fact::new(
                established && cut,
                format!(
                    "the running connection backend -> postgres: {running} before the file was \
                     written, {after} after"
                ),
            ),
        ])
    }

    fn label_back(&mut self) -> anyhow::Result<Vec<Fact>> {
        self.cluster("db")?.manifests.write_pod("postgres", "postgres")?;
        self.reload()?;
        Ok(vec![Fact::new(true, "postgres: app=postgres again")])
    }

    fn overlay_off(&mut self) -> anyhow::Result<Vec<Fact>> {
        self.cluster("app")?.manifests.write_remote("db", false)?;
        self.reload()?;
        let off = self.nodes.values().all(|node| (node.routes() == 0) == (node.cluster == "app"));
        let text = "app: overlayRoutingMode: Disabled; its routes are gone, db's stay";
        Ok(vec![Fact::new(off, text), self.identity_known(true)?])
    }

    fn leave(&mut self) -> anyhow::Result<Vec<Fact>> {
        for plan in &CLUSTERS {
            self.cluster(plan.name)?.manifests.remove_remote(plan.remote)?;
        }
        self.reload()?;
        let gone = self.nodes.values().all(|node| node.vteps() == 0 && node.routes() == 0);
        let text = "both RCCs are deleted; nothing of the other side is left";
        Ok(vec![Fact::new(gone, text), self.identity_known(false)?])
    }

    /// The ends of a new connection.
    fn ends(
        &mut self,
        from: &str,
        to: &str,
        port: u16,
        v6: bool,
    ) -> anyhow::Result<(SocketAddr, SocketAddr)> {
        let source = SocketAddr::new(self.pod(from, v6)?.1, self.next_port);
        self.next_port += 1;
        Ok((source, SocketAddr::new(self.pod(to, v6)?.1, port)))
    }

    /// A SYN and, when it is delivered, its answer.
    fn handshake(
        &mut self,
        from: &str,
        to: &str,
        (source, target): (SocketAddr, SocketAddr),
    ) -> anyhow::Result<Fate> {
        match self.send(from, to, (source, target), tcp::SYN, b"")? {
            Fate::Delivered => self.send(to, from, (target, source), tcp::SYN | tcp::ACK, b""),
            other => Ok(other),
        }
    }

    /// Sends a segment from one pod to another, over both their nodes.
    fn send(
        &mut self,
        from: &str,
        to: &str,
        ends: (SocketAddr, SocketAddr),
        flags: u8,
        payload: &[u8],
    ) -> anyhow::Result<Fate> {
        let sent = tcp_frame((KERNEL_MAC, NEIGHBOR_MAC), ends, flags, payload);
        let names = [self.pod(from, false)?.0.name, self.pod(to, false)?.0.name];
        let mut frame = sent.clone();
        for (name, side) in names.into_iter().zip([Side::Gateway, Side::Underlay]) {
            self.clock_ns += STEP_NS;
            let node = self.nodes.get_mut(name).with_context(|| format!("no node {name}"))?;
            let passed = node.pipeline.pass(side, frame, self.clock_ns)?;
            frame = match (passed.dropped, passed.out) {
                (None, Some(out)) => out,
                (Some(reason), _) => return Ok(Fate::Dropped(name, reason)),
                (None, None) => bail!("{name}: a frame is lost"),
            };
        }
        let packet = |frame: &[u8]| frame.get(ethernet::HEADER_LEN..).map(<[u8]>::to_vec);
        Ok(if packet(&frame) == packet(&sent) { Fate::Delivered } else { Fate::Harmed })
    }

    fn attempt(&mut self, connection: &Connection, v6: bool) -> anyhow::Result<Tried> {
        let Connection { from, to, port, expect, deciders } = *connection;
        let ends = self.ends(from, to, port, v6)?;
        let (source, target) = (self.pod(from, v6)?.0, self.pod(to, v6)?.0);
        let leaving = source.explain(&pod_name(from), &ends.1.ip().to_string(), port)?;
        let arriving = target.explain(&ends.0.ip().to_string(), &pod_name(to), port)?;
        let (source, target) = (source.name, target.name);
        let (verdict, decisions) = Verdict::of((source, &leaving), (target, &arriving));
        let fate = self.handshake(from, to, ends)?;
        let routed = !leaving["route"].is_null();
        let said_so = verdict == expect.into()
            && deciders.iter().all(|who| decisions.iter().any(|said| said.is(who)));
        Ok(Tried {
            from: from.to_owned(),
            to: to.to_owned(),
            port,
            family: if v6 { "ipv6" } else { "ipv4" },
            expected: expect.into(),
            expected_deciders: deciders.iter().map(ToString::to_string).collect(),
            verdict,
            socket: match fate {
                Fate::Delivered => "SYN and answer delivered".to_owned(),
                _ => fate.to_string(),
            },
            connected: fate == Fate::Delivered,
            ok: said_so
                && (fate == Fate::Delivered) == (expect == Expect::Allow)
                && agree(&fate, source, routed, &decisions),
            decisions,
        })
    }
}

/// Whether a frame's fate is what the nodes say: delivered when both allow and
/// there is a route, else dropped by a node that says so, for that reason.
fn agree(fate: &Fate, source: &str, routed: bool, decisions: &[Decision]) -> bool {
    let denies = |node: &str, direction: &str| {
        let said = |said: &&Decision| said.node == node && said.direction == direction;
        decisions.iter().find(said).is_some_and(|said| !said.allow)
    };
    match fate {
        Fate::Delivered => routed && decisions.iter().all(|said| said.allow),
        Fate::Dropped(node, DropReason::EgressDenied) => denies(node, "egress"),
        Fate::Dropped(node, DropReason::IngressDenied) => denies(node, "ingress"),
        Fate::Dropped(node, DropReason::NoRoute) => *node == source && !routed,
        Fate::Dropped(..) | Fate::Harmed => false,
    }
}

impl Stage for Captures<'_> {
    fn act(&mut self, act: Act) -> anyhow::Result<Vec<Fact>> {
        match act {
            Act::StandUp => self.stand_up(),
            Act::Join => self.join(),
            Act::ApplyPolicies => self.apply_policies(),
            Act::Relabel => self.relabel(),
            Act::LabelBack => self.label_back(),
            Act::OverlayOff => self.overlay_off(),
            Act::Leave => self.leave(),
            Act::Bulk => Ok(vec![Fact::new(true, "no speeds: memory has none that tell anything")]),
            // A kernel's business from here to there.
            Act::Beside | Act::SmallPackets | Act::Stop => Ok(Vec::new()),
        }
    }

    fn try_all(&mut self, connections: &[Connection]) -> anyhow::Result<Vec<Line>> {
        let both =
            connections.iter().flat_map(|connection| [(connection, false), (connection, true)]);
        both.map(|(connection, v6)| Ok(Line::Connection(self.attempt(connection, v6)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::script;

    #[test]
    fn a_fate_must_have_the_reason_that_is_given() {
        let side = |side, node: &str, verdict: &str| {
            let direction = if side == script::Side::Egress { "egress" } else { "ingress" };
            let answer = json!({ direction: { "verdict": verdict } });
            Decision::of(side, node, &answer).expect("a side")
        };
        let allow = side(script::Side::Egress, "a", "allow");
        let both = [allow.clone(), side(script::Side::Ingress, "b", "allow")];
        let denied = [allow, side(script::Side::Ingress, "b", "deny")];
        assert!(agree(&Fate::Delivered, "a", true, &both));
        assert!(!agree(&Fate::Delivered, "a", true, &denied));
        assert!(!agree(&Fate::Delivered, "a", false, &both));
        let ingress = Fate::Dropped("b", DropReason::IngressDenied);
        assert!(agree(&ingress, "a", true, &denied) && !agree(&ingress, "a", true, &both));
        assert!(!agree(&Fate::Dropped("a", DropReason::EgressDenied), "a", true, &denied));
        assert!(agree(&Fate::Dropped("a", DropReason::NoRoute), "a", false, &both));
        assert!(!agree(&Fate::Dropped("b", DropReason::NoRoute), "a", false, &both));
        assert!(!agree(&Fate::Dropped("b", DropReason::UnknownVtep), "a", true, &denied));
        assert!(!agree(&Fate::Harmed, "a", true, &both));
    }
}
