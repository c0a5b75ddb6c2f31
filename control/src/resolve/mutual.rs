//! Whether the clusters that this one joins join it too: routes there are of no
//! use without routes back.
//!
//! The rights of Calico's guide don't show a cluster's own
//! RemoteClusterConfigurations, and none wider should, since these may hold
//! credentials. Namespaces they do show; so each cluster says by labels of one
//! namespace, Tieline's own, which clusters it has joined.

use std::collections::BTreeSet;

use super::Notes;
use crate::state::{ClusterId, ClusterObjects, Severity, World};

/// Label of a namespace whose labels say which clusters are joined.
pub(crate) const MARK: &str = "tieline/joined";
/// Before the UID of a cluster that is joined, in a label's key.
const JOINED: &str = "tieline/joined.";

/// The keys of the labels that say what the local cluster has joined.
pub(crate) fn keys(world: &World) -> BTreeSet<String> {
    let remotes = world.remotes.values().filter(|remote| remote.overlay);
    let uids = remotes.filter_map(|remote| remote.objects.uid.as_ref());
    uids.map(|uid| format!("{JOINED}{uid}")).chain([MARK.to_owned()]).collect()
}

/// Whether a label's key is one of those.
pub(crate) fn is_key(key: &str) -> bool {
    key == MARK || key.starts_with(JOINED)
}

/// Says which remote clusters don't join the local one, of those that say whom
/// they join.
pub(super) fn check(world: &World, notes: &mut Notes) {
    let Some(uid) = &world.local.uid else { return };
    let ours = format!("{JOINED}{uid}");
    for (name, remote) in world.remotes.iter().filter(|(_, remote)| remote.overlay) {
        if let Some((namespace, false)) = joins(&remote.objects, &ours) {
            notes.add(
                Severity::Warning,
                &ClusterId::Remote(name.clone()),
                format!("Namespace {namespace}"),
                "the cluster does not route to this one, so no answers come back; create a \
                 RemoteClusterConfiguration for this cluster there, with overlayRoutingMode \
                 Enabled, or see what its tieline status says of the one that there is",
            );
        }
    }
}

/// The namespace whose labels say what a cluster has joined, and whether one of
/// them is `key`.
fn joins<'a>(objects: &'a ClusterObjects, key: &str) -> Option<(&'a str, bool)> {
    let mut marked = objects.namespaces.iter().filter(|(_, labels)| labels.contains_key(MARK));
    let (first, labels) = marked.next()?;
    let any = labels.contains_key(key) || marked.any(|(_, labels)| labels.contains_key(key));
    Some((first, any))
}
