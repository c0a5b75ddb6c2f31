//! From what is known to everything that follows from it.
//!
//! Pure: the daemon, `check` and `explain` all call [`derive`], so what one of
//! them says is what the others do.

use std::sync::Arc;

use crate::policy::compile::{Compiled, compile};
use crate::policy::convert::policy_set;
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
    pub policies: PolicySet,
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

/// Works out everything that follows from `world`.
pub fn derive(world: Arc<World>) -> Derived {
    let resolved = resolve(&world);
    let identities = identities(&world);
    let policies = policy_set(&world.local);
    let compiled = compile(&policies, &identities);
    Derived { world, resolved, identities, policies, compiled }
}
