//! Tells other clusters which ones this one has joined, by labels of Tieline's
//! own namespace: see [`mutual`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use serde_json::{Map, Value, json};

use super::api::{self, Failure, MANAGER, Requests};
use super::wanted::Input;
use crate::resolve::mutual;
use crate::state::Labels;

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
        input: &Input,
    ) -> (Option<Instant>, Option<Failure>) {
        let world = &input.derived.world;
        // Without its Namespace there is nothing to tell by.
        let Some(labels) = world.local.namespaces.get(&requests.namespace) else {
            return (None, None);
        };
        let change = change(labels, &mutual::keys(world), input.unknown.is_empty());
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

/// What is to be written, as in a JSON merge patch. As long as not `all` remote
/// clusters are known, what another daemon has written of them stays.
fn change(labels: &Labels, wanted: &BTreeSet<String>, all: bool) -> Map<String, Value> {
    let unwanted = |key: &&String| mutual::is_key(key) && !wanted.contains(*key);
    let gone = labels.keys().filter(|key| all && unwanted(key));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_go_once_all_clusters_are_known() {
        let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let labels = [("app", "x"), ("tieline/joined", ""), ("tieline/joined.a", "")];
        let labels: Labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let wanted: BTreeSet<String> = set(&["tieline/joined", "tieline/joined.b"]);
        let written = |all| Value::Object(change(&labels, &wanted, all));
        assert_eq!(written(false), json!({"tieline/joined.b": ""}));
        assert_eq!(written(true), json!({"tieline/joined.a": null, "tieline/joined.b": ""}));
        let same: BTreeSet<String> = set(&["tieline/joined", "tieline/joined.a"]);
        assert!(change(&labels, &same, true).is_empty());
    }
}
