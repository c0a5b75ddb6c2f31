//! Bringing the kernel's side, the ports and the tables to what is wanted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tieline_dataplane::addr::Addr;
use tieline_dataplane::outer::{OVERHEAD_V4, OVERHEAD_V6};
use tieline_dataplane::tables::Overlay;
use tieline_dataplane::wire::MacAddr;
use tieline_dataplane::worker::{Idle, WorkerConfig};
use tieline_dataplane::xsk;
use tracing::{info, warn};

use super::Daemon;
use super::ports::{Dataplane, DevicePlan, PortPlan, with_causes};
use crate::link::{GatewaySpec, LinkError, RouteSettings};
use crate::resolve::{Resolved, RouteTarget};
use crate::state::{ClusterId, Condition, Severity};

/// What an underlay usually carries, until a device says otherwise.
const USUAL_MTU: u32 = 1500;

/// Least MTU of a link that carries IPv6 (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

impl Daemon {
    /// Puts tables into force that follow from what is known right now.
    pub(super) fn publish(&mut self) {
        let (Some(derived), Some(gateway)) = (&self.derived, &self.gateway) else { return };
        let gateway = (gateway.device_mac, gateway.neighbor_mac);
        let (resolved, compiled) = (&derived.resolved, &derived.compiled);
        let overlay = overlay(resolved, &self.config.current.overlay, gateway);
        if self.tables.apply(overlay, resolved, compiled, &self.adjacencies) {
            let tables = self.tables.current();
            info!(
                generation = tables.generation,
                routes = tables.routes.len(),
                vteps = tables.vteps.len(),
                endpoints = tables.endpoints.len(),
                "tables changed"
            );
        }
    }

    /// Brings devices, ports, tables and kernel routes to what the present
    /// world, kernel and configuration ask for. What can't be done is a
    /// condition; the rest is done all the same.
    pub(super) async fn reconcile(&mut self) {
        if self.derived.is_none() {
            return;
        }
        self.conditions.clear();
        if let Err(error) = self.reconcile_links().await {
            self.complain("gateway", &error);
        }
        self.reconcile_ports();
        if let Err(error) = self.look_for_receivers().await {
            self.complain("ports", &error);
        }
        if let Err(error) = self.reconcile_adjacencies().await {
            self.complain("underlay", &error);
        }
        self.publish();
        self.tell_filters();
        if let Err(error) = self.reconcile_routes().await {
            self.complain("routes", &error);
        }
    }

    fn complain(&mut self, object: &str, error: &dyn std::fmt::Display) {
        let message = error.to_string();
        warn!(object, message, "not in force");
        let (severity, cluster) = (Severity::Error, ClusterId::Local);
        self.conditions.push(Condition { severity, cluster, object: object.into(), message });
    }

    async fn reconcile_links(&mut self) -> Result<(), LinkError> {
        let Some(derived) = self.derived.clone() else { return Ok(()) };
        let own = &derived.resolved.own;
        let names = &self.config.current.underlay.devices;
        self.underlay = self.netlink.underlay(&own.underlay, names).await?;
        self.conditions.extend(self.underlay.conditions.iter().cloned());
        let gateway = self.netlink.ensure_gateway(&self.gateway_spec()).await?;
        // The kernel must finish checksums and cut segments before a frame
        // comes to us: nobody after us would.
        for device in [&gateway.device, &gateway.peer] {
            if let Err(error) = xsk::device::disable_offloads(device) {
                self.complain(&format!("device {device}"), &error);
            }
        }
        self.gateway = Some(gateway);
        Ok(())
    }

