//! What of the kernel's events matters.
//!
//! An event matters when it shows something else than what was seen at the
//! last look ([`Interest`]); a node's kernel tells of much more than that.
//! When events were lost, everything may have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::BitOrAssign;
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::wire::MacAddr;
use tokio::time::Instant;

use super::gateway::{GatewaySpec, is_ours, next_hops};
use super::kernel::{Address, Link, Neighbor, Route};
use super::socket::Event;
use super::vxlan::Receiver;
use super::{LinkError, Netlink};

/// How long events are gathered after the first that matters.
const GATHER: Duration = Duration::from_millis(20);

/// Everything is looked at again this often, whatever the events say.
const RESYNC: Duration = Duration::from_secs(90);

/// What is due again, each named after the method of [`Netlink`] to call, in
/// this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The gateway is not as it was set up: [`Netlink::ensure_gateway`].
    pub gateway: bool,
    /// Underlay devices or addresses have changed: [`Netlink::underlay`].
    pub underlay: bool,
    /// Routes or neighbors of VTEPs have changed: [`Netlink::adjacencies`].
    pub adjacencies: bool,
    /// Our routes have changed or can be improved: [`Netlink::sync_routes`].
    pub routes: bool,
    /// The kernel's own vxlan devices have changed: [`Netlink::receivers`].
    pub receivers: bool,
}

impl Changed {
    /// Everything may have changed.
    pub const ALL: Self =
        Self { gateway: true, underlay: true, adjacencies: true, routes: true, receivers: true };
    const NOTHING: Self = Self {
        gateway: false,
        underlay: false,
        adjacencies: false,
        routes: false,
        receivers: false,
    };
    const GATEWAY: Self = Self { gateway: true, routes: true, ..Self::NOTHING };
    const UNDERLAY: Self = Self { underlay: true, adjacencies: true, ..Self::NOTHING };

    /// Whether anything is due.
    pub fn any(self) -> bool {
        self != Self::NOTHING
    }
}

impl BitOrAssign for Changed {
    fn bitor_assign(&mut self, other: Self) {
        self.gateway |= other.gateway;
        self.underlay |= other.underlay;
        self.adjacencies |= other.adjacencies;
        self.routes |= other.routes;
        self.receivers |= other.receivers;
    }
}

/// Deadlines of [`Netlink::changed`]; kept outside of it, so that dropping its
/// future loses nothing.
#[derive(Debug, Default)]
pub(super) struct Timers {
    gathered: Option<Instant>,
    resync: Option<Instant>,
}

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(super) struct Interest {
    own_port: u32,
    gateway_names: Vec<String>,
    gateway_links: BTreeMap<u32, Link>,
    tunnel_addresses: BTreeSet<IpAddr>,
    route_protocol: u8,
    underlay_names: Vec<String>,
    underlay_links: BTreeMap<u32, Link>,
    underlay_addresses: BTreeSet<IpAddr>,
    underlay_held: BTreeSet<(u32, IpAddr)>,
    /// By family (IPv4 first), so that the range of a prefix is one range.
    vteps: BTreeSet<(bool, Addr)>,
    /// The MAC of each, if it was usable.
    next_hops: BTreeMap<(u32, IpAddr), Option<MacAddr>>,
    prefixes: BTreeSet<Prefix>,
    /// Lengths that they have, over 128 bits.
    prefix_lens: BTreeSet<u8>,
    /// Devices of others' routes that stand in the way of ours.
    obstacles: BTreeSet<u32>,
    /// By index; nothing before they were looked for.
    receivers: Option<BTreeMap<u32, Receiver>>,
}

impl Interest {
    /// Events brought about by requests from `own_port` don't count.
    pub(super) fn new(own_port: u32) -> Self {
        Self { own_port, ..Self::default() }
    }

    pub(super) fn watch_gateway(&mut self, spec: &GatewaySpec, links: [Link; 2]) {
        self.gateway_names = vec![spec.device.clone(), spec.peer.clone()];
        self.gateway_links = links.map(|link| (link.index, link)).into();
        self.route_protocol = spec.route_protocol;
        self.tunnel_addresses = spec.tunnel_addresses.iter().copied().collect();
    }

    pub(super) fn forget_gateway(&mut self) {
        self.gateway_names.clear();
        self.gateway_links.clear();
        self.tunnel_addresses.clear();
        self.prefixes.clear();
    }

