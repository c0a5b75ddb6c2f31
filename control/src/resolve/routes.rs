//! Which node owns which prefix.
//!
//! Each cluster's own objects give candidates; a remote cluster's candidates
//! then have to hold against what the local cluster and other remote clusters
//! own. The rules, in order:
//!
//! 1. No cluster owns loopback, link-local, multicast or the default route.
//! 2. What overlaps something that the local cluster owns is refused.
//! 3. What overlaps a network that a local node is connected to (that of its
//!    annotated address and prefix length) is refused: its route would beat the
//!    node's connected route.
//! 4. The most specific IPPool of the same cluster must have VXLAN on.
//! 5. A range with a node's underlay address in it is refused: its packets
//!    would be sent into the tunnel that they carry.
//! 6. Of what two remote clusters claim, neither gets the overlap.
//! 7. The node must have a VTEP.
//!
//! Remote nodes of a CrossSubnet pool are reached by VXLAN in the same subnet
//! too: nothing else would program the direct route, and VXLAN is accepted
//! there from every known VTEP. For nodes of the local cluster Felix programs
//! it, so they get no route from us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tieline_dataplane::addr::{Addr, Prefix};

use super::claims::{Claims, never_owned};
use super::own::route_source;
use super::refusals::Refusals;
use super::{Notes, ResolvedRoute, ResolvedVtep, RouteTarget, VtepKey};
use crate::state::{
    ClusterId, ClusterObjects, Encapsulation, IpPool, IpamBlock, RouteSource, Severity, World,
};

/// The owner of a prefix within its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) node: String,
    pub(super) origin: String,
}

/// Candidates of one cluster.
pub(super) type Candidates = BTreeMap<Prefix, Owner>;

/// The routes that are in force, and the candidates of the local cluster.
pub(super) fn routes(
    world: &World,
    vteps: &BTreeMap<VtepKey, ResolvedVtep>,
    claims: &Claims,
    notes: &mut Notes,
) -> (BTreeMap<Prefix, ResolvedRoute>, Candidates) {
    let mut refusals = Refusals::default();
    let source = route_source(world);
    let own = local_candidates(world, source);
    let mut routes = local(world, &own, vteps, &mut refusals);
    let underlay: BTreeSet<Addr> = vteps.values().map(|vtep| vtep.underlay.into()).collect();
    let mut claimed = Vec::new();
    for (name, remote) in world.remotes.iter().filter(|(_, remote)| remote.overlay) {
        let cluster = ClusterId::Remote(name.clone());
        let check =
            Check { cluster, pools: Pools::new(&remote.objects), claims, underlay: &underlay };
        let mut candidates = candidates(&remote.objects, source);
        candidates.retain(|prefix, owner| check.holds(prefix, owner, &mut refusals));
        warn_of_masquerade(world, &check.cluster, &remote.objects, notes);
        claimed.push((check, candidates));
    }
    let held = settle(&claimed, &mut refusals);
    for ((check, _), held) in claimed.iter().zip(held) {
        let objects = match &check.cluster {
            ClusterId::Remote(name) => &world.remotes[name].objects,
            ClusterId::Local => &world.local,
        };
        for (prefix, owner) in held {
            if has_vtep(&check.cluster, objects, &prefix, &owner, vteps, &mut refusals) {
                routes.insert(prefix, route(&check.cluster, owner));
            }
        }
    }
    refusals.tell(notes);
    (routes, own)
}

fn route(cluster: &ClusterId, owner: Owner) -> ResolvedRoute {
    let target = RouteTarget::Node { cluster: cluster.clone(), node: owner.node };
    ResolvedRoute { target, origin: owner.origin }
}

fn local_candidates(world: &World, source: RouteSource) -> Candidates {
    let mut candidates = candidates(&world.local, source);
    for (name, pod) in world.local.pods.iter().filter(|(_, pod)| *pod.node == *world.node) {
        for addr in &pod.addresses {
            own_address(&mut candidates, *addr, &pod.node, &format!("Pod {name}"));
        }
    }
    candidates
}

