use super::*;

const OURS: (u32, u8) = (4, ROUTE_PROTOCOL);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn wanted(texts: &[&str]) -> BTreeMap<Prefix, Route> {
    let settings = RouteSettings::default();
    let routes = texts.iter().map(|text| ours(text, &settings));
    routes.map(|route| (route.prefix, route)).collect()
}

fn ours(text: &str, settings: &RouteSettings) -> Route {
    desired(prefix(text), OURS, settings, &BTreeSet::new())
}

fn existing(text: &str) -> Route {
    ours(text, &RouteSettings::default())
}

fn other(text: &str) -> Route {
    Route { protocol: 12, device: Some(2), ..existing(text) }
}

#[test]
fn what_is_right_stays_and_the_rest_follows() {
    let right = existing("10.0.0.0/26");
    let different = Route { mtu: Some(1400), ..existing("10.0.1.0/26") };
    let old = existing("10.0.2.0/26");
    let current = [right, different, old.clone(), other("10.9.0.0/16")];
    let wanted = wanted(&["10.0.0.0/26", "10.0.1.0/26", "10.0.3.0/26", "fd00::/122"]);
    let expected = Plan {
        add: vec![existing("10.0.3.0/26"), existing("fd00::/122")],
        replace: vec![existing("10.0.1.0/26")],
        remove: vec![old],
        blocked: vec![],
    };
    let sorted = |mut plan: Plan| {
        plan.add.sort_by_key(|route| (!route.prefix.is_v4(), route.prefix));
        plan
    };
    assert_eq!(sorted(plan(&wanted, &current, OURS)), expected);
}

#[test]
fn our_protocol_on_another_device_is_not_ours() {
    let elsewhere = Route { device: Some(9), ..existing("10.0.0.0/26") };
    assert_eq!(plan(&BTreeMap::new(), &[elsewhere], OURS), Plan::default());
    let without = Route { device: None, unicast: false, ..existing("10.0.0.0/26") };
    assert_eq!(plan(&BTreeMap::new(), &[without], OURS), Plan::default());
}

#[test]
fn another_metric_of_ours_is_made_anew() {
    let odd = Route { metric: 7, ..existing("10.0.0.0/26") };
    let plan = plan(&wanted(&["10.0.0.0/26"]), std::slice::from_ref(&odd), OURS);
    assert_eq!((plan.add, plan.remove), (vec![existing("10.0.0.0/26")], vec![odd]));
}

#[test]
fn a_route_that_wins_over_ours_blocks_it() {
    let same = other("10.0.0.0/26");
    let better = Route { metric: 512, ..other("fd00::/122") };
    let worse = Route { metric: 100, ..other("10.0.1.0/26") };
    let current = [same.clone(), better.clone(), worse];
    let found = plan(&wanted(&["10.0.0.0/26", "10.0.1.0/26", "fd00::/122"]), &current, OURS);
    assert_eq!(found.blocked, [same.clone(), better]);
    assert_eq!(found.add, [existing("10.0.1.0/26")]);

    // Ours beside it, different: a replacement could hit theirs.
    let different = Route { mtu: Some(1400), ..existing("10.0.0.0/26") };
    let found = plan(&wanted(&["10.0.0.0/26"]), &[same.clone(), different], OURS);
    assert_eq!(found, Plan { blocked: vec![same], ..Plan::default() });
}

#[test]
fn the_source_is_used_if_the_node_holds_it() {
    let settings = RouteSettings {
        source_v4: Some(Ipv4Addr::new(10, 1, 0, 1)),
        source_v6: Some("fd00::1".parse().unwrap()),
        mtu_v4: None,
        mtu_v6: Some(1430),
    };
    let held = BTreeSet::from([IpAddr::from([10, 1, 0, 1])]);
    let v4 = desired(prefix("10.0.0.0/26"), OURS, &settings, &held);
    assert_eq!((v4.source, v4.mtu, v4.metric), (Some([10, 1, 0, 1].into()), None, 0));
    let v6 = desired(prefix("fd00::/122"), OURS, &settings, &held);
    assert_eq!((v6.source, v6.mtu, v6.metric), (None, Some(1430), METRIC_V6));
}

#[test]
fn a_message_reads_back_as_the_route() {
    let settings = RouteSettings { mtu_v4: Some(1400), ..RouteSettings::default() };
    for text in ["10.0.0.0/26", "0.0.0.0/0", "10.0.0.1/32", "fd00::/122", "::/0"] {
        let route = Route { source: Some("10.1.0.1".parse().unwrap()), ..ours(text, &settings) };
        let RouteNetlinkMessage::NewRoute(message) = message(&route) else { panic!() };
        assert_eq!(Route::read(&message).unwrap(), route);
    }
}
