//! Routes: remote pod ranges point at the gateway.
//!
//! Ours are the routes of the main table with our protocol number on the
//! gateway device, and all of those. Any other route stays; one that takes
//! the place of ours is reported, and so is what `overlap` finds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rustix::io::Errno;
use tieline_dataplane::addr::Prefix;

use super::gateway::{NEXT_HOP_V4, NEXT_HOP_V6};
use super::kernel::{Route, family};
use super::socket::Refusal;
use super::{Gateway, LinkError, Netlink, held, sysctl};
use crate::state::{ClusterId, Condition, Severity};

/// Protocol number of our routes unless another is said: none of the `RTPROT_*`
/// of linux/rtnetlink.h, and not Felix's 80.
pub const ROUTE_PROTOCOL: u8 = 133;

/// Metric of our IPv6 routes: what `ip` gives when none is said
/// (`IP6_RT_PRIO_USER` of linux/ipv6_route.h). IPv4's is 0.
const METRIC_V6: u32 = 1024;

/// What all our routes have in common, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteSettings {
    /// Source of the node's own IPv4 packets to remote pods, used if the node
    /// holds it: its tunnel address, which the other side takes for this node.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
    /// MTU of IPv4 packets, where it is less than the gateway's.
    pub mtu_v4: Option<u32>,
    /// MTU of IPv6 packets, where it is less than the gateway's.
    pub mtu_v6: Option<u32>,
}

/// What [`Netlink::sync_routes`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that were not there.
    pub added: usize,
    /// Routes of ours that were different.
    pub replaced: usize,
    /// Routes of ours that are no longer wanted.
    pub removed: usize,
    /// What stands in the way, by prefix.
    pub conditions: Vec<Condition>,
}

/// What to do about routes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    add: Vec<Route>,
    replace: Vec<Route>,
    remove: Vec<Route>,
    /// Routes of others that take the place of ours.
    blocked: Vec<Route>,
}

fn desired(
    prefix: Prefix,
    (device, protocol): (u32, u8),
    settings: &RouteSettings,
    held: &BTreeSet<IpAddr>,
) -> Route {
    let (next_hop, source, mtu, metric) = if prefix.is_v4() {
        (NEXT_HOP_V4.into(), settings.source_v4.map(IpAddr::V4), settings.mtu_v4, 0)
    } else {
        (NEXT_HOP_V6.into(), settings.source_v6.map(IpAddr::V6), settings.mtu_v6, METRIC_V6)
    };
    Route {
        prefix,
        table: RouteHeader::RT_TABLE_MAIN.into(),
        protocol,
        unicast: true,
        local: false,
        onlink: true,
        device: Some(device),
        next_hop: Some(next_hop),
        source: source.filter(|ip| held.contains(ip)),
        mtu,
        metric,
    }
}

fn plan(
    wanted: &BTreeMap<Prefix, Route>,
    current: &[Route],
    (device, protocol): (u32, u8),
) -> Plan {
    let is_ours = |route: &&Route| route.protocol == protocol && route.device == Some(device);
    let (ours, others): (Vec<&Route>, Vec<&Route>) = current.iter().partition(is_ours);
    let mut plan = Plan::default();
    let mut blocked = BTreeSet::new();
    for other in others {
        // Of two routes to one prefix the lower metric wins, and of the same
        // metric there can be one.
        if wanted.get(&other.prefix).is_some_and(|ours| other.metric <= ours.metric)
            && blocked.insert(other.prefix)
        {
            plan.blocked.push(other.clone());
        }
    }
    let mut settled = BTreeSet::new();
    for route in ours {
        match wanted.get(&route.prefix) {
            Some(wanted) if route == wanted => _ = settled.insert(route.prefix),
            Some(wanted) if route.metric == wanted.metric => {
                settled.insert(route.prefix);
                // A replacement could hit the other's route instead of ours.
                if !blocked.contains(&route.prefix) {
                    plan.replace.push(wanted.clone());
                }
            }
            _ => plan.remove.push(route.clone()),
        }
    }
    let missing =
        |route: &&Route| !settled.contains(&route.prefix) && !blocked.contains(&route.prefix);
    plan.add.extend(wanted.values().filter(missing).cloned());
    plan
}

impl Netlink {
    /// Makes our routes be exactly those of `prefixes`. Fails only when
    /// nothing can be done at all; what stands in the way of a single route is
    /// a condition.
    pub async fn sync_routes(
        &mut self,
        prefixes: &BTreeSet<Prefix>,
        gateway: &Gateway,
        settings: &RouteSettings,
    ) -> Result<RouteChanges, LinkError> {
        let ours = (gateway.device_index, gateway.route_protocol);
        let held = held(&self.addresses().await?);
        let wanted: BTreeMap<Prefix, Route> = prefixes
            .iter()
            .map(|prefix| (*prefix, desired(*prefix, ours, settings, &held)))
            .collect();
        self.interest.watch_routes(prefixes);
        let main = self.routes_in(RouteHeader::RT_TABLE_MAIN.into()).await?;
        let plan = plan(&wanted, &main, ours);
        let mut changes =
            RouteChanges { conditions: forwarding_conditions(prefixes), ..Default::default() };
        for other in &plan.blocked {
            let condition = self.blocked_condition(other).await?;
            changes.conditions.push(condition);
        }
        let overlaps = self.overlaps(&wanted, &main, gateway.device_index).await?;
        for overlap in &overlaps {
            changes.conditions.extend(self.overlap_condition(overlap).await?);
        }
        let obstacles = plan.blocked.iter().chain(overlaps.iter().map(|overlap| &overlap.route));
        self.interest.watch_obstacles(obstacles.filter_map(|route| route.device).collect());
        for route in &plan.add {
            let outcome = self.requests.create(message(route)).await;
            changes.added += self.settle(outcome, route, gateway, &mut changes.conditions)?;
        }
        for route in &plan.replace {
            let outcome = self.requests.replace(message(route)).await;
            changes.replaced += self.settle(outcome, route, gateway, &mut changes.conditions)?;
        }
        for route in &plan.remove {
            match self.requests.change(removal(route)).await {
                Err(refusal) if refusal.is(Errno::SRCH) || refusal.is(Errno::NODEV) => {}
                Err(refusal) => return Err(refusal.of(format!("remove route {}", route.prefix))),
                Ok(()) => changes.removed += 1,
            }
        }
        Ok(changes)
    }

