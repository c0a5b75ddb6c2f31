//! Where everything is: the addresses of a cluster's nodes and pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use tieline_lab::Cluster;

use super::script::{CLUSTERS, ClusterPlan};

/// Addresses in an IPAM block of the default size (/26, /122).
const BLOCK_LEN: u32 = 64;

/// A cluster's nodes.
#[derive(Clone, Debug)]
pub(super) struct ClusterPlace {
    pub(super) nodes: Vec<NodePlace>,
}

/// A node's addresses in both families.
#[derive(Clone, Debug)]
pub(super) struct NodePlace {
    pub(super) name: String,
    pub(super) underlay: (Ipv4Addr, Ipv6Addr),
    /// Bases of its IPAM blocks, which are its tunnel addresses.
    pub(super) block: (Ipv4Addr, Ipv6Addr),
    pub(super) pods: Vec<PodPlace>,
}

/// A pod's addresses.
#[derive(Clone, Debug)]
pub(super) struct PodPlace {
    pub(super) name: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl PodPlace {
    /// Its address of a family.
    pub(super) fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl ClusterPlace {
    /// Where a cluster is that is up.
    pub(super) fn of(cluster: &Cluster) -> Self {
        let pod =
            |pod: &tieline_lab::Pod| PodPlace { name: pod.name.clone(), v4: pod.v4, v6: pod.v6 };
        let node = |node: &tieline_lab::Node| NodePlace {
            name: node.name.clone(),
            underlay: (node.underlay.v4, node.underlay.v6),
            block: (node.block_v4, node.block_v6),
            pods: node.pods.iter().map(pod).collect(),
        };
        Self { nodes: cluster.nodes.iter().map(node).collect() }
    }

    /// Where a cluster would be: addresses are given out in the order of the
    /// script, blocks by the node, hosts of a segment from 2 on.
    pub(super) fn planned(plan: &ClusterPlan) -> anyhow::Result<Self> {
        let base: (Ipv4Addr, Ipv6Addr) =
            (plan.pool_v4.parse().context("a pool")?, plan.pool_v6.parse().context("a pool")?);
        let nth = |offset: u32| {
            let v4 = Ipv4Addr::from_bits(base.0.to_bits() + offset);
            (v4, Ipv6Addr::from_bits(base.1.to_bits() + u128::from(offset)))
        };
        let all = || CLUSTERS.iter().flat_map(|cluster| &cluster.nodes);
        let mut nodes = Vec::new();
        for (block, node) in (0..).step_by(BLOCK_LEN as usize).zip(&plan.nodes) {
            let before = all().take_while(|other| other.name != node.name);
            let host = 2 + before.filter(|other| other.segment == node.segment).count() as u8;
            let segment = node.segment as u8 + 1;
            let v6 = [0xfd77, 0, 0, segment.into(), 0, 0, 0, host.into()];
            let pods = (block + 1..).zip(node.pods).map(|(offset, pod)| {
                let (v4, v6) = nth(offset);
                PodPlace { name: pod.name.to_owned(), v4, v6 }
            });
            nodes.push(NodePlace {
                name: node.name.to_owned(),
                underlay: (Ipv4Addr::new(10, 77, segment, host), v6.into()),
                block: nth(block),
                pods: pods.collect(),
            });
        }
        Ok(Self { nodes })
    }

    /// A pod and the node that it is on.
    pub(super) fn pod(&self, name: &str) -> Option<(&NodePlace, &PodPlace)> {
        self.nodes.iter().find_map(|node| {
            let pod = node.pods.iter().find(|pod| pod.name == name)?;
            Some((node, pod))
        })
    }
}
