//! CustomResourceDefinitions of Calico's kinds, and of ClusterNetworkPolicy.
//!
//! Calico installs its own in real clusters. These are as strict as those where
//! it matters to a reader: fields that are not in the schema are pruned, enums
//! are checked, and few kinds have a status subresource. They are also as lax:
//! what Calico's webhooks and controllers check is not checked here.

use serde_json::{Value, json};

/// The API group that Calico's objects are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// `crd.projectcalico.org/v1`: all of Calico up to 3.31, and many after it.
    Storage,
    /// `projectcalico.org/v3` without an API server of Calico's between.
    Native,
}

impl Group {
    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Storage => "crd.projectcalico.org/v1",
            Self::Native => "projectcalico.org/v3",
        }
    }

    /// Manifests of all kinds in this group; for [`crate::kube::ApiCluster::apply`].
    pub fn crds(self) -> String {
        let (group, version) = self.api_version().split_once('/').unwrap();
        let define = |kind: &Kind| crd(group, version, kind);
        let items: Vec<Value> = kinds(self).iter().map(define).collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }
}

/// Manifest of `ClusterNetworkPolicy`, which Calico reads from 3.32 on.
pub fn cluster_network_policy() -> String {
    let peer = object(json!({
        "namespaces": label_selector(),
        "pods": object(json!({
            "namespaceSelector": label_selector(), "podSelector": label_selector(),
        })),
        "networks": list(text()),
        "nodes": label_selector(),
        "domainNames": list(text()),
    }));
    let port = object(json!({"number": integer(), "range": object(json!({
        "start": integer(), "end": integer(),
    }))}));
    let protocol = object(json!({
        "tcp": object(json!({"destinationPort": port})),
        "udp": object(json!({"destinationPort": port})),
        "sctp": object(json!({"destinationPort": port})),
        "destinationNamedPort": text(),
    }));
    let rule = |peers: &str| {
        object(json!({
            "name": text(),
            "action": one_of(&["Accept", "Deny", "Pass"]),
            peers: list(peer.clone()),
            "protocols": list(protocol.clone()),
        }))
    };
    let spec = object(json!({
        "tier": one_of(&["Admin", "Baseline"]),
        "priority": integer(),
        "subject": object(json!({
            "namespaces": label_selector(),
            "pods": object(json!({
                "namespaceSelector": label_selector(), "podSelector": label_selector(),
            })),
        })),
        "ingress": list(rule("from")),
        "egress": list(rule("to")),
    }));
    let kind = Kind { scope: "Cluster", status: true, ..Kind::new("ClusterNetworkPolicy", spec) };
    let mut crd = crd("policy.networking.k8s.io", "v1alpha2", &kind);
    crd["spec"]["names"]["plural"] = json!("clusternetworkpolicies");
    // Kubernetes' own groups need it.
    crd["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for tests"});
    crd.to_string()
}

struct Kind {
    name: &'static str,
    scope: &'static str,
    spec: Value,
    status: bool,
}

impl Kind {
    fn new(name: &'static str, spec: Value) -> Self {
        Self { name, scope: "Cluster", spec, status: false }
    }

    fn namespaced(name: &'static str, spec: Value) -> Self {
        Self { scope: "Namespaced", ..Self::new(name, spec) }
    }
}

