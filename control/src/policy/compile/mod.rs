//! The model and the identities to address classes and verdict tables.
//!
//! Promises: pure but for numbers, which a [`Compiler`] keeps; what it returns
//! does not depend on the order of identities, nor on what it compiled before;
//! no cost is in proportion to rules times endpoints. It knows nothing of the
//! resources that the model came from but the names that it passes on.
//!
//! ```text
//! views       what rules can see of an owner, each distinct view once
//! population  who has which address; what has changed of that
//! enforced    policies that count, and those that apply to a local endpoint
//! matcher     selectors against distinct label sets, by index
//! atoms       the questions that rules ask about an address; facts answer them
//! universe    facts of any address: owners, nets, services
//! l4          a rule between two known addresses: protocols and ports
//! numbers     numbers that stay the same from one compilation to the next
//! program     an endpoint's rules -> programs by class of the peer
//! plan        all that follows from the policies that apply on this node
//! ```
//!
//! Only rules of policies that apply to a local endpoint are looked at. Two
//! universes of questions are kept apart: what those rules ask about peers
//! makes the classes; what they ask about local endpoints is settled here.
//!
//! A change is worked out for those that it concerns (`Compiler::step`). A
//! policy that comes to apply on this node may ask new questions: they are put
//! to the views that the index of label sets finds, and to the addresses in new
//! nets. These addresses, and those whose owners have changed, are looked up by
//! themselves: each gets a class that exists, or a new one, which is a new
//! column in the tables of the local endpoints. A table is made anew only if
//! other policies apply to its endpoint, or other facts.
//!
//! Questions that no rule asks any more, classes that no address has: these stay,
//! so that going back costs nothing, until they are too many. Then everything is
//! worked out anew, for each distinct view once (`Compiler::rebuild`). Numbers of
//! what stays stay. Start reading at [`Compiler::update`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{ClassId, Endpoint, Endpoints, Policies};

use self::enforced::{Changes, Enforced};
use self::numbers::{Memory, Tables};
use self::plan::Plan;
use self::population::Touched;
use self::universe::Walk;
use super::model::{PolicySet, PolicySource};
use crate::state::{Identity, IdentityKind, ObjectName};

mod atoms;
mod enforced;
mod l4;
pub(crate) mod matcher;
mod numbers;
mod plan;
mod population;
mod ports;
mod program;
mod universe;
mod views;

pub use population::Population;
pub use views::{Profile, View, ViewId};

/// What packets are judged by, and what each decision means. A clone shares
/// the tables.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Every address that is some identity's (network sets' host prefixes are
    /// not among these) or the node's own, with the policy of those of local
    /// workloads; the class of all other addresses by longest prefix.
    pub endpoints: Endpoints,
    /// Policies of local workloads.
    pub policies: Policies,
    /// By [`tieline_dataplane::tables::RuleId`]: what decided.
    pub decisions: Arc<[Arc<Decision>]>,
}

/// New questions about more addresses than these, and more than half of all,
/// are answered for all.
const MANY_ADDRESSES: usize = 1024;

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
    /// No tier decided, and the endpoint's namespace is not there: nothing
    /// allows.
    NoProfile {
        /// The profile that is missing.
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
    /// Who has which address.
    pub population: Population,
    memory: Memory,
    enforced: Enforced,
    policies: Arc<PolicySet>,
    plan: Option<Plan>,
    prefixes: BTreeMap<Prefix, ClassId>,
    compiled: Compiled,
}

impl Compiler {
    /// Compiles, as [`compile`].
    pub fn compile(&mut self, policies: &PolicySet, identities: &[Identity]) -> Compiled {
        let population = &mut self.population;
        let mut owners: BTreeMap<Addr, Vec<ViewId>> = BTreeMap::new();
        let mut nets = Vec::new();
        for identity in identities {
            let view = View::of(identity);
            let mut own = identity.nets.clone();
            own.sort_unstable();
            own.dedup();
            for net in own {
                if identity.kind != IdentityKind::NetworkSet && net.len128() == 128 {
                    owners.entry(net.addr()).or_default().push(population.take(&view));
                } else {
                    nets.push((net, view.clone()));
                }
            }
        }
        let old: Vec<Addr> = population.addresses().collect();
        for addr in &old {
            for view in population.owners(*addr).to_vec() {
                population.release(view);
            }
            if !owners.contains_key(addr) {
                population.set_owners(*addr, Vec::new());
            }
        }
        for (addr, owners) in owners {
            population.set_owners(addr, owners);
        }
        population.set_nets(nets);
        self.update(&Arc::new(policies.clone()))
    }

    /// Compiles what has become of the population and the policies since the
    /// last time.
    pub fn update(&mut self, policies: &Arc<PolicySet>) -> Compiled {
        let touched = self.population.changes();
        let changes = self.enforced.follow(policies);
        if self.step(policies, &changes, &touched).is_none() {
            self.rebuild(policies, &touched);
        }
        self.policies = policies.clone();
        self.compiled.decisions = self.memory.decisions();
        self.compiled.clone()
    }

