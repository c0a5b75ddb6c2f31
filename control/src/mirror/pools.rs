//! Pools that keep Felix from masquerading what goes to remote clusters.
//!
//! Where a pool of local pods has natOutgoing, Felix rewrites the source of all
//! that leaves, but for destinations within any pool. So each remote range that
//! no pool covers gets a disabled one: no address is ever taken from it.
//! Several remote clusters with one range share one; a pool that somebody else
//! has made, as the vendor's guide says, is as good and is never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use crate::resolve::never_owned;
use crate::state::{ClusterId, ClusterObjects, Condition, IpPool, Severity, World};

/// A pool of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its range.
    pub cidr: Prefix,
    /// The remote clusters that have it.
    pub clusters: BTreeSet<Arc<str>>,
}

/// Pools by name.
pub type Pools = BTreeMap<String, Pool>;

/// The name of our pool with a range.
pub fn name(cidr: &Prefix) -> String {
    let text: String = cidr.to_string().to_lowercase();
    let text = text.replace([':', '.', '/'], "-");
    // `::` would leave two dashes, which is a name all the same, but an edge
    // must be a letter or digit.
    format!("tieline-{}", text.trim_start_matches('-'))
}

/// The pools that are to exist, and what stands in the way of others.
pub fn wanted(world: &World) -> (Pools, Vec<Condition>) {
    let foreign: Vec<(&String, &IpPool)> = world
        .local
        .pools
        .iter()
        .filter(|(key, pool)| **key != name(&pool.cidr))
        .map(|(key, pool)| (key, &**pool))
        .collect();
    let mut wanted: BTreeMap<Prefix, BTreeSet<Arc<str>>> = BTreeMap::new();
    let mut conditions = Vec::new();
    for (cluster, remote) in world.remotes.iter().filter(|(_, remote)| remote.overlay) {
        for cidr in ranges(&remote.objects) {
            let masquerades = foreign
                .iter()
                .any(|(_, pool)| pool.nat_outgoing && pool.cidr.is_v4() == cidr.is_v4());
            let overlapping = foreign.iter().find(|(_, pool)| pool.cidr.overlaps(&cidr));
            let covered = foreign.iter().any(|(_, pool)| holds(&pool.cidr, &cidr));
            if !masquerades || covered {
                continue;
            }
            if let Some((local, _)) = overlapping {
                conditions.push(Condition {
                    severity: Severity::Error,
                    cluster: ClusterId::Remote(cluster.clone()),
                    object: format!("IPPool {cidr}"),
                    message: format!(
                        "local IPPool {local} lies within it, so no disabled pool can keep Felix \
                         from masquerading what goes there; give the clusters ranges of their own"
                    ),
                });
                continue;
            }
            wanted.entry(cidr).or_default().insert(cluster.clone());
        }
    }
    // A range within another needs no pool of its own.
    let largest: Vec<Prefix> = wanted.keys().copied().collect();
    let largest: Vec<Prefix> = largest
        .iter()
        .copied()
        .filter(|cidr| !largest.iter().any(|other| other != cidr && holds(other, cidr)))
        .collect();
    let pools = largest.into_iter().map(|cidr| {
        let within = wanted.iter().filter(|(other, _)| holds(&cidr, other));
        let clusters = within.flat_map(|(_, clusters)| clusters.iter().cloned()).collect();
        (name(&cidr), Pool { cidr, clusters })
    });
    (pools.collect(), conditions)
}

fn holds(outer: &Prefix, inner: &Prefix) -> bool {
    outer.is_v4() == inner.is_v4()
        && outer.len128() <= inner.len128()
        && outer.contains(inner.addr())
}

