//! Random clusters, as users write them, from few values so that they meet.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use tieline_tests::random::Rng;
use tieline_tests::reference::{Clusters, Packet};

use super::kubernetes::{cluster_policy, kubernetes_policy};

pub(crate) fn some(
    rng: &mut Rng,
    most: usize,
    mut each: impl FnMut(&mut Rng) -> Value,
) -> Vec<Value> {
    (0..=rng.below(most)).map(|_| each(rng)).collect()
}

pub(crate) const NAMESPACES: [&str; 3] = ["prod", "dev", "test"];
const NETS: [&str; 9] = [
    "10.0.0.0/24",
    "10.0.0.0/29",
    "10.0.0.3/32",
    "10.9.0.0/16",
    "203.0.113.0/24",
    "203.0.113.4",
    "0.0.0.0/0",
    "192.0.2.0/25",
    "10.0.0.4/30",
];
const NETS_V6: [&str; 5] = ["fd00::/120", "fd00::2/128", "fd09::/64", "2001:db8::/32", "::/0"];
pub(crate) const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];

/// An object with the fields that are not null.
pub(crate) fn present(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

pub(crate) fn object(
    api: &str,
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    spec: Value,
) -> Value {
    let meta = present(json!({"name": name, "namespace": namespace}));
    present(json!({"apiVersion": api, "kind": kind, "metadata": meta, "spec": spec}))
}

pub(crate) const CALICO: &str = "projectcalico.org/v3";
const STORED: &str = "crd.projectcalico.org/v1";

fn labels(rng: &mut Rng) -> Value {
    let mut labels = Map::new();
    for (key, values) in [("app", ["web", "db", "api"]), ("tier", ["fe", "be", "web"])] {
        if !rng.once_in(3) {
            labels.insert(key.into(), rng.pick(&values).into());
        }
    }
    if rng.once_in(6) {
        labels.insert("team".into(), rng.pick(&["x", "", "xy"]).into());
    }
    if rng.once_in(12) {
        // What a pod may not say of itself.
        let forged = [
            ("pcns.team", "x"),
            ("pcsa.role", "r"),
            ("projectcalico.org/orchestrator", "none"),
            ("projectcalico.org/serviceaccount", "api"),
        ];
        let (key, value) = rng.pick(&forged);
        labels.insert(key.into(), value.into());
    }
    labels.into()
}

fn own_labels(rng: &mut Rng) -> Value {
    let mut labels = labels(rng);
    if let Some(labels) = labels.as_object_mut() {
        labels.retain(|key, _| !key.contains('.'));
    }
    labels
}

fn ports(rng: &mut Rng, number: &str) -> Value {
    let mut ports = some(rng, 3, |rng| {
        let protocol = rng.pick(&[json!("TCP"), json!("UDP"), json!("SCTP"), Value::Null]);
        let mut port = present(json!({"name": rng.pick(&PORT_NAMES), "protocol": protocol}));
        port[number] = (80 + rng.below(4)).into();
        port
    });
    ports.pop();
    ports.into()
}

fn pod(rng: &mut Rng, at: usize, remote: bool) -> Value {
    let (v4, v6) = if remote { ("10.9.0.", "fd09::") } else { ("10.0.0.", "fd00::") };
    let mut addresses = Vec::new();
    if !rng.once_in(4) {
        addresses.push(json!({"ip": format!("{v4}{}", at + 1)}));
    }
    if addresses.is_empty() || rng.once_in(2) {
        addresses.push(json!({"ip": format!("{v6}{}", at + 1)}));
    }
    let namespace = rng.pick(&NAMESPACES);
    let account = rng.pick(&[json!("api"), json!("web"), json!("default"), Value::Null]);
    let mut spec = present(json!({
        "nodeName": rng.pick(&["n1", "n1", "n2"]),
        "serviceAccountName": account,
        "containers": [{"name": "a", "ports": ports(rng, "containerPort")}],
    }));
    if rng.once_in(4) {
        spec["initContainers"] = json!([{"name": "i", "ports": ports(rng, "containerPort")}]);
    }
    if rng.once_in(20) {
        spec["hostNetwork"] = true.into();
    }
    let phase = if rng.once_in(20) { "Succeeded" } else { "Running" };
    let mut pod = object("v1", "Pod", Some(namespace), &format!("p{at}"), spec);
    pod["status"] = json!({"phase": phase, "podIPs": addresses});
    pod["metadata"]["labels"] = labels(rng);
    pod
}

fn host(rng: &mut Rng, at: usize, remote: bool) -> Value {
    let third = if remote { 99 } else { 98 };
    let mut addresses = vec![json!(format!("172.16.{third}.{}", at + 1))];
    if rng.once_in(2) && !remote {
        addresses.push(json!("10.0.0.2"));
    }
    let spec = json!({"node": "n1", "interfaceName": "eth0", "expectedIPs": addresses, "ports": ports(rng, "port")});
    let mut host = object(CALICO, "HostEndpoint", None, &format!("h{at}"), spec);
    if rng.once_in(3) {
        let profiles = [json!(["kns.prod"]), json!(["ksa.dev.api", "kns.test", "kns.prod"])];
        host["spec"]["profiles"] = rng.pick(&profiles);
    }
    host["metadata"]["labels"] = own_labels(rng);
    host
}

fn network_set(rng: &mut Rng, at: usize) -> Value {
    let nets = some(rng, 3, |rng| {
        if rng.once_in(3) { rng.pick(&NETS_V6).into() } else { rng.pick(&NETS).into() }
    });
    let spec = json!({"nets": nets});
    let name = format!("s{at}");
    let mut set = if rng.once_in(2) {
        object(CALICO, "GlobalNetworkSet", None, &name, spec)
    } else {
        object(CALICO, "NetworkSet", Some(rng.pick(&NAMESPACES)), &name, spec)
    };
    set["metadata"]["labels"] = own_labels(rng);
    set
}

fn slice(rng: &mut Rng, at: usize) -> Value {
    let v4 = !rng.once_in(3);
    let endpoints = some(rng, 3, |rng| {
        let host = rng.below(7);
        let address = if v4 { format!("10.0.0.{host}") } else { format!("fd00::{host}") };
        json!({"addresses": [address], "conditions": {"ready": rng.once_in(2)}})
    });
    let ports = some(rng, 3, |rng| {
        let protocol = rng.pick(&[json!("TCP"), json!("UDP"), Value::Null]);
        let port = if rng.once_in(4) { Value::Null } else { (80 + rng.below(4)).into() };
        present(json!({"protocol": protocol, "port": port}))
    });
    let service = rng.pick(&["s1", "s2"]);
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{at}"),
            "namespace": rng.pick(&NAMESPACES),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": ports,
    })
}

