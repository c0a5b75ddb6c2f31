use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::files::{Content, Files, Loaded, load};
use crate::cluster::{Source, View};
use crate::resolve::resolve;
use crate::state::ClusterObjects;

fn config() -> FederationConfig {
    FederationConfig {
        node: "n".into(),
        datastore: Datastore::Files {
            local: "local".into(),
            remotes: [("b".into(), "b".into()), ("c".into(), "c".into())].into(),
        },
        include_local_vteps: false,
        stale: StalePolicy::Keep,
    }
}

/// Says nothing by itself: tests step the members.
struct Silent;

impl Source for Silent {
    fn start(self: Box<Self>) -> Feed {
        let (sender, events) = mpsc::channel(1);
        Feed { events, stop: Box::new(sender) }
    }
}

/// Other directories of remote clusters.
fn reading(remotes: &[(&str, &str)]) -> FederationConfig {
    let remotes = remotes.iter().map(|(name, path)| ((*name).to_owned(), path.into())).collect();
    FederationConfig { datastore: Datastore::Files { local: "local".into(), remotes }, ..config() }
}

fn directories(local: &Path, b: PathBuf) -> Datastore {
    Datastore::Files { local: local.into(), remotes: [("b".to_owned(), b)].into() }
}

fn federation(stale: StalePolicy) -> Federation {
    Federation::with_sources(
        FederationConfig { stale, ..config() },
        Box::new(|_, _| Box::new(Silent)),
    )
}

fn view_of(cluster: &ClusterId, yaml: &str) -> View {
    let files = Files::from([("a.yaml".into(), Content::Bytes(yaml.as_bytes().to_vec()))]);
    load(&Loaded::new(cluster.clone()), files).view().clone()
}

fn remote_view(yaml: &str) -> View {
    view_of(&ClusterId::Remote("b".into()), yaml)
}

fn rcc(name: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: RemoteClusterConfiguration\n\
         metadata: {{name: {name}}}\nspec: {{syncOptions: {{overlayRoutingMode: {mode}}}}}\n"
    )
}

fn namespace(name: &str, uid: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, uid: '{uid}'}}\n")
}

fn pod(name: &str, addr: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: d}}\n\
         spec: {{nodeName: n}}\nstatus: {{podIP: {addr}}}\n"
    )
}

/// Past the time for which remote clusters are waited for at the start.
fn later(federation: &Federation) -> Instant {
    federation.started + 2 * federation.config.datastore.start()
}

impl Federation {
    fn tell(&mut self, name: &str, event: SourceEvent, now: Instant) {
        let member =
            if name == "local" { &mut self.local } else { self.remotes.get_mut(name).unwrap() };
        member.remote.step(event, now);
    }

    fn local_is(&mut self, yaml: &str, now: Instant) -> Option<Arc<World>> {
        self.tell("local", SourceEvent::Synced(view_of(&ClusterId::Local, yaml)), now);
        self.refresh(now)
    }

    fn state_of(&self, name: &str) -> RemoteState {
        self.remotes[name].state
    }

    fn told(&self) -> Vec<String> {
        let tell = |c: &Condition| format!("{:?} {}: {}", c.severity, c.object, c.message);
        self.conditions.iter().map(tell).collect()
    }
}

#[test]
fn nothing_before_the_first_complete_state() {
    let mut all = federation(StalePolicy::Keep);
    let now = later(&all);
    assert!(all.refresh(now).is_none());
    all.tell("local", SourceEvent::Connected, now);
    assert!(all.refresh(now).is_none());
    let world = all.local_is(&rcc("b", "Enabled"), now).expect("the local cluster is known");
    assert_eq!(world.remotes, BTreeMap::new());
    assert_eq!(all.state_of("b"), RemoteState::Connecting);
    all.tell("b", SourceEvent::Connected, now);
    let same_world = all.refresh(now).expect("a state has changed");
    assert!(Arc::ptr_eq(&world, &same_world));
    assert_eq!(all.state_of("b"), RemoteState::Syncing);
    all.tell("b", SourceEvent::Synced(remote_view(&pod("p", "10.0.0.1"))), now);
    let world = all.refresh(now).expect("the remote is known");
    assert_eq!(all.state_of("b"), RemoteState::InSync);
    assert_eq!(world.remotes["b"].objects.pods.len(), 1);
    assert!(world.remotes["b"].overlay);
    assert!(all.refresh(now).is_none(), "nothing has changed");
}

