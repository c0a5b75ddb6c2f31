//! Bringing the kernel's side, the ports and the tables to what is wanted.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tieline_dataplane::addr::Addr;
use tieline_dataplane::outer::{OVERHEAD_V4, OVERHEAD_V6};
use tieline_dataplane::tables::Overlay;
use tieline_dataplane::wire::{MacAddr, Vni};
use tieline_dataplane::worker::{Idle, WorkerConfig};
use tieline_dataplane::xsk;
use tracing::{info, warn};

use super::Daemon;
use super::cpus::usable;
use super::ports::{Dataplane, DevicePlan, PortPlan};
use super::spread::{Share, spread};
use crate::causes::with_causes;
use crate::derive::Derived;
use crate::link::{Changed, GatewaySpec, LinkError, Receiver, RouteSettings};
use crate::resolve::{Resolved, RouteTarget};
use crate::state::{ClusterId, Condition, Severity};

/// What an underlay usually carries, until a device says otherwise.
const USUAL_MTU: u32 = 1500;

/// Least MTU of a link that carries IPv6 (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// Parts of a reconciliation, each with its own conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Links,
    Ports,
    Cpus,
    Receivers,
    Adjacencies,
    Filters,
    Routes,
}

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
    /// world, kernel and configuration ask for, as far as it may have changed.
    /// What can't be done is a condition; the rest is done all the same.
    pub(super) async fn reconcile(&mut self, due: Changed) {
        if self.derived.is_none() {
            return;
        }
        if due.gateway || due.underlay {
            let outcome = self.reconcile_links().await;
            self.settle(Step::Links, "gateway", outcome);
            let mut outcome = self.reconcile_ports().map_err(|error| with_causes(&error));
            if let Ok(conditions) = &mut outcome {
                let run = self.dataplane.as_ref().map(|dataplane| dataplane.workers.len());
                conditions.extend(other_count(self.config.current.workers.count, run));
            }
            self.settle(Step::Ports, "ports", outcome);
            self.place_workers();
        }
        if due.gateway || due.underlay || due.receivers {
            let outcome = self.look_for_receivers().await;
            self.settle(Step::Receivers, "ports", outcome);
        }
        if due.gateway || due.underlay || due.adjacencies {
            let outcome = self.reconcile_adjacencies().await;
            self.settle(Step::Adjacencies, "underlay", outcome.map(|()| Vec::new()));
            self.publish();
            let outcome = self.tell_filters().map_err(|error| with_causes(&error));
            self.settle(Step::Filters, "XDP program", outcome.map(|()| Vec::new()));
        }
        if due.gateway || due.routes {
            let outcome = self.reconcile_routes().await;
            self.settle(Step::Routes, "routes", outcome);
        }
    }

    /// What a step has to say takes the place of what it said before; the log
    /// is told what is new.
    pub(super) fn settle<E: std::fmt::Display>(
        &mut self,
        step: Step,
        object: &str,
        outcome: Result<Vec<Condition>, E>,
    ) {
        let conditions = outcome.unwrap_or_else(|error| vec![complaint(object, &error)]);
        let before = self.conditions.insert(step, conditions).unwrap_or_default();
        for new in self.conditions[&step].iter().filter(|new| !before.contains(new)) {
            warn!(object = new.object, message = new.message, "not in force");
        }
    }

    async fn reconcile_links(&mut self) -> Result<Vec<Condition>, LinkError> {
        let Some(derived) = self.derived.clone() else { return Ok(Vec::new()) };
        let own = &derived.resolved.own;
        let names = &self.config.current.underlay.devices;
        self.underlay = self.netlink.underlay(&own.underlay, names).await?;
        let mut conditions = self.underlay.conditions.clone();
        let gateway = self.netlink.ensure_gateway(&self.gateway_spec()).await?;
        conditions.extend(self.too_large(gateway.mtu));
        // The kernel must finish checksums and cut segments before a frame
        // comes to us: nobody after us would.
        for device in [&gateway.device, &gateway.peer] {
            if let Err(error) = xsk::device::disable_offloads(device) {
                conditions.push(complaint(&format!("device {device}"), &error));
            }
        }
        self.gateway = Some(gateway);
        Ok(conditions)
    }

    /// Packets of the gateway's MTU must fit the underlay with their outer
    /// headers: a VTEP must not fragment (RFC 7348 section 4.3).
    fn too_large(&self, mtu: u32) -> Option<Condition> {
        let carried = self.underlay.mtu()?;
        let needed = mtu + self.overhead();
        let message = format!(
            "packets of up to {mtu} bytes need {needed} with their outer headers, but the underlay \
             carries {carried}: larger ones are lost; raise the underlay's MTU, or lower gateway.mtu"
        );
        (needed > carried).then(|| complaint("gateway.mtu", &message))
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
            // Without a device in sight the gateway stays as it is: a new one
            // would take every route with it.
            queues: (!self.underlay.devices.is_empty())
                .then(|| self.shares(&self.device_plans()).len().max(1) as u32),
            tunnel_addresses: own.map(|own| own.tunnel.clone()).unwrap_or_default(),
        }
    }

    /// Bytes of the outer headers: those of IPv6 when some VTEP is reached over
    /// it.
    fn overhead(&self) -> u32 {
        let mut vteps = self.derived.iter().flat_map(|derived| derived.resolved.vteps.values());
        let over_v6 = vteps.any(|vtep| vtep.underlay.is_ipv6());
        if over_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 }
    }

    /// What the underlay carries less the outer headers, and never more than
    /// Felix says.
    fn overlay_mtu(&self) -> u32 {
        let overhead = self.overhead();
        let carried = self.underlay.mtu().unwrap_or(USUAL_MTU).saturating_sub(overhead);
        let own = self.derived.as_ref().map(|derived| &derived.resolved.own);
        let said = own.and_then(|own| match overhead {
            OVERHEAD_V6 => own.mtu_v6.or(own.mtu_v4),
            _ => own.mtu_v4,
        });
        said.map_or(carried, |said| said.min(carried)).max(LEAST_MTU)
    }

    fn device_plans(&self) -> Vec<DevicePlan> {
        let wanted = self.config.current.underlay.queues;
        let plan = |device: &crate::link::UnderlayDevice| {
            let open = self.dataplane.iter().flat_map(|dataplane| &dataplane.plan.underlay);
            let known = open.into_iter().find(|open| open.index == device.index);
            // A device that is being renamed does not answer by its old name.
            let channels = xsk::device::channels(&device.name).ok();
            let channels = channels.or(known.map(|known| known.queues)).unwrap_or(1).max(1);
            DevicePlan {
                name: device.name.clone(),
                index: device.index,
                queues: wanted.map_or(channels, |wanted| wanted.min(channels)),
            }
        };
        self.underlay.devices.iter().map(plan).collect()
    }

    /// What each worker serves.
    fn shares(&self, underlay: &[DevicePlan]) -> Vec<Share> {
        let config = &self.config.current;
        // A packet socket sees every queue of its device.
        if config.underlay.mode == tieline_config::schema::Mode::Packet {
            return vec![Share { device: 0, queues: Vec::new() }];
        }
        let queues: Vec<u32> = underlay.iter().map(|device| device.queues).collect();
        spread(&queues, config.workers.wanted())
    }

    fn port_plan(&self) -> Option<PortPlan> {
        let (config, gateway) = (&self.config.current, self.gateway.as_ref()?);
        let underlay = self.device_plans();
        if underlay.is_empty() {
            return None;
        }
        let shares = self.shares(&underlay);
        Some(PortPlan {
            underlay,
            gateway: DevicePlan {
                name: gateway.peer.clone(),
                index: gateway.peer_index,
                queues: u32::try_from(shares.len()).ok()?,
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
            shares,
        })
    }

    /// Ports and workers are started when they can be, and started anew when
    /// what they follow from has changed (a device came back with another
    /// index, a queue was added). Flows survive that: they are not the
    /// workers'.
    fn reconcile_ports(&mut self) -> anyhow::Result<Vec<Condition>> {
        let Some(plan) = self.port_plan() else {
            self.dataplane = None;
            return Ok(Vec::new());
        };
        if let Some(dataplane) = &self.dataplane {
            if dataplane.plan == plan {
                return Ok(dataplane.conditions.clone());
            }
            info!("devices have changed: ports are opened anew");
        }
        self.dataplane = None;
        let workers = &self.config.current.workers;
        let cpus = workers.placement(plan.shares.len(), &usable(workers));
        let started = Dataplane::start(plan, &cpus, || self.tables.reader(), &self.flows);
        self.retry.tell(started.is_ok());
        let dataplane = self.dataplane.insert(started?);
        Ok(dataplane.conditions.clone())
    }

    /// Where we take but copies, a vxlan device of the kernel's own may deliver
    /// what policy denies. Where we take the packets themselves, it gets none
    /// of those that come from other clusters' nodes.
    async fn look_for_receivers(&mut self) -> Result<Vec<Condition>, LinkError> {
        let (Some(derived), Some(dataplane)) = (&self.derived, &self.dataplane) else {
            return Ok(Vec::new());
        };
        let (vni, port) = (derived.resolved.own.vni, derived.resolved.own.port);
        let copies = dataplane.takes_copies();
        let receivers = self.netlink.receivers().await?;
        let told = |receiver: &Receiver| {
            if copies {
                receiver.takes(vni, port).then(|| delivers_denied(receiver, vni))
            } else {
                gets_nothing(receiver, vni, port)
            }
        };
        Ok(receivers.iter().filter_map(told).collect())
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
    fn tell_filters(&mut self) -> anyhow::Result<()> {
        let (Some(derived), Some(dataplane)) = (self.derived.clone(), &mut self.dataplane) else {
            return Ok(());
        };
        let peers = derived.resolved.vteps.values().map(|vtep| vtep.underlay).collect();
        let own = derived.resolved.own.underlay.iter().copied().collect();
        dataplane.tell_filters(&peers, &own)
    }

    async fn reconcile_routes(&mut self) -> Result<Vec<Condition>, LinkError> {
        let (Some(derived), Some(gateway)) = (self.derived.clone(), self.gateway.clone()) else {
            return Ok(Vec::new());
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
        Ok(changes.conditions)
    }
}

/// What is due when one world follows another.
pub(super) fn due(old: Option<&Derived>, new: &Derived) -> Changed {
    let Some(old) = old else { return Changed::ALL };
    let (old, new) = (&old.resolved, &new.resolved);
    if Arc::ptr_eq(old, new) {
        return Changed::default();
    }
    let own = old.own != new.own;
    let vteps = old.vteps != new.vteps;
    // The families of the VTEPs decide about the MTU.
    Changed {
        gateway: own || vteps,
        underlay: own,
        adjacencies: own || vteps,
        receivers: own,
        routes: own || old.routes != new.routes,
    }
}

fn complaint(object: &str, error: &dyn std::fmt::Display) -> Condition {
    Condition {
        severity: Severity::Error,
        cluster: ClusterId::Local,
        object: object.to_owned(),
        message: error.to_string(),
    }
}

fn delivers_denied(receiver: &Receiver, vni: Vni) -> Condition {
    let message = format!(
        "receives VNI {} at UDP port {} as well, and packet sockets leave the kernel a copy of \
         every frame: it delivers what policy denies; let AF_XDP be used (see underlay.mode), or \
         remove the device if nobody needs it",
        vni.get(),
        receiver.port
    );
    complaint(&format!("vxlan device {}", receiver.device), &message)
}

/// Another overlay at our UDP port. Calico's own device is the same overlay:
/// between this cluster's nodes it gets its packets, and needs no others.
fn gets_nothing(receiver: &Receiver, vni: Vni, port: u16) -> Option<Condition> {
    if receiver.port != port || crate::link::is_calico(&receiver.device) {
        return None;
    }
    let (what, fate) = match receiver.vni {
        None => ("all VNIs".to_owned(), "judged by policy, or dropped for their VNI"),
        Some(own) if own == vni.get() => (format!("VNI {own}, which is the overlay's"), "taken"),
        Some(own) => (format!("VNI {own}"), "dropped (unknown_vni)"),
    };
    Some(Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: format!("vxlan device {}", receiver.device),
        message: format!(
            "another overlay receives {what} at UDP port {port}, where Tieline takes all that the \
             nodes of other clusters send: packets to it that come from those are {fate}; give it \
             another port, or remove it if nobody needs it"
        ),
    })
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

/// Another number of workers than was asked for.
fn other_count(wanted: Option<u32>, run: Option<usize>) -> Option<Condition> {
    let (wanted, run) = (usize::try_from(wanted?).ok()?, run?);
    let condition = Condition {
        severity: Severity::Warning,
        cluster: ClusterId::Local,
        object: "workers.count".to_owned(),
        message: format!(
            "{run} workers run, not {wanted}: there are no more than served queues, or than one \
             with a packet socket, and one at least for each underlay device"
        ),
    };
    (wanted != run).then_some(condition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_number_of_workers_is_reported() {
        assert_eq!(other_count(None, Some(4)), None);
        assert_eq!(other_count(Some(4), None), None);
        assert_eq!(other_count(Some(4), Some(4)), None);
        let condition = other_count(Some(8), Some(4)).expect("4 queues");
        assert_eq!((condition.severity, &*condition.object), (Severity::Warning, "workers.count"));
        assert!(condition.message.starts_with("4 workers run, not 8: "), "{}", condition.message);
    }

    #[test]
    fn another_overlay_at_our_port_is_named() {
        let vni = Vni::new(4096).unwrap();
        let of = |device: &str, vni_of: Option<u32>, port| {
            let receiver = Receiver { device: device.into(), vni: vni_of, port };
            gets_nothing(&receiver, vni, 4789)
                .map(|condition| (condition.severity, condition.object, condition.message))
        };
        assert_eq!(of("vxlan.calico", Some(4096), 4789), None);
        assert_eq!(of("vxlan-v6.calico", None, 4789), None);
        assert_eq!(of("flannel.1", Some(1), 8472), None);
        for (vni_of, words) in [
            (Some(1), "receives VNI 1 at UDP port 4789"),
            (Some(4096), "VNI 4096, which is the overlay's"),
            (None, "receives all VNIs at"),
        ] {
            let (severity, object, message) = of("other", vni_of, 4789).unwrap();
            assert_eq!((severity, &*object), (Severity::Warning, "vxlan device other"));
            assert!(message.contains(words), "{message}");
        }
    }
}
