//! `tieline::link` against real kernels: every test has network namespaces of
//! its own, changes them with `ip` as an administrator or another daemon
//! would, and looks at the outcome with `ip` too.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tieline::link::{
    Adjacency, Changed, Gateway, GatewaySpec, LinkError, Netlink, RouteChanges, RouteSettings,
};
use tieline_dataplane::addr::Prefix;

/// How long something may take that normally takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, removed when it goes out of scope.
struct Space(String);

impl Space {
    fn new(name: &str) -> Self {
        let space = Self(format!("tl-link-{}-{name}", std::process::id()));
        ip(&["netns", "add", &space.0]);
        space.ip("link set lo up");
        space
    }

    /// Runs `ip` in the namespace and returns what it prints.
    fn ip(&self, command: &str) -> String {
        let mut arguments = vec!["-n", &self.0];
        arguments.extend(command.split_whitespace());
        ip(&arguments)
    }

    fn set(&self, setting: &str, value: &str) {
        self.run(async || std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap());
    }

    fn get(&self, setting: &str) -> String {
        self.run(async || std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap())
            .trim()
            .to_owned()
    }

    /// Runs a future on a thread of its own inside the namespace.
    fn run<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let inside = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(test())
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Devices, routes and lasting neighbors as `ip` shows them.
    fn picture(&self) -> [String; 4] {
        [
            self.ip("link show"),
            self.ip("address show"),
            self.ip("route show table all") + &self.ip("-6 route show table all"),
            self.ip("neighbor show nud permanent"),
        ]
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip (iproute2) must run");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A veth pair between two namespaces.
fn join(a: &Space, a_device: &str, b: &Space, b_device: &str) {
    a.ip(&format!("link add {a_device} type veth peer name {b_device} netns {}", b.0));
    for (space, device) in [(a, a_device), (b, b_device)] {
        let without_dad = format!("ipv6/conf/{device}/accept_dad");
        space.set(&without_dad, "0");
        space.ip(&format!("link set {device} up"));
    }
}

fn spec() -> GatewaySpec {
    GatewaySpec { queues: Some(2), ..GatewaySpec::new(1450) }
}

fn prefixes(texts: &[&str]) -> BTreeSet<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn next_change(netlink: &mut Netlink) -> Changed {
    tokio::time::timeout(PATIENCE, netlink.changed()).await.expect("an event").unwrap()
}

/// Waits for this kind of change; others may come before.
async fn change(netlink: &mut Netlink, kind: impl Fn(Changed) -> bool) {
    while !kind(next_change(netlink).await) {}
}

/// Asks for adjacencies until they are as expected.
async fn adjacencies(
    netlink: &mut Netlink,
    addresses: &[&str],
    expected: impl Fn(&BTreeMap<IpAddr, Adjacency>) -> bool,
) -> BTreeMap<IpAddr, Adjacency> {
    let addresses: BTreeSet<IpAddr> = addresses.iter().map(|text| address(text)).collect();
    let wait = async {
        loop {
            let found = netlink.adjacencies(&addresses).await.unwrap();
            if expected(&found) {
                return found;
            }
            while !netlink.changed().await.unwrap().adjacencies {}
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("adjacencies as expected")
}

fn all_resolved(found: &BTreeMap<IpAddr, Adjacency>) -> bool {
    found.values().all(|adjacency| matches!(adjacency, Adjacency::Resolved { .. }))
}

fn mac(space: &Space, device: &str) -> String {
    let text = space.ip(&format!("-o link show {device}"));
    let mac = text.split("link/ether ").nth(1).unwrap();
    mac.split(' ').next().unwrap().to_owned()
}

#[test]
fn creates_adopts_and_removes_the_gateway() {
    let node = Space::new("gateway");
    let before = node.picture();
    let spec = GatewaySpec {
        tunnel_addresses: vec![address("10.244.7.1"), address("fd00:244:7::1")],
        ..spec()
    };
    let first: Gateway = node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        netlink.ensure_gateway(&spec).await.unwrap()
    });
    assert!(!first.adopted);
    assert_eq!((first.mtu, first.queues), (1450, 2));
    for (device, mac) in [("tieline0", first.device_mac.to_string()), ("tieline1", String::new())] {
        let text = node.ip(&format!("-d link show {device}"));
        for part in ["veth", "mtu 1450", ",UP", "numtxqueues 2", "numrxqueues 2", &mac] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    assert_ne!(mac(&node, "tieline1"), first.neighbor_mac.to_string());
    let neighbors = node.ip("neighbor show dev tieline0");
    assert_eq!(neighbors.matches(&first.neighbor_mac.to_string()).count(), 2, "{neighbors}");
    assert_eq!(neighbors.matches("PERMANENT").count(), 2, "{neighbors}");
    let addresses = node.ip("address show dev tieline0");
    assert!(addresses.contains("inet 10.244.7.1/32"), "{addresses}");
    assert!(addresses.contains("inet6 fd00:244:7::1/128"), "{addresses}");
    assert!(!addresses.contains("fe80") && !addresses.contains("tentative"), "{addresses}");
    assert!(!node.ip("address show dev tieline1").contains("inet"));
    assert_eq!(node.get("ipv4/conf/tieline0/rp_filter"), "2");

    // As after a kill: all is there, and something has disturbed it.
    node.ip("link set tieline0 mtu 1300 down");
    node.ip("link set tieline1 address 02:00:00:00:00:99");
    node.ip("address add 10.9.9.9/24 dev tieline0");
    assert!(node.run(async || first.is_open()));
    node.set("ipv4/conf/tieline0/rp_filter", "1");
    assert!(!node.run(async || first.is_open()));
    node.set("ipv4/ip_forward", "1");
    node.set("ipv4/conf/tieline0/forwarding", "0");
    let second = node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let gateway = netlink.ensure_gateway(&spec).await.unwrap();
        // Nothing is left to do, so nothing is told.
        let quiet = tokio::time::timeout(Duration::from_millis(300), async {
            while !netlink.changed().await.unwrap().gateway {}
            netlink.ensure_gateway(&spec).await.unwrap();
            netlink.changed().await
        });
        assert!(quiet.await.is_err());
        gateway
    });
    assert_eq!(second, Gateway { adopted: true, ..first });
    let addresses = node.ip("address show dev tieline0");
    assert!(addresses.contains("mtu 1450") && !addresses.contains("10.9.9.9"), "{addresses}");
    assert_eq!(node.get("ipv4/conf/tieline0/rp_filter"), "2");
    assert_eq!(node.get("ipv4/conf/tieline0/forwarding"), "1");
    assert_eq!(node.ip("neighbor show dev tieline0 nud permanent").lines().count(), 2);

    // Another number of queues needs another pair.
    let third = node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let spec = GatewaySpec { queues: Some(1), ..spec.clone() };
        netlink.ensure_gateway(&spec).await.unwrap()
    });
    assert_eq!(third.queues, 1);
    assert_ne!(third.device_index, first.device_index);

    node.run(async || Netlink::open().unwrap().remove(&spec).await.unwrap());
    assert_eq!(node.picture(), before);
    // Nothing there is fine as well.
    node.run(async || Netlink::open().unwrap().remove(&spec).await.unwrap());
}

