//! The gateway: a veth pair between the kernel and the workers.
//!
//! The kernel's end carries the routes to remote pods, by way of two next hops
//! that exist only as permanent neighbor entries. Their MAC is nobody's: a
//! frame that no worker takes off the other end is dropped there as meant for
//! another host, instead of being routed back in a circle.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState,
};
use rustix::io::Errno;
use tieline_dataplane::wire::MacAddr;

use super::kernel::{Address, Link, Neighbor, VETH, family};
use super::{LinkError, Netlink, ROUTE_PROTOCOL, sysctl};

/// Next hop of the IPv4 routes; link-local, so it is nobody's real address.
pub(super) const NEXT_HOP_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 133, 1);
/// Next hop of the IPv6 routes.
pub(super) const NEXT_HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x133, 1);

// Locally administered, and set rather than left to chance: then neither the
// kernel nor udev picks others.
const DEVICE_MAC: MacAddr = MacAddr([0x02, 0x74, 0x69, 0x65, 0x00, 0x00]);
const PEER_MAC: MacAddr = MacAddr([0x02, 0x74, 0x69, 0x65, 0x00, 0x01]);
const NEIGHBOR_MAC: MacAddr = MacAddr([0x02, 0x74, 0x69, 0x65, 0x00, 0x02]);

/// How often the pair is looked at again until it is as it should be.
const ROUNDS: usize = 6;

/// What the gateway should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Name of the kernel's end.
    pub device: String,
    /// Name of the workers' end.
    pub peer: String,
    /// MTU of both ends, in bytes of IP packet: what the underlay carries less
    /// the outer headers.
    pub mtu: u32,
    /// Queues of each end; `None` takes what is there, or one.
    pub queues: Option<u32>,
    /// Our own addresses within the overlay, which the kernel's end holds as
    /// far as no other device does.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Protocol number of our routes (`rtm_protocol` of rtnetlink(7)), by which
    /// we know them again.
    pub route_protocol: u8,
}

impl GatewaySpec {
    /// The pair `tieline0` and `tieline1` with this MTU and nothing else.
    pub fn new(mtu: u32) -> Self {
        Self {
            device: "tieline0".to_owned(),
            peer: "tieline1".to_owned(),
            mtu,
            queues: None,
            tunnel_addresses: Vec::new(),
            route_protocol: ROUTE_PROTOCOL,
        }
    }

    fn foreign(&self, device: &str, found: String) -> LinkError {
        let pair = format!("{} and {}", self.device, self.peer);
        LinkError::ForeignDevice { device: device.to_owned(), found, pair }
    }
}

/// The gateway as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Name of the kernel's end.
    pub device: String,
    /// Index of the kernel's end.
    pub device_index: u32,
    /// MAC of the kernel's end: destination of frames to the kernel.
    pub device_mac: MacAddr,
    /// Name of the workers' end.
    pub peer: String,
    /// Index of the workers' end.
    pub peer_index: u32,
    /// MAC that the kernel sends to: destination of frames from the kernel,
    /// source of frames to it. Not the MAC of any device.
    pub neighbor_mac: MacAddr,
    /// MTU of both ends.
    pub mtu: u32,
    /// Queues of each end.
    pub queues: u32,
    /// Protocol number of our routes.
    pub route_protocol: u8,
    /// Whether the pair was there already when it was first looked for.
    pub adopted: bool,
}

impl Gateway {
    /// Whether the kernel takes what comes out of it, whichever way the answer
    /// goes. Who writes settings of new devices may do so after us, and of that
    /// no event tells.
    pub fn is_open(&self) -> bool {
        let filter = sysctl::read(&format!("ipv4/conf/{}/rp_filter", self.device));
        filter.is_none_or(|filter| filter == LOOSE)
    }
}

/// What to do about the two devices.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Create,
    /// Ours, but with another number of queues, which can't be changed.
    Recreate,
    Keep([Repair; 2]),
}

/// What to change of one end; nothing when all is `None` and not `up`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Repair {
    index: u32,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
    up: bool,
}

impl Repair {
    fn of(link: &Link, mac: MacAddr, mtu: u32) -> Self {
        Self {
            index: link.index,
            mac: (link.mac != mac).then_some(mac),
            mtu: (link.mtu != mtu).then_some(mtu),
            up: !link.up,
        }
    }

    fn is_empty(&self) -> bool {
        self.mac.is_none() && self.mtu.is_none() && !self.up
    }
}

fn plan(spec: &GatewaySpec, device: Option<&Link>, peer: Option<&Link>) -> Result<Plan, LinkError> {
    let (device, peer) = match (device, peer) {
        (None, None) => return Ok(Plan::Create),
        (Some(only), None) => return Err(spec.foreign(&spec.device, describe(only, &spec.peer))),
        (None, Some(only)) => return Err(spec.foreign(&spec.peer, describe(only, &spec.device))),
        (Some(device), Some(peer)) => (device, peer),
    };
    for (end, other) in [(device, peer), (peer, device)] {
        if end.kind.as_deref() != Some(VETH) || !is_end_of(end, other) {
            return Err(spec.foreign(&end.name, describe(end, &other.name)));
        }
    }
    let fits = |link: &Link, queues| link.tx_queues == queues && link.rx_queues == queues;
    if spec.queues.is_some_and(|queues| !fits(device, queues) || !fits(peer, queues)) {
        return Ok(Plan::Recreate);
    }
    let repairs = [Repair::of(device, DEVICE_MAC, spec.mtu), Repair::of(peer, PEER_MAC, spec.mtu)];
    Ok(Plan::Keep(repairs))
}