/// Routes to this node itself, and to the local cluster's other nodes as far
/// as they have VTEPs that count.
fn local(
    world: &World,
    candidates: &Candidates,
    vteps: &BTreeMap<VtepKey, ResolvedVtep>,
    refusals: &mut Refusals,
) -> BTreeMap<Prefix, ResolvedRoute> {
    let pools = Pools::new(&world.local);
    let mut routes = BTreeMap::new();
    for (prefix, owner) in candidates {
        if owner.node == world.node {
            let origin = owner.origin.clone();
            routes.insert(*prefix, ResolvedRoute { target: RouteTarget::Local, origin });
        } else if world.include_local_vteps
            && pools.of(prefix).is_some_and(|(_, pool)| match pool.encapsulation {
                Encapsulation::Vxlan => true,
                Encapsulation::VxlanCrossSubnet => !same_subnet(world, &owner.node, prefix.is_v4()),
                Encapsulation::None | Encapsulation::Ipip => false,
            })
            && has_vtep(&ClusterId::Local, &world.local, prefix, owner, vteps, refusals)
        {
            routes.insert(*prefix, route(&ClusterId::Local, owner.clone()));
        }
    }
    routes
}

/// Whether another local node is in the subnet that our own annotation names;
/// the other node's prefix length does not count.
fn same_subnet(world: &World, node: &str, v4: bool) -> bool {
    let address = |name: &str| {
        let node = world.local.nodes.get(name)?;
        if v4 { node.ipv4 } else { node.ipv6 }
    };
    let Some(((own, len), (other, _))) = address(&world.node).zip(address(node)) else {
        return false;
    };
    Prefix::new(own, len).is_some_and(|subnet| subnet.contains(other.into()))
}

/// What a cluster's objects say by themselves.
fn candidates(objects: &ClusterObjects, source: RouteSource) -> Candidates {
    let mut candidates = match source {
        RouteSource::CalicoIpam => from_blocks(objects),
        RouteSource::WorkloadIps => from_pods(objects),
    };
    for (name, node) in &objects.nodes {
        for addr in [node.tunnel_v4, node.tunnel_v6].into_iter().flatten() {
            own_address(&mut candidates, addr, name, &format!("Node {name}"));
        }
    }
    candidates
}

/// Addresses of a block that another node uses than the one that it is affine
/// to, and that node.
pub(super) fn lent(block: &IpamBlock) -> impl Iterator<Item = &(IpAddr, String)> {
    block.allocations.iter().filter(|(_, node)| block.affinity.as_ref() != Some(node))
}

/// The block goes to the node that it is affine to; addresses of it that
/// another node uses go there.
fn from_blocks(objects: &ClusterObjects) -> Candidates {
    let mut candidates = Candidates::new();
    for (name, block) in objects.blocks.iter().filter(|(_, block)| !block.deleted) {
        let owner = |node: &str| Owner { node: node.into(), origin: format!("IPAMBlock {name}") };
        if let Some(node) = &block.affinity {
            candidates.entry(block.cidr).or_insert_with(|| owner(node));
        }
        for (addr, node) in lent(block) {
            let prefix = Prefix::host((*addr).into());
            candidates.entry(prefix).or_insert_with(|| owner(node));
        }
    }
    candidates
}

/// Of several nodes that claim one address, the first by name wins.
fn from_pods(objects: &ClusterObjects) -> Candidates {
    let mut pods: Vec<_> = objects.pods.iter().collect();
    pods.sort_by(|(a_name, a), (b_name, b)| (&a.node, a_name).cmp(&(&b.node, b_name)));
    let mut candidates = Candidates::new();
    for (name, pod) in pods {
        for addr in &pod.addresses {
            let owner = || Owner { node: pod.node.to_string(), origin: format!("Pod {name}") };
            candidates.entry(Prefix::host((*addr).into())).or_insert_with(owner);
        }
    }
    candidates
}

/// Adds an address that its node has, unless the candidates lead there already.
fn own_address(candidates: &mut Candidates, addr: IpAddr, node: &str, origin: &str) {
    let host = Prefix::host(addr.into());
    if longest(candidates, &host).is_none_or(|(_, owner)| owner.node != node) {
        let owner = Owner { node: node.to_owned(), origin: origin.to_owned() };
        candidates.entry(host).or_insert(owner);
    }
}

