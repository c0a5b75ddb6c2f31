//! The other side is the Linux kernel's vxlan device, not ourselves.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tieline_lab::{Outcome, Pod, TcpServer, UdpServer, bulk, connect, ping, udp_echo};
use tieline_tests::joined::{Joined, Outer, PATIENCE, Setup};

const PORT: u16 = 5001;

/// Both ways between the two pods, in both families.
fn ways(joined: &Joined) -> Vec<(&Pod, IpAddr)> {
    let (client, server) = (joined.client(), joined.server());
    let there = server.addresses().map(|address| (client, address));
    let back = client.addresses().map(|address| (server, address));
    there.into_iter().chain(back).collect()
}

/// Bytes before the payload of a UDP datagram or ICMP echo.
fn headers(to: IpAddr) -> usize {
    if to.is_ipv4() { 28 } else { 48 }
}

/// Every kind of traffic, every size.
fn everything_passes(setup: Setup, step: usize) {
    let joined = Joined::new(setup, &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let pods = [&joined.client().netns, &joined.server().netns];
    let _tcp = pods.map(|pod| TcpServer::start(pod, PORT).unwrap());
    let _udp = pods.map(|pod| UdpServer::start(pod, PORT).unwrap());
    for (from, to) in ways(&joined) {
        let what = format!("{setup:?}: {} to {to}", from.name);
        let log = || daemon.process.transcript();
        let peer = SocketAddr::new(to, PORT);
        let outcome = connect(&from.netns, peer, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Connected, "TCP, {what}\n{}", log());

        let most = setup.outer.mtu() - headers(to);
        let sizes = (0..=most).step_by(step).chain([most]);
        for size in sizes {
            let outcome = udp_echo(&from.netns, peer, size, PATIENCE).unwrap();
            assert_eq!(outcome, Outcome::Connected, "UDP, {size} bytes, {what}\n{}", log());
        }
        for size in [0, 1, 17, 56, 1000, most] {
            let outcome = ping(&from.netns, to, size, PATIENCE).unwrap();
            assert_eq!(outcome, Outcome::Connected, "ICMP, {size} bytes, {what}\n{}", log());
        }
        // Every byte is compared at the other end.
        let moved = bulk(&from.netns, peer, Duration::from_millis(500)).unwrap();
        assert!(moved.bytes > 1 << 20, "{moved:?}, {what}\n{}", log());
    }
}

#[test]
fn over_ipv4() {
    everything_passes(Setup::new(Outer::V4), 1);
}

#[test]
fn over_ipv6() {
    everything_passes(Setup::new(Outer::V6), 1);
}

#[test]
fn each_family_over_its_own() {
    everything_passes(Setup::new(Outer::Both), 7);
}

#[test]
fn with_another_network_identifier_and_port() {
    everything_passes(Setup { vni: 77, port: 8472, ..Setup::new(Outer::V4) }, 97);
    everything_passes(Setup { vni: 0xff_fffe, port: 4790, ..Setup::new(Outer::V6) }, 97);
}

/// Packets that are too big for the tunnel are answered by our kernel, so that
/// pods with a larger MTU find the right one.
#[test]
fn pods_learn_a_smaller_mtu() {
    for outer in [Outer::V4, Outer::V6] {
        let setup = Setup { pod_mtu: 1500, ..Setup::new(outer) };
        let joined = Joined::new(setup, &["node-a"]);
        let daemon = joined.start("daemon");
        daemon.wait_ready();
        let _server = TcpServer::start(&joined.server().netns, PORT).unwrap();
        for to in joined.server().addresses() {
            let peer = SocketAddr::new(to, PORT);
            let moved = bulk(&joined.client().netns, peer, Duration::from_millis(500));
            let moved = moved.unwrap_or_else(|error| {
                panic!("{outer:?} to {to}: {error}\n{}", daemon.process.transcript())
            });
            assert!(moved.bytes > 1 << 20, "{moved:?} to {to}");
        }
    }
}