#[test]
fn frames_that_no_worker_takes_come_to_nothing() {
    let node = Space::new("dead");
    node.set("ipv4/ip_forward", "1");
    node.set("ipv6/conf/all/forwarding", "1");
    let spec = GatewaySpec {
        tunnel_addresses: vec![address("10.244.7.1"), address("fd00:244:7::1")],
        ..spec()
    };
    let count = |device: &str, counter: &str| {
        let text = node.ip(&format!("-j -s link show {device}"));
        let parts = text.split(&format!("\"{counter}\":{{\"bytes\":")).nth(1).unwrap();
        let packets = parts.split("\"packets\":").nth(1).unwrap();
        packets.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let gateway = netlink.ensure_gateway(&spec).await.unwrap();
        sync(&mut netlink, &["10.60.0.0/26", "fd00:60::/122"], &gateway).await;
        for destination in ["10.60.0.7:9", "[fd00:60::7]:9"] {
            let before = [count("tieline0", "tx"), count("tieline1", "rx")];
            let any = if destination.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).unwrap();
            for _ in 0..10 {
                socket.send_to(b"anybody there", destination).unwrap();
            }
            // They reach the workers' end, and nothing comes back of them.
            assert!(count("tieline0", "tx") >= before[0] + 10, "{destination}");
            assert!(count("tieline1", "rx") >= before[1] + 10, "{destination}");
            assert_eq!(count("tieline1", "tx"), 0, "{destination}");
        }
    });
}

