//! Routes, VTEPs and identities: pure functions of a [`World`].
//!
//! Promises: the outcome depends on nothing but the world; what does not fit is
//! left out and said in a condition, never guessed; local wins over remote, and
//! of two remote clusters that claim one thing neither gets it. Knows nothing
//! of policy but the nets of network sets, and nothing of the kernel.
//!
//! ```text
//! own       this node's own place, Felix's settings
//! claims    what the local cluster owns
//! vtep      VTEPs of other nodes
//! routes    which node owns which prefix; the rules of conflict
//! identity  what rules can see, with inherited labels
//! mutual    whether clusters that are joined join this one too
//! follow    the same from one world to the next, without what stays
//! ```
//! Start reading at [`resolve`].

pub(crate) mod claims;
mod follow;
pub(crate) mod identity;
pub(crate) mod mutual;
mod own;
mod refusals;
mod routes;
mod vtep;

pub(crate) use claims::never_owned;
pub(crate) use follow::Follower;
pub use vtep::{mac_v4, mac_v6};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tieline_dataplane::addr::Prefix;
use tieline_dataplane::wire::{MacAddr, Vni};

use crate::state::{ClusterId, Condition, Identity, Severity, World};
use claims::Claims;

/// Which VTEP: a node has one per family of its overlay addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepKey {
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node's name.
    pub node: String,
    /// Whether it is the VTEP for IPv6 (reached over the node's IPv6 address).
    pub v6: bool,
}

/// A VTEP of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedVtep {
    /// The node's underlay address of the VTEP's family.
    pub underlay: IpAddr,
    /// Annotated or derived from the node's name.
    pub mac: MacAddr,
}

/// Where a prefix lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// On this node.
    Local,
    /// On another node, which has a VTEP.
    Node {
        /// Its cluster.
        cluster: ClusterId,
        /// Its name.
        node: String,
    },
}

/// A route and why it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRoute {
    /// Where the prefix lives.
    pub target: RouteTarget,
    /// The object that it follows from, as in `IPAMBlock 10-1-0-0-26`.
    pub origin: String,
}

/// This node's own place in the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Underlay addresses (the node's annotated addresses).
    pub underlay: Vec<IpAddr>,
    /// Addresses of our own VTEPs within the overlay.
    pub tunnel: Vec<IpAddr>,
    /// MAC of our VTEP for IPv4.
    pub mac_v4: MacAddr,
    /// MAC of our VTEP for IPv6.
    pub mac_v6: MacAddr,
    /// The overlay's network identifier.
    pub vni: Vni,
    /// The overlay's UDP port.
    pub port: u16,
    /// `vxlanMTU` when FelixConfiguration sets it.
    pub mtu_v4: Option<u32>,
    /// `vxlanMTUV6` when FelixConfiguration sets it.
    pub mtu_v6: Option<u32>,
}

/// What [`resolve`] has worked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// This node's own place.
    pub own: Own,
    /// The VTEPs that count: those of remote clusters, and with
    /// `overlay.scope = "all"` those of the local cluster's other nodes.
    pub vteps: BTreeMap<VtepKey, ResolvedVtep>,
    /// Which node owns which prefix; a route to a node exists only if the node
    /// has a VTEP in `vteps`.
    pub routes: BTreeMap<Prefix, ResolvedRoute>,
    /// What does not fit.
    pub conditions: Vec<Condition>,
}

/// Works out routes and VTEPs, and all that does not fit.
pub fn resolve(world: &World) -> Resolved {
    let claims = Claims::new(world);
    let (mut resolved, _) = place(world, &claims);
    let mut notes = Notes(resolved.conditions.drain(..).collect());
    identity::check(world, &claims, &mut notes);
    identity::check_namespaces(world, &mut notes);
    mutual::check(world, &mut notes);
    resolved.conditions = notes.0.into_iter().collect();
    resolved
}

/// All of [`resolve`] but the [`identity_conditions`]; and the candidates of
/// the local cluster.
fn place(world: &World, claims: &Claims) -> (Resolved, routes::Candidates) {
    let mut notes = Notes::default();
    let own = own::own(world, &mut notes);
    own::check_equal(world, &own, &mut notes);
    let vteps = vtep::vteps(world, claims, &mut notes);
    let (routes, candidates) = routes::routes(world, &vteps, claims, &mut notes);
    (Resolved { own, vteps, routes, conditions: notes.0.into_iter().collect() }, candidates)
}

/// Conditions of identities and of namespaces. `refused` says whether there are
/// remote addresses that don't count.
pub(crate) fn identity_conditions(world: &World, refused: bool) -> Vec<Condition> {
    let mut notes = Notes::default();
    if refused {
        identity::check(world, &Claims::new(world), &mut notes);
    }
    identity::check_namespaces(world, &mut notes);
    mutual::check(world, &mut notes);
    notes.0.into_iter().collect()
}

/// Conditions, gathered.
#[derive(Default)]
struct Notes(BTreeSet<Condition>);

impl Notes {
    fn add(&mut self, severity: Severity, cluster: &ClusterId, object: String, message: &str) {
        let (cluster, message) = (cluster.clone(), message.to_owned());
        self.0.insert(Condition { severity, cluster, object, message });
    }
}

/// The VTEP through which a prefix of a node is reached: the one of the
/// prefix's family where the node has it, else its other one.
pub fn vtep_for(resolved: &Resolved, cluster: &ClusterId, node: &str, v4: bool) -> Option<VtepKey> {
    [!v4, v4]
        .into_iter()
        .map(|v6| VtepKey { cluster: cluster.clone(), node: node.to_owned(), v6 })
        .find(|key| resolved.vteps.contains_key(key))
}

/// Everything that rules can see: pods and host endpoints of all clusters,
/// network sets of the local one.
pub fn identities(world: &World) -> Vec<Identity> {
    identity::identities(world)
}

#[cfg(test)]
mod tests;