fn base(rng: &mut Rng) -> Vec<Value> {
    let mut objects = Vec::new();
    for name in NAMESPACES {
        let mut namespace = object("v1", "Namespace", None, name, Value::Null);
        namespace["metadata"]["labels"] = json!({"kubernetes.io/metadata.name": name});
        for (key, value) in [("team", "x"), ("env", name), ("app", "web")] {
            if rng.once_in(2) {
                namespace["metadata"]["labels"][key] = value.into();
            }
        }
        objects.push(namespace);
        for account in ["api", "web"] {
            let mut of = object("v1", "ServiceAccount", Some(name), account, Value::Null);
            if rng.once_in(2) {
                of["metadata"]["labels"] = json!({"role": rng.pick(&["r", "s"])});
            }
            objects.push(of);
        }
    }
    objects
}

/// A selector, sometimes a long one.
fn selector(rng: &mut Rng, keys: &[&str], depth: usize) -> String {
    if depth > 0 && rng.once_in(3) {
        let (one, other) = (selector(rng, keys, depth - 1), selector(rng, keys, depth - 1));
        let operator = rng.pick(&["&&", "||", " && ", "|| "]);
        return match rng.below(4) {
            0 => format!("!({one}{operator}{other})"),
            1 => format!("({one}){operator}! ( {other} )"),
            _ => format!("{one}{operator}{other}"),
        };
    }
    let key = rng.pick(keys);
    let value = rng.pick(&["web", "db", "x", "fe", "prod", "api", "", "r"]);
    match rng.below(12) {
        0 => "all()".to_owned(),
        1 => format!("has( {key} )"),
        2 => format!("!has({key})"),
        3 => format!("{key} != \"{value}\""),
        4 => format!("{key} in {{'web', \"{value}\",}}"),
        5 => format!("{key} not  in {{'{value}'}}"),
        6 => format!("{key} starts with '{value}'"),
        7 => format!("{key} contains'{value}'"),
        8 => format!("!{key} endswith '{value}'"),
        _ => format!("{key}=='{value}'"),
    }
}