    pub(super) fn watch_routes(&mut self, prefixes: &BTreeSet<Prefix>) {
        self.prefixes.clone_from(prefixes);
        self.prefix_lens = prefixes.iter().map(Prefix::len128).collect();
    }

    /// Routes of these devices stand in the way of ours: of those that go with
    /// their device the kernel tells nothing.
    pub(super) fn watch_obstacles(&mut self, devices: BTreeSet<u32>) {
        self.obstacles = devices;
    }

    pub(super) fn watch_receivers(&mut self, receivers: BTreeMap<u32, Receiver>) {
        self.receivers = Some(receivers);
    }

    pub(super) fn watch_underlay(
        &mut self,
        addresses: &[IpAddr],
        names: &[String],
        links: &BTreeMap<u32, Link>,
        current: &[Address],
    ) {
        self.underlay_names = names.to_vec();
        self.underlay_links.clone_from(links);
        self.underlay_addresses = addresses.iter().copied().collect();
        let held = current.iter().filter(|held| addresses.contains(&held.ip));
        self.underlay_held = held.map(|held| (held.device, held.ip)).collect();
    }

    pub(super) fn watch_adjacencies(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        next_hops: &BTreeSet<(u32, IpAddr)>,
        neighbors: &BTreeMap<(u32, IpAddr), Neighbor>,
    ) {
        self.vteps = addresses.iter().map(|ip| (ip.is_ipv6(), Addr::from(*ip))).collect();
        let usable = |key| neighbors.get(key).and_then(Neighbor::usable_mac);
        self.next_hops = next_hops.iter().map(|key| (*key, usable(key))).collect();
    }

    /// What is due because of this event.
    pub(super) fn judge(&self, event: &Event) -> Changed {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewAddress, NewLink,
            NewNeighbour, NewRoute, NewRule,
        };
        let message = match &event.payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Changed::ALL,
            _ => return Changed::NOTHING,
        };
        let own = event.header.port_number == self.own_port;
        match message {
            // The gateway's devices are seen again after we have changed them.
            NewLink(link) | DelLink(link) if is_bridge_port(link) => None,
            NewLink(link) => Link::read(link).map(|seen| {
                let mut changed = self.link_seen(&seen);
                changed.receivers = self.receiver(seen.index, Receiver::read(link).as_ref());
                changed
            }),
            DelLink(link) => {
                let index = link.header.index;
                let mut changed = self.link_gone(index);
                changed.receivers = self.receiver(index, None);
                Some(changed)
            }
            NewRoute(_) | DelRoute(_) | NewNeighbour(_) | DelNeighbour(_) if own => None,
            NewAddress(address) if !own => Address::read(address).map(|a| self.address(&a, true)),
            DelAddress(address) if !own => Address::read(address).map(|a| self.address(&a, false)),
            NewRoute(route) | DelRoute(route) => Route::read(route).map(|r| self.route(&r)),
            NewNeighbour(neighbor) => Neighbor::read(neighbor).map(|n| self.neighbor(&n, true)),
            DelNeighbour(neighbor) => Neighbor::read(neighbor).map(|n| self.neighbor(&n, false)),
            NewRule(_) | DelRule(_) => {
                Some(Changed { adjacencies: true, routes: true, ..Changed::NOTHING })
            }
            _ => None,
        }
        .unwrap_or_default()
    }

    fn link_seen(&self, link: &Link) -> Changed {
        let mut changed = Changed::NOTHING;
        let differs = |known: &BTreeMap<u32, Link>, names: &[String]| {
            known.get(&link.index).map_or(names.contains(&link.name), |known| known != link)
        };
        if differs(&self.gateway_links, &self.gateway_names) {
            changed |= Changed::GATEWAY;
        }
        if differs(&self.underlay_links, &self.underlay_names) {
            changed |= Changed::UNDERLAY;
        }
        changed.routes |= !link.up && self.obstacles.contains(&link.index);
        changed
    }

    /// Whether a device is another receiver than it was, or none any more.
    fn receiver(&self, index: u32, now: Option<&Receiver>) -> bool {
        self.receivers.as_ref().is_some_and(|known| known.get(&index) != now)
    }

    fn link_gone(&self, index: u32) -> Changed {
        let mut changed = Changed::NOTHING;
        if self.gateway_links.contains_key(&index) {
            changed |= Changed::GATEWAY;
        }
        if self.underlay_links.contains_key(&index) {
            changed |= Changed::UNDERLAY;
        }
        changed.routes |= self.obstacles.contains(&index);
        changed
    }

    fn address(&self, address: &Address, added: bool) -> Changed {
        let mut changed = Changed::NOTHING;
        if self.gateway_links.contains_key(&address.device)
            || self.tunnel_addresses.contains(&address.ip)
        {
            changed |= Changed::GATEWAY;
        }
        // A lease that is renewed shows as the same address again.
        let known = self.underlay_held.contains(&(address.device, address.ip));
        if self.underlay_addresses.contains(&address.ip) && (!added || !known || address.duplicate)
        {
            changed |= Changed::UNDERLAY;
        }
        changed
    }

    fn route(&self, route: &Route) -> Changed {
        let ours = route.protocol == self.route_protocol
            && route.device.is_some_and(|index| self.gateway_links.contains_key(&index));
        let first = (!route.prefix.is_v4(), route.prefix.addr());
        let next = self.vteps.range(first..).next();
        Changed {
            routes: ours || self.shares(&route.prefix),
            adjacencies: next.is_some_and(|(_, vtep)| route.prefix.contains(*vtep)),
            ..Changed::NOTHING
        }
    }

    /// Whether a prefix has addresses of one of our routes. A default route
    /// has those of all, and takes nothing from any.
    fn shares(&self, prefix: &Prefix) -> bool {
        let (addr, offset) = (prefix.addr().to_ip(), prefix.len128() - prefix.len());
        let mut lens = self.prefix_lens.iter().filter(|len| **len <= prefix.len128());
        let around = lens.any(|len| {
            Prefix::new(addr, len.saturating_sub(offset))
                .is_some_and(|around| self.prefixes.contains(&around))
        });
        let next = self.prefixes.range(prefix..).next();
        around || (!prefix.is_empty() && next.is_some_and(|next| next.overlaps(prefix)))
    }

    fn neighbor(&self, neighbor: &Neighbor, added: bool) -> Changed {
        if self.gateway_links.contains_key(&neighbor.device) {
            let wanted = next_hops().any(|ip| ip == neighbor.ip);
            let right = added && is_ours(neighbor);
            return if wanted && !right { Changed::GATEWAY } else { Changed::NOTHING };
        }
        let usable = added.then(|| neighbor.usable_mac()).flatten();
        // Each look asks for what is stale, so that the next time it becomes
        // stale is news; one without a MAC is asked for when its pause is over.
        let refresh = usable.is_some() && neighbor.wants_probe();
        let known = self.next_hops.get(&(neighbor.device, neighbor.ip));
        let adjacencies = known.is_some_and(|known| refresh || *known != usable);
        Changed { adjacencies, ..Changed::NOTHING }
    }
}