#[test]
fn leaves_tunnel_addresses_to_who_has_them() {
    let node = Space::new("tunnel");
    let spec = GatewaySpec { tunnel_addresses: vec![address("10.244.7.1")], ..spec() };
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        netlink.ensure_gateway(&spec).await.unwrap();
        assert!(node.ip("address show dev tieline0").contains("10.244.7.1"));
        // Felix comes up late.
        node.ip("link add vxlan.calico type vxlan id 4096 dstport 4789");
        node.ip("address add 10.244.7.1/32 dev vxlan.calico");
        change(&mut netlink, |changed| changed.gateway).await;
        netlink.ensure_gateway(&spec).await.unwrap();
        assert!(!node.ip("address show dev tieline0").contains("10.244.7.1"));
        assert!(node.ip("address show dev vxlan.calico").contains("10.244.7.1"));
        node.ip("link del vxlan.calico");
        change(&mut netlink, |changed| changed.gateway).await;
        netlink.ensure_gateway(&spec).await.unwrap();
        assert!(node.ip("address show dev tieline0").contains("10.244.7.1"));
    });
}

#[test]
fn refuses_devices_of_others() {
    let node = Space::new("foreign");
    let refused = |expected: &str| {
        let before = node.picture();
        let error = node.run(async || {
            let mut netlink = Netlink::open().unwrap();
            let error = netlink.ensure_gateway(&spec()).await.unwrap_err();
            netlink.remove(&spec()).await.unwrap();
            error
        });
        let text = error.to_string();
        assert!(matches!(error, LinkError::ForeignDevice { .. }), "{text}");
        assert!(text.contains(expected), "{text}");
        assert_eq!(node.picture(), before);
    };
    node.ip("link add tieline0 type bridge");
    refused("tieline0 is a bridge device");
    node.ip("link del tieline0");
    node.ip("link add tieline0 type veth peer name other");
    refused("ip link delete tieline0");
    node.ip("link add tieline1 type veth peer name another");
    refused("whose other end is not tieline1");
    node.ip("link del tieline0");
    refused("tieline1 is a veth device whose other end is not tieline0");
}

async fn sync(netlink: &mut Netlink, texts: &[&str], gateway: &Gateway) -> RouteChanges {
    let settings = RouteSettings {
        source_v4: Some("10.244.7.1".parse().unwrap()),
        source_v6: Some("fd00:244:7::1".parse().unwrap()),
        mtu_v6: Some(1430),
        ..RouteSettings::default()
    };
    netlink.sync_routes(&prefixes(texts), gateway, &settings).await.unwrap()
}

fn counts(changes: &RouteChanges) -> (usize, usize, usize) {
    (changes.added, changes.replaced, changes.removed)
}

