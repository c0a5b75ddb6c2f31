//! The daemon's state in the form of `status`, and its answers to `explain`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tieline_dataplane::counters::Tally;
use tieline_dataplane::flow::{FlowTable, Tick};
use tieline_dataplane::port::PortStatistics;
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::worker::monotonic_ns;
use tieline_dataplane::xsk::pages::{self, PageUse};

use super::Daemon;
use super::ports::Running;
use crate::admin::status::{
    ConditionStatus, DeviceStatus, GatewayStatus, MemoryStatus, PortStatus, Status, TableStatus,
    VtepStatus, WorkerStatus,
};
use crate::link::Adjacency;
use crate::state::Condition;

impl Daemon {
    pub(super) fn status(&self) -> Status {
        let tally = self.tally();
        let counters = tally.named().into_iter().map(|(name, _, count)| (name.to_owned(), count));
        let workers: Vec<_> = self.running().map(worker).collect();
        Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.ready(),
            memory: memory(),
            config: self.config.status(),
            underlay: self.underlay_status(),
            gateway: self.gateway_status(),
            workers,
            clusters: serde_json::to_value(self.federation.status()).unwrap_or_default(),
            felix: serde_json::to_value(self.mirroring.status()).unwrap_or_default(),
            tables: self.table_status(),
            vteps: self.vtep_status(),
            counters: counters.collect(),
            drops: drops(&tally),
            conditions: self.all_conditions().iter().map(ConditionStatus::from).collect(),
        }
    }

    /// Whether tables are in force and every worker runs.
    pub(super) fn ready(&self) -> bool {
        self.derived.is_some() && self.running().next().is_some()
    }

    fn running(&self) -> impl Iterator<Item = (usize, &Running)> {
        self.dataplane.iter().flat_map(|dataplane| dataplane.workers.iter().enumerate())
    }

    fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for (_, running) in self.running() {
            all.merge(&running.shared.counters.read());
        }
        all
    }

    fn underlay_status(&self) -> Vec<DeviceStatus> {
        let opened = |index: u32| {
            let dataplane = self.dataplane.as_ref()?;
            let at = dataplane.plan.underlay.iter().position(|device| device.index == index)?;
            Some((dataplane.underlay_modes[at].clone(), dataplane.plan.underlay[at].queues))
        };
        let status = |device: &crate::link::UnderlayDevice| {
            let (mode, queues) = opened(device.index).unwrap_or(("not open".into(), 0));
            DeviceStatus {
                device: device.name.clone(),
                index: device.index,
                addresses: device.addresses.iter().map(ToString::to_string).collect(),
                mtu: device.mtu,
                mode,
                queues,
            }
        };
        self.underlay.devices.iter().map(status).collect()
    }

    fn gateway_status(&self) -> Option<GatewayStatus> {
        let gateway = self.gateway.as_ref()?;
        let mode = self.dataplane.as_ref().map(|dataplane| dataplane.gateway_mode.clone());
        Some(GatewayStatus {
            device: gateway.device.clone(),
            peer: gateway.peer.clone(),
            mtu: gateway.mtu,
            mode: mode.unwrap_or("not open".into()),
            routes: self.kernel_routes,
        })
    }

    fn table_status(&self) -> TableStatus {
        let tables = self.tables.current();
        TableStatus {
            generation: tables.generation,
            routes: tables.routes.len(),
            vteps: tables.vteps.len(),
            endpoints: tables.endpoints.len(),
            prefixes: tables.endpoints.prefixes().count(),
            policies: tables.policies.iter().count(),
            flow_capacity: self.flows.capacity(),
            flow_bytes: self.flows.bytes(),
            flow_huge_bytes: self.flows.huge_bytes(),
            flows: self.live_flows.load(Ordering::Relaxed),
            last_change_microseconds: u64::try_from(self.last_change.as_micros())
                .unwrap_or(u64::MAX),
        }
    }

    fn vtep_status(&self) -> Vec<VtepStatus> {
        let vteps = self.derived.iter().flat_map(|derived| &derived.resolved.vteps);
        let status = |(key, vtep): (&crate::resolve::VtepKey, &crate::resolve::ResolvedVtep)| {
            let (resolved, adjacency) = match self.adjacencies.get(&vtep.underlay) {
                Some(Adjacency::Resolved { next_hop_mac, .. }) => {
                    (true, format!("next hop {next_hop_mac}"))
                }
                Some(Adjacency::Unresolved { reason }) => (false, reason.clone()),
                None => (false, "not looked up yet".to_owned()),
            };
            VtepStatus {
                cluster: key.cluster.to_string(),
                node: key.node.clone(),
                underlay: vtep.underlay.to_string(),
                mac: vtep.mac.to_string(),
                adjacency,
                resolved,
            }
        };
        vteps.map(status).collect()
    }

    fn all_conditions(&self) -> Vec<Condition> {
        let mut all: Vec<_> = self.conditions.values().flatten().cloned().collect();
        all.extend(self.federation.conditions().iter().cloned());
        all.extend(self.mirroring.conditions(self.derived.as_deref()));
        all.extend(self.derived.iter().flat_map(|derived| derived.conditions()));
        all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        all.dedup();
        all
    }
}

/// Takes flows away that are over, and counts the live ones, on another thread:
/// the table may be large, and this one has other things to do. The count is a
/// few seconds old at most.
pub(super) fn age_flows(flows: &Arc<FlowTable>, live: &Arc<AtomicUsize>) {
    // A count that is still going on holds the table.
    if Arc::strong_count(live) > 1 {
        return;
    }
    let (flows, live) = (flows.clone(), live.clone());
    tokio::task::spawn_blocking(move || {
        let now = Tick::from_nanoseconds(monotonic_ns());
        flows.sweep(now);
        live.store(flows.iter(now).count(), Ordering::Relaxed);
    });
}

fn memory() -> MemoryStatus {
    let PageUse { resident, huge } = pages::of_process();
    MemoryStatus { resident_bytes: resident, huge_bytes: huge }
}

fn drops(tally: &Tally) -> BTreeMap<String, u64> {
    let counted = DropReason::ALL.iter().zip(tally.dropped);
    let occurred = counted.filter(|(_, count)| *count > 0);
    occurred.map(|(reason, count)| (reason.label().to_owned(), count)).collect()
}

fn worker((worker, running): (usize, &Running)) -> WorkerStatus {
    let shared = &running.shared;
    let (underlay, gateway) = shared.ports();
    let (frames_free, frames) = shared.frames();
    let placed = shared.pin.placed();
    WorkerStatus {
        worker,
        cpu: placed.pinned,
        cpu_wanted: placed.wanted,
        pins_lost: placed.lost,
        underlay: running.underlay.clone(),
        queues: running.queues.clone(),
        generation: shared.generation(),
        frames_free,
        frames,
        pages: running.pages.to_owned(),
        underlay_port: port(underlay),
        gateway_port: port(gateway),
    }
}

fn port(statistics: PortStatistics) -> PortStatus {
    PortStatus {
        received: statistics.received,
        sent: statistics.sent,
        receive_dropped: statistics.receive_dropped,
        send_failed: statistics.send_failed,
    }
}