#[test]
fn the_start_waits_for_remotes_but_not_for_long() {
    let mut all = federation(StalePolicy::Keep);
    let now = all.started;
    let start = all.config.datastore.start();
    let both = rcc("b", "Enabled") + &rcc("c", "Enabled");
    assert!(all.local_is(&both, now).is_none());
    all.tell("b", SourceEvent::Synced(View::default()), now);
    assert!(all.refresh(now).is_none());
    assert!(all.next_deadline().is_some_and(|at| at <= all.started + start));
    assert!(!all.settled());
    all.tell("c", SourceEvent::Lost("no".into()), now);
    assert!(all.settled());
    assert_eq!(all.refresh(now).expect("both have told").remotes.len(), 1);

    let mut all = federation(StalePolicy::Keep);
    let now = all.started;
    let start = all.config.datastore.start();
    assert!(all.local_is(&both, now).is_none());
    assert!(all.refresh(now + start).is_some(), "waited long enough");

    let mut all = federation(StalePolicy::Keep);
    let now = all.started;
    assert!(all.local_is(&rcc("unmapped", "Enabled"), now).is_some(), "nothing to wait for");
}

#[test]
fn an_unmapped_remote_is_incomplete() {
    let mut all = federation(StalePolicy::Keep);
    let now = later(&all);
    all.local_is(&rcc("x", "Enabled"), now).expect("a world");
    assert_eq!(all.state_of("x"), RemoteState::ConfigIncomplete);
    assert_eq!(
        all.told(),
        ["Error RemoteClusterConfiguration x: the configuration names no directory for it; add \
             x to the remotes; nothing of it is in force"]
    );
    all.reconfigure(reading(&[("x", "there")]));
    assert!(all.refresh(now).is_some());
    assert_eq!(all.state_of("x"), RemoteState::Connecting);
}

/// A federation with remote `b` in sync, which has a pod.
fn in_sync(stale: StalePolicy) -> (Federation, Instant) {
    let mut all = federation(stale);
    let now = later(&all);
    all.local_is(&rcc("b", "Enabled"), now);
    all.tell("b", SourceEvent::Synced(remote_view(&pod("p", "10.0.0.1"))), now);
    all.refresh(now).expect("a world");
    (all, now)
}

