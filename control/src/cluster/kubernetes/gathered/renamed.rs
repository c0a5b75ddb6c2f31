//! Policies whose stored names differ from those that users see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::object::Kind;
use crate::policy::api::{PolicyKind, PolicyObject};
use crate::state::ObjectName;

/// Policies that Calico may store under other names than users gave them. Of
/// two that have one name, the first by stored name counts, whichever came
/// first.
#[derive(Clone, Debug, Default)]
pub(super) struct Renamed {
    names: BTreeMap<(PolicyKind, ObjectName), ObjectName>,
    objects: BTreeMap<(PolicyKind, ObjectName), BTreeMap<ObjectName, Arc<PolicyObject>>>,
}

impl Renamed {
    pub(super) fn may_be(kind: PolicyKind) -> bool {
        matches!(
            kind,
            PolicyKind::NetworkPolicy
                | PolicyKind::GlobalNetworkPolicy
                | PolicyKind::StagedNetworkPolicy
                | PolicyKind::StagedGlobalNetworkPolicy
        )
    }

    pub(super) fn knows(&self, kind: Kind) -> bool {
        let Kind::Policy(kind) = kind else { return false };
        self.names.keys().any(|(other, _)| *other == kind)
    }

    pub(super) fn written(&self, kind: PolicyKind) -> BTreeSet<ObjectName> {
        let of_kind = self.names.keys().filter(|(other, _)| *other == kind);
        of_kind.map(|(_, written)| written.clone()).collect()
    }

    pub(super) fn get(
        &self,
        kind: PolicyKind,
        written: &ObjectName,
    ) -> Option<(&ObjectName, &Arc<PolicyObject>)> {
        let name = self.names.get(&(kind, written.clone()))?;
        Some((name, self.objects.get(&(kind, name.clone()))?.get(written)?))
    }

    pub(super) fn winner(&self, kind: PolicyKind, name: &ObjectName) -> Option<&Arc<PolicyObject>> {
        self.objects.get(&(kind, name.clone()))?.values().next()
    }

    /// Sets or takes away what is stored under a name. Returns the names that
    /// users see of which something has changed.
    pub(super) fn set(
        &mut self,
        kind: PolicyKind,
        written: ObjectName,
        name: ObjectName,
        object: Option<Arc<PolicyObject>>,
    ) -> Vec<ObjectName> {
        let mut changed = Vec::new();
        if let Some(before) = self.names.remove(&(kind, written.clone())) {
            let key = (kind, before);
            if let Some(stored) = self.objects.get_mut(&key) {
                stored.remove(&written);
                if stored.is_empty() {
                    self.objects.remove(&key);
                }
            }
            changed.push(key.1);
        }
        if let Some(object) = object {
            self.names.insert((kind, written.clone()), name.clone());
            self.objects.entry((kind, name.clone())).or_default().insert(written, object);
            changed.push(name);
        }
        changed
    }

    /// Names that several objects have, and what these are stored as.
    pub(super) fn rivals(&self) -> impl Iterator<Item = (PolicyKind, &ObjectName, Vec<String>)> {
        let several = self.objects.iter().filter(|(_, stored)| stored.len() > 1);
        several.map(|((kind, name), stored)| {
            (*kind, name, stored.keys().map(ToString::to_string).collect())
        })
    }
}
