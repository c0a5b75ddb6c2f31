//! What is shipped for Kubernetes, on a real API server: the kind
//! RemoteClusterConfiguration refuses what can't work and says what to do, and
//! the rights are those that are needed and no others.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tieline_lab::Lab;
use tieline_tests::kube::access::{account_kubeconfig, guide_kubeconfig};
use tieline_tests::kube::calico::{self, Group};
use tieline_tests::kube::{ApiCluster, program};

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/manifests").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Specs that are taken.
fn right() -> Vec<Value> {
    vec![
        json!({"clusterAccessSecret": {"kind": "Secret", "name": "b", "namespace": "n"}}),
        json!({"clusterAccessSecret": {"name": "b", "namespace": "n"}}),
        json!({
            "clusterAccessSecret": {"kind": "Secret", "name": "b", "namespace": "n"},
            "syncOptions": {"overlayRoutingMode": "Enabled"},
        }),
        // What is empty is not there.
        json!({
            "clusterAccessSecret": {"kind": "Secret", "name": "b", "namespace": "n"},
            "kubeconfig": "", "etcdEndpoints": "", "syncOptions": {},
        }),
        json!({"datastoreType": "kubernetes", "kubeconfig": "/etc/b"}),
        json!({"datastoreType": "kubernetes", "kubeconfigInline": "apiVersion: v1"}),
        json!({
            "datastoreType": "kubernetes", "k8sAPIEndpoint": "https://b:6443", "k8sAPIToken": "t",
            "k8sCAFile": "/etc/ca", "k8sInsecureSkipTLSVerify": false,
            "syncOptions": {"overlayRoutingMode": "Disabled"},
        }),
        // The daemon says that it does not read it; another reader may.
        json!({"datastoreType": "etcdv3", "etcdEndpoints": "https://b:2379", "etcdUsername": "u"}),
    ]
}

/// Specs that are refused, and what is said of each.
fn wrong() -> Vec<(Value, &'static str)> {
    let secret = || json!({"kind": "Secret", "name": "b", "namespace": "n"});
    let with = |field: &str, value: Value| {
        let mut spec = json!({ "clusterAccessSecret": secret() });
        spec[field] = value;
        spec
    };
    let beside = "spec: Invalid value: has inline access beside clusterAccessSecret; move it into \
                  the Secret, or remove clusterAccessSecret";
    let of_etcd = "spec: Invalid value: has fields for etcd, which do not go with datastoreType \
                   kubernetes; remove them";
    let of_kubernetes = "spec: Invalid value: has fields for Kubernetes, which do not go with \
                         datastoreType etcdv3; remove them";
    let mut cases = vec![
        (
            json!({}),
            "spec: Invalid value: names no cluster; set clusterAccessSecret, or datastoreType \
             and the fields that go with it",
        ),
        (json!({"kubeconfigInline": "x"}), "spec: Invalid value: names no cluster; set"),
        (
            json!({"clusterAccessSecret": {"kind": "ConfigMap", "name": "b", "namespace": "n"}}),
            "spec.clusterAccessSecret.kind: Invalid value: must be Secret; write kind Secret",
        ),
        (
            json!({"clusterAccessSecret": {"kind": "Secret", "namespace": "n"}}),
            "spec.clusterAccessSecret.name: Invalid value: is missing; write the name of the Secret",
        ),
        (
            json!({"clusterAccessSecret": {"kind": "Secret", "name": "b"}}),
            "spec.clusterAccessSecret.namespace: Invalid value: is missing; write the namespace \
             of the Secret",
        ),
        (
            json!({"clusterAccessSecret": {"kind": "Secret", "name": "", "namespace": "n"}}),
            "spec.clusterAccessSecret.name: Invalid value: is missing",
        ),
        (json!({"datastoreType": "consul"}), "spec.datastoreType: Unsupported value: \"consul\""),
        (
            json!({"datastoreType": "kubernetes"}),
            "spec: Invalid value: does not say how to reach the cluster; set kubeconfigInline, \
             kubeconfig or k8sAPIEndpoint",
        ),
        (
            json!({"datastoreType": "kubernetes", "k8sAPIToken": "t"}),
            "spec: Invalid value: does not say how to reach the cluster; set kubeconfigInline",
        ),
        (
            json!({"datastoreType": "etcdv3", "etcdUsername": "u"}),
            "spec: Invalid value: does not say how to reach the cluster; set etcdEndpoints",
        ),
        (
            json!({"datastoreType": "etcdv3", "etcdEndpoints": "e", "k8sInsecureSkipTLSVerify": true}),
            of_kubernetes,
        ),
        (
            with("syncOptions", json!({"overlayRoutingMode": "On"})),
            "spec.syncOptions.overlayRoutingMode: Unsupported value: \"On\": supported values: \
             \"Enabled\", \"Disabled\"",
        ),
        (with("datastoreType", json!("kubernetes")), beside),
        (with("k8sInsecureSkipTLSVerify", json!(true)), beside),
    ];
    let kubernetes = [
        "kubeconfig",
        "kubeconfigInline",
        "k8sAPIEndpoint",
        "k8sKeyFile",
        "k8sCertFile",
        "k8sCAFile",
        "k8sAPIToken",
    ];
    let etcd = [
        "etcdEndpoints",
        "etcdUsername",
        "etcdPassword",
        "etcdKeyFile",
        "etcdCertFile",
        "etcdCACertFile",
        "etcdKey",
        "etcdCert",
        "etcdCACert",
    ];
    for field in kubernetes {
        cases.push((with(field, json!("x")), beside));
        let spec = json!({"datastoreType": "etcdv3", "etcdEndpoints": "e", field: "x"});
        cases.push((spec, of_kubernetes));
    }
    for field in etcd {
        cases.push((with(field, json!("x")), beside));
        let spec = json!({"datastoreType": "kubernetes", "kubeconfig": "k", field: "x"});
        cases.push((spec, of_etcd));
    }
    cases
}

