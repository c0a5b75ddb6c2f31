//! Why a connection is allowed or denied.
//!
//! Promises: a verdict comes from the compiled tables, by the same
//! [`Direction::judge`](tieline_dataplane::tables::policy::Direction::judge)
//! that packets run; the story around it (which conditions of which rules
//! failed) is told from the model and never decides anything. Every pod of the
//! local cluster can be asked about, not those of this node alone: the tables
//! of other nodes are compiled when they are first asked for, and kept.
//!
//! ```text
//! query   one connection, as flags or JSON
//! story   a rule against a packet: which conditions hold, in words
//! text    the answer for people
//! batch   many connections as JSON lines
//! ```
//!
//! Start reading at [`Explainer::explain`].

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ahash::HashMap;
use serde::Serialize;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{ClassId, PolicyId, PrefixMap};

pub use self::batch::{Summary, explain_lines, explain_text};
use self::query::End;
pub use self::query::{Protocol, Query};
pub use self::story::{NearMiss, PolicyTrace, RuleTrace, TierTrace};
use self::story::{Packet, Peer};
use super::compile::{Compiled, Decision, Direction, compile};
use super::model::{Policy, PolicySet};
use crate::derive::Derived;
use crate::resolve::{Resolved, RouteTarget, resolve, vtep_for};
use crate::state::{ClusterId, Identity, IdentityKind, ObjectName, World};

mod batch;
mod query;
mod story;
#[cfg(test)]
mod tests;
mod text;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// An end that can't be read.
    #[error("{0:?} is neither namespace/pod, cluster:namespace/pod nor an address")]
    End(String),
    /// An unknown protocol.
    #[error("{0:?} is not a protocol: use tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255")]
    Protocol(String),
    /// A field that does not fit the protocol.
    #[error("{field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// No such pod.
    #[error(
        "no pod {pod} with an address in cluster {cluster}{hint}; finished pods and pods on the \
         host's network have no identity"
    )]
    NoPod {
        /// The cluster that was meant.
        cluster: ClusterId,
        /// The pod.
        pod: ObjectName,
        /// Where there is one of that name.
        hint: String,
    },
    /// A cluster that is not known.
    #[error("no cluster {0:?}: no RemoteClusterConfiguration of that name is in force")]
    NoCluster(String),
    /// IPv4 on one end, IPv6 on the other.
    #[error("{from} and {to} have no address family in common")]
    NoCommonFamily {
        /// As asked.
        from: String,
        /// As asked.
        to: String,
    },
    /// Nothing of ours judges the connection.
    #[error(
        "neither {from} nor {to} is a pod of the local cluster: policy is enforced at the pods of \
         the local cluster only"
    )]
    NotLocal {
        /// As asked.
        from: String,
        /// As asked.
        to: String,
    },
}

/// Whether a connection may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl From<bool> for Verdict {
    fn from(allow: bool) -> Self {
        if allow { Self::Allow } else { Self::Deny }
    }
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// From the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// `deny` if either side denies.
    pub verdict: Verdict,
    /// Where the connection begins.
    pub from: EndpointInfo,
    /// Where it ends.
    pub to: EndpointInfo,
    /// Its protocol.
    pub protocol: Protocol,
    /// Destination port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Source port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// The source's policy; `null` when the source is no pod of the local
    /// cluster.
    pub egress: Option<Side>,
    /// The destination's policy; `null` when that is no pod of the local
    /// cluster.
    pub ingress: Option<Side>,
    /// How the local pod's node reaches the other end; `null` when no route of
    /// ours leads there and the kernel's own routes hold.
    pub route: Option<RouteInfo>,
    /// Fields of the query that mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointInfo {
    /// Its address.
    pub address: IpAddr,
    /// The identities that the address is one of, most specific first; empty
    /// for an address that is not known.
    pub identities: Vec<IdentityInfo>,
}

/// One identity of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityInfo {
    /// `pod`, `host-endpoint` or `network-set`.
    pub kind: &'static str,
    /// `local`, or the name of the RemoteClusterConfiguration.
    pub cluster: String,
    /// `namespace/name`, or the name of a cluster-scoped object.
    pub name: String,
    /// The node that it is on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// What kind of thing decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// A rule of a policy.
    Rule,
    /// A tier's default action.
    TierDefault,
    /// The profile of the pod's namespace.
    Profile,
    /// Nothing is asked.
    NoPolicy,
}