const POD_KEYS: [&str; 7] = [
    "app",
    "app",
    "tier",
    "team",
    "projectcalico.org/namespace",
    "pcns.team",
    "projectcalico.org/serviceaccount",
];
const NAMESPACE_KEYS: [&str; 4] = ["team", "env", "projectcalico.org/name", "app"];
const ACCOUNT_KEYS: [&str; 2] = ["role", "projectcalico.org/name"];

fn calico_ports(rng: &mut Rng, numbers: bool) -> Value {
    let list = some(rng, 3, |rng| match rng.below(4) {
        0 if numbers => (80 + rng.below(5)).into(),
        1 if numbers => (80 + rng.below(5)).to_string().into(),
        2 if numbers => format!("{}:{}", 79 + rng.below(3), 81 + rng.below(3)).into(),
        _ => rng.pick(&PORT_NAMES).into(),
    });
    list.into()
}

fn entity(rng: &mut Rng, ports: Option<bool>, v4: bool, service: Option<bool>) -> Value {
    let mut end = Map::new();
    if let Some(global) = service
        && rng.once_in(8)
    {
        let mut of = json!({"name": rng.pick(&["s1", "s2"])});
        if global || !rng.once_in(4) {
            of["namespace"] = rng.pick(&NAMESPACES).into();
        }
        end.insert("services".into(), of);
        return end.into();
    }
    let net = |rng: &mut Rng| {
        if v4 { rng.pick(&NETS).into() } else { Value::from(rng.pick(&NETS_V6)) }
    };
    if rng.once_in(7) {
        end.insert("nets".into(), some(rng, 2, net).into());
    }
    if rng.once_in(10) {
        let mut nets = some(rng, 2, net);
        nets.retain(|net| net != "0.0.0.0/0" && net != "::/0");
        end.insert("notNets".into(), nets.into());
    }
    if rng.once_in(4) {
        end.insert("selector".into(), selector(rng, &POD_KEYS, 2).into());
    }
    if rng.once_in(9) {
        end.insert("notSelector".into(), selector(rng, &POD_KEYS, 1).into());
    }
    if rng.once_in(8) {
        let text = match rng.below(4) {
            0 => "global()".to_owned(),
            1 => "all()".to_owned(),
            _ => selector(rng, &NAMESPACE_KEYS, 1),
        };
        end.insert("namespaceSelector".into(), text.into());
    }
    if rng.once_in(10) {
        let mut accounts = Map::new();
        if rng.once_in(2) {
            accounts.insert("names".into(), json!([rng.pick(&["api", "web", "default"])]));
        }
        if rng.once_in(2) {
            accounts.insert("selector".into(), selector(rng, &ACCOUNT_KEYS, 1).into());
        }
        end.insert("serviceAccounts".into(), accounts.into());
    }
    if let Some(numbers) = ports {
        if rng.once_in(5) {
            end.insert("ports".into(), calico_ports(rng, numbers));
        }
        if rng.once_in(12) {
            end.insert("notPorts".into(), calico_ports(rng, numbers));
        }
    }
    end.into()
}

