//! What Felix must know of remote clusters, written into the local cluster's
//! API: their endpoints' identities as GlobalNetworkSets, and disabled IPPools
//! over their ranges, so that traffic to them keeps its source.
//!
//! Promises: one daemon of the cluster writes; objects that somebody else has
//! made are never touched; what is written follows from the present state of the
//! clusters and of the API alone, so another daemon goes on where one has
//! stopped; nothing here delays the tables. Knows nothing of packets.
//!
//! ```text
//! labels   what the API takes as a label; values that are the same to selectors
//! group    remote identities -> groups that no selector in force tells apart
//! sets     groups -> sets, and the way there write by write
//! pools    remote ranges -> disabled pools
//! lease    who writes: one daemon of the cluster
//! pace     how fast
//! checks   what Felix can't do as Tieline does
//! wanted   what follows from the state of the world for all of that
//! object   sets and pools as objects of the API
//! api      the requests, and what their failures mean
//! owned    our objects as the API has them
//! follow   the watches
//! carry    the writes
//! writer   puts all of it together
//! uninstall  removes all of it
//! report   what becomes of remote clusters, on their configurations
//! status   what is told about it
//! ```
//! Start reading at [`wanted`], then [`sets`].

use std::sync::Arc;

use crate::policy::api::{PolicyKind, PolicyObject, PolicyObjects};
use crate::state::{ClusterId, Identity, IdentityKind};

mod api;
mod carry;
pub mod checks;
mod follow;
pub mod group;
mod labels;
pub mod lease;
pub mod object;
mod owned;
pub mod pace;
pub mod pools;
mod report;
pub mod sets;
pub mod status;
mod tell;
pub mod uninstall;
pub mod wanted;
mod writer;

pub use api::LEASE;
pub use object::OWNER;
pub use status::MirrorStatus;
pub use wanted::{Input, Modes};
pub use writer::{Mirror, Place};

/// The sets that are written for Felix, as identities of the local cluster.
pub fn mirrored_sets(objects: &PolicyObjects) -> Vec<Identity> {
    let sets = objects.0.iter().filter_map(|((kind, name), object)| match &**object {
        PolicyObject::NetworkSet(set)
            if *kind == PolicyKind::GlobalNetworkSet && set.labels.contains_key(OWNER) =>
        {
            Some(Identity {
                cluster: ClusterId::Local,
                kind: IdentityKind::NetworkSet,
                name: name.clone(),
                node: String::new(),
                labels: Arc::new(set.labels.clone()),
                nets: set.nets.clone(),
                ports: Vec::new(),
                profile: false,
            })
        }
        _ => None,
    });
    sets.collect()
}
