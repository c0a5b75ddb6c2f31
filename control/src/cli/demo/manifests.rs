//! The manifests of a cluster, as its API server would hand them out, and
//! changes to them.
//!
//! Knows nothing of daemons: it writes what Kubernetes and Calico would have
//! stored. Files are replaced by renaming, so that nobody ever reads half of
//! one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

use super::place::{ClusterPlace, NodePlace, PodPlace};
use super::script::{ClusterPlan, NAMESPACE, PORTS};

/// The directory of a cluster's manifests.
#[derive(Clone, Debug)]
pub(super) struct Manifests {
    dir: PathBuf,
    cluster: ClusterPlace,
}

impl Manifests {
    /// Writes what the cluster consists of; no policies, not joined to any.
    pub(super) fn write(
        dir: &Path,
        plan: &ClusterPlan,
        cluster: ClusterPlace,
    ) -> anyhow::Result<Self> {
        let this = Self { dir: dir.to_owned(), cluster };
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        this.replace("namespaces.yaml", &namespaces(plan))?;
        this.replace("nodes.yaml", &all(&this.cluster.nodes, node))?;
        this.replace("ippools.yaml", &pools(plan))?;
        this.replace("ipamblocks.yaml", &all(&this.cluster.nodes, blocks))?;
        let apps = plan.nodes.iter().flat_map(|node| node.pods);
        for pod in apps {
            this.write_pod(pod.name, pod.app)?;
        }
        Ok(this)
    }

    /// Writes a pod with this label `app`; returns when the file was in place
    /// at the earliest.
    pub(super) fn write_pod(&self, name: &str, app: &str) -> anyhow::Result<Instant> {
        let (node, place) = self.cluster.pod(name).context("a pod without a node")?;
        self.replace(&format!("pod-{name}.yaml"), &pod(&node.name, place, app))
    }

    /// Writes the RemoteClusterConfiguration that joins the cluster to another.
    pub(super) fn write_remote(&self, remote: &str, overlay: bool) -> anyhow::Result<Instant> {
        let mode = if overlay { "Enabled" } else { "Disabled" };
        self.replace(
            &remote_file(remote),
            &format!(
                "apiVersion: projectcalico.org/v3
kind: RemoteClusterConfiguration
metadata:
  name: {remote}
spec:
  clusterAccessSecret: {{kind: Secret, namespace: calico-system, name: {remote}-access}}
  syncOptions:
    overlayRoutingMode: {mode}
"
            ),
        )
    }

    /// Deletes it.
    pub(super) fn remove_remote(&self, remote: &str) -> anyhow::Result<Instant> {
        let path = self.dir.join(remote_file(remote));
        let before = Instant::now();
        fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        Ok(before)
    }

    /// Writes the cluster's policies; returns the file's name.
    pub(super) fn write_policies(&self, cluster: &str) -> anyhow::Result<&'static str> {
        let text = if cluster == "app" { APP_POLICIES } else { DB_POLICIES };
        self.replace("policies.yaml", text)?;
        Ok("policies.yaml")
    }

    fn replace(&self, name: &str, text: &str) -> anyhow::Result<Instant> {
        // Names that begin with a dot are not read.
        let (draft, path) = (self.dir.join(format!(".{name}.draft")), self.dir.join(name));
        fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
        let before = Instant::now();
        fs::rename(&draft, &path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(before)
    }
}

fn remote_file(remote: &str) -> String {
    format!("remoteclusterconfiguration-{remote}.yaml")
}

/// Documents one after the other.
fn all<T>(items: &[T], document: impl Fn(&T) -> String) -> String {
    items.iter().map(document).collect()
}