fn calico_rule(rng: &mut Rng, ingress: bool, global: bool) -> Value {
    let v4 = !rng.once_in(3);
    let version = if v4 { 4 } else { 6 };
    let protocol = match rng.below(18) {
        0..=9 => Value::Null,
        10 => "UDP".into(),
        11 => rng.pick(&[json!("SCTP"), json!(132), json!(6), json!("17")]),
        12 => if v4 { "ICMP" } else { "ICMPv6" }.into(),
        13 => rng.pick(&[json!(47), json!("UDPLite"), json!(58), json!(1)]),
        _ => "TCP".into(),
    };
    let named = protocol.as_str().is_some_and(|name| name.starts_with("ICMP"));
    let with_ports = [json!("TCP"), json!("UDP"), json!("SCTP"), json!(132), json!(6), json!("17")];
    let ports = if protocol.is_null() {
        Some(false)
    } else {
        with_ports.contains(&protocol).then_some(true)
    };
    let mut rule = present(json!({
        "action": rng.pick(&["Allow", "Allow", "Allow", "Deny", "Deny", "Pass", "Log"]),
        "protocol": protocol,
        "source": entity(rng, ports, v4, ingress.then_some(global)),
        "destination": entity(rng, ports, v4, (!ingress).then_some(global)),
    }));
    // Ports of a service are its own.
    if rule.pointer("/destination/services").is_some() {
        rule["destination"] = json!({"services": rule["destination"]["services"]});
    }
    if rng.once_in(12) {
        rule["notProtocol"] = rng.pick(&[
            json!("TCP"),
            json!("UDP"),
            json!(47),
            json!(if v4 { "ICMP" } else { "ICMPv6" }),
        ]);
    }
    if rng.once_in(8) && protocol != 58 && protocol != 1 {
        rule["ipVersion"] = version.into();
    }
    if named {
        for field in ["icmp", "notICMP"] {
            if rng.once_in(3) {
                let code = if rng.once_in(2) { Value::Null } else { rng.below(2).into() };
                rule[field] = present(json!({"type": rng.pick(&[0, 3, 8, 128]), "code": code}));
            }
        }
    }
    rule
}

