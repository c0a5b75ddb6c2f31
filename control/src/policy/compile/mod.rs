//! The model and the identities to address classes and verdict tables.
//!
//! Promises: pure but for numbers, which a [`Compiler`] keeps; what it returns
//! does not depend on the order of identities;
//! no cost is in proportion to rules times endpoints. It knows nothing of the
//! resources that the model came from but the names that it passes on.
//!
//! ```text
//! enforced  policies that count, and those that apply to a local endpoint
//! matcher   selectors against distinct label sets, by index
//! atoms     the questions that rules ask about an address; facts answer them
//! universe  facts of any address: owners, nets, services
//! l4        a rule between two known addresses: protocols and ports
//! numbers   numbers that stay the same from one compilation to the next
//! program   an endpoint's rules -> programs by class of the peer
//! ```
//!
//! Only rules of policies that apply to a local endpoint are looked at. Two
//! universes of questions are kept apart: what those rules ask about peers
//! makes the classes; what they ask about local endpoints is settled here.
//! Start reading at [`compile`].

use std::sync::Arc;

use ahash::HashMap;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::policy::Direction as Table;
use tieline_dataplane::tables::{ClassId, EndpointPolicy, Outcome, PolicyId};

use self::atoms::Atoms;
use self::enforced::{Active, Enforced};
use self::matcher::LabelSets;
use self::numbers::Memory;
use self::program::Builder;
use self::universe::{FactsId, Universe, is_exact};
use super::model::{PolicySet, PolicySource};
use crate::state::{Identity, IdentityKind, ObjectName};

mod atoms;
mod enforced;
mod l4;
pub(crate) mod matcher;
mod numbers;
mod ports;
mod program;
mod universe;

/// What packets are judged by, and what each decision means.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Every address that is some identity's (network sets' host prefixes are
    /// not among these), ascending; the policy for those of local workloads.
    pub endpoints: Vec<(Addr, ClassId, Option<PolicyId>)>,
    /// The class of other addresses, by longest prefix.
    pub prefixes: Vec<(Prefix, ClassId)>,
    /// By [`PolicyId`].
    pub policies: Vec<Option<Arc<EndpointPolicy>>>,
    /// By [`tieline_dataplane::tables::RuleId`]: what decided.
    pub decisions: Vec<Decision>,
}

/// Whether a packet goes to or comes from the endpoint that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

/// What decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// No policy is asked: an address of the node itself. Always number 0.
    NoPolicy,
    /// A rule.
    Rule {
        /// Its policy's tier.
        tier: String,
        /// Its policy's kind.
        source: PolicySource,
        /// Its policy.
        policy: ObjectName,
        /// Direction within the policy.
        direction: Direction,
        /// Its place, from 0.
        index: usize,
    },
    /// The tier's default action, because a policy of it selected the endpoint.
    TierDefault {
        /// The tier.
        tier: String,
    },
    /// No tier decided, and the profile of the endpoint's namespace allows.
    Profile {
        /// The profile, as in `kns.default`.
        name: String,
    },
}

/// Compiles once.
///
/// An address with several owners is seen as all of them together: a selector
/// matches it when it chooses any, and a policy applies to it when it applies
/// to any.
pub fn compile(policies: &PolicySet, identities: &[Identity]) -> Compiled {
    Compiler::default().compile(policies, identities)
}

/// Compiles again and again: what it returns means the same as what
/// [`compile`] does, and what is the same as the time before has the same
/// number (and tables are the same allocation).
#[derive(Debug, Default)]
pub struct Compiler {
    memory: Memory,
}

impl Compiler {
    /// Compiles, as [`compile`].
    pub fn compile(&mut self, policies: &PolicySet, identities: &[Identity]) -> Compiled {
        let memory = &mut self.memory;
        memory.begin();
        let labels = LabelSets::new(identities);
        let enforced = Enforced::new(policies, memory);
        let applied = enforced.applied(&labels, identities);
        let (mut peer_atoms, mut local_atoms) = (Atoms::default(), Atoms::default());
        let active = enforced.active(&applied, &mut peer_atoms, &mut local_atoms, memory);
        let universe = |atoms| Universe::new(atoms, policies, identities, &labels);
        let (mut peers, mut locals) = (universe(peer_atoms), universe(local_atoms));

        let mut classes = Classes::default();
        let mut endpoints = Vec::new();
        let mut locals_seen = Vec::new();
        for owners in owned_addresses(identities).chunk_by(|a, b| a.0 == b.0) {
            let addr = owners[0].0;
            let all = || owners.iter().map(|(_, owner)| *owner);
            let local =
                |owner: &u32| identities[*owner as usize].kind == IdentityKind::LocalWorkload;
            let facts = peers.address(addr, all());
            let class = classes.id(!addr.is_v4(), facts, &peers, memory);
            if all().any(|owner| local(&owner)) {
                let facts = locals.address(addr, all());
                let applies = Applies::new(facts, all().filter(local), identities, |owner| {
                    &applied[&labels.of[owner as usize]]
                });
                locals_seen.push((endpoints.len(), applies));
            }
            endpoints.push((addr, class, None));
        }
        let prefixes = peers
            .prefixes()
            .map(|(prefix, facts)| (prefix, classes.id(!prefix.is_v4(), facts, &peers, memory)));
        let prefixes = prefixes.collect();

        let builder = Builder::new(&peers, &classes.ascending());
        let mut tables = EndpointTables {
            enforced: &enforced,
            active: &active,
            locals: &locals,
            memory,
            builder,
            closed: HashMap::default(),
            known: HashMap::default(),
            policies: Vec::new(),
        };
        for (endpoint, applies) in locals_seen {
            let v6 = !endpoints[endpoint].0.is_v4();
            endpoints[endpoint].2 = Some(tables.policy(v6, applies));
        }
        let mut policies = tables.policies;
        memory.end(&mut policies);
        Compiled { endpoints, prefixes, policies, decisions: memory.decisions() }
    }
}

