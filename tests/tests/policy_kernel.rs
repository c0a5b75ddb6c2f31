//! Verdicts by real packets: connections between pods of two clusters, through
//! the daemon, are made exactly when `explain` says so.
//!
//! ```text
//! three pods -- ours (tieline run) -- router -- theirs (kernel vxlan) -- three pods
//! ```
//!
//! `TIELINE_KERNEL_POLICIES=100` sets how many policy sets are tried; by default
//! the first twenty.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tieline_lab::{Netns, Outcome, Pod, TcpServer, UdpServer, connect, ping, udp_echo};
use tieline_tests::joined::{Daemon, Joined, Outer, PATIENCE, Setup};
use tieline_tests::random::Rng;

/// Ports that every pod answers on.
const PORTS: [u16; 3] = [7001, 7002, 7003];

/// Connections per policy set.
const CONNECTIONS: usize = 12;

/// How long a connection that must not be made may take to be made after all.
const DENIED: Duration = Duration::from_millis(250);

/// How long it may take until a new file of policies is what packets meet.
const SETTLED: Duration = Duration::from_secs(20);

/// Both clusters' pods have these labels, in their order.
const LABELS: [&str; 3] = ["{app: web, tier: fe}", "{app: api, tier: be}", "{app: db, tier: be}"];

struct Connection<'a> {
    from: &'a Netns,
    to: SocketAddr,
    protocol: &'static str,
    query: Value,
}

impl Connection<'_> {
    fn make(&self, within: Duration) -> bool {
        let outcome = match self.protocol {
            "tcp" => connect(self.from, self.to, within),
            "udp" => udp_echo(self.from, self.to, 64, within),
            _ => ping(self.from, self.to.ip(), 56, within),
        };
        match outcome.unwrap() {
            Outcome::Connected => true,
            Outcome::TimedOut | Outcome::Silent => false,
            other => panic!("{}: {other}", self.query),
        }
    }
}

/// A connection from a pod of either cluster to one of the other.
fn connection<'a>(rng: &mut Rng, pods: [&'a [Pod]; 2]) -> Connection<'a> {
    let ours = rng.below(2);
    let from = &pods[ours][rng.below(pods[ours].len())];
    let to = &pods[1 - ours][rng.below(pods[1 - ours].len())];
    let v6 = usize::from(rng.once_in(3));
    let (source, address): (IpAddr, IpAddr) = (from.addresses()[v6], to.addresses()[v6]);
    let icmp = if v6 == 1 { "icmpv6" } else { "icmp" };
    let protocol = rng.pick(&["tcp", "tcp", "udp", icmp]);
    let port = rng.pick(&PORTS);
    let mut query = json!({"from": source, "to": address, "protocol": protocol});
    if !protocol.starts_with("icmp") {
        query["port"] = port.into();
    }
    Connection { from: &from.netns, to: SocketAddr::new(address, port), protocol, query }
}

fn labels(rng: &mut Rng) -> Value {
    let all = [
        json!({}),
        json!({"matchLabels": {"app": "web"}}),
        json!({"matchLabels": {"tier": "be"}}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db", "web"]}]}),
    ];
    rng.pick(&all)
}

fn kubernetes_policy(rng: &mut Rng) -> Value {
    let rule = |rng: &mut Rng, peers: &str| {
        let blocks = [
            json!({"ipBlock": {"cidr": "10.244.2.0/24"}}),
            json!({"ipBlock": {"cidr": "fd00:10:244::/48"}}),
        ];
        let peer =
            if rng.once_in(4) { rng.pick(&blocks) } else { json!({"podSelector": labels(rng)}) };
        let protocol = rng.pick(&["TCP", "UDP"]);
        let (first, last) = (rng.pick(&PORTS), rng.pick(&PORTS));
        let port = json!({
            "protocol": protocol, "port": first.min(last), "endPort": first.max(last),
        });
        let mut rule = json!({peers: [peer]});
        if !rng.once_in(3) {
            rule["ports"] = json!([port]);
        }
        rule
    };
    let mut spec = json!({"podSelector": labels(rng)});
    spec["ingress"] = json!([rule(rng, "from"), rule(rng, "from")]);
    spec["egress"] = json!([rule(rng, "to"), rule(rng, "to")]);
    let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])];
    spec["policyTypes"] = rng.pick(&types);
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": spec})
}

fn calico_policy(rng: &mut Rng) -> Value {
    let selector = |rng: &mut Rng| {
        let all = ["all()", "app == 'web'", "tier == 'be'", "app in {'db', 'api'}", "!has(x)"];
        rng.pick(&all)
    };
    let rule = |rng: &mut Rng, peer: &str| {
        let mut rule = json!({"action": rng.pick(&["Allow", "Allow", "Deny", "Pass", "Log"])});
        let protocol = rng.pick(&["", "TCP", "UDP", "ICMP", "ICMPv6"]);
        if !protocol.is_empty() {
            rule["protocol"] = protocol.into();
        }
        if !rng.once_in(3) {
            rule[peer] = json!({"selector": selector(rng)});
        }
        if ["TCP", "UDP"].contains(&protocol) && !rng.once_in(3) {
            rule["destination"]["ports"] = json!([rng.pick(&PORTS), rng.pick(&PORTS)]);
        }
        rule
    };
    let mut spec = json!({"selector": selector(rng), "order": rng.below(2000)});
    if rng.once_in(2) {
        spec["tier"] = "sec".into();
    }
    for (list, peer) in [("ingress", "source"), ("egress", "destination")] {
        if !rng.once_in(3) {
            spec[list] = (0..=rng.below(3)).map(|_| rule(rng, peer)).collect();
        }
    }
    json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy", "spec": spec})
}

