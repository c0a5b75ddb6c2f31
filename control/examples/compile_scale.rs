//! Time and memory of compiling 10,000 policies for 250,000 endpoints with
//! 5,000 distinct label sets, 110 of them on this node.
//!
//! `cargo run --release -p tieline --example compile_scale`
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use tieline::policy::compile::{Compiled, Compiler};
use tieline::policy::model::{
    Action, Entity, Policy, PolicySet, PolicySource, PortMatch, Rule, Tier, TierAction,
};
use tieline::policy::selector::Selector;
use tieline::state::{ClusterId, Identity, IdentityKind, Labels, NamedPort, ObjectName};
use tieline_dataplane::addr::{Addr, Prefix};

const ENDPOINTS: u32 = 250_000;
const NAMESPACES: u32 = 250;
const APPS: u32 = 20;
const LOCAL: u32 = 110;
const POLICIES: u32 = 10_000;

/// Which endpoints policies select.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Those of one app of one namespace, as teams write them.
    PerApp,
    /// All endpoints, which is the worst that there is.
    Global,
    /// All endpoints, and every rule is for any peer and a port of its own.
    Ports,
}

fn main() {
    println!("{ENDPOINTS} endpoints, {} label sets, {LOCAL} local", NAMESPACES * APPS);
    println!(
        "{:>8} {:>8} {:>10} {:>10} {:>8} {:>8} {:>13} {:>9}",
        "shape", "policies", "compile", "one more", "classes", "programs", "tables (kept)", "RSS"
    );
    let mut identities: Vec<Identity> = (0..ENDPOINTS).map(identity).collect();
    for (shape, policies) in [
        (Shape::PerApp, 10),
        (Shape::PerApp, POLICIES),
        (Shape::Global, 100),
        (Shape::Global, 1000),
        (Shape::Global, POLICIES),
        (Shape::Ports, 1000),
        (Shape::Ports, POLICIES),
    ] {
        let set = policy_set(shape, policies);
        let mut compiler = Compiler::default();
        let start = Instant::now();
        let compiled = compiler.compile(&set, &identities);
        let took = start.elapsed();
        identities.push(identity(ENDPOINTS));
        let start = Instant::now();
        let next = compiler.compile(&set, &identities);
        let again = start.elapsed();
        identities.pop();
        let kept = compiled.policies.iter().zip(&next.policies);
        let kept = kept.filter(|(old, new)| match (old, new) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        });
        println!(
            "{:>8} {policies:>8} {:>8.3} s {:>8.3} s {:>8} {:>8} {:>4} ({:>6}) {:>5} MiB",
            format!("{shape:?}"),
            took.as_secs_f64(),
            again.as_secs_f64(),
            compiled.endpoints.iter().map(|(_, class, _)| class.0 + 1).max().unwrap_or(0),
            programs(&compiled),
            compiled.policies.len(),
            kept.count(),
            resident_mib(),
        );
    }
}

fn programs(compiled: &Compiled) -> usize {
    let tables = compiled.policies.iter().flatten();
    tables.map(|policy| policy.ingress.programs.len() + policy.egress.programs.len()).sum()
}

/// Resident memory of this process, from `/proc/self/status`.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn labels(at: u32) -> (String, Arc<Labels>) {
    let set = at % (NAMESPACES * APPS);
    let namespace = format!("ns-{}", set / APPS);
    let labels: Labels = [
        ("app", format!("app-{}", set % APPS)),
        ("tier", format!("tier-{}", set % 3)),
        ("pcns.projectcalico.org/name", namespace.clone()),
        ("pcns.team", format!("team-{}", set / APPS % 25)),
        ("projectcalico.org/namespace", namespace.clone()),
        ("projectcalico.org/orchestrator", "k8s".into()),
        ("projectcalico.org/serviceaccount", "default".into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    (namespace, Arc::new(labels))
}

fn identity(at: u32) -> Identity {
    let (namespace, labels) = labels(at);
    let local = at.is_multiple_of(ENDPOINTS / LOCAL) && at / (ENDPOINTS / LOCAL) < LOCAL;
    let addr = Addr::from_v4_bytes((0x0a00_0000 + at).to_be_bytes());
    Identity {
        cluster: ClusterId::Local,
        kind: if local { IdentityKind::LocalWorkload } else { IdentityKind::Workload },
        name: ObjectName { namespace, name: format!("pod-{at}") },
        node: format!("node-{}", at / LOCAL),
        labels,
        nets: vec![Prefix::host(addr)],
        ports: vec![NamedPort { name: "http".into(), protocol: 6, port: 8080 }],
    }
}

fn policy_set(shape: Shape, count: u32) -> PolicySet {
    let parse = |text: String| Selector::parse(&text).expect("a selector");
    let rule = |action, source: Selector, port| Rule {
        action,
        v4: true,
        v6: true,
        protocol: Some(6),
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        origin: 0,
        source: Entity { selector: Some(source), ..Entity::default() },
        destination: Entity { ports: vec![port], ..Entity::default() },
    };
    let turned = |rule: Rule| Rule {
        source: Entity::default(),
        destination: Entity { ports: rule.destination.ports, ..rule.source },
        ..rule
    };
    let policy = |at: u32| {
        let (namespace, app) = (at % NAMESPACES, at / NAMESPACES % APPS);
        let own = format!("projectcalico.org/namespace == 'ns-{namespace}'");
        let number = PortMatch::Range((8000 + at % 500) as u16..=(8000 + at % 500) as u16);
        let other = (namespace * 7 + at) % NAMESPACES;
        if let Shape::Ports = shape {
            let port = PortMatch::Range(at as u16..=at as u16);
            let mut one = rule(Action::Allow, Selector::all(), port);
            one.source = Entity::default();
            // Some rules look at the peer, so that there are groups of peers.
            if at.is_multiple_of(100) {
                let team = format!("pcns.team == 'team-{}'", at / 100 % 25);
                one.source.selector = Some(parse(team));
            }
            return Arc::new(Policy {
                source: PolicySource::GlobalNetworkPolicy,
                name: ObjectName { namespace: String::new(), name: format!("policy-{at}") },
                staged: false,
                selector: Selector::all(),
                ingress: Some(vec![one]),
                egress: None,
            });
        }
        let ingress = vec![
            rule(Action::Allow, parse(format!("{own} && app == 'app-{}'", at % APPS)), number),
            rule(
                Action::Allow,
                parse(format!("pcns.team == 'team-{}' && has(app)", at % 25)),
                PortMatch::Named("http".into()),
            ),
            rule(
                Action::Deny,
                parse(format!("projectcalico.org/namespace == 'ns-{other}'")),
                PortMatch::Range(1..=1024),
            ),
        ];
        let egress = ingress.iter().cloned().map(turned).collect();
        Arc::new(Policy {
            source: PolicySource::GlobalNetworkPolicy,
            name: ObjectName { namespace: String::new(), name: format!("policy-{at}") },
            staged: false,
            selector: match shape {
                Shape::PerApp => parse(format!("{own} && app == 'app-{app}'")),
                Shape::Global | Shape::Ports => Selector::all(),
            },
            ingress: Some(ingress),
            egress: Some(egress),
        })
    };
    let policies = (0..count).map(policy).collect();
    let tier = Tier { name: "default".into(), default_action: TierAction::Deny, policies };
    PolicySet { tiers: vec![tier], ..PolicySet::default() }
}