fn is_end_of(end: &Link, other: &Link) -> bool {
    end.lower == Some(other.index) && !end.lower_elsewhere
}

fn describe(link: &Link, other: &str) -> String {
    match link.kind.as_deref() {
        Some(VETH) => format!("a veth device whose other end is not {other}"),
        Some(kind) => format!("a {kind} device"),
        None => "no virtual device".to_owned(),
    }
}

/// Which addresses to add to the gateway and which to take off it.
fn plan_addresses(
    wanted: &[IpAddr],
    current: &[Address],
    device: u32,
) -> (Vec<IpAddr>, Vec<Address>) {
    let (on_gateway, elsewhere): (Vec<_>, Vec<_>) =
        current.iter().partition(|address| address.device == device);
    let elsewhere: BTreeSet<IpAddr> = elsewhere.iter().map(|address| address.ip).collect();
    let wanted: BTreeSet<IpAddr> =
        wanted.iter().copied().filter(|ip| !elsewhere.contains(ip)).collect();
    let right = |address: &Address| {
        wanted.contains(&address.ip) && address.prefix_len == host_length(address.ip)
    };
    let (keep, remove): (Vec<_>, Vec<_>) = on_gateway.into_iter().partition(|a| right(a));
    let keep: BTreeSet<IpAddr> = keep.iter().map(|address| address.ip).collect();
    let add = wanted.difference(&keep).copied().collect();
    (add, remove.into_iter().cloned().collect())
}

fn host_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Of `rp_filter`: a source is fine if there is a route to it at all. The kernel
/// takes the greater of a device's and that for all devices, so 0 may mean
/// strict.
const LOOSE: &str = "2";

