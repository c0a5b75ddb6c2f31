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
//! query         one connection, as flags or JSON
//! hypothetical  pods that there are not, as ends of a connection
//! answer        what is said about it
//! story         which tiers, policies and rules a packet meets
//! words         a rule's conditions, and which of them a packet fails, in words
//! labels        the conditions on labels, in the user's words
//! text          the answer for people
//! batch         many connections as JSON lines
//! felix         what Felix decides, knowing of remote clusters what is written for it
//! ```
//!
//! Start reading at [`Explainer::explain`].

use std::borrow::Cow;
use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{L4, PrefixMap, RuleId};

pub use self::answer::{
    Answer, DecidedBy, EndpointInfo, ExplainError, IdentityInfo, RouteInfo, Side, Staged, Verdict,
};
pub use self::batch::{Summary, explain_lines, explain_text};
pub use self::felix::FelixView;
pub use self::hypothetical::HypotheticalPod;
use self::hypothetical::is_hypothetical;
use self::query::End;
pub use self::query::{Asked, Protocol, Query};
pub use self::story::{NearMiss, PolicyTrace, RuleTrace, TierTrace};
use self::story::{Packet, Peer};
use super::compile::{Compiled, Decision, Direction, compile};
use super::model::{Policy, PolicySet};
use crate::derive::Derived;
use crate::resolve::{Resolved, RouteTarget, resolve, vtep_for};
use crate::state::{ClusterId, Identity, IdentityKind, ObjectName, World};

mod answer;
mod batch;
mod felix;
mod hypothetical;
mod labels;
mod query;
mod story;
#[cfg(test)]
mod tests;
mod text;
mod words;

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
    /// Network sets, by their nets.
    nets: PrefixMap<Vec<u32>>,
    /// The policies as they would be if none were staged, where any are.
    staged: Option<Arc<PolicySet>>,
    /// What Felix knows, if it is there.
    felix: Option<Arc<Vec<Identity>>>,
    /// By node of the local cluster.
    nodes: HashMap<String, Node<'a>>,
}

/// The tables of one node.
#[derive(Debug)]
struct Node<'a> {
    enforced: Tables<'a>,
    /// With staged policies enforced; only where there are any.
    staged: Option<Tables<'a>>,
    /// With what Felix knows; only where it is.
    felix: Option<Tables<'a>>,
    resolved: Cow<'a, Resolved>,
    /// Its routes' destinations.
    routes: PrefixMap<Prefix>,
}

/// Compiled policy, for looking up.
#[derive(Debug)]
struct Tables<'a> {
    compiled: Cow<'a, Compiled>,
}

impl<'a> Tables<'a> {
    fn new(compiled: Cow<'a, Compiled>) -> Self {
        Self { compiled }
    }

    /// What the local end's policy says of a packet.
    fn judge(&self, direction: Direction, packet: &Packet<'_>) -> (bool, &Decision) {
        let (local, peer) = packet.ends(direction);
        let Compiled { endpoints, policies, decisions } = &*self.compiled;
        let policy = endpoints.get(local.addr).and_then(|endpoint| endpoint.policy);
        let policy = policy.and_then(|id| policies.get(id));
        let Some(policy) = policy else { return (true, &Decision::NoPolicy) };
        let table = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let outcome = table.judge(endpoints.class(peer.addr), &packet.l4);
        let decision = decisions.get(outcome.rule.0 as usize);
        (outcome.allow, decision.map_or(&Decision::NoPolicy, |decision| decision))
    }
}

impl<'a> Explainer<'a> {
    /// Prepares to explain.
    pub fn new(derived: &'a Derived) -> Self {
        Self::with(derived, with_staged(&derived.policies).map(Arc::new))
    }