#[test]
fn owns_exactly_its_routes() {
    let node = Space::new("routes");
    node.set("ipv4/ip_forward", "1");
    node.set("ipv6/conf/all/forwarding", "1");
    node.ip("link add other type veth peer name other1");
    node.ip("link set other up");
    node.ip("link set other1 up");
    node.ip("route add 10.99.0.0/16 dev other proto 133");
    let spec = GatewaySpec { tunnel_addresses: vec![address("10.244.7.1")], ..spec() };
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let gateway = netlink.ensure_gateway(&spec).await.unwrap();
        let first = ["10.60.0.0/26", "10.60.0.64/26", "10.60.0.200", "fd00:60::/122"];
        let changes = sync(&mut netlink, &first, &gateway).await;
        assert_eq!(changes, RouteChanges { added: 4, ..RouteChanges::default() });
        let routes = node.ip("route show proto 133");
        let expected = "10.60.0.0/26 via 169.254.133.1 dev tieline0 src 10.244.7.1 onlink";
        assert!(routes.contains(expected), "{routes}");
        assert!(routes.contains("10.60.0.200 via"), "{routes}");
        let routes = node.ip("-6 route show proto 133");
        assert!(routes.contains("fd00:60::/122 via fe80::133:1 dev tieline0"), "{routes}");
        // The v6 tunnel address is on no device, so it can't be a source.
        assert!(routes.contains("onlink") && routes.contains("mtu 1430"), "{routes}");
        assert!(!routes.contains("src"), "{routes}");
        assert_eq!(counts(&sync(&mut netlink, &first, &gateway).await), (0, 0, 0));

        let second = ["10.60.0.0/26", "10.61.0.0/16", "fd00:60::/122"];
        assert_eq!(counts(&sync(&mut netlink, &second, &gateway).await), (1, 0, 2));

        // Someone changes ours: told, and put right.
        node.ip("route del 10.61.0.0/16");
        change(&mut netlink, |changed| changed.routes).await;
        assert_eq!(counts(&sync(&mut netlink, &second, &gateway).await), (1, 0, 0));
        node.ip("route replace 10.61.0.0/16 dev tieline0 proto 133");
        node.ip("address add fd00:244:7::1/128 dev other nodad");
        change(&mut netlink, |changed| changed.routes).await;
        assert_eq!(counts(&sync(&mut netlink, &second, &gateway).await), (0, 2, 0));
        let routes = node.ip("-6 route show proto 133");
        assert!(routes.contains("src fd00:244:7::1"), "{routes}");
    });
    // A second start adopts them; of others nothing is touched.
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let gateway = netlink.ensure_gateway(&spec).await.unwrap();
        assert!(gateway.adopted);
        let wanted = ["10.60.0.0/26", "fd00:60::/122"];
        assert_eq!(counts(&sync(&mut netlink, &wanted, &gateway).await), (0, 0, 1));
        assert_eq!(counts(&sync(&mut netlink, &[], &gateway).await), (0, 0, 2));
    });
    assert!(node.ip("route show proto 133").contains("10.99.0.0/16 dev other"));
}

#[test]
fn reports_what_takes_the_place_of_its_routes() {
    let node = Space::new("blocked");
    node.ip("link add other type veth peer name other1");
    node.ip("link set other up");
    node.ip("address add 192.0.2.1/24 dev other");
    node.ip("address add fd00:2::1/64 dev other nodad");
    node.ip("route add 10.60.0.0/16 via 192.0.2.9 proto bird");
    node.ip("route add blackhole 10.61.0.0/16 proto 80");
    node.ip("-6 route add fd00:60::/64 via fd00:2::9 metric 512");
    node.ip("route add 10.62.0.0/16 via 192.0.2.9 metric 100");
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let gateway = netlink.ensure_gateway(&spec()).await.unwrap();
        let wanted = ["10.60.0.0/16", "10.61.0.0/16", "10.62.0.0/16", "fd00:60::/64"];
        let changes = sync(&mut netlink, &wanted, &gateway).await;
        assert_eq!(counts(&changes), (1, 0, 0), "{changes:?}");
        let found = |object: &str| {
            let condition = changes.conditions.iter().find(|c| c.object == object);
            condition.unwrap_or_else(|| panic!("{object} in {changes:?}")).message.clone()
        };
        assert!(found("route 10.60.0.0/16").contains("via 192.0.2.9 dev other"));
        assert!(found("route 10.61.0.0/16").contains("ip route del 10.61.0.0/16"));
        assert!(found("route fd00:60::/64").contains("via fd00:2::9"));
        assert!(found("sysctl net.ipv4.ip_forward").contains("sysctl -w net.ipv4.ip_forward=1"));
        found("sysctl net.ipv6.conf.all.forwarding");
        assert_eq!(changes.conditions.len(), 5, "{changes:?}");

        // As soon as they are gone ours come.
        node.ip("route del 10.60.0.0/16");
        node.ip("-6 route del fd00:60::/64 metric 512");
        change(&mut netlink, |changed| changed.routes).await;
        let changes = sync(&mut netlink, &wanted, &gateway).await;
        assert_eq!(counts(&changes), (2, 0, 0), "{changes:?}");

        // The gateway vanishes under us.
        node.ip("link del tieline0");
        let settings = RouteSettings::default();
        let lost = netlink.sync_routes(&prefixes(&["10.63.0.0/16"]), &gateway, &settings).await;
        assert!(matches!(lost, Err(LinkError::GatewayGone { .. })), "{lost:?}");
        change(&mut netlink, |changed| changed.gateway && changed.routes).await;
        let gateway = netlink.ensure_gateway(&spec()).await.unwrap();
        assert_eq!(counts(&sync(&mut netlink, &wanted, &gateway).await), (3, 0, 0));
    });
}