fn calico_policy(rng: &mut Rng, name: &str) -> Value {
    let global = rng.once_in(2);
    let staged = rng.once_in(8);
    let mut spec = Map::new();
    if rng.once_in(2) {
        let tiers = ["sec", "late", "default", "ghost", "kube-admin", "kube-baseline"];
        spec.insert("tier".into(), rng.pick(&tiers).into());
    }
    if rng.once_in(2) {
        spec.insert("order".into(), rng.pick(&[json!(10), json!(10.5), json!(1000), json!(-1)]));
    }
    if rng.once_in(2) {
        spec.insert("selector".into(), selector(rng, &POD_KEYS, 1).into());
    }
    if rng.once_in(8) {
        spec.insert("serviceAccountSelector".into(), selector(rng, &ACCOUNT_KEYS, 1).into());
    }
    if global && rng.once_in(4) {
        spec.insert("namespaceSelector".into(), selector(rng, &NAMESPACE_KEYS, 1).into());
    }
    for (list, ingress) in [("ingress", true), ("egress", false)] {
        if !rng.once_in(3) {
            let rules = some(rng, 4, |rng| calico_rule(rng, ingress, global));
            spec.insert(list.into(), rules.into());
        }
    }
    if rng.once_in(3) {
        let types =
            [json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Egress", "Ingress"])];
        spec.insert("types".into(), rng.pick(&types));
    }
    if global && rng.once_in(20) {
        spec.insert("applyOnForward".into(), true.into());
        if rng.once_in(2) {
            spec.insert("doNotTrack".into(), true.into());
        }
    }
    let kind = match (global, staged) {
        (true, false) => "GlobalNetworkPolicy",
        (true, true) => "StagedGlobalNetworkPolicy",
        (false, false) => "NetworkPolicy",
        (false, true) => "StagedNetworkPolicy",
    };
    let namespace = (!global).then(|| rng.pick(&NAMESPACES));
    let mut policy = object(CALICO, kind, namespace, name, spec.into());
    if rng.once_in(12) {
        policy["apiVersion"] = STORED.into();
    }
    policy
}

fn policy(rng: &mut Rng, name: &str) -> Value {
    match rng.below(5) {
        0 => kubernetes_policy(rng, name),
        1 => cluster_policy(rng, name),
        _ => calico_policy(rng, name),
    }
}

/// Names that sort in their own way.
const POLICY_NAMES: [&str; 8] = ["web", "web-x", "web.y", "web0", "a", "b", "c", "d"];

fn tiers(rng: &mut Rng) -> Vec<Value> {
    let order = rng.pick(&[json!(5), json!(2_000_000), json!(1000), json!(-1.5)]);
    let action = |rng: &mut Rng| rng.pick(&[json!("Deny"), json!("Pass"), Value::Null]);
    let first = present(json!({"order": order, "defaultAction": action(rng)}));
    let second = present(json!({"defaultAction": action(rng)}));
    [("sec", first), ("late", second)]
        .map(|(name, spec)| object(CALICO, "Tier", None, name, spec))
        .into()
}

/// Clusters with all kinds of objects.
pub(crate) fn clusters(rng: &mut Rng) -> Clusters {
    let mut local = base(rng);
    local.extend((0..4 + rng.below(3)).map(|at| pod(rng, at, false)));
    local.extend((0..rng.below(3)).map(|at| host(rng, at, false)));
    local.extend((0..rng.below(4)).map(|at| network_set(rng, at)));
    local.extend((0..rng.below(4)).map(|at| slice(rng, at)));
    if !rng.once_in(4) {
        local.extend(tiers(rng));
    }
    for _ in 0..2 + rng.below(8) {
        let name = rng.pick(&POLICY_NAMES);
        local.push(policy(rng, name));
    }
    let mut remote = base(rng);
    remote.extend((0..rng.below(4)).map(|at| pod(rng, at, true)));
    remote.extend((0..rng.below(2)).map(|at| host(rng, at, true)));
    let mut clusters = Clusters { local, remotes: [("b".to_owned(), remote)].into() };
    without_repeats(&mut clusters);
    clusters
}

/// A kind, namespace and name that users see.
pub(crate) fn key(object: &Value) -> [String; 4] {
    let mut key = ["/apiVersion", "/kind", "/metadata/namespace", "/metadata/name"]
        .map(|path| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned());
    // In either group it is one object.
    if key[0] == STORED {
        CALICO.clone_into(&mut key[0]);
    }
    key
}

fn without_repeats(clusters: &mut Clusters) {
    for objects in std::iter::once(&mut clusters.local).chain(clusters.remotes.values_mut()) {
        let mut seen = std::collections::HashSet::new();
        objects.retain(|object| seen.insert(key(object)));
    }
}

/// Adds, changes or removes an object.
pub(crate) fn edit(rng: &mut Rng, clusters: &mut Clusters) {
    let name = rng.pick(&POLICY_NAMES);
    let at = rng.below(6);
    match rng.below(8) {
        0..=2 => clusters.local.insert(0, policy(rng, name)),
        3 => {
            let pod = pod(rng, at, false);
            // An address is one pod's.
            let name = pod["metadata"]["name"].clone();
            clusters.local.retain(|it| it["kind"] != "Pod" || it["metadata"]["name"] != name);
            clusters.local.push(pod);
        }
        4 => clusters.local.insert(0, network_set(rng, at % 4)),
        5 => clusters.local.insert(0, slice(rng, at % 4)),
        6 => clusters.local.splice(0..0, base(rng)).for_each(drop),
        _ => {
            let at = rng.below(clusters.local.len());
            clusters.local.remove(at);
        }
    }
    without_repeats(clusters);
}

/// A packet, mostly between addresses that somebody has.
pub(crate) fn packet(rng: &mut Rng) -> Packet {
    let v6 = rng.once_in(3);
    let address = |rng: &mut Rng| -> IpAddr {
        let host = rng.below(7) + 1;
        let text = match (v6, rng.below(8)) {
            (false, 0..=4) => format!("10.0.0.{host}"),
            (false, 5) => format!("10.9.0.{host}"),
            (false, 6) => rng.pick(&["203.0.113.4", "192.0.2.1", "198.51.100.1"]).to_owned(),
            (false, _) => format!("172.16.9{}.1", 8 + rng.below(2)),
            (true, 0..=4) => format!("fd00::{host}"),
            (true, 5) => format!("fd09::{host}"),
            (true, _) => rng.pick(&["2001:db8::1", "fd00::ffff"]).to_owned(),
        };
        text.parse().expect("an address")
    };
    let (from, to) = (address(rng), address(rng));
    let protocol = rng.pick(&[6, 6, 6, 17, 17, 132, 1, 58, 47, 136]);
    let mut port = || 79 + rng.below(6) as u16;
    let (source_port, port) = (port(), port());
    let icmp = (rng.pick(&[0, 3, 8, 128]), rng.pick(&[0, 1]));
    Packet { from, to, protocol, source_port, port, icmp }
}
