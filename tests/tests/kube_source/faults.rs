//! What goes wrong between two real clusters: what is said of it, and what
//! stays in force.

use std::time::Duration;

use tieline::federation::RemoteState;
use tieline_lab::{Lab, Underlay};
use tieline_tests::kube::access::{self, guide_kubeconfig};
use tieline_tests::kube::calico::Group;
use tieline_tests::kube::{ApiCluster, program};

use crate::federation::Joined;
use crate::same::fill;

pub(crate) const ACCOUNT: &str = "tigera-federation-remote-cluster";

fn manifest(name: &str) -> String {
    let path = format!("{}/../config/manifests/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// Two clusters that reach each other: one that joins, and one that is joined.
pub(crate) struct Pair {
    pub(crate) local: ApiCluster,
    pub(crate) remote: ApiCluster,
    _lab: Lab,
}

impl Pair {
    fn new(name: &str) -> Option<Self> {
        let program = program()?;
        let lab = Lab::new(name).unwrap();
        let mut underlay = Underlay::new(&lab, 1500).unwrap();
        let segment = underlay.segment().unwrap();
        let local = ApiCluster::on(&lab, program, "a", &mut underlay, segment);
        let remote = ApiCluster::on(&lab, program, "b", &mut underlay, segment);
        Some(Self::of(lab, local, remote))
    }

    /// Of two clusters that are empty, whether they reach each other or not.
    pub(crate) fn of(lab: Lab, local: ApiCluster, remote: ApiCluster) -> Self {
        local.apply(&Group::Storage.crds());
        for name in ["remoteclusterconfigurations.yaml", "kubernetes.yaml"] {
            local.apply(&manifest(name));
        }
        local.kubectl(&["create", "namespace", "remotes"]);
        let args = ["-n", "remotes", "apply", "-f", "-"];
        let access = manifest("secret-access.yaml");
        assert!(local.kubectl_with(&local.admin(), &args, Some(&access)).status.success());
        let pair = Self { local, remote, _lab: lab };
        pair.prepare_remote();
        pair
    }

    fn prepare_remote(&self) {
        fill(&self.remote, Group::Storage);
        self.remote.apply(&manifest("remote-access.yaml"));
    }

    pub(crate) fn rcc(&self, name: &str, spec: &str) {
        self.local.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: RemoteClusterConfiguration\n\
             metadata: {{name: {name}}}\nspec: {spec}\n"
        ));
    }

    /// Writes the Secret; keys that are empty are left out.
    pub(crate) fn secret(&self, datastore: &str, kubeconfig: &str) {
        let mut data = serde_json::Map::new();
        for (key, value) in [("datastoreType", datastore), ("kubeconfig", kubeconfig)] {
            if !value.is_empty() {
                data.insert(key.to_owned(), value.into());
            }
        }
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "b", "namespace": "remotes"}, "stringData": data,
        });
        self.local.kubectl(&["-n", "remotes", "delete", "secret", "b", "--ignore-not-found"]);
        self.local.apply(&secret.to_string());
    }

    pub(crate) fn kubeconfig(&self) -> String {
        guide_kubeconfig(&self.remote, "kube-system", ACCOUNT)
    }
}

pub(crate) const BY_SECRET: &str = "{clusterAccessSecret: {kind: Secret, name: b, namespace: remotes}, \
                         syncOptions: {overlayRoutingMode: Enabled}}";