/// Makes the tables of local endpoints, each combination once.
#[derive(Debug)]
struct EndpointTables<'c, 'a> {
    enforced: &'c Enforced<'a>,
    active: &'c Active<'a>,
    locals: &'c Universe<'a>,
    memory: &'c mut Memory,
    builder: Builder<'c, 'a>,
    /// Tables that no packet passes to the profile, by direction, whether IPv6,
    /// facts and policies: they serve all namespaces.
    closed: HashMap<(Direction, bool, FactsId, Vec<u32>), Table>,
    known: HashMap<(bool, Applies), PolicyId>,
    policies: Vec<Option<Arc<EndpointPolicy>>>,
}

impl EndpointTables<'_, '_> {
    fn policy(&mut self, v6: bool, applies: Applies) -> PolicyId {
        if let Some(id) = self.known.get(&(v6, applies.clone())) {
            return *id;
        }
        let names: Vec<_> = applies.policies.iter().map(|at| self.enforced.name(*at)).collect();
        let facts = self.locals.content(applies.facts, self.memory);
        let hash = self.memory.hash((v6, names, facts, &applies.namespace));
        let id = self.memory.policy(hash);
        let ingress = self.table(Direction::Ingress, v6, &applies);
        let egress = self.table(Direction::Egress, v6, &applies);
        let place = id as usize;
        if place >= self.policies.len() {
            self.policies.resize(place + 1, None);
        }
        self.policies[place] = Some(Arc::new(EndpointPolicy { ingress, egress }));
        self.known.insert((v6, applies), PolicyId(id));
        PolicyId(id)
    }

    fn table(&mut self, direction: Direction, v6: bool, applies: &Applies) -> Table {
        let key = (direction, v6, applies.facts, applies.policies.clone());
        if let Some(table) = self.closed.get(&key) {
            return table.clone();
        }
        let tiers = self.enforced.tiers(direction, &applies.policies, self.active);
        let profile = Decision::Profile { name: format!("kns.{}", applies.namespace) };
        let end = Outcome { allow: true, rule: self.memory.decision(profile) };
        let local = self.locals.facts(applies.facts);
        let (table, reaches_end) = self.builder.table(direction, &tiers, local, v6, end);
        if !reaches_end {
            self.closed.insert(key, table.clone());
        }
        table
    }
}

/// The classes that there are.
#[derive(Debug)]
struct Classes(HashMap<(bool, FactsId), ClassId>);

impl Default for Classes {
    fn default() -> Self {
        let unknown = [((false, 0), ClassId::UNKNOWN_V4), ((true, 0), ClassId::UNKNOWN_V6)];
        Self(unknown.into_iter().collect())
    }
}

impl Classes {
    fn id(
        &mut self,
        v6: bool,
        facts: FactsId,
        peers: &Universe<'_>,
        memory: &mut Memory,
    ) -> ClassId {
        *self.0.entry((v6, facts)).or_insert_with(|| {
            let content = peers.content(facts, memory);
            memory.class(v6, content)
        })
    }

    fn ascending(&self) -> Vec<(ClassId, bool, FactsId)> {
        let mut all: Vec<_> = self.0.iter().map(|((v6, facts), id)| (*id, *v6, *facts)).collect();
        all.sort_unstable();
        all
    }
}

/// Each address and each identity that it is one of, ascending by address.
fn owned_addresses(identities: &[Identity]) -> Vec<(Addr, u32)> {
    let mut owned: Vec<(Addr, u32)> = (0..)
        .zip(identities)
        .flat_map(|(at, identity)| {
            let exact = identity.nets.iter().filter(|net| is_exact(identity, net));
            exact.map(move |net| (net.addr(), at))
        })
        .collect();
    owned.sort_unstable();
    owned.dedup();
    owned
}

/// All that an endpoint's tables follow from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Applies {
    /// Places of the policies among the enforced ones, ascending.
    policies: Vec<u32>,
    /// What rules see of it as the local end.
    facts: FactsId,
    /// The namespace whose profile allows what no tier decides.
    namespace: String,
}

impl Applies {
    fn new<'p>(
        facts: FactsId,
        owners: impl Iterator<Item = u32>,
        identities: &[Identity],
        applied: impl Fn(u32) -> &'p Vec<u32>,
    ) -> Self {
        let mut policies = Vec::new();
        let mut namespace: Option<&str> = None;
        for owner in owners {
            policies.extend_from_slice(applied(owner));
            let own = identities[owner as usize].name.namespace.as_str();
            namespace = Some(namespace.map_or(own, |other| other.min(own)));
        }
        policies.sort_unstable();
        policies.dedup();
        Self { policies, facts, namespace: namespace.unwrap_or_default().to_owned() }
    }
}
