//! Figures, printed as JSON. Of a small cluster by default, to see that they
//! can be had; those that count take minutes:
//!
//! ```text
//! TIELINE_MIRROR_PODS=50000 \
//!   cargo test --release -p tieline-tests --test kube_mirror -- --nocapture figures
//! ```

use std::collections::HashMap;
use std::sync::Mutex;

use futures::StreamExt;
use kube::core::DynamicObject;
use kube::runtime::watcher;
use tieline::derive::{Derived, Deriver};

use super::*;

const CLUSTERS: u8 = 3;
/// Pods of a cluster that only shows that figures can be had.
const FEW: u32 = 2_000;
const NAMESPACES: u32 = 100;

/// A large state of the world, of which parts change.
struct Large {
    local: Arc<ClusterObjects>,
    remotes: Vec<ClusterObjects>,
    deriver: Deriver,
    /// Addresses given out, by cluster.
    given: [u16; CLUSTERS as usize],
    /// The pods that there are, by number.
    names: HashMap<u32, ObjectName>,
}

impl Large {
    fn new(pods: u32) -> Self {
        let mut local = ClusterObjects::default();
        local.felix.insert("default".into(), Arc::new(FelixConfiguration::default()));
        local.pools.insert("own".into(), Arc::new(pool("10.1.0.0/16")));
        local.policy = large_policies();
        let mut remotes = Vec::new();
        for number in 0..CLUSTERS {
            let mut objects = ClusterObjects::default();
            let cidr = format!("10.{}.0.0/16", 100 + number);
            objects.pools.insert("p".into(), Arc::new(pool(&cidr)));
            for namespace in 0..NAMESPACES {
                let labels: Labels = [
                    ("kubernetes.io/metadata.name", format!("ns-{namespace}")),
                    ("env", ["prod", "test", "dev"][namespace as usize % 3].to_owned()),
                ]
                .map(|(key, value)| (key.to_owned(), value))
                .into();
                objects.namespaces.insert(format!("ns-{namespace}"), Arc::new(labels));
            }
            remotes.push(objects);
        }
        let mut large = Self {
            local: Arc::new(local),
            remotes,
            deriver: Deriver::default(),
            given: [0; CLUSTERS as usize],
            names: HashMap::new(),
        };
        for number in 0..pods {
            large.add(number);
        }
        large
    }

    /// Adds a pod of this number: its labels follow from that, its address is
    /// one that no pod has had.
    fn add(&mut self, number: u32) -> IpAddr {
        let cluster = (number % u32::from(CLUSTERS)) as usize;
        let place = number / u32::from(CLUSTERS);
        let app = place % 1000;
        let labels: Labels = [
            ("app", format!("app-{}", app % 100)),
            ("team", format!("team-{}", app % 10)),
            ("version", format!("v{}", app % 4)),
            ("app.kubernetes.io/name", format!("app-{app}")),
            ("pod-template-hash", format!("{:x}", app * 7919)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        self.given[cluster] += 1;
        let [high, low] = self.given[cluster].to_be_bytes();
        let address = IpAddr::from([10, 100 + cluster as u8, high, low]);
        let pod = Pod {
            labels: labels.into(),
            node: format!("node-{}", place % 200).into(),
            service_account: format!("sa-{}", app % 20).into(),
            addresses: Box::new([address]),
            ports: Arc::default(),
        };
        let name = ObjectName {
            namespace: format!("ns-{}", app % NAMESPACES),
            name: format!("pod-{number}-{high}-{low}"),
        };
        self.remotes[cluster].pods.insert(name.clone(), Arc::new(pod));
        self.names.insert(number, name);
        address
    }

    fn remove(&mut self, number: u32, name: &ObjectName) {
        self.remotes[(number % u32::from(CLUSTERS)) as usize].pods.remove(name);
    }

    fn derived(&mut self) -> Arc<Derived> {
        let remotes = self.remotes.iter().zip(0..).map(|(objects, number)| {
            let objects = Arc::new(objects.clone());
            (cluster(number), RemoteCluster { overlay: true, objects })
        });
        let world = World {
            node: "n".into(),
            include_local_vteps: false,
            local: self.local.clone(),
            remotes: remotes.collect(),
        };
        Arc::new(self.deriver.derive(Arc::new(world)))
    }

    fn input(&mut self) -> Input {
        Input {
            derived: self.derived(),
            unknown: BTreeSet::new(),
            remotes: BTreeMap::new(),
            storage: Some(Storage::Crd),
        }
    }
}

/// 200 policies, of the forms that people write.
fn large_policies() -> PolicyObjects {
    let policy = |number: u32| -> (PolicyKind, Value) {
        let namespace = format!("ns-{}", number % NAMESPACES);
        let app = format!("app-{}", number % 100);
        match number % 5 {
            0 => (
                PolicyKind::KubernetesNetworkPolicy,
                json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"name": format!("p{number}"), "namespace": namespace},
                    "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                        {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]},
                }),
            ),
            1 => (
                PolicyKind::KubernetesNetworkPolicy,
                json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"name": format!("p{number}"), "namespace": namespace},
                    "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                        {"from": [{"namespaceSelector": {"matchLabels":
                            {"kubernetes.io/metadata.name": format!("ns-{}", (number * 7) % NAMESPACES)}}}]}]},
                }),
            ),
            2 => (
                PolicyKind::NetworkPolicy,
                json!({
                    "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
                    "metadata": {"name": format!("p{number}"), "namespace": namespace},
                    "spec": {"egress": [{"action": "Allow", "destination":
                        {"selector": format!("app == '{app}' && version in {{'v1', 'v2'}}")}}]},
                }),
            ),
            3 => (
                PolicyKind::GlobalNetworkPolicy,
                json!({
                    "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
                    "metadata": {"name": format!("p{number}")},
                    "spec": {"ingress": [{"action": "Allow", "source": {
                        "selector": format!("team == 'team-{}'", number % 10),
                        "namespaceSelector": "env == 'prod'"}}]},
                }),
            ),
            _ => (
                PolicyKind::NetworkPolicy,
                json!({
                    "apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy",
                    "metadata": {"name": format!("p{number}"), "namespace": namespace},
                    "spec": {"ingress": [{"action": "Allow", "source":
                        {"serviceAccounts": {"names": [format!("sa-{}", number % 20)]}}}]},
                }),
            ),
        }
    };
    let policies = (0..200).map(|number| {
        let (kind, object) = policy(number);
        let (name, policy) = parse(kind, &object).unwrap();
        ((kind, name), Arc::new(policy))
    });
    PolicyObjects(policies.collect())
}

