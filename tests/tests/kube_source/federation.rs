//! The product's federation, followed from within a cluster's namespace.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tieline::cluster::kubernetes::{Access, Options};
use tieline::federation::{
    Datastore, Federation, FederationConfig, FederationStatus, RemoteState, StalePolicy,
};
use tieline::state::{Condition, World};
use tieline_tests::kube::ApiCluster;
use tieline_tests::kube::access::account_kubeconfig;

use crate::follower::{PATIENCE, options};

/// What was told last.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) world: Arc<World>,
    pub(crate) status: FederationStatus,
    pub(crate) conditions: Vec<Condition>,
}

impl Told {
    pub(crate) fn state(&self, remote: &str) -> Option<RemoteState> {
        Some(self.status.remotes.get(remote)?.cluster.state)
    }

    pub(crate) fn error(&self, remote: &str) -> String {
        let remote = self.status.remotes.get(remote);
        remote.and_then(|remote| remote.cluster.error.clone()).unwrap_or_default()
    }

    /// How many pods of a remote are in force; `None` without the remote.
    pub(crate) fn pods(&self, remote: &str) -> Option<usize> {
        Some(self.world.remotes.get(remote)?.objects.pods.len())
    }

    /// What is told of an object.
    pub(crate) fn of(&self, object: &str) -> Option<&str> {
        let found = self.conditions.iter().find(|condition| condition.object == object);
        found.map(|condition| condition.message.as_str())
    }
}

/// A running federation. Ends with the test's process.
pub(crate) struct Joined(Arc<Mutex<Option<Told>>>);

impl Joined {
    /// With the rights that are shipped.
    pub(crate) fn new(local: &ApiCluster) -> Self {
        Self::with(local, options())
    }

    /// The same, reading clusters in another way.
    pub(crate) fn with(local: &ApiCluster, options: Options) -> Self {
        let kubeconfig = account_kubeconfig(local, "tieline-system", "tieline");
        let config = FederationConfig {
            node: "node-a".into(),
            datastore: Datastore::Kubernetes { access: Access::Kubeconfig(kubeconfig), options },
            include_local_vteps: false,
            stale: StalePolicy::Keep,
        };
        let told: Arc<Mutex<Option<Told>>> = Arc::default();
        let shared = Arc::downgrade(&told);
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let mut federation = Federation::new(config);
                while let Some(told) = shared.upgrade() {
                    let tick = Duration::from_millis(50);
                    let changed = tokio::time::timeout(tick, federation.changed()).await;
                    let mut told = told.lock().unwrap();
                    let last = told.as_ref().map(|told| told.world.clone());
                    if let Some(world) = changed.ok().or(last) {
                        let conditions = federation.conditions().to_vec();
                        *told = Some(Told { world, status: federation.status(), conditions });
                    }
                }
            });
        };
        drop(local.netns().thread(follow).unwrap());
        Self(told)
    }

    /// Waits until what is told is as wanted.
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        let begun = Instant::now();
        loop {
            let told = self.0.lock().unwrap().clone();
            if let Some(told) = told.as_ref().filter(|told| wanted(told)) {
                return told.clone();
            }
            let status = told.map(|told| (told.status, told.conditions));
            assert!(begun.elapsed() < PATIENCE, "{what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn now(&self) -> Told {
        self.until("anything", |_| true)
    }
}
