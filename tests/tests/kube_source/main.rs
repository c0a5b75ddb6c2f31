//! Clusters read from real API servers.
#![forbid(unsafe_code)]

mod faults;
mod federation;
mod follower;
mod order;
mod proxy;
mod same;
mod ways;