/// What one pod's policy says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// What it says.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// What kind of thing decided.
    pub decided_by: DecidedBy,
    /// The tier that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy that decided: `namespace/name`, or the name of a global one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The kind of that policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_kind: Option<&'static str>,
    /// The rule's place in its policy and direction, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The profile that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What would hold if the staged policies that select the pod were
    /// enforced; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
    /// Rules that would have decided otherwise but for one or two conditions,
    /// nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near_misses: Vec<NearMiss>,
    /// Tiers and policies considered, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<TierTrace>,
}

/// What staged policies would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Staged {
    /// The verdict with them.
    pub verdict: Verdict,
    /// Whether that is another verdict.
    pub changes: bool,
    /// Why, in words.
    pub reason: String,
}

/// A route of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteInfo {
    /// Its destination.
    pub prefix: String,
    /// `local` for this node, `vtep` for another.
    pub via: &'static str,
    /// The cluster of the node that it leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// That node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Underlay address of the node's VTEP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
    /// The object that the route follows from.
    pub origin: String,
}

/// Explains one connection. For more than one, an [`Explainer`] saves work.
pub fn explain(derived: &Derived, query: &Query) -> Result<Answer, ExplainError> {
    Explainer::new(derived).explain(query)
}

/// Explains connections in one state of the world.
#[derive(Debug)]
pub struct Explainer<'a> {
    derived: &'a Derived,
    /// Without traces, for bulk use.
    brief: bool,
    pods: HashMap<(&'a ClusterId, &'a ObjectName), u32>,
    owners: HashMap<Addr, Vec<u32>>,
    /// Nets of network sets.
    nets: Vec<(Prefix, u32)>,
    any_staged: bool,
    /// By node of the local cluster.
    nodes: HashMap<String, Node<'a>>,
}

/// The tables of one node.
#[derive(Debug)]
struct Node<'a> {
    enforced: Tables<'a>,
    /// With staged policies enforced; only where there are any.
    staged: Option<Tables<'a>>,
    resolved: Cow<'a, Resolved>,
}

/// Compiled policy, for looking up.
#[derive(Debug)]
struct Tables<'a> {
    compiled: Cow<'a, Compiled>,
    prefixes: PrefixMap<ClassId>,
}

impl<'a> Tables<'a> {
    fn new(compiled: Cow<'a, Compiled>) -> Self {
        let mut prefixes = PrefixMap::default();
        for (prefix, class) in &compiled.prefixes {
            prefixes.insert(*prefix, *class);
        }
        Self { compiled, prefixes }
    }

    fn endpoint(&self, addr: Addr) -> Option<(ClassId, Option<PolicyId>)> {
        let endpoints = &self.compiled.endpoints;
        let at = endpoints.binary_search_by_key(&addr, |(addr, ..)| *addr).ok()?;
        Some((endpoints[at].1, endpoints[at].2))
    }

    fn class(&self, addr: Addr) -> ClassId {
        let unknown = if addr.is_v4() { ClassId::UNKNOWN_V4 } else { ClassId::UNKNOWN_V6 };
        let known = self.endpoint(addr).map(|(class, _)| class);
        known.or_else(|| self.prefixes.get(addr).copied()).unwrap_or(unknown)
    }

    /// What the local end's policy says of a packet.
    fn judge(&self, direction: Direction, packet: &Packet<'_>) -> (bool, &Decision) {
        let (local, peer) = packet.ends(direction);
        let policy = self.endpoint(local.addr).and_then(|(_, policy)| policy);
        let policy = policy.and_then(|id| self.compiled.policies.get(id.0 as usize)?.as_ref());
        let Some(policy) = policy else { return (true, &Decision::NoPolicy) };
        let table = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let outcome = table.judge(self.class(peer.addr), &packet.l4);
        let decision = self.compiled.decisions.get(outcome.rule.0 as usize);
        (outcome.allow, decision.unwrap_or(&Decision::NoPolicy))
    }
}

impl<'a> Explainer<'a> {
    /// Prepares to explain.
    pub fn new(derived: &'a Derived) -> Self {
        let mut explainer = Self {
            derived,
            brief: false,
            pods: HashMap::default(),
            owners: HashMap::default(),
            nets: Vec::new(),
            any_staged: policies(&derived.policies).any(|policy| policy.staged),
            nodes: HashMap::default(),
        };
        for (at, identity) in (0..).zip(&derived.identities) {
            if is_pod(identity) {
                explainer.pods.insert((&identity.cluster, &identity.name), at);
            }
            for net in &identity.nets {
                if identity.kind == IdentityKind::NetworkSet {
                    explainer.nets.push((*net, at));
                } else {
                    explainer.owners.entry(net.addr()).or_default().push(at);
                }
            }
        }
        explainer
    }