    /// The gateway that the present world and configuration ask for.
    pub(super) fn gateway_spec(&self) -> GatewaySpec {
        let config = &self.config.current;
        let own = self.derived.as_ref().map(|derived| &derived.resolved.own);
        GatewaySpec {
            device: config.gateway.device.clone(),
            peer: config.gateway.peer.clone(),
            route_protocol: config.gateway.route_protocol,
            mtu: config.gateway.mtu.unwrap_or_else(|| self.overlay_mtu()),
            queues: Some(PortPlan::workers(&self.device_plans(), config.underlay.mode).max(1)),
            tunnel_addresses: own.map(|own| own.tunnel.clone()).unwrap_or_default(),
        }
    }

    /// What the underlay carries less the outer headers: those of IPv6 when
    /// some VTEP is reached over it, and never more than Felix says.
    fn overlay_mtu(&self) -> u32 {
        let underlay = self.underlay.mtu().unwrap_or(USUAL_MTU);
        let derived = self.derived.as_ref();
        let over_v6 = derived.is_some_and(|derived| {
            derived.resolved.vteps.values().any(|vtep| vtep.underlay.is_ipv6())
        });
        let (overhead, said) = match derived.map(|derived| &derived.resolved.own) {
            Some(own) if over_v6 => (OVERHEAD_V6, own.mtu_v6.or(own.mtu_v4)),
            Some(own) => (OVERHEAD_V4, own.mtu_v4),
            None => (OVERHEAD_V4, None),
        };
        let carried = underlay.saturating_sub(overhead);
        said.map_or(carried, |said| said.min(carried)).max(LEAST_MTU)
    }

    fn device_plans(&self) -> Vec<DevicePlan> {
        let wanted = self.config.current.underlay.queues;
        let plan = |device: &crate::link::UnderlayDevice| {
            let channels = xsk::device::channels(&device.name).unwrap_or(1).max(1);
            DevicePlan {
                name: device.name.clone(),
                index: device.index,
                queues: wanted.map_or(channels, |wanted| wanted.min(channels)),
            }
        };
        self.underlay.devices.iter().map(plan).collect()
    }

    fn port_plan(&self) -> Option<PortPlan> {
        let (config, gateway) = (&self.config.current, self.gateway.as_ref()?);
        let underlay = self.device_plans();
        if underlay.is_empty() {
            return None;
        }
        let workers = PortPlan::workers(&underlay, config.underlay.mode);
        let allowed = allowed_cpus();
        Some(PortPlan {
            underlay,
            gateway: DevicePlan {
                name: gateway.peer.clone(),
                index: gateway.peer_index,
                queues: workers,
            },
            mode: config.underlay.mode,
            port: self.derived.as_ref()?.resolved.own.port,
            liveness: config.underlay.liveness_timeout(),
            frames: config.workers.frames,
            frame_size: config.workers.frame_size,
            worker: WorkerConfig {
                cpu: None,
                batch: usize::try_from(config.workers.batch).unwrap_or(64),
                idle: match config.workers.idle {
                    tieline_config::schema::Idle::Busy => Idle::Busy,
                    tieline_config::schema::Idle::Adaptive => Idle::Adaptive,
                    tieline_config::schema::Idle::Sleep => Idle::Sleep,
                },
            },
            cpus: config.workers.placement(usize::try_from(workers).unwrap_or(1), &allowed),
        })
    }

    /// Ports and workers are started when they can be, and started anew when
    /// what they follow from has changed (a device came back with another
    /// index, a queue was added). Flows survive that: they are not the
    /// workers'.
    fn reconcile_ports(&mut self) {
        let Some(plan) = self.port_plan() else {
            if let Some(dataplane) = self.dataplane.take() {
                dataplane.stop();
            }
            return;
        };
        if self.dataplane.as_ref().is_some_and(|dataplane| dataplane.plan == plan) {
            return;
        }
        if let Some(dataplane) = self.dataplane.take() {
            info!("devices have changed: ports are opened anew");
            dataplane.stop();
        }
        match Dataplane::start(plan, || self.tables.reader(), &self.flows) {
            Ok(dataplane) => self.dataplane = Some(dataplane),
            Err(error) => self.complain("ports", &with_causes(&error)),
        }
    }