fn lost() -> SourceEvent {
    SourceEvent::Lost("gone".into())
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn lost_contact_keeps_what_is_known() {
    let (mut all, now) = in_sync(StalePolicy::Keep);
    let world = all.world.clone().unwrap();
    all.tell("b", lost(), now);
    assert!(Arc::ptr_eq(&all.refresh(now).unwrap(), &world));
    assert_eq!(all.state_of("b"), RemoteState::Stale);
    assert_eq!(
        all.told(),
        ["Warning RemoteClusterConfiguration b: gone; what was last known stays in force"]
    );
    assert!(all.refresh(now + 1000 * HOUR).is_none());
    // Contact alone is no complete state.
    all.tell("b", SourceEvent::Connected, now);
    all.refresh(now);
    assert_eq!(all.state_of("b"), RemoteState::Stale);
    all.tell("b", SourceEvent::Synced(remote_view("")), now);
    let world = all.refresh(now).unwrap();
    assert_eq!(
        (all.state_of("b"), world.remotes["b"].objects.pods.len()),
        (RemoteState::InSync, 0)
    );
    assert_eq!(all.told(), [""; 0]);
}

#[test]
fn identities_expire_when_asked_for() {
    let (mut all, now) = in_sync(StalePolicy::ExpireIdentities(HOUR));
    all.tell("b", lost(), now);
    all.refresh(now);
    all.tell("b", SourceEvent::Lost("still".into()), now + HOUR / 2);
    assert_eq!(all.refresh(now + HOUR / 2).unwrap().remotes["b"].objects.pods.len(), 1);
    assert_eq!(
        all.remotes["b"].remote.expiry(all.config.stale),
        Some(now + HOUR),
        "since the loss"
    );
    let world = all.refresh(now + HOUR).expect("expired");
    assert_eq!(world.remotes["b"].objects.pods.len(), 0);
    assert_eq!(all.state_of("b"), RemoteState::Stale);
    assert!(all.told()[0].ends_with("its routes stay in force, its identities don't"));
    assert!(all.refresh(now + 2 * HOUR).is_none(), "the same objects as before");
    all.tell("b", SourceEvent::Synced(remote_view(&pod("p", "10.0.0.1"))), now + 2 * HOUR);
    assert_eq!(all.refresh(now + 2 * HOUR).unwrap().remotes["b"].objects.pods.len(), 1);
}

#[test]
fn everything_is_withdrawn_when_asked_for() {
    let (mut all, now) = in_sync(StalePolicy::Withdraw(HOUR));
    all.tell("b", lost(), now);
    assert_eq!(all.refresh(now).unwrap().remotes.len(), 1);
    let world = all.refresh(now + HOUR).expect("withdrawn");
    assert_eq!((world.remotes.len(), all.state_of("b")), (0, RemoteState::Withdrawn));
    assert!(all.told()[0].ends_with("nothing of it is in force"));
    // A live change of the policy counts at once.
    all.reconfigure(config());
    assert_eq!(all.refresh(now + HOUR).unwrap().remotes.len(), 1);
    assert_eq!(all.state_of("b"), RemoteState::Stale);
}

#[test]
fn overlay_toggles_and_deletion_withdraws() {
    let (mut all, now) = in_sync(StalePolicy::Keep);
    let world = all.local_is(&rcc("b", "Disabled"), now).expect("toggled");
    assert!(!world.remotes["b"].overlay);
    assert_eq!(world.remotes["b"].objects.pods.len(), 1, "identities stay");
    assert_eq!(all.status().remotes["b"].overlay_reason, "overlayRoutingMode is Disabled");
    let world = all.local_is("", now).expect("deleted");
    assert_eq!(world.remotes, BTreeMap::new());
    assert!(all.remotes.is_empty());
}

#[test]
fn a_remote_that_is_the_local_cluster_does_not_count() {
    let (mut all, now) = in_sync(StalePolicy::Keep);
    let local = rcc("b", "Enabled") + &namespace("kube-system", "1");
    all.local_is(&local, now);
    all.tell("b", SourceEvent::Updated(remote_view(&namespace("kube-system", "1"))), now);
    assert_eq!(all.refresh(now).unwrap().remotes, BTreeMap::new());
    assert_eq!(all.state_of("b"), RemoteState::Failed);
    assert_eq!(
        all.told(),
        [
            "Error RemoteClusterConfiguration b: is the local cluster itself; correct where it leads, \
         or delete it; nothing of it is in force"
        ]
    );
    all.tell("b", SourceEvent::Updated(remote_view(&namespace("kube-system", "2"))), now);
    assert_eq!(all.refresh(now).unwrap().remotes.len(), 1);
    // By its directory, before it has told anything.
    all.reconfigure(reading(&[("b", "local")]));
    all.refresh(now);
    assert_eq!(all.state_of("b"), RemoteState::Failed);
}

#[test]
fn of_two_that_are_one_cluster_the_first_by_name_counts() {
    for order in [["b", "c"], ["c", "b"]] {
        let mut all = federation(StalePolicy::Keep);
        let now = later(&all);
        all.local_is(&(rcc("b", "Enabled") + &rcc("c", "Enabled")), now);
        for name in order {
            all.tell(name, SourceEvent::Synced(remote_view(&namespace("kube-system", "1"))), now);
            all.refresh(now);
        }
        let names: Vec<_> = all.world.as_ref().unwrap().remotes.keys().cloned().collect();
        assert_eq!(names, ["b".into()]);
        assert_eq!(
            (all.state_of("b"), all.state_of("c")),
            (RemoteState::InSync, RemoteState::Failed)
        );
        assert_eq!(
            all.told(),
            [
                "Error RemoteClusterConfiguration c: is the same cluster as b, which counts; correct \
             where one of the two leads, or delete it; nothing of it is in force"
            ]
        );
        all.local_is(&rcc("c", "Enabled"), now);
        assert_eq!(all.state_of("c"), RemoteState::InSync, "nothing in its way any more");
    }
}

#[test]
fn another_directory_takes_over_when_it_is_complete() {
    let (mut all, now) = in_sync(StalePolicy::Keep);
    all.reconfigure(reading(&[("b", "elsewhere")]));
    all.refresh(now);
    assert_eq!(all.state_of("b"), RemoteState::Connecting);
    assert_eq!(all.world.as_ref().unwrap().remotes["b"].objects.pods.len(), 1, "still in force");
    all.tell("b", SourceEvent::Synced(remote_view("")), now);
    assert_eq!(all.refresh(now).unwrap().remotes["b"].objects.pods.len(), 0);
    all.reconfigure(reading(&[]));
    assert_eq!(all.refresh(now).unwrap().remotes, BTreeMap::new());
}

#[test]
fn status_tells_all_of_it() {
    let (mut all, now) = in_sync(StalePolicy::Keep);
    all.tell("b", lost(), now);
    all.refresh(now);
    let status = serde_json::to_value(all.status()).unwrap();
    let b = &status["remotes"]["b"];
    assert_eq!(b["state"], "Stale");
    assert_eq!(b["error"], "gone");
    assert_eq!(b["origin"], "b");
    assert_eq!(b["overlay"], true);
    assert_eq!(b["objects"], serde_json::json!({"Pod": 1}));
    assert!(b["last_event_ms"].is_u64() && b["state_for_ms"].is_u64(), "{b}");
    assert_eq!(status["local"]["state"], "InSync");
    assert_eq!(status["local"]["objects"]["RemoteClusterConfiguration"], 1);
}

/// The file systems of three clusters, and a federation that follows them.
struct Simulation {
    all: Federation,
    now: Instant,
    files: BTreeMap<&'static str, BTreeMap<&'static str, String>>,
    loaded: BTreeMap<&'static str, Loaded>,
}

/// A file of a cluster and its content, or its deletion.
type Change = (&'static str, &'static str, Option<String>);

impl Simulation {
    fn new() -> Self {
        let all = federation(StalePolicy::Keep);
        let id = |name: &'static str| match name {
            "local" => ClusterId::Local,
            remote => ClusterId::Remote(remote.into()),
        };
        let loaded = ["local", "b", "c"].map(|name| (name, Loaded::new(id(name))));
        Self { now: later(&all), all, files: BTreeMap::new(), loaded: loaded.into() }
    }

    fn change(&mut self, (cluster, file, content): &Change) {
        let files = self.files.entry(cluster).or_default();
        match content {
            Some(content) => files.insert(file, content.clone()),
            None => files.remove(file),
        };
    }

    /// What a source would tell now.
    fn settle(&mut self, cluster: &'static str) {
        let files = self.files.get(cluster).cloned().unwrap_or_default();
        let content = |text: String| Content::Bytes(text.into_bytes());
        let files = files.into_iter().map(|(name, text)| (name.into(), content(text))).collect();
        let loaded = self.loaded.get_mut(cluster).unwrap();
        *loaded = load(loaded, files);
        if cluster == "local" || self.all.remotes.contains_key(cluster) {
            let event = SourceEvent::Updated(self.loaded[cluster].view().clone());
            self.all.tell(cluster, event, self.now);
        }
        self.all.refresh(self.now);
        // A remote that has just appeared tells its state.
        for name in ["b", "c"] {
            if self.all.remotes.get(name).is_some_and(|member| member.remote.view().is_none()) {
                let event = SourceEvent::Synced(self.loaded[name].view().clone());
                self.all.tell(name, event, self.now);
            }
        }
        self.all.refresh(self.now);
    }

    fn outcome(
        mut self,
    ) -> (World, crate::resolve::Resolved, Vec<String>, [Option<RemoteState>; 2]) {
        for cluster in ["local", "b", "c"] {
            self.settle(cluster);
        }
        let world = (*self.all.world.clone().expect("the local cluster is known")).clone();
        let states = ["b", "c"].map(|name| self.all.remotes.get(name).map(|member| member.state));
        let resolved = resolve(&world);
        (world, resolved, self.all.told(), states)
    }
}

