//! Label policy.
pub mod api;