/// Settings of both ends. They are written before the devices are up, so that
/// no address is made and no router asked for.
fn settings(spec: &GatewaySpec) -> Result<(), LinkError> {
    let (device, peer) = (&spec.device, &spec.peer);
    // The way back to an address behind the gateway need not be the gateway:
    // a remote's range may be routed elsewhere for a moment.
    sysctl::ensure(&format!("ipv4/conf/{device}/rp_filter"), LOOSE)?;
    sysctl::ensure(&format!("ipv4/conf/{device}/send_redirects"), "0")?;
    // A node that forwards may still have new devices that don't.
    if sysctl::read("ipv4/ip_forward").as_deref() == Some("1") {
        sysctl::ensure(&format!("ipv4/conf/{device}/forwarding"), "1")?;
    }
    if sysctl::has_ipv6() {
        sysctl::ensure(&format!("ipv6/conf/{peer}/disable_ipv6"), "1")?;
        for (name, value) in [
            ("addr_gen_mode", "1"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("router_solicitations", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("disable_ipv6", "0"),
        ] {
            sysctl::ensure(&format!("ipv6/conf/{device}/{name}"), value)?;
        }
    }
    Ok(())
}

impl Netlink {
    /// Makes the gateway be what `spec` says: creates the pair, or adopts it
    /// and repairs its settings. A device of another kind that has one of the
    /// names is an error and stays as it is.
    ///
    /// Checksum and segmentation offloads of the kernel's end are left to the
    /// caller, who has the ioctl for it.
    pub async fn ensure_gateway(&mut self, spec: &GatewaySpec) -> Result<Gateway, LinkError> {
        let mut adopted = true;
        for _ in 0..ROUNDS {
            let device = self.link_named(&spec.device).await?;
            let peer = self.link_named(&spec.peer).await?;
            match (plan(spec, device.as_ref(), peer.as_ref())?, device, peer) {
                (Plan::Keep(repairs), Some(device), Some(peer)) => {
                    settings(spec)?;
                    if repairs.iter().all(Repair::is_empty) {
                        self.address_gateway(spec, device.index).await?;
                        self.interest.watch_gateway(spec, [device.clone(), peer.clone()]);
                        return Ok(gateway(spec, device, peer, adopted));
                    }
                    for repair in repairs.iter().filter(|repair| !repair.is_empty()) {
                        self.repair(repair, &spec.device).await?;
                    }
                }
                (Plan::Recreate, Some(device), _) => self.delete_device(&device).await?,
                _ => {
                    adopted = false;
                    self.create_pair(spec).await?;
                }
            }
        }
        Err(LinkError::GatewayContested { device: spec.device.clone() })
    }

    /// Removes the gateway pair and with it our routes and neighbors. Devices
    /// that are not ours stay.
    pub async fn remove(&mut self, spec: &GatewaySpec) -> Result<(), LinkError> {
        let device = self.link_named(&spec.device).await?;
        let peer = self.link_named(&spec.peer).await?;
        self.interest.forget_gateway();
        let ours = !matches!(plan(spec, device.as_ref(), peer.as_ref()), Ok(Plan::Create) | Err(_));
        match device {
            Some(device) if ours => self.delete_device(&device).await,
            _ => Ok(()),
        }
    }

    async fn create_pair(&self, spec: &GatewaySpec) -> Result<(), LinkError> {
        let end = |name: &str, mac: MacAddr| {
            let queues = spec.queues.unwrap_or(1);
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Address(mac.0.to_vec()),
                LinkAttribute::Mtu(spec.mtu),
                LinkAttribute::NumTxQueues(queues),
                LinkAttribute::NumRxQueues(queues),
            ];
            message
        };
        let mut message = end(&spec.device, DEVICE_MAC);
        let peer = InfoVeth::Peer(end(&spec.peer, PEER_MAC));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(peer)),
        ]));
        match self.requests.create(RouteNetlinkMessage::NewLink(message)).await {
            // Someone was faster; the next look decides whose it is.
            Err(refusal) if refusal.is(Errno::EXIST) => Ok(()),
            outcome => outcome.map_err(|refusal| {
                refusal.of(format!("create the gateway pair {} and {}", spec.device, spec.peer))
            }),
        }
    }

    async fn repair(&self, repair: &Repair, device: &str) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = repair.index;
        if repair.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes.extend(repair.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(repair.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        match self.requests.change(RouteNetlinkMessage::SetLink(message)).await {
            Err(refusal) if refusal.is(Errno::NODEV) => Ok(()),
            outcome => outcome.map_err(|refusal| {
                let mtu = repair.mtu.map(|mtu| format!(" to MTU {mtu}")).unwrap_or_default();
                refusal.of(format!("set up gateway device {device}{mtu}"))
            }),
        }
    }

    async fn delete_device(&self, link: &Link) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match self.requests.change(RouteNetlinkMessage::DelLink(message)).await {
            Err(refusal) if refusal.is(Errno::NODEV) => Ok(()),
            outcome => {
                outcome.map_err(|refusal| refusal.of(format!("remove device {}", link.name)))
            }
        }
    }

    /// Next hops and tunnel addresses of the kernel's end.
    async fn address_gateway(&self, spec: &GatewaySpec, device: u32) -> Result<(), LinkError> {
        let neighbors = self.neighbors().await?;
        for ip in next_hops() {
            if neighbors.get(&(device, ip)).is_some_and(is_ours) {
                continue;
            }
            let outcome = self.requests.replace(neighbor_message(device, ip)).await;
            outcome.map_err(|refusal| {
                refusal.of(format!("add neighbor {ip} to device {}", spec.device))
            })?;
        }
        let addresses = self.addresses().await?;
        let (add, remove) = plan_addresses(&spec.tunnel_addresses, &addresses, device);
        for ip in add {
            let message = address_message(device, ip, host_length(ip));
            let outcome = self.requests.replace(RouteNetlinkMessage::NewAddress(message)).await;
            outcome.map_err(|refusal| {
                refusal.of(format!("add address {ip} to device {}", spec.device))
            })?;
        }
        for address in remove {
            let message = address_message(device, address.ip, address.prefix_len);
            match self.requests.change(RouteNetlinkMessage::DelAddress(message)).await {
                Err(refusal) if refusal.is(Errno::ADDRNOTAVAIL) => {}
                outcome => outcome.map_err(|refusal| {
                    let ip = address.ip;
                    refusal.of(format!("remove address {ip} from device {}", spec.device))
                })?,
            }
        }
        Ok(())
    }
}

fn gateway(spec: &GatewaySpec, device: Link, peer: Link, adopted: bool) -> Gateway {
    Gateway {
        device_index: device.index,
        device_mac: device.mac,
        mtu: device.mtu,
        queues: device.rx_queues,
        device: device.name,
        peer_index: peer.index,
        peer: peer.name,
        neighbor_mac: NEIGHBOR_MAC,
        route_protocol: spec.route_protocol,
        adopted,
    }
}

/// The next hops of the families that the kernel speaks.
pub(super) fn next_hops() -> impl Iterator<Item = IpAddr> {
    let v6 = sysctl::has_ipv6().then_some(IpAddr::V6(NEXT_HOP_V6));
    [IpAddr::V4(NEXT_HOP_V4)].into_iter().chain(v6)
}

/// Whether a neighbor entry of the gateway is as we make them.
pub(super) fn is_ours(neighbor: &Neighbor) -> bool {
    neighbor.state == NeighbourState::Permanent && neighbor.mac == Some(NEIGHBOR_MAC)
}

fn neighbor_message(device: u32, ip: IpAddr) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: family(ip),
        ifindex: device,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }),
        NeighbourAttribute::LinkLayerAddress(NEIGHBOR_MAC.0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn address_message(device: u32, ip: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header =
        AddressHeader { family: family(ip), prefix_len, index: device, ..Default::default() };
    message.attributes = vec![
        AddressAttribute::Local(ip),
        AddressAttribute::Address(ip),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    message
}

#[cfg(test)]
mod tests;