fn any_content(cluster: &'static str) -> impl Strategy<Value = Option<String>> {
    let object = (0..7usize, 0..3u8, any::<bool>()).prop_map(move |(kind, n, flag)| match kind {
        0 => pod(&format!("p{n}"), &format!("10.{n}.0.1")),
        1 => format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {cluster}-{n}\n  annotations:\n    \
             projectcalico.org/IPv4Address: 172.16.{n}.{}/24\n    \
             projectcalico.org/IPv4VXLANTunnelAddr: 10.{n}.0.2\n",
            cluster.as_bytes()[0]
        ),
        2 => format!(
            "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: pool{n}}}\n\
             spec: {{cidr: 10.{n}.0.0/16, vxlanMode: {}}}\n",
            if flag { "Always" } else { "Never" }
        ),
        3 => format!(
            "---\napiVersion: projectcalico.org/v3\nkind: IPAMBlock\nmetadata: {{name: block{n}}}\n\
             spec: {{cidr: 10.{n}.0.0/26, affinity: 'host:{cluster}-{n}', allocations: [], \
             attributes: []}}\n"
        ),
        4 => namespace("kube-system", if flag { cluster } else { "shared" }),
        _ if cluster != "local" => namespace("d", ""),
        5 => rcc("b", if flag { "Enabled" } else { "Disabled" }),
        _ => rcc("c", if flag { "Enabled" } else { "Disabled" }),
    });
    let objects = prop::collection::vec(object, 1..6).prop_map(|objects| Some(objects.concat()));
    prop_oneof![4 => objects, 1 => Just(None)]
}