/// A node, a router and a host beyond it, and a host on the node's own link.
fn underlay(name: &str) -> (Space, Space, Space) {
    let node = Space::new(&format!("{name}-node"));
    let router = Space::new(&format!("{name}-router"));
    let near = Space::new(&format!("{name}-near"));
    join(&node, "eth0", &router, "to-node");
    join(&node, "eth1", &near, "eth0");
    node.ip("address add 192.0.2.10/24 dev eth0");
    node.ip("address add fd00:2::10/64 dev eth0 nodad");
    node.ip("address add 198.51.100.10/24 dev eth1");
    router.ip("address add 192.0.2.1/24 dev to-node");
    router.ip("address add fd00:2::1/64 dev to-node nodad");
    node.ip("route add 203.0.113.0/24 via 192.0.2.1");
    node.ip("-6 route add fd00:3::/64 via fd00:2::1");
    node.ip("route add 203.0.115.0/24 via inet6 fd00:2::1 dev eth0");
    near.ip("address add 198.51.100.20/24 dev eth0");
    (node, router, near)
}

const OWN: [&str; 2] = ["192.0.2.10", "fd00:2::10"];

fn own() -> Vec<IpAddr> {
    OWN.iter().map(|text| address(text)).collect()
}

#[test]
fn finds_next_hops_and_follows_them() {
    let (node, router, _near) = underlay("hops");
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let underlay = netlink.underlay(&own(), &[]).await.unwrap();
        assert_eq!(underlay.conditions, []);
        let [device] = &underlay.devices[..] else { panic!("one device: {underlay:?}") };
        assert_eq!((device.name.as_str(), device.mtu, device.running), ("eth0", 1500, true));
        assert_eq!((&device.addresses, underlay.mtu()), (&own(), Some(1500)));

        // Beyond a gateway, also one of the other family, and on the link.
        let vteps = ["203.0.113.7", "fd00:3::7", "203.0.115.7", "192.0.2.1", "fd00:2::1"];
        let found = adjacencies(&mut netlink, &vteps, all_resolved).await;
        for (vtep, adjacency) in &found {
            let expected = Adjacency::Resolved {
                source: own()[usize::from(vtep.is_ipv6())],
                source_mac: device.mac,
                next_hop_mac: mac(&router, "to-node").parse().unwrap(),
                device: device.index,
            };
            assert_eq!(*adjacency, expected, "{vtep}");
        }

        // The router's MAC changes.
        router.ip("link set to-node address 02:00:00:00:00:42");
        node.ip("neighbor change 192.0.2.1 dev eth0 lladdr 02:00:00:00:00:42 nud reachable");
        node.ip("neighbor change fd00:2::1 dev eth0 lladdr 02:00:00:00:00:42 nud reachable");
        let new = "02:00:00:00:00:42".parse().unwrap();
        let followed = |found: &BTreeMap<IpAddr, Adjacency>| {
            let same = |a: &Adjacency| {
                matches!(a, Adjacency::Resolved { next_hop_mac, .. } if *next_hop_mac == new)
            };
            found.values().all(same)
        };
        adjacencies(&mut netlink, &vteps, followed).await;

        // The next hop becomes another one.
        router.ip("address add 192.0.2.2/24 dev to-node");
        node.ip("neighbor add 192.0.2.2 dev eth0 lladdr 02:00:00:00:00:43");
        node.ip("route replace 203.0.113.0/24 via 192.0.2.2");
        let rerouted = |found: &BTreeMap<IpAddr, Adjacency>| {
            let wanted = "02:00:00:00:00:43".parse().unwrap();
            matches!(found[&address("203.0.113.7")],
                Adjacency::Resolved { next_hop_mac, .. } if next_hop_mac == wanted)
        };
        adjacencies(&mut netlink, &vteps, rerouted).await;
    });
}

