//! What is written for Felix, on a real API server with the rights that are
//! shipped: sets and pools come, follow, are put back and go, whatever happens to
//! the writer and the server.
//!
//! The remote clusters are states of the world made here; how they are read
//! from real ones is others' to test.
#![forbid(unsafe_code)]

mod crowd;
mod faults;
mod figures;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tieline::cluster::kubernetes::{self, Access, Options};
use tieline::derive::derive;
use tieline::map::Map;
use tieline::mirror::object::Storage;
use tieline::mirror::{Input, Mirror, MirrorStatus, Modes, Place};
use tieline::policy::api::{PolicyKind, PolicyObjects, parse};
use tieline::state::{
    ClusterObjects, Encapsulation, FelixConfiguration, IpPool, Labels, ObjectName, Pod,
    RemoteCluster, World,
};
use tieline_lab::Lab;
use tieline_tests::kube::access::account_kubeconfig;
use tieline_tests::kube::calico::Group;
use tieline_tests::kube::{ApiCluster, program};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(60);
const AUTO: Modes = Modes { mirror: true, pools: true };

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/manifests").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// The state of the world: remote clusters with pods, by number of the cluster.
#[derive(Clone, Default)]
struct State {
    /// Address and value of the label `app`, by cluster and pod.
    pods: BTreeMap<(u8, u32), (IpAddr, String)>,
    /// Values of `app` that local policies ask for.
    asked: BTreeSet<String>,
    unknown: BTreeSet<u8>,
    storage: Option<Storage>,
}

fn cluster(number: u8) -> Arc<str> {
    format!("remote-{number}").into()
}

impl State {
    fn pod(&mut self, cluster: u8, number: u32, app: &str) {
        let [_, _, high, low] = number.to_be_bytes();
        let address = IpAddr::from([10, 100 + cluster, high, low]);
        self.pods.insert((cluster, number), (address, app.to_owned()));
    }

    fn input(&self) -> Input {
        let mut local = ClusterObjects::default();
        local.felix.insert("default".into(), Arc::new(FelixConfiguration::default()));
        local.pools.insert("own".into(), Arc::new(pool("10.1.0.0/16")));
        local.policy = policies(&self.asked);
        let mut remotes = BTreeMap::new();
        let clusters: BTreeSet<u8> = self.pods.keys().map(|(cluster, _)| *cluster).collect();
        for number in clusters {
            let of = self.pods.range((number, 0)..=(number, u32::MAX));
            let pods: Map<ObjectName, Arc<Pod>> = of
                .map(|((_, number), (address, app))| {
                    let name = ObjectName { namespace: "n".into(), name: format!("p{number}") };
                    let labels: Labels = [("app", &**app), ("pod-template-hash", &name.name[1..])]
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .into();
                    let pod = Pod {
                        labels: labels.into(),
                        node: "node".into(),
                        service_account: "default".into(),
                        addresses: Box::new([*address]),
                        ports: Arc::default(),
                    };
                    (name, Arc::new(pod))
                })
                .collect();
            let pools = [("p".to_owned(), Arc::new(pool(&format!("10.{}.0.0/16", 100 + number))))];
            let objects = ClusterObjects {
                pods,
                pools: pools.into_iter().collect(),
                ..ClusterObjects::default()
            };
            remotes.insert(
                cluster(number),
                RemoteCluster { overlay: true, objects: Arc::new(objects) },
            );
        }
        let world =
            World { node: "n".into(), include_local_vteps: false, local: Arc::new(local), remotes };
        Input {
            derived: Arc::new(derive(Arc::new(world))),
            unknown: self.unknown.iter().map(|number| cluster(*number)).collect(),
            remotes: BTreeMap::new(),
            storage: self.storage,
        }
    }

    /// The addresses that each asked value selects.
    fn wanted(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let mut wanted: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (address, app) in self.pods.values().filter(|(_, app)| self.asked.contains(app)) {
            wanted.entry(app).or_default().insert(format!("{address}/32"));
        }
        wanted
    }
}

fn pool(cidr: &str) -> IpPool {
    let encapsulation = Encapsulation::Vxlan;
    IpPool { cidr: cidr.parse().unwrap(), encapsulation, nat_outgoing: true, disabled: false }
}

fn policies(asked: &BTreeSet<String>) -> PolicyObjects {
    let policies = asked.iter().enumerate().map(|(number, app)| {
        let object = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": "n"},
            "spec": {"ingress": [
                {"action": "Allow", "source": {"selector": format!("app == '{app}'")}},
            ]},
        });
        let (name, policy) = parse(PolicyKind::NetworkPolicy, &object).unwrap();
        ((PolicyKind::NetworkPolicy, name), Arc::new(policy))
    });
    PolicyObjects(policies.collect())
}