/// The smallest candidate that holds a prefix.
pub(super) fn longest<'c>(
    candidates: &'c Candidates,
    prefix: &Prefix,
) -> Option<(&'c Prefix, &'c Owner)> {
    ancestors(prefix).find_map(|prefix| candidates.get_key_value(&prefix))
}

/// The prefix and all that hold it, longest first.
fn ancestors(prefix: &Prefix) -> impl Iterator<Item = Prefix> + use<> {
    let addr = prefix.addr().to_ip();
    (0..=prefix.len()).rev().filter_map(move |len| Prefix::new(addr, len))
}

/// The pools of a cluster; of two with one range the first by name counts.
struct Pools<'a>(BTreeMap<Prefix, (&'a str, &'a IpPool)>);

impl<'a> Pools<'a> {
    fn new(objects: &'a ClusterObjects) -> Self {
        let mut pools = BTreeMap::new();
        for (name, pool) in &objects.pools {
            pools.entry(pool.cidr).or_insert((name.as_str(), &**pool));
        }
        Self(pools)
    }

    /// The most specific pool that holds a prefix.
    fn of(&self, prefix: &Prefix) -> Option<(&'a str, &'a IpPool)> {
        ancestors(prefix).find_map(|prefix| self.0.get(&prefix).copied())
    }
}

/// What a remote cluster's candidates are held against.
struct Check<'a> {
    cluster: ClusterId,
    pools: Pools<'a>,
    claims: &'a Claims,
    underlay: &'a BTreeSet<Addr>,
}

impl Check<'_> {
    fn holds(&self, prefix: &Prefix, owner: &Owner, refusals: &mut Refusals) -> bool {
        let pool = self.pools.of(prefix);
        let object = pool.map(|(name, _)| format!("IPPool {name}"));
        let reason = if let Some(what) = never_owned(prefix) {
            format!("{what} belongs to no cluster; correct the object")
        } else if let Some(local) = self.claims.overlapping(prefix) {
            format!("it overlaps local {local}, which wins; give the clusters ranges of their own")
        } else if let Some((network, local)) = self.claims.network(prefix) {
            format!(
                "it overlaps network {network} of local {local}, to which the node's own route \
                 leads; give the pool a range outside of the nodes' networks, or correct the \
                 node's annotated prefix length"
            )
        } else if let Some((name, pool)) = pool {
            if !matches!(pool.encapsulation, Encapsulation::Vxlan | Encapsulation::VxlanCrossSubnet)
            {
                format!("IPPool {name} is not encapsulated by VXLAN; set its vxlanMode to Always")
            } else if let Some(address) = self.underlay_in(prefix) {
                format!("it holds node address {address}; give nodes addresses outside of pools")
            } else {
                return true;
            }
        } else {
            "it lies in no IPPool of its cluster; create the IPPool, or let it be read".to_owned()
        };
        refusals.add(&self.cluster, object, &owner.origin, prefix, reason);
        false
    }

    fn underlay_in(&self, prefix: &Prefix) -> Option<Addr> {
        let first = self.underlay.range(prefix.addr()..).next();
        first.copied().filter(|addr| prefix.contains(*addr))
    }
}