fn kinds(group: Group) -> Vec<Kind> {
    let native = group == Group::Native;
    let policy = || policy(&[]);
    let staged =
        || self::policy(&[("stagedAction", one_of(&["Set", "Delete", "Learn", "Ignore"]))]);
    vec![
        Kind { status: native, ..Kind::new("IPPool", pool()) },
        Kind::new("IPAMBlock", block()),
        // A text in the storage group, a flag in the other.
        Kind::new("BlockAffinity", affinity(if native { flag() } else { text() })),
        Kind::new("FelixConfiguration", felix()),
        Kind::new("ClusterInformation", cluster_information()),
        Kind::new("HostEndpoint", host_endpoint()),
        Kind { status: native, ..Kind::new("Tier", tier()) },
        Kind::new("GlobalNetworkSet", object(json!({"nets": list(text())}))),
        Kind::namespaced("NetworkSet", object(json!({"nets": list(text())}))),
        Kind::new("GlobalNetworkPolicy", policy()),
        Kind::namespaced("NetworkPolicy", policy()),
        Kind::new("StagedGlobalNetworkPolicy", staged()),
        Kind::namespaced("StagedNetworkPolicy", staged()),
        Kind::namespaced("StagedKubernetesNetworkPolicy", staged_kubernetes()),
    ]
}

fn crd(group: &str, version: &str, kind: &Kind) -> Value {
    let singular = kind.name.to_lowercase();
    let plural = match singular.strip_suffix('y') {
        Some(start) => format!("{start}ies"),
        None => format!("{singular}s"),
    };
    let mut properties =
        json!({"apiVersion": text(), "kind": text(), "metadata": {"type": "object"}});
    properties["spec"] = kind.spec.clone();
    let mut version = json!({"name": version, "served": true, "storage": true});
    if kind.status {
        properties["status"] = object(json!({"conditions": list(anything())}));
        version["subresources"] = json!({"status": {}});
    }
    version["schema"] = json!({"openAPIV3Schema": object(properties)});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": kind.scope,
            "names": {
                "kind": kind.name, "plural": plural, "singular": singular,
                "listKind": format!("{}List", kind.name),
            },
            "versions": [version],
        },
    })
}

fn pool() -> Value {
    let mode = || one_of(&["Never", "Always", "CrossSubnet"]);
    let mut spec = object(json!({
        "cidr": text(), "blockSize": integer(), "vxlanMode": mode(), "ipipMode": mode(),
        "natOutgoing": flag(), "disabled": flag(), "disableBGPExport": flag(),
        "nodeSelector": text(), "namespaceSelector": text(),
        "allowedUses": list(one_of(&["Workload", "Tunnel", "LoadBalancer"])),
        "assignmentMode": one_of(&["Automatic", "Manual"]),
    }));
    spec["required"] = json!(["cidr"]);
    spec
}

fn block() -> Value {
    let mut attribute = object(json!({
        "handle_id": text(),
        "secondary": {"type": "object", "additionalProperties": text()},
        "releasedAt": text(),
    }));
    attribute["x-kubernetes-preserve-unknown-fields"] = json!(true);
    let mut spec = object(json!({
        "cidr": text(), "affinity": text(), "deleted": flag(), "strictAffinity": flag(),
        "allocations": list(json!({"type": "integer", "nullable": true})),
        "unallocated": list(integer()), "attributes": list(attribute),
        "sequenceNumber": {"type": "integer", "format": "int64", "default": 0},
        "sequenceNumberForAllocation": {"type": "object", "additionalProperties": integer()},
    }));
    spec["required"] =
        json!(["allocations", "attributes", "cidr", "strictAffinity", "unallocated"]);
    spec
}

fn affinity(deleted: Value) -> Value {
    let mut spec = object(json!({
        "cidr": text(), "node": text(), "state": text(), "type": text(), "deleted": deleted,
    }));
    spec["required"] = json!(["cidr", "deleted", "node", "state"]);
    spec
}

fn felix() -> Value {
    object(json!({
        "vxlanEnabled": flag(), "vxlanVNI": integer(), "vxlanPort": integer(),
        "vxlanMTU": integer(), "vxlanMTUV6": integer(), "mtuIfacePattern": text(),
        "routeSource": {"type": "string", "pattern": "^(?i)(WorkloadIPs|CalicoIPAM)?$"},
        "externalNodesList": list(text()), "allowVXLANPacketsFromWorkloads": flag(),
        "defaultEndpointToHostAction":
            {"type": "string", "pattern": "^(?i)(Drop|Accept|Return)?$"},
        "xdpEnabled": flag(), "genericXDPEnabled": flag(), "xdpRefreshInterval": text(),
        "wireguardEnabled": flag(), "bpfEnabled": flag(), "logSeverityScreen": text(),
    }))
}