/// One change for each of some files, so that their order does not matter.
fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let of = |cluster: &'static str, file: &'static str| {
        prop::option::weighted(0.8, any_content(cluster))
            .prop_map(move |content| content.map(|content| (cluster, file, content)))
    };
    let all = (
        of("local", "1.yaml"),
        of("local", "2.yaml"),
        of("local", "3.yaml"),
        of("b", "1.yaml"),
        of("b", "2.yaml"),
        of("c", "1.yaml"),
        of("c", "2.yaml"),
    );
    all.prop_map(|(a, b, c, d, e, f, g)| [a, b, c, d, e, f, g].into_iter().flatten().collect())
}

proptest! {
    #[test]
    fn order_does_not_matter(
        first in any_changes(),
        changes in any_changes(),
        shuffled in prop::collection::vec(any::<prop::sample::Index>(), 24),
    ) {
        let squashed = {
            let mut simulation = Simulation::new();
            for change in first.iter().chain(&changes) {
                simulation.change(change);
            }
            simulation.outcome()
        };
        let run = |order: &[&Change]| {
            let mut simulation = Simulation::new();
            for change in &first {
                simulation.change(change);
                simulation.settle(change.0);
            }
            for change in order {
                simulation.change(change);
                simulation.settle(change.0);
            }
            simulation.outcome()
        };
        let forward: Vec<&Change> = changes.iter().collect();
        let reversed: Vec<&Change> = changes.iter().rev().collect();
        // Some of them several times, then each once.
        let mut repeated: Vec<&Change> = Vec::new();
        if !changes.is_empty() {
            repeated.extend(shuffled.iter().map(|index| index.get(&changes)));
        }
        repeated.extend(&changes);
        for order in [forward, reversed, repeated] {
            prop_assert_eq!(&run(&order), &squashed);
        }
    }
}

