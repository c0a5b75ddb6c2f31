//! What changes cost, from the objects of all clusters to the tables that
//! workers read: all figures of the control plane in one run.
//!
//! `cargo run --release -p tieline --example scale [-- -o json]`
//!
//! One thread. A local and a remote cluster with 250,000 pods of 5,000 distinct
//! label sets, 110 of them on this node, and 10,000 policies; then a million
//! pods. Each change is an edit of the objects in place, as a source makes it;
//! its time ends when the tables are published.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tieline::derive::{Derived, Deriver};
use tieline::policy::api::{self, PolicyKind, PolicyObject};
use tieline::policy::selector::Selector;
use tieline::publish::Tables;
use tieline::state::{
    ClusterObjects, Encapsulation, IpPool, IpamBlock, Labels, NamedPort, Node, ObjectName, Pod,
    RemoteCluster, World,
};
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{Concern, Snapshot};

const NAMESPACES: u32 = 250;
const APPS: u32 = 20;
/// Pods of each node.
const PODS: u32 = 110;
/// Addresses of a block.
const BLOCK: u32 = 64;
/// The namespace `big` has this many pods, of the local cluster.
const BIG: u32 = 10_000;
const TIMES: u32 = 500;

fn main() {
    let json = std::env::args().skip(1).eq(["-o", "json"].map(String::from));
    let mut report = Report { json, figures: serde_json::Map::new() };
    selectors(&mut report);
    report.title("250,000 endpoints, 5,000 label sets, 10,000 policies");
    let mut lab = Lab::new(&mut report, "250k", 250_000, 10_000);
    lab.measure(&mut report);
    drop(lab);
    report.title("1,000,000 endpoints, 1,000 policies");
    let mut lab = Lab::new(&mut report, "1M", 1_000_000, 1000);
    lab.labels(&mut report, "1M one pod's label");
    lab.pods(&mut report, "1M one pod comes or goes");
    report.end();
}

/// Figures for people or for programs.
struct Report {
    json: bool,
    figures: serde_json::Map<String, Value>,
}

impl Report {
    fn title(&self, text: &str) {
        if !self.json {
            println!("\n{text}");
        }
    }

    fn say(&mut self, name: &str, value: f64, unit: &str) {
        if !self.json {
            println!("  {name:44} {value:>12.3} {unit}");
        }
        self.figures.insert(name.to_owned(), json!({"value": value, "unit": unit}));
    }

    /// Times of one kind of change.
    fn times(&mut self, name: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        let (median, p99, max) = (at(0.5), at(0.99), at(1.0));
        if !self.json {
            println!("  {name:44} {median:>12.3} ms   p99 {p99:.3} ms   max {max:.3} ms");
        }
        let times = json!({"median_ms": median, "p99_ms": p99, "max_ms": max, "n": times.len()});
        self.figures.insert(name.to_owned(), times);
    }

    fn end(self) {
        if self.json {
            println!("{:#}", Value::Object(self.figures));
        }
    }
}

/// Resident memory of this process in bytes, from `/proc/self/status`.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}

fn selectors(report: &mut Report) {
    report.title("selectors");
    let text = |n: u32| {
        format!("pcns.team == 'team-{n}' && app in {{'app-1', 'app-{n}'}} && !has(canary)")
    };
    let texts: Vec<String> = (0..100_000).map(text).collect();
    let start = Instant::now();
    let parsed: Vec<Selector> =
        texts.iter().map(|text| Selector::parse(text).expect("a selector")).collect();
    report.say("parse", parsed.len() as f64 / start.elapsed().as_secs_f64() / 1e6, "M/s");
    let labels = labels(7, 3);
    let start = Instant::now();
    let mut matching = 0;
    for _ in 0..20 {
        matching += parsed.iter().filter(|selector| selector.matches(&labels)).count();
    }
    let rate = 20.0 * parsed.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
    assert_eq!(matching, 0, "the labels are of no such team");
    report.say("match one label set", rate, "M/s");
}

