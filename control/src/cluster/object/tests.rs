use proptest::prelude::*;
use serde_json::json;

use super::*;

fn object(kind: Kind, value: &Value) -> Object {
    let converted = convert(kind, value).expect("a sound object");
    assert_eq!(converted.warnings, []);
    converted.object.expect("an object that counts")
}

/// The error of an object with this `spec`.
fn spec_error(kind: Kind, spec: Value) -> String {
    let value = json!({"metadata": {"name": "x"}, "spec": spec});
    convert(kind, &value).expect_err("a broken object").to_string()
}

fn a_pod(spec: Value, status: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "n", "labels": {"app": "x"}}, "spec": spec,
           "status": status})
}

fn pod_of(value: &Value) -> Option<Arc<Pod>> {
    match convert(Kind::Pod, value).expect("a sound pod").object {
        Some(Object::Pod(pod)) => Some(pod),
        Some(other) => panic!("{other:?}"),
        None => None,
    }
}

#[test]
fn pods_without_identity() {
    let ip = json!({"podIP": "10.0.0.1"});
    let on = json!({"nodeName": "a"});
    assert!(pod_of(&a_pod(on.clone(), ip.clone())).is_some());
    assert!(pod_of(&a_pod(json!({"nodeName": "a", "hostNetwork": true}), ip.clone())).is_none());
    assert!(pod_of(&a_pod(json!({}), ip.clone())).is_none());
    assert!(pod_of(&a_pod(json!({"nodeName": ""}), ip)).is_none());
    assert!(pod_of(&a_pod(on.clone(), json!({}))).is_none());
    assert!(pod_of(&a_pod(on.clone(), json!({"podIP": ""}))).is_none());
    for phase in ["Succeeded", "Failed"] {
        let status = json!({"podIP": "10.0.0.1", "phase": phase});
        assert!(pod_of(&a_pod(on.clone(), status)).is_none());
    }
    let mut leaving = a_pod(on, json!({"podIP": "10.0.0.1"}));
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert!(pod_of(&leaving).is_some(), "still has its address");
    leaving["metadata"]["annotations"] = json!({"cni.projectcalico.org/podIP": ""});
    assert!(pod_of(&leaving).is_none());
}

#[test]
fn pod_addresses_come_from_the_first_place_that_has_any() {
    let addresses = |status: Value, annotations: Value| {
        let mut value = a_pod(json!({"nodeName": "a"}), status);
        value["metadata"]["annotations"] = annotations;
        pod_of(&value).map(|pod| pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let annotations = json!({"cni.projectcalico.org/podIPs": "10.0.0.3/32,fd00::3/128",
        "cni.projectcalico.org/podIP": "10.0.0.4/32", "vpc.amazonaws.com/pod-ips": "10.0.0.5"});
    let both = json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "podIP": "10.0.0.2"});
    assert_eq!(addresses(both, annotations.clone()).unwrap(), ["10.0.0.1", "fd00::1"]);
    let one = json!({"podIPs": [], "podIP": "10.0.0.2"});
    assert_eq!(addresses(one, annotations.clone()).unwrap(), ["10.0.0.2"]);
    assert_eq!(addresses(json!({}), annotations).unwrap(), ["10.0.0.3", "fd00::3"]);
    let single = json!({"cni.projectcalico.org/podIP": "10.0.0.4/32"});
    assert_eq!(addresses(json!({}), single).unwrap(), ["10.0.0.4"]);
    let aws = json!({"vpc.amazonaws.com/pod-ips": "10.0.0.5, 10.0.0.6"});
    assert_eq!(addresses(json!({}), aws).unwrap(), ["10.0.0.5", "10.0.0.6"]);
}

#[test]
fn pods_ports_and_account() {
    let value = a_pod(
        json!({
            "nodeName": "a", "serviceAccountName": "sa",
            "containers": [{"ports": [
                {"name": "web", "containerPort": 80},
                {"containerPort": 81},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "web", "containerPort": 80, "protocol": "TCP"}]}],
            "initContainers": [{"ports": [{"name": "s", "containerPort": 9, "protocol": "SCTP"}]}, {}]
        }),
        json!({"podIP": "10.0.0.1"}),
    );
    let pod = pod_of(&value).unwrap();
    assert_eq!(&*pod.service_account, "sa");
    let ports: Vec<_> = pod.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
    assert_eq!(ports, [("dns", 17, 53), ("s", 132, 9), ("web", 6, 80)]);
}

