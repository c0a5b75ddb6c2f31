use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::{NetlinkHeader, NetlinkMessage};

use super::super::ROUTE_PROTOCOL;
use super::*;

const OWN_PORT: u32 = 4711;
const GATEWAY: u32 = 4;
const UPLINK: u32 = 2;

const ADJACENCIES: Changed = Changed { adjacencies: true, ..Changed::NOTHING };
const ROUTES: Changed = Changed { routes: true, ..Changed::NOTHING };

fn event(message: RouteNetlinkMessage) -> Event {
    let mut event = NetlinkMessage::from(message);
    event.header.port_number = 1;
    event
}

fn link(index: u32, name: &str, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Mtu(mtu)];
    message
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn neighbor(device: u32, address: &str, last: u8, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = device;
    message.header.state = state;
    message.attributes = vec![
        NeighbourAttribute::Destination(match ip(address) {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, last]),
    ];
    message
}

fn route(text: &str, protocol: u8, device: u32) -> RouteMessage {
    let prefix: Prefix = text.parse().unwrap();
    let address = prefix.addr().to_ip();
    let mut message = RouteMessage::default();
    message.header.address_family = super::super::kernel::family(address);
    message.header.destination_prefix_length = prefix.len();
    message.header.protocol = protocol.into();
    message.attributes =
        vec![RouteAttribute::Destination(address.into()), RouteAttribute::Oif(device)];
    message
}

/// A node with a gateway, an uplink, one VTEP of each family and two routes.
fn interest() -> Interest {
    let mut interest = Interest::new(OWN_PORT);
    let read = |message: &LinkMessage| Link::read(message).unwrap();
    let pair = [read(&link(GATEWAY, "tieline0", 1450)), read(&link(5, "tieline1", 1450))];
    let spec = GatewaySpec { tunnel_addresses: vec![ip("10.9.0.1")], ..GatewaySpec::new(1450) };
    interest.watch_gateway(&spec, pair);
    let own = ip("192.0.2.10");
    let held = Address { device: UPLINK, ip: own, prefix_len: 24, duplicate: false };
    let links = BTreeMap::from([(UPLINK, read(&link(UPLINK, "eth0", 1500)))]);
    interest.watch_underlay(&[own], &["eth0".to_owned()], &links, &[held]);
    let table = neighbor(UPLINK, "192.0.2.1", 1, NeighbourState::Reachable);
    let table = BTreeMap::from([((UPLINK, ip("192.0.2.1")), Neighbor::read(&table).unwrap())]);
    let vteps = BTreeSet::from([ip("203.0.113.7"), ip("fd00:3::7")]);
    interest.watch_adjacencies(&vteps, &BTreeSet::from([(UPLINK, ip("192.0.2.1"))]), &table);
    interest.watch_routes(&BTreeSet::from(["10.60.0.0/26".parse().unwrap()]));
    interest
}

#[track_caller]
fn check(message: RouteNetlinkMessage, expected: Changed) {
    assert_eq!(interest().judge(&event(message)), expected);
}

#[test]
fn devices_count_when_they_differ() {
    use RouteNetlinkMessage::{DelLink, NewLink};
    check(NewLink(link(GATEWAY, "tieline0", 1450)), Changed::NOTHING);
    check(NewLink(link(GATEWAY, "tieline0", 1400)), Changed::GATEWAY);
    check(NewLink(link(GATEWAY, "renamed", 1450)), Changed::GATEWAY);
    check(NewLink(link(77, "tieline1", 1450)), Changed::GATEWAY);
    check(NewLink(link(UPLINK, "eth0", 1500)), Changed::NOTHING);
    check(NewLink(link(UPLINK, "eth0", 9000)), Changed::UNDERLAY);
    check(NewLink(link(77, "eth0", 1500)), Changed::UNDERLAY);
    check(NewLink(link(77, "cali123", 1500)), Changed::NOTHING);
    check(DelLink(link(GATEWAY, "tieline0", 1450)), Changed::GATEWAY);
    check(DelLink(link(UPLINK, "eth0", 1500)), Changed::UNDERLAY);
    check(DelLink(link(77, "cali123", 1500)), Changed::NOTHING);
    let mut of_bridge = link(UPLINK, "eth0", 1500);
    of_bridge.header.interface_family = AddressFamily::Bridge;
    check(DelLink(of_bridge), Changed::NOTHING);
    let mut down = link(UPLINK, "eth0", 1500);
    down.header.flags = LinkFlags::Up;
    check(NewLink(down), Changed::UNDERLAY);
}

#[test]
fn addresses_count_when_they_are_the_nodes() {
    use RouteNetlinkMessage::{DelAddress, NewAddress};
    use netlink_packet_route::address::{AddressAttribute, AddressMessage};
    let address = |device, text: &str| {
        let mut message = AddressMessage::default();
        message.header.index = device;
        message.attributes = vec![AddressAttribute::Address(ip(text))];
        message
    };
    check(NewAddress(address(UPLINK, "192.0.2.10")), Changed::NOTHING);
    check(NewAddress(address(77, "192.0.2.10")), Changed::UNDERLAY);
    check(DelAddress(address(UPLINK, "192.0.2.10")), Changed::UNDERLAY);
    check(NewAddress(address(UPLINK, "192.0.2.99")), Changed::NOTHING);
    check(NewAddress(address(77, "10.9.0.1")), Changed::GATEWAY);
    check(NewAddress(address(GATEWAY, "10.8.0.1")), Changed::GATEWAY);
}

