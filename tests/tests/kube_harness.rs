//! The control plane that other tests rely on does what it says, above all when
//! something is made to go wrong.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde_json::Value;
use tieline_lab::{Cluster, ClusterSpec, Lab, NodeSpec, PodSpec, Underlay};
use tieline_tests::kube::access::{self, guide_kubeconfig, token_secret};
use tieline_tests::kube::calico::{self, Group};
use tieline_tests::kube::{ApiCluster, nodes, program};

const PATIENCE: Duration = Duration::from_secs(30);

/// What tests install of the product's own.
fn manifest(name: &str) -> String {
    let path = format!("{}/../config/manifests/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// Runs kubectl with a kubeconfig; what it says, good or bad.
fn ask(cluster: &ApiCluster, kubeconfig: &str, args: &[&str]) -> Result<String, String> {
    let path = cluster.dir().join("asked.kubeconfig");
    std::fs::write(&path, kubeconfig).unwrap();
    let output = cluster.kubectl_with(&path, args, None);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Asks until the answer is as wanted.
fn wait<T: std::fmt::Debug>(what: &str, mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) {
    let begun = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn servers_go_wrong_as_they_are_told_to() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-harness").unwrap();
    let mut cluster = ApiCluster::alone(&lab, program, "a");
    cluster.apply(&Group::Storage.crds());
    cluster.apply(&manifest("remote-access.yaml"));

    // The remote side's rights, with a kubeconfig made as in the guide.
    let (namespace, secret) = ("kube-system", "tigera-federation-remote-cluster");
    let kubeconfig = guide_kubeconfig(&cluster, namespace, secret);
    let nodes = |cluster: &ApiCluster| ask(cluster, &kubeconfig, &["get", "nodes", "-o", "name"]);
    assert_eq!(nodes(&cluster), Ok(String::new()));
    let role = access::keep(&cluster, "clusterrole", secret);
    access::narrow(&cluster, secret, "nodes");
    let says = |words: &'static str| {
        move |answer: &Result<String, String>| {
            answer.as_ref().is_err_and(|text| text.contains(words))
        }
    };
    wait("narrowed", || nodes(&cluster), says("cannot list resource \"nodes\""));
    access::restore(&cluster, &role);
    wait("restored", || nodes(&cluster), Result::is_ok);

    // A watch that goes on from before is told that it can't.
    let uid = cluster.uid();
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let seen = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    cluster.expire_history();
    let path = format!("/api/v1/namespaces?watch=1&timeoutSeconds=5&resourceVersion={seen}");
    let event: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path])).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&"ERROR".into(), &410.into()));
    assert_eq!(cluster.uid(), uid);

    cluster.pause();
    let hung = || ask(&cluster, &kubeconfig, &["get", "nodes", "--request-timeout=1s"]);
    wait("paused", hung, Result::is_err);
    cluster.resume();
    wait("resumed", || nodes(&cluster), Result::is_ok);

    cluster.rotate_certificate();
    assert!(nodes(&cluster).unwrap_err().contains("certificate signed by unknown authority"));
    // Kubernetes tells the new authority to whoever has a token.
    let read = || guide_kubeconfig(&cluster, namespace, secret);
    wait("authority in the Secret", read, |read| *read != kubeconfig);
    let kubeconfig = guide_kubeconfig(&cluster, namespace, secret);
    let nodes = |cluster: &ApiCluster| ask(cluster, &kubeconfig, &["get", "nodes", "-o", "name"]);
    assert_eq!(nodes(&cluster), Ok(String::new()));

    // Such a token says nothing of its Secret but the name: the same comes back.
    let (token, _) = token_secret(&cluster, namespace, secret);
    cluster.kubectl(&["-n", namespace, "delete", "secret", secret]);
    wait("revoked", || nodes(&cluster), says("Unauthorized"));
    cluster.apply(&manifest("remote-access.yaml"));
    assert_eq!(token_secret(&cluster, namespace, secret).0, token);
    wait("given back", || nodes(&cluster), Result::is_ok);
    // Another account's is another one, even of the same name.
    cluster.kubectl(&[
        "-n",
        namespace,
        "delete",
        "serviceaccount,secret",
        secret,
        "--ignore-not-found",
    ]);
    wait("account gone", || nodes(&cluster), says("Unauthorized"));
    cluster.apply(&manifest("remote-access.yaml"));
    wait("another token", || token_secret(&cluster, namespace, secret).0, |new| *new != token);
    assert!(nodes(&cluster).unwrap_err().contains("Unauthorized"));

    cluster.replace();
    assert_ne!(cluster.uid(), uid);
    assert_eq!(cluster.kubectl(&["get", "crds", "-o", "name"]), "");
    assert!(nodes(&cluster).unwrap_err().contains("Unauthorized"));
}

