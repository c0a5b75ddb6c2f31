use netlink_packet_route::route::RouteProtocol;

use super::*;

#[test]
fn a_link_is_read_with_what_is_there() {
    let mut message = LinkMessage::default();
    message.header.index = 7;
    assert_eq!(Link::read(&message), None);
    message.header.flags = LinkFlags::Up;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::Mtu(9000),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
    ];
    let link = Link::read(&message).unwrap();
    assert_eq!((link.index, link.mtu, link.kind.as_deref()), (7, 9000, Some("vlan")));
    assert!(link.ethernet && link.up && !link.running());
    // Not every device has a MAC of six bytes.
    message.attributes.push(LinkAttribute::Address(vec![1, 2, 3, 4]));
    assert_eq!(Link::read(&message).unwrap().mac, MacAddr::default());
}

#[test]
fn the_local_end_of_a_point_to_point_address_counts() {
    let mut message = AddressMessage::default();
    assert_eq!(Address::read(&message), None);
    let (local, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    message.attributes = vec![AddressAttribute::Address(other), AddressAttribute::Local(local)];
    assert_eq!(Address::read(&message).unwrap().ip, local);
    message.attributes = vec![
        AddressAttribute::Address(other),
        AddressAttribute::Flags(AddressFlags::Dadfailed | AddressFlags::Permanent),
    ];
    let address = Address::read(&message).unwrap();
    assert_eq!((address.ip, address.duplicate), (other, true));
}

#[test]
fn routes_of_both_families_and_across_them() {
    let mut message = RouteMessage::default();
    assert_eq!(Route::read(&message), None);
    message.header.address_family = AddressFamily::Inet;
    message.header.protocol = RouteProtocol::Other(133);
    let default = Route::read(&message).unwrap();
    assert_eq!((default.prefix.to_string(), default.protocol), ("0.0.0.0/0".to_owned(), 133));
    let next_hop = "fe80::1".parse().unwrap();
    message.attributes =
        vec![RouteAttribute::Via(RouteVia::Inet6(next_hop)), RouteAttribute::Table(1000)];
    let route = Route::read(&message).unwrap();
    assert_eq!((route.next_hop, route.table), (Some(next_hop.into()), 1000));
    // A length that does not fit the family is no route.
    message.header.destination_prefix_length = 64;
    assert_eq!(Route::read(&message), None);
}
