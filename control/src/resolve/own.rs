//! This node's own place in the overlay, and what Felix is configured to.

use tieline_dataplane::wire::Vni;

use super::vtep::{mac_v4, mac_v6};
use super::{Notes, Own};
use crate::state::{
    ClusterId, ClusterObjects, FelixConfiguration, Node, RouteSource, Severity, World,
};

/// Felix's default VNI.
const VNI: u32 = 4096;
/// Felix's default VXLAN port.
const PORT: u16 = 4789;

/// Felix's configuration for a node: the object `default`, then `node.NAME`
/// over it.
pub(super) fn felix(objects: &ClusterObjects, node: Option<&str>) -> FelixConfiguration {
    let named = |name: &str| objects.felix.get(name).map(|felix| (**felix).clone());
    let base = named("default").unwrap_or_default();
    let over = node.and_then(|node| named(&format!("node.{node}"))).unwrap_or_default();
    FelixConfiguration {
        vni: over.vni.or(base.vni),
        port: over.port.or(base.port),
        mtu_v4: over.mtu_v4.or(base.mtu_v4),
        mtu_v6: over.mtu_v6.or(base.mtu_v6),
        route_source: over.route_source.or(base.route_source),
        xdp_enabled: over.xdp_enabled.or(base.xdp_enabled),
    }
}

/// Where the routes of this node's world come from.
pub(super) fn route_source(world: &World) -> RouteSource {
    felix(&world.local, Some(&world.node)).route_source.unwrap_or_default()
}

/// This node's own place.
pub(super) fn own(world: &World, notes: &mut Notes) -> Own {
    let felix = felix(&world.local, Some(&world.node));
    let node = world.local.nodes.get(&world.node);
    match node {
        None => notes.add(
            Severity::Error,
            &ClusterId::Local,
            format!("Node {}", world.node),
            "is not among the cluster's nodes, so this node has no underlay address; correct the \
             configured node name",
        ),
        Some(node) => missing(world, node, notes),
    }
    let node = node.map(|node| (**node).clone()).unwrap_or_default();
    Own {
        underlay: [node.ipv4, node.ipv6].into_iter().flatten().map(|(addr, _)| addr).collect(),
        tunnel: [node.tunnel_v4, node.tunnel_v6].into_iter().flatten().collect(),
        mac_v4: node.mac_v4.unwrap_or_else(|| mac_v4(&world.node)),
        mac_v6: node.mac_v6.unwrap_or_else(|| mac_v6(&world.node)),
        vni: felix.vni.or(Vni::new(VNI)).unwrap_or_default(),
        port: felix.port.unwrap_or(PORT),
        mtu_v4: felix.mtu_v4,
        mtu_v6: felix.mtu_v6,
    }
}

/// Other nodes make a VTEP of this one only from its annotations.
fn missing(world: &World, node: &Node, notes: &mut Notes) {
    let v4 = node.ipv4.is_some() && node.tunnel_v4.is_some();
    let v6 = node.ipv6.is_some() && node.tunnel_v6.is_some();
    let joined = world.remotes.values().any(|remote| remote.overlay);
    if joined && !v4 && !v6 {
        notes.add(
            Severity::Error,
            &ClusterId::Local,
            format!("Node {}", world.node),
            "has no annotations projectcalico.org/IPv4Address and IPv4VXLANTunnelAddr (or those \
             for IPv6), so other clusters can't reach it; turn VXLAN on in an IPPool whose \
             nodeSelector matches it",
        );
    }
}

/// Settings that must be equal in all clusters; of a cluster that shows no
/// FelixConfiguration they are not known.
pub(super) fn check_equal(world: &World, own: &Own, notes: &mut Notes) {
    let source = |source| match source {
        RouteSource::CalicoIpam => "CalicoIPAM",
        RouteSource::WorkloadIps => "WorkloadIPs",
    };
    let ours = route_source(world);
    for (name, remote) in world.remotes.iter().filter(|(_, remote)| remote.overlay) {
        if !remote.objects.felix.contains_key("default") {
            continue;
        }
        let theirs = felix(&remote.objects, None);
        let vni = theirs.vni.map_or(VNI, Vni::get);
        let port = theirs.port.unwrap_or(PORT);
        let from = theirs.route_source.unwrap_or_default();
        let unequal = [
            ("vxlanVNI", vni != own.vni.get(), vni.to_string(), own.vni.to_string()),
            ("vxlanPort", port != own.port, port.to_string(), own.port.to_string()),
            ("routeSource", from != ours, source(from).to_owned(), source(ours).to_owned()),
        ];
        for (field, _, there, here) in unequal.into_iter().filter(|(_, unequal, ..)| *unequal) {
            notes.add(
                Severity::Error,
                &ClusterId::Remote(name.clone()),
                "FelixConfiguration default".to_owned(),
                &format!(
                    "spec.{field} is {there} there and {here} here; set it to the same value in \
                     both clusters"
                ),
            );
        }
    }
}
