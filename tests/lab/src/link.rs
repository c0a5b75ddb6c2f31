//! Links between namespaces.

use crate::lab::{OnError, run_ip};
use crate::{Netns, Result};

/// One end of a link.
#[derive(Clone, Debug)]
pub struct End<'a> {
    netns: &'a Netns,
    device: String,
    mac: Option<String>,
    queues: Option<u32>,
    addresses: Vec<String>,
}

impl<'a> End<'a> {
    /// The end that is called `device` in `netns`.
    pub fn new(netns: &'a Netns, device: &str) -> Self {
        Self { netns, device: device.to_owned(), mac: None, queues: None, addresses: Vec::new() }
    }

    /// Adds an address with its prefix length, `10.0.0.1/24` or `fd00::1/64`.
    pub fn address(mut self, address: impl ToString) -> Self {
        self.addresses.push(address.to_string());
        self
    }

    /// Sets the MAC address, as `02:00:00:00:00:01`.
    pub fn mac(mut self, mac: impl ToString) -> Self {
        self.mac = Some(mac.to_string());
        self
    }

    /// Gives a veth so many queues each way; one without this.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = Some(queues);
        self
    }

    fn link_words(&self, mtu: u32) -> String {
        let mac = self.mac.as_ref().map(|mac| format!(" address {mac}")).unwrap_or_default();
        let queues =
            self.queues.map(|queues| format!(" numrxqueues {queues} numtxqueues {queues}"));
        format!("{} mtu {mtu}{mac}{}", self.device, queues.unwrap_or_default())
    }

    /// Makes a device of the caller's own namespace this end and brings it up.
    pub(crate) fn adopt(&self, device: &str, mtu: u32) -> Result<()> {
        let (netns, name) = (self.netns.name(), &self.device);
        let lines = [format!("link set {device} netns {netns} name {name} mtu {mtu}")];
        run_ip(&lines, OnError::Stop, "the caller's namespace")?;
        self.netns.ip(self.up())
    }

    /// Commands that give the end its addresses and bring it up.
    fn up(&self) -> Vec<String> {
        let device = &self.device;
        let mut lines = vec![format!("link set {device} up")];
        // nodad says that an address is usable at once, in both families.
        let add = |address: &String| format!("address add {address} dev {device} nodad");
        lines.extend(self.addresses.iter().map(add));
        lines
    }
}

/// Makes a veth pair between two namespaces, both ends up.
///
/// # Errors
/// What `ip` says, for example that a device of that name exists.
pub fn veth(mtu: u32, left: &End<'_>, right: &End<'_>) -> Result<()> {
    let pair = format!(
        "link add {} type veth peer name {} netns {}",
        left.link_words(mtu),
        right.link_words(mtu),
        right.netns.name()
    );
    let mut lines = vec![pair];
    lines.extend(left.up());
    left.netns.ip(lines)?;
    right.netns.ip(right.up())
}

/// A vxlan device of the kernel, with static peers as Felix programs them: no
/// learning, no flooding.
#[derive(Clone, Debug)]
pub struct KernelVxlan {
    /// Device name.
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Outer source address; its family is the outer family.
    pub local: std::net::IpAddr,
    /// MAC of the device: the inner destination MAC that peers use.
    pub mac: String,
    /// MTU of the device.
    pub mtu: u32,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
}

/// A peer of a [`KernelVxlan`].
#[derive(Clone, Debug)]
pub struct VxlanPeer {
    /// Outer destination.
    pub outer: std::net::IpAddr,
    /// Inner destination MAC.
    pub mac: String,
    /// Inner address of the peer's tunnel: next hop of its routes.
    pub tunnel: std::net::IpAddr,
    /// Destinations behind it, with prefix lengths.
    pub routes: Vec<String>,
}

impl KernelVxlan {
    /// Makes the device and brings it up.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn create(&self, netns: &Netns) -> Result<()> {
        let Self { device, vni, port, local, mac, mtu, addresses } = self;
        // Over IPv6 the kernel takes a zero UDP checksum, which RFC 6935
        // allows a tunnel to send, only when told so.
        let mut lines = vec![
            format!(
                "link add {device} address {mac} mtu {mtu} type vxlan id {vni} dstport {port} \
                 local {local} nolearning udp6zerocsumrx"
            ),
            format!("link set {device} up"),
        ];
        let add = |address: &String| format!("address add {address} dev {device} nodad");
        lines.extend(addresses.iter().map(add));
        netns.ip(lines)
    }

    /// Adds a peer: forwarding entry, static neighbor, routes.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn add_peer(&self, netns: &Netns, peer: &VxlanPeer) -> Result<()> {
        let device = &self.device;
        let VxlanPeer { outer, mac, tunnel, routes } = peer;
        bridge(netns, &format!("fdb replace {mac} dev {device} dst {outer}"))?;
        let mut lines =
            vec![format!("neighbor replace {tunnel} lladdr {mac} dev {device} nud permanent")];
        let add =
            |route: &String| format!("route replace {route} via {tunnel} dev {device} onlink");
        lines.extend(routes.iter().map(add));
        netns.ip(lines)
    }
}

/// Runs `bridge` of iproute2, the only tool for a vxlan device's entries.
fn bridge(netns: &Netns, words: &str) -> Result<()> {
    use std::process::Command;
    let output = netns.run(|| Command::new("bridge").args(words.split(' ')).output())?;
    let output = output.map_err(crate::Error::io("start bridge (iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(crate::Error::Command {
        command: format!("bridge {words}"),
        netns: netns.name().to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