/// Whether a message is of a bridge about its port, not of the device.
fn is_bridge_port(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Bridge
}

impl Netlink {
    /// Waits until something is due again. Events that come close together are
    /// told at once; dropping the future loses none. When the kernel had to
    /// drop events, and now and then in any case, everything is due.
    pub async fn changed(&mut self) -> Result<Changed, LinkError> {
        loop {
            if !self.pending.any() {
                self.timers.gathered = None;
            }
            let resync = *self.timers.resync.get_or_insert_with(|| Instant::now() + RESYNC);
            let deadline = match (self.pending.any(), self.timers.gathered) {
                (true, Some(gathered)) => gathered,
                (true, None) => *self.timers.gathered.insert(Instant::now() + GATHER),
                (false, _) => self.resolver.due().map_or(resync, |due| due.min(resync)),
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline) => {
                    if self.pending.any() {
                        return Ok(std::mem::take(&mut self.pending));
                    }
                    self.deadline_passed();
                }
                event = self.events.next() => match event {
                    Some((event, _)) => self.gather(&event),
                    None => return Err(LinkError::Closed),
                },
            }
        }
    }

    fn deadline_passed(&mut self) {
        let now = Instant::now();
        if self.timers.resync.is_some_and(|resync| resync <= now) {
            self.timers.resync = None;
            self.resolver.forget_lookups();
            self.pending = Changed::ALL;
        } else {
            self.pending.adjacencies = true;
        }
    }

    fn gather(&mut self, event: &Event) {
        use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
        let changed = self.interest.judge(event);
        let neighbor = matches!(
            event.payload,
            NetlinkPayload::InnerMessage(NewNeighbour(_) | DelNeighbour(_))
        );
        // Neighbors don't change where a route leads.
        if changed.adjacencies && !neighbor {
            self.resolver.forget_lookups();
        }
        self.pending |= changed;
    }
}

#[cfg(test)]
mod tests;