    /// Where we take but copies, a vxlan device of the kernel's own may deliver
    /// what policy denies.
    async fn look_for_receivers(&mut self) -> Result<(), LinkError> {
        let (Some(derived), Some(dataplane)) = (&self.derived, &self.dataplane) else {
            return Ok(());
        };
        if !dataplane.takes_copies() {
            self.netlink.forget_receivers();
            return Ok(());
        }
        let (vni, port) = (derived.resolved.own.vni, derived.resolved.own.port);
        let receivers = self.netlink.receivers().await?;
        for receiver in receivers.iter().filter(|receiver| receiver.takes(vni, port)) {
            let device = &receiver.device;
            let message = format!(
                "receives VNI {} at UDP port {port} as well, and packet sockets leave the kernel a \
                 copy of every frame: it delivers what policy denies; let AF_XDP be used (see \
                 underlay.mode), or remove the device (ip link delete {device})",
                vni.get()
            );
            self.complain(&format!("vxlan device {device}"), &message);
        }
        Ok(())
    }

    async fn reconcile_adjacencies(&mut self) -> Result<(), LinkError> {
        let Some(derived) = self.derived.clone() else { return Ok(()) };
        let underlays: BTreeSet<IpAddr> =
            derived.resolved.vteps.values().map(|vtep| vtep.underlay).collect();
        self.adjacencies = self.netlink.adjacencies(&underlays).await?;
        Ok(())
    }

    /// The XDP programs hand over VXLAN from exactly the known VTEPs to
    /// exactly our addresses.
    fn tell_filters(&mut self) {
        let (Some(derived), Some(dataplane)) = (self.derived.clone(), &mut self.dataplane) else {
            return;
        };
        let peers = derived.resolved.vteps.values().map(|vtep| vtep.underlay).collect();
        let own = derived.resolved.own.underlay.iter().copied().collect();
        if let Err(error) = dataplane.tell_filters(&peers, &own) {
            self.complain("XDP program", &error);
        }
    }

    async fn reconcile_routes(&mut self) -> Result<(), LinkError> {
        let (Some(derived), Some(gateway)) = (self.derived.clone(), self.gateway.clone()) else {
            return Ok(());
        };
        let resolved = &derived.resolved;
        let remote = |target: &RouteTarget| matches!(target, RouteTarget::Node { .. });
        let prefixes: BTreeSet<_> = resolved
            .routes
            .iter()
            .filter(|(_, route)| remote(&route.target))
            .map(|(prefix, _)| *prefix)
            .collect();
        let mut settings = RouteSettings::default();
        for address in &resolved.own.tunnel {
            match address {
                IpAddr::V4(ip) => settings.source_v4 = Some(*ip),
                IpAddr::V6(ip) => settings.source_v6 = Some(*ip),
            }
        }
        let changes = self.netlink.sync_routes(&prefixes, &gateway, &settings).await?;
        self.kernel_routes = prefixes.len();
        self.conditions.extend(changes.conditions);
        Ok(())
    }
}

/// What holds for the overlay as a whole. `gateway` has the MACs of frames to
/// the kernel: destination and source.
pub(crate) fn overlay(
    resolved: &Resolved,
    config: &tieline_config::schema::Overlay,
    gateway: (MacAddr, MacAddr),
) -> Overlay {
    let own = &resolved.own;
    Overlay {
        vni: own.vni,
        port: own.port,
        mac_v4: own.mac_v4,
        mac_v6: own.mac_v6,
        underlay: own.underlay.iter().map(|ip| Addr::from(*ip)).collect(),
        verify_checksum: config.verify_checksum,
        udp6_checksum: config.udp6_checksum,
        gateway_mac: gateway.0,
        gateway_source_mac: gateway.1,
    }
}

/// The CPUs that this process may run on.
fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    set.map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
        .unwrap_or_default()
}
