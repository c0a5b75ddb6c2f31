//! What a configuration must satisfy beyond types: ranges, names, and what
//! keys demand of each other. Each check adds what it finds; none stops.

use std::ops::RangeInclusive;
use std::path::{Component, Path};

use crate::error::{KeyPath, Problem};
use crate::schema::{Admin, Config, Datastore, Federation, FlowTable, Gateway, Underlay, Workers};

/// Bytes of a frame's chunk that the kernel keeps before the packet
/// (`XDP_PACKET_HEADROOM`, uapi/linux/bpf.h).
const XDP_HEADROOM: u32 = 256;
/// Ethernet header, and the most that a tunnel adds: outer Ethernet, IPv6, UDP
/// and VXLAN headers (RFC 7348, section 5). A tunneled packet must fit whole.
const LARGEST_HEADERS: u32 = 14 + 70;
/// What every IPv6 link must carry (RFC 8200, section 5).
const IPV6_MINIMUM_MTU: u32 = 1280;
/// A device name with its terminator takes 16 bytes (`IFNAMSIZ`, uapi/linux/if.h).
const LONGEST_DEVICE: usize = 15;
/// A socket's path with its terminator takes 108 bytes (`sun_path`, uapi/linux/un.h).
const LONGEST_SOCKET: usize = 107;
const LONGEST_SECONDS: u32 = 30 * 24 * 3600;

/// Route protocols that are somebody else's: the kernel's own below 5
/// (uapi/linux/rtnetlink.h), and those of well-known daemons.
const TAKEN_PROTOCOLS: [(u8, &str); 18] = [
    (8, "gated"),
    (9, "router advertisements"),
    (10, "mrt"),
    (11, "zebra"),
    (12, "bird"),
    (13, "DECnet"),
    (14, "xorp"),
    (15, "ntk"),
    (16, "dhcp"),
    (17, "mrouted"),
    (18, "keepalived"),
    (42, "babel"),
    (80, "Calico's Felix"),
    (99, "openr"),
    (186, "bgp"),
    (187, "isis"),
    (188, "ospf"),
    (189, "rip"),
];

/// Problems as they are found.
#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn add(&mut self, key: KeyPath, message: impl Into<String>, remedy: impl Into<String>) {
        let (message, remedy) = (message.into(), remedy.into());
        self.0.push(Problem { position: None, key, message, remedy });
    }

    fn range(&mut self, key: &str, value: u32, range: RangeInclusive<u32>) {
        if !range.contains(&value) {
            let message = format!("{value} is out of range");
            let remedy = format!("choose {} to {}", range.start(), range.end());
            self.add(KeyPath::new(key), message, remedy);
        }
    }

    fn device(&mut self, key: &str, name: &str) {
        // What the kernel's dev_valid_name takes.
        let valid = !name.is_empty()
            && name.len() <= LONGEST_DEVICE
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0');
        if !valid {
            let message = format!("{name:?} can't be the name of a device");
            let remedy = format!("1 to {LONGEST_DEVICE} bytes without slash, colon and space");
            self.add(KeyPath::new(key), message, remedy);
        }
    }

    fn absolute(&mut self, key: KeyPath, path: &Path) {
        if !path.is_absolute() {
            let message = format!("{} is not an absolute path", shown(path));
            self.add(key, message, "begin it with a slash");
        } else if path.as_os_str().as_encoded_bytes().contains(&0) {
            self.add(key, "a path can't hold a zero byte", "remove it");
        }
    }
}

impl Config {
    /// Everything about the values that makes no sense, without positions.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = Found::default();
        if let Some(node) = &self.node
            && !is_subdomain(node)
        {
            let message = format!("{node:?} can't be the name of a node");
            found.add(KeyPath::new("node"), message, SUBDOMAIN);
        }
        datastore(&self.datastore, &mut found);
        underlay(&self.underlay, &mut found);
        gateway(&self.gateway, self.workers.frame_size, &mut found);
        workers(&self.workers, &mut found);
        flow_table(&self.flow_table, &mut found);
        federation(&self.federation, &mut found);
        admin(&self.admin, &mut found);
        if self.underlay.devices.contains(&self.gateway.device)
            || self.underlay.devices.contains(&self.gateway.peer)
        {
            found.add(
                KeyPath::new("underlay.devices"),
                "the gateway can't be the underlay",
                "name the devices that have the node's addresses",
            );
        }
        found.0
    }
}

