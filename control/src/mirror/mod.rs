//! What Felix must know of remote clusters, written into the local cluster's
//! API: their endpoints' identities as GlobalNetworkSets, and disabled IPPools
//! over their ranges, so that traffic to them keeps its source.
//!
//! Promises: one daemon of the cluster writes; objects that somebody else has
//! made are never touched; what is written follows from the present state of the
//! clusters and of the API alone, so another daemon goes on where one has
//! stopped; nothing here delays the tables. Knows nothing of packets.
//!
//! ```text
//! labels   what the API takes as a label; values that are the same to selectors
//! group    remote identities -> groups that no selector in force tells apart
//! sets     groups -> sets, and the way there write by write
//! pools    remote ranges -> disabled pools
//! lease    who writes: one daemon of the cluster
//! pace     how fast
//! checks   what Felix can't do as Tieline does
//! wanted   what follows from the state of the world for all of that
//! object   sets and pools as objects of the API
//! api      the requests, and what their failures mean
//! owned    our objects as the API has them
//! follow   the watches
//! carry    the writes
//! writer   puts all of it together
//! uninstall  removes all of it
//! report   what becomes of remote clusters, on their configurations
//! announce  which clusters are joined, for those clusters to know
//! status   what is told about it
//! ```
//! Start reading at [`wanted`], then [`sets`].

use std::sync::Arc;

use crate::policy::api::{PolicyKind, PolicyObject, PolicyObjects};
use crate::state::{ClusterId, ClusterObjects, Identity, IdentityKind, World};

mod announce;
mod api;
mod carry;
pub mod checks;
mod follow;
pub mod group;
mod labels;
pub mod lease;
pub mod object;
mod owned;
pub mod pace;
pub mod pools;
mod report;
pub mod sets;
pub mod status;
mod tell;
pub mod uninstall;
pub mod wanted;
mod writer;

pub use api::LEASE;
pub use status::MirrorStatus;
pub use wanted::{Input, Modes};
pub use writer::{Mirror, Place};

/// Whether nothing is different between two states of the world but what is
/// written for Felix, from which nothing follows.
pub fn same_but_ours(old: &World, new: &World) -> bool {
    let theirs = |object: Option<&Arc<PolicyObject>>| object.is_some_and(|it| !it.is_ours());
    let mut policy = old.local.policy.0.diff(&new.local.policy.0);
    let rest = |of: &World| {
        let local = ClusterObjects { policy: PolicyObjects::default(), ..(*of.local).clone() };
        World { local: Arc::new(local), ..of.clone() }
    };
    !policy.any(|(_, before, after)| theirs(before) || theirs(after)) && rest(old) == rest(new)
}

/// Whether a value can be that of a set's label.
pub fn is_label_value(value: &str) -> bool {
    labels::is_value(value)
}

/// The sets that are written for Felix, as identities of the local cluster.
pub fn mirrored_sets(objects: &PolicyObjects) -> Vec<Identity> {
    let sets = objects.0.iter().filter_map(|((kind, name), object)| match &**object {
        PolicyObject::NetworkSet(set) if *kind == PolicyKind::GlobalNetworkSet && set.is_ours() => {
            Some(Identity {
                cluster: ClusterId::Local,
                kind: IdentityKind::NetworkSet,
                name: name.clone(),
                node: String::new(),
                labels: Arc::new(set.labels.clone()),
                nets: set.nets.clone(),
                ports: Vec::new(),
                profile: false,
            })
        }
        _ => None,
    });
    sets.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::policy::api::{OWNER, parse};

    #[test]
    fn our_own_writes_are_no_news() {
        let world = |local| World {
            node: "n".to_owned(),
            include_local_vteps: false,
            local: Arc::new(local),
            remotes: BTreeMap::new(),
        };
        let with = |owner: Option<&str>, net: &str| {
            let labels = owner.map_or(json!({}), |name| json!({ OWNER: name }));
            let set = json!({
                "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
                "metadata": {"name": "s", "labels": labels}, "spec": {"nets": [net]},
            });
            let (name, set) = parse(PolicyKind::GlobalNetworkSet, &set).unwrap();
            let mut local = ClusterObjects::default();
            local.policy.0.insert((PolicyKind::GlobalNetworkSet, name), Arc::new(set));
            world(local)
        };
        let nothing = world(ClusterObjects::default());
        let (ours, other) = (with(Some("db"), "10.0.0.1/32"), with(Some("db"), "10.0.0.2/32"));
        assert!(same_but_ours(&ours, &other) && same_but_ours(&nothing, &ours));
        assert!(!same_but_ours(&with(None, "10.0.0.1/32"), &with(None, "10.0.0.2/32")));
        assert!(!same_but_ours(&nothing, &with(None, "10.0.0.1/32")));
        let mut pods = other.clone();
        Arc::make_mut(&mut pods.local).uid = Some("u".to_owned());
        assert!(!same_but_ours(&ours, &pods));
    }
}
