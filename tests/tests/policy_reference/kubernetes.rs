//! Random policies of Kubernetes' own kinds.

use serde_json::{Map, Value, json};
use tieline_tests::random::Rng;

use super::generate::{CALICO, NAMESPACES, PORT_NAMES, object, present, some};

fn label_selector(rng: &mut Rng, keys: &[&str]) -> Value {
    let mut selector = Map::new();
    let value = |rng: &mut Rng| rng.pick(&["web", "db", "x", "fe", "prod"]);
    if rng.once_in(2) {
        let (key, value) = (rng.pick(keys), value(rng));
        selector.insert("matchLabels".into(), json!({key: value}));
    }
    if rng.once_in(3) {
        let key = rng.pick(keys);
        let expression = match rng.below(4) {
            0 => json!({"key": key, "operator": "In", "values": [value(rng), "api"]}),
            1 => json!({"key": key, "operator": "NotIn", "values": [value(rng)]}),
            2 => json!({"key": key, "operator": "Exists"}),
            _ => json!({"key": key, "operator": "DoesNotExist"}),
        };
        selector.insert("matchExpressions".into(), json!([expression]));
    }
    selector.into()
}

const LABELS: [&str; 3] = ["app", "tier", "team"];
const NAMESPACE_LABELS: [&str; 3] = ["team", "env", "kubernetes.io/metadata.name"];

pub(crate) fn kubernetes_policy(rng: &mut Rng, name: &str) -> Value {
    let peer = |rng: &mut Rng| {
        if rng.once_in(4) {
            let blocks = [
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.4/30", "10.9.0.1/32"]}}),
                json!({"ipBlock": {"cidr": "203.0.113.9/24"}}),
                json!({"ipBlock": {"cidr": "fd00::/8", "except": ["fd00::/126"]}}),
                json!({"ipBlock": {"cidr": "0.0.0.0/0"}}),
            ];
            return rng.pick(&blocks);
        }
        let pods = (!rng.once_in(3)).then(|| label_selector(rng, &LABELS));
        let namespaces = if pods.is_none() || rng.once_in(2) {
            label_selector(rng, &NAMESPACE_LABELS)
        } else {
            Value::Null
        };
        present(json!({"podSelector": pods, "namespaceSelector": namespaces}))
    };
    let port = |rng: &mut Rng| {
        let protocol = rng.pick(&[json!("TCP"), json!("UDP"), json!("SCTP"), Value::Null]);
        let (port, end) = match rng.below(4) {
            0 => (Value::Null, Value::Null),
            1 => (rng.pick(&PORT_NAMES).into(), Value::Null),
            2 => ((79 + rng.below(2)).into(), (81 + rng.below(3)).into()),
            _ => ((80 + rng.below(5)).into(), Value::Null),
        };
        present(json!({"protocol": protocol, "port": port, "endPort": end}))
    };
    let mut spec = Map::new();
    spec.insert("podSelector".into(), label_selector(rng, &LABELS));
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        if rng.once_in(2) {
            let rules = some(rng, 3, |rng| {
                let mut rule = Map::new();
                if !rng.once_in(4) {
                    rule.insert(peers.into(), some(rng, 3, peer).into());
                }
                if rng.once_in(2) {
                    rule.insert("ports".into(), some(rng, 3, port).into());
                }
                rule.into()
            });
            spec.insert(list.into(), rules.into());
        }
    }
    if rng.once_in(3) {
        let types = [json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"])];
        spec.insert("policyTypes".into(), rng.pick(&types));
    }
    let namespace = Some(rng.pick(&NAMESPACES));
    if rng.once_in(10) {
        return object(CALICO, "StagedKubernetesNetworkPolicy", namespace, name, spec.into());
    }
    object("networking.k8s.io/v1", "NetworkPolicy", namespace, name, spec.into())
}

fn cluster_subject(rng: &mut Rng) -> Value {
    if rng.once_in(2) {
        return json!({"namespaces": label_selector(rng, &NAMESPACE_LABELS)});
    }
    let namespaces =
        if rng.once_in(2) { label_selector(rng, &NAMESPACE_LABELS) } else { Value::Null };
    let pods =
        json!({"namespaceSelector": namespaces, "podSelector": label_selector(rng, &LABELS)});
    json!({"pods": present(pods)})
}

pub(crate) fn cluster_policy(rng: &mut Rng, name: &str) -> Value {
    let rules = |rng: &mut Rng, peers: &str| -> Value {
        let rules = some(rng, 3, |rng| {
            let mut pods_only = true;
            let all = some(rng, 2, |rng| {
                let networks = [
                    json!({"networks": ["10.0.0.0/24", "fd00::/64"]}),
                    json!({"networks": ["203.0.113.0/24"]}),
                    json!({"networks": ["::/0"]}),
                ];
                if peers == "to" && rng.once_in(3) {
                    pods_only = false;
                    rng.pick(&networks)
                } else if rng.once_in(15) {
                    pods_only = false;
                    rng.pick(&[json!({"nodes": {}}), json!({"domainNames": ["a.example"]})])
                } else {
                    cluster_subject(rng)
                }
            });
            let mut rule = json!({"action": rng.pick(&["Accept", "Accept", "Deny", "Pass"])});
            rule[peers] = all.into();
            if rng.once_in(2) {
                let protocols = some(rng, 3, |rng| match rng.below(4) {
                    0 if pods_only || peers == "from" => {
                        json!({"destinationNamedPort": rng.pick(&PORT_NAMES)})
                    }
                    1 => json!({"tcp": {"destinationPort": {"range": {"start": 80, "end": 82}}}}),
                    2 => json!({"udp": {"destinationPort": {"number": 80 + rng.below(4)}}}),
                    _ => json!({"tcp": {"destinationPort": {"number": 80 + rng.below(4)}}}),
                });
                rule["protocols"] = protocols.into();
            }
            rule
        });
        rules.into()
    };
    let mut spec = json!({
        "tier": rng.pick(&["Admin", "Baseline"]),
        "priority": rng.pick(&[0, 10, 1000]),
        "subject": cluster_subject(rng),
    });
    if !rng.once_in(3) {
        spec["ingress"] = rules(rng, "from");
    }
    if !rng.once_in(3) {
        spec["egress"] = rules(rng, "to");
    }
    object("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", None, name, spec)
}