/// A directory of manifests that changes.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory for the test"))
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.path().join(file), text).expect("a file in the test's directory");
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Waits until the world is as it should be; a wait without end is the test
/// runner's to stop.
async fn until(all: &mut Federation, good: impl Fn(&Federation, &World) -> bool) -> Arc<World> {
    loop {
        if let Some(world) = all.world.clone().filter(|world| good(all, world)) {
            return world;
        }
        all.changed().await;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn directories_are_followed() {
    let (local, b) = (Directory::new(), Directory::new());
    b.write("pods.yaml", &pod("p", "10.0.0.1"));
    let config =
        FederationConfig { datastore: directories(local.path(), b.path().to_owned()), ..config() };
    runtime().block_on(async {
        let mut all = Federation::new(config.clone());
        let pods = |world: &World| world.remotes.get("b").map(|b| b.objects.pods.len());
        until(&mut all, |_, world| world.remotes.is_empty()).await;
        local.write("b.yaml", &rcc("b", "Enabled"));
        until(&mut all, |_, world| pods(world) == Some(1)).await;
        b.write("more.yaml", &pod("q", "10.0.0.2"));
        until(&mut all, |_, world| pods(world) == Some(2)).await;
        // A broken file is told and changes nothing.
        b.write("more.yaml", "x: [");
        let world = until(&mut all, |all, _| !all.conditions().is_empty()).await;
        assert_eq!(pods(&world), Some(2));
        // So is a directory that vanishes, and it may come back.
        let away = b.path().with_extension("away");
        fs::rename(b.path(), &away).unwrap();
        let world = until(&mut all, |all, _| all.state_of("b") == RemoteState::Stale).await;
        assert_eq!(pods(&world), Some(2));
        fs::remove_file(away.join("more.yaml")).unwrap();
        fs::rename(&away, b.path()).unwrap();
        until(&mut all, |all, world| {
            all.state_of("b") == RemoteState::InSync && pods(world) == Some(1)
        })
        .await;
        let status = all.status();
        assert_eq!(status.remotes["b"].cluster.error, None);
        // Deleting the configuration withdraws all.
        fs::remove_file(local.path().join("b.yaml")).unwrap();
        until(&mut all, |_, world| world.remotes.is_empty()).await;
    });
}

#[test]
fn a_lost_directory_is_withdrawn_in_time() {
    let (local, b) = (Directory::new(), Directory::new());
    local.write("b.yaml", &rcc("b", "Enabled"));
    let config = FederationConfig {
        datastore: directories(local.path(), b.path().to_owned()),
        stale: StalePolicy::Withdraw(Duration::from_millis(50)),
        ..config()
    };
    runtime().block_on(async {
        let mut all = Federation::new(config);
        until(&mut all, |_, world| world.remotes.len() == 1).await;
        drop(b);
        until(&mut all, |_, world| world.remotes.is_empty()).await;
        assert_eq!(all.state_of("b"), RemoteState::Withdrawn);
        let message = &all.told()[0];
        assert!(message.contains("create it, or correct its name"), "{message}");
    });
}

#[test]
fn a_missing_remote_does_not_hold_up_the_rest() {
    let local = Directory::new();
    local.write("b.yaml", &rcc("b", "Enabled"));
    let missing = local.path().join("missing");
    let config =
        FederationConfig { datastore: directories(local.path(), missing.clone()), ..config() };
    runtime().block_on(async {
        let mut all = Federation::new(config);
        let world = until(&mut all, |_, _| true).await;
        assert_eq!(world.local.remotes.len(), 1);
        until(&mut all, |all, _| !all.told().is_empty()).await;
        assert_eq!(all.state_of("b"), RemoteState::Connecting);
        fs::create_dir(&missing).unwrap();
        fs::write(missing.join("p.yaml"), pod("p", "10.0.0.1")).unwrap();
        let world = until(&mut all, |_, world| world.remotes.len() == 1).await;
        assert_ne!(world.remotes["b"].objects, Arc::new(ClusterObjects::default()));
    });
}