/// Requests of all clients for what the mirror writes, by verb, as the server
/// counts them; watches apart.
fn requests(api: &ApiCluster) -> u64 {
    let metrics = api.kubectl(&["get", "--raw", "/metrics"]);
    let ours = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && ["globalnetworksets", "ippools"].iter().any(|it| line.contains(&format!("\"{it}\"")))
            && !line.contains("verb=\"WATCH\"")
    };
    let counts = metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next());
    counts.filter_map(|count| count.parse::<f64>().ok()).sum::<f64>() as u64
}

fn leases(api: &ApiCluster) -> u64 {
    let metrics = api.kubectl(&["get", "--raw", "/metrics"]);
    let ours = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && line.contains("\"leases\"")
            && line.contains("\"PUT\"")
            && line.contains("scope=\"resource\"")
    };
    let counts = metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next());
    counts.filter_map(|count| count.parse::<f64>().ok()).sum::<f64>() as u64
}

fn milliseconds(of: Duration) -> f64 {
    (of.as_secs_f64() * 10_000.0).round() / 10.0
}

/// When addresses came to sets, as a watch of the API tells.
struct Watched(Arc<Mutex<HashMap<IpAddr, Instant>>>);

impl Watched {
    async fn start(kubeconfig: &Path) -> Self {
        let kind = Storage::Crd.resource("GlobalNetworkSet");
        let sets = kube::Api::<DynamicObject>::all_with(client(kubeconfig).await, &kind);
        let came = Arc::new(Mutex::new(HashMap::new()));
        let watched = Self(came.clone());
        tokio::spawn(async move {
            let mut before: HashMap<String, BTreeSet<IpAddr>> = HashMap::new();
            let mut stream = watcher(sets, watcher::Config::default()).boxed();
            while let Some(event) = stream.next().await {
                let (watcher::Event::Apply(set) | watcher::Event::InitApply(set)) = event.unwrap()
                else {
                    continue;
                };
                let nets = set.data["spec"]["nets"].as_array().unwrap().iter();
                let addresses = nets.map(|net| net.as_str().unwrap().split_once('/').unwrap().0);
                let addresses: BTreeSet<IpAddr> = addresses.map(|it| it.parse().unwrap()).collect();
                let known = before.entry(set.metadata.name.unwrap()).or_default();
                let mut came = came.lock().unwrap();
                for new in addresses.difference(known) {
                    came.entry(*new).or_insert_with(Instant::now);
                }
                *known = addresses;
            }
        });
        watched
    }

    /// How long pods took that were added at these times. Those that no policy
    /// asks for never come.
    fn latencies(&self, added: &[(IpAddr, Instant)]) -> Value {
        let came = self.0.lock().unwrap();
        let latency =
            |(address, at): &(IpAddr, Instant)| Some(came.get(address)?.duration_since(*at));
        let mut all: Vec<Duration> = added.iter().filter_map(latency).collect();
        all.sort();
        let at = |share: f64| milliseconds(all[((all.len() - 1) as f64 * share) as usize]);
        json!({"samples": all.len(), "median": at(0.5), "p99": at(0.99), "longest": at(1.0)})
    }
}

/// How much is done for the figures.
struct Effort {
    pods: u32,
    samples: u32,
    settle: Duration,
    churn: Duration,
    idle: Duration,
}

impl Effort {
    fn asked() -> Self {
        let (seconds, whole) = (Duration::from_secs, std::env::var("TIELINE_MIRROR_PODS").ok());
        match whole.map(|pods| pods.parse().expect("TIELINE_MIRROR_PODS: a number")) {
            Some(pods) => Self {
                pods,
                samples: 120,
                settle: seconds(30),
                churn: seconds(60),
                idle: seconds(30),
            },
            None => Self {
                pods: FEW,
                samples: 3,
                settle: seconds(3),
                churn: seconds(3),
                idle: seconds(3),
            },
        }
    }
}

