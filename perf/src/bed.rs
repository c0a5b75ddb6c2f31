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
//! every subject alike. Bulk TCP is not dropped there: what the far end's stack
//! does with it is another machine's work, and is taken to the traffic's CPU, or
//! it would fall to the router by the packet or by the batch, as that one sends.
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
use crate::subject::Missing;

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
    /// For a router on two CPUs: its other one, and that of a second generator.
    pub(crate) second: Option<(usize, usize)>,
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
        Self::of(&cpus).context("two CPUs are needed, one of them for the router alone")
    }

    fn of(cpus: &[usize]) -> Option<Self> {
        let (traffic, others) = cpus.split_first()?;
        let (router, others) = others.split_last()?;
        let sink = others.first().unwrap_or(traffic);
        // veth chooses the queue by the sender's CPU: two senders reach two queues
        // only from CPUs that differ in the last bit.
        let sender = others.iter().find(|cpu| (*cpu ^ traffic) & 1 != 0);
        let second = sender.and_then(|sender| {
            let more = others.iter().rev().find(|cpu| *cpu != sender)?;
            Some((*more, *sender))
        });
        Some(Self { router: *router, traffic: *traffic, sink: *sink, second })
    }

    /// Why a router has not two.
    pub(crate) fn why_one_router(&self) -> String {
        format!(
            "two workers need four CPUs, two for them and two that make traffic, of which one has \
             an even number and one an odd one; there are CPU {} for the router and CPU {} for the \
             traffic",
            self.router, self.traffic
        )
    }

    /// Most CPUs that a router can have alone.
    pub(crate) fn routers(&self) -> u32 {
        if self.second.is_some() { 2 } else { 1 }
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
    /// CPUs that the router has, and queues of the links.
    pub(crate) routers: u32,
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
    /// Brings it up in a lab, on veth pairs if there are no devices for it.
    ///
    /// # Errors
    /// [`Missing`] for a router on more CPUs than there are, or with devices, of
    /// which one queue is used.
    pub(crate) fn new(
        lab: Lab,
        cpus: Cpus,
        devices: Option<Arc<Devices>>,
        routers: u32,
    ) -> anyhow::Result<Self> {
        if routers > cpus.routers() {
            return Err(Missing(cpus.why_one_router()).into());
        }
        if routers > 1 && devices.is_some() {
            let text = "of named devices one queue is used: a second worker would have none";
            return Err(Missing(text.to_owned()).into());
        }
        let netns = |name: &str| lab.netns(name);
        let (generator, router, sink) = (netns("generator")?, netns("router")?, netns("sink")?);
        let bed = Self { lab, generator, router, sink, cpus, routers, devices };
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
            let end = End::new(netns, name).mac(flows::mac_text(mac)).address(address);
            if self.routers > 1 { end.queues(self.routers) } else { end }
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

    /// What each end leaves to the other now, as its driver tells.
    pub(crate) fn offloads_text(&self) -> String {
        let of = |(netns, name): (&Netns, &str)| {
            let state = netns.run(|| device::offloads_disabled(name));
            let text = match state {
                Ok(Ok(true)) => "off",
                Ok(Ok(false)) => "on",
                _ => "unknown",
            };
            format!("{name} {text}")
        };
        self.ends().map(of).collect::<Vec<_>>().join(", ")
    }

    /// The CPUs that the router has for itself.
    pub(crate) fn router_cpus(&self) -> Vec<usize> {
        let second = self.cpus.second.filter(|_| self.routers > 1);
        [self.cpus.router].into_iter().chain(second.map(|(router, _)| router)).collect()
    }

    /// Has packets that the kernel receives on a device of the router handled by
    /// the router's CPUs, or again where veth hands them over.
    pub(crate) fn steer(&self, name: &str, on: bool) -> anyhow::Result<()> {
        if !self.has(name) {
            return Ok(());
        }
        let cpus = if on { self.router_cpus() } else { Vec::new() };
        self.receive_on(&self.router, name, &cpus)
    }

    /// For bulk TCP, of which one connection leaves every router its time: the way to
    /// the router is handled by the router's CPUs, and what arrives at the far end
    /// by the traffic's.
    pub(crate) fn steer_ends(&self) -> anyhow::Result<()> {
        self.steer("d0", true)?;
        if !self.has("s0") {
            return Ok(());
        }
        self.receive_on(&self.sink, "s0", &[self.cpus.traffic])
    }

    /// Has a device's packets handled by these CPUs; none: where they come in.
    fn receive_on(&self, netns: &Netns, name: &str, cpus: &[usize]) -> anyhow::Result<()> {
        let mask = cpus.iter().fold(0u64, |mask, cpu| mask | 1 << cpu);
        let files = format!("/sys/class/net/{name}/queues/rx-*/rps_cpus");
        self.shell(netns, &format!("for file in {files}; do echo {mask:x} > $file; done"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_router_needs_a_sender_that_reaches_another_queue() {
        let second = |cpus: &[usize]| Cpus::of(cpus).expect("two at least").second;
        assert_eq!(Cpus::of(&[0]), None);
        assert_eq!(second(&[0, 1]), None);
        assert_eq!(second(&[0, 1, 2]), None);
        assert_eq!(second(&[0, 1, 2, 3]), Some((2, 1)));
        assert_eq!(second(&[0, 2, 4, 5]), None);
        assert_eq!(second(&[0, 2, 3, 4, 5]), Some((4, 3)));
        let cpus = Cpus::of(&[0, 1, 2, 3]).expect("four");
        assert_eq!((cpus.traffic, cpus.sink, cpus.router, cpus.routers()), (0, 1, 3, 2));
    }
}