/// A daemon's mirror.
struct Daemon {
    mirror: Mirror,
    modes: watch::Sender<Modes>,
    input: watch::Sender<Option<Input>>,
}

impl Daemon {
    async fn start(kubeconfig: &Path, node: &str, state: &State) -> Self {
        Self::with(kubeconfig, node, state.input()).await
    }

    async fn with(kubeconfig: &Path, node: &str, input: Input) -> Self {
        // Without its sender it stays as it is.
        let client = watch::channel(client(kubeconfig).await).1;
        let (modes, told) = watch::channel(AUTO);
        let (input, inputs) = watch::channel(Some(input));
        let place = Place { client, namespace: "tieline-system".into(), node: node.into() };
        Self { mirror: Mirror::start(place, told, inputs), modes, input }
    }

    fn set(&self, state: &State) {
        self.input.send_replace(Some(state.input()));
    }

    fn status(&self) -> Arc<MirrorStatus> {
        self.mirror.status()
    }

    /// How many writes there were, once there are no more. A write is counted when
    /// it is answered, which what is in the API shows before.
    async fn settled_writes(&self) -> u64 {
        loop {
            let writes = self.status().writes;
            tokio::time::sleep(Duration::from_secs(2)).await;
            if self.status().writes == writes {
                return writes;
            }
        }
    }

    async fn until(&self, what: &str, wanted: impl Fn(&MirrorStatus) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.status()) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let access = Access::Kubeconfig(kubeconfig.to_owned());
    let made = kubernetes::client(&access, &Options::default(), None).await.unwrap();
    made.unwrap().0
}

/// Our GlobalNetworkSets in the API: the addresses by value of `app`, whose
/// sets' labels must be like a pod's.
fn present(api: &ApiCluster, group: Group) -> BTreeMap<String, BTreeSet<String>> {
    let kind = format!("globalnetworksets.{}", plural(group));
    let list = api.get(&[&kind, "-l", "tieline/remote-cluster"]);
    let mut present: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for set in list["items"].as_array().unwrap() {
        let labels = &set["metadata"]["labels"];
        assert_eq!(labels["projectcalico.org/orchestrator"], "k8s", "{set}");
        assert_eq!(labels["projectcalico.org/namespace"], "n", "{set}");
        let kept = &set["metadata"]["annotations"]["projectcalico.org/metadata"];
        match group {
            Group::Storage => {
                let kept: Value = serde_json::from_str(kept.as_str().unwrap()).unwrap();
                assert_eq!(&kept["labels"], labels);
            }
            Group::Native => assert!(kept.is_null()),
        }
        let app = labels["app"].as_str().unwrap().to_owned();
        let nets = set["spec"]["nets"].as_array().unwrap().iter();
        let nets = nets.map(|net| net.as_str().unwrap().to_owned());
        present.entry(app).or_default().extend(nets);
    }
    present
}

fn plural(group: Group) -> &'static str {
    match group {
        Group::Storage => "v1.crd.projectcalico.org",
        Group::Native => "v3.projectcalico.org",
    }
}