#[test]
fn figures() {
    let effort = Effort::asked();
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-figures").unwrap();
    let (api, kubeconfig) = ready(&lab, program, Group::Storage);
    let run = || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let mut large = Large::new(effort.pods);
        let begun = Instant::now();
        let input = large.input();
        let derive = begun.elapsed();
        let begun = Instant::now();
        let daemon = runtime.block_on(Daemon::with(&kubeconfig, "node-a", input));
        let wait = |what: &str, wanted: &dyn Fn(&MirrorStatus) -> bool, within: Duration| {
            let begun = Instant::now();
            while !wanted(&daemon.status()) {
                assert!(begun.elapsed() < within, "{what}: {:?}", daemon.status());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let long = Duration::from_secs(300);
        wait(
            "all is written",
            &|it| it.state == "writing" && it.writes > 0 && it.waiting == 0,
            long,
        );
        let first = begun.elapsed();
        let status = daemon.status();
        let sets: usize = status.clusters.values().map(|it| it.sets).sum();
        let addresses: usize = status.clusters.values().map(|it| it.addresses).sum();

        let watched = runtime.block_on(Watched::start(&kubeconfig));

        // One pod after another, not too many a second: until each is there.
        let mut working_out = Vec::new();
        let mut added = Vec::new();
        for number in 0..effort.samples {
            std::thread::sleep(Duration::from_millis(1100));
            let address = large.add(effort.pods + number * 37);
            let begun = Instant::now();
            let input = large.input();
            working_out.push(begun.elapsed());
            added.push((address, Instant::now()));
            daemon.input.send_replace(Some(input));
        }
        std::thread::sleep(Duration::from_secs(5));
        let alone = watched.latencies(&added);
        working_out.sort();

        // Pods give way to others of their kind, a hundred changes a second.
        let mut churn = |numbers: Vec<u32>| {
            std::thread::sleep(effort.settle);
            let (before, begun) = (daemon.status().writes, Instant::now());
            let (mut changes, mut added, mut old) = (0, Vec::new(), None);
            while begun.elapsed() < effort.churn {
                let due = (begun.elapsed().as_secs_f64() * 100.0) as u32;
                let new = added.len();
                while changes < due {
                    let number = numbers[changes as usize / 2 % numbers.len()];
                    match old.take() {
                        None => {
                            old = large.names.get(&number).cloned();
                            added.push((large.add(number), Instant::now()));
                        }
                        Some(name) => large.remove(number, &name),
                    }
                    changes += 1;
                }
                let input = large.input();
                let now = Instant::now();
                added[new..].iter_mut().for_each(|(_, at)| *at = now);
                daemon.input.send_replace(Some(input));
                std::thread::sleep(Duration::from_millis(20));
            }
            let (writes, seconds) = (daemon.status().writes - before, begun.elapsed());
            wait("what is left is written", &|it| it.waiting == 0, long);
            std::thread::sleep(Duration::from_secs(2));
            json!({
                "changes_per_second": f64::from(changes) / seconds.as_secs_f64(),
                "writes_per_second": writes as f64 / seconds.as_secs_f64(),
                "writes_per_hundred_changes": writes as f64 * 100.0 / f64::from(changes),
                "writes_afterwards": daemon.status().writes - before - writes,
                "pod_to_set_ms": watched.latencies(&added),
            })
        };
        let kind = |number: &u32| number / u32::from(CLUSTERS) % 1000;
        let rollout = churn((0..effort.pods).filter(|it| kind(it) < 5).collect());
        let everywhere = (0..effort.pods).map(|at| at.wrapping_mul(7919) % effort.pods);
        let everywhere = churn(everywhere.collect());

        let (before, renewals) = (requests(&api), leases(&api));
        std::thread::sleep(effort.idle);
        let idle = json!({
            "seconds": effort.idle.as_secs(), "requests": requests(&api) - before,
            "lease_renewals": leases(&api) - renewals,
        });
        let begun = Instant::now();
        large.remotes.truncate(2);
        daemon.input.send_replace(Some(large.input()));
        wait("a remote is left", &|it| it.clusters.len() == 2 && it.waiting == 0, long);
        let left = begun.elapsed();
        runtime.block_on(daemon.mirror.stop());
        let figures = json!({
            "remotes": CLUSTERS, "pods": effort.pods, "policies": 200,
            "sets": sets, "addresses_in_sets": addresses,
            "first_complete_ms": milliseconds(first),
            "derive_ms": milliseconds(derive),
            "pod_to_set_ms": alone,
            "derive_one_pod_ms": milliseconds(working_out[working_out.len() / 2]),
            "rollout": rollout, "churn_everywhere": everywhere,
            "idle": idle, "remote_left_ms": milliseconds(left),
        });
        println!("{}", serde_json::to_string_pretty(&figures).unwrap());
    };
    api.netns().run(run).unwrap();
}