fn datastore(datastore: &Datastore, found: &mut Found) {
    found.absolute(KeyPath::new("datastore.path"), &datastore.path);
    let local = plain(&datastore.path);
    let mut earlier: Vec<(&str, Vec<Component<'_>>)> = Vec::new();
    for (name, path) in &datastore.remotes {
        let key = KeyPath::new("datastore.remotes").with(name);
        if !is_subdomain(name) {
            let message = format!("{name:?} can't be the name of a RemoteClusterConfiguration");
            found.add(key.clone(), message, SUBDOMAIN);
        }
        found.absolute(key.clone(), path);
        let path = plain(path);
        if path == local {
            let remedy = "give each cluster a directory of its own";
            found.add(key, "this is the directory of the local cluster", remedy);
        } else if let Some((other, _)) = earlier.iter().find(|(_, taken)| *taken == path) {
            let message = format!("this is the directory of the remote cluster {other:?} too");
            found.add(key, message, "give each cluster a directory of its own");
        }
        earlier.push((name, path));
    }
    if let Some(path) = &datastore.kubeconfig {
        found.absolute(KeyPath::new("datastore.kubeconfig"), path);
    }
    if let Some(group) = &datastore.rcc_group {
        let valid = group.split_once('/').is_some_and(|(group, version)| {
            is_subdomain(group) && is_subdomain(version) && !version.contains('.')
        });
        if !valid {
            let message = format!("{group:?} is no API group with a version");
            found.add(
                KeyPath::new("datastore.rcc-group"),
                message,
                "write such as projectcalico.org/v3",
            );
        }
    }
    let seconds = datastore.answer_timeout_seconds;
    found.range("datastore.answer-timeout-seconds", seconds, 1..=300);
    let seconds = datastore.silence_timeout_seconds;
    found.range("datastore.silence-timeout-seconds", seconds, 5..=3600);
}

fn underlay(underlay: &Underlay, found: &mut Found) {
    for (at, device) in underlay.devices.iter().enumerate() {
        found.device("underlay.devices", device);
        if underlay.devices[..at].contains(device) {
            let message = format!("{device:?} is named twice");
            found.add(KeyPath::new("underlay.devices"), message, "name each device once");
        }
    }
    found.range("underlay.liveness-timeout-ms", underlay.liveness_timeout_ms, 500..=60_000);
    if let Some(queues) = underlay.queues {
        found.range("underlay.queues", queues, 1..=256);
    }
}

fn gateway(gateway: &Gateway, frame_size: u32, found: &mut Found) {
    found.device("gateway.device", &gateway.device);
    found.device("gateway.peer", &gateway.peer);
    if gateway.device == gateway.peer {
        let message = "the two ends of the gateway have the same name";
        found.add(KeyPath::new("gateway.peer"), message, "choose another");
    }
    if let Some(mtu) = gateway.mtu {
        mtu_fits(mtu, frame_size, found);
    }
    let number = gateway.route_protocol;
    let owner = TAKEN_PROTOCOLS.iter().find(|(taken, _)| *taken == number).map(|(_, who)| *who);
    let owner = if number < 5 { Some("the kernel's own") } else { owner };
    if let Some(owner) = owner {
        let message = format!("route protocol {number} is taken ({owner})");
        let remedy = "choose a number that nobody uses on this node, such as 133";
        found.add(KeyPath::new("gateway.route-protocol"), message, remedy);
    }
}

fn mtu_fits(mtu: u32, frame_size: u32, found: &mut Found) {
    let largest = |frame_size: u32| frame_size - XDP_HEADROOM - LARGEST_HEADERS;
    found.range("gateway.mtu", mtu, IPV6_MINIMUM_MTU..=largest(4096));
    if frame_size == 2048 && mtu > largest(2048) && mtu <= largest(4096) {
        let message = format!("a frame of 2048 bytes holds packets of {} at most", largest(2048));
        let remedy = "set workers.frame-size to 4096, or choose a smaller MTU";
        found.add(KeyPath::new("gateway.mtu"), message, remedy);
    }
}

fn workers(workers: &Workers, found: &mut Found) {
    if let Some(count) = workers.count {
        found.range("workers.count", count, 1..=256);
    }
    found.range("workers.batch", workers.batch, 1..=256);
    found.range("workers.frames", workers.frames, 512..=1 << 20);
    if !workers.frames.is_power_of_two() {
        let message = format!("{} is not a power of two", workers.frames);
        let near = workers.frames.checked_next_power_of_two().unwrap_or(1 << 20);
        let near = near.clamp(512, 1 << 20);
        found.add(KeyPath::new("workers.frames"), message, format!("choose such as {near}"));
    } else if workers.frames < workers.batch.saturating_mul(8) {
        let message = format!("{} frames do not feed batches of {}", workers.frames, workers.batch);
        let remedy = "choose at least 8 times workers.batch";
        found.add(KeyPath::new("workers.frames"), message, remedy);
    }
    if !matches!(workers.frame_size, 2048 | 4096) {
        let message = format!("frames can't have {} bytes", workers.frame_size);
        found.add(KeyPath::new("workers.frame-size"), message, "choose 2048 or 4096");
    }
}

fn flow_table(table: &FlowTable, found: &mut Found) {
    found.range("flow-table.entries", table.entries, 1024..=1 << 26);
    let timeouts = &table.timeouts;
    for (key, seconds) in [
        ("tcp-syn-seconds", timeouts.tcp_syn_seconds),
        ("tcp-established-seconds", timeouts.tcp_established_seconds),
        ("tcp-closing-seconds", timeouts.tcp_closing_seconds),
        ("udp-seconds", timeouts.udp_seconds),
        ("udp-replied-seconds", timeouts.udp_replied_seconds),
        ("icmp-seconds", timeouts.icmp_seconds),
        ("other-seconds", timeouts.other_seconds),
        ("fragments-seconds", timeouts.fragments_seconds),
    ] {
        found.range(&format!("flow-table.timeouts.{key}"), seconds, 1..=LONGEST_SECONDS);
    }
}

fn federation(federation: &Federation, found: &mut Found) {
    let seconds = federation.stale_after_seconds;
    found.range("federation.stale-after-seconds", seconds, 1..=LONGEST_SECONDS);
}

fn admin(admin: &Admin, found: &mut Found) {
    found.absolute(KeyPath::new("admin.socket"), &admin.socket);
    let length = admin.socket.as_os_str().len();
    if length > LONGEST_SOCKET {
        let message = format!("a path of {length} bytes is too long for a socket");
        let remedy = format!("at most {LONGEST_SOCKET} bytes");
        found.add(KeyPath::new("admin.socket"), message, remedy);
    }
}

const SUBDOMAIN: &str = "use lower-case letters, digits, dashes and dots, beginning and ending \
                         each part with a letter or digit, at most 253 bytes";

/// Whether Kubernetes takes a text as the name of such an object (RFC 1123
/// subdomain).
pub(crate) fn is_subdomain(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// A path without what makes no difference: `.` and doubled slashes.
fn plain(path: &Path) -> Vec<Component<'_>> {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn shown(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