#[test]
fn each_error_is_told_with_its_remedy() {
    let Some(pair) = Pair::new("kube-errors") else { return };
    let joined = Joined::new(&pair.local);
    joined.until("nothing to join", |told| told.status.remotes.is_empty());
    pair.rcc("b", BY_SECRET);
    let says = |state: RemoteState, words: &str| {
        joined.until(words, |told| {
            let said = told.error("b");
            told.state("b") == Some(state) && words.split('|').any(|words| said.contains(words))
        });
    };
    let incomplete = RemoteState::ConfigIncomplete;
    says(incomplete, "Secret remotes/b: is not there; create it");
    let good = pair.kubeconfig();
    let user = "    token: ";
    let edit = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}: {good}");
        good.replace(from, to)
    };
    let line = |start: &str| good.lines().find(|line| line.trim().starts_with(start)).unwrap();
    let token = line("token:");
    for (datastore, kubeconfig, words) in [
        ("", good.clone(), "key datastoreType: is missing; set it to kubernetes"),
        ("etcdv3", good.clone(), "key datastoreType: is etcdv3, which Tieline does not read"),
        ("mysql", good.clone(), "key datastoreType: is \"mysql\"; write kubernetes"),
        ("kubernetes", String::new(), "key kubeconfig: is missing"),
        ("kubernetes", "a: [".into(), "key kubeconfig: text: is no kubeconfig"),
        ("kubernetes", "a: 1".into(), "kubeconfig: current-context: is missing"),
        (
            "kubernetes",
            edit("current-context: tigera", "current-context: other"),
            "current-context: there is no context \"other-federation-remote-cluster-ctx\"",
        ),
        ("kubernetes", edit("server: ", "elsewhere: "), "cluster.server: is missing; set it"),
        ("kubernetes", edit("https://", "http://"), "cluster.server: is http, which would tell"),
        (
            "kubernetes",
            edit("certificate-authority-data: ", "certificate-authority-data: __"),
            "cluster.certificate-authority-data: is no base64",
        ),
        (
            "kubernetes",
            edit(token, "    tokenFile: /etc/hostname"),
            "user.tokenFile: names a file of the node, which is not read for a Secret",
        ),
        (
            "kubernetes",
            edit(
                token,
                "    exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/false, \
                 interactiveMode: Never}",
            ),
            "user.exec: runs a program on this node",
        ),
    ] {
        pair.secret(datastore, &kubeconfig);
        says(incomplete, words);
    }
    // What only the way there tells.
    let server = pair.remote.url();
    let own = line("certificate-authority-data:").trim();
    let with_name = format!("{own}\n    tls-server-name: elsewhere.example");
    let local_ca = guide_authority(&pair.local);
    for (kubeconfig, words) in [
        (edit(":6443", ":6444"), "refuses connections; check that the API server runs"),
        // Here there may be no DNS that says so.
        (edit(&server, "https://nowhere.invalid:6443"), "is not found (|this node's DNS answers"),
        (edit(&server, "https://198.51.100.77:6443"), "can't be reached ("),
        (edit(own, &with_name), "has a certificate for another name ("),
        (
            edit(own, &format!("certificate-authority-data: {local_ca}")),
            "has a certificate of an authority that is not trusted",
        ),
        (edit(token, &format!("{user}nonsense")), "refuses the credentials (401"),
    ] {
        pair.secret("kubernetes", &kubeconfig);
        says(RemoteState::Connecting, words);
    }
    assert_eq!(joined.now().pods("b"), None);
    pair.secret("kubernetes", &good);
    joined.until("in sync", |told| told.pods("b") == Some(1) && told.error("b").is_empty());

    // Which cluster it is.
    pair.rcc("c", BY_SECRET);
    joined.until("two at one", |told| told.error("c").contains("is the same cluster as b"));
    let mut inline = "{datastoreType: kubernetes, kubeconfigInline: ".to_owned();
    inline += &serde_json::to_string(&good).unwrap();
    pair.rcc("d", &(inline + "}"));
    joined.until("two at one, by another way", |told| {
        told.state("d") == Some(RemoteState::Failed)
            && told.error("d").contains("is the same cluster as b")
    });
    pair.local.kubectl(&["delete", "remoteclusterconfigurations", "c", "d"]);
    pair.local.apply(&manifest("remote-access.yaml"));
    let own = guide_kubeconfig(&pair.local, "kube-system", ACCOUNT);
    pair.secret("kubernetes", &own);
    let told =
        joined.until("the local cluster", |told| told.state("b") == Some(RemoteState::Failed));
    assert!(told.error("b").contains("is the local cluster itself"), "{}", told.error("b"));
    assert_eq!(told.pods("b"), None);
}

/// The authority of a cluster, as kubeconfigs have it.
fn guide_authority(cluster: &ApiCluster) -> String {
    cluster.apply(&manifest("remote-access.yaml"));
    access::token_secret(cluster, "kube-system", ACCOUNT).1
}

