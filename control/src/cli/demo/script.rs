//! The story as a table: who is there, what happens, and what must come of it.

/// A cluster of the story.
pub(super) struct ClusterPlan {
    pub(super) name: &'static str,
    /// Name of the RemoteClusterConfiguration in it, which is the other cluster's.
    pub(super) remote: &'static str,
    /// UID of its `kube-system` namespace: what a cluster is known by.
    pub(super) uid: &'static str,
    pub(super) pool_v4: &'static str,
    pub(super) pool_v6: &'static str,
    pub(super) nodes: [NodePlan; 2],
}

/// A node of the story.
pub(super) struct NodePlan {
    pub(super) name: &'static str,
    /// Index of its underlay segment.
    pub(super) segment: usize,
    pub(super) pods: &'static [PodPlan],
}

/// A pod of the story. Names are unique over both clusters.
pub(super) struct PodPlan {
    pub(super) name: &'static str,
    /// Its label `app`.
    pub(super) app: &'static str,
}

/// The Kubernetes namespace of all pods: policies of one namespace reach pods
/// of the namespace with the same name in other clusters.
pub(super) const NAMESPACE: &str = "shop";

/// A pod by its full name, as the command line takes it.
pub(super) fn pod_name(pod: &str) -> String {
    format!("{NAMESPACE}/{pod}")
}

/// What the pods serve; every pod serves both.
pub(super) const PORTS: [u16; 2] = [22, 5432];
/// Where the small packets go.
pub(super) const UDP_PORT: u16 = 9000;

const fn pod(name: &'static str, app: &'static str) -> PodPlan {
    PodPlan { name, app }
}

/// Both clusters. The first node of each is alone on its segment, so that its
/// next hop is the router; the second ones share a segment.
pub(super) const CLUSTERS: [ClusterPlan; 2] = [
    ClusterPlan {
        name: "app",
        remote: "db",
        uid: "5b1c1b7e-0f0a-4c55-9a37-2f6f1a9c0a01",
        pool_v4: "10.10.0.0",
        pool_v6: "fd00:10::",
        nodes: [
            NodePlan {
                name: "app-1",
                segment: 0,
                pods: &[pod("backend", "backend-app"), pod("frontend", "frontend")],
            },
            NodePlan {
                name: "app-2",
                segment: 2,
                pods: &[pod("backend-2", "backend-app"), pod("report", "report")],
            },
        ],
    },
    ClusterPlan {
        name: "db",
        remote: "app",
        uid: "c83cbd0c-8a3d-44bb-8a5c-6d1f7f0f4b02",
        pool_v4: "10.20.0.0",
        pool_v6: "fd00:20::",
        nodes: [
            NodePlan {
                name: "db-1",
                segment: 1,
                pods: &[pod("postgres", "postgres"), pod("cache", "redis")],
            },
            NodePlan {
                name: "db-2",
                segment: 2,
                pods: &[pod("replica", "postgres"), pod("metrics", "metrics")],
            },
        ],
    },
];

/// A chapter of the account.
pub(super) struct Scene {
    pub(super) title: &'static str,
    pub(super) beats: &'static [Beat],
}

/// What happens in a scene.
pub(super) enum Beat {
    Do(Act),
    /// Connections that are asked about and made, in both families.
    Try(&'static [Connection]),
}

/// Something that is done to the clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Namespaces, links, servers and daemons.
    StandUp,
    /// A RemoteClusterConfiguration in each cluster.
    Join,
    /// Traffic within a cluster, which is not Tieline's.
    Beside,
    /// The policies of both clusters.
    ApplyPolicies,
    /// `postgres` gets another label while a connection to it runs.
    Relabel,
    /// It gets its label back.
    LabelBack,
    /// `app` sets overlayRoutingMode to Disabled.
    OverlayOff,
    /// Both RemoteClusterConfigurations are deleted.
    Leave,
    /// A TCP transfer as fast as it goes.
    Bulk,
    /// UDP packets as small as they get, as fast as they go.
    SmallPackets,
    /// The daemons are asked to end.
    Stop,
}

/// A TCP connection and what must come of it.
pub(super) struct Connection {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) port: u16,
    pub(super) expect: Expect,
    /// Who must have decided.
    pub(super) deciders: &'static [Decider],
}

/// What must come of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Both policies allow it, there is a route, and it works.
    Allow,
    /// A policy denies it, and it does not work.
    Deny,
    /// Policies would allow it, but there is no route, and it does not work.
    NoRoute,
}

/// Which side's policy is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The source's.
    Egress,
    /// The destination's.
    Ingress,
}

/// Who decided: a rule of a policy, or the end of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decider {
    pub(super) side: Side,
    pub(super) tier: &'static str,
    /// Policy and the number of its rule from 1; `None` is the tier's end.
    pub(super) rule: Option<(&'static str, u64)>,
}

impl std::fmt::Display for Decider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = if self.side == Side::Egress { "egress" } else { "ingress" };
        match self.rule {
            Some((policy, rule)) => write!(f, "{side} {} {policy} rule {rule}", self.tier),
            None => write!(f, "{side} {} end of tier", self.tier),
        }
    }
}

