use netlink_packet_route::neighbour::NeighbourState;
use tieline_dataplane::wire::MacAddr;

use super::*;

const HOP: (u32, IpAddr) = (2, IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn link(running: bool) -> BTreeMap<u32, Link> {
    let link = Link {
        index: 2,
        name: "eth0".to_owned(),
        kind: None,
        ethernet: true,
        mac: MacAddr([2, 0, 0, 0, 0, 9]),
        mtu: 1500,
        up: true,
        carrier: running,
        lower: None,
        lower_elsewhere: false,
        tx_queues: 1,
        rx_queues: 1,
    };
    BTreeMap::from([(2, link)])
}

fn table(state: NeighbourState) -> BTreeMap<(u32, IpAddr), Neighbor> {
    BTreeMap::from([(HOP, Neighbor { device: 2, ip: HOP.1, mac: Some(MAC), state })])
}

fn lookup() -> Lookup {
    Ok(Path { device: 2, next_hop: HOP.1, source: "192.0.2.10".parse().unwrap() })
}

fn reason(lookup: &Lookup, links: &BTreeMap<u32, Link>, state: NeighbourState) -> String {
    match resolve(lookup, links, &table(state), &BTreeMap::new()) {
        Adjacency::Unresolved { reason } => reason,
        resolved => panic!("{resolved:?}"),
    }
}

#[test]
fn states_in_which_the_mac_may_be_used() {
    use NeighbourState::{
        Delay, Failed, Incomplete, Noarp, None, Permanent, Probe, Reachable, Stale,
    };
    let expected = Adjacency::Resolved {
        source: "192.0.2.10".parse().unwrap(),
        source_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        next_hop_mac: MAC,
        device: 2,
    };
    for state in [Reachable, Stale, Delay, Probe, Permanent, Noarp] {
        let found = resolve(&lookup(), &link(true), &table(state), &BTreeMap::new());
        assert_eq!(found, expected, "{state}");
    }
    for state in [Incomplete, Failed, None] {
        assert!(reason(&lookup(), &link(true), state).contains("192.0.2.1 on eth0"), "{state}");
    }
}

#[test]
fn each_way_of_being_out_of_reach_has_its_words() {
    let reachable = NeighbourState::Reachable;
    assert_eq!(reason(&Err("no route".to_owned()), &link(true), reachable), "no route");
    assert!(reason(&lookup(), &link(false), reachable).contains("eth0 is down"));
    assert!(reason(&lookup(), &BTreeMap::new(), reachable).contains("left the underlay"));
    let refused = Some(Errno::NOBUFS);
    let asked = Asked { again: Instant::now(), pause: FIRST_PAUSE, refused };
    let asked = BTreeMap::from([(HOP, asked)]);
    let full = resolve(&lookup(), &link(true), &table(NeighbourState::Failed), &asked);
    let Adjacency::Unresolved { reason } = full else { panic!("{full:?}") };
    assert!(reason.contains("does not resolve next hop 192.0.2.1 on eth0: No buffer"), "{reason}");
    let all_the_same = resolve(&lookup(), &link(true), &table(reachable), &asked);
    assert!(matches!(all_the_same, Adjacency::Resolved { .. }), "{all_the_same:?}");
}

#[test]
fn each_refusal_of_a_route_has_its_words() {
    let words = [
        (Errno::NETUNREACH, "has no route to 192.0.2.1; add one"),
        (Errno::AGAIN, "routes reject 192.0.2.1 from 192.0.2.10"),
        (Errno::NETDOWN, "no route to 192.0.2.1 from 192.0.2.10: Network is down"),
        (Errno::NODEV, "no route to 192.0.2.1 from 192.0.2.10: No such device"),
    ];
    for (errno, words) in words {
        let reason = why_not(HOP.1, "192.0.2.10".parse().unwrap(), errno);
        assert!(reason.contains(words), "{errno:?}: {reason}");
    }
}

#[test]
fn stale_neighbors_are_asked_for_and_lasting_ones_are_not() {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let wanted = BTreeSet::from([HOP]);
    let mut resolver = Resolver::default();
    let now = Instant::now();
    assert_eq!(resolver.take_due(&wanted, &table(Stale), now), [HOP]);
    // To ask for a permanent entry would make it an ordinary one.
    for state in [Reachable, Delay, Probe, Permanent, Noarp] {
        assert_eq!(resolver.take_due(&wanted, &table(state), now), [], "{state}");
    }
    assert_eq!(resolver.due(), None);
}

#[test]
fn silent_neighbors_are_asked_for_less_and_less_often() {
    let wanted = BTreeSet::from([HOP]);
    let mut resolver = Resolver::default();
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        assert_eq!(resolver.take_due(&wanted, &BTreeMap::new(), now), [HOP]);
        assert_eq!(resolver.take_due(&wanted, &table(NeighbourState::Failed), now), []);
        let due = resolver.due().unwrap();
        pauses.push((due - now).as_secs());
        now = due;
    }
    assert_eq!(pauses, [5, 10, 20, 30, 30]);
    // An answer starts it all over, and what is not wanted is forgotten.
    resolver.take_due(&wanted, &table(NeighbourState::Reachable), now);
    assert_eq!(resolver.due(), None);
    assert_eq!(resolver.take_due(&wanted, &BTreeMap::new(), now), [HOP]);
    assert_eq!(resolver.due(), Some(now + FIRST_PAUSE));
    resolver.take_due(&BTreeSet::new(), &BTreeMap::new(), now);
    assert_eq!(resolver.due(), None);
}

#[test]
fn the_kernel_is_left_to_its_own_tries() {
    let wanted = BTreeSet::from([HOP]);
    let mut resolver = Resolver::default();
    let trying = table(NeighbourState::Incomplete);
    assert_eq!(resolver.take_due(&wanted, &trying, Instant::now()), []);
    assert!(resolver.due().is_some());
}
