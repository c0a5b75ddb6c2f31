//! The test bed: three namespaces in a row, and what runs on which CPU.
//!
//! ```text
//! generator            router                      sink
//!        g0 ---------- d0   subject   u0 --------- s0
//! "pods" 10.244.1.0/26                             remote node, "pods" 10.244.2.0/26
//! ```
//!
//! The sink is a node of its own with the kernel's vxlan device, so that pings
//! and TCP find somebody there; measured packets are looked at and dropped on
//! s0 before they reach it.
//!
//! **Who works where.** The router has a CPU alone; the generator, the sink's
//! processes and this program's own work are on the other. What hands a packet
//! over to the router, which is what a network card and its DMA would do, is
//! done on the generator's CPU for every subject: veth receives where the
//! sender runs. There an AF_XDP socket gets its copy, and a packet for the
//! kernel becomes an skb, which receive packet steering (RPS) then takes to the
//! router's CPU. All that the router does from then on, up to the drop at the
//! far end of its outgoing veth, is charged to the router's CPU, again for
//! every subject alike.
//!
//! Devices of the machine can stand in for the veth pairs ([`Devices`]).
//!
//! Everything is removed when the [`Bed`] is dropped, on a signal too.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tieline_dataplane::xsk::device;
use tieline_lab::{End, KernelVxlan, Lab, Netns, VxlanPeer, veth};

use crate::devices::Devices;
use crate::flows::{self, LOCAL_TUNNEL, REMOTE_TUNNEL, ROUTER_UNDERLAY, SINK_UNDERLAY};

/// Addresses of the link between generator and router.
const POD_SIDE: &str = "10.250.0.2";
const NODE_SIDE: &str = "10.250.0.1";

const POD_SIDE_V6: &str = "fd00:250::2";
const NODE_SIDE_V6: &str = "fd00:250::1";

/// How long a command may take that takes some milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// MTU of both links.
pub(crate) const MTU: u32 = 1500;
/// MTU that pods have: less the tunnel's 50 bytes.
pub(crate) const POD_MTU: u32 = 1450;
/// The same in the tunnel over IPv6.
pub(crate) const POD_MTU_V6: u32 = 1430;

/// Which links leave checksums and segmentation to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    /// None.
    Off,
    /// The pods' link, as a node has it; on the underlay frames are complete and
    /// fit the MTU, as on a wire.
    Pods,
    /// The underlay too, which no wire does: super-frames go from node to node.
    All,
}

/// The CPUs in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpus {
    /// The router's, alone.
    pub(crate) router: usize,
    /// Generator, sink and this program.
    pub(crate) traffic: usize,
    /// The sink's that polls, where there are three; else that of the traffic.
    pub(crate) sink: usize,
}

impl Cpus {
    /// The last CPU that this process may use for the router, the first for all
    /// else.
    ///
    /// # Errors
    /// There is only one.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let cpus: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        match cpus[..] {
            [traffic, router] => Ok(Self { router, traffic, sink: traffic }),
            [traffic, sink, .., router] => Ok(Self { router, traffic, sink }),
            _ => anyhow::bail!("two CPUs are needed, one of them for the router alone"),
        }
    }
}

/// Runs on this CPU from now on.
pub(crate) fn pin(cpu: usize) {
    // A CPU that was chosen from those that are allowed.
    let _ = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// Namespaces and links, up.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) lab: Lab,
    pub(crate) generator: Netns,
    pub(crate) router: Netns,
    pub(crate) sink: Netns,
    pub(crate) cpus: Cpus,
    devices: Option<Arc<Devices>>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(devices) = &self.devices {
            devices.give_back(false);
        }
    }
}

impl Bed {
    /// Brings it up, on veth pairs if there are no devices for it.
    pub(crate) fn new(cpus: Cpus, devices: Option<Arc<Devices>>) -> anyhow::Result<Self> {
        let lab = Lab::new("perf")?;
        let netns = |name: &str| lab.netns(name);
        let (generator, router, sink) = (netns("generator")?, netns("router")?, netns("sink")?);
        let bed = Self { lab, generator, router, sink, cpus, devices };
        bed.link()?;
        bed.wire().context("the test bed")?;
        Ok(bed)
    }

