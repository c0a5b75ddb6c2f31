//! UDP and ICMP peers and captures, and clusters built of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tieline_lab::{
    Capture, Cluster, ClusterSpec, End, Lab, NodeSpec, Outcome, PodSpec, TcpServer, UdpServer,
    Underlay, connect, ping, udp_blast, udp_echo, veth,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn udp_and_icmp_over_a_veth_seen_by_a_capture() -> Result {
    let lab = Lab::new("peers")?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let left = End::new(&a, "eth0").address("10.0.0.1/24").address("fd00::1/64");
    let right = End::new(&b, "eth0").address("10.0.0.2/24").address("fd00::2/64");
    veth(1500, &left, &right)?;
    // Frames of a second link must stay out of the capture.
    veth(1500, &End::new(&a, "other0"), &End::new(&b, "other1").address("10.9.0.2/24"))?;
    let server = UdpServer::start(&b, 53)?;
    let capture = Capture::start(&b, "eth0")?;
    for (address, ether_type) in [("10.0.0.2", [8, 0]), ("fd00::2", [0x86, 0xdd])] {
        let to: IpAddr = address.parse()?;
        for len in [0, 1, 8, 1000, 1400, 4000] {
            assert_eq!(ping(&a, to, len, SOON)?, Outcome::Connected, "{to} {len}");
            assert_eq!(udp_echo(&a, SocketAddr::new(to, 53), len, SOON)?, Outcome::Connected);
        }
        assert_eq!(udp_echo(&a, SocketAddr::new(to, 54), 64, SOON)?, Outcome::Refused);
        capture.clear();
        let run = udp_blast(&a, SocketAddr::new(to, 53), &server, 18, Some(1000), SHORT)?;
        assert!(run.sent > 0 && run.received == run.sent && run.elapsed >= SHORT, "{run:?}");
        let size = if to.is_ipv4() { 14 + 20 + 8 + 18 } else { 14 + 40 + 8 + 18 };
        let frames = capture.wait(run.sent as usize, SOON, |frame| {
            !frame.outgoing && frame.bytes.len() == size && frame.bytes[12..14] == ether_type
        })?;
        assert_eq!(frames.len(), run.sent as usize);
    }
    b.ip(["route add blackhole 10.0.0.1/32"])?;
    assert_eq!(ping(&a, "10.0.0.2".parse()?, 8, SHORT)?, Outcome::TimedOut);
    let pcap = lab.dir().join("b.pcap");
    capture.write_pcap(&pcap)?;
    let bytes = std::fs::read(pcap)?;
    assert_eq!(bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
    let frames = capture.frames();
    assert_eq!(bytes.len(), frames.iter().map(|frame| 16 + frame.bytes.len()).sum::<usize>() + 24);
    Ok(())
}

#[test]
fn a_cluster_comes_up_as_calico_wires_it() -> Result {
    let lab = Lab::new("peers")?;
    let mut underlay = Underlay::new(&lab, 1500)?;
    let (one, two) = (underlay.segment()?, underlay.segment()?);
    let pod = |name: &str| PodSpec { namespace: "shop".into(), name: name.into() };
    let node = |name: &str, segment, pods: &[&str]| NodeSpec {
        name: name.into(),
        segment,
        pods: pods.iter().map(|name| pod(name)).collect(),
    };
    let spec = ClusterSpec {
        name: "c".into(),
        pool_v4: "10.10.0.0".parse()?,
        pool_v6: "fd10::".parse()?,
        pod_mtu: 1430,
        nodes: vec![
            node("n1", one, &["web", "api"]),
            node("n2", two, &["db"]),
            node("n3", two, &[]),
        ],
    };
    let mut cluster = Cluster::new(&lab, &mut underlay, &spec)?;
    let [n1, n2, n3] = &cluster.nodes[..] else { return Err("three nodes expected".into()) };
    let _servers: Vec<_> = [&n2.netns, &n3.netns, &n1.pods[1].netns, &n2.pods[0].netns]
        .into_iter()
        .map(|netns| TcpServer::start(netns, 80))
        .collect::<tieline_lab::Result<_>>()?;

    for peer in [n2, n3] {
        for to in [IpAddr::from(peer.underlay.v4), peer.underlay.v6.into()] {
            assert_eq!(connect(&n1.netns, SocketAddr::new(to, 80), SOON)?, Outcome::Connected);
        }
    }
    // n2 and n3 share a segment, n1 is behind the router.
    let seen = Capture::start(underlay.router(), "br2")?;
    let outcome = connect(&n2.netns, SocketAddr::new(n3.underlay.v4.into(), 80), SOON)?;
    assert_eq!(outcome, Outcome::Connected);
    let tcp = |bytes: &[u8]| bytes[12..14] == [8, 0] && bytes[23] == 6;
    assert!(!seen.frames().iter().any(|frame| tcp(&frame.bytes)));
    let outcome = connect(&n2.netns, SocketAddr::new(n1.underlay.v4.into(), 80), SOON)?;
    assert_eq!(outcome, Outcome::Refused);
    seen.wait(1, SOON, |frame| tcp(&frame.bytes))?;

    let (web, api, db) = (&n1.pods[0], &n1.pods[1], &n2.pods[0]);
    for to in api.addresses() {
        assert_eq!(connect(&web.netns, SocketAddr::new(to, 80), SOON)?, Outcome::Connected);
        assert_eq!(ping(&n1.netns, to, 100, SOON)?, Outcome::Connected);
    }
    // Another node's pods: not before the nodes' tunnels exist.
    for to in db.addresses() {
        let outcome = connect(&web.netns, SocketAddr::new(to, 80), SHORT)?;
        assert!(!matches!(outcome, Outcome::Connected), "{outcome}");
    }
    cluster.join_with_kernel_vxlan(|node, v6| {
        let last = node.bytes().last().unwrap_or_default();
        format!("66:00:00:00:{:02x}:{last:02x}", u8::from(v6))
    })?;
    for to in db.addresses() {
        assert_eq!(connect(&web.netns, SocketAddr::new(to, 80), SOON)?, Outcome::Connected);
    }

    let api = api.addresses()[0];
    assert!(cluster.node_of("api").is_some_and(|node| node.name == "n1"));
    assert!(cluster.nodes[0].remove_pod("api")? && !cluster.nodes[0].remove_pod("api")?);
    assert!(cluster.pod("api").is_none());
    let web = cluster.pod("web").ok_or("no pod web")?;
    assert!(ping(&web.netns, api, 0, SHORT)? != Outcome::Connected);
    let added = cluster.nodes[2].add_pod(&lab, "c", &pod("late"), 1430)?;
    assert_eq!(added.v4, std::net::Ipv4Addr::new(10, 10, 0, 129));
    let late = added.netns.clone();
    assert_eq!(ping(&late, cluster.nodes[2].underlay.v6.into(), 0, SOON)?, Outcome::Connected);
    Ok(())
}
