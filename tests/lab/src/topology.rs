//! Clusters as Calico wires them, on an underlay of segments behind a router.
//!
//! ```text
//! pod eth0 (/32, /128; gateway 169.254.1.1, fe80::ecee:eeff:feee:eeee)
//!  |
//! node cali... (MAC ee:ee:ee:ee:ee:ee, proxy ARP) + route of the pod
//! node eth0 (10.77.S.H/24, fd77:0:0:S::H/64)
//!  |
//! router brS (.1, ::1), one bridge for each segment S
//! ```

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{End, Error, KernelVxlan, Lab, Netns, Result, VxlanPeer, veth};

/// MAC and link-local address of the node's end of every pod link, in every
/// Calico cluster.
const CALI_MAC: &str = "ee:ee:ee:ee:ee:ee";
const CALI_LINK_LOCAL: &str = "fe80::ecee:eeff:feee:eeee";
/// Felix's route protocol number (`deviceRouteProtocol`).
const FELIX_PROTOCOL: u8 = 80;
/// Addresses in one IPAM block of the default size (/26, /122).
const BLOCK_LEN: u32 = 64;

/// The network between nodes: segments, each with its own subnets, joined by
/// one router.
#[derive(Debug)]
pub struct Underlay {
    router: Netns,
    mtu: u32,
    queues: u32,
    segments: Vec<Members>,
}

/// Who is on a segment.
#[derive(Debug)]
struct Members {
    /// Number of the last host.
    hosts: u8,
    /// Devices for the nodes to come; without it each gets a veth to the router.
    devices: Option<VecDeque<String>>,
}

/// A segment of an [`Underlay`]: attached nodes reach each other without the
/// router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment(u8);

/// A node's place on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// IPv4 address, in a /24.
    pub v4: Ipv4Addr,
    /// IPv6 address, in a /64.
    pub v6: Ipv6Addr,
    /// The router's IPv4 address on this segment; nobody's on a segment of
    /// devices.
    pub gateway_v4: Ipv4Addr,
    /// The router's IPv6 address on this segment; nobody's on a segment of
    /// devices.
    pub gateway_v6: Ipv6Addr,
    /// The router's end of the link, if there is one: where to capture what the
    /// node sends.
    pub port: String,
}

impl Underlay {
    /// A router without segments.
    ///
    /// # Errors
    /// The namespace can't be made.
    pub fn new(lab: &Lab, mtu: u32) -> Result<Self> {
        let router = lab.netns("router")?;
        forward(&router)?;
        Ok(Self { router, mtu, queues: 1, segments: Vec::new() })
    }

    /// From now on, devices have so many queues.
    pub fn set_queues(&mut self, queues: u32) {
        self.queues = queues;
    }

    /// The router's namespace.
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn segment(&mut self) -> Result<Segment> {
        let id = self.segments.len() as u8 + 1;
        let (v4, v6) = addresses(id, 1);
        // Without snooping the first neighbor solicitation gets through.
        self.router.ip([
            format!("link add br{id} mtu {} type bridge mcast_snooping 0", self.mtu),
            format!("address add {v4}/24 dev br{id}"),
            format!("address add {v6}/64 dev br{id} nodad"),
            format!("link set br{id} up"),
        ])?;
        self.segments.push(Members { hosts: 1, devices: None });
        Ok(Segment(id))
    }

    /// Adds a segment that is there already: each node gets the next of these
    /// devices of the caller's own namespace, which something out of reach
    /// joins, such as an emulator or a switch. The router is not on it. When a
    /// node's namespace ends, the kernel gives its device back.
    pub fn segment_of(&mut self, devices: impl IntoIterator<Item = String>) -> Segment {
        let devices = Some(devices.into_iter().collect());
        self.segments.push(Members { hosts: 1, devices });
        Segment(self.segments.len() as u8)
    }

    /// Gives a namespace the device `eth0` on a segment, with default routes
    /// to the router's place.
    ///
    /// # Errors
    /// What `ip` says; [`Error::Devices`] when the segment has no device left.
    pub fn attach(&mut self, segment: Segment, netns: &Netns) -> Result<Attachment> {
        let Segment(id) = segment;
        let members = &mut self.segments[usize::from(id) - 1];
        members.hosts += 1;
        let host = members.hosts;
        let (v4, v6) = addresses(id, host);
        let (gateway_v4, gateway_v6) = addresses(id, 1);
        let port = format!("port{id}-{host}");
        let end = End::new(netns, "eth0").address(format!("{v4}/24")).address(format!("{v6}/64"));
        if let Some(devices) = &mut members.devices {
            let device = devices.pop_front().ok_or(Error::Devices(id))?;
            end.adopt(&device, self.mtu)?;
        } else {
            let far = End::new(&self.router, &port).queues(self.queues);
            veth(self.mtu, &end.queues(self.queues), &far)?;
            self.router.ip([format!("link set {port} master br{id}")])?;
        }
        // Where there is no router the routes are still needed: without a way
        // to it, the kernel does not answer ARP for the pods' gateway.
        netns.ip([
            format!("route add default via {gateway_v4} dev eth0"),
            format!("route add default via {gateway_v6} dev eth0"),
        ])?;
        Ok(Attachment { v4, v6, gateway_v4, gateway_v6, port })
    }
}

