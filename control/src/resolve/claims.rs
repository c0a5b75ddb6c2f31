//! What the local cluster owns: no remote cluster can claim any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tieline_dataplane::addr::{Addr, Prefix};

use crate::state::World;

/// Ranges and addresses of the local cluster, each with the object that owns
/// it.
pub(super) struct Claims {
    /// By family (IPv4 is true) and first address; none lies in another.
    ranges: BTreeMap<(bool, Addr), (Prefix, String)>,
    addresses: BTreeMap<Addr, String>,
}

impl Claims {
    /// A disabled pool claims nothing by itself: the usual way to keep local
    /// pods' addresses from being masqueraded towards a remote pool is a
    /// disabled local pool with its range. Blocks that it still has do claim.
    pub(super) fn new(world: &World) -> Self {
        let local = &world.local;
        let pools = local.pools.iter().filter(|(_, pool)| !pool.disabled);
        let pools = pools.map(|(name, pool)| (pool.cidr, format!("IPPool {name}")));
        let blocks = local.blocks.iter().filter(|(_, block)| !block.deleted);
        let blocks = blocks.map(|(name, block)| (block.cidr, format!("IPAMBlock {name}")));
        let mut addresses = BTreeMap::new();
        for (name, pod) in &local.pods {
            for addr in &pod.addresses {
                addresses.insert(Addr::from(*addr), format!("Pod {name}"));
            }
        }
        for (name, node) in &local.nodes {
            let annotated = [node.ipv4, node.ipv6].into_iter().flatten().map(|(addr, _)| addr);
            let tunnel = [node.tunnel_v4, node.tunnel_v6].into_iter().flatten();
            for addr in annotated.chain(tunnel).chain(node.addresses.iter().copied()) {
                addresses.insert(addr.into(), format!("Node {name}"));
            }
        }
        let mut all: Vec<(Prefix, String)> = pools.chain(blocks).collect();
        all.sort_by_key(|(prefix, _)| prefix.len128());
        let mut claims = Self { ranges: BTreeMap::new(), addresses };
        for (prefix, owner) in all {
            if claims.range(&prefix).is_none() {
                claims.ranges.insert((prefix.is_v4(), prefix.addr()), (prefix, owner));
            }
        }
        claims
    }

    /// The local object that owns an address.
    pub(super) fn owner(&self, addr: IpAddr) -> Option<&str> {
        self.overlapping(&Prefix::host(addr.into()))
    }

    /// A local object that owns some of a range.
    pub(super) fn overlapping(&self, prefix: &Prefix) -> Option<&str> {
        let first = self.addresses.range(prefix.addr()..).next();
        let address = first.filter(|(addr, _)| prefix.contains(**addr)).map(|(_, owner)| owner);
        address.map(String::as_str).or_else(|| self.range(prefix))
    }

    /// As ranges don't overlap, only the last that begins at or before a
    /// prefix and the first that begins within it can overlap it.
    fn range(&self, prefix: &Prefix) -> Option<&str> {
        let key = (prefix.is_v4(), prefix.addr());
        let before = self.ranges.range(..=key).next_back();
        let after = self.ranges.range(key..).next();
        let overlapping = before.into_iter().chain(after);
        overlapping
            .map(|(_, range)| range)
            .find_map(|(range, owner)| range.overlaps(prefix).then_some(owner.as_str()))
    }
}

/// Why no cluster can own a range, for ranges that none can.
pub(super) fn never_owned(prefix: &Prefix) -> Option<&'static str> {
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