    /// Compiles what has changed alone; `None` if that can't be done.
    fn step(&mut self, policies: &PolicySet, changes: &Changes, touched: &Touched) -> Option<()> {
        let Self { population, memory, enforced, plan, prefixes, compiled, .. } = self;
        let plan = plan.as_mut()?;
        if plan.is_bloated() || memory.is_bloated() || population.views.mostly_unused() {
            return None;
        }
        let mut nets = touched.nets.clone();
        let services = self.policies.services.diff(&policies.services);
        for (_, old, new) in services.filter(|(name, ..)| plan.asks_about(name)) {
            let endpoints = [old, new].into_iter().flatten().flat_map(|all| all.iter());
            nets.extend(endpoints.map(|it| Prefix::host(it.address.into())));
        }
        plan.follow(changes, enforced, population);
        for addr in &touched.addresses {
            plan.know_locals(population.owners(*addr), enforced, population);
        }
        let grown = plan.grow(&nets, policies, enforced, population, memory);
        let mut addresses = population.having(&grown.views);
        addresses.extend(grown.nets.iter().flat_map(|net| population.within(*net)));
        if addresses.len() > MANY_ADDRESSES.max(population.addresses.len() / 2) {
            return None;
        }
        addresses.extend(&touched.addresses);
        addresses.sort_unstable();
        addresses.dedup();
        let mut classes = Vec::with_capacity(addresses.len());
        for addr in &addresses {
            classes.push(plan.class(*addr, population.owners(*addr), population, memory));
        }
        if !grown.nets.is_empty() {
            place(&mut compiled.endpoints, prefixes, plan.prefixes(memory));
        }
        plan.extend(memory);
        let turned = plan.is_turned();
        let locals = if turned { population.local_addresses() } else { Vec::new() };
        for (addr, class) in addresses.iter().zip(classes) {
            let Some(known) = population.addresses.get_mut(addr) else {
                compiled.endpoints.remove(*addr);
                continue;
            };
            known.class = Some(class);
            if locals.binary_search(addr).is_err() {
                let owners = population.owners(*addr);
                let policy = plan.policy(*addr, owners, enforced, population, memory);
                let local = policy.is_some() || population.is_own(*addr);
                put(&mut compiled.endpoints, *addr, Endpoint { class, policy, local });
            }
        }
        let extended = plan.take_changed();
        if turned {
            let before = plan.renew_tables(memory);
            self.judge(locals, &before);
        }
        let (Some(plan), compiled) = (&mut self.plan, &mut self.compiled) else { return None };
        if extended {
            compiled.policies = compiled.policies.extended(plan.tables().iter().cloned());
        }
        Some(())
    }

    /// Compiles everything.
    fn rebuild(&mut self, policies: &PolicySet, touched: &Touched) {
        let Self { population, memory, enforced, compiled, .. } = self;
        memory.begin();
        population.views.retire();
        let before = self.plan.take().map(Plan::into_tables).unwrap_or_default();
        let mut plan = Plan::new(policies, enforced, population, memory);
        for addr in &touched.addresses {
            if !population.addresses.contains_key(addr) {
                compiled.endpoints.remove(*addr);
            }
        }
        let locals = population.local_addresses();
        let mut next_local = locals.iter().peekable();
        let mut addresses = std::mem::take(&mut population.addresses);
        let mut walk = Walk::default();
        for (addr, known) in &mut addresses {
            let class = plan.next_class(&mut walk, *addr, known.owners(), population, memory);
            let before = known.class.replace(class);
            if next_local.next_if_eq(&addr).is_none()
                && (before != Some(class) || touched.addresses.binary_search(addr).is_ok())
            {
                let local = population.is_own(*addr);
                put(&mut compiled.endpoints, *addr, Endpoint { class, policy: None, local });
            }
        }
        population.addresses = addresses;
        place(&mut compiled.endpoints, &mut self.prefixes, plan.prefixes(memory));
        plan.start_tables();
        self.plan = Some(plan);
        self.judge(locals, &before);
        self.memory.end();
        self.plan.iter_mut().for_each(Plan::end);
    }

    /// Finds the policies of all local endpoints, whose classes are known.
    fn judge(&mut self, locals: Vec<Addr>, before: &[Tables]) {
        let Self { population, memory, enforced, plan, compiled, .. } = self;
        let Some(plan) = plan else { return };
        for addr in locals {
            let Some(known) = population.addresses.get(&addr) else { continue };
            let policy = plan.policy(addr, known.owners(), enforced, population, memory);
            let Some(class) = known.class else { continue };
            put(&mut compiled.endpoints, addr, Endpoint { class, policy, local: true });
        }
        if plan.end_tables(memory, before) {
            compiled.policies = Policies::new(plan.tables().iter().cloned());
        }
    }
}

/// Sets the classes of prefixes that had others.
fn place(
    endpoints: &mut Endpoints,
    old: &mut BTreeMap<Prefix, ClassId>,
    new: BTreeMap<Prefix, ClassId>,
) {
    for prefix in old.keys().filter(|prefix| !new.contains_key(prefix)) {
        endpoints.remove_prefix(prefix);
    }
    for (prefix, class) in &new {
        if old.get(prefix) != Some(class) {
            endpoints.insert_prefix(*prefix, *class);
        }
    }
    *old = new;
}

/// Sets what is known of an address, if it is something else than before.
fn put(endpoints: &mut Endpoints, addr: Addr, endpoint: Endpoint) {
    if endpoints.get(addr) != Some(&endpoint) {
        endpoints.insert(addr, endpoint);
    }
}