    /// Leaves traces and near misses out of the answers.
    #[must_use]
    pub fn brief(mut self) -> Self {
        self.brief = true;
        self
    }

    /// Explains one connection.
    pub fn explain(&mut self, query: &Query) -> Result<Answer, ExplainError> {
        let l4 = query.l4()?;
        let (source, destination) = self.addresses(query)?;
        let packet = Packet { source: self.peer(source), destination: self.peer(destination), l4 };
        let egress = self.side(Direction::Egress, &packet);
        let ingress = self.side(Direction::Ingress, &packet);
        let sides = || [&egress, &ingress].into_iter().flatten();
        if sides().next().is_none() {
            return Err(ExplainError::NotLocal { from: query.from.clone(), to: query.to.clone() });
        }
        let allow = sides().all(|side| side.verdict == Verdict::Allow);
        let (protocol, [kind, code]) = (Protocol(l4.protocol), l4.destination.to_be_bytes());
        Ok(Answer {
            id: query.id.clone(),
            verdict: allow.into(),
            from: packet.source.info(),
            to: packet.destination.info(),
            protocol,
            port: protocol.has_ports().then_some(l4.destination),
            src_port: protocol.has_ports().then_some(l4.source),
            icmp_type: protocol.is_icmp().then_some(kind),
            icmp_code: protocol.is_icmp().then_some(code),
            route: self.route(&packet),
            egress,
            ingress,
            ignored: query.unknown.keys().cloned().collect(),
        })
    }

    /// The addresses that are meant: of one family, IPv4 unless only IPv6
    /// fits.
    fn addresses(&self, query: &Query) -> Result<(Addr, Addr), ExplainError> {
        let (from, to) = (self.candidates(&query.from)?, self.candidates(&query.to)?);
        let families = if query.protocol == Protocol(Protocol::ICMPV6) {
            [false, true]
        } else {
            [true, false]
        };
        families
            .into_iter()
            .find_map(|v4| {
                let of = |all: &[Addr]| all.iter().copied().find(|addr| addr.is_v4() == v4);
                of(&from).zip(of(&to))
            })
            .ok_or_else(|| ExplainError::NoCommonFamily {
                from: query.from.clone(),
                to: query.to.clone(),
            })
    }

    fn candidates(&self, text: &str) -> Result<Vec<Addr>, ExplainError> {
        let (cluster, pod) = match text.parse()? {
            End::Address(address) => return Ok(vec![address.into()]),
            End::Pod(cluster, pod) => (cluster, pod),
        };
        if let Some(at) = self.pods.get(&(&cluster, &pod)) {
            let identity = &self.derived.identities[*at as usize];
            return Ok(identity.nets.iter().map(Prefix::addr).collect());
        }
        if let ClusterId::Remote(name) = &cluster
            && !self.derived.world.remotes.contains_key(name)
        {
            return Err(ExplainError::NoCluster(name.to_string()));
        }
        let elsewhere = self.pods.keys().find(|(_, name)| **name == pod);
        let hint = elsewhere.map(|(cluster, _)| format!(" (there is a {cluster}:{pod})"));
        Err(ExplainError::NoPod { cluster, pod, hint: hint.unwrap_or_default() })
    }