/// The ranges that a remote cluster's pods are in.
fn ranges(remote: &ClusterObjects) -> impl Iterator<Item = Prefix> {
    let pools = remote.pools.values().filter(move |pool| remote.uses(pool));
    pools.map(|pool| pool.cidr).filter(|cidr| never_owned(cidr).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Encapsulation, RemoteCluster};

    fn pool(cidr: &str, nat_outgoing: bool, disabled: bool) -> Arc<IpPool> {
        let encapsulation = Encapsulation::Vxlan;
        Arc::new(IpPool { cidr: cidr.parse().unwrap(), encapsulation, nat_outgoing, disabled })
    }

    fn world(local: &[(&str, Arc<IpPool>)], remotes: &[(&str, &[Arc<IpPool>])]) -> World {
        let objects = |pools: &mut dyn Iterator<Item = (String, Arc<IpPool>)>| {
            Arc::new(ClusterObjects { pools: pools.collect(), ..ClusterObjects::default() })
        };
        let remotes = remotes.iter().map(|(name, pools)| {
            let mut pools = pools.iter().cloned().enumerate().map(|(at, it)| (at.to_string(), it));
            let remote = RemoteCluster { overlay: true, objects: objects(&mut pools) };
            (Arc::from(*name), remote)
        });
        World {
            node: "n".into(),
            include_local_vteps: false,
            remotes: remotes.collect(),
            local: objects(&mut local.iter().map(|(name, it)| ((*name).to_owned(), it.clone()))),
        }
    }

    fn shown(world: &World) -> Vec<String> {
        let (pools, _) = wanted(world);
        let clusters = |pool: &Pool| pool.clusters.iter().cloned().collect::<Vec<_>>().join(",");
        pools
            .iter()
            .map(|(name, pool)| format!("{name} {} {}", pool.cidr, clusters(pool)))
            .collect()
    }

    #[test]
    fn a_range_that_would_be_masqueraded_gets_a_pool() {
        let own = ("own", pool("10.1.0.0/16", true, false));
        let remote = [pool("10.2.0.0/16", true, false), pool("fd02::/48", true, false)];
        let one = world(std::slice::from_ref(&own), &[("b", &remote)]);
        assert_eq!(shown(&one), ["tieline-10-2-0-0-16 10.2.0.0/16 b"], "IPv6 is not masqueraded");
        let six = ("six", pool("fd01::/48", true, false));
        let both = world(&[own, six], &[("b", &remote)]);
        assert_eq!(shown(&both)[1], "tieline-fd02---48 fd02::/48 b");
        let plain = world(&[("own", pool("10.1.0.0/16", false, false))], &[("b", &remote)]);
        assert!(shown(&plain).is_empty());
    }

    #[test]
    fn what_others_cover_is_left_to_them_and_ours_is_not_others() {
        let own = ("own", pool("10.1.0.0/16", true, false));
        let theirs = ("no-nat", pool("10.0.0.0/8", false, true));
        let remote = [pool("10.2.0.0/16", true, false)];
        assert!(shown(&world(&[own.clone(), theirs], &[("b", &remote)])).is_empty());
        let ours = ("tieline-10-2-0-0-16", pool("10.2.0.0/16", false, true));
        assert_eq!(shown(&world(&[own.clone(), ours], &[("b", &remote)])).len(), 1);
        let within = ("within", pool("10.2.3.0/24", true, false));
        let clash = world(&[own, within], &[("b", &remote)]);
        assert!(shown(&clash).is_empty());
        assert_eq!(wanted(&clash).1.len(), 1);
    }

    #[test]
    fn equal_ranges_are_one_pool_and_larger_ones_hold_smaller_ones() {
        let own = ("own", pool("10.1.0.0/16", true, false));
        let a = [pool("10.2.0.0/16", true, false)];
        let b = [pool("10.2.0.0/16", true, false), pool("10.4.0.0/14", true, false)];
        let c = [pool("10.5.0.0/16", true, false), pool("10.9.0.0/16", true, true)];
        let all = world(&[own], &[("a", &a), ("b", &b), ("c", &c)]);
        let expected =
            ["tieline-10-2-0-0-16 10.2.0.0/16 a,b", "tieline-10-4-0-0-14 10.4.0.0/14 b,c"];
        assert_eq!(shown(&all), expected, "a disabled pool without blocks is no range");
    }
}