    /// How many routes an attempt has made; a refusal of one route is a
    /// condition of that route.
    fn settle(
        &self,
        outcome: Result<(), Refusal>,
        route: &Route,
        gateway: &Gateway,
        conditions: &mut Vec<Condition>,
    ) -> Result<usize, LinkError> {
        match outcome {
            Ok(()) => Ok(1),
            Err(Refusal::Errno(Errno::NODEV | Errno::NETDOWN)) => {
                Err(LinkError::GatewayGone { device: gateway.device.clone() })
            }
            Err(Refusal::Errno(Errno::EXIST)) => {
                let message = "another route for the same prefix appeared meanwhile; \
                               it is looked at again soon";
                conditions.push(condition(Severity::Warning, route.prefix, message.to_owned()));
                Ok(0)
            }
            Err(Refusal::Errno(errno)) => {
                let reason = std::io::Error::from(errno);
                let message = format!("the kernel does not take it: {reason}");
                conditions.push(condition(Severity::Error, route.prefix, message));
                Ok(0)
            }
            Err(refusal) => Err(refusal.of(format!("add route {}", route.prefix))),
        }
    }

    pub(super) async fn routes_in(&self, table: u32) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        let families = [IpAddr::V4(NEXT_HOP_V4), IpAddr::V6(NEXT_HOP_V6)].map(family);
        for family in families {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            match u8::try_from(table) {
                Ok(table) => message.header.table = table,
                Err(_) => message.attributes.push(RouteAttribute::Table(table)),
            }
            match self.requests.dump(RouteNetlinkMessage::GetRoute(message)).await {
                Ok(answers) => routes.extend(answers.iter().filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRoute(message) => Route::read(message),
                    _ => None,
                })),
                // A table that nobody has used yet does not exist.
                Err(Refusal::Errno(Errno::NOENT | Errno::OPNOTSUPP)) => {}
                Err(refusal) => return Err(refusal.of("list routes")),
            }
        }
        // A dump of IPv6 routes includes clones of other tables on old kernels.
        routes.retain(|route| route.table == table);
        Ok(routes)
    }

    async fn blocked_condition(&self, other: &Route) -> Result<Condition, LinkError> {
        let name = match other.device {
            Some(device) => Some(self.device_name(device).await?),
            None => None,
        };
        let message = format!(
            "the node routes it {} already, so its packets do not reach the remote cluster; \
             remove that route (ip route del {}) or stop what makes it",
            way(other, name.as_deref()),
            other.prefix,
        );
        Ok(condition(Severity::Error, other.prefix, message))
    }
}

/// Where a route leads and whose it is, as `ip` has it.
pub(super) fn way(route: &Route, device: Option<&str>) -> String {
    let mut words = Vec::new();
    words.extend(route.next_hop.map(|next_hop| format!("via {next_hop}")));
    words.extend(device.map(|device| format!("dev {device}")));
    if !route.unicast {
        words.push("as a blackhole or the like".to_owned());
    }
    words.push(format!("proto {} metric {}", route.protocol, route.metric));
    words.join(" ")
}

pub(super) fn condition(severity: Severity, prefix: Prefix, message: String) -> Condition {
    Condition { severity, cluster: ClusterId::Local, object: format!("route {prefix}"), message }
}

/// Whether the node forwards packets at all is its own business, but without
/// that nothing reaches a pod.
fn forwarding_conditions(prefixes: &BTreeSet<Prefix>) -> Vec<Condition> {
    [(true, "ipv4/ip_forward"), (false, "ipv6/conf/all/forwarding")]
        .into_iter()
        .filter(|(v4, _)| prefixes.iter().any(|prefix| prefix.is_v4() == *v4))
        .filter(|(_, name)| sysctl::read(name).as_deref() == Some("0"))
        .map(|(_, name)| {
            let setting = format!("net.{}", name.replace('/', "."));
            Condition {
                severity: Severity::Error,
                cluster: ClusterId::Local,
                object: format!("sysctl {setting}"),
                message: format!(
                    "is 0, so the node forwards nothing between pods and remote clusters; \
                     set it (sysctl -w {setting}=1)"
                ),
            }
        })
        .collect()
}

fn message(route: &Route) -> RouteNetlinkMessage {
    let mut message = identify(route);
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.header.flags = RouteFlags::Onlink;
    message.attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    let mtu = route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    message.attributes.extend(mtu);
    RouteNetlinkMessage::NewRoute(message)
}

fn removal(route: &Route) -> RouteNetlinkMessage {
    let mut message = identify(route);
    // Whatever its scope is.
    message.header.scope = RouteScope::NoWhere;
    RouteNetlinkMessage::DelRoute(message)
}

/// What tells a route from others.
fn identify(route: &Route) -> RouteMessage {
    let ip = route.prefix.addr().to_ip();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(ip),
        destination_prefix_length: route.prefix.len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(route.protocol),
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(ip.into())];
    message.attributes.extend(route.device.map(RouteAttribute::Oif));
    message.attributes.extend(route.next_hop.map(|ip| RouteAttribute::Gateway(ip.into())));
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

#[cfg(test)]
mod tests;