#[test]
fn a_remote_cluster_configuration_is_checked_when_it_is_written() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-crd").unwrap();
    let cluster = ApiCluster::alone(&lab, program, "a");
    let shipped = manifest("remoteclusterconfigurations.yaml");
    // What the manifest says to do where the group is taken.
    let stored: String = shipped
        .lines()
        .map(|line| match line.strip_suffix("projectcalico.org") {
            Some(start) => format!("{start}crd.projectcalico.org\n"),
            None => line.replace("name: v3", "name: v1") + "\n",
        })
        .collect();
    cluster.apply(&shipped);
    cluster.apply(&stored);
    for group in [Group::Native, Group::Storage] {
        checks_configurations(&cluster, group);
    }
}

fn checks_configurations(cluster: &ApiCluster, group: Group) {
    let api = group.api_version();
    let (domain, version) = api.split_once('/').unwrap();
    let plural = format!("remoteclusterconfigurations.{version}.{domain}");
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    cluster.kubectl(&established);
    let object = |name: &str, spec: &Value| {
        json!({
            "apiVersion": api, "kind": "RemoteClusterConfiguration", "metadata": {"name": name},
            "spec": spec, "status": {"state": "InSync"},
        })
    };
    let create = |object: &Value| {
        let args = ["create", "--validate=false", "-f", "-"];
        cluster.kubectl_with(&cluster.admin(), &args, Some(&object.to_string()))
    };
    for (number, spec) in right().iter().enumerate() {
        let output = create(&object(&format!("right-{number}"), spec));
        assert!(output.status.success(), "{spec}: {}", said(&output));
    }
    for (spec, words) in wrong() {
        let output = create(&object("wrong", &spec));
        let said = said(&output);
        assert!(!output.status.success(), "{spec} was taken");
        assert!(said.contains(words), "{spec}:\n{said}\nlacks {words}");
    }
    let nothing = json!({"apiVersion": api, "kind": "RemoteClusterConfiguration",
                         "metadata": {"name": "wrong"}});
    assert!(said(&create(&nothing)).contains("spec: Required value"));

    // Without a word networks stay apart, unknown fields are not kept, and
    // status is written as such only.
    let mut spec = right()[3].clone();
    spec["color"] = json!("red");
    assert!(create(&object("odd", &spec)).status.success());
    let odd = cluster.get(&[&plural, "odd"]);
    assert_eq!(odd["spec"]["syncOptions"]["overlayRoutingMode"], "Disabled");
    assert!(odd["spec"]["color"].is_null() && odd["status"].is_null(), "{odd}");
    let status = json!({"status": {
        "state": "Stale", "since": "2026-01-01T00:00:00Z", "lastError": "no route to host",
        "overlay": "Enabled", "objects": {"Pod": 3}, "observedGeneration": 1,
        "conditions": [{
            "type": "Synced", "status": "False", "reason": "Stale", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    let patch = status.to_string();
    let args = ["patch", &plural, "odd", "--subresource=status", "--type=merge", "-p", &patch];
    cluster.kubectl(&args);
    assert_eq!(cluster.get(&[&plural, "odd"])["status"], status["status"]);
    let table = cluster.kubectl(&["get", &plural, "odd", "-o", "wide"]);
    let lines: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "STATE", "OVERLAY", "AGE", "ERROR"]);
    assert_eq!(lines[1][..3], ["odd", "Stale", "Enabled"]);
}

/// A right: group, resource, or one object of it as "resource name", verb.
type Right = (String, String, String);

fn rights<T: AsRef<str>>(groups: &[T], resources: &[T], verbs: &[T]) -> BTreeSet<Right> {
    let text = |part: &T| part.as_ref().to_owned();
    let mut all = BTreeSet::new();
    for (group, resource) in groups.iter().flat_map(|g| resources.iter().map(move |r| (g, r))) {
        all.extend(verbs.iter().map(|verb| (text(group), text(resource), text(verb))));
    }
    all
}

/// Every right that an account has in a namespace, as the server tells it, but
/// for those that everybody has.
fn rights_of(cluster: &ApiCluster, account: &str, namespace: &str) -> BTreeSet<Right> {
    let ask = |kubeconfig: &Path| {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let args = ["create", "--validate=false", "-o", "json", "-f", "-"];
        let output = cluster.kubectl_with(kubeconfig, &args, Some(&review.to_string()));
        assert!(output.status.success(), "{}", said(&output));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let texts = |list: &Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().into()).collect()
        };
        let mut all = BTreeSet::new();
        for rule in answer["status"]["resourceRules"].as_array().unwrap() {
            let [groups, mut resources, verbs] =
                ["apiGroups", "resources", "verbs"].map(|key| texts(&rule[key]));
            if !rule["resourceNames"].is_null() {
                let names = texts(&rule["resourceNames"]);
                let each = |resource: &String| -> Vec<String> {
                    names.iter().map(|name| format!("{resource} {name}")).collect()
                };
                resources = resources.iter().flat_map(each).collect();
            }
            all.extend(rights(&groups, &resources, &verbs));
        }
        all
    };
    let (home, name) = account.split_once('/').unwrap();
    let nobody = ask(&account_kubeconfig(cluster, "default", "default"));
    &ask(&account_kubeconfig(cluster, home, name)) - &nobody
}

const READ: [&str; 3] = ["get", "list", "watch"];
const CALICO: [&str; 2] = ["crd.projectcalico.org", "projectcalico.org"];

/// What the daemon reads of its own cluster.
const READS: [(&[&str], &[&str]); 5] = [
    (&[""], &["namespaces", "serviceaccounts", "pods", "nodes", "services"]),
    (&["discovery.k8s.io"], &["endpointslices"]),
    (&["networking.k8s.io"], &["networkpolicies"]),
    (&["policy.networking.k8s.io"], &["clusternetworkpolicies"]),
    (
        &CALICO,
        &[
            "tiers",
            "globalnetworkpolicies",
            "networkpolicies",
            "stagedglobalnetworkpolicies",
            "stagednetworkpolicies",
            "stagedkubernetesnetworkpolicies",
            "globalnetworksets",
            "networksets",
            "hostendpoints",
            "ippools",
            "ipamblocks",
            "felixconfigurations",
            "clusterinformations",
            "remoteclusterconfigurations",
        ],
    ),
];

/// What a cluster lets those read that join it.
const REMOTE_READS: [(&[&str], &[&str]); 3] = [
    (&[""], &["namespaces", "serviceaccounts", "services", "endpoints", "pods", "nodes"]),
    (&CALICO, &["hostendpoints", "ipamblocks", "ippools"]),
    (&["discovery.k8s.io"], &["endpointslices"]),
];

fn reads(list: &[(&[&str], &[&str])]) -> BTreeSet<Right> {
    list.iter().flat_map(|(groups, resources)| rights(groups, resources, &READ)).collect()
}

/// Fails unless an account may do this, or may not, as a request shows.
fn try_request(cluster: &ApiCluster, kubeconfig: &Path, args: &[&str], allowed: bool) {
    let output = cluster.kubectl_with(kubeconfig, args, None);
    let text = said(&output);
    assert_eq!(output.status.success(), allowed, "kubectl {args:?}: {text}");
    assert!(allowed || text.contains("Forbidden") || text.contains("forbidden"), "{text}");
}

#[test]
fn rights_are_those_that_are_needed() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-rights").unwrap();
    let cluster = ApiCluster::alone(&lab, program, "a");
    for group in [Group::Storage, Group::Native] {
        cluster.apply(&group.crds());
    }
    cluster.apply(&calico::cluster_network_policy());
    cluster.apply(&manifest("remoteclusterconfigurations.yaml"));
    cluster.apply(&manifest("kubernetes.yaml"));
    cluster.apply(&manifest("remote-access.yaml"));
    cluster.kubectl(&["create", "namespace", "calico-system"]);
    let output = cluster.kubectl_with(
        &cluster.admin(),
        &["-n", "calico-system", "apply", "-f", "-"],
        Some(&manifest("secret-access.yaml")),
    );
    assert!(output.status.success(), "{}", said(&output));
    the_daemon_has_its_own_and_no_others(&cluster);
    remote_clusters_may_read_and_no_more(&cluster);
}