fn labels(app: u32, tier: u32) -> Labels {
    [("app", format!("app-{app}")), ("tier", format!("tier-{tier}"))]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

fn name(namespace: &str, at: u32) -> ObjectName {
    ObjectName { namespace: namespace.to_owned(), name: format!("pod-{at:07}") }
}

/// Pod number `at` of a cluster whose addresses begin at `first`.
fn pod(prefix: &str, first: u32, at: u32) -> (ObjectName, Pod) {
    let set = at % (NAMESPACES * APPS);
    let namespace =
        if prefix == "app" && at < BIG { "big".to_owned() } else { format!("ns-{}", set / APPS) };
    let pod = Pod {
        labels: labels(set % APPS, set % 3).into(),
        node: format!("{prefix}-{}", at / PODS).into(),
        service_account: "default".into(),
        addresses: Box::new([address(first + at)]),
        ports: Arc::new([NamedPort { name: "http".into(), protocol: 6, port: 8080 }]),
    };
    (name(&namespace, at), pod)
}

fn address(at: u32) -> IpAddr {
    at.to_be_bytes().into()
}

/// A cluster: pods, and the nodes and blocks that they need.
fn cluster(prefix: &str, net: u8, pods: u32) -> ClusterObjects {
    let first = u32::from_be_bytes([net, 0, 0, 0]);
    let mut objects = ClusterObjects::default();
    for at in 0..NAMESPACES {
        let labels = [("team".to_owned(), format!("team-{}", at % 25))].into();
        objects.namespaces.insert(format!("ns-{at}"), Arc::new(labels));
    }
    objects.namespaces.insert("big".to_owned(), Arc::default());
    for at in 0..pods {
        let (name, pod) = pod(prefix, first, at);
        objects.pods.insert(name, Arc::new(pod));
    }
    for at in 0..pods.div_ceil(PODS) {
        let node = Node {
            ipv4: Some((address(u32::from_be_bytes([172, net, 0, 0]) + at), 32)),
            tunnel_v4: Some(address(first + at * PODS)),
            ..Node::default()
        };
        objects.nodes.insert(format!("{prefix}-{at}"), Arc::new(node));
    }
    for at in 0..pods.div_ceil(BLOCK) {
        let node = format!("{prefix}-{}", at * BLOCK / PODS);
        let start = first + at * BLOCK;
        let allocations = (0..BLOCK).map(|n| (address(start + n), node.clone())).collect();
        let block = IpamBlock {
            cidr: Prefix::new(address(start), 26).expect("a length"),
            affinity: Some(node),
            allocations,
            deleted: false,
        };
        objects.blocks.insert(format!("block-{at:05}"), Arc::new(block));
    }
    let pool = IpPool {
        cidr: Prefix::new(address(first), 8).expect("a length"),
        encapsulation: Encapsulation::Vxlan,
        nat_outgoing: false,
        disabled: false,
    };
    objects.pools.insert("pool".to_owned(), Arc::new(pool));
    objects
}

/// Policies as teams write them: for one app of one namespace, with peers by
/// app, by team and by namespace.
fn policy(at: u32, port: u32) -> Value {
    policy_with(at, at, port)
}

/// The same with the peers of another.
fn policy_with(at: u32, peers: u32, port: u32) -> Value {
    let (namespace, app) = (at % NAMESPACES, at / NAMESPACES % APPS);
    let own = format!("projectcalico.org/namespace == 'ns-{namespace}'");
    let rule = |side: &str, action: &str, selector: String, ports: Value| {
        let mut rule = json!({"action": action, "protocol": "TCP"});
        let peer = json!({"selector": selector});
        match side {
            "ingress" => {
                rule["source"] = peer;
                rule["destination"] = json!({"ports": ports});
            }
            _ => {
                rule["destination"] = json!({"selector": selector, "ports": ports});
            }
        }
        rule
    };
    let rules = |side: &str| {
        json!([
            rule(side, "Allow", format!("{own} && app == 'app-{}'", peers % APPS), json!([port])),
            rule(
                side,
                "Allow",
                format!("pcns.team == 'team-{}' && has(app)", peers % 25),
                json!(["http"])
            ),
            rule(
                side,
                "Deny",
                format!(
                    "projectcalico.org/namespace == 'ns-{}'",
                    (namespace * 7 + peers) % NAMESPACES
                ),
                json!(["1:1024"])
            ),
        ])
    };
    json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": format!("default.policy-{at:05}")},
        "spec": {
            "selector": format!("{own} && app == 'app-{app}'"),
            "types": ["Ingress", "Egress"],
            "ingress": rules("ingress"),
            "egress": rules("egress"),
        },
    })
}

/// A node's control plane.
struct Lab {
    world: World,
    deriver: Deriver,
    derived: Derived,
    tables: Tables,
    pods: u32,
    dice: u64,
}