const fn rule(side: Side, tier: &'static str, policy: &'static str, number: u64) -> Decider {
    Decider { side, tier, rule: Some((policy, number)) }
}

const EGRESS_RULE: Decider = rule(Side::Egress, "default", "shop/backend-egress", 1);
const EGRESS_END: Decider = Decider { side: Side::Egress, tier: "default", rule: None };
const INGRESS_RULE: Decider = rule(Side::Ingress, "default", "shop/postgres-ingress", 1);
const INGRESS_END: Decider = Decider { side: Side::Ingress, tier: "default", rule: None };
const NO_SSH: Decider = rule(Side::Ingress, "platform", "no-ssh", 1);

const fn tcp(
    from: &'static str,
    to: &'static str,
    port: u16,
    expect: Expect,
    deciders: &'static [Decider],
) -> Connection {
    Connection { from, to, port, expect, deciders }
}

use Act::*;
use Beat::{Do, Try};
use Expect::{Allow, Deny, NoRoute};

/// The story.
pub(super) const STORY: &[Scene] = &[
    Scene { title: "Two clusters stand up, each a world of its own", beats: &[Do(StandUp)] },
    Scene {
        title: "A RemoteClusterConfiguration on each side joins them",
        beats: &[
            Try(&[tcp("backend", "postgres", 5432, NoRoute, &[])]),
            Do(Join),
            Try(&[
                tcp("backend", "postgres", 5432, Allow, &[]),
                tcp("backend", "postgres", 22, Allow, &[]),
                tcp("frontend", "postgres", 5432, Allow, &[]),
                tcp("backend-2", "replica", 5432, Allow, &[]),
            ]),
            Do(Beside),
        ],
    },
    Scene {
        title: "Policies select pods of the other cluster by their labels",
        beats: &[
            Do(ApplyPolicies),
            Try(&[
                tcp("backend", "postgres", 5432, Allow, &[EGRESS_RULE, INGRESS_RULE]),
                tcp("backend-2", "replica", 5432, Allow, &[EGRESS_RULE, INGRESS_RULE]),
                tcp("backend", "postgres", 22, Deny, &[EGRESS_END]),
                tcp("backend", "cache", 5432, Deny, &[EGRESS_END]),
                tcp("frontend", "postgres", 5432, Deny, &[INGRESS_END]),
                tcp("frontend", "metrics", 22, Deny, &[NO_SSH]),
                tcp("frontend", "metrics", 5432, Allow, &[]),
            ]),
        ],
    },
    Scene {
        title: "A label of the remote pod changes under a running connection",
        beats: &[
            Do(Relabel),
            Try(&[tcp("backend", "postgres", 5432, Deny, &[EGRESS_END])]),
            Do(LabelBack),
            Try(&[tcp("backend", "postgres", 5432, Allow, &[EGRESS_RULE, INGRESS_RULE])]),
        ],
    },
    Scene {
        title: "Routes leave, then identities",
        beats: &[
            Do(OverlayOff),
            Try(&[tcp("backend", "postgres", 5432, NoRoute, &[EGRESS_RULE, INGRESS_RULE])]),
            Do(Leave),
            Try(&[tcp("backend", "postgres", 5432, Deny, &[EGRESS_END])]),
        ],
    },
    Scene {
        title: "Joined again: how fast",
        beats: &[
            Do(Join),
            Try(&[tcp("backend", "postgres", 5432, Allow, &[EGRESS_RULE, INGRESS_RULE])]),
            Do(Bulk),
            Do(SmallPackets),
        ],
    },
];

/// How it ends, unless the clusters are to stay.
pub(super) const END: Scene =
    Scene { title: "The daemons end and leave the nodes as they were", beats: &[Do(Stop)] };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pods() -> Vec<&'static PodPlan> {
        CLUSTERS.iter().flat_map(|cluster| &cluster.nodes).flat_map(|node| node.pods).collect()
    }

    #[test]
    fn names_are_unique_and_connections_name_pods_that_exist() {
        let names: BTreeSet<_> = pods().iter().map(|pod| pod.name).collect();
        assert_eq!(names.len(), pods().len());
        let tried = STORY.iter().flat_map(|scene| scene.beats).filter_map(|beat| match beat {
            Try(connections) => Some(*connections),
            Do(_) => None,
        });
        for connection in tried.flatten() {
            assert!(names.contains(connection.from) && names.contains(connection.to));
            assert!(PORTS.contains(&connection.port));
        }
    }

    #[test]
    fn a_pair_of_nodes_of_two_clusters_shares_a_segment_and_no_other_does() {
        let [app, db] = &CLUSTERS;
        assert_eq!(app.nodes[1].segment, db.nodes[1].segment);
        let segments: BTreeSet<_> =
            [app, db].iter().flat_map(|cluster| &cluster.nodes).map(|node| node.segment).collect();
        assert_eq!(segments.len(), 3);
        assert_eq!((app.remote, db.remote), (db.name, app.name));
    }
}