fn the_daemon_has_its_own_and_no_others(cluster: &ApiCluster) {
    let daemon = |namespace| rights_of(cluster, "tieline-system/tieline", namespace);
    let mut everywhere = reads(&READS);
    let status = ["remoteclusterconfigurations/status"];
    everywhere.extend(rights(&CALICO, &status, &["update", "patch"]));
    everywhere.extend(rights(&["", "events.k8s.io"], &["events"], &["create", "patch"]));
    let for_felix = ["globalnetworksets", "ippools"];
    everywhere.extend(rights(&CALICO, &for_felix, &["create", "patch", "delete"]));
    assert_eq!(daemon("default"), everywhere);
    let secrets = rights(&[""], &["secrets"], &READ);
    assert_eq!(daemon("calico-system"), &everywhere | &secrets);
    let leases =
        rights(&["coordination.k8s.io"], &["leases"], &["list", "watch", "create", "update"]);
    let labels = rights(&[""], &["namespaces tieline-system"], &["patch"]);
    assert_eq!(daemon("tieline-system"), &(&everywhere | &leases) | &labels);

    let kubeconfig = account_kubeconfig(cluster, "tieline-system", "tieline");
    let try_it = |args: &[&str], allowed| try_request(cluster, &kubeconfig, args, allowed);
    for (groups, resources) in READS {
        for (group, resource) in groups.iter().flat_map(|g| resources.iter().map(move |r| (g, r))) {
            // Of this kind there is one CRD here.
            if (*group, *resource) != ("crd.projectcalico.org", "remoteclusterconfigurations") {
                try_it(&["get", "-A", &format!("{resource}.{group}")], true);
            }
        }
    }
    cluster.apply(
        "{apiVersion: projectcalico.org/v3, kind: RemoteClusterConfiguration, metadata: {name: b}, \
         spec: {clusterAccessSecret: {name: b, namespace: calico-system}}}",
    );
    let rcc = "remoteclusterconfigurations.v3.projectcalico.org";
    let mut object = cluster.get(&[rcc, "b"]);
    object["status"] = json!({"state": "InSync"});
    let put = |path: &str| {
        let path = format!("/apis/projectcalico.org/v3/remoteclusterconfigurations/b{path}");
        let args = ["replace", "--raw", &path, "-f", "-"];
        said(&cluster.kubectl_with(&kubeconfig, &args, Some(&object.to_string())))
    };
    assert!(put("").contains("forbidden"), "{}", put(""));
    let answer = put("/status");
    assert_eq!(cluster.get(&[rcc, "b"])["status"], object["status"], "{answer}");
    try_it(&["delete", rcc, "b"], false);
    try_it(&["-n", "calico-system", "get", "secrets"], true);
    try_it(&["-n", "calico-system", "create", "secret", "generic", "x"], false);
    for namespace in ["default", "kube-system", "tieline-system"] {
        try_it(&["-n", namespace, "get", "secrets"], false);
    }
    try_it(&["get", "secrets", "-A"], false);
    try_it(&["run", "x", "--image=x"], false);
    cluster.apply("{apiVersion: v1, kind: Node, metadata: {name: node}}");
    try_it(&["annotate", "node", "node", "x=y"], false);
    try_it(&["create", "namespace", "x"], false);
    try_it(&["label", "namespace", "tieline-system", "tieline/joined="], true);
    try_it(&["label", "namespace", "default", "tieline/joined="], false);
}

fn remote_clusters_may_read_and_no_more(cluster: &ApiCluster) {
    let account = "kube-system/tigera-federation-remote-cluster";
    for namespace in ["default", "kube-system", "calico-system"] {
        assert_eq!(rights_of(cluster, account, namespace), reads(&REMOTE_READS));
    }
    // With the token that the guide hands out.
    let text = guide_kubeconfig(cluster, "kube-system", "tigera-federation-remote-cluster");
    let kubeconfig = cluster.dir().join("guide.kubeconfig");
    std::fs::write(&kubeconfig, text).unwrap();
    for (groups, resources) in REMOTE_READS {
        for (group, resource) in groups.iter().flat_map(|g| resources.iter().map(move |r| (g, r))) {
            try_request(cluster, &kubeconfig, &["get", "-A", &format!("{resource}.{group}")], true);
        }
    }
    for resource in ["secrets", "networkpolicies.networking.k8s.io", "tiers.crd.projectcalico.org"]
    {
        try_request(cluster, &kubeconfig, &["get", "-A", resource], false);
    }
    try_request(cluster, &kubeconfig, &["create", "namespace", "x"], false);
}