fn addresses(segment: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, u16::from(segment), 0, 0, 0, u16::from(host));
    (Ipv4Addr::new(10, 77, segment, host), v6)
}

fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/ip_forward", "1")?;
    netns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// What a cluster is to look like.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Start of the names of its namespaces.
    pub name: String,
    /// Base of the IPv4 pool; node `i` has the /26 block at `base + 64 * i`.
    pub pool_v4: Ipv4Addr,
    /// Base of the IPv6 pool; node `i` has the /122 block at `base + 64 * i`.
    pub pool_v6: Ipv6Addr,
    /// MTU of the pods' devices.
    pub pod_mtu: u32,
    /// The nodes in the order of their blocks.
    pub nodes: Vec<NodeSpec>,
}

/// What a node is to look like.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Name of the node, unique in the lab.
    pub name: String,
    /// Where it is attached.
    pub segment: Segment,
    /// Its pods in the order of their addresses.
    pub pods: Vec<PodSpec>,
}

/// What a pod is to look like.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name, unique in the cluster.
    pub name: String,
}

/// A cluster that is up.
#[derive(Debug)]
pub struct Cluster {
    /// As in the [`ClusterSpec`].
    pub name: String,
    /// As in the [`ClusterSpec`].
    pub pod_mtu: u32,
    /// Its nodes.
    pub nodes: Vec<Node>,
}

/// A node that is up.
#[derive(Debug)]
pub struct Node {
    /// Name of the node.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its place on the underlay.
    pub underlay: Attachment,
    /// Base of its /26 block; the base itself is its tunnel address.
    pub block_v4: Ipv4Addr,
    /// Base of its /122 block; the base itself is its tunnel address.
    pub block_v6: Ipv6Addr,
    /// Its pods.
    pub pods: Vec<Pod>,
    next_pod: u32,
}

/// A pod that is up.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Name of the node's end of its link.
    pub host_device: String,
}

impl Pod {
    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Cluster {
    /// Brings a cluster up.
    ///
    /// # Errors
    /// What `ip` or the kernel says.
    pub fn new(lab: &Lab, underlay: &mut Underlay, spec: &ClusterSpec) -> Result<Self> {
        let mut nodes = Vec::new();
        for (index, node) in (0..).zip(&spec.nodes) {
            let netns = lab.netns(&node.name)?;
            forward(&netns)?;
            let underlay = underlay.attach(node.segment, &netns)?;
            let mut up = Node {
                name: node.name.clone(),
                netns,
                underlay,
                block_v4: nth_v4(spec.pool_v4, index * BLOCK_LEN),
                block_v6: nth_v6(spec.pool_v6, index * BLOCK_LEN),
                pods: Vec::new(),
                next_pod: 1,
            };
            up.netns.ip([
                format!("route add blackhole {}/26 proto {FELIX_PROTOCOL}", up.block_v4),
                format!("route add blackhole {}/122 proto {FELIX_PROTOCOL}", up.block_v6),
            ])?;
            for pod in &node.pods {
                up.add_pod(lab, &spec.name, pod, spec.pod_mtu)?;
            }
            nodes.push(up);
        }
        Ok(Self { name: spec.name.clone(), pod_mtu: spec.pod_mtu, nodes })
    }

    /// The pod of this name.
    pub fn pod(&self, name: &str) -> Option<&Pod> {
        self.nodes.iter().flat_map(|node| &node.pods).find(|pod| pod.name == name)
    }

    /// The node that a pod is on.
    pub fn node_of(&self, pod: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.pods.iter().any(|on| on.name == pod))
    }

