//! A node's packet path over memory, with the tables of an offline
//! configuration.
//!
//! Stages, tables and policies are those of the daemon; the ports are memory.
//! Next hops, which only a kernel could know, are made up.

use std::sync::Arc;

use anyhow::bail;
use tieline_dataplane::counters::Tally;
use tieline_dataplane::flow::{FlowHasher, FlowTable};
use tieline_dataplane::frame::HeapMemory;
use tieline_dataplane::port::memory::{MemoryPort, MemoryWire};
use tieline_dataplane::verdict::DropReason;
use tieline_dataplane::wire::MacAddr;
use tieline_dataplane::worker::{Idle, Shared, Worker, WorkerConfig};

use super::offline::Offline;
use crate::link::Adjacency;
use crate::publish::Tables;
use crate::supervise::{kernel, reload};

/// MAC of the gateway's kernel end.
pub(super) const KERNEL_MAC: MacAddr = mac(3);
/// MAC that the kernel sends to through the gateway.
pub(super) const NEIGHBOR_MAC: MacAddr = mac(4);

const fn mac(last: u8) -> MacAddr {
    MacAddr([0x02, 0, 0, 0, 0, last])
}

/// Where a frame comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Underlay,
    Gateway,
}

/// What became of a frame.
#[derive(Debug)]
pub(super) struct Passed {
    /// Why it was dropped, if it was.
    pub(super) dropped: Option<DropReason>,
    /// What came out on the other side.
    pub(super) out: Option<Vec<u8>>,
}

/// A worker over memory.
pub(super) struct Pipeline {
    worker: Worker<HeapMemory, ()>,
    shared: Arc<Shared>,
    tables: Tables,
    underlay: MemoryWire,
    gateway: MemoryWire,
}

impl Pipeline {
    pub(super) fn new(offline: &Offline) -> anyhow::Result<Self> {
        let tables = Tables::default();
        let flow_table = &offline.config.flow_table;
        let (entries, timeouts) =
            (usize::try_from(flow_table.entries)?, reload::timeouts(&flow_table.timeouts));
        // A fixed key: the same captures give the same bytes.
        let flows = FlowTable::with_hasher(entries, timeouts, FlowHasher::from_seed(0));
        let (underlay_port, underlay) = MemoryPort::new();
        let (gateway_port, gateway) = MemoryPort::new();
        let worker = Worker::new(
            WorkerConfig { cpu: None, batch: 1, idle: Idle::Sleep },
            HeapMemory::new(16, 1 << 17),
            Box::new(underlay_port),
            Box::new(gateway_port),
            (),
            tables.reader(),
            Arc::new(flows),
        );
        let mut this = Self { shared: worker.shared(), worker, tables, underlay, gateway };
        this.apply(offline);
        Ok(this)
    }

    /// Puts the tables of this configuration into force; flows stay.
    pub(super) fn apply(&mut self, offline: &Offline) {
        let derived = &offline.derived;
        let own = &derived.resolved.own.underlay;
        let adjacency = |vtep: &crate::resolve::ResolvedVtep| {
            let source = own.iter().find(|ip| ip.is_ipv4() == vtep.underlay.is_ipv4())?;
            let resolved = Adjacency::Resolved {
                source: *source,
                source_mac: mac(1),
                next_hop_mac: mac(2),
                device: 1,
            };
            Some((vtep.underlay, resolved))
        };
        let adjacencies = derived.resolved.vteps.values().filter_map(adjacency).collect();
        let macs = (KERNEL_MAC, NEIGHBOR_MAC);
        let overlay = kernel::overlay(&derived.resolved, &offline.config.overlay, macs);
        self.tables.apply(overlay, &derived.resolved, &derived.compiled, &adjacencies);
    }

    /// Passes one frame at this moment of the worker's clock.
    pub(super) fn pass(
        &mut self,
        side: Side,
        frame: Vec<u8>,
        time_ns: u64,
    ) -> anyhow::Result<Passed> {
        let before = self.shared.counters.read().dropped;
        let (into, out) = match side {
            Side::Underlay => (&self.underlay, &self.gateway),
            Side::Gateway => (&self.gateway, &self.underlay),
        };
        into.put(frame);
        while self.worker.poll(time_ns) > 0 {}
        let after = self.shared.counters.read().dropped;
        let mut counts = DropReason::ALL.iter().zip(before.iter().zip(after));
        let dropped = counts.find(|(_, (before, after))| **before != *after).map(|(r, _)| *r);
        let out = out.take();
        if out.is_none() && dropped.is_none() {
            bail!("the frame is too long for the packet path");
        }
        Ok(Passed { dropped, out })
    }

    /// What has been counted so far.
    pub(super) fn tally(&self) -> Tally {
        self.shared.counters.read()
    }
}
