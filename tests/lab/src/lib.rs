//! Network namespaces and traffic peers.
#![forbid(unsafe_code)]
