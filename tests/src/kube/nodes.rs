//! Nodes and pods of a [`tieline_lab::Cluster`], as Kubernetes and Calico have
//! them in their API.

use std::net::IpAddr;

use serde_json::{Value, json};
use tieline_lab::{Cluster, Node, Pod};

use super::ApiCluster;
use super::calico::Group;

/// Prefix lengths of a pool and of a block, by family.
const POOL: [u8; 2] = [24, 112];
const BLOCK: [u8; 2] = [26, 122];

/// Writes all of a cluster: namespaces, pools, nodes with their annotations and
/// blocks, pods that run. Calico's kinds must be there ([`Group::crds`]).
/// `labels` are a pod's.
pub fn write(
    api: &ApiCluster,
    cluster: &Cluster,
    group: Group,
    labels: impl Fn(&Pod) -> Vec<(&'static str, &'static str)>,
) {
    let mut items = Vec::new();
    let all = || cluster.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)));
    for (_, pod) in all() {
        let namespace = object("v1", "Namespace", &pod.namespace, json!({}));
        if !items.contains(&namespace) {
            items.push(namespace);
        }
    }
    for v6 in [false, true] {
        let name = if v6 { "default-ipv6-ippool" } else { "default-ipv4-ippool" };
        let cidr = format!("{}/{}", base(&cluster.nodes[0], v6), POOL[usize::from(v6)]);
        let spec = json!({"cidr": cidr, "vxlanMode": "Always", "ipipMode": "Never"});
        items.push(object(group.api_version(), "IPPool", name, json!({ "spec": spec })));
    }
    for node in &cluster.nodes {
        items.push(self::node(node));
        items.extend([false, true].map(|v6| block(node, group, v6)));
    }
    let pods: Vec<Value> = all().map(|(node, pod)| self::pod(node, pod, &labels(pod))).collect();
    items.extend(pods.iter().cloned());
    api.apply(&list(items));
    write_status(api, pods);
}

/// Writes one pod that runs, over one that is there or not.
pub fn write_pod(api: &ApiCluster, node: &Node, pod: &Pod, labels: &[(&str, &str)]) {
    let pod = self::pod(node, pod, labels);
    api.apply(&pod.to_string());
    write_status(api, vec![pod]);
}

/// Status is a request of its own: what a client writes of it otherwise is
/// dropped.
fn write_status(api: &ApiCluster, pods: Vec<Value>) {
    let args = ["apply", "--server-side", "--subresource=status", "-f", "-"];
    let output = api.kubectl_with(&api.admin(), &args, Some(&list(pods)));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn list(items: Vec<Value>) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn object(api_version: &str, kind: &str, name: &str, mut rest: Value) -> Value {
    rest["apiVersion"] = json!(api_version);
    rest["kind"] = json!(kind);
    rest["metadata"]["name"] = json!(name);
    rest
}

/// The base of a node's block, which is its tunnel address.
fn base(node: &Node, v6: bool) -> IpAddr {
    if v6 { node.block_v6.into() } else { node.block_v4.into() }
}

/// A node as Calico annotates it; without the MACs, which it leaves to be
/// derived.
fn node(node: &Node) -> Value {
    let (v4, v6) = (node.underlay.v4, node.underlay.v6);
    object(
        "v1",
        "Node",
        &node.name,
        json!({"metadata": {"annotations": {
            "projectcalico.org/IPv4Address": format!("{v4}/24"),
            "projectcalico.org/IPv6Address": format!("{v6}/64"),
            "projectcalico.org/IPv4VXLANTunnelAddr": base(node, false),
            "projectcalico.org/IPv6VXLANTunnelAddr": base(node, true),
        }}}),
    )
}

fn block(node: &Node, group: Group, v6: bool) -> Value {
    let cidr = format!("{}/{}", base(node, v6), BLOCK[usize::from(v6)]);
    let kind = if v6 { "vxlanV6TunnelAddress" } else { "vxlanTunnelAddress" };
    let spec = json!({
        "cidr": cidr, "affinity": format!("host:{}", node.name), "strictAffinity": false,
        "allocations": [0], "unallocated": [],
        "attributes": [{"secondary": {"node": node.name, "type": kind}}],
    });
    object(
        group.api_version(),
        "IPAMBlock",
        &cidr.replace([':', '.', '/'], "-"),
        json!({ "spec": spec }),
    )
}

fn pod(node: &Node, pod: &Pod, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let [v4, v6] = pod.addresses();
    object(
        "v1",
        "Pod",
        &pod.name,
        json!({
            "metadata": {"namespace": pod.namespace, "labels": labels},
            "spec": {"nodeName": node.name, "containers": [{"name": "main", "image": "none"}]},
            "status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]},
        }),
    )
}
