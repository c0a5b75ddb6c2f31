//! The other side is the Linux kernel's vxlan device, not ourselves.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{LinkSlice, NetSlice, SlicedPacket, TransportSlice};
use serde_json::{Value, json};
use tieline_lab::{
    Capture, CapturedFrame, Outcome, Pod, TcpServer, UdpServer, bulk, connect, ping, udp_echo,
};
use tieline_tests::joined::{Joined, Outer, PATIENCE, Setup, mac, underlay_address};

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

/// Every kind of traffic, every size. Returns what `status` says afterwards.
fn everything_passes(setup: Setup, step: usize) -> Value {
    let joined = Joined::new(setup, &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let status = daemon.status().unwrap();
    let (mode, gateway) = (&status["underlay"][0]["mode"], &status["gateway"]["mode"]);
    let expected = match setup.mode {
        "packet" => "packet socket",
        "generic" => "AF_XDP generic",
        _ => "AF_XDP native copy",
    };
    assert_eq!((mode, gateway), (&expected.into(), &expected.into()), "{setup:?}");
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
    daemon.status().unwrap()
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

#[test]
fn by_every_kind_of_port() {
    for mode in ["native-copy", "generic", "packet"] {
        everything_passes(Setup { mode, ..Setup::new(Outer::Both) }, 97);
    }
}

/// The kernel at the other end spreads what it sends over the queues, flow by
/// flow: there are several hundred, so that none gets hardly any by chance.
#[test]
fn several_queues_are_shared_out_among_the_workers() {
    let four = |workers| Setup { queues: 4, workers: Some(workers), ..Setup::new(Outer::Both) };
    for (workers, shares) in [
        (1, vec![("eth0:0,1,2,3", vec![0, 1, 2, 3])]),
        (2, vec![("eth0:0,2", vec![0, 2]), ("eth0:1,3", vec![1, 3])]),
    ] {
        let status = everything_passes(four(workers), 7);
        let all = status["workers"].as_array().unwrap();
        assert_eq!(all.len(), shares.len(), "{status}");
        for (worker, (name, queues)) in all.iter().zip(shares) {
            assert_eq!((&worker["underlay"], &worker["queues"]), (&json!(name), &json!(queues)));
            assert!(worker["underlay_port"]["received"].as_u64() > Some(100), "{worker}");
            assert!(worker["gateway_port"]["received"].as_u64() > Some(100), "{worker}");
            assert_eq!(worker["frames"], json!(8192 * queues.len()));
        }
        assert_eq!(status["conditions"], json!([]));
    }
}

#[test]
fn more_workers_than_queues_are_said_not_to_run() {
    let setup = Setup { queues: 2, workers: Some(9), ..Setup::new(Outer::V4) };
    let joined = Joined::new(setup, &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let begun = Instant::now();
    let status = loop {
        let status = daemon.status().unwrap();
        if status["conditions"] != json!([]) {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "{status}");
    };
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(2), "{status}");
    let condition = &status["conditions"][0];
    assert_eq!(
        (&condition["severity"], &condition["object"]),
        (&json!("warning"), &json!("workers.count"))
    );
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("2 workers run, not 9: "), "{message}");
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

/// What we put on the wire, read by a parser that is not ours.
#[test]
fn frames_on_the_underlay_are_as_the_standards_say() {
    let joined = Joined::new(Setup::new(Outer::Both), &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let _server = TcpServer::start(&joined.server().netns, PORT).unwrap();
    let port = &joined.our_node().underlay.port;
    for (v6, to) in [false, true].into_iter().zip(joined.server().addresses()) {
        let capture = Capture::start(joined.underlay.router(), port).unwrap();
        let peer = SocketAddr::new(to, PORT);
        let outcome = connect(&joined.client().netns, peer, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Connected);
        // A handshake, a request, and the end of both.
        let ours = |frame: &CapturedFrame| !frame.outgoing && is_vxlan(&frame.bytes, 4789);
        for frame in capture.wait(5, PATIENCE, ours).unwrap() {
            check_frame(&joined, &frame.bytes, v6);
        }
    }
}

#[test]
fn flows_are_told_with_both_ends_and_what_has_gone_through() {
    let joined = Joined::new(Setup::new(Outer::V4), &["node-a"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let (client, server) = (joined.client(), joined.server());
    let _servers = [client, server].map(|pod| UdpServer::start(&pod.netns, PORT).unwrap());
    for (from, to, size) in [(client, server, 100), (server, client, 500)] {
        let peer = SocketAddr::new(to.addresses()[0], PORT);
        let outcome = udp_echo(&from.netns, peer, size, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Connected, "{}", daemon.process.transcript());
    }
    let told = daemon.flows(&format!("default/{}", client.name));
    assert_eq!(told["matching"], 2, "{told:#}");
    let [there, back] = [&told["flows"][1], &told["flows"][0]];
    for (flow, ends, bytes) in [(there, [client, server], 128), (back, [server, client], 528)] {
        let once = serde_json::json!({"packets": 1, "bytes": bytes});
        assert_eq!((&flow["sent"], &flow["answered"]), (&once, &once), "{told:#}");
        assert_eq!((&flow["protocol"], &flow["state"]), (&"udp".into(), &"answered".into()));
        assert_eq!((&flow["verdict"], &flow["to"]["port"]), (&"allow".into(), &PORT.into()));
        assert_eq!(flow["decided_by"], "profile kns.default", "{told:#}");
        for (end, pod) in [&flow["from"], &flow["to"]].into_iter().zip(ends) {
            let cluster = if pod.name == client.name { "local" } else { "theirs" };
            let identity = &end["identities"][0];
            let name = format!("default/{}", pod.name);
            assert_eq!(identity["cluster"], cluster, "{told:#}");
            assert_eq!(identity["name"], name.as_str(), "{told:#}");
            assert_eq!(end["address"], pod.addresses()[0].to_string(), "{told:#}");
        }
    }
    assert_eq!(daemon.flows("theirs:default/server")["matching"], 2);
    assert_eq!(daemon.flows("192.0.2.77"), serde_json::json!({"matching": 0, "flows": []}));
}

fn is_vxlan(frame: &[u8], port: u16) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    matches!(packet.transport, Some(TransportSlice::Udp(udp)) if udp.destination_port() == port)
}

fn check_frame(joined: &Joined, frame: &[u8], v6: bool) {
    let outer = SlicedPacket::from_ethernet(frame).unwrap();
    let (source, destination, hops) = addresses(outer.net.as_ref().unwrap());
    assert_eq!(source, underlay_address(joined.our_node(), v6));
    assert_eq!(destination, underlay_address(joined.their_node(), v6));
    assert!(hops >= 64, "{hops}");
    if let Some(NetSlice::Ipv4(ip)) = &outer.net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    let Some(TransportSlice::Udp(udp)) = &outer.transport else { panic!("{outer:?}") };
    // RFC 7348 section 5: the port range, and no checksum over IPv4; RFC 8200
    // section 8.1 wants one over IPv6.
    assert!(udp.source_port() >= 49152, "{}", udp.source_port());
    assert_eq!(udp.checksum() == 0, !v6);
    assert!(!v6 || is_complete(outer.net.as_ref().unwrap()));
    let (vxlan, inner) = udp.payload().split_at(8);
    assert_eq!(vxlan, [0x08, 0, 0, 0, 0, 0x10, 0, 0]);

    let inner = SlicedPacket::from_ethernet(inner).unwrap();
    let Some(LinkSlice::Ethernet2(ethernet)) = &inner.link else { panic!("{inner:?}") };
    assert_eq!(colons(ethernet.source()), mac(&joined.our_node().name, v6));
    assert_eq!(colons(ethernet.destination()), mac(&joined.their_node().name, v6));
    let (source, destination, hops) = addresses(inner.net.as_ref().unwrap());
    assert_eq!(source, joined.client().addresses()[usize::from(v6)]);
    assert_eq!(destination, joined.server().addresses()[usize::from(v6)]);
    // The pod sends 64; our kernel is the only router so far.
    assert_eq!(hops, 63);
    assert!(matches!(inner.transport, Some(TransportSlice::Tcp(_))));
    assert!(is_complete(inner.net.as_ref().unwrap()), "unfinished inner checksum");
}

fn addresses(net: &NetSlice<'_>) -> (IpAddr, IpAddr, u8) {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
        }
        NetSlice::Arp(_) => panic!("ARP in a tunnel"),
    }
}

/// Whether the checksum of TCP or UDP is right (RFC 1071, with the pseudo
/// headers of RFC 9293 section 3.1 and RFC 8200 section 8.1).
fn is_complete(net: &NetSlice<'_>) -> bool {
    let payload = net.ip_payload_ref().unwrap();
    let mut bytes = Vec::new();
    let (source, destination, _) = addresses(net);
    for address in [source, destination] {
        match address {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend((payload.payload.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, payload.ip_number.0]);
    bytes.extend(payload.payload);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let words = bytes.chunks_exact(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1]));
    let sum: u64 = words.sum();
    sum != 0 && sum.is_multiple_of(0xffff)
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