/// Takes from each remote cluster's routes what another one claims too.
fn settle(claimed: &[(Check<'_>, Candidates)], refusals: &mut Refusals) -> Vec<Candidates> {
    let mut all: BTreeMap<Prefix, Vec<usize>> = BTreeMap::new();
    for (index, (_, candidates)) in claimed.iter().enumerate() {
        for prefix in candidates.keys() {
            all.entry(*prefix).or_default().push(index);
        }
    }
    let mut held = Vec::new();
    for (index, (check, candidates)) in claimed.iter().enumerate() {
        let mut own = Candidates::new();
        for (prefix, owner) in candidates {
            let holes = overlaps(&all, prefix, index);
            for (hole, other) in &holes {
                let object = check.pools.of(prefix).map(|(name, _)| format!("IPPool {name}"));
                let reason = format!(
                    "cluster {} claims it too, so neither gets it; give the clusters ranges of \
                     their own",
                    claimed[*other].0.cluster
                );
                let hole = if hole.len128() > prefix.len128() { hole } else { prefix };
                refusals.add(&check.cluster, object, &owner.origin, hole, reason);
            }
            let holes: Vec<Prefix> = holes.into_iter().map(|(hole, _)| hole).collect();
            carve(*prefix, &holes, &mut |rest| {
                own.insert(rest, owner.clone());
            });
        }
        held.push(own);
    }
    held
}

/// Prefixes of other clusters that overlap a prefix, and which cluster's.
fn overlaps(
    all: &BTreeMap<Prefix, Vec<usize>>,
    prefix: &Prefix,
    index: usize,
) -> Vec<(Prefix, usize)> {
    let above = ancestors(prefix).filter_map(|above| all.get_key_value(&above));
    // Sorted by address, then length: what lies within follows at once.
    let within = all.range(*prefix..).skip_while(|(other, _)| *other == prefix);
    let within = within.take_while(|(other, _)| other.overlaps(prefix));
    let pairs = above.chain(within).flat_map(|(other, owners)| {
        owners.iter().filter(|owner| **owner != index).map(|owner| (*other, *owner))
    });
    pairs.collect()
}

/// What is left of a prefix without the holes, in as few prefixes as possible.
fn carve(prefix: Prefix, holes: &[Prefix], keep: &mut impl FnMut(Prefix)) {
    let holes: Vec<Prefix> = holes.iter().copied().filter(|hole| hole.overlaps(&prefix)).collect();
    if holes.is_empty() {
        keep(prefix);
    } else if holes.iter().all(|hole| hole.len128() > prefix.len128()) {
        let addr = prefix.addr();
        let upper = Addr::from_bits(addr.bits() | 1 << (127 - prefix.len128()));
        for half in [addr, upper] {
            if let Some(half) = Prefix::new(half.to_ip(), prefix.len() + 1) {
                carve(half, &holes, keep);
            }
        }
    }
}

fn has_vtep(
    cluster: &ClusterId,
    objects: &ClusterObjects,
    prefix: &Prefix,
    owner: &Owner,
    vteps: &BTreeMap<VtepKey, ResolvedVtep>,
    refusals: &mut Refusals,
) -> bool {
    let key = |v6| VtepKey { cluster: cluster.clone(), node: owner.node.clone(), v6 };
    if vteps.contains_key(&key(!prefix.is_v4())) || vteps.contains_key(&key(prefix.is_v4())) {
        return true;
    }
    let node = Some(format!("Node {}", owner.node));
    let reason = if objects.nodes.contains_key(&owner.node) {
        "the node has no VTEP that counts: it needs the annotations projectcalico.org/IPv4Address \
         and IPv4VXLANTunnelAddr, or those for IPv6, with addresses of its own"
    } else {
        "there is no such node; delete the object if the node is gone"
    };
    refusals.add(cluster, node, &owner.origin, prefix, reason.to_owned());
    false
}

/// Felix masquerades what leaves a pool with natOutgoing for an address in no
/// pool that it knows, and remote pools it does not know. Then packets come to
/// us from the node's tunnel address, which no pod's rules apply to. Where a
/// FelixConfiguration shows that Felix runs, this is so; else it may be.
fn warn_of_masquerade(
    world: &World,
    cluster: &ClusterId,
    objects: &ClusterObjects,
    notes: &mut Notes,
) {
    let local = || world.local.pools.iter();
    let (severity, masquerades) = if world.local.felix.is_empty() {
        (Severity::Warning, "Felix, where it runs, masquerades")
    } else {
        (Severity::Error, "Felix masquerades")
    };
    for (name, pool) in objects.pools.iter().filter(|(_, pool)| objects.uses(pool)) {
        let v4 = pool.cidr.is_v4();
        let natted = local().find(|(_, pool)| pool.nat_outgoing && pool.cidr.is_v4() == v4);
        let known = ancestors(&pool.cidr).any(|range| local().any(|(_, pool)| pool.cidr == range));
        if let Some((nat, _)) = natted.filter(|_| !known) {
            let message = format!(
                "{masquerades} packets from pods of local IPPool {nat} (natOutgoing) to {cidr} as \
                 its node's tunnel address, so egress rules of these pods are not applied to them \
                 here, and the pods' labels don't count there; create a local IPPool with cidr \
                 {cidr} and disabled: true",
                cidr = pool.cidr
            );
            notes.add(severity, cluster, format!("IPPool {name}"), &message);
        }
    }
}
