//! Tieline's end-to-end test harness.
#![forbid(unsafe_code)]
pub mod federated;
pub mod guest;
pub mod joined;
pub mod kube;
pub mod oracle;
pub mod random;
pub mod reference;