    /// Whether an end is of this machine.
    fn has(&self, name: &str) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.has(name))
    }

    fn link(&self) -> anyhow::Result<()> {
        let Self { generator, router, sink, .. } = self;
        let ends = [
            (generator, "g0", flows::G0, format!("{POD_SIDE}/30")),
            (router, "d0", flows::D0, format!("{NODE_SIDE}/30")),
            (router, "u0", flows::U0, format!("{ROUTER_UNDERLAY}/24")),
            (sink, "s0", flows::S0, format!("{SINK_UNDERLAY}/24")),
        ];
        if let Some(devices) = &self.devices {
            for (netns, name, mac, address) in ends {
                if !devices.has(name) {
                    continue;
                }
                devices.take(netns, name, &flows::mac_text(mac), MTU)?;
                netns.ip([format!("address add {address} dev {name}")])?;
            }
            return devices.wait_for_carrier();
        }
        let [g0, d0, u0, s0] = ends.map(|(netns, name, mac, address)| {
            End::new(netns, name).mac(flows::mac_text(mac)).address(address)
        });
        veth(MTU, &g0, &d0)?;
        Ok(veth(MTU, &u0, &s0)?)
    }

    fn wire(&self) -> anyhow::Result<()> {
        for netns in [&self.router, &self.sink] {
            netns.sysctl("net/ipv4/ip_forward", "1")?;
        }
        // Nobody asks for addresses during a measurement.
        if self.has("g0") {
            self.wire_pods()?;
        }
        if self.has("u0") {
            self.wire_router()?;
        }
        // The far end is the kernel's, whoever routes.
        if self.has("s0") {
            self.wire_far_end()?;
        }
        self.offloads(Offloads::Pods)?;
        for (netns, device) in self.ends() {
            netns.run(|| device::enable_receive_offload(device))??;
        }
        Ok(())
    }

    fn wire_pods(&self) -> anyhow::Result<()> {
        let mac = flows::mac_text;
        self.generator.ip([
            format!("neighbor replace {NODE_SIDE} lladdr {} dev g0 nud permanent", mac(flows::D0)),
            format!("link set g0 mtu {POD_MTU}"),
            format!("address add {}/32 dev g0", flows::local_pod(0)),
            format!("route add default via {NODE_SIDE} src {}", flows::local_pod(0)),
        ])?;
        Ok(())
    }

    fn wire_router(&self) -> anyhow::Result<()> {
        let mac = flows::mac_text;
        self.router.ip([
            format!("neighbor replace {POD_SIDE} lladdr {} dev d0 nud permanent", mac(flows::G0)),
            format!("route add {LOCAL_TUNNEL}/26 via {POD_SIDE} dev d0"),
            format!(
                "neighbor replace {SINK_UNDERLAY} lladdr {} dev u0 nud permanent",
                mac(flows::S0)
            ),
        ])?;
        self.steer("d0", true)?;
        self.steer("u0", true)
    }

    fn wire_far_end(&self) -> anyhow::Result<()> {
        let mac = flows::mac_text;
        self.sink.ip([
            format!(
                "neighbor replace {ROUTER_UNDERLAY} lladdr {} dev s0 nud permanent",
                mac(flows::U0)
            ),
            format!("address add {}/32 dev lo", flows::remote_pod(0)),
        ])?;
        self.far_tunnel()
    }

    /// IPv6 on both links. The far end has no tunnel for it: packets are judged
    /// and taken before they would reach one.
    pub(crate) fn wire_v6(&self) -> anyhow::Result<()> {
        let mac = flows::mac_text;
        for netns in [&self.router, &self.sink] {
            netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        if self.has("u0") {
            self.router.ip([
                format!("address replace {NODE_SIDE_V6}/64 dev d0 nodad"),
                format!("address replace {}/64 dev u0 nodad", flows::ROUTER_UNDERLAY_V6),
                format!(
                    "neighbor replace {POD_SIDE_V6} lladdr {} dev d0 nud permanent",
                    mac(flows::G0)
                ),
                format!("route replace {}/122 via {POD_SIDE_V6} dev d0", flows::LOCAL_TUNNEL_V6),
                format!(
                    "neighbor replace {} lladdr {} dev u0 nud permanent",
                    flows::SINK_UNDERLAY_V6,
                    mac(flows::S0)
                ),
            ])?;
        }
        if self.has("s0") {
            self.sink.ip([
                format!("address replace {}/64 dev s0 nodad", flows::SINK_UNDERLAY_V6),
                format!(
                    "neighbor replace {} lladdr {} dev s0 nud permanent",
                    flows::ROUTER_UNDERLAY_V6,
                    mac(flows::U0)
                ),
            ])?;
        }
        Ok(())
    }

    fn far_tunnel(&self) -> anyhow::Result<()> {
        let device = KernelVxlan {
            device: "vxlan.calico".to_owned(),
            vni: flows::VNI,
            port: flows::VXLAN_PORT,
            local: SINK_UNDERLAY.into(),
            mac: flows::mac_text(flows::REMOTE_VTEP),
            mtu: POD_MTU,
            addresses: vec![format!("{REMOTE_TUNNEL}/32")],
        };
        device.create(&self.sink)?;
        let peer = VxlanPeer {
            outer: ROUTER_UNDERLAY.into(),
            mac: flows::mac_text(flows::LOCAL_VTEP),
            tunnel: LOCAL_TUNNEL.into(),
            routes: vec![format!("{LOCAL_TUNNEL}/26 src {}", flows::remote_pod(0))],
        };
        // `src` belongs behind the rest of a route.
        let route = peer.routes[0].clone();
        device.add_peer(&self.sink, &VxlanPeer { routes: Vec::new(), ..peer })?;
        let (prefix, source) = route.split_once(" src ").unwrap_or((&route, ""));
        self.sink.ip([format!(
            "route replace {prefix} via {LOCAL_TUNNEL} dev vxlan.calico onlink src {source}"
        )])?;
        Ok(())
    }

    /// The ends of the links that are of this machine.
    fn ends(&self) -> impl Iterator<Item = (&Netns, &'static str)> {
        let all = [
            (&self.generator, "g0"),
            (&self.router, "d0"),
            (&self.router, "u0"),
            (&self.sink, "s0"),
        ];
        all.into_iter().filter(move |(_, name)| self.has(name))
    }

    /// Switches checksum and segmentation offloads.
    pub(crate) fn offloads(&self, offloads: Offloads) -> anyhow::Result<()> {
        for (netns, name) in self.ends() {
            let on = match offloads {
                Offloads::Off => false,
                Offloads::Pods => ["g0", "d0"].contains(&name),
                Offloads::All => true,
            };
            let set = || {
                if on { device::enable_offloads(name) } else { device::disable_offloads(name) }
            };
            netns.run(set)??;
        }
        Ok(())
    }

    /// Has packets that the kernel receives on a device of the router handled by
    /// the router's CPU, or again where veth hands them over.
    pub(crate) fn steer(&self, name: &str, on: bool) -> anyhow::Result<()> {
        let mask = if on { 1u64 << self.cpus.router } else { 0 };
        let file = format!("/sys/class/net/{name}/queues/rx-0/rps_cpus");
        self.shell(&self.router, &format!("echo {mask:x} > {file}"))
    }

    /// Runs a shell command in a namespace, with that namespace's `/sys`.
    pub(crate) fn shell(&self, netns: &Netns, line: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.name(), "sh", "-c", line]);
        let output = netns.output("shell", command, PATIENCE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{line}` in {}: {}", netns.name(), said.trim());
        Ok(())
    }
}
