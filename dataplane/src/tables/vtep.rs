//! The other ends of the tunnels.

use std::sync::Arc;

use super::shard::ShardMap;
use crate::addr::Addr;
use crate::outer::Header;
use crate::wire::MacAddr;

/// A VTEP's number; stable from snapshot to snapshot while the VTEP exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VtepId(pub u32);

impl VtepId {
    /// Numbers of VTEPs are below this one: four millions of them. It is that of
    /// none.
    pub const NONE: Self = Self((1 << 22) - 1);
}

/// A node's number; the VTEPs of both families of a node share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// How frames reach a VTEP over the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Our underlay address: the outer source.
    pub source: Addr,
    /// Our underlay device's MAC.
    pub source_mac: MacAddr,
    /// MAC of the next hop towards the VTEP.
    pub next_hop_mac: MacAddr,
}

/// What control says of a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtepSpec {
    /// The node that it belongs to.
    pub node: NodeId,
    /// Underlay address: the outer destination of what we send, and the outer
    /// source that we accept.
    pub underlay: Addr,
    /// The VTEP's own MAC: the inner destination.
    pub mac: MacAddr,
    /// `None` while the kernel has not resolved the next hop.
    pub path: Option<Path>,
}

/// The table of VTEPs.
#[derive(Clone, Debug, Default)]
pub struct Vteps {
    by_id: Arc<Vec<Option<VtepSpec>>>,
    /// The outer headers towards those that have a path.
    headers: Arc<Vec<Option<Header>>>,
    by_underlay: ShardMap<VtepId>,
}

impl Vteps {
    /// The VTEP with this number.
    #[inline]
    pub fn get(&self, id: VtepId) -> Option<&VtepSpec> {
        self.by_id.get(id.0 as usize)?.as_ref()
    }

    /// The outer headers towards the VTEP with this number, if it exists and
    /// has a path.
    #[inline]
    pub fn header(&self, id: VtepId) -> Option<&Header> {
        self.headers.get(id.0 as usize)?.as_ref()
    }

    /// The VTEP with this underlay address.
    #[inline]
    pub fn by_underlay(&self, underlay: Addr) -> Option<VtepId> {
        self.by_underlay.get(underlay.bits()).copied()
    }

    /// Sets what is known of a VTEP. One whose number is too high stays unknown.
    pub fn insert(&mut self, id: VtepId, spec: VtepSpec) {
        if id >= VtepId::NONE {
            return;
        }
        self.remove(id);
        let at = id.0 as usize;
        let by_id = Arc::make_mut(&mut self.by_id);
        let headers = Arc::make_mut(&mut self.headers);
        if by_id.len() <= at {
            by_id.resize(at + 1, None);
            headers.resize(at + 1, None);
        }
        by_id[at] = Some(spec);
        headers[at] = spec.path.map(|path| Header::new(&spec, &path));
        self.by_underlay.insert(spec.underlay.bits(), id);
    }

    /// Forgets a VTEP.
    pub fn remove(&mut self, id: VtepId) {
        let Some(old) = self.get(id).copied() else { return };
        Arc::make_mut(&mut self.by_id)[id.0 as usize] = None;
        Arc::make_mut(&mut self.headers)[id.0 as usize] = None;
        if self.by_underlay(old.underlay) == Some(id) {
            self.by_underlay.remove(old.underlay.bits());
        }
    }

    /// All VTEPs, by number.
    pub fn iter(&self) -> impl Iterator<Item = (VtepId, &VtepSpec)> {
        (0..).zip(self.by_id.iter()).filter_map(|(id, vtep)| Some((VtepId(id), vtep.as_ref()?)))
    }

    /// Number of VTEPs.
    pub fn len(&self) -> usize {
        self.by_underlay.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_underlay.is_empty()
    }
}