#[test]
fn keeps_neighbors_fresh() {
    let (node, _router, _near) = underlay("fresh");
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        netlink.underlay(&own(), &[]).await.unwrap();
        adjacencies(&mut netlink, &["192.0.2.1"], all_resolved).await;
        // Neighbors that nobody confirms or that are thrown out are asked for
        // again without a packet of the kernel's own.
        for disturbance in ["neighbor change 192.0.2.1 dev eth0 nud stale", "neighbor flush all"] {
            node.ip(disturbance);
            let fresh = async {
                while !node.ip("neighbor show 192.0.2.1").contains("REACHABLE") {
                    // That a known MAC is confirmed is no change to tell of.
                    let wait = Duration::from_millis(100);
                    let told = tokio::time::timeout(wait, netlink.changed()).await;
                    if told.is_ok_and(|changed| changed.unwrap().adjacencies) {
                        adjacencies(&mut netlink, &["192.0.2.1"], all_resolved).await;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, fresh).await.expect(disturbance);
        }
    });
}

#[test]
fn says_why_a_vtep_is_out_of_reach() {
    let (node, router, _near) = underlay("reach");
    node.ip("route add blackhole 203.0.114.0/24");
    node.ip("route add throw 203.0.116.0/24");
    let reason = |adjacency: &Adjacency| match adjacency {
        Adjacency::Unresolved { reason } => reason.clone(),
        resolved => panic!("{resolved:?}"),
    };
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        netlink.underlay(&own(), &[]).await.unwrap();
        let cases = [
            ("192.0.2.77", "next hop 192.0.2.77 on eth0 has not answered"),
            ("198.51.100.20", "leaves by device eth1, which is not in the underlay"),
            ("100.64.0.1", "no route to 100.64.0.1"),
            ("203.0.114.1", "reject 203.0.114.1"),
            ("203.0.116.1", "no route to 203.0.116.1"),
            ("192.0.2.10", "an address of this node"),
            ("fd00:2::77", "next hop fd00:2::77 on eth0 has not answered"),
        ];
        let addresses: Vec<&str> = cases.iter().map(|(vtep, _)| *vtep).collect();
        let found = adjacencies(&mut netlink, &addresses, |_| true).await;
        for (vtep, expected) in cases {
            let reason = reason(&found[&address(vtep)]);
            assert!(reason.contains(expected), "{vtep}: {reason}");
        }
        // One of them comes up later, and is found without being asked about.
        router.ip("address add 192.0.2.77/24 dev to-node");
        let up = |found: &BTreeMap<IpAddr, Adjacency>| {
            matches!(found[&address("192.0.2.77")], Adjacency::Resolved { .. })
        };
        adjacencies(&mut netlink, &addresses, up).await;

        // With both devices in the underlay the other one resolves too.
        let names = ["eth0".to_owned(), "eth1".to_owned(), "eth9".to_owned()];
        let underlay = netlink.underlay(&own(), &names).await.unwrap();
        assert_eq!(underlay.devices.len(), 2);
        let [missing] = &underlay.conditions[..] else { panic!("{underlay:?}") };
        assert_eq!(missing.object, "underlay device eth9");
        adjacencies(&mut netlink, &["198.51.100.20"], all_resolved).await;

        // No address of the family at all, or none that a device holds.
        let only_v4 = [address("192.0.2.10"), address("192.0.2.11")];
        let underlay = netlink.underlay(&only_v4, &[]).await.unwrap();
        let [missing] = &underlay.conditions[..] else { panic!("{underlay:?}") };
        assert_eq!(missing.object, "underlay address 192.0.2.11");
        assert!(missing.message.contains("no device holds it"));
        let found = adjacencies(&mut netlink, &["fd00:3::7"], |_| true).await;
        assert!(reason(&found[&address("fd00:3::7")]).contains("no IPv6 address"));
    });
}

