//! Tieline's configuration.
#![forbid(unsafe_code)]