fn namespaces(plan: &ClusterPlan) -> String {
    format!(
        "---
apiVersion: v1
kind: Namespace
metadata:
  name: kube-system
  uid: {}
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels: {{kubernetes.io/metadata.name: {NAMESPACE}}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: default
  namespace: {NAMESPACE}
",
        plan.uid
    )
}

fn node(node: &NodePlace) -> String {
    let NodePlace { name, underlay, block: (block_v4, block_v6), .. } = node;
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: {name}
  annotations:
    projectcalico.org/IPv4Address: {v4}/24
    projectcalico.org/IPv6Address: {v6}/64
    projectcalico.org/IPv4VXLANTunnelAddr: {block_v4}
    projectcalico.org/IPv6VXLANTunnelAddr: \"{block_v6}\"
status:
  addresses:
  - {{type: InternalIP, address: {v4}}}
  - {{type: InternalIP, address: \"{v6}\"}}
",
        v4 = underlay.0,
        v6 = underlay.1
    )
}

fn pools(plan: &ClusterPlan) -> String {
    let families = [("v4", plan.pool_v4, 16, 26), ("v6", plan.pool_v6, 64, 122)];
    let mut text = String::new();
    for (family, base, length, block) in families {
        // Writing to a string never fails.
        let _ = write!(
            text,
            "---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: {name}-{family}
spec:
  cidr: {base}/{length}
  blockSize: {block}
  vxlanMode: Always
  ipipMode: Never
  natOutgoing: {nat}
  nodeSelector: all()
  allowedUses: [Workload, Tunnel]
",
            name = plan.name,
            nat = family == "v4"
        );
    }
    text
}

fn blocks(node: &NodePlace) -> String {
    let v4 = (format!("{}/26", node.block.0), "vxlan-tunnel-addr", "vxlanTunnelAddress");
    let v6 = (format!("{}/122", node.block.1), "vxlan-v6-tunnel-addr", "vxlanV6TunnelAddress");
    [v4, v6].map(|(cidr, handle, kind)| block(node, &cidr, handle, kind)).concat()
}

/// The first address is the node's tunnel address, then come its pods; all
/// other addresses of the 64 are free.
fn block(node: &NodePlace, cidr: &str, handle: &str, kind: &str) -> String {
    let name = &node.name;
    let taken = node.pods.len() + 1;
    let allocations: Vec<String> = (0..64)
        .map(|ordinal| if ordinal < taken { ordinal.to_string() } else { "null".into() })
        .collect();
    let free: Vec<String> = (taken..64).map(|ordinal| ordinal.to_string()).collect();
    let mut attributes =
        format!("  - handle_id: {handle}-{name}\n    secondary: {{node: {name}, type: {kind}}}\n");
    for pod in &node.pods {
        let _ = write!(
            attributes,
            "  - handle_id: k8s-pod-network.{pod}\n    \
             secondary: {{node: {name}, namespace: {namespace}, pod: {pod}}}\n",
            pod = pod.name,
            namespace = NAMESPACE
        );
    }
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: IPAMBlock
metadata:
  name: {object}
spec:
  cidr: {cidr}
  affinity: host:{name}
  strictAffinity: false
  deleted: false
  allocations: [{allocations}]
  unallocated: [{free}]
  attributes:
{attributes}",
        object = cidr.replace(['.', ':', '/'], "-"),
        allocations = allocations.join(","),
        free = free.join(",")
    )
}

fn pod(node: &str, pod: &PodPlace, app: &str) -> String {
    let PodPlace { name, v4, v6 } = pod;
    let ports: String = PORTS
        .iter()
        .map(|port| format!("    - {{name: port-{port}, containerPort: {port}, protocol: TCP}}\n"))
        .collect();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {NAMESPACE}
  labels: {{app: {app}}}
spec:
  nodeName: {node}
  serviceAccountName: default
  containers:
  - name: main
    ports:
{ports}status:
  phase: Running
  podIP: {v4}
  podIPs:
  - ip: {v4}
  - ip: \"{v6}\"
"
    )
}

/// The policy of the vendor's guide: who may leave the backend, and where to.
const APP_POLICIES: &str = "---
apiVersion: projectcalico.org/v3
kind: Tier
metadata:
  name: default
spec:
  order: 1000000
  defaultAction: Deny
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: backend-egress
  namespace: shop
spec:
  tier: default
  selector: app == 'backend-app'
  types: [Egress]
  egress:
  - action: Allow
    protocol: TCP
    destination:
      selector: app == 'postgres'
      ports: [5432]
";

/// Who may come in to the databases; and nobody to anybody's port 22.
const DB_POLICIES: &str = "---
apiVersion: projectcalico.org/v3
kind: Tier
metadata:
  name: platform
spec:
  order: 100
  defaultAction: Pass
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata:
  name: default
spec:
  order: 1000000
  defaultAction: Deny
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata:
  name: no-ssh
spec:
  tier: platform
  order: 10
  selector: all()
  types: [Ingress]
  ingress:
  - action: Deny
    protocol: TCP
    destination:
      ports: [22]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: postgres-ingress
  namespace: shop
spec:
  tier: default
  selector: app == 'postgres'
  types: [Ingress]
  ingress:
  - action: Allow
    protocol: TCP
    source:
      selector: app == 'backend-app'
    destination:
      ports: [5432]
";