#[test]
fn broken_pods_name_the_field() {
    let error = |spec: Value, status: Value| {
        convert(Kind::Pod, &a_pod(spec, status)).expect_err("a broken pod").to_string()
    };
    let on = || json!({"nodeName": "a"});
    assert_eq!(
        error(on(), json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0"}]})),
        "status.podIPs[1].ip: \"10.0.0\" is no address; write one such as 10.0.0.5 or fd00::5"
    );
    assert_eq!(
        error(on(), json!({"podIP": "::ffff:10.0.0.1"})),
        "status.podIP: \"::ffff:10.0.0.1\" is an IPv4 address in IPv6 form; write it as IPv4"
    );
    assert_eq!(
        error(on(), json!({"podIP": "224.0.0.1"})),
        "status.podIP: \"224.0.0.1\" can't be the address of one machine; correct it"
    );
    let port = |port: Value| json!({"nodeName": "a", "containers": [{"ports": [{"name": "w", "containerPort": port}]}]});
    let ip = || json!({"podIP": "10.0.0.1"});
    assert_eq!(
        error(port(json!(65536)), ip()),
        "spec.containers[0].ports[0].containerPort: is 65536; write a whole number from 1 to 65535"
    );
    assert_eq!(
        error(port(Value::Null), ip()),
        "spec.containers[0].ports[0].containerPort: is missing; set it"
    );
    assert_eq!(
        error(json!({"nodeName": 7}), ip()),
        "spec.nodeName: is a number; write text, in quotes"
    );
    assert_eq!(
        error(json!({"hostNetwork": "yes"}), ip()),
        "spec.hostNetwork: is text; write true or false"
    );
}

#[test]
fn nodes_annotations() {
    let value = json!({"metadata": {"name": "a", "annotations": {
            "projectcalico.org/IPv4Address": "172.16.0.1/24",
            "projectcalico.org/IPv6Address": "fd00:1::1",
            "projectcalico.org/IPv4VXLANTunnelAddr": "10.0.0.1",
            "projectcalico.org/IPv6VXLANTunnelAddr": "fd00::1",
            "projectcalico.org/VXLANTunnelMACAddr": "66:00:00:00:00:01"}},
        "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "172.16.0.1"},
            {"type": "InternalIP", "address": "172.16.0.1"}]}});
    let Object::Node(node) = object(Kind::Node, &value) else { panic!("no node") };
    let addr = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    assert_eq!(node.ipv4, Some((addr("172.16.0.1"), 24)));
    assert_eq!(node.ipv6, Some((addr("fd00:1::1"), 128)));
    assert_eq!(node.tunnel_v4, Some(addr("10.0.0.1")));
    assert_eq!(node.tunnel_v6, Some(addr("fd00::1")));
    assert_eq!(node.mac_v4, Some("66:00:00:00:00:01".parse().unwrap()));
    assert_eq!(node.mac_v6, None);
    assert_eq!(node.addresses, [addr("172.16.0.1"), addr("203.0.113.1")]);
}

#[test]
fn unreadable_annotations_count_as_absent() {
    let value = json!({"metadata": {"name": "a", "annotations": {
            "projectcalico.org/IPv4Address": "172.16.0.1/33",
            "projectcalico.org/IPv6Address": "172.16.0.1/24",
            "projectcalico.org/IPv4VXLANTunnelAddr": "",
            "projectcalico.org/IPv6VXLANTunnelAddr": "x",
            "projectcalico.org/VXLANTunnelMACAddr": "ff:ff:ff:ff:ff:ff"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "x"}]}});
    let converted = convert(Kind::Node, &value).unwrap();
    assert_eq!(converted.object, Some(Object::Node(Arc::new(Node::default()))));
    let fields: Vec<_> = converted.warnings.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.annotations.projectcalico.org/IPv4Address",
            "metadata.annotations.projectcalico.org/IPv6Address",
            "metadata.annotations.projectcalico.org/IPv6VXLANTunnelAddr",
            "metadata.annotations.projectcalico.org/VXLANTunnelMACAddr",
            "status.addresses[0].address",
        ]
    );
    let first = "\"172.16.0.1/33\" has no valid prefix length; it counts as absent";
    assert_eq!(converted.warnings[0].reason, first);
}

