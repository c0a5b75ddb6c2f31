//! Adjacency: where a frame to a VTEP's underlay address goes next.
//!
//! The kernel's routes say which device and next hop, its neighbor table says
//! the MAC. An entry that is missing or no longer confirmed makes us ask the
//! kernel to resolve it (`NTF_USE` of linux/neighbour.h), just as a packet of
//! its own would; so entries stay fresh although the kernel itself sends
//! nothing to these next hops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rustix::io::Errno;
use tokio::time::Instant;

use super::kernel::{Link, Neighbor, Route, family};
use super::socket::Refusal;
use super::{Adjacency, LinkError, Netlink};

/// Pause before the kernel is asked again for a next hop that does not answer;
/// its own three tries take about three seconds.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the kernel's routes say of a destination.
type Lookup = Result<Path, String>;

/// Device and next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Path {
    device: u32,
    next_hop: IpAddr,
    source: IpAddr,
}

/// A next hop that did not answer so far.
#[derive(Clone, Copy, Debug)]
struct Asked {
    again: Instant,
    pause: Duration,
    /// The kernel would not even ask, and why.
    refused: Option<Errno>,
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    sources: Vec<IpAddr>,
    links: BTreeMap<u32, Link>,
    lookups: BTreeMap<IpAddr, Lookup>,
    asked: BTreeMap<(u32, IpAddr), Asked>,
}

impl Resolver {
    /// The underlay's devices and our addresses on it.
    pub(super) fn leave_by(&mut self, sources: &[IpAddr], links: impl Iterator<Item = Link>) {
        self.sources = sources.to_vec();
        self.links = links.map(|link| (link.index, link)).collect();
        self.forget_lookups();
    }

    /// Routes have changed.
    pub(super) fn forget_lookups(&mut self) {
        self.lookups.clear();
    }

    /// When a next hop is due to be asked for again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asked.values().map(|asked| asked.again).min()
    }

    /// Next hops to ask for now, of these that are wanted.
    fn take_due(
        &mut self,
        wanted: &BTreeSet<(u32, IpAddr)>,
        neighbors: &BTreeMap<(u32, IpAddr), Neighbor>,
        now: Instant,
    ) -> Vec<(u32, IpAddr)> {
        let usable = |key: &(u32, IpAddr)| {
            neighbors.get(key).is_some_and(|neighbor| neighbor.usable_mac().is_some())
        };
        self.asked.retain(|key, _| wanted.contains(key) && !usable(key));
        let mut ask = Vec::new();
        for key in wanted {
            if usable(key) {
                // Of a known MAC the kernel only has to be reminded.
                ask.extend(neighbors[key].wants_probe().then_some(*key));
                continue;
            }
            let pause = match self.asked.get(key) {
                Some(asked) if asked.again > now => continue,
                Some(asked) => (asked.pause * 2).min(LONGEST_PAUSE),
                None => FIRST_PAUSE,
            };
            self.asked.insert(*key, Asked { again: now + pause, pause, refused: None });
            if neighbors.get(key).is_none_or(Neighbor::wants_probe) {
                ask.push(*key);
            }
        }
        ask
    }
}

fn resolve(
    lookup: &Lookup,
    links: &BTreeMap<u32, Link>,
    neighbors: &BTreeMap<(u32, IpAddr), Neighbor>,
    asked: &BTreeMap<(u32, IpAddr), Asked>,
) -> Adjacency {
    let unresolved = |reason| Adjacency::Unresolved { reason };
    let path = match lookup {
        Ok(path) => path,
        Err(reason) => return unresolved(reason.clone()),
    };
    let Some(link) = links.get(&path.device) else {
        return unresolved("its device has left the underlay".to_owned());
    };
    if !link.running() {
        return unresolved(format!("underlay device {} is down", link.name));
    }
    let hop = (path.device, path.next_hop);
    let refused = asked.get(&hop).and_then(|asked| asked.refused);
    match (neighbors.get(&hop).and_then(Neighbor::usable_mac), refused) {
        (Some(next_hop_mac), _) => Adjacency::Resolved {
            source: path.source,
            source_mac: link.mac,
            next_hop_mac,
            device: path.device,
        },
        (None, Some(errno)) => unresolved(format!(
            "the kernel does not resolve next hop {} on {}: {}",
            path.next_hop,
            link.name,
            std::io::Error::from(errno)
        )),
        (None, None) => unresolved(format!(
            "next hop {} on {} has not answered for its MAC address",
            path.next_hop, link.name
        )),
    }
}

