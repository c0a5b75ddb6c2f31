//! What the evaluator knows of policies: tiers of policies of rules, in order
//! of precedence, with every default applied and every selector rewritten.
//!
//! Resources of all kinds become this one model ([`super::convert`]); nothing
//! downstream knows which kind a rule came from but to name it.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use super::selector::Selector;
use crate::map::Map;
use crate::state::{Condition, ObjectName};

/// All policies in force, in order of precedence. What two sets have in common
/// they share, so that finding what differs costs no more than that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySet {
    /// Tiers, first evaluated first; no two have the same name.
    pub tiers: Vec<Tier>,
    /// The endpoints of the services that rules name.
    pub services: Map<ObjectName, Arc<[ServiceEndpoint]>>,
    /// What can't be enforced as it is written.
    pub conditions: Arc<[Condition]>,
}

/// A tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// What happens to a packet that a policy of this tier selected and no
    /// rule decided.
    pub default_action: TierAction,
    /// Its policies, first evaluated first; staged ones included.
    pub policies: Map<Rank, Arc<Policy>>,
}

impl Tier {
    /// A tier with these policies in this order.
    pub fn new(
        name: impl Into<String>,
        default_action: TierAction,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Self {
        let ranked = (0u32..)
            .zip(policies)
            .map(|(at, policy)| (Rank { order: at.into(), tie: "".into() }, Arc::new(policy)));
        Self { name: name.into(), default_action, policies: ranked.collect() }
    }
}

/// The place of a policy in its tier.
#[derive(Clone, Debug)]
pub struct Rank {
    /// Infinite when the policy gives none.
    pub order: f64,
    /// What decides between equal orders.
    pub tie: Arc<str>,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.total_cmp(&other.order).then_with(|| self.tie.cmp(&other.tie))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

/// A tier's default action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierAction {
    /// Drop.
    Deny,
    /// Go on with the next tier.
    Pass,
}

/// Kinds of policies, for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicySource {
    /// Calico NetworkPolicy.
    NetworkPolicy,
    /// Calico GlobalNetworkPolicy.
    GlobalNetworkPolicy,
    /// Kubernetes NetworkPolicy.
    KubernetesNetworkPolicy,
    /// Kubernetes ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// Calico StagedNetworkPolicy.
    StagedNetworkPolicy,
    /// Calico StagedGlobalNetworkPolicy.
    StagedGlobalNetworkPolicy,
    /// Calico StagedKubernetesNetworkPolicy.
    StagedKubernetesNetworkPolicy,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The kind of resource that it came from.
    pub source: PolicySource,
    /// Its name; the namespace is empty for global ones.
    pub name: ObjectName,
    /// Staged policies are shown, never enforced.
    pub staged: bool,
    /// Which local endpoints it applies to: the whole condition, namespace and
    /// service account included.
    pub selector: Selector,
    /// Rules for packets to the endpoint; `None` when the policy does not
    /// apply in this direction.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for packets from the endpoint.
    pub egress: Option<Vec<Rule>>,
}

/// What follows from a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Accept, finally.
    Allow,
    /// Drop, finally.
    Deny,
    /// Leave this tier and go on with the next one.
    Pass,
    /// Go on with the next rule.
    Log,
}

/// A rule: it matches when every condition does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Place, from 0, of the rule in its resource's own list for the direction.
    /// Several rules of the model may come from one, and one may leave none.
    pub origin: usize,
    /// What follows from a match.
    pub action: Action,
    /// Whether it exists for IPv4 (the per-family rule is already applied).
    pub v4: bool,
    /// Whether it exists for IPv6.
    pub v6: bool,
    /// IP protocol number that must match.
    pub protocol: Option<u8>,
    /// IP protocol number that must not match.
    pub not_protocol: Option<u8>,
    /// ICMP or ICMPv6 type, and code if given, that must match; `protocol`
    /// says which of the two.
    pub icmp: Option<Icmp>,
    /// ICMP type, and code if given, that must not match.
    pub not_icmp: Option<Icmp>,
    /// Conditions on the source.
    pub source: Entity,
    /// Conditions on the destination.
    pub destination: Entity,
}

/// An ICMP type, and code if given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code; any when `None`.
    pub code: Option<u8>,
}

/// Conditions on one end of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entity {
    /// One of these must hold the address; empty matches all.
    pub nets: Vec<Prefix>,
    /// None of these may hold the address.
    pub not_nets: Vec<Prefix>,
    /// The address must be one of an identity that this selects. A
    /// `notSelector` beside a positive condition is part of it.
    pub selector: Option<Selector>,
    /// The address must not be one of an identity that this selects; matches
    /// addresses of no identity too.
    pub not_selector: Option<Selector>,
    /// One of these must match; empty matches all.
    pub ports: Vec<PortMatch>,
    /// None of these may match.
    pub not_ports: Vec<PortMatch>,
    /// The address (as a destination: with protocol and port) must be one of
    /// this service's endpoints. The name may be one that matches nothing.
    pub service: Option<ObjectName>,
}

/// A port or ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// By number.
    Range(RangeInclusive<u16>),
    /// By name: the ports of that name of the identities that own the address
    /// of this end of the packet, each with its own protocol (and only those of
    /// the rule's protocol, if it has one).
    Named(String),
}

/// One address, protocol and port behind a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// IP protocol number and port; `None` when the slice gives no number: the
    /// address then counts as a source only.
    pub port: Option<(u8, u16)>,
}