#[test]
fn pools() {
    let pool = |spec: Value| {
        let value = json!({"metadata": {"name": "p"}, "spec": spec});
        let Object::IpPool(pool) = object(Kind::IpPool, &value) else { panic!("no pool") };
        pool.encapsulation
    };
    let with = |vxlan: &str, ipip: &str| json!({"cidr": "10.0.0.0/8", "vxlanMode": vxlan, "ipipMode": ipip});
    assert_eq!(pool(json!({"cidr": "fd00::/48"})), Encapsulation::None);
    assert_eq!(pool(with("Always", "Never")), Encapsulation::Vxlan);
    assert_eq!(pool(with("CrossSubnet", "")), Encapsulation::VxlanCrossSubnet);
    assert_eq!(pool(with("Never", "CrossSubnet")), Encapsulation::Ipip);
    let error = |spec| spec_error(Kind::IpPool, spec);
    assert_eq!(error(json!({})), "spec.cidr: is missing; set it");
    assert_eq!(
        error(with("Always", "Always")),
        "spec.ipipMode: is on beside vxlanMode; set one to Never"
    );
    assert_eq!(
        error(with("always", "")),
        "spec.vxlanMode: \"always\" is none of Never, Always and CrossSubnet"
    );
    assert_eq!(
        error(json!({"cidr": "10.0.0.0/40"})),
        "spec.cidr: \"10.0.0.0/40\" is not an address or a CIDR such as 10.0.0.0/8 or fd00::/64; \
         correct it"
    );
    assert_eq!(
        error(json!({"cidr": "::ffff:0.0.0.0/100"})),
        "spec.cidr: \"::ffff:0.0.0.0/100\" is IPv4 in IPv6 form; write it as IPv4"
    );
}

#[test]
fn blocks() {
    let block = |spec: Value| {
        let value = json!({"metadata": {"name": "b"}, "spec": spec});
        let Object::IpamBlock(block) = object(Kind::IpamBlock, &value) else { panic!("no block") };
        let users = block.allocations.iter().map(|(addr, node)| format!("{addr} {node}"));
        (block.affinity.clone(), users.collect::<Vec<_>>(), block.deleted)
    };
    let attributes = json!([
        {"handle_id": "vxlan-tunnel-addr-a", "secondary": {"node": "a"}},
        {"secondary": {"pod": "x"}},
        {"secondary": {"node": "b", "pod": "y"}},
    ]);
    let allocations = json!([0, null, 1, 2, 7, -1, "x", 2]);
    assert_eq!(
        block(json!({"cidr": "10.0.0.64/26", "affinity": "host:a", "allocations": allocations,
                     "attributes": attributes, "unallocated": [1], "strictAffinity": false})),
        (
            Some("a".to_owned()),
            vec!["10.0.0.64 a".into(), "10.0.0.67 b".into(), "10.0.0.71 b".into()],
            false
        )
    );
    let six = json!({"cidr": "fd00::40/122", "affinity": "virtual:lb", "deleted": true,
                     "allocations": [0], "attributes": attributes});
    assert_eq!(block(six), (None, vec!["fd00::40 a".into()], true));
    assert_eq!(
        spec_error(Kind::IpamBlock, json!({"cidr": "10.0.0.0/31", "allocations": [null, null, 0]})),
        "spec.allocations: has more entries than 10.0.0.0/31 has addresses; correct spec.cidr"
    );
    let last = json!({"cidr": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "allocations": [0, 0],
                      "attributes": []});
    assert_eq!(block(last), (None, vec![], false));
}