#[test]
fn clusters_in_bulk() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-bulk").unwrap();
    let cluster = ApiCluster::alone(&lab, program, "a");
    for group in [Group::Storage, Group::Native] {
        cluster.apply(&group.crds());
    }
    cluster.apply(&calico::cluster_network_policy());
    let size = ["--pods=150", "--namespaces=3", "--nodes=2"];
    let report = cluster.bulk("load", &size, PATIENCE);
    assert_eq!(report["pods"], 150);
    let pods = cluster.get(&["pods", "-A"]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 150);
    let running =
        |pod: &&Value| pod["status"]["phase"] == "Running" && pod["spec"]["nodeName"] != "";
    assert_eq!(pods.iter().filter(running).count(), 150);
    let addresses: std::collections::BTreeSet<&str> =
        pods.iter().map(|pod| pod["status"]["podIP"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 150);
    let blocks = cluster.get(&["ipamblocks.crd.projectcalico.org"]);
    assert_eq!(blocks["items"].as_array().unwrap().len(), 3);

    let rate = ["--per-minute=3000", "--seconds=1"];
    let report = cluster.bulk("churn", &[&size[..], &rate].concat(), PATIENCE);
    assert_eq!(report["replaced"], 50);
    let changed = cluster.get(&["pods", "-A", "-l", "generation=1"]);
    assert_eq!(changed["items"].as_array().unwrap().len(), 50);
}

#[test]
fn nodes_reach_a_cluster_that_knows_them() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-nodes").unwrap();
    let mut underlay = Underlay::new(&lab, 1500).unwrap();
    let segment = underlay.segment().unwrap();
    let api = ApiCluster::on(&lab, program, "a", &mut underlay, segment);
    let pod = |name: &str| PodSpec { namespace: "shop".into(), name: name.into() };
    let pods = vec![pod("frontend"), pod("backend")];
    let spec = ClusterSpec {
        name: "a".into(),
        pool_v4: [10, 244, 1, 0].into(),
        pool_v6: "fd00:10:244:1::".parse().unwrap(),
        pod_mtu: 1430,
        nodes: vec![NodeSpec { name: "a-1".into(), segment, pods }],
    };
    let cluster = Cluster::new(&lab, &mut underlay, &spec).unwrap();
    api.apply(&Group::Native.crds());
    nodes::write(&api, &cluster, Group::Native, |_| vec![("app", "x")]);
    let pods = api.get(&["pods", "-n", "shop", "-l", "app=x"]);
    let address = |pod: &Value| pod["status"]["podIPs"][1]["ip"].as_str().unwrap().to_owned();
    let addresses: Vec<String> = pods["items"].as_array().unwrap().iter().map(address).collect();
    let [frontend, backend] = &cluster.nodes[0].pods[..] else { panic!("two pods") };
    assert_eq!(addresses, [backend, frontend].map(|pod| pod.v6.to_string()));
    let ready = api.get(&["ippools.projectcalico.org,ipamblocks.projectcalico.org,nodes"]);
    assert_eq!(ready["items"].as_array().unwrap().len(), 5);

    let server = api.url().strip_prefix("https://").unwrap().to_owned();
    let reached = cluster.nodes[0].netns.run(|| std::net::TcpStream::connect(server)).unwrap();
    assert!(reached.is_ok(), "{reached:?}");
}