impl Lab {
    fn new(report: &mut Report, title: &str, pods: u32, policies: u32) -> Self {
        let baseline = resident();
        let half = pods / 2;
        let mut local = cluster("app", 10, half);
        let remote = cluster("db", 20, pods - half);
        let endpoints = resident();
        for at in 0..policies {
            add_policy(&mut local, at, 8000 + at % 500);
        }
        let remote = RemoteCluster { overlay: true, objects: Arc::new(remote) };
        let world = World {
            // Not one whose pods are all of the namespace `big`.
            node: format!("app-{}", half / PODS / 2),
            include_local_vteps: false,
            local: Arc::new(local),
            remotes: BTreeMap::from([("db".into(), remote)]),
        };
        let state = resident();
        let mut deriver = Deriver::default();
        let mut tables = Tables::default();
        let start = Instant::now();
        let derived = deriver.derive(Arc::new(world.clone()));
        publish(&mut tables, &derived);
        report.say(&format!("{title} full compile"), start.elapsed().as_secs_f64(), "s");
        let all = resident();
        let each = |bytes: f64| bytes / f64::from(pods);
        let objects = endpoints - baseline;
        report.say(&format!("{title} resident: objects"), each(objects), "bytes/endpoint");
        report.say(&format!("{title} resident: what follows"), each(all - state), "bytes/endpoint");
        let of_endpoints = objects + all - state;
        report.say(&format!("{title} resident: both"), each(of_endpoints), "bytes/endpoint");
        let policy = (state - endpoints) / f64::from(policies);
        report.say(&format!("{title} resident: policies"), policy, "bytes/policy");
        report.say(&format!("{title} resident memory"), all / 1024.0 / 1024.0, "MiB");
        let routes = derived.resolved.routes.len();
        report.say(&format!("{title} routes"), routes as f64, "");
        Self { world, deriver, derived, tables, pods, dice: 1 }
    }

