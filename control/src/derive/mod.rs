//! From what is known to everything that follows from it.
//!
//! The daemon, `check` and `explain` all come through here, so what one of them
//! says is what the others do.
//!
//! What follows is a function of the world alone. A [`Deriver`] gets from one
//! world to the next by what differs between the two ([`crate::map::Map::diff`]),
//! and keeps no more than what it needs for that:
//!
//! ```text
//! World --diff--> resolve::follow   routes, VTEPs, claims: anew when concerned
//!      \--diff--> catalog           who has which address: edits of a population
//!                  \--> compile     classes of the addresses that are touched,
//!                                   tables of local endpoints
//! ```
//!
//! Its outcomes are tables that share all that stays with those before
//! ([`Compiled`]), so [`crate::publish`] compares none of it. What only people
//! ask for ([`Derived::identities`], [`Derived::conditions`]) is worked out when
//! they do. Start reading at [`Deriver::derive`].

use std::sync::{Arc, OnceLock};

use tieline_dataplane::addr::Addr;

use crate::policy::compile::{Compiled, Compiler};
use crate::policy::convert::Converter;
use crate::policy::model::PolicySet;
use crate::resolve::{self, Follower, Resolved};
use crate::state::{Condition, Identity, World};

mod catalog;
#[cfg(test)]
mod tests;

use catalog::Catalog;

/// Everything that follows from a [`World`].
#[derive(Clone, Debug)]
pub struct Derived {
    /// What it follows from.
    pub world: Arc<World>,
    /// Routes, VTEPs and our own place.
    pub resolved: Arc<Resolved>,
    /// Policies in order of precedence.
    pub policies: Arc<PolicySet>,
    /// Address classes and verdict tables.
    pub compiled: Compiled,
    identities: OnceLock<Vec<Identity>>,
    /// Conditions of identities, once worked out.
    conditions: OnceLock<Vec<Condition>>,
    /// Whether remote addresses don't count.
    refused: bool,
}

impl Derived {
    /// Puts together what has been worked out elsewhere.
    pub fn new(
        world: Arc<World>,
        resolved: Resolved,
        identities: Vec<Identity>,
        policies: Arc<PolicySet>,
        compiled: Compiled,
    ) -> Self {
        Self {
            world,
            resolved: Arc::new(resolved),
            policies,
            compiled,
            identities: OnceLock::from(identities),
            conditions: OnceLock::new(),
            refused: true,
        }
    }

    /// What rules can see: worked out when it is first asked for, which takes
    /// time in proportion to all pods.
    pub fn identities(&self) -> &[Identity] {
        self.identities.get_or_init(|| resolve::identities(&self.world))
    }

    /// What the operator should know, most severe first.
    pub fn conditions(&self) -> Vec<Condition> {
        let of_identities = || resolve::identity_conditions(&self.world, self.refused);
        let mut all = self.resolved.conditions.clone();
        all.extend(self.conditions.get_or_init(of_identities).iter().cloned());
        all.extend(self.policies.conditions.iter().cloned());
        all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        all.dedup();
        all
    }
}

/// Works out everything that follows from one world after another. It keeps
/// what does not change from one to the next, and the numbers in the tables,
/// so that a small change is a small change of the tables; the verdicts are
/// those of a fresh [`derive()`].
#[derive(Debug, Default)]
pub struct Deriver {
    converter: Converter,
    compiler: Compiler,
    catalog: Catalog,
    /// Where the last world has led.
    last: Option<(Arc<World>, Follower)>,
}

impl Deriver {
    /// Works out everything that follows from `world`.
    pub fn derive(&mut self, world: Arc<World>) -> Derived {
        let policies = self.converter.policy_set(&world.local);
        let population = &mut self.compiler.population;
        let follower = match self.last.take() {
            Some((old, mut follower)) if old.node == world.node => {
                let claims = follower.claims.clone();
                follower.follow(&old, &world);
                self.catalog.follow(Some(&old), &world, &follower.claims, population);
                if !Arc::ptr_eq(&claims, &follower.claims) {
                    self.catalog.judge_all(&follower.claims, population);
                }
                follower
            }
            _ => {
                // Which pods are local has changed: nothing is as it was.
                self.compiler = Compiler::default();
                self.catalog = Catalog::default();
                let follower = Follower::new(&world);
                let population = &mut self.compiler.population;
                self.catalog.follow(None, &world, &follower.claims, population);
                follower
            }
        };
        let own = follower.resolved.own.tunnel.iter();
        self.compiler.population.set_own(own.map(|addr| Addr::from(*addr)).collect());
        let compiled = self.compiler.update(&policies);
        let resolved = follower.resolved.clone();
        self.last = Some((world.clone(), follower));
        Derived {
            world,
            resolved,
            policies,
            compiled,
            identities: OnceLock::new(),
            conditions: OnceLock::new(),
            refused: self.catalog.refuses(),
        }
    }
}

/// Works out everything that follows from `world`.
pub fn derive(world: Arc<World>) -> Derived {
    Deriver::default().derive(world)
}