#[test]
fn what_is_known_stays_in_force() {
    let Some(mut pair) = Pair::new("kube-faults") else { return };
    pair.rcc("b", BY_SECRET);
    pair.secret("kubernetes", &pair.kubeconfig());
    let joined = Joined::new(&pair.local);
    let in_sync = |what: &str, pods: usize| {
        joined.until(what, |told| {
            told.state("b") == Some(RemoteState::InSync)
                && told.pods("b") == Some(pods)
                && told.error("b").is_empty()
        })
    };
    let stale = |words: &str| {
        let told = joined.until(words, |told| {
            told.state("b") == Some(RemoteState::Stale) && told.error("b").contains(words)
        });
        assert_eq!(told.pods("b"), Some(1));
        told
    };
    in_sync("at first", 1);

    pair.remote.pause();
    stale("has not answered for 2 s");
    pair.remote.resume();
    in_sync("goes on", 1);

    // The Secret: deleted, emptied, broken, restored.
    pair.local.kubectl(&["-n", "remotes", "delete", "secret", "b"]);
    stale("is not there; create it");
    pair.secret("kubernetes", "");
    stale("key kubeconfig: is missing");
    pair.secret("kubernetes", "x: [");
    stale("is no kubeconfig");
    pair.secret("kubernetes", &pair.kubeconfig());
    in_sync("Secret restored", 1);

    // Killed; what happens meanwhile is known when it is back.
    pair.remote.kill();
    stale("refuses connections");
    pair.remote.revive();
    in_sync("revived", 1);
    pair.remote.expire_history();
    in_sync("history gone", 1);

    // A right that is taken away shows when it is used the next time.
    let role = access::keep(&pair.remote, "clusterrole", ACCOUNT);
    access::narrow(&pair.remote, ACCOUNT, "nodes");
    pair.remote.kill();
    pair.remote.revive();
    let told = joined.until("narrowed", |told| told.of("nodes").is_some());
    let words = told.of("nodes").unwrap();
    assert!(words.contains("cannot") && words.contains("on nodes; what was last known"), "{words}");
    assert_eq!(told.world.remotes["b"].objects.nodes.len(), 2);
    access::restore(&pair.remote, &role);
    joined.until("restored", |told| told.of("nodes").is_none());
    in_sync("restored", 1);

    // The local API may go: nothing changes, and the remote is still followed.
    pair.local.kill();
    joined.until("local API gone", |told| told.of("local cluster").is_some());
    pair.remote.kubectl(&["-n", "shop", "label", "pod", "web-0", "app=other", "--overwrite"]);
    joined.until("label", |told| {
        let pods = &told.world.remotes["b"].objects.pods;
        pods.values().any(|pod| pod.labels.get("app").is_some_and(|app| app == "other"))
    });
    pair.local.revive();
    joined.until("local API back", |told| told.of("local cluster").is_none());
    in_sync("local API back", 1);

    // The authority changes: told, then taken over with the Secret.
    pair.remote.rotate_certificate();
    pair.remote.kubectl(&["get", "nodes"]);
    pair.secret("kubernetes", &pair.kubeconfig());
    in_sync("rotated", 1);

    // Another cluster behind the address: its objects take the old one's place
    // when all of them are known, and people are told.
    pair.remote.replace();
    stale("(401");
    pair.prepare_remote();
    pair.remote.kubectl(&["-n", "shop", "delete", "pod", "web-0", "--force", "--grace-period=0"]);
    let told = joined.now();
    assert_eq!(told.pods("b"), Some(1));
    pair.secret("kubernetes", &pair.kubeconfig());
    let told = in_sync("replaced", 0);
    let words = told.of("Namespace kube-system").unwrap();
    assert!(words.contains("another cluster answers than before"), "{words}");

    // All of it goes with the configuration.
    pair.local.kubectl(&["delete", "remoteclusterconfigurations", "b"]);
    joined.until("withdrawn", |told| told.world.remotes.is_empty());
    std::thread::sleep(Duration::from_millis(100));
    assert!(joined.now().status.remotes.is_empty());
}
