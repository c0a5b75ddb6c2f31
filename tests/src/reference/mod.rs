//! Policy read directly from the resources, as their documentation says and for
//! clarity alone: every object is looked at for every packet.
//!
//! It is the judge of everything between manifests and verdicts, and shares
//! nothing with it: no parser, no model, no selector rewriting. Objects are as
//! users write them (`projectcalico.org/v3`), and taken to be valid.
//!
//! ```text
//! selector  both languages for selecting labels
//! things    what has addresses, with the labels that can be seen of it
//! rules     whether one rule matches one packet, kind by kind
//! ```
//! Start reading at [`Reference::judge`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

mod rules;
mod selector;
mod things;

use self::things::Thing;

/// The objects of all clusters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Clusters {
    /// Of the local cluster.
    pub local: Vec<Value>,
    /// Of remote clusters, by the name of their RemoteClusterConfiguration.
    pub remotes: BTreeMap<String, Vec<Value>>,
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub from: IpAddr,
    /// Destination address, of the same family.
    pub to: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port of TCP, UDP and SCTP.
    pub source_port: u16,
    /// Destination port of these.
    pub port: u16,
    /// Type and code of ICMP and ICMPv6.
    pub icmp: (u8, u8),
}

impl Packet {
    /// Whether rules can match its ports.
    pub fn has_ports(&self) -> bool {
        [6, 17, 132].contains(&self.protocol)
    }
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// A rule: tier, kind, policy, and its place from 1.
    Rule(String, String, String, usize),
    /// The default action of a tier.
    TierDefault(String),
    /// The profile of a namespace.
    Profile(String),
}

/// Judges packets.
#[derive(Debug)]
pub struct Reference<'a> {
    things: Vec<Thing>,
    /// EndpointSlices of the local cluster.
    slices: Vec<&'a Value>,
    /// Tiers in order, each with whether it ends in Pass, and its policies in
    /// order.
    tiers: Vec<(String, bool, Vec<&'a Value>)>,
}

/// The text at a path, empty if there is none.
fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a path, empty if there is none.
fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A number that sorts last when it is missing.
fn order(value: Option<&Value>) -> f64 {
    value.and_then(Value::as_f64).unwrap_or(f64::INFINITY)
}

/// Kind as Calico names it in ties: Kubernetes' policies apart from its own.
fn kind_in_ties(policy: &Value) -> String {
    match (text(policy, "/apiVersion"), text(policy, "/kind")) {
        ("networking.k8s.io/v1", _) => "KubernetesNetworkPolicy".to_owned(),
        (_, "ClusterNetworkPolicy") => "KubernetesClusterNetworkPolicy".to_owned(),
        (_, kind) => kind.to_owned(),
    }
}

fn tier_of(policy: &Value) -> &str {
    match (text(policy, "/kind"), text(policy, "/spec/tier")) {
        ("ClusterNetworkPolicy", "Admin") => "kube-admin",
        ("ClusterNetworkPolicy", _) => "kube-baseline",
        (_, "") => "default",
        (_, tier) => tier,
    }
}

fn order_of(policy: &Value) -> f64 {
    match (text(policy, "/apiVersion"), text(policy, "/kind")) {
        ("networking.k8s.io/v1", _) => 1000.0,
        (_, "ClusterNetworkPolicy") => order(policy.pointer("/spec/priority")),
        _ => order(policy.pointer("/spec/order")),
    }
}

/// Whether a kind is of policies that are enforced.
fn is_policy(object: &Value) -> bool {
    let kinds = ["NetworkPolicy", "GlobalNetworkPolicy", "ClusterNetworkPolicy"];
    let for_hosts = ["/spec/doNotTrack", "/spec/preDNAT"];
    kinds.contains(&text(object, "/kind"))
        && !for_hosts.iter().any(|field| object.pointer(field) == Some(&Value::Bool(true)))
}

impl<'a> Reference<'a> {
    /// Reads the objects of all clusters.
    pub fn new(clusters: &'a Clusters) -> Self {
        let mut tiers: BTreeMap<&str, (f64, bool)> = BTreeMap::from([
            ("kube-admin", (1000.0, true)),
            ("default", (1_000_000.0, false)),
            ("kube-baseline", (10_000_000.0, true)),
        ]);
        for tier in clusters.local.iter().filter(|object| text(object, "/kind") == "Tier") {
            let pass = text(tier, "/spec/defaultAction") == "Pass";
            tiers.insert(text(tier, "/metadata/name"), (order(tier.pointer("/spec/order")), pass));
        }
        // Tiers that only policies name come after all others.
        let mut missing: Vec<&str> =
            clusters.local.iter().filter(|object| is_policy(object)).map(tier_of).collect();
        missing.retain(|name| !tiers.contains_key(name));
        missing.sort_unstable();
        missing.dedup();
        let mut names: Vec<(f64, &str, bool)> =
            tiers.into_iter().map(|(name, (order, pass))| (order, name, pass)).collect();
        names.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
        let names = names.into_iter().map(|(_, name, pass)| (name, pass));
        let names = names.chain(missing.into_iter().map(|name| (name, false)));
        let tiers = names.map(|(name, pass)| {
            let of_tier = |object: &&Value| is_policy(object) && tier_of(object) == name;
            let mut policies: Vec<&Value> = clusters.local.iter().filter(of_tier).collect();
            let tie = |policy: &Value| {
                let meta = |field| text(policy, field).to_owned();
                let (name, namespace) = (meta("/metadata/name"), meta("/metadata/namespace"));
                format!("{name}/{namespace}/{}", kind_in_ties(policy))
            };
            policies.sort_by(|a, b| {
                let orders = order_of(a).partial_cmp(&order_of(b)).expect("no NaN");
                orders.then_with(|| tie(a).cmp(&tie(b)))
            });
            (name.to_owned(), pass, policies)
        });
        let slices = clusters.local.iter().filter(|it| text(it, "/kind") == "EndpointSlice");
        Self { things: things::all(clusters), slices: slices.collect(), tiers: tiers.collect() }
    }

    /// Whether the pod of the local cluster that has an end of the packet lets it
    /// through, and why; `None` when there is no such pod.
    pub fn judge(&self, ingress: bool, packet: &Packet) -> Option<(bool, Because)> {
        let here = if ingress { packet.to } else { packet.from };
        let pod = self.things.iter().find(|thing| thing.is_local_pod() && thing.has(here))?;
        'tiers: for (tier, pass, policies) in &self.tiers {
            let mut any_applies = false;
            for policy in policies {
                let Some(rules) =
                    rules::of(policy, ingress).filter(|_| rules::applies(policy, pod))
                else {
                    continue;
                };
                any_applies = true;
                for (place, rule) in (1..).zip(rules) {
                    let Some(action) = self.action(policy, rule, ingress, packet) else { continue };
                    let because = || {
                        let (kind, meta) = (text(policy, "/kind"), &policy["metadata"]);
                        let name = match text(meta, "/namespace") {
                            "" => text(meta, "/name").to_owned(),
                            namespace => format!("{namespace}/{}", text(meta, "/name")),
                        };
                        Because::Rule(tier.clone(), kind.to_owned(), name, place)
                    };
                    match action {
                        "Allow" => return Some((true, because())),
                        "Deny" => return Some((false, because())),
                        "Pass" => continue 'tiers,
                        _ => {}
                    }
                }
            }
            if any_applies && !pass {
                return Some((false, Because::TierDefault(tier.clone())));
            }
        }
        let namespace = pod.namespace.clone().unwrap_or_default();
        Some((pod.has_profile, Because::Profile(format!("kns.{namespace}"))))
    }
}
