//! The node stays a node: whatever the daemon does or suffers, everything else
//! on the same underlay device goes on, and at the end the node is as it was
//! found.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use tieline_lab::{Netns, Outcome, Signal, Stream, TcpServer, connect};
use tieline_tests::joined::{Joined, Outer, PATIENCE, Setup, underlay_address};

const PORT: u16 = 5001;
const FAMILIES: [bool; 2] = [false, true];

/// Long enough for a packet in these namespaces, short enough to find out many
/// times that none comes.
const SHORT: Duration = Duration::from_millis(300);

/// A node with the daemon, a node of the same cluster joined by the kernel's
/// vxlan devices, a node of another cluster, and a host that is no node.
struct World {
    joined: Joined,
    host: Netns,
    host_addresses: [IpAddr; 2],
    _servers: Vec<TcpServer>,
}

impl World {
    fn new() -> Self {
        let mut joined = Joined::new(Setup::new(Outer::Both), &["node-a", "node-b"]);
        let (a, b) = (&joined.ours.nodes[0], &joined.ours.nodes[1]);
        for v6 in FAMILIES {
            joined.tunnel(a, b, v6);
            joined.tunnel(b, a, v6);
        }
        let host = joined.lab.netns("host").unwrap();
        let place = joined.underlay.attach(joined.segment, &host).unwrap();
        let host_addresses = [place.v4.into(), place.v6.into()];
        let nodes = [&joined.our_node().netns, &host, &joined.client().netns];
        let servers = nodes.map(|netns| TcpServer::start(netns, PORT).unwrap()).into();
        Self { joined, host, host_addresses, _servers: servers }
    }

    fn node(&self) -> &Netns {
        &self.joined.our_node().netns
    }

    /// Everything that is none of the daemon's business.
    fn assert_node_works(&self, when: &str) {
        for v6 in FAMILIES {
            // Neighbors are found anew: ARP and neighbor discovery work.
            for netns in [self.node(), &self.host] {
                netns.ip(["neighbor flush dev eth0"]).unwrap();
            }
            let own = SocketAddr::new(underlay_address(self.joined.our_node(), v6), PORT);
            let host = SocketAddr::new(self.host_addresses[usize::from(v6)], PORT);
            let client = SocketAddr::new(self.joined.client().addresses()[usize::from(v6)], PORT);
            let neighbor = &self.joined.ours.nodes[1].pods[0].netns;
            for (from, to, what) in [
                (&self.host, own, "from a host to the node"),
                (self.node(), host, "from the node to a host"),
                (neighbor, client, "over the kernel's own vxlan device"),
            ] {
                let outcome = connect(from, to, PATIENCE).unwrap();
                assert_eq!(outcome, Outcome::Connected, "{what}, {to}, {when}");
            }
        }
        assert_eq!(self.broadcast().unwrap(), b"anybody", "broadcast {when}");
    }

    /// Sends a broadcast from the host and returns what the node gets of it.
    fn broadcast(&self) -> std::io::Result<Vec<u8>> {
        let receiver = self.node().run(|| UdpSocket::bind("0.0.0.0:6767")).unwrap()?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let send = || -> std::io::Result<()> {
            // As a DHCP client has no address yet, nor a route.
            self.host.ip(["route replace 255.255.255.255 dev eth0"]).unwrap();
            let sender = UdpSocket::bind("0.0.0.0:0")?;
            sender.set_broadcast(true)?;
            sender.send_to(b"anybody", "255.255.255.255:6767").map(drop)
        };
        self.host.run(send).unwrap()?;
        let mut buffer = [0; 64];
        let len = receiver.recv(&mut buffer)?;
        Ok(buffer[..len].to_vec())
    }

    /// Tries to connect from the other cluster's pod to ours, for this long each.
    fn reach_client(&self, within: Duration) -> [Outcome; 2] {
        let server = &self.joined.server().netns;
        let client = self.joined.client().addresses();
        client.map(|to| connect(server, SocketAddr::new(to, PORT), within).unwrap())
    }

    fn assert_joined(&self, when: &str) {
        let outcome = self.reach_client(PATIENCE);
        assert_eq!(outcome, [Outcome::Connected, Outcome::Connected], "{when}");
    }

