//! Clusters read from real API servers.
#![forbid(unsafe_code)]

mod follower;
mod same;
