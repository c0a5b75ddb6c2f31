//! Policy resources as the API stores them, validated and trimmed to what is
//! used.
//!
//! Promises: an object is read whole or refused with the path of the field that
//! is wrong and the remedy. What an API server's admission would refuse is
//! refused here too, because manifests on disk never met one; so is a field
//! inside a policy that is not known, because a policy without one of its
//! conditions means something else. Fields that can't change what a policy
//! means (`status`, most of `metadata`, hints) are passed over. Defaults that
//! depend on other fields, and everything about order, are the converter's.
//!
//! ```text
//! fields      a JSON object with the path of what goes wrong in it
//! meta        names, namespaces, labels, the storage groups' spellings
//! calico      Tier, (Staged)(Global)NetworkPolicy, (Global)NetworkSet
//! rule        the rules of Calico's policies
//! kubernetes  NetworkPolicy, StagedKubernetesNetworkPolicy, EndpointSlice
//! cluster     ClusterNetworkPolicy
//! ```

use std::sync::Arc;

use serde_json::Value;

use crate::map::Map;
use crate::state::ObjectName;

mod calico;
mod cluster;
mod fields;
mod kubernetes;
mod meta;
mod rule;
#[cfg(test)]
mod tests;

pub(crate) use calico::BUILT_IN as BUILT_IN_TIERS;
pub use calico::{NetworkSet, OWNER, Policy, PolicyType, StagedAction, Tier};
pub use cluster::{ClusterPeer, ClusterPolicy, ClusterPorts, ClusterRule, ClusterTier, Subject};
pub use kubernetes::{
    EndpointSlice, KubernetesPeer, KubernetesPolicy, KubernetesPorts, KubernetesRule, SlicePort,
};
pub use rule::{EntityRule, Family, Rule, ServiceAccounts, ServiceMatch};

/// Kinds of objects that only policy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// Calico `Tier`.
    Tier,
    /// Calico `NetworkPolicy`.
    NetworkPolicy,
    /// Calico `GlobalNetworkPolicy`.
    GlobalNetworkPolicy,
    /// Calico `StagedNetworkPolicy`.
    StagedNetworkPolicy,
    /// Calico `StagedGlobalNetworkPolicy`.
    StagedGlobalNetworkPolicy,
    /// Calico `StagedKubernetesNetworkPolicy`.
    StagedKubernetesNetworkPolicy,
    /// Calico `NetworkSet`.
    NetworkSet,
    /// Calico `GlobalNetworkSet`.
    GlobalNetworkSet,
    /// `networking.k8s.io` `NetworkPolicy`.
    KubernetesNetworkPolicy,
    /// `policy.networking.k8s.io` `ClusterNetworkPolicy`.
    ClusterNetworkPolicy,
    /// `discovery.k8s.io` `EndpointSlice`.
    EndpointSlice,
}

/// Calico's storage group, in which metadata is partly kept in an annotation.
const CALICO_STORAGE: &str = "crd.projectcalico.org/v1";

impl PolicyKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Tier,
        Self::NetworkPolicy,
        Self::GlobalNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
        Self::NetworkSet,
        Self::GlobalNetworkSet,
        Self::KubernetesNetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::EndpointSlice,
    ];

    /// The kind of an object, or `None` when policy does not read it.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| known.kind() == kind && known.api_versions().contains(&api_version))
    }

    /// The API versions in which the kind is read.
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::KubernetesNetworkPolicy => &["networking.k8s.io/v1"],
            Self::ClusterNetworkPolicy => &["policy.networking.k8s.io/v1alpha2"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            _ => &["projectcalico.org/v3", CALICO_STORAGE],
        }
    }

    /// `kind` as objects spell it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Tier => "Tier",
            Self::NetworkPolicy | Self::KubernetesNetworkPolicy => "NetworkPolicy",
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::NetworkSet => "NetworkSet",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// Whether objects of the kind are of a namespace.
    pub const fn namespaced(self) -> bool {
        match self {
            Self::Tier
            | Self::GlobalNetworkPolicy
            | Self::StagedGlobalNetworkPolicy
            | Self::GlobalNetworkSet
            | Self::ClusterNetworkPolicy => false,
            Self::NetworkPolicy
            | Self::StagedNetworkPolicy
            | Self::StagedKubernetesNetworkPolicy
            | Self::NetworkSet
            | Self::KubernetesNetworkPolicy
            | Self::EndpointSlice => true,
        }
    }
}

impl std::fmt::Display for PolicyKind {
    /// The kind as messages name it: Kubernetes' NetworkPolicy apart from
    /// Calico's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            other => other.kind(),
        })
    }
}

// No order is NaN: JSON has none. Equal pointers are then known to be equal.
impl Eq for PolicyObject {}

/// A validated object.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyObject {
    /// A Tier.
    Tier(Tier),
    /// A NetworkPolicy or GlobalNetworkPolicy of Calico's, or a staged one.
    Policy(Policy),
    /// A NetworkPolicy of Kubernetes', or a staged one.
    KubernetesPolicy(KubernetesPolicy),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(ClusterPolicy),
    /// A NetworkSet or GlobalNetworkSet.
    NetworkSet(NetworkSet),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
}

impl PolicyObject {
    /// Whether it is a network set that is written for Felix.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::NetworkSet(set) if set.is_ours())
    }
}

/// Policies, tiers, network sets and what else only policy reads, of one
/// cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyObjects(pub Map<(PolicyKind, ObjectName), Arc<PolicyObject>>);

/// Why an object is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ApiError {
    /// Path of the field, as in `spec.ingress[0].source.selector`.
    pub field: String,
    /// What is wrong with it, and the remedy.
    pub reason: String,
}

/// Reads and validates one object of a policy kind.
///
/// The name is the one that users see: the storage group may store an object
/// under another one.
pub fn parse(kind: PolicyKind, object: &Value) -> Result<(ObjectName, PolicyObject), ApiError> {
    let meta = meta::read(kind, object)?;
    let object = match kind {
        PolicyKind::Tier => PolicyObject::Tier(calico::tier(object, &meta)?),
        PolicyKind::NetworkPolicy
        | PolicyKind::GlobalNetworkPolicy
        | PolicyKind::StagedNetworkPolicy
        | PolicyKind::StagedGlobalNetworkPolicy => {
            PolicyObject::Policy(calico::policy(kind, object)?)
        }
        PolicyKind::NetworkSet | PolicyKind::GlobalNetworkSet => {
            PolicyObject::NetworkSet(calico::network_set(object, &meta)?)
        }
        PolicyKind::KubernetesNetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => {
            PolicyObject::KubernetesPolicy(kubernetes::policy(kind, object)?)
        }
        PolicyKind::ClusterNetworkPolicy => PolicyObject::ClusterPolicy(cluster::policy(object)?),
        PolicyKind::EndpointSlice => {
            PolicyObject::EndpointSlice(kubernetes::endpoint_slice(object, &meta)?)
        }
    };
    Ok((meta.object, object))
}
