//! The model and the identities to address classes and verdict tables.

use std::sync::Arc;

use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{ClassId, EndpointPolicy, PolicyId};

use super::model::{PolicySet, PolicySource};
use crate::state::{Identity, ObjectName};

/// What packets are judged by, and what each decision means.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Every address that is some identity's (network sets' host prefixes are
    /// not among these), ascending; the policy for those of local workloads.
    pub endpoints: Vec<(Addr, ClassId, Option<PolicyId>)>,
    /// The class of other addresses, by longest prefix.
    pub prefixes: Vec<(Prefix, ClassId)>,
    /// By [`PolicyId`].
    pub policies: Vec<Option<Arc<EndpointPolicy>>>,
    /// By [`tieline_dataplane::tables::RuleId`]: what decided.
    pub decisions: Vec<Decision>,
}

/// Whether a packet goes to or comes from the endpoint that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To it.
    Ingress,
    /// From it.
    Egress,
}

/// What decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// No policy is asked: an address of the node itself. Always number 0.
    NoPolicy,
    /// A rule.
    Rule {
        /// Its policy's tier.
        tier: String,
        /// Its policy's kind.
        source: PolicySource,
        /// Its policy.
        policy: ObjectName,
        /// Direction within the policy.
        direction: Direction,
        /// Its place, from 0.
        index: usize,
    },
    /// The tier's default action, because a policy of it selected the endpoint.
    TierDefault {
        /// The tier.
        tier: String,
    },
    /// No tier decided, and the profile of the endpoint's namespace allows.
    Profile {
        /// The profile, as in `kns.default`.
        name: String,
    },
}

/// Compiles.
pub fn compile(policies: &PolicySet, identities: &[Identity]) -> Compiled {
    let _ = (policies, identities);
    Compiled::default()
}
