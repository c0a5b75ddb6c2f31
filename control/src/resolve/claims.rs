//! What the local cluster owns or is connected to: no remote cluster can claim
//! any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tieline_dataplane::addr::{Addr, Prefix};

use crate::state::World;

/// Ranges, addresses and underlay networks of the local cluster, each with the
/// object that it is known from.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    ranges: Ranges,
    networks: Ranges,
    addresses: BTreeMap<Addr, String>,
}

/// Ranges with their owners, by family (IPv4 is true) and first address; none
/// lies in another.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<(bool, Addr), (Prefix, String)>);

impl Ranges {
    fn new(mut all: Vec<(Prefix, String)>) -> Self {
        all.sort_by_key(|(prefix, _)| prefix.len128());
        let mut ranges = Self(BTreeMap::new());
        for (prefix, owner) in all {
            if ranges.overlapping(&prefix).is_none() {
                ranges.0.insert((prefix.is_v4(), prefix.addr()), (prefix, owner));
            }
        }
        ranges
    }

    /// As ranges don't overlap, only the last that begins at or before a
    /// prefix and the first that begins within it can overlap it.
    fn overlapping(&self, prefix: &Prefix) -> Option<(&Prefix, &str)> {
        let key = (prefix.is_v4(), prefix.addr());
        let before = self.0.range(..=key).next_back();
        let after = self.0.range(key..).next();
        let mut near = before.into_iter().chain(after).map(|(_, range)| range);
        near.find_map(|(range, owner)| range.overlaps(prefix).then_some((range, owner.as_str())))
    }
}

impl Claims {
    /// Pods within a range of the cluster are not told apart from it.
    ///
    /// A disabled pool claims nothing by itself: the usual way to keep local
    /// pods' addresses from being masqueraded towards a remote pool is a
    /// disabled local pool with its range. Blocks that it still has do claim.
    pub(super) fn new(world: &World) -> Self {
        let local = &world.local;
        let pools = local.pools.iter().filter(|(_, pool)| !pool.disabled);
        let pools = pools.map(|(name, pool)| (pool.cidr, format!("IPPool {name}")));
        let blocks = local.blocks.iter().filter(|(_, block)| !block.deleted);
        let blocks = blocks.map(|(name, block)| (block.cidr, format!("IPAMBlock {name}")));
        let ranges = Ranges::new(pools.chain(blocks).collect());
        let mut addresses = BTreeMap::new();
        for (name, pod) in &local.pods {
            for addr in &pod.addresses {
                if ranges.overlapping(&Prefix::host((*addr).into())).is_none() {
                    addresses.insert(Addr::from(*addr), format!("Pod {name}"));
                }
            }
        }
        for (name, node) in &local.nodes {
            let annotated = [node.ipv4, node.ipv6].into_iter().flatten().map(|(addr, _)| addr);
            let tunnel = [node.tunnel_v4, node.tunnel_v6].into_iter().flatten();
            for addr in annotated.chain(tunnel).chain(node.addresses.iter().copied()) {
                addresses.insert(addr.into(), format!("Node {name}"));
            }
        }
        Self { ranges, networks: Ranges::new(networks(world)), addresses }
    }

    /// The local object that owns an address.
    pub(crate) fn owner(&self, addr: IpAddr) -> Option<&str> {
        self.overlapping(&Prefix::host(addr.into()))
    }

    /// A local object that owns some of a range.
    pub(super) fn overlapping(&self, prefix: &Prefix) -> Option<&str> {
        let range = self.ranges.overlapping(prefix).map(|(_, owner)| owner);
        range.or_else(|| {
            let first = self.addresses.range(prefix.addr()..).next();
            let address = first.filter(|(addr, _)| prefix.contains(**addr));
            address.map(|(_, owner)| owner.as_str())
        })
    }

    /// Whether a range of the local cluster holds an address: a pod there adds
    /// nothing to what is claimed.
    pub(super) fn holds(&self, prefix: &Prefix) -> bool {
        self.ranges.overlapping(prefix).is_some_and(|(range, _)| range.len128() <= prefix.len128())
    }

    /// Whether the same addresses are claimed.
    pub(crate) fn covers_same(&self, other: &Self) -> bool {
        let ranges = |claims: &Self| -> Vec<Prefix> {
            claims.ranges.0.values().map(|(range, _)| *range).collect()
        };
        self.addresses.keys().eq(other.addresses.keys()) && ranges(self) == ranges(other)
    }

    /// A network that local nodes are connected to and that overlaps a range,
    /// and one of these nodes. Nodes of other clusters may be in that network
    /// too, so its addresses are not the local cluster's own; but a route to a
    /// range of it would beat the node's connected route.
    pub(super) fn network(&self, prefix: &Prefix) -> Option<(&Prefix, &str)> {
        self.networks.overlapping(prefix)
    }
}

/// Networks of the local nodes' annotated addresses. A length that covers one
/// address or all says nothing of a network.
fn networks(world: &World) -> Vec<(Prefix, String)> {
    let nodes = world.local.nodes.iter();
    let addresses = nodes.flat_map(|(name, node)| {
        [node.ipv4, node.ipv6].into_iter().flatten().map(move |address| (name, address))
    });
    let networks = addresses.filter_map(|(name, (addr, len))| {
        let network = Prefix::new(addr, len).filter(|network| !network.is_empty())?;
        (network != Prefix::host(addr.into())).then(|| (network, format!("Node {name}")))
    });
    networks.collect()
}

/// Why no cluster can own a range, for ranges that none can.
pub(crate) fn never_owned(prefix: &Prefix) -> Option<&'static str> {
    const RANGES: [(&str, &str); 8] = [
        ("0.0.0.0/8", "this network"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/3", "multicast or reserved"),
        ("::/127", "unspecified or loopback"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("::ffff:0:0/95", "IPv4 in IPv6 form"),
    ];
    if prefix.is_empty() {
        return Some("the default route");
    }
    RANGES.iter().find_map(|(range, what)| {
        let range: Prefix = range.parse().ok()?;
        range.overlaps(prefix).then_some(*what)
    })
}

/// Addresses that several remote clusters claim at once.
pub(super) fn disputed<'a>(owners: impl Iterator<Item = (&'a str, IpAddr)>) -> BTreeSet<Addr> {
    let mut first: BTreeMap<Addr, &str> = BTreeMap::new();
    let mut disputed = BTreeSet::new();
    for (cluster, addr) in owners {
        if *first.entry(addr.into()).or_insert(cluster) != cluster {
            disputed.insert(addr.into());
        }
    }
    disputed
}
