//! The answer, as it is printed for programs. Field names and values are stable.

use std::net::IpAddr;

use serde::Serialize;

use super::felix::FelixView;
use super::query::Protocol;
use super::story::{NearMiss, TierTrace};
use crate::state::{ClusterId, ObjectName};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// An end that can't be read.
    #[error("{0:?} is neither namespace/pod, cluster:namespace/pod nor an address")]
    End(String),
    /// An unknown protocol.
    #[error("{0:?} is not a protocol: use tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255")]
    Protocol(String),
    /// A field that does not fit the protocol.
    #[error("{field}: {reason}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// No such pod.
    #[error(
        "no pod {pod} with an address in cluster {cluster}{hint}; finished pods and pods on the \
         host's network have no identity"
    )]
    NoPod {
        /// The cluster that was meant.
        cluster: ClusterId,
        /// The pod.
        pod: ObjectName,
        /// Where there is one of that name.
        hint: String,
    },
    /// A cluster that is not known.
    #[error("no cluster {0:?}: no RemoteClusterConfiguration of that name is in force")]
    NoCluster(String),
    /// A namespace that is not known, of a hypothetical pod.
    #[error(
        "no namespace {namespace:?} in cluster {cluster}: what a pod there inherits is not known; \
         add the Namespace or name another"
    )]
    NoNamespace {
        /// The cluster that was meant.
        cluster: ClusterId,
        /// The namespace.
        namespace: String,
    },
    /// IPv4 on one end, IPv6 on the other.
    #[error("{from} and {to} have no address family in common")]
    NoCommonFamily {
        /// As asked.
        from: String,
        /// As asked.
        to: String,
    },
    /// Nothing of ours judges the connection.
    #[error(
        "neither {from} nor {to} is a pod of the local cluster: policy is enforced at the pods of \
         the local cluster only"
    )]
    NotLocal {
        /// As asked.
        from: String,
        /// As asked.
        to: String,
    },
}

/// Whether a connection may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl From<bool> for Verdict {
    fn from(allow: bool) -> Self {
        if allow { Self::Allow } else { Self::Deny }
    }
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// From the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<serde_json::Value>,
    /// `deny` if either side denies.
    pub verdict: Verdict,
    /// Where the connection begins.
    pub from: EndpointInfo,
    /// Where it ends.
    pub to: EndpointInfo,
    /// Its protocol.
    pub protocol: Protocol,
    /// Destination port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Source port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// The source's policy; `null` when the source is no pod of the local
    /// cluster.
    pub egress: Option<Side>,
    /// The destination's policy; `null` when that is no pod of the local
    /// cluster.
    pub ingress: Option<Side>,
    /// How the local pod's node reaches the other end; `null` when no route of
    /// ours leads there and the kernel's own routes hold.
    pub route: Option<RouteInfo>,
    /// Fields of the query that mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointInfo {
    /// Its address.
    pub address: IpAddr,
    /// The identities that the address is one of, most specific first; empty
    /// for an address that is not known.
    pub identities: Vec<IdentityInfo>,
}

/// One identity of an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityInfo {
    /// `pod`, `hypothetical-pod`, `host-endpoint` or `network-set`.
    pub kind: &'static str,
    /// `local`, or the name of the RemoteClusterConfiguration.
    pub cluster: String,
    /// `namespace/name`, or the name of a cluster-scoped object. A hypothetical
    /// pod has its labels in the place of a name.
    pub name: String,
    /// The node that it is on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
}

/// What kind of thing decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// A rule of a policy.
    Rule,
    /// A tier's default action.
    TierDefault,
    /// The profile of the pod's namespace.
    Profile,
    /// Nothing is asked.
    NoPolicy,
}

/// What one pod's policy says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// What it says.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// What kind of thing decided.
    pub decided_by: DecidedBy,
    /// The tier that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy that decided: `namespace/name`, or the name of a global one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The kind of that policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_kind: Option<&'static str>,
    /// The rule's place in its policy and direction as the user wrote it,
    /// counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The profile that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where a rule denied: what would have followed without it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<String>,
    /// What would hold if the staged policies that select the pod were
    /// enforced; absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
    /// What Calico's Felix decides, where it is, of connections with remote
    /// endpoints. It knows what is written for it (section `[felix]` of the
    /// configuration).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub felix: Option<FelixView>,
    /// Rules that would have decided otherwise but for one or two conditions,
    /// nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near_misses: Vec<NearMiss>,
    /// Tiers and policies considered, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<TierTrace>,
}

/// What staged policies would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Staged {
    /// The verdict with them.
    pub verdict: Verdict,
    /// Whether that is another verdict.
    pub changes: bool,
    /// Why, in words.
    pub reason: String,
}

/// A route of the overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteInfo {
    /// Its destination.
    pub prefix: String,
    /// `local` for this node, `vtep` for another.
    pub via: &'static str,
    /// The cluster of the node that it leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// That node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Underlay address of the node's VTEP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vtep: Option<IpAddr>,
    /// The object that the route follows from.
    pub origin: String,
}