#[test]
fn follows_underlay_devices() {
    let (node, router, _near) = underlay("devices");
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        let before = netlink.underlay(&own(), &[]).await.unwrap().devices;
        adjacencies(&mut netlink, &["203.0.113.7"], all_resolved).await;

        for (command, name, mtu) in [
            ("link set eth0 name uplink", "uplink", 1500),
            ("link set uplink mtu 1400", "uplink", 1400),
            ("link set uplink address 02:00:00:00:00:77", "uplink", 1400),
        ] {
            node.ip(command);
            change(&mut netlink, |changed| changed.underlay && changed.adjacencies).await;
            let devices = netlink.underlay(&own(), &[]).await.unwrap().devices;
            assert_eq!((devices[0].name.as_str(), devices[0].mtu), (name, mtu), "{command}");
            assert_eq!(devices[0].index, before[0].index);
        }
        let moved = |found: &BTreeMap<IpAddr, Adjacency>| {
            let mac = "02:00:00:00:00:77".parse().unwrap();
            found
                .values()
                .all(|a| matches!(a, Adjacency::Resolved { source_mac, .. } if *source_mac == mac))
        };
        adjacencies(&mut netlink, &["203.0.113.7"], moved).await;

        router.ip("link set to-node down");
        change(&mut netlink, |changed| changed.underlay).await;
        let underlay = netlink.underlay(&own(), &[]).await.unwrap();
        assert!(!underlay.devices[0].running);
        assert!(underlay.conditions[0].message.contains("no carrier"), "{underlay:?}");
        let found = adjacencies(&mut netlink, &["203.0.113.7"], |_| true).await;
        assert!(!all_resolved(&found));

        node.ip("link del uplink");
        change(&mut netlink, |changed| changed.underlay).await;
        let underlay = netlink.underlay(&own(), &[]).await.unwrap();
        assert_eq!((underlay.devices.len(), underlay.conditions.len()), (0, 2), "{underlay:?}");

        // It comes back, with another index.
        join(&node, "eth0", &router, "again");
        node.ip("address add 192.0.2.10/24 dev eth0");
        let back = async {
            while netlink.underlay(&own(), &[]).await.unwrap().devices.is_empty() {
                change(&mut netlink, |changed| changed.underlay).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("the device is seen again");
    });
}

#[test]
fn lost_events_mean_that_everything_may_have_changed() {
    let node = Space::new("overrun");
    node.ip("link add other type veth peer name other1");
    node.ip("link set other up");
    let batch = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (0..8192)
        .map(|n| format!("route add 10.{}.{}.0/24 dev other\n", n / 256, n % 256))
        .collect();
    std::fs::write(batch.path(), lines).unwrap();
    node.run(async || {
        let mut netlink = Netlink::open().unwrap();
        // Nothing is read meanwhile: this is the only thread.
        node.ip(&format!("-batch {}", batch.path().display()));
        assert_eq!(next_change(&mut netlink).await, Changed::ALL);
        // And it goes on afterwards.
        netlink.ensure_gateway(&spec()).await.unwrap();
        node.ip("link set tieline0 mtu 1300");
        change(&mut netlink, |changed| changed.gateway).await;
    });
}