    /// Waits until packets of the other cluster's node come to the kernel's
    /// vxlan devices.
    fn wait_kernel_gets_tunnel(&self, when: &str) {
        let before = FAMILIES.map(|v6| self.received(v6));
        let start = Instant::now();
        while (0..2).any(|family| self.received(family == 1) == before[family]) {
            assert!(
                start.elapsed() < PATIENCE,
                "the kernel gets none of the tunnel's packets {when}"
            );
            let outcome = self.reach_client(SHORT);
            assert_ne!(outcome[0], Outcome::Connected, "nobody answers {when}");
        }
    }

    /// Packets that the kernel's vxlan device on our node has received.
    fn received(&self, v6: bool) -> u64 {
        let device = if v6 { "vxlan-v6.calico" } else { "vxlan.calico" };
        let text = self.ip(&format!("-j -s link show {device}"));
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }

    /// What `ip` prints on our node.
    fn ip(&self, words: &str) -> String {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        let output = self.node().output("ip", command, PATIENCE).unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Devices, addresses, routes and lasting neighbors of our node.
    fn picture(&self) -> [String; 5] {
        [
            "-d link show",
            "address show",
            "-4 route show table all",
            "-6 route show table all",
            "neighbor show nud permanent",
        ]
        .map(|words| self.ip(words))
    }

    fn has_program(&self) -> bool {
        self.ip("link show dev eth0").contains("xdp")
    }

    fn gateway_index(&self) -> String {
        let text = self.ip("-o link show dev tieline0");
        text.split(':').next().unwrap().to_owned()
    }
}

#[test]
fn whatever_happens_to_the_daemon() {
    let world = World::new();
    let before = world.picture();
    world.assert_node_works("before the first start");

    let daemon = world.joined.start("first");
    daemon.wait_ready();
    assert!(world.has_program());
    // Calico's own devices are there as ever.
    let conditions = daemon.status().unwrap()["conditions"].to_string();
    assert!(!conditions.contains("vxlan"), "{conditions}");
    world.assert_joined("while the daemon runs");
    world.assert_node_works("while the daemon runs");
    // Connections that were there before are not to notice anything.
    let streams: Vec<Stream> = FAMILIES
        .iter()
        .flat_map(|v6| {
            let own = SocketAddr::new(underlay_address(world.joined.our_node(), *v6), PORT);
            let client = SocketAddr::new(world.joined.client().addresses()[usize::from(*v6)], PORT);
            let neighbor = &world.joined.ours.nodes[1].pods[0].netns;
            [(&world.host, own), (neighbor, client)]
        })
        .map(|(from, to)| Stream::start(from, to, Duration::from_millis(20), PATIENCE).unwrap())
        .collect();
    let assert_streams = |when: &str| {
        for stream in &streams {
            let answers = stream.wait_answers(5, PATIENCE);
            answers.unwrap_or_else(|error| panic!("a running connection {when}: {error}"));
        }
    };
    assert_streams("while the daemon runs");

    daemon.process.signal(Signal::Stop).unwrap();
    world.assert_node_works("while the daemon is frozen");
    world.wait_kernel_gets_tunnel("while the daemon is frozen");
    assert_streams("while the daemon is frozen");
    daemon.process.signal(Signal::Cont).unwrap();
    world.assert_joined("after the daemon was frozen");

    daemon.process.signal(Signal::Kill).unwrap();
    daemon.process.wait(PATIENCE).unwrap();
    assert!(!world.has_program(), "the XDP program outlives the daemon");
    world.assert_node_works("after the daemon was killed");
    world.wait_kernel_gets_tunnel("after the daemon was killed");
    assert_streams("after the daemon was killed");
    let left = world.gateway_index();

    let daemon = world.joined.start("second");
    daemon.wait_ready();
    assert_eq!(world.gateway_index(), left, "the second start adopts the gateway");
    world.assert_joined("after the second start");
    world.assert_node_works("after the second start");

    daemon.process.signal(Signal::Term).unwrap();
    let status = daemon.process.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}\n{}", daemon.process.transcript());
    for (now, then) in world.picture().iter().zip(&before) {
        assert_eq!(now, then, "the node is not as it was found");
    }
    world.assert_node_works("after the daemon has ended");
    assert_streams("after the daemon has ended");
}