    /// An address and whose it is: pods first, those of the local cluster
    /// before others; network sets last.
    fn peer(&self, addr: Addr) -> Peer<'a> {
        let exact = self.owners.get(&addr).into_iter().flatten();
        let nets = self.nets.iter().filter(|(net, _)| net.contains(addr)).map(|(_, at)| at);
        let mut owners: Vec<_> =
            exact.chain(nets).map(|at| &self.derived.identities[*at as usize]).collect();
        owners.sort_by_key(|it| (rank(it.kind), &it.cluster, &it.name));
        owners.dedup_by(|a, b| std::ptr::eq(*a, *b));
        Peer { addr, owners }
    }

    fn side(&mut self, direction: Direction, packet: &Packet<'a>) -> Option<Side> {
        let (local, _) = packet.ends(direction);
        let node = local.local_node()?.to_owned();
        let brief = self.brief;
        let policies = &self.derived.policies;
        let node = self.node(&node);
        let (allow, decision) = node.enforced.judge(direction, packet);
        let mut side = story::side(policies, direction, packet, allow, decision);
        if let Some(staged) = &node.staged
            && story::any_staged(policies, direction, packet)
        {
            let (would, decision) = staged.judge(direction, packet);
            let reason = story::reason(policies, direction, packet, would, decision).replace(
                if would { "allowed by" } else { "denied by" },
                if would { "would be allowed by" } else { "would be denied by" },
            );
            side.staged = Some(Staged { verdict: would.into(), changes: would != allow, reason });
        }
        if !brief {
            side.trace = story::trace(policies, direction, packet, decision);
            side.near_misses = story::near_misses(&side.trace, allow);
        }
        Some(side)
    }

    /// The tables of a node, compiled when first asked for.
    fn node(&mut self, name: &str) -> &Node<'a> {
        let derived = self.derived;
        let any_staged = self.any_staged;
        self.nodes.entry(name.to_owned()).or_insert_with(|| {
            let own = derived.world.node == name;
            let identities: Cow<'a, [Identity]> = if own {
                Cow::Borrowed(&derived.identities)
            } else {
                Cow::Owned(derived.identities.iter().map(|it| seen_from(it, name)).collect())
            };
            let enforced = if own {
                Cow::Borrowed(&derived.compiled)
            } else {
                Cow::Owned(compile(&derived.policies, &identities))
            };
            let staged = any_staged.then(|| {
                Tables::new(Cow::Owned(compile(&with_staged(&derived.policies), &identities)))
            });
            let resolved = if own {
                Cow::Borrowed(&derived.resolved)
            } else {
                let world = World { node: name.to_owned(), ..(*derived.world).clone() };
                Cow::Owned(resolve(&world))
            };
            Node { enforced: Tables::new(enforced), staged, resolved }
        })
    }

    /// The route from the local end's node to the other end: of two local
    /// ends, the one that the connection takes.
    fn route(&mut self, packet: &Packet<'a>) -> Option<RouteInfo> {
        let (local, peer) = match packet.source.local_node() {
            Some(_) => (&packet.source, &packet.destination),
            None => (&packet.destination, &packet.source),
        };
        let node = self.node(local.local_node()?);
        let routes = node.resolved.routes.iter().filter(|(prefix, _)| prefix.contains(peer.addr));
        let (prefix, route) = routes.max_by_key(|(prefix, _)| prefix.len128())?;
        let mut info = RouteInfo {
            prefix: prefix.to_string(),
            via: "local",
            cluster: None,
            node: None,
            vtep: None,
            origin: route.origin.clone(),
        };
        if let RouteTarget::Node { cluster, node: name } = &route.target {
            info.via = "vtep";
            info.cluster = Some(cluster.to_string());
            info.node = Some(name.clone());
            let key = vtep_for(&node.resolved, cluster, name, prefix.is_v4());
            info.vtep = key.and_then(|key| Some(node.resolved.vteps.get(&key)?.underlay));
        }
        Some(info)
    }
}

fn is_pod(identity: &Identity) -> bool {
    matches!(identity.kind, IdentityKind::LocalWorkload | IdentityKind::Workload)
}

fn rank(kind: IdentityKind) -> u8 {
    match kind {
        IdentityKind::LocalWorkload | IdentityKind::Workload => 0,
        IdentityKind::Host => 1,
        IdentityKind::NetworkSet => 2,
    }
}

/// An identity as another node of the local cluster has it.
fn seen_from(identity: &Identity, node: &str) -> Identity {
    let mut seen = identity.clone();
    if is_pod(identity) {
        let local = identity.cluster == ClusterId::Local && identity.node == node;
        seen.kind = if local { IdentityKind::LocalWorkload } else { IdentityKind::Workload };
    }
    seen
}

fn policies(set: &PolicySet) -> impl Iterator<Item = &Arc<Policy>> {
    set.tiers.iter().flat_map(|tier| &tier.policies)
}

/// The policies as they would be if none were staged.
fn with_staged(set: &PolicySet) -> PolicySet {
    let mut all = set.clone();
    for policy in all.tiers.iter_mut().flat_map(|tier| &mut tier.policies) {
        if policy.staged {
            *policy = Arc::new(Policy { staged: false, ..(**policy).clone() });
        }
    }
    all
}