    /// A number below `sides`: the same ones in each run.
    fn roll(&mut self, sides: u32) -> u32 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.dice >> 33) % u64::from(sides)) as u32
    }

    fn objects(&mut self, remote: bool, change: impl FnOnce(&mut ClusterObjects)) {
        let objects = match self.world.remotes.get_mut("db") {
            Some(db) if remote => &mut db.objects,
            _ => &mut self.world.local,
        };
        change(Arc::make_mut(objects));
    }

    /// A pod of either cluster: which cluster, name and object.
    fn any_pod(&mut self) -> (bool, ObjectName, Pod) {
        let (remote, at) = (self.roll(2) == 1, self.roll(self.pods / 2));
        let (prefix, net) = if remote { ("db", 20) } else { ("app", 10) };
        let (name, pod) = pod(prefix, u32::from_be_bytes([net, 0, 0, 0]), at);
        (remote, name, pod)
    }

    /// Times a change from the edit of the objects to published tables.
    fn time(&mut self, remote: bool, change: impl FnOnce(&mut ClusterObjects)) -> Duration {
        let start = Instant::now();
        self.objects(remote, change);
        self.derived = self.deriver.derive(Arc::new(self.world.clone()));
        publish(&mut self.tables, &self.derived);
        start.elapsed()
    }

    /// Every tenth label set is one that there was not.
    fn labels(&mut self, report: &mut Report, title: &str) {
        let mut times = Vec::new();
        for n in 0..TIMES {
            let (remote, name, mut pod) = self.any_pod();
            let app = if n % 10 == 0 { 1000 + n } else { self.roll(APPS) };
            pod.labels = labels(app, 4).into();
            let addr = Addr::from(pod.addresses[0]);
            let old = self.tables.current().clone();
            times.push(self.time(remote, |it| drop(it.pods.insert(name, Arc::new(pod)))));
            check(&old, self.tables.current(), addr);
        }
        report.times(title, times);
    }

    fn pods(&mut self, report: &mut Report, title: &str) {
        let mut times = Vec::new();
        for _ in 0..TIMES / 2 {
            let (remote, name, pod) = self.any_pod();
            times.push(self.time(remote, |it| drop(it.pods.remove(&name))));
            times.push(self.time(remote, |it| drop(it.pods.insert(name, Arc::new(pod)))));
        }
        report.times(title, times);
    }

    fn measure(&mut self, report: &mut Report) {
        self.labels(report, "one pod's label");
        self.pods(report, "one pod comes or goes");
        let node = self.world.node.clone();
        let own = self.world.local.pods.iter().filter(|(_, pod)| *pod.node == *node);
        let own: Vec<_> = own.map(|(name, pod)| (name.clone(), pod.clone())).collect();
        let mut times = Vec::new();
        for (n, (name, pod)) in own.iter().enumerate() {
            let mut changed = (**pod).clone();
            changed.labels = labels((n as u32 + 1) % APPS, 2).into();
            times
                .push(self.time(false, |it| drop(it.pods.insert(name.clone(), Arc::new(changed)))));
            times.push(self.time(false, |it| drop(it.pods.insert(name.clone(), pod.clone()))));
        }
        report.times("a label of a pod of this node", times);
        let mut times = Vec::new();
        for n in 0..TIMES {
            let remote = n % 2 == 0;
            let name = format!("block-{:05}", self.roll(self.pods / 2 / BLOCK));
            times.push(self.time(remote, |it| {
                let mut block = (*it.blocks.get(&name).expect("a block").clone()).clone();
                block.allocations.swap_remove(n as usize % block.allocations.len());
                it.blocks.insert(name, Arc::new(block));
            }));
        }
        report.times("an address of a block", times);
        let mut times = Vec::new();
        for n in 0..20 {
            let name = format!("block-{:05}", self.roll(self.pods / 2 / BLOCK));
            let block = self.world.remotes["db"].objects.blocks.get(&name).cloned();
            let Some(block) = block else { continue };
            times.push(self.time(true, |it| drop(it.blocks.remove(&name))));
            times.push(self.time(true, |it| drop(it.blocks.insert(name, block))));
            assert!(n < 20);
        }
        report.times("a whole block comes or goes", times);
        self.policies(report);
        let mut times = Vec::new();
        for n in 0..20 {
            let labels = [("team".to_owned(), format!("team-{}", n % 25))].into();
            times.push(self.time(false, |it| {
                it.namespaces.insert("big".to_owned(), Arc::new(labels));
            }));
        }
        report.times(&format!("a label of a namespace of {BIG} pods"), times);
    }

    /// Edits of policies that apply on this node, and of others.
    fn policies(&mut self, report: &mut Report) {
        let node = self.world.node.clone();
        let own = self.world.local.pods.iter().filter(|(_, pod)| *pod.node == *node);
        let here: std::collections::BTreeSet<(String, String)> =
            own.map(|(name, pod)| (name.namespace.clone(), pod.labels["app"].clone())).collect();
        let applies = |at: u32| {
            let (namespace, app) = (at % NAMESPACES, at / NAMESPACES % APPS);
            here.contains(&(format!("ns-{namespace}"), format!("app-{app}")))
        };
        for (title, wanted) in
            [("a policy of this node's pods", true), ("a policy of other pods", false)]
        {
            let some: Vec<u32> = (0..10_000).filter(|at| applies(*at) == wanted).take(40).collect();
            let (mut ports, mut peers, mut order, mut presence) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for at in some {
                ports.push(self.time(false, |it| add_policy(it, at, 9000 + at % 500)));
                let other = policy_with(at, at + 7, 9000);
                peers.push(self.time(false, |it| put_policy(it, &other)));
                let mut first = other.clone();
                first["spec"]["order"] = at.into();
                order.push(self.time(false, |it| put_policy(it, &first)));
                let (name, _) = read_policy(&first);
                let gone = |it: &mut ClusterObjects| {
                    it.policy.0.remove(&(PolicyKind::GlobalNetworkPolicy, name));
                };
                presence.push(self.time(false, gone));
                presence.push(self.time(false, |it| add_policy(it, at, 8000 + at % 500)));
            }
            report.times(title, ports);
            report.times(&format!("{title}: its peers"), peers);
            report.times(&format!("{title}: its order"), order);
            report.times(&format!("{title} comes or goes"), presence);
        }
    }
}

fn add_policy(objects: &mut ClusterObjects, at: u32, port: u32) {
    put_policy(objects, &policy(at, port));
}

fn put_policy(objects: &mut ClusterObjects, policy: &Value) {
    let (name, policy) = read_policy(policy);
    objects.policy.0.insert((PolicyKind::GlobalNetworkPolicy, name), Arc::new(policy));
}

fn read_policy(policy: &Value) -> (ObjectName, PolicyObject) {
    api::parse(PolicyKind::GlobalNetworkPolicy, policy).expect("a policy")
}

fn publish(tables: &mut Tables, derived: &Derived) {
    let overlay = (*tables.current().overlay).clone();
    tables.apply(overlay, &derived.resolved, &derived.compiled, &BTreeMap::new());
}

/// A change of one address must leave flows between others alone.
fn check(old: &Snapshot, new: &Snapshot, changed: Addr) {
    let others = [[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 3], [192, 0, 2, 4]];
    let concerned = others.iter().filter(|other| {
        let other = Addr::from_v4_bytes(**other);
        let flow = Concern { local: other, remote: other, egress: None };
        new.concerns(old.generation as u32, &flow)
    });
    assert!(concerned.count() < 2, "a change of {changed:?} concerns flows of others");
}
