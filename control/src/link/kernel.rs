//! The kernel's objects, as far as they matter here, read from its messages.
//!
//! A message that lacks what we need is no object (`None`), never an error:
//! the kernel's tables hold much that is none of our business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use tieline_dataplane::addr::Prefix;
use tieline_dataplane::wire::MacAddr;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// As `ip -d link` calls it; `None` for real hardware.
    pub(super) kind: Option<String>,
    pub(super) ethernet: bool,
    pub(super) mac: MacAddr,
    pub(super) mtu: u32,
    /// Set up by the administrator.
    pub(super) up: bool,
    /// Has carrier.
    pub(super) carrier: bool,
    /// Index of the other end, or of the device underneath.
    pub(super) lower: Option<u32>,
    /// Whether `lower` is in another network namespace.
    pub(super) lower_elsewhere: bool,
    pub(super) tx_queues: u32,
    pub(super) rx_queues: u32,
}

impl Link {
    pub(super) fn read(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: None,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            mac: MacAddr::default(),
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            lower: None,
            lower_elsewhere: false,
            tx_queues: 1,
            rx_queues: 1,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => link.lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => link.lower_elsewhere = true,
                LinkAttribute::NumTxQueues(count) => link.tx_queues = *count,
                LinkAttribute::NumRxQueues(count) => link.rx_queues = *count,
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    /// Whether packets can go out of it.
    pub(super) fn running(&self) -> bool {
        self.up && self.carrier
    }
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Veth) => Some(VETH.to_owned()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

/// The kind of a veth device.
pub(super) const VETH: &str = "veth";

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) device: u32,
    pub(super) ip: IpAddr,
    /// Length in the family's own terms.
    pub(super) prefix_len: u8,
    /// Whether another host was found to use it.
    pub(super) duplicate: bool,
}

impl Address {
    pub(super) fn read(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(given) => flags = *given,
                _ => {}
            }
        }
        Some(Self {
            device: message.header.index,
            // Of a point-to-point pair, IFA_ADDRESS is the other end's.
            ip: local.or(address)?,
            prefix_len: message.header.prefix_len,
            duplicate: flags.contains(AddressFlags::Dadfailed),
        })
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) prefix: Prefix,
    pub(super) table: u32,
    pub(super) protocol: u8,
    /// An ordinary route to a device or gateway, no blackhole or the like.
    pub(super) unicast: bool,
    /// To an address of the node itself.
    pub(super) local: bool,
    pub(super) onlink: bool,
    pub(super) device: Option<u32>,
    pub(super) next_hop: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
    pub(super) metric: u32,
}

impl Route {
    pub(super) fn read(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut destination = unspecified;
        let mut route = Self {
            prefix: Prefix::new(unspecified, 0)?,
            table: header.table.into(),
            protocol: header.protocol.into(),
            unicast: header.kind == RouteType::Unicast,
            local: header.kind == RouteType::Local,
            onlink: header.flags.contains(RouteFlags::Onlink),
            device: None,
            next_hop: None,
            source: None,
            mtu: None,
            metric: 0,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Oif(index) => route.device = Some(*index),
                RouteAttribute::Gateway(address) => route.next_hop = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => {
                    route.next_hop = Some((*address).into());
                }
                RouteAttribute::Via(RouteVia::Inet6(address)) => {
                    route.next_hop = Some((*address).into());
                }
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => route.mtu = mtu(metrics),
                _ => {}
            }
        }
        route.prefix = Prefix::new(destination, header.destination_prefix_length)?;
        Some(route)
    }
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// An entry of the neighbor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbor {
    pub(super) device: u32,
    pub(super) ip: IpAddr,
    pub(super) mac: Option<MacAddr>,
    pub(super) state: NeighbourState,
}

impl Neighbor {
    pub(super) fn read(message: &NeighbourMessage) -> Option<Self> {
        let (mut address, mut hardware) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
                _ => {}
            }
        }
        Some(Self {
            device: message.header.ifindex,
            ip: address?,
            mac: hardware,
            state: message.header.state,
        })
    }

    /// The MAC, when the state says that it may be used (`NUD_VALID` of
    /// include/net/neighbour.h).
    pub(super) fn usable_mac(&self) -> Option<MacAddr> {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        matches!(self.state, Permanent | Noarp | Reachable | Probe | Stale | Delay)
            .then_some(self.mac)
            .flatten()
    }

    /// Whether the kernel should be asked to find out the MAC, now or again.
    pub(super) fn wants_probe(&self) -> bool {
        use NeighbourState::{Failed, None, Stale};
        matches!(self.state, Stale | Failed | None)
    }
}

/// The netlink name of an address's family.
pub(super) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

#[cfg(test)]
mod tests;
