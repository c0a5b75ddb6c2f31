use super::*;

fn end(index: u32, other: u32) -> Link {
    Link {
        index,
        name: format!("tieline{}", index % 2),
        kind: Some(VETH.to_owned()),
        ethernet: true,
        mac: if index.is_multiple_of(2) { DEVICE_MAC } else { PEER_MAC },
        mtu: 1450,
        up: true,
        carrier: true,
        lower: Some(other),
        lower_elsewhere: false,
        tx_queues: 2,
        rx_queues: 2,
    }
}

fn spec() -> GatewaySpec {
    GatewaySpec { queues: Some(2), ..GatewaySpec::new(1450) }
}

fn keeps(device: &Link, peer: &Link) -> [Repair; 2] {
    match plan(&spec(), Some(device), Some(peer)) {
        Ok(Plan::Keep(repairs)) => repairs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pair_as_it_should_be_is_left_alone() {
    assert!(keeps(&end(4, 5), &end(5, 4)).iter().all(Repair::is_empty));
    assert_eq!(plan(&spec(), None, None).unwrap(), Plan::Create);
}

#[test]
fn only_what_differs_is_repaired() {
    let device = Link { mtu: 1300, ..end(4, 5) };
    let peer = Link { mac: MacAddr::BROADCAST, up: false, ..end(5, 4) };
    let expected = [
        Repair { index: 4, mtu: Some(1450), ..Repair::default() },
        Repair { index: 5, mac: Some(PEER_MAC), up: true, ..Repair::default() },
    ];
    assert_eq!(keeps(&device, &peer), expected);
}

#[test]
fn the_number_of_queues_matters_when_it_is_said() {
    let device = Link { rx_queues: 1, ..end(4, 5) };
    assert_eq!(plan(&spec(), Some(&device), Some(&end(5, 4))).unwrap(), Plan::Recreate);
    let any = GatewaySpec { queues: None, ..spec() };
    assert!(matches!(plan(&any, Some(&device), Some(&end(5, 4))), Ok(Plan::Keep(_))));
}

#[test]
fn devices_of_others_are_refused() {
    let refused = |device: Option<Link>, peer: Option<Link>, name: &str| {
        let error = plan(&spec(), device.as_ref(), peer.as_ref()).unwrap_err();
        let LinkError::ForeignDevice { device, .. } = error else { panic!("{error}") };
        assert_eq!(device, name);
    };
    let kind = |kind: Option<&str>| kind.map(str::to_owned);
    refused(Some(end(4, 5)), None, "tieline0");
    refused(None, Some(end(5, 4)), "tieline1");
    refused(Some(Link { kind: kind(Some("bridge")), ..end(4, 5) }), Some(end(5, 4)), "tieline0");
    refused(Some(end(4, 5)), Some(Link { kind: kind(None), ..end(5, 4) }), "tieline1");
    refused(Some(end(4, 9)), Some(end(5, 4)), "tieline0");
    // The index is the same, but of another namespace.
    refused(Some(Link { lower_elsewhere: true, ..end(4, 5) }), Some(end(5, 4)), "tieline0");
}

#[test]
fn the_gateway_holds_the_addresses_that_nobody_else_does() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let at =
        |device, text, prefix_len| Address { device, ip: ip(text), prefix_len, duplicate: false };
    let wanted = [ip("10.244.7.1"), ip("fd00::7"), ip("10.244.8.1"), ip("10.244.9.1")];
    let current = [
        at(1, "127.0.0.1", 8),
        at(4, "10.244.7.1", 32),
        at(4, "10.244.8.1", 32),
        at(7, "10.244.8.1", 32),
        at(4, "10.244.9.1", 24),
        at(4, "fe80::1", 64),
    ];
    let (add, remove) = plan_addresses(&wanted, &current, 4);
    // 9.1 has another length: it is made anew. 8.1 belongs to device 7 now.
    assert_eq!(add, [ip("10.244.9.1"), ip("fd00::7")]);
    assert_eq!(remove, [current[2].clone(), current[4].clone(), current[5].clone()]);
}

#[test]
fn the_macs_are_locally_administered_and_differ() {
    for mac in [DEVICE_MAC, PEER_MAC, NEIGHBOR_MAC] {
        assert_eq!(mac.0[0] & 3, 2, "{mac}");
    }
    assert!(NEIGHBOR_MAC != PEER_MAC && NEIGHBOR_MAC != DEVICE_MAC && PEER_MAC != DEVICE_MAC);
}
