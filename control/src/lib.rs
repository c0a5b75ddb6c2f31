//! Tieline's control plane.
#![forbid(unsafe_code)]
pub mod policy;
pub mod state;
