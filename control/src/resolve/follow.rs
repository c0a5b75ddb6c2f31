//! Routes, VTEPs and claims from one world to the next.
//!
//! Pods come, go and change their labels all the time, and with each pod the
//! allocations of an address block change. Next to none of that concerns
//! routes: [`Follower::follow`] knows what does. Then all is worked out anew.

use std::net::IpAddr;
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use super::claims::Claims;
use super::own::route_source;
use super::routes::{Candidates, lent, longest};
use super::{Resolved, place};
use crate::map::Map;
use crate::state::{ClusterObjects, IpamBlock, ObjectName, Pod, RouteSource, World};

/// Follows the world.
#[derive(Debug)]
pub(crate) struct Follower {
    /// What the local cluster owns.
    pub(crate) claims: Arc<Claims>,
    /// Routes and VTEPs, without the conditions of identities.
    pub(crate) resolved: Arc<Resolved>,
    candidates: Candidates,
}

impl Follower {
    /// Begins with a world.
    pub(crate) fn new(world: &World) -> Self {
        let claims = Claims::new(world);
        let (resolved, candidates) = place(world, &claims);
        Self { claims: Arc::new(claims), resolved: Arc::new(resolved), candidates }
    }

    /// Goes on from the world of the last time to the next one. What stays is
    /// the same allocation.
    pub(crate) fn follow(&mut self, old: &World, new: &World) {
        if !self.concerned(old, new) {
            return;
        }
        let next = Self::new(new);
        if *next.resolved != *self.resolved {
            self.resolved = next.resolved;
        }
        self.candidates = next.candidates;
        if !self.claims.covers_same(&next.claims) {
            self.claims = next.claims;
        }
    }

    /// Whether anything has changed that may concern routes, VTEPs or claims.
    fn concerned(&self, old: &World, new: &World) -> bool {
        let settings = |world: &World| (world.node.clone(), world.include_local_vteps);
        let from_pods = route_source(new) == RouteSource::WorkloadIps;
        settings(old) != settings(new)
            || !same_places(&old.local, &new.local)
            || old.remotes.keys().ne(new.remotes.keys())
            || old.remotes.values().zip(new.remotes.values()).any(|(old, new)| {
                old.overlay != new.overlay
                    || new.overlay
                        && !Arc::ptr_eq(&old.objects, &new.objects)
                        && (!same_places(&old.objects, &new.objects)
                            || from_pods && !same_addresses(&old.objects, &new.objects))
            })
            || old.local.pods.diff(&new.local.pods).any(|(name, old_pod, new_pod)| {
                let same = old_pod.zip(new_pod).is_some_and(|(old, new)| same_address(old, new));
                !same && (from_pods || self.pod_concerns(&new.node, name, old_pod, new_pod))
            })
    }

    /// Whether a local pod that comes, goes or moves concerns routes or claims:
    /// one outside of all ranges claims its address, and this node's own ones
    /// have a route where no block of this node has it.
    fn pod_concerns(
        &self,
        node: &str,
        name: &ObjectName,
        old: Option<&Arc<Pod>>,
        new: Option<&Arc<Pod>>,
    ) -> bool {
        let addresses = |pod: Option<&Arc<Pod>>| -> Vec<Prefix> {
            let all = pod.into_iter().flat_map(|pod| &pod.addresses);
            all.map(|addr: &IpAddr| Prefix::host((*addr).into())).collect()
        };
        let (gone, come) = (addresses(old), addresses(new));
        if gone.iter().chain(&come).any(|addr| !self.claims.holds(addr)) {
            return true;
        }
        let is_own = |pod: Option<&Arc<Pod>>| pod.is_some_and(|pod| *pod.node == *node);
        let origin = format!("Pod {name}");
        let had_route =
            |addr: &Prefix| self.candidates.get(addr).is_some_and(|owner| owner.origin == origin);
        let needs_route = |addr: &Prefix| {
            longest(&self.candidates, addr)
                .is_none_or(|(_, owner)| owner.node != node || owner.origin.starts_with("Pod "))
        };
        is_own(old) && gone.iter().any(had_route) || is_own(new) && come.iter().any(needs_route)
    }
}

/// Whether nodes, pools, settings and blocks say the same of routes.
fn same_places(old: &ClusterObjects, new: &ClusterObjects) -> bool {
    old.nodes == new.nodes
        && old.pools == new.pools
        && old.felix == new.felix
        && same_blocks(&old.blocks, &new.blocks)
}

/// Whether blocks say the same but for who has which address of a block that
/// is its node's own.
fn same_blocks(old: &Map<String, Arc<IpamBlock>>, new: &Map<String, Arc<IpamBlock>>) -> bool {
    old.diff(new).all(|(_, old, new)| match (old, new) {
        (Some(old), Some(new)) => {
            (old.cidr, &old.affinity, old.deleted) == (new.cidr, &new.affinity, new.deleted)
                && lent(old).eq(lent(new))
        }
        _ => false,
    })
}

fn same_addresses(old: &ClusterObjects, new: &ClusterObjects) -> bool {
    old.pods
        .diff(&new.pods)
        .all(|(_, old, new)| old.zip(new).is_some_and(|(old, new)| same_address(old, new)))
}

fn same_address(old: &Pod, new: &Pod) -> bool {
    old.addresses == new.addresses && old.node == new.node
}
