//! Tells other clusters which ones this one has joined, by labels of Tieline's
//! own namespace: see [`mutual`].

use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Map, Value, json};

use super::api::{self, Failure, MANAGER, Requests};
use crate::resolve::mutual;
use crate::state::{Labels, World};

/// Between two writes: longer than what was written takes to be seen.
const APART: Duration = Duration::from_secs(5);

/// Writes the labels.
#[derive(Default)]
pub(super) struct Announcer {
    not_before: Option<Instant>,
    /// What went wrong the last time.
    failure: Option<Failure>,
}

impl Announcer {
    /// Brings the labels up to date; when to look again, and what went wrong.
    pub(super) async fn announce(
        &mut self,
        requests: &Requests,
        world: &World,
    ) -> (Option<Instant>, Option<Failure>) {
        // Without its Namespace there is nothing to tell by.
        let Some(labels) = world.local.namespaces.get(&requests.namespace) else {
            return (None, None);
        };
        let change = change(labels, world);
        if change.is_empty() {
            self.failure = None;
            return (None, None);
        }
        if self.not_before.is_none_or(|at| at <= Instant::now()) {
            self.not_before = Some(Instant::now() + APART);
            self.failure = patch(requests, change).await.err();
        }
        (self.not_before, self.failure.clone())
    }
}

/// What is to be written, as in a JSON merge patch.
fn change(labels: &Labels, world: &World) -> Map<String, Value> {
    let wanted = mutual::keys(world);
    let gone = labels.keys().filter(|key| mutual::is_key(key) && !wanted.contains(*key));
    let come = wanted.iter().filter(|key| !labels.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), Value::Null));
    gone.chain(come.map(|key| (key.clone(), json!("")))).collect()
}

/// Takes all of the labels away; whether there were any.
pub(super) async fn withdraw(requests: &Requests) -> Result<bool, Failure> {
    let Some(namespace) = requests.get(&namespaces(), &requests.namespace).await? else {
        return Ok(false);
    };
    let labels = namespace.metadata.labels.unwrap_or_default();
    let ours = labels.into_keys().filter(|key| mutual::is_key(key));
    let change: Map<String, Value> = ours.map(|key| (key, Value::Null)).collect();
    if change.is_empty() {
        return Ok(false);
    }
    patch(requests, change).await.map(|()| true)
}

async fn patch(requests: &Requests, labels: Map<String, Value>) -> Result<(), Failure> {
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    let namespaces = requests.all(&namespaces());
    api::in_time(namespaces.patch(&requests.namespace, &params, &patch)).await.map(drop)
}

fn namespaces() -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        plural: "namespaces".to_owned(),
    }
}
