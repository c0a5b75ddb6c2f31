//! Policy resources as the API stores them, trimmed to what is used.

/// Policies, tiers, network sets and what else only policy reads, of one
/// cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyObjects {}
