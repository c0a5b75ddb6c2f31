//! What a packet is judged and forwarded by: one immutable [`Snapshot`].
//!
//! Control builds the next snapshot from the current one, and publishes it by
//! one pointer swap ([`crate::publish`]); a route therefore never exists
//! without its VTEP, nor an endpoint without its policy. Cloning a snapshot is
//! cheap: the tables are made of shared shards, and only the shards that a
//! change touches are copied.
//!
//! Start reading at [`Snapshot`]; lookups are the methods without `&mut`.

use std::sync::Arc;

use crate::addr::Addr;
use crate::wire::{MacAddr, Vni};

pub mod changes;
pub mod endpoint;
pub mod policy;
pub mod prefix;
mod ranges;
pub mod shard;
mod stamps;
pub mod vtep;

pub use changes::{Changes, Concern};
pub use endpoint::{ClassId, Endpoint, Endpoints};
pub use policy::{Clause, EndpointPolicy, L4, Outcome, Policies, PolicyId, Program, RuleId};
pub use prefix::PrefixMap;
pub use vtep::{NodeId, Path, VtepId, VtepSpec, Vteps};

/// Where the addresses of a prefix live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// On this node: deliver through the gateway.
    Local,
    /// Behind a VTEP.
    Vtep(VtepId),
}

/// What holds for the overlay as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The network identifier that we send with and accept.
    pub vni: Vni,
    /// The UDP destination port of VXLAN.
    pub port: u16,
    /// Our own VTEP's MAC for IPv4: inner source of what we send, and one of
    /// the inner destinations that we accept.
    pub mac_v4: MacAddr,
    /// Our own VTEP's MAC for IPv6.
    pub mac_v6: MacAddr,
    /// Our underlay addresses: the outer destinations that we accept.
    pub underlay: Vec<Addr>,
    /// Verify non-zero outer UDP checksums on receipt. RFC 7348 leaves it to
    /// the receiver; the frames of a local veth carry unfinished ones.
    pub verify_checksum: bool,
    /// Compute the UDP checksum of frames sent over an IPv6 underlay. Without
    /// it the checksum is zero, which RFC 6935 allows for tunnels but which
    /// the receiver must have been told to accept.
    pub udp6_checksum: bool,
    /// Destination MAC of frames that go to the gateway's kernel side.
    pub gateway_mac: MacAddr,
    /// Source MAC of those frames.
    pub gateway_source_mac: MacAddr,
}

/// Everything that a worker looks up, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows by one with each publication.
    pub generation: u64,
    /// Overlay-wide settings.
    pub overlay: Arc<Overlay>,
    /// Longest-prefix table: who owns an address.
    pub routes: PrefixMap<Route>,
    /// The other ends of the tunnels.
    pub vteps: Vteps,
    /// Addresses to classes, and the local ones to their policy.
    pub endpoints: Endpoints,
    /// Policies of local endpoints.
    pub policies: Policies,
    /// What has changed when; worked out on publication.
    pub changes: Changes,
}

impl Snapshot {
    /// A snapshot that knows nothing and forwards nothing.
    pub fn empty() -> Self {
        Self {
            generation: 0,
            overlay: Arc::new(Overlay {
                vni: Vni::new(4096).unwrap_or_default(),
                port: 4789,
                mac_v4: MacAddr::default(),
                mac_v6: MacAddr::default(),
                underlay: Vec::new(),
                verify_checksum: false,
                udp6_checksum: true,
                gateway_mac: MacAddr::default(),
                gateway_source_mac: MacAddr::default(),
            }),
            routes: PrefixMap::default(),
            vteps: Vteps::default(),
            endpoints: Endpoints::default(),
            policies: Policies::default(),
            changes: Changes::default(),
        }
    }

    /// The node behind a VTEP that owns `addr`, or `None` when the address is
    /// local or nobody's.
    #[inline]
    pub fn owner(&self, addr: Addr) -> Option<NodeId> {
        match self.routes.get(addr)? {
            Route::Vtep(id) => Some(self.vteps.get(*id)?.node),
            Route::Local => None,
        }
    }
}