impl Netlink {
    /// How the kernel reaches each of these underlay addresses, by what is
    /// known right now; the kernel is asked to find out what is not. Answers
    /// show as [`super::Changed::adjacencies`]. What the kernel refuses of one
    /// address leaves that address unresolved and no other. Ask
    /// [`Netlink::underlay`] first.
    pub async fn adjacencies(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Adjacency>, LinkError> {
        self.resolver.lookups.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !self.resolver.lookups.contains_key(address) {
                let lookup = self.look_up(*address).await?;
                self.resolver.lookups.insert(*address, lookup);
            }
        }
        let neighbors = self.neighbors().await?;
        let paths = self.resolver.lookups.values().flatten();
        let hops: BTreeSet<_> = paths.map(|path| (path.device, path.next_hop)).collect();
        for (device, next_hop) in self.resolver.take_due(&hops, &neighbors, Instant::now()) {
            let refused = self.ask_for(device, next_hop).await?;
            if let Some(asked) = self.resolver.asked.get_mut(&(device, next_hop)) {
                asked.refused = refused;
            }
        }
        self.interest.watch_adjacencies(addresses, &hops, &neighbors);
        let Resolver { links, lookups, asked, .. } = &self.resolver;
        let resolved = |(address, lookup): (&IpAddr, &Lookup)| {
            (*address, resolve(lookup, links, &neighbors, asked))
        };
        Ok(lookups.iter().map(resolved).collect())
    }

    async fn look_up(&self, address: IpAddr) -> Result<Lookup, LinkError> {
        let sources = &self.resolver.sources;
        let Some(source) = sources.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()) else {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            return Ok(Err(format!("this node has no {family} address in the underlay")));
        };
        let request = RouteNetlinkMessage::GetRoute(lookup_message(address, *source));
        let route = match self.requests.get(request).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Route::read(&message),
            Ok(_) => None,
            Err(Refusal::Errno(errno)) => return Ok(Err(why_not(address, *source, errno))),
            Err(refusal) => return Err(refusal.of(format!("look up the route to {address}"))),
        };
        match route {
            Some(route) if route.local => Ok(Err("it is an address of this node".to_owned())),
            Some(Route { device: Some(device), next_hop, .. }) => {
                if self.resolver.links.contains_key(&device) {
                    let next_hop = next_hop.unwrap_or(address);
                    return Ok(Ok(Path { device, next_hop, source: *source }));
                }
                let name = match self.device_name(device).await {
                    Err(LinkError::Refused { .. }) => format!("of index {device}"),
                    name => name?,
                };
                Ok(Err(format!(
                    "its route leaves by device {name}, which is not in the underlay; \
                     correct the route, or name the device under underlay.devices"
                )))
            }
            _ => Ok(Err(why_not(address, *source, Errno::NETUNREACH))),
        }
    }

    /// Asks the kernel to resolve a next hop; answers with what it says when it
    /// does not want to. A device that has just gone or is down is one reason,
    /// a full neighbor table another.
    async fn ask_for(&self, device: u32, next_hop: IpAddr) -> Result<Option<Errno>, LinkError> {
        match self.requests.replace(use_message(device, next_hop)).await {
            Ok(()) => Ok(None),
            Err(Refusal::Errno(errno)) => Ok(Some(errno)),
            Err(refusal) => Err(refusal.of(format!("resolve neighbor {next_hop}"))),
        }
    }
}

/// What the kernel's refusal of a route means. None is more than a matter of
/// this address: another one may well have a route.
fn why_not(address: IpAddr, source: IpAddr, errno: Errno) -> String {
    match errno {
        Errno::NETUNREACH | Errno::HOSTUNREACH => {
            format!("the node has no route to {address}; add one")
        }
        // A blackhole, prohibit or throw route, or a source that has just gone.
        Errno::INVAL | Errno::ACCESS | Errno::AGAIN => {
            format!("the node's routes reject {address} from {source}")
        }
        _ => {
            let error = std::io::Error::from(errno);
            format!("the kernel gives no route to {address} from {source}: {error}")
        }
    }
}

fn lookup_message(address: IpAddr, source: IpAddr) -> RouteMessage {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = length;
    message.header.source_prefix_length = length;
    message.attributes =
        vec![RouteAttribute::Destination(address.into()), RouteAttribute::Source(source.into())];
    message
}

fn use_message(device: u32, next_hop: IpAddr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: family(next_hop),
        ifindex: device,
        flags: NeighbourFlags::Use,
        ..NeighbourHeader::default()
    };
    message.attributes = vec![NeighbourAttribute::Destination(match next_hop {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => ip.into(),
    })];
    RouteNetlinkMessage::NewNeighbour(message)
}

#[cfg(test)]
mod tests;