async fn eventually(api: &ApiCluster, group: Group, what: &str, state: &State) {
    let begun = Instant::now();
    loop {
        let now = present(api, group);
        let wanted = state.wanted();
        if now
            .iter()
            .map(|(app, nets)| (app.as_str(), nets))
            .eq(wanted.iter().map(|(k, v)| (*k, v)))
        {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {now:?} instead of {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn pools(api: &ApiCluster, group: Group) -> Vec<String> {
    let list = api.get(&[&format!("ippools.{}", plural(group)), "-l", "tieline/remote-cluster"]);
    let items = list["items"].as_array().unwrap().iter();
    items.map(|pool| pool["spec"]["cidr"].as_str().unwrap().to_owned()).collect()
}

/// A cluster with Calico's kinds in a group, and the daemon's account.
fn ready(lab: &Lab, program: &Path, group: Group) -> (ApiCluster, PathBuf) {
    let api = ApiCluster::alone(lab, program, "a");
    install(&api, &group.crds());
    // Of the whole only names and rights: nothing runs daemonsets here.
    api.apply(&manifest("kubernetes.yaml"));
    let kubeconfig = account_kubeconfig(&api, "tieline-system", "tieline");
    (api, kubeconfig)
}

/// Applies CustomResourceDefinitions and waits until they are served.
fn install(api: &ApiCluster, crds: &str) {
    api.apply(crds);
    api.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
}

/// Runs inside the cluster's namespace, where its API server is reached.
fn within<F: Future<Output = ()>>(api: &ApiCluster, test: impl FnOnce() -> F + Send) {
    api.netns()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(test());
        })
        .unwrap();
}

fn example() -> State {
    let mut state = State { storage: Some(Storage::Crd), ..State::default() };
    for number in 1..=20 {
        state.pod(1, number, if number % 2 == 0 { "pg" } else { "web" });
        state.pod(2, number, "pg");
    }
    state.asked = ["pg".to_owned(), "cache".to_owned()].into();
    state
}

fn life(group: Group, name: &str) {
    let Some(program) = program() else { return };
    let lab = Lab::new(name).unwrap();
    let (api, kubeconfig) = ready(&lab, program, group);
    within(&api, || async {
        // What is there already is nobody's of ours.
        let foreign = |name: &str, kind: &str, spec: Value| {
            json!({"apiVersion": group.api_version(), "kind": kind,
                   "metadata": {"name": name, "labels": {"app": "pg"}}, "spec": spec})
        };
        let foreign_set = foreign("theirs", "GlobalNetworkSet", json!({"nets": ["192.0.2.0/24"]}));
        let foreign_pool = foreign("theirs", "IPPool", json!({"cidr": "10.77.0.0/16"}));
        api.apply(&foreign_set.to_string());
        api.apply(&foreign_pool.to_string());

        let mut state = example();
        state.storage = Storage::of(group.api_version());
        let daemon = Daemon::start(&kubeconfig, "node-a", &state).await;
        eventually(&api, group, "at the start", &state).await;
        assert_eq!(pools(&api, group), ["10.101.0.0/16", "10.102.0.0/16"]);
        let writes = daemon.settled_writes().await;

        // A pod comes, one goes, one has other labels.
        state.pod(1, 21, "pg");
        state.pods.remove(&(2, 3));
        state.pod(1, 2, "cache");
        daemon.set(&state);
        eventually(&api, group, "pods", &state).await;
        let made = daemon.settled_writes().await - writes;
        assert!(made <= 3, "{made} {:?}", daemon.status());

        // A policy asks for more, another for less.
        state.asked = ["web".to_owned(), "cache".to_owned()].into();
        daemon.set(&state);
        eventually(&api, group, "policies", &state).await;

        // What others change is put back.
        let kind = format!("globalnetworksets.{}", plural(group));
        let ours = api.get(&[&kind, "-l", "app=web"])["items"][0]["metadata"]["name"].clone();
        let ours = ours.as_str().unwrap();
        for patch in [
            json!({"spec": {"nets": ["203.0.113.1/32"]}}),
            json!({"metadata": {"labels": {"app": "pg"}}}),
            json!({"metadata": {"labels": {"more": "than-ours"}}}),
            json!({"metadata": {"labels": {"tieline/remote-cluster": null}}, "spec": {"nets": []}}),
        ] {
            let (patch, begun) = (patch.to_string(), Instant::now());
            api.kubectl(&["patch", &kind, ours, "--type=merge", "-p", &patch]);
            loop {
                let set = api.get(&[&kind, ours]);
                let labels = set["metadata"]["labels"].as_object().unwrap();
                if labels.len() == 4
                    && labels["app"] == "web"
                    && set["spec"]["nets"].as_array().unwrap().len() == 10
                {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{patch} stays: {set}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        api.kubectl(&["delete", &kind, ours]);
        eventually(&api, group, "a deleted set", &state).await;

        // Nothing happens: nothing is written.
        let quiet = daemon.settled_writes().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(daemon.status().writes, quiet);
        assert_eq!(daemon.status().waiting, 0);

        // A remote of which nothing is known yet keeps what it has.
        let before = state.clone();
        state.unknown.insert(1);
        state.pods.retain(|(cluster, _), _| *cluster != 1);
        daemon.set(&state);
        tokio::time::sleep(Duration::from_secs(1)).await;
        eventually(&api, group, "unknown", &before).await;

        // One that is left takes all of its own along.
        state.unknown.clear();
        daemon.set(&state);
        eventually(&api, group, "left", &state).await;
        assert_eq!(pools(&api, group), ["10.102.0.0/16"]);
        state.asked.insert("pg".to_owned());
        daemon.set(&state);
        eventually(&api, group, "asked for", &state).await;

        // Switched off.
        daemon.modes.send_replace(Modes { mirror: false, pools: false });
        eventually(&api, group, "off", &State::default()).await;
        let begun = Instant::now();
        while !pools(&api, group).is_empty() {
            assert!(begun.elapsed() < PATIENCE);
        }
        daemon.mirror.stop().await;
        for (kind, spec) in
            [("globalnetworksets", &foreign_set["spec"]), ("ippools", &foreign_pool["spec"])]
        {
            let left = api.get(&[&format!("{kind}.{}", plural(group))]);
            let left = left["items"].as_array().unwrap();
            assert_eq!(left.len(), 1, "{left:?}");
            assert_eq!(&left[0]["spec"], spec);
        }
    });
}

#[test]
fn a_mirrors_life_in_the_storage_group() {
    life(Group::Storage, "mirror-v1");
}

#[test]
fn a_mirrors_life_in_the_native_group() {
    life(Group::Native, "mirror-v3");
}
