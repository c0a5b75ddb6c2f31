//! What is told about the mirror.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::state::Condition;

/// The mirror, for `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MirrorStatus {
    /// `off`, `standby` (another daemon writes), `starting` or `writing`.
    pub state: String,
    /// Why it is off or can't write.
    pub reason: Option<String>,
    /// The daemon that writes.
    pub writer: Option<String>,
    /// API group and version that is written to.
    pub storage: Option<String>,
    /// GlobalNetworkSets and addresses in them, by remote cluster.
    pub clusters: BTreeMap<String, MirroredCluster>,
    /// IPPools.
    pub pools: Vec<String>,
    /// Objects that differ from what they are to be.
    pub waiting: usize,
    /// Objects written or deleted by this daemon.
    pub writes: u64,
    /// When the last write was, RFC 3339.
    pub last_write: Option<String>,
    /// What the operator should know.
    #[serde(skip)]
    pub conditions: Vec<Condition>,
}

/// What there is of one remote cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MirroredCluster {
    /// GlobalNetworkSets.
    pub sets: usize,
    /// Addresses in them.
    pub addresses: usize,
}