    fn with(derived: &'a Derived, staged: Option<Arc<PolicySet>>) -> Self {
        let mut explainer = Self {
            derived,
            brief: false,
            pods: HashMap::default(),
            owners: HashMap::default(),
            nets: PrefixMap::default(),
            staged,
            felix: felix::identities(derived).map(Arc::new),
            nodes: HashMap::default(),
        };
        for (at, identity) in (0..).zip(derived.identities()) {
            if is_pod(identity) {
                explainer.pods.insert((&identity.cluster, &identity.name), at);
            }
            for net in &identity.nets {
                if identity.kind == IdentityKind::NetworkSet {
                    let mut sets = explainer.nets.get_exact(net).cloned().unwrap_or_default();
                    sets.push(at);
                    explainer.nets.insert(*net, sets);
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

    /// Who has an address.
    pub fn endpoint(&self, addr: Addr) -> EndpointInfo {
        self.peer(addr).info()
    }

    /// The addresses of a pod, or the address itself, in the forms of a query.
    pub fn addresses(&self, end: &str) -> Result<Vec<Addr>, ExplainError> {
        self.candidates(&Asked::Known(end.to_owned()), &mut Vec::new())
    }

    /// What decided about packets, by the number that the tables have for it.
    pub fn decision(&self, rule: RuleId) -> Option<String> {
        let decision = self.derived.compiled.decisions.get(rule.0 as usize)?;
        Some(story::decided(&self.derived.policies, decision))
    }

    /// Explains one connection.
    pub fn explain(&mut self, query: &Query) -> Result<Answer, ExplainError> {
        let l4 = query.l4()?;
        let mut supposed = Vec::new();
        let from = self.candidates(&query.from, &mut supposed)?;
        let to = self.candidates(&query.to, &mut supposed)?;
        let ends = common_family(query, &from, &to)?;
        if supposed.is_empty() {
            return self.answer(query, l4, ends);
        }
        // With nobody else than who has one of the two addresses: no verdict
        // depends on others.
        let has = |net: &Prefix| net.addr() == ends.0 || net.addr() == ends.1;
        let matters = |identity: &&Identity| {
            identity.kind == IdentityKind::NetworkSet || identity.nets.iter().any(has)
        };
        supposed.extend(self.derived.identities().iter().filter(matters).cloned());
        let Derived { world, resolved, policies, .. } = self.derived;
        let compiled = compile(policies, &supposed);
        let (world, resolved) = (world.clone(), (**resolved).clone());
        let derived = Derived::new(world, resolved, supposed, policies.clone(), compiled);
        let mut explainer = Explainer::with(&derived, self.staged.clone());
        explainer.brief = self.brief;
        explainer.answer(query, l4, ends)
    }

    fn answer(
        &mut self,
        query: &Query,
        l4: L4,
        (source, destination): (Addr, Addr),
    ) -> Result<Answer, ExplainError> {
        let packet = Packet { source: self.peer(source), destination: self.peer(destination), l4 };
        let egress = self.side(Direction::Egress, &packet);
        let ingress = self.side(Direction::Ingress, &packet);
        let sides = || [&egress, &ingress].into_iter().flatten();
        if sides().next().is_none() {
            let (from, to) = (query.from.to_string(), query.to.to_string());
            return Err(ExplainError::NotLocal { from, to });
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

    /// The addresses of one end. A pod that there is not is added to `supposed`.
    fn candidates(
        &self,
        end: &Asked,
        supposed: &mut Vec<Identity>,
    ) -> Result<Vec<Addr>, ExplainError> {
        let addresses = |of: &Identity| of.nets.iter().map(Prefix::addr).collect();
        let text = match end {
            Asked::Known(text) => text,
            Asked::Hypothetical(pod) => {
                let taken = |addr| {
                    let mut others = supposed.iter().flat_map(|other| &other.nets);
                    self.owners.contains_key(&addr) || others.any(|net| net.addr() == addr)
                };
                let identity = pod.identity(self.derived, taken)?;
                let own = addresses(&identity);
                supposed.push(identity);
                return Ok(own);
            }
        };
        let (cluster, pod) = match text.parse()? {
            End::Address(address) => return Ok(vec![address.into()]),
            End::Pod(cluster, pod) => (cluster, pod),
        };
        if let Some(at) = self.pods.get(&(&cluster, &pod)) {
            return Ok(addresses(&self.derived.identities()[*at as usize]));
        }
        if let ClusterId::Remote(name) = &cluster
            && !self.derived.world.remotes.contains_key(name)
        {
            return Err(ExplainError::NoCluster(name.to_string()));
        }
        let remotes = self.derived.world.remotes.keys().cloned().map(ClusterId::Remote);
        let mut clusters = std::iter::once(ClusterId::Local).chain(remotes);
        let elsewhere = clusters.find(|cluster| self.pods.contains_key(&(cluster, &pod)));
        let hint = elsewhere.map(|cluster| format!(" (there is a {cluster}:{pod})"));
        Err(ExplainError::NoPod { cluster, pod, hint: hint.unwrap_or_default() })
    }

    /// An address and whose it is: pods first, those of the local cluster
    /// before others; network sets last.
    fn peer(&self, addr: Addr) -> Peer<'a> {
        let exact = self.owners.get(&addr).into_iter().flatten();
        let nets = self.nets.matches(addr).flatten();
        let mut owners: Vec<_> =
            exact.chain(nets).map(|at| &self.derived.identities()[*at as usize]).collect();
        owners.sort_by_key(|it| (rank(it.kind), &it.cluster, &it.name));
        owners.dedup_by(|a, b| std::ptr::eq(*a, *b));
        Peer { addr, owners }
    }

    fn side(&mut self, direction: Direction, packet: &Packet<'a>) -> Option<Side> {
        let (local, _) = packet.ends(direction);
        let node = local.local_node()?.to_owned();
        let brief = self.brief;
        let policies = &self.derived.policies;
        let staged_policies = self.staged.clone();
        let known = self.felix.clone();
        let node = self.node(&node);
        let (allow, decision) = node.enforced.judge(direction, packet);
        let mut side = story::side(policies, direction, packet, allow, decision);
        if let (Some(tables), Some(staged_policies)) = (&node.staged, staged_policies)
            && story::any_staged(policies, direction, packet)
        {
            let (would, decision) = tables.judge(direction, packet);
            let reason = story::reason(&staged_policies, direction, packet, would, decision);
            side.staged = Some(Staged {
                verdict: would.into(),
                changes: would != allow,
                reason: format!("would be {reason}"),
            });
        }
        let (_, peer) = packet.ends(direction);
        if let (Some(tables), Some(known)) = (&node.felix, known)
            && felix::concerns(peer)
        {
            side.felix = Some(felix::view(tables, &known, policies, direction, packet, allow));
        }
        if !brief {
            side.trace = story::trace(policies, direction, packet, decision);
            side.near_misses = story::near_misses(&side.trace, allow);
            side.otherwise = story::without_rule(policies, direction, packet, decision);
        }
        Some(side)
    }

    /// The tables of a node, compiled when first asked for.
    fn node(&mut self, name: &str) -> &Node<'a> {
        let derived = self.derived;
        let staged = self.staged.clone();
        let known = self.felix.clone();
        self.nodes.entry(name.to_owned()).or_insert_with(|| {
            let own = derived.world.node == name;
            let identities: Cow<'a, [Identity]> = if own {
                Cow::Borrowed(derived.identities())
            } else {
                Cow::Owned(derived.identities().iter().map(|it| seen_from(it, name)).collect())
            };
            let enforced = if own {
                Cow::Borrowed(&derived.compiled)
            } else {
                Cow::Owned(compile(&derived.policies, &identities))
            };
            let staged = staged.map(|set| Tables::new(Cow::Owned(compile(&set, &identities))));
            let felix = known.map(|known| {
                let seen: Vec<Identity> = known.iter().map(|it| seen_from(it, name)).collect();
                Tables::new(Cow::Owned(compile(&derived.policies, &seen)))
            });
            let resolved = if own {
                Cow::Borrowed(&*derived.resolved)
            } else {
                let world = World { node: name.to_owned(), ..(*derived.world).clone() };
                Cow::Owned(resolve(&world))
            };
            let mut routes = PrefixMap::default();
            for prefix in resolved.routes.keys() {
                routes.insert(*prefix, *prefix);
            }
            Node { enforced: Tables::new(enforced), staged, felix, resolved, routes }
        })
    }

    /// The route from the local end's node to the other end: of two local
    /// ends, the one that the connection takes.
    fn route(&mut self, packet: &Packet<'a>) -> Option<RouteInfo> {
        let (local, peer) = match packet.source.local_node() {
            Some(_) => (&packet.source, &packet.destination),
            None => (&packet.destination, &packet.source),
        };
        if peer.owners.iter().any(|owner| is_hypothetical(owner)) {
            return None;
        }
        let node = self.node(local.local_node()?);
        let prefix = node.routes.get(peer.addr)?;
        let route = node.resolved.routes.get(prefix)?;
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

/// The addresses that are meant: of one family, IPv4 unless only IPv6 fits.
fn common_family(query: &Query, from: &[Addr], to: &[Addr]) -> Result<(Addr, Addr), ExplainError> {
    let v4_first = query.protocol != Protocol(Protocol::ICMPV6);
    let common = [v4_first, !v4_first].into_iter().find_map(|v4| {
        let of = |all: &[Addr]| all.iter().copied().find(|addr| addr.is_v4() == v4);
        of(from).zip(of(to))
    });
    let (from, to) = (query.from.to_string(), query.to.to_string());
    common.ok_or(ExplainError::NoCommonFamily { from, to })
}

fn is_pod(identity: &Identity) -> bool {
    matches!(identity.kind, IdentityKind::LocalWorkload | IdentityKind::Workload)
}

fn rank(kind: IdentityKind) -> u8 {
    match kind {
        IdentityKind::LocalWorkload => 0,
        IdentityKind::Workload => 1,
        IdentityKind::Host => 2,
        IdentityKind::NetworkSet => 3,
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

/// The policies as they would be if none were staged; `None` when none is.
fn with_staged(set: &PolicySet) -> Option<PolicySet> {
    let mut all = set.clone();
    let mut any = false;
    for (tier, of) in all.tiers.iter_mut().zip(&set.tiers) {
        for (rank, policy) in of.policies.iter().filter(|(_, policy)| policy.staged) {
            any = true;
            let enforced = Policy { staged: false, ..(**policy).clone() };
            tier.policies.insert(rank.clone(), Arc::new(enforced));
        }
    }
    any.then_some(all)
}
