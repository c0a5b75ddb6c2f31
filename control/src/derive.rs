//! From what is known to everything that follows from it.
//!
//! The daemon, `check` and `explain` all come through here, so what one of them
//! says is what the others do.

use std::sync::Arc;

use crate::policy::compile::{Compiled, Compiler};
use crate::policy::convert::Converter;
use crate::policy::model::PolicySet;
use crate::resolve::{Resolved, identities, resolve};
use crate::state::{Condition, Identity, World};

/// Everything that follows from a [`World`].
#[derive(Clone, Debug)]
pub struct Derived {
    /// What it follows from.
    pub world: Arc<World>,
    /// Routes, VTEPs and our own place.
    pub resolved: Resolved,
    /// What rules can see.
    pub identities: Vec<Identity>,
    /// Policies in order of precedence.
    pub policies: Arc<PolicySet>,
    /// Address classes and verdict tables.
    pub compiled: Compiled,
}

impl Derived {
    /// What the operator should know, most severe first.
    pub fn conditions(&self) -> Vec<Condition> {
        let mut all = self.resolved.conditions.clone();
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
}

impl Deriver {
    /// Works out everything that follows from `world`.
    pub fn derive(&mut self, world: Arc<World>) -> Derived {
        let resolved = resolve(&world);
        let identities = identities(&world);
        let policies = self.converter.policy_set(&world.local);
        let compiled = self.compiler.compile(&policies, &identities);
        Derived { world, resolved, identities, policies, compiled }
    }
}

/// Works out everything that follows from `world`.
pub fn derive(world: Arc<World>) -> Derived {
    Deriver::default().derive(world)
}