/// The ground moves under the daemon: devices, addresses, routes.
#[test]
fn devices_and_addresses_come_and_go() {
    let joined = Joined::new(Setup::new(Outer::Both), &["node-a"]);
    let node = &joined.our_node().netns;
    let underlay = &joined.our_node().underlay;
    let _server = TcpServer::start(&joined.client().netns, PORT).unwrap();
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(daemon.process.try_wait().unwrap().is_none(), "the daemon ended: {what}");
            let log = || daemon.process.transcript();
            assert!(start.elapsed() < PATIENCE, "{what}: {:#?}\n{}", daemon.status(), log());
        }
    };
    let is_joined = || {
        let server = &joined.server().netns;
        joined.client().addresses().iter().all(|to| {
            connect(server, SocketAddr::new(*to, PORT), SHORT).unwrap() == Outcome::Connected
        })
    };
    let complains = |of: &str| {
        let status = daemon.status().unwrap();
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().any(|condition| condition["object"] == of)
    };
    let addresses = |device: &str| {
        node.ip([
            format!("address replace {}/24 dev {device}", underlay.v4),
            format!("address replace {}/64 dev {device} nodad", underlay.v6),
            format!("route replace default via {} dev {device}", underlay.gateway_v4),
            format!("route replace default via {} dev {device}", underlay.gateway_v6),
        ])
        .unwrap();
    };
    wait("at first", &is_joined);

    node.ip(["link set eth0 name uplink"]).unwrap();
    wait("the underlay device has another name", &is_joined);

    node.ip(["link set uplink down"]).unwrap();
    wait("the underlay device is down", &|| !is_joined());
    node.ip(["link set uplink up"]).unwrap();
    addresses("uplink");
    wait("the underlay device is up again", &is_joined);

    node.ip([format!("address del {}/24 dev uplink", underlay.v4)]).unwrap();
    let missing = format!("underlay address {}", underlay.v4);
    wait("an underlay address is missing", &|| complains(&missing));
    addresses("uplink");
    wait("the underlay address is there again", &is_joined);

    node.ip(["link del tieline0"]).unwrap();
    wait("someone has removed the gateway", &is_joined);
    node.ip(["route flush proto 133"]).unwrap();
    wait("someone has removed the routes", &is_joined);

    // Another overlay, at our port and on a part of the other cluster's range.
    let server = joined.server().addresses()[0];
    node.ip([
        "link add other type vxlan id 7 dstport 4789 dev uplink".to_owned(),
        "link set other up".to_owned(),
        format!("route add {server}/32 dev other"),
    ])
    .unwrap();
    let (port, part) = ("vxlan device other", format!("route {server}/32"));
    wait("another overlay is there", &|| complains(port) && complains(&part) && !is_joined());
    node.ip(["link del other"]).unwrap();
    wait("it has gone", &|| !complains(port) && !complains(&part) && is_joined());

    daemon.wait_ready();
    daemon.process.signal(Signal::Term).unwrap();
    let status = daemon.process.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}\n{}", daemon.process.transcript());
}

#[test]
fn a_vxlan_device_that_delivers_what_is_denied_is_an_error() {
    let joined = Joined::new(Setup { mode: "packet", ..Setup::new(Outer::Both) }, &["node-a"]);
    let node = &joined.our_node().netns;
    // Each is fine but the first: another VNI, another port, down.
    node.ip([
        "link add same type vxlan id 4096 dstport 4789 dev eth0",
        "link add other-vni type vxlan id 4097 dstport 4789 dev eth0",
        "link add other-port type vxlan id 4096 dstport 4790 dev eth0",
        "link add down type vxlan id 4096 dstport 4791 dev eth0",
        "link set same up",
        "link set other-vni up",
        "link set other-port up",
    ])
    .unwrap();
    let daemon = joined.start("beside");
    let errors = || {
        let status = daemon.status().unwrap_or_default();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let errors = conditions.into_iter().filter(|condition| condition["severity"] == "error");
        errors.map(|error| (error["object"].clone(), error["message"].clone())).collect::<Vec<_>>()
    };
    let named = |device: &str| {
        let start = Instant::now();
        loop {
            let errors = errors();
            if let [(object, message)] = &errors[..]
                && *object == format!("vxlan device {device}")
            {
                assert!(message.as_str().is_some_and(|text| text.contains("AF_XDP")), "{message}");
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{device}: {errors:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    named("same");
    // It is seen to go, and one that takes every VNI to come.
    node.ip(["link delete same"]).unwrap();
    daemon.wait_ready();
    node.ip([
        "link delete other-vni",
        "link add every type vxlan external dstport 4789",
        "link set every up",
    ])
    .unwrap();
    named("every");
}
