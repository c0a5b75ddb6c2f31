//! VTEPs of other nodes, from their annotations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sha1::{Digest, Sha1};
use tieline_dataplane::wire::MacAddr;

use super::claims::Claims;
use super::{Notes, ResolvedVtep, VtepKey};
use crate::state::{ClusterId, Node, Severity, World};

/// MAC of a node's VTEP for IPv4 when it is not annotated: `66` (locally
/// administered, unicast) and the first five bytes of the SHA-1 of the node's
/// name, as Felix derives it.
pub fn mac_v4(node: &str) -> MacAddr {
    derived(node, "")
}

/// MAC of a node's VTEP for IPv6 when it is not annotated: as [`mac_v4`], of
/// the name with `-v6` after it.
pub fn mac_v6(node: &str) -> MacAddr {
    derived(node, "-v6")
}

fn derived(node: &str, suffix: &str) -> MacAddr {
    let digest = Sha1::new().chain_update(node).chain_update(suffix).finalize();
    MacAddr([0x66, digest[0], digest[1], digest[2], digest[3], digest[4]])
}

/// The VTEPs that count. A family's VTEP needs the node's address and its
/// tunnel address of that family, both annotated.
pub(super) fn vteps(
    world: &World,
    claims: &Claims,
    notes: &mut Notes,
) -> BTreeMap<VtepKey, ResolvedVtep> {
    let mut vteps = BTreeMap::new();
    if world.include_local_vteps {
        for (name, node) in world.local.nodes.iter().filter(|(name, _)| **name != world.node) {
            add(&mut vteps, &ClusterId::Local, name, node);
        }
    }
    for (cluster, remote) in world.remotes.iter().filter(|(_, remote)| remote.overlay) {
        for (name, node) in &remote.objects.nodes {
            add(&mut vteps, &ClusterId::Remote(cluster.clone()), name, node);
        }
    }
    refuse_underlay(&mut vteps, claims, notes);
    refuse_shared(&mut vteps, notes);
    warn_of_names(world, &vteps, notes);
    vteps
}

fn add(vteps: &mut BTreeMap<VtepKey, ResolvedVtep>, cluster: &ClusterId, name: &str, node: &Node) {
    let halves = [
        (false, node.ipv4, node.tunnel_v4, node.mac_v4.unwrap_or_else(|| mac_v4(name))),
        (true, node.ipv6, node.tunnel_v6, node.mac_v6.unwrap_or_else(|| mac_v6(name))),
    ];
    for (v6, address, tunnel, mac) in halves {
        if let (Some((underlay, _)), Some(_)) = (address, tunnel) {
            let key = VtepKey { cluster: cluster.clone(), node: name.to_owned(), v6 };
            vteps.insert(key, ResolvedVtep { underlay, mac });
        }
    }
}

/// A remote node at an address of the local cluster: the local one wins.
fn refuse_underlay(
    vteps: &mut BTreeMap<VtepKey, ResolvedVtep>,
    claims: &Claims,
    notes: &mut Notes,
) {
    vteps.retain(|key, vtep| {
        let owner = match &key.cluster {
            ClusterId::Local => None,
            ClusterId::Remote(_) => claims.owner(vtep.underlay),
        };
        if let Some(owner) = &owner {
            notes.add(
                Severity::Error,
                &key.cluster,
                format!("Node {}", key.node),
                &format!(
                    "address {} lies in local {owner}, so the node is not reached; give the \
                     clusters addresses of their own",
                    vtep.underlay
                ),
            );
        }
        owner.is_none()
    });
}

/// Two nodes at one address can't be told apart. Within a cluster the first by
/// name wins, as in Felix (an old Node object may linger); local wins over
/// remote; of two remote clusters neither.
fn refuse_shared(vteps: &mut BTreeMap<VtepKey, ResolvedVtep>, notes: &mut Notes) {
    let mut by_address: BTreeMap<IpAddr, Vec<VtepKey>> = BTreeMap::new();
    for (key, vtep) in &*vteps {
        by_address.entry(vtep.underlay).or_default().push(key.clone());
    }
    for (address, keys) in by_address.into_iter().filter(|(_, keys)| keys.len() > 1) {
        let first = &keys[0];
        let one_cluster = keys.iter().all(|key| key.cluster == first.cluster);
        let wins = one_cluster || first.cluster == ClusterId::Local;
        for key in &keys[usize::from(wins)..] {
            let other = if key == first { &keys[1] } else { first };
            vteps.remove(key);
            notes.add(
                Severity::Error,
                &key.cluster,
                format!("Node {}", key.node),
                &format!(
                    "has the address {address} of node {} of cluster {}, so it is not reached; \
                     give each node an address of its own",
                    other.node, other.cluster
                ),
            );
        }
    }
}

/// Equal names in two clusters give equal MACs, which Calico's own VTEPs take
/// for one node; ours tell them apart by address.
fn warn_of_names(world: &World, vteps: &BTreeMap<VtepKey, ResolvedVtep>, notes: &mut Notes) {
    let mut by_mac: BTreeMap<MacAddr, (ClusterId, &str)> = BTreeMap::new();
    for (name, node) in &world.local.nodes {
        let v4 = node.mac_v4.unwrap_or_else(|| mac_v4(name));
        let v6 = node.mac_v6.unwrap_or_else(|| mac_v6(name));
        for mac in [v4, v6] {
            by_mac.insert(mac, (ClusterId::Local, name));
        }
    }
    for (key, vtep) in vteps.iter().filter(|(key, _)| key.cluster != ClusterId::Local) {
        let this = (key.cluster.clone(), key.node.as_str());
        let (cluster, node) = by_mac.entry(vtep.mac).or_insert_with(|| this.clone()).clone();
        if (&cluster, node) == (&this.0, this.1) {
            continue;
        }
        let message = if node == key.node {
            format!(
                "has the name of a node of cluster {cluster}; rename one: node names must be \
                 unique over all clusters"
            )
        } else {
            format!(
                "has the VTEP MAC {} of node {node} of cluster {cluster}; annotate one of the two \
                 with another MAC",
                vtep.mac
            )
        };
        notes.add(Severity::Warning, &key.cluster, format!("Node {}", key.node), &message);
    }
}
