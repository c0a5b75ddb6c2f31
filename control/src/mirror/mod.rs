//! What Felix must know of remote clusters, written into the local cluster's
//! API: their endpoints' identities as GlobalNetworkSets, and disabled IPPools
//! over their ranges, so that traffic to them keeps its source.
//!
//! ```text
//! labels   what the API takes as a label; values that are the same to selectors
//! group    remote identities -> groups that no selector in force tells apart
//! sets     groups -> sets, and the way there write by write
//! pools    remote ranges -> disabled pools
//! lease    who writes: one daemon of the cluster
//! pace     how fast
//! ```

pub mod group;
mod labels;
pub mod lease;
pub mod pace;
pub mod pools;
pub mod sets;