#[test]
fn routes_count_when_they_are_ours_or_lead_to_a_vtep() {
    use RouteNetlinkMessage::{DelRoute, NewRoute};
    check(DelRoute(route("10.61.0.0/26", ROUTE_PROTOCOL, GATEWAY)), ROUTES);
    check(DelRoute(route("10.61.0.0/26", ROUTE_PROTOCOL, 77)), Changed::NOTHING);
    check(NewRoute(route("10.60.0.0/26", 12, 77)), ROUTES);
    check(NewRoute(route("10.65.0.1/32", 80, 77)), Changed::NOTHING);
    // To a part of a range, or to more than it.
    for overlapping in ["10.60.0.8/29", "10.60.0.63/32", "10.0.0.0/8"] {
        check(NewRoute(route(overlapping, 12, 77)), ROUTES);
    }
    for beside in ["10.60.0.64/32", "10.59.255.255/32", "10.60.1.0/24", "10.61.0.0/16"] {
        check(NewRoute(route(beside, 12, 77)), Changed::NOTHING);
    }
    for covering in ["203.0.113.0/24", "203.0.113.7/32", "0.0.0.0/0", "fd00:3::/64", "::/0"] {
        check(NewRoute(route(covering, 12, 77)), ADJACENCIES);
    }
    for beside in ["203.0.112.0/24", "203.0.114.0/24", "fd00:2::/64", "fd00:4::/64"] {
        check(NewRoute(route(beside, 12, 77)), Changed::NOTHING);
    }
}

#[test]
fn devices_count_whose_routes_are_in_the_way() {
    use RouteNetlinkMessage::{DelLink, NewLink};
    let mut interest = interest();
    interest.watch_obstacles(BTreeSet::from([77]));
    let judge = |message| interest.judge(&event(message));
    assert_eq!(judge(NewLink(link(77, "flannel.1", 1450))), Changed::NOTHING);
    let mut down = link(77, "flannel.1", 1450);
    down.header.flags = LinkFlags::default();
    assert_eq!(judge(NewLink(down)), ROUTES);
    assert_eq!(judge(DelLink(link(77, "flannel.1", 1450))), ROUTES);
    assert_eq!(judge(DelLink(link(78, "flannel.2", 1450))), Changed::NOTHING);
}

#[test]
fn neighbors_count_when_another_mac_is_in_use_or_they_need_a_probe() {
    use NeighbourState::{Delay, Failed, Permanent, Probe, Reachable, Stale};
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    let hop = |last, state| neighbor(UPLINK, "192.0.2.1", last, state);
    check(NewNeighbour(hop(1, Reachable)), Changed::NOTHING);
    check(NewNeighbour(hop(1, Delay)), Changed::NOTHING);
    check(NewNeighbour(hop(1, Stale)), ADJACENCIES);
    check(NewNeighbour(hop(2, Reachable)), ADJACENCIES);
    check(NewNeighbour(hop(1, Failed)), ADJACENCIES);
    check(DelNeighbour(hop(1, Reachable)), ADJACENCIES);
    check(NewNeighbour(neighbor(UPLINK, "192.0.2.5", 1, Stale)), Changed::NOTHING);
    // What follows on a refresh is no news, whatever the last look saw.
    let after = |state, then: NeighbourMessage| {
        let table = Neighbor::read(&hop(1, state)).unwrap();
        let table = BTreeMap::from([((UPLINK, ip("192.0.2.1")), table)]);
        let mut interest = interest();
        let hops = BTreeSet::from([(UPLINK, ip("192.0.2.1"))]);
        interest.watch_adjacencies(&BTreeSet::new(), &hops, &table);
        interest.judge(&event(NewNeighbour(then)))
    };
    for state in [Delay, Probe, Reachable] {
        assert_eq!(after(Stale, hop(1, state)), Changed::NOTHING, "{state}");
    }
    assert_eq!(after(Stale, hop(1, Stale)), ADJACENCIES, "a refresh is due again");
    assert_eq!(after(Failed, hop(1, Failed)), Changed::NOTHING);
    assert_eq!(after(Failed, hop(1, Stale)), ADJACENCIES);
    // Of the gateway's neighbors only the two next hops count.
    check(DelNeighbour(neighbor(GATEWAY, "169.254.133.1", 1, Permanent)), Changed::GATEWAY);
    check(NewNeighbour(neighbor(GATEWAY, "169.254.133.1", 1, Stale)), Changed::GATEWAY);
    check(NewNeighbour(neighbor(GATEWAY, "ff02::16", 1, Permanent)), Changed::NOTHING);
}

#[test]
fn our_own_doing_does_not_count() {
    let gone = route("10.60.0.0/26", ROUTE_PROTOCOL, GATEWAY);
    let mut event = event(RouteNetlinkMessage::DelRoute(gone));
    assert_eq!(interest().judge(&event), ROUTES);
    event.header.port_number = OWN_PORT;
    assert_eq!(interest().judge(&event), Changed::NOTHING);
}

#[test]
fn lost_events_and_new_rules_count() {
    let overrun = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(vec![]));
    assert_eq!(interest().judge(&overrun), Changed::ALL);
    // A rule may lead to a VTEP, or away from our routes.
    let both = Changed { adjacencies: true, routes: true, ..Changed::NOTHING };
    check(RouteNetlinkMessage::NewRule(Default::default()), both);
}
