//! ClusterNetworkPolicy, as far as Calico's snapshot of the API goes.
//!
//! Peers that the API has and nobody here can tell apart (nodes, domain names)
//! are kept as such, because the API says what a rule with one means: Accept
//! matches nothing, Deny and Pass deny everything.

use serde_json::Value;
use tieline_dataplane::addr::Prefix;

use super::ApiError;
use super::calico::TOP;
use super::fields::{Object, Result, choice, cidr, integer, list, quoted, string};
use super::kubernetes::{label_selector, port_number};
use super::rule::{SCTP, TCP, UDP};
use crate::policy::model::{Action, PortMatch};
use crate::policy::selector::Selector;

/// Most rules of a direction, and most entries of each list in a rule.
const MAX_ENTRIES: usize = 25;

/// Longest name of a rule, in characters.
const MAX_NAME: usize = 100;

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterPolicy {
    /// `spec.tier`.
    pub tier: ClusterTier,
    /// `spec.priority`, 0 to 1000; lower is first.
    pub priority: u16,
    /// `spec.subject`.
    pub subject: Subject,
    /// `spec.ingress`.
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress`.
    pub egress: Vec<ClusterRule>,
}

/// A tier of ClusterNetworkPolicies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterTier {
    /// Before the NetworkPolicies.
    Admin,
    /// After them.
    Baseline,
}

/// Pods, by their namespaces and by themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Which namespaces.
    pub namespaces: Selector,
    /// Which pods in them; `None` when only namespaces are given.
    pub pods: Option<Selector>,
}

/// A rule: all of the peers over all of the protocols.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterRule {
    /// `action`.
    pub action: Action,
    /// `from` or `to`.
    pub peers: Vec<ClusterPeer>,
    /// `protocols`; empty means everything.
    pub protocols: Vec<ClusterPorts>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterPeer {
    /// `namespaces` or `pods`.
    Pods(Subject),
    /// `networks`.
    Networks(Vec<Prefix>),
    /// A kind of peer that can't be told apart here.
    Unsupported(&'static str),
}

/// An entry of `protocols`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterPorts {
    /// IP protocol number; `None` for a named port.
    pub protocol: Option<u8>,
    /// The destination's port.
    pub port: PortMatch,
}

pub(super) fn policy(object: &Value) -> Result<ClusterPolicy> {
    Object::closed(object, TOP)?.required("spec", |spec| {
        let spec = Object::closed(spec, &["tier", "priority", "subject", "ingress", "egress"])?;
        let tiers = &[("Admin", ClusterTier::Admin), ("Baseline", ClusterTier::Baseline)];
        Ok(ClusterPolicy {
            tier: spec.required("tier", |value| choice(value, tiers))?,
            priority: spec.required("priority", |value| integer(value, 0, 1000))? as u16,
            subject: spec.required("subject", |value| {
                let fields = exactly_one(value, &["namespaces", "pods"])?;
                subject(fields)?.ok_or_else(|| ApiError::new("write namespaces or pods"))
            })?,
            ingress: spec.list("ingress", MAX_ENTRIES, |value| rule(value, "from"))?,
            egress: spec.list("egress", MAX_ENTRIES, |value| rule(value, "to"))?,
        })
    })
}

fn exactly_one<'a>(value: &'a Value, known: &[&str]) -> Result<Object<'a>> {
    let fields = Object::closed(value, known)?;
    match fields.count() {
        1 => Ok(fields),
        0 => Err(ApiError::new(format!("is empty; write one of {}", known.join(", ")))),
        _ => Err(ApiError::new(format!("may have only one of {}", known.join(", ")))),
    }
}

fn subject(fields: Object<'_>) -> Result<Option<Subject>> {
    if let Some(namespaces) = fields.optional("namespaces", label_selector)? {
        return Ok(Some(Subject { namespaces, pods: None }));
    }
    fields.optional("pods", |value| {
        let fields = Object::closed(value, &["namespaceSelector", "podSelector"])?;
        Ok(Subject {
            namespaces: fields.optional("namespaceSelector", label_selector)?.unwrap_or_default(),
            pods: Some(fields.required("podSelector", label_selector)?),
        })
    })
}

fn rule(value: &Value, peers: &'static str) -> Result<ClusterRule> {
    let fields = Object::closed(value, &["name", "action", peers, "protocols"])?;
    fields.optional("name", |value| {
        let name = string(value)?;
        if name.chars().count() <= MAX_NAME {
            return Ok(());
        }
        Err(ApiError::new(format!("{} is longer than {MAX_NAME} characters", quoted(name))))
    })?;
    let actions = &[("Accept", Action::Allow), ("Deny", Action::Deny), ("Pass", Action::Pass)];
    let ingress = peers == "from";
    let rule = ClusterRule {
        action: fields.required("action", |value| choice(value, actions))?,
        peers: fields.required(peers, |value| filled(value, |value| peer(value, ingress)))?,
        protocols: fields.optional("protocols", |value| filled(value, ports))?.unwrap_or_default(),
    };
    check_named_ports(&rule, ingress)?;
    Ok(rule)
}

/// A list that must not be empty.
fn filled<'a, T>(value: &'a Value, read: impl FnMut(&'a Value) -> Result<T>) -> Result<Vec<T>> {
    let entries = list(value, MAX_ENTRIES, read)?;
    if entries.is_empty() { Err(ApiError::new("is empty; write an entry")) } else { Ok(entries) }
}

fn peer(value: &Value, ingress: bool) -> Result<ClusterPeer> {
    let known: &[&'static str] = &["namespaces", "pods", "networks", "nodes", "domainNames"];
    let fields = exactly_one(value, known)?;
    if let Some(subject) = subject(fields)? {
        return Ok(ClusterPeer::Pods(subject));
    }
    if !ingress {
        let networks = |value| filled(value, cidr).map(ClusterPeer::Networks);
        if let Some(networks) = fields.optional("networks", networks)? {
            return Ok(networks);
        }
    }
    let kind = known.iter().find(|kind| fields.has(kind)).copied().unwrap_or("nothing");
    Ok(ClusterPeer::Unsupported(kind))
}

fn ports(value: &Value) -> Result<ClusterPorts> {
    const KNOWN: &[(&str, u8)] = &[("tcp", TCP), ("udp", UDP), ("sctp", SCTP)];
    let fields = exactly_one(value, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    for (key, protocol) in KNOWN {
        let port = fields.optional(key, |value| {
            exactly_one(value, &["destinationPort"])?.required("destinationPort", port)
        })?;
        if let Some(port) = port {
            return Ok(ClusterPorts { protocol: Some(*protocol), port });
        }
    }
    let name = fields.required("destinationNamedPort", |value| {
        let name = string(value)?;
        if name.is_empty() { Err(ApiError::new("is empty; write a name")) } else { Ok(name) }
    })?;
    Ok(ClusterPorts { protocol: None, port: PortMatch::Named(name.to_owned()) })
}

fn port(value: &Value) -> Result<PortMatch> {
    let fields = exactly_one(value, &["number", "range"])?;
    if let Some(number) = fields.optional("number", port_number)? {
        return Ok(PortMatch::Range(number..=number));
    }
    fields.required("range", |value| {
        let fields = Object::closed(value, &["start", "end"])?;
        let start = fields.required("start", port_number)?;
        let end = fields.required("end", port_number)?;
        if start < end {
            return Ok(PortMatch::Range(start..=end));
        }
        Err(ApiError::of("end", format!("{end} is not after start {start}; correct one of them")))
    })
}

/// Only pods have named ports.
fn check_named_ports(rule: &ClusterRule, ingress: bool) -> Result<()> {
    let elsewhere = rule.peers.iter().any(|peer| !matches!(peer, ClusterPeer::Pods(_)));
    let named = rule.protocols.iter().position(|ports| ports.protocol.is_none());
    match named {
        Some(place) if elsewhere && !ingress => Err(ApiError::of(
            &format!("protocols[{place}].destinationNamedPort"),
            "only pods have named ports; write the number, or a rule for pods alone",
        )),
        _ => Ok(()),
    }
}
