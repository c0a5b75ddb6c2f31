//! The kernel's side: devices, routes, neighbors.

use std::net::IpAddr;

use tieline_dataplane::wire::MacAddr;

/// How the kernel reaches an underlay address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adjacency {
    /// The next hop's MAC is known.
    Resolved {
        /// Our address towards it.
        source: IpAddr,
        /// Our device's MAC.
        source_mac: MacAddr,
        /// MAC of the next hop (the destination itself, or a gateway).
        next_hop_mac: MacAddr,
        /// Index of the device.
        device: u32,
    },
    /// It is not.
    Unresolved {
        /// Why, for `status`.
        reason: String,
    },
}