#[test]
fn labels_of_the_storage_group_are_in_an_annotation() {
    let labels = |api: &str, metadata: Value| {
        let value = json!({"apiVersion": api, "metadata": metadata, "spec": {"node": "a"}});
        let Object::HostEndpoint(host) = object(Kind::HostEndpoint, &value) else { panic!("none") };
        host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    let metadata = json!({"name": "h",
        "labels": {"own": "1", "projectcalico.org/x": "2", "operator.tigera.io/y": "3"},
        "annotations": {"projectcalico.org/metadata": "{\"labels\":{\"real\":\"4\"}}"}});
    let (stored, api) = ("crd.projectcalico.org/v1", "projectcalico.org/v3");
    assert_eq!(
        labels(stored, metadata.clone()),
        ["operator.tigera.io/y=3", "projectcalico.org/x=2", "real=4"]
    );
    assert_eq!(labels(api, metadata), ["operator.tigera.io/y=3", "own=1", "projectcalico.org/x=2"]);
    assert_eq!(labels(stored, json!({"name": "h", "labels": {"own": "1"}})), ["own=1"]);
    let broken = json!({"apiVersion": stored, "spec": {"node": "a"}, "metadata": {"name": "h",
        "annotations": {"projectcalico.org/metadata": "{"}}});
    let error = convert(Kind::HostEndpoint, &broken).unwrap_err();
    assert_eq!(error.field, "metadata.annotations.projectcalico.org/metadata");
}

#[test]
fn host_endpoints() {
    let value = json!({"metadata": {"name": "h"}, "spec": {"node": "a", "interfaceName": "*",
        "expectedIPs": ["172.16.0.1", "fd00::1"],
        "ports": [{"name": "ssh", "protocol": "TCP", "port": 22}, {"name": "x", "protocol": 17, "port": 1}]}});
    let Object::HostEndpoint(host) = object(Kind::HostEndpoint, &value) else { panic!("none") };
    assert_eq!((host.addresses.len(), host.ports.len()), (2, 2));
    let error = |spec| spec_error(Kind::HostEndpoint, spec);
    assert_eq!(error(json!({})), "spec.node: is missing; set it");
    assert_eq!(
        error(json!({"node": "a", "expectedIPs": ["x"]})),
        "spec.expectedIPs[0]: \"x\" is no address; write one such as 10.0.0.5 or fd00::5"
    );
    assert_eq!(error(json!({"node": "a", "expectedIPs": [1]})), "spec.expectedIPs[0]: is no text");
}

#[test]
fn felix_configurations() {
    let value = json!({"metadata": {"name": "default"}, "spec": {"vxlanVNI": 4097, "vxlanPort": 4790,
        "vxlanMTU": 1400, "vxlanMTUV6": 0, "routeSource": "WorkloadIPs", "xdpEnabled": false,
        "logSeverityScreen": "Info"}});
    let Object::FelixConfiguration(felix) = object(Kind::FelixConfiguration, &value) else {
        panic!("none")
    };
    let expected = FelixConfiguration {
        vni: Vni::new(4097),
        port: Some(4790),
        mtu_v4: Some(1400),
        mtu_v6: None,
        route_source: Some(RouteSource::WorkloadIps),
        xdp_enabled: Some(false),
    };
    assert_eq!(*felix, expected);
    let error = |spec| spec_error(Kind::FelixConfiguration, spec);
    assert_eq!(
        error(json!({"vxlanVNI": 16_777_216})),
        "spec.vxlanVNI: is 16777216; write a whole number from 1 to 16777215"
    );
    assert_eq!(
        error(json!({"vxlanPort": "4789"})),
        "spec.vxlanPort: is \"4789\"; write a whole number from 1 to 65535"
    );
    assert_eq!(
        error(json!({"routeSource": "Blocks"})),
        "spec.routeSource: \"Blocks\" is neither CalicoIPAM nor WorkloadIPs"
    );
}

#[test]
fn remote_clusters() {
    let remote = |spec: Value| {
        let value = json!({"metadata": {"name": "r"}, "spec": spec});
        let Object::RemoteClusterConfiguration(remote) =
            object(Kind::RemoteClusterConfiguration, &value)
        else {
            panic!("none")
        };
        remote
    };
    let secret = json!({"kind": "Secret", "name": "s", "namespace": "n"});
    let full = remote(json!({"clusterAccessSecret": secret,
                             "syncOptions": {"overlayRoutingMode": "Enabled"}}));
    assert!(full.overlay);
    let named = ObjectName { namespace: "n".into(), name: "s".into() };
    assert_eq!(full.access, RemoteAccess::Secret(named));
    assert!(!remote(json!({"syncOptions": {"overlayRoutingMode": "Disabled"}})).overlay);
    assert!(!remote(json!({})).overlay);
    remote(json!({"datastoreType": "kubernetes", "kubeconfigInline": "x", "etcdEndpoints": ""}));
    let error = |spec| spec_error(Kind::RemoteClusterConfiguration, spec);
    for (field, value) in [
        ("datastoreType", json!("kubernetes")),
        ("kubeconfigInline", json!("x")),
        ("k8sInsecureSkipTLSVerify", json!(true)),
        ("etcdEndpoints", json!("https://x")),
    ] {
        assert_eq!(
            error(json!({"clusterAccessSecret": secret, field: value})),
            format!(
                "spec.{field}: stands beside spec.clusterAccessSecret; move it into the secret"
            )
        );
    }
    assert_eq!(
        error(json!({"datastoreType": "kubernetes", "etcdKey": "x"})),
        "spec.etcdKey: does not go with spec.datastoreType; remove one of the two"
    );
    assert_eq!(
        error(json!({"datastoreType": "etcdv3", "kubeconfig": "/x"})),
        "spec.kubeconfig: does not go with spec.datastoreType; remove one of the two"
    );
    assert_eq!(
        error(json!({"datastoreType": "sql"})),
        "spec.datastoreType: \"sql\" is neither kubernetes nor etcdv3"
    );
    assert_eq!(
        error(json!({"clusterAccessSecret": {"kind": "ConfigMap", "name": "s", "namespace": "n"}})),
        "spec.clusterAccessSecret.kind: must be Secret"
    );
    assert_eq!(
        error(json!({"clusterAccessSecret": {"name": "s"}})),
        "spec.clusterAccessSecret.namespace: is missing; set it"
    );
    assert_eq!(
        error(json!({"syncOptions": {"overlayRoutingMode": "On"}})),
        "spec.syncOptions.overlayRoutingMode: \"On\" is neither Enabled nor Disabled"
    );
}

#[test]
fn only_kube_systems_uid_is_the_clusters() {
    let mut objects = ClusterObjects::default();
    for (name, uid) in [("a", "1"), ("kube-system", "2"), ("z", "3")] {
        let value = json!({"metadata": {"name": name, "uid": uid}});
        let converted = convert(Kind::Namespace, &value).unwrap();
        insert(&mut objects, Kind::Namespace, &converted.name, &converted.object.unwrap());
    }
    assert_eq!(objects.uid.as_deref(), Some("2"));
    assert_eq!(objects.namespaces.len(), 3);
}

/// Any JSON, with the names and values that the readers look for.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "10.0.0.1",
        "10.0.0.0/8",
        "fd00::1",
        "::/0",
        "host:a",
        "Always",
        "Enabled",
        "a",
        "",
        "é",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..5i64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "apiVersion",
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "status",
        "podIPs",
        "ip",
        "nodeName",
        "cidr",
        "affinity",
        "allocations",
        "attributes",
        "secondary",
        "node",
        "addresses",
        "type",
        "address",
        "expectedIPs",
        "ports",
        "port",
        "containers",
        "clusterAccessSecret",
        "syncOptions",
        "overlayRoutingMode",
        "vxlanVNI",
        "projectcalico.org/IPv4Address",
        "projectcalico.org/metadata",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|pairs| pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn nothing_panics_on_values(metadata in any_json(), spec in any_json(), status in any_json()) {
        let mut value = json!({"metadata": metadata, "spec": spec, "status": status});
        for kind in [
            Kind::Namespace, Kind::ServiceAccount, Kind::Pod, Kind::Node, Kind::IpPool,
            Kind::IpamBlock, Kind::HostEndpoint, Kind::FelixConfiguration,
            Kind::RemoteClusterConfiguration,
        ] {
            let _ = convert(kind, &value);
        }
        value["metadata"] = json!({"name": "x"});
        for kind in [
            Kind::Pod, Kind::Node, Kind::IpPool, Kind::IpamBlock, Kind::HostEndpoint,
            Kind::FelixConfiguration, Kind::RemoteClusterConfiguration,
        ] {
            let _ = convert(kind, &value);
        }
    }
}
