//! What goes wrong with the writer, its rights and the server.

use tieline::federation::{ClusterStatus, RemoteState, RemoteStatus};
use tieline::mirror::uninstall::{Removed, UninstallError, uninstall};
use tieline_tests::kube::access::{keep, narrow, restore};

use super::*;

/// How long the server is gone.
const OUTAGE: Duration = Duration::from_secs(60);

pub(super) fn says(status: &MirrorStatus, words: &str) -> bool {
    status.conditions.iter().any(|it| format!("{} {}", it.object, it.message).contains(words))
}

/// A daemon that can be killed: it has a runtime of its own.
pub(super) struct Killable {
    daemon: Option<Daemon>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Killable {
    pub(super) fn start(kubeconfig: &Path, node: &str, state: &State) -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let daemon = runtime.block_on(Daemon::start(kubeconfig, node, state));
        Self { daemon: Some(daemon), runtime: Some(runtime) }
    }

    pub(super) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        self.daemon = None;
    }

    pub(super) fn until(&self, what: &str, wanted: impl Fn(&MirrorStatus) -> bool) {
        let begun = Instant::now();
        while !wanted(&self.daemon().status()) {
            assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", self.daemon().status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(super) fn settled(api: &ApiCluster, what: &str, state: &State) {
    let begun = Instant::now();
    loop {
        let (now, wanted) = (present(api, Group::Storage), state.wanted());
        if now
            .iter()
            .map(|(app, nets)| (app.as_str(), nets))
            .eq(wanted.iter().map(|(k, v)| (*k, v)))
        {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {now:?} instead of {wanted:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(super) fn writes(status: &MirrorStatus) -> bool {
    status.state == "writing" && status.waiting == 0
}

#[test]
fn one_of_two_daemons_writes_whatever_happens() {
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-two").unwrap();
    let (api, kubeconfig) = ready(&lab, program, Group::Storage);
    let run = || {
        let mut state = example();
        let mut a = Killable::start(&kubeconfig, "node-a", &state);
        a.until("a writes", writes);
        let b = Killable::start(&kubeconfig, "node-b", &state);
        b.until("b knows who writes", |it| {
            it.writer.as_ref().is_some_and(|it| it.starts_with("node-a"))
        });
        assert_eq!(b.daemon().status().state, "standby");

        // The writer is gone without a word. What changes meanwhile is made up for.
        a.kill();
        state.pod(2, 30, "pg");
        b.daemon().set(&state);
        b.until("b takes over", writes);
        settled(&api, "after the take-over", &state);
        assert_eq!(b.daemon().status().writes, 1, "the rest was there");

        // Somebody else takes the lease.
        let other = r#"{"spec": {"holderIdentity": "somebody"}}"#;
        api.kubectl(&[
            "-n",
            "tieline-system",
            "patch",
            "lease",
            "tieline",
            "--type=merge",
            "-p",
            other,
        ]);
        b.until("b stands by", |it| it.state == "standby");
        state.pod(2, 31, "pg");
        b.daemon().set(&state);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(b.daemon().status().writes, 1);
        b.until("b writes again", writes);
        settled(&api, "after the lease was lost", &state);
    };
    api.netns().run(run).unwrap();
}

#[test]
fn the_mirror_outlives_what_goes_wrong_with_the_server() {
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-faults").unwrap();
    let mut api = ApiCluster::alone(&lab, program, "a");
    api.apply(&manifest("kubernetes.yaml"));
    let kubeconfig = account_kubeconfig(&api, "tieline-system", "tieline");
    let netns = api.netns().clone();
    let run = || {
        let mut state = example();
        let daemon = Killable::start(&kubeconfig, "node-a", &state);
        daemon.until("no kinds", |it| says(it, "has no kind GlobalNetworkSet"));
        install(&api, &Group::Storage.crds());
        daemon.until("kinds", writes);
        settled(&api, "kinds", &state);

        // The server is gone for a while, then it hangs for a while.
        let mut number = 40;
        let mut change = |state: &mut State| {
            number += 1;
            state.pod(1, number, "pg");
            daemon.daemon().set(state);
        };
        api.kill();
        change(&mut state);
        daemon.until("the server is gone", |it| !it.conditions.is_empty());
        api.revive();
        settled(&api, "the server is back", &state);
        api.pause();
        change(&mut state);
        daemon.until("the server hangs", |it| says(it, "no answer within 3 s"));
        api.resume();
        settled(&api, "the server goes on", &state);
        daemon.until("nothing is wrong", |it| it.conditions.is_empty());

        // A right is taken away.
        let role = keep(&api, "clusterrole", "tieline-felix");
        narrow(&api, "tieline-felix", "globalnetworksets");
        change(&mut state);
        daemon.until("no right", |it| says(it, "cannot patch resource \"globalnetworksets\""));
        restore(&api, &role);
        settled(&api, "the right is back", &state);
    };
    netns.run(run).unwrap();
}

#[test]
fn statuses_are_told_and_an_uninstall_leaves_nothing() {
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-leave").unwrap();
    let (api, kubeconfig) = ready(&lab, program, Group::Native);
    install(&api, &manifest("remoteclusterconfigurations.yaml"));
    within(&api, || async {
        let rcc = "remoteclusterconfigurations.v3.projectcalico.org";
        let object = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "RemoteClusterConfiguration",
            "metadata": {"name": "remote-1"},
            "spec": {"clusterAccessSecret": {"name": "s", "namespace": "n"}},
        });
        api.apply(&object.to_string());
        let input = |state: RemoteState, error: Option<&str>| {
            let mut input = example().input();
            input.storage = Some(Storage::V3);
            let cluster = ClusterStatus {
                state,
                state_for_ms: 0,
                error: error.map(str::to_owned),
                origin: String::new(),
                uid: None,
                calico_group: None,
                objects: [("Pod".to_owned(), 20)].into(),
                ignored: BTreeMap::new(),
                last_event_ms: None,
                contact_losses: 0,
            };
            let overlay_reason = "overlayRoutingMode is Enabled".to_owned();
            let remote = RemoteStatus { cluster, overlay: error.is_none(), overlay_reason };
            input.remotes.insert("remote-1".to_owned(), remote);
            input
        };
        let daemon = Daemon::with(&kubeconfig, "a", input(RemoteState::InSync, None)).await;
        let told = async |wanted: &str, error: &str| {
            let begun = Instant::now();
            loop {
                let status = api.get(&[rcc, "remote-1"])["status"].clone();
                if status["state"] == wanted && status["lastError"] == error {
                    return status;
                }
                assert!(begun.elapsed() < PATIENCE, "{status} {:?}", daemon.status());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let status = told("InSync", "").await;
        assert_eq!(
            (&status["overlay"], &status["objects"]["Pod"]),
            (&"Enabled".into(), &20.into())
        );
        daemon.input.send_replace(Some(input(RemoteState::Stale, Some("no answer"))));
        let status = told("Stale", "no answer").await;
        assert_eq!(status["conditions"][1]["type"], "InSync");
        assert_eq!(status["conditions"][1]["status"], "False");
        daemon.until("events", |it| !says(it, "event")).await;
        let begun = Instant::now();
        loop {
            let events = api.get(&["events", "--field-selector=involvedObject.name=remote-1"]);
            let mut reasons: Vec<&str> = events["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|it| it["reason"].as_str())
                .collect();
            reasons.sort_unstable();
            if reasons == ["InSync", "Stale"] {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{reasons:?} {:?}", daemon.status());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        daemon.until("all is written", writes).await;

        let admin = client(&api.admin()).await;
        let remove = || uninstall(admin.clone(), "tieline-system".into());
        let refused = remove().await;
        assert!(matches!(refused, Err(UninstallError::Running(_))), "{refused:?}");
        daemon.mirror.stop().await;
        let removed = remove().await.unwrap();
        assert_eq!(removed, Removed { sets: 2, pools: 2, lease: true, labels: false });
        assert!(present(&api, Group::Native).is_empty() && pools(&api, Group::Native).is_empty());
        assert_eq!(api.kubectl(&["get", "leases", "-n", "tieline-system", "-o", "name"]), "");
    });
}

/// A minute without the server, in which two daemons stand by; then somebody
/// else has the lease for a while.
#[test]
fn an_outage_of_a_minute_and_a_lost_lease() {
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-outage").unwrap();
    let (mut api, kubeconfig) = ready(&lab, program, Group::Storage);
    let netns = api.netns().clone();
    let run = || {
        let mut state = example();
        let a = Killable::start(&kubeconfig, "node-a", &state);
        a.until("a writes", writes);
        let b = Killable::start(&kubeconfig, "node-b", &state);
        b.until("b stands by", |it| it.state == "standby" && it.writer.is_some());
        let before = a.daemon().status().writes;

        let begun = Instant::now();
        api.kill();
        // Pods come and go meanwhile.
        let mut number = 40;
        while begun.elapsed() < OUTAGE {
            number += 1;
            state.pod(1, number, "pg");
            state.pods.remove(&(2, number - 40));
            a.daemon().set(&state);
            b.daemon().set(&state);
            std::thread::sleep(Duration::from_secs(5));
        }
        for daemon in [&a, &b] {
            let status = daemon.daemon().status();
            assert_eq!(status.state, "standby", "nobody can know who writes: {status:?}");
            assert!(says(&status, "it is tried again"), "{status:?}");
        }
        api.revive();
        let other = r#"{"spec": {"holderIdentity": "somebody"}}"#;
        let take = ["patch", "lease", "tieline", "--type=merge", "-p", other];
        api.kubectl(&[&["-n", "tieline-system"], &take[..]].concat());
        let both = |of: &dyn Fn(&MirrorStatus) -> bool| {
            [&a, &b].into_iter().filter(|it| of(&it.daemon().status())).count()
        };
        let somebody = |it: &MirrorStatus| it.writer.as_deref() == Some("somebody");
        let begun = Instant::now();
        while both(&somebody) < 2 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", a.daemon().status());
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = a.daemon().status().writes + b.daemon().status().writes;
        while both(&writes) == 0 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", a.daemon().status());
            assert!(both(&|it| it.state == "writing") <= 1, "two write");
            let now = a.daemon().status().writes + b.daemon().status().writes;
            assert!(now == done || both(&somebody) < 2, "somebody else has the lease");
            std::thread::sleep(Duration::from_millis(20));
        }
        settled(&api, "after the outage", &state);
        // Two sets have changed; one may have been written before the lease was
        // lost, and once more after.
        let after = a.daemon().status().writes + b.daemon().status().writes;
        assert!(after - before <= 3, "{} writes", after - before);
        for daemon in [&a, &b] {
            daemon.until("nothing is wrong", |it| it.conditions.is_empty());
        }
    };
    netns.run(run).unwrap();
}