    /// Joins the cluster's own nodes with the kernel's vxlan devices, VNI 4096
    /// on port 4789, as Felix does. `mac` gives the tunnel MAC of a node; the
    /// flag is set for the IPv6 tunnel.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn join_with_kernel_vxlan(&self, mac: impl Fn(&str, bool) -> String) -> Result<()> {
        for v6 in [false, true] {
            let devices: Vec<_> = self.nodes.iter().map(|node| node.vxlan(v6, &mac)).collect();
            for (node, device) in self.nodes.iter().zip(&devices) {
                device.create(&node.netns)?;
                for peer in self.nodes.iter().filter(|peer| peer.name != node.name) {
                    device.add_peer(&node.netns, &peer.vxlan_peer(v6, &mac))?;
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// Starts a pod.
    ///
    /// # Errors
    /// What `ip` or the kernel says.
    pub fn add_pod(&mut self, lab: &Lab, cluster: &str, spec: &PodSpec, mtu: u32) -> Result<&Pod> {
        let PodSpec { namespace, name } = spec;
        let index = self.next_pod;
        let pod = Pod {
            namespace: namespace.clone(),
            name: name.clone(),
            netns: lab.netns(&format!("{cluster}-{name}"))?,
            v4: nth_v4(self.block_v4, index),
            v6: nth_v6(self.block_v6, index),
            host_device: host_device(namespace, name),
        };
        wire(&self.netns, &pod, mtu)?;
        self.next_pod += 1;
        self.pods.push(pod);
        Ok(&self.pods[self.pods.len() - 1])
    }

    /// Ends a pod: its link and routes go, its namespace stays empty. Returns
    /// whether there was one.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn remove_pod(&mut self, name: &str) -> Result<bool> {
        let Some(at) = self.pods.iter().position(|pod| pod.name == name) else {
            return Ok(false);
        };
        let pod = self.pods.remove(at);
        self.netns.ip([format!("link del {}", pod.host_device)])?;
        Ok(true)
    }

    fn vxlan(&self, v6: bool, mac: impl Fn(&str, bool) -> String) -> KernelVxlan {
        let (device, local, address, mtu) = if v6 {
            let local = IpAddr::from(self.underlay.v6);
            ("vxlan-v6.calico", local, format!("{}/128", self.block_v6), 1430)
        } else {
            ("vxlan.calico", self.underlay.v4.into(), format!("{}/32", self.block_v4), 1450)
        };
        KernelVxlan {
            device: device.to_owned(),
            vni: 4096,
            port: 4789,
            local,
            mac: mac(&self.name, v6),
            mtu,
            addresses: vec![address],
        }
    }

    fn vxlan_peer(&self, v6: bool, mac: impl Fn(&str, bool) -> String) -> VxlanPeer {
        let mac = mac(&self.name, v6);
        if v6 {
            let routes = vec![format!("{}/122", self.block_v6)];
            VxlanPeer { outer: self.underlay.v6.into(), mac, tunnel: self.block_v6.into(), routes }
        } else {
            let routes = vec![format!("{}/26", self.block_v4)];
            VxlanPeer { outer: self.underlay.v4.into(), mac, tunnel: self.block_v4.into(), routes }
        }
    }
}

/// Wires a pod to its node as Calico's CNI plugin and Felix do.
fn wire(node: &Netns, pod: &Pod, mtu: u32) -> Result<()> {
    let Pod { v4, v6, host_device: device, .. } = pod;
    let inside = End::new(&pod.netns, "eth0").address(format!("{v4}/32"));
    let inside = inside.address(format!("{v6}/128"));
    veth(mtu, &inside, &End::new(node, device).mac(CALI_MAC))?;
    pod.netns.ip([
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
        &format!("route add default via {CALI_LINK_LOCAL} dev eth0"),
    ])?;
    let settings = [
        ("ipv4/conf", "proxy_arp", "1"),
        ("ipv4/conf", "rp_filter", "1"),
        ("ipv4/conf", "route_localnet", "1"),
        // Answered at once instead of after up to 0.8 s.
        ("ipv4/neigh", "proxy_delay", "0"),
        ("ipv6/conf", "proxy_ndp", "1"),
    ];
    for (group, key, value) in settings {
        node.sysctl(&format!("net/{group}/{device}/{key}"), value)?;
    }
    node.ip([
        format!("route add {v4} dev {device} scope link proto {FELIX_PROTOCOL}"),
        format!("route add {v6} dev {device} proto {FELIX_PROTOCOL}"),
    ])
}

/// `cali` and 11 hexadecimal digits that depend on namespace and name, as
/// Calico's are (which uses SHA-1, here FNV-1a).
fn host_device(namespace: &str, name: &str) -> String {
    let bytes = namespace.bytes().chain([b'.']).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("cali{:011x}", hash >> 20)
}

fn nth_v4(base: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base).wrapping_add(n))
}

fn nth_v6(base: Ipv6Addr, n: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(base).wrapping_add(u128::from(n)))
}