/// Policies, the last one by another name in each set, so that there is always
/// something new to publish.
fn policies(rng: &mut Rng, set: usize) -> String {
    let tier = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": "sec"},
        "spec": {"order": 10, "defaultAction": rng.pick(&["Deny", "Pass"])},
    });
    let mark = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
        "metadata": {"name": format!("sec.mark-{set}")},
        "spec": {"tier": "sec", "order": 0, "types": ["Egress"], "egress": [
            {"action": "Deny", "protocol": "TCP", "destination": {"ports": [20_000 + set]}},
            {"action": "Pass"},
        ]},
    });
    let mut text = format!("{tier}\n{mark}\n");
    for at in 0..1 + rng.below(3) {
        let mut policy = if rng.once_in(2) { kubernetes_policy(rng) } else { calico_policy(rng) };
        policy["metadata"] = json!({"name": format!("p{at}")});
        if policy["kind"] == "NetworkPolicy" {
            policy["metadata"]["namespace"] = "default".into();
        }
        writeln!(text, "{policy}").unwrap();
    }
    text
}

/// Replaces a file as a whole, as a ConfigMap's is.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The generation of the tables, and whether every worker has them.
fn generation(daemon: &Daemon) -> (u64, bool) {
    let status = daemon.status().unwrap_or_default();
    let generation = status["tables"]["generation"].as_u64().unwrap_or_default();
    let workers = status["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = workers.iter().all(|worker| worker["generation"] == generation);
    (generation, all && !workers.is_empty())
}

fn wait_after(daemon: &Daemon, before: u64) {
    let start = Instant::now();
    loop {
        let (generation, everywhere) = generation(daemon);
        if generation > before && everywhere {
            return;
        }
        assert!(start.elapsed() < SETTLED, "no new tables: {}", daemon.process.transcript());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gives the pods in a file of manifests their labels.
fn label_pods(path: &Path, pods: &[Pod]) {
    let mut text = std::fs::read_to_string(path).unwrap();
    for (pod, labels) in pods.iter().zip(LABELS) {
        let head = format!("kind: Pod\nmetadata:\n  name: {}\n", pod.name);
        assert!(text.contains(&head), "{text}");
        text = text.replace(&head, &format!("{head}  labels: {labels}\n"));
    }
    replace(path, &text);
}

#[test]
fn packets_pass_as_explain_says() {
    let sets = std::env::var("TIELINE_KERNEL_POLICIES").map_or(20, |text| {
        text.parse().unwrap_or_else(|_| panic!("TIELINE_KERNEL_POLICIES is {text:?}, no number"))
    });
    let joined = Joined::new(Setup { pods: LABELS.len(), ..Setup::new(Outer::V4) }, &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let at = |name: &str| joined.lab.dir().join(name);
    label_pods(&at("local/all.yaml"), &joined.our_node().pods);
    label_pods(&at("remote/all.yaml"), &joined.their_node().pods);
    let pods: [&[Pod]; 2] = [&joined.our_node().pods, &joined.their_node().pods];
    let netns = || pods.into_iter().flatten().map(|pod| &pod.netns);
    let servers = || netns().flat_map(|netns| PORTS.map(|port| (netns, port)));
    let _tcp: Vec<_> = servers().map(|(it, port)| TcpServer::start(it, port).unwrap()).collect();
    let _udp: Vec<_> = servers().map(|(it, port)| UdpServer::start(it, port).unwrap()).collect();

    let rng = &mut Rng(1);
    let (mut made, mut refused) = (0, 0);
    for set in 0..sets {
        let text = policies(rng, set);
        let (before, _) = generation(&daemon);
        replace(&at("local/policies.yaml"), &text);
        wait_after(&daemon, before);
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| connection(rng, pods)).collect();
        let lines: String = connections.iter().map(|it| format!("{}\n", it.query)).collect();
        std::fs::write(at("queries"), lines).unwrap();
        let answers = daemon.explain(&at("queries"));
        assert_eq!(answers.len(), CONNECTIONS);
        std::thread::scope(|scope| {
            let tried = connections.iter().zip(&answers).map(|(connection, answer)| {
                scope.spawn(move || {
                    let allowed = answer["verdict"] == "allow";
                    let patience = if allowed { PATIENCE } else { DENIED };
                    (connection, answer, allowed, connection.make(patience))
                })
            });
            for tried in tried.collect::<Vec<_>>() {
                let (connection, answer, allowed, is_made) = tried.join().unwrap();
                assert!(answer.get("error").is_none(), "{answer}");
                assert_eq!(
                    is_made,
                    allowed,
                    "set {set}: {}\n{answer:#}\n{text}\n{:#?}",
                    connection.query,
                    daemon.status().map(|mut status| status["drops"].take()),
                );
                made += usize::from(is_made);
                refused += usize::from(!is_made);
            }
        });
    }
    println!(
        "{} real connections over {sets} policy sets went as explain said: {made} were made, \
         {refused} were not",
        made + refused
    );
    assert!(made.min(refused) > sets, "both must happen: {made} made, {refused} refused");
}