fn cluster_information() -> Value {
    object(json!({
        "clusterGUID": text(), "clusterType": text(), "calicoVersion": text(),
        "variant": text(), "datastoreReady": flag(),
    }))
}

fn host_endpoint() -> Value {
    object(json!({
        "node": text(), "interfaceName": text(), "expectedIPs": list(text()),
        "profiles": list(text()),
        "ports": list(object(json!({
            "name": text(), "protocol": int_or_text(), "port": integer(),
        }))),
    }))
}

fn tier() -> Value {
    object(json!({
        "order": {"type": "number"},
        "defaultAction": one_of(&["Pass", "Deny"]),
    }))
}

fn policy(more: &[(&str, Value)]) -> Value {
    let rule = || {
        let icmp = || object(json!({"type": integer(), "code": integer()}));
        let mut rule = object(json!({
            "action": text(), "ipVersion": integer(),
            "protocol": int_or_text(), "notProtocol": int_or_text(),
            "icmp": icmp(), "notICMP": icmp(),
            "source": entity(), "destination": entity(),
            "http": object(json!({
                "methods": list(text()),
                "paths": list(object(json!({"exact": text(), "prefix": text()}))),
            })),
            "metadata": object(json!({
                "annotations": {"type": "object", "additionalProperties": text()},
            })),
        }));
        rule["required"] = json!(["action"]);
        rule
    };
    let mut spec = object(json!({
        "tier": text(), "order": {"type": "number"}, "selector": text(),
        "namespaceSelector": text(), "serviceAccountSelector": text(),
        "types": list(one_of(&["Ingress", "Egress"])),
        "ingress": list(rule()), "egress": list(rule()),
        "applyOnForward": flag(), "doNotTrack": flag(), "preDNAT": flag(),
        "performanceHints": list(text()),
    }));
    for (name, schema) in more {
        spec["properties"][name] = schema.clone();
    }
    spec
}

fn entity() -> Value {
    object(json!({
        "nets": list(text()), "notNets": list(text()), "selector": text(), "notSelector": text(),
        "namespaceSelector": text(), "ports": list(int_or_text()), "notPorts": list(int_or_text()),
        "serviceAccounts": object(json!({"names": list(text()), "selector": text()})),
        "services": object(json!({"name": text(), "namespace": text()})),
    }))
}

fn staged_kubernetes() -> Value {
    let peer = object(json!({
        "podSelector": label_selector(), "namespaceSelector": label_selector(),
        "ipBlock": object(json!({"cidr": text(), "except": list(text())})),
    }));
    let rule = |peers: &str| {
        object(json!({
            peers: list(peer.clone()),
            "ports": list(object(json!({
                "protocol": text(), "port": int_or_text(), "endPort": integer(),
            }))),
        }))
    };
    object(json!({
        "stagedAction": text(), "podSelector": label_selector(), "policyTypes": list(text()),
        "ingress": list(rule("from")), "egress": list(rule("to")),
    }))
}

fn label_selector() -> Value {
    object(json!({
        "matchLabels": {"type": "object", "additionalProperties": text()},
        "matchExpressions": list(object(json!({
            "key": text(), "operator": text(), "values": list(text()),
        }))),
    }))
}

fn object(properties: Value) -> Value {
    json!({"type": "object", "properties": properties})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn one_of(values: &[&str]) -> Value {
    json!({"type": "string", "enum": values})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn integer() -> Value {
    json!({"type": "integer"})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

fn int_or_text() -> Value {
    json!({
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": "^.*", "x-kubernetes-int-or-string": true,
    })
}

fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
