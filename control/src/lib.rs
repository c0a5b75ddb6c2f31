//! Tieline's control plane.
//!
//! ```text
//! cluster/    sources: what each cluster's objects are right now
//! federation  life cycle of the remote clusters, one task each
//! state       World: what is known of all clusters at one moment
//! derive      World -> everything that follows from it; pure
//!   resolve/    routes, VTEPs, identities, conditions
//!   policy/     selectors, policies -> address classes and verdict tables
//! publish     what follows -> Snapshot, by one pointer swap
//! link/       the kernel: devices, routes, neighbors
//! admin/      the Unix socket and /metrics
//! supervise   the daemon: puts all of it together
//! cli/        the commands
//! ```
//!
//! Promises: nothing here runs on a packet's path; everything between a
//! [`state::World`] and the tables is a pure function, so the order of events
//! never matters. Start reading at [`mod@derive`].
#![forbid(unsafe_code)]

pub mod admin;
mod causes;
pub mod cli;
pub mod cluster;
pub mod derive;
pub mod federation;
pub mod link;
pub mod map;
pub mod policy;
pub mod publish;
pub mod resolve;
pub mod state;
pub mod supervise;
