//! What becomes of remote clusters, told on their RemoteClusterConfigurations:
//! `status` and events, by the daemon that holds the lease.
//!
//! The kind of the vendor's has no status; then nothing is written. A status is
//! written when a state, an error or the overlay has changed; numbers that
//! change with every pod go along, and else follow once in a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use super::api::{self, Failure, MANAGER, Requests};
use super::object::Storage;
use crate::federation::{RemoteState, RemoteStatus};

/// Between two statuses of one remote cluster.
const APART: Duration = Duration::from_secs(1);
/// Between two statuses of which only numbers differ.
const NUMBERS: Duration = Duration::from_secs(60);
const KIND: &str = "RemoteClusterConfiguration";

/// What was last written of a remote cluster.
struct Told {
    at: Instant,
    status: Value,
}

/// Writes statuses.
#[derive(Default)]
pub(super) struct Reporter {
    /// Where RemoteClusterConfigurations with a status are; `None` inside: they
    /// have none.
    resource: Option<Option<ApiResource>>,
    told: BTreeMap<String, Told>,
    not_before: Option<Instant>,
    /// What went wrong the last time.
    failure: Option<Failure>,
}

impl Reporter {
    /// Tells what is new; when there will be more to tell, if it stays so.
    pub(super) async fn report(
        &mut self,
        requests: &Requests,
        remotes: &BTreeMap<String, RemoteStatus>,
    ) -> (Option<Instant>, Option<Failure>) {
        self.told.retain(|name, _| remotes.contains_key(name));
        if let Some(at) = self.not_before.filter(|at| *at > Instant::now()) {
            return (Some(at), self.failure.clone());
        }
        (self.not_before, self.failure) = (None, None);
        let mut wake: Option<Instant> = None;
        for (name, remote) in remotes {
            let due = match self.told.get(name) {
                None => None,
                Some(told) => match difference(&told.status, &status(&told.status, remote, "")) {
                    Difference::None => continue,
                    Difference::Numbers => Some(told.at + NUMBERS),
                    Difference::State => Some(told.at + APART),
                },
            };
            if let Some(due) = due.filter(|due| *due > Instant::now()) {
                wake = Some(wake.map_or(due, |other| other.min(due)));
                continue;
            }
            if let Err(failure) = self.tell(requests, name, remote).await {
                let again = Instant::now() + super::writer::LOOK_AGAIN;
                (self.not_before, self.failure) = (Some(again), Some(failure));
                return (Some(again), self.failure.clone());
            }
        }
        (wake, None)
    }

    async fn tell(
        &mut self,
        requests: &Requests,
        name: &str,
        remote: &RemoteStatus,
    ) -> Result<(), Failure> {
        if self.resource.is_none() {
            self.resource = Some(find(requests).await?);
        }
        let Some(Some(resource)) = &self.resource else { return Ok(()) };
        let told = |status| Told { at: Instant::now(), status };
        let Some(object) = requests.get(resource, name).await? else {
            self.told.insert(name.to_owned(), told(Value::Null));
            return Ok(());
        };
        let before = object.data.get("status").cloned().unwrap_or(Value::Null);
        let mut now = status(&before, remote, &api::now());
        now["observedGeneration"] = json!(object.metadata.generation);
        if difference(&before, &now) == Difference::None {
            self.told.insert(name.to_owned(), told(before));
            return Ok(());
        }
        let objects: Api<DynamicObject> = requests.all(resource);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        let patch = Patch::Merge(json!({ "status": now }));
        api::in_time(objects.patch_status(name, &params, &patch)).await?;
        let changed = before["state"] != now["state"];
        self.told.insert(name.to_owned(), told(now));
        if changed {
            let event = event(&object, resource, remote);
            let events = ApiResource {
                group: String::new(),
                version: "v1".to_owned(),
                api_version: "v1".to_owned(),
                kind: "Event".to_owned(),
                plural: "events".to_owned(),
            };
            let api = Api::namespaced_with(requests.client.clone(), "default", &events);
            api::in_time(api.create(&PostParams::default(), &event)).await?;
        }
        Ok(())
    }
}

/// Where RemoteClusterConfigurations have a status.
async fn find(requests: &Requests) -> Result<Option<ApiResource>, Failure> {
    for storage in [Storage::V3, Storage::Crd] {
        let list = requests.client.list_api_group_resources(storage.api_version());
        match api::in_time(list).await {
            Ok(list) => {
                if list.resources.iter().any(|it| it.name == "remoteclusterconfigurations/status") {
                    return Ok(Some(storage.resource(KIND)));
                }
            }
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

#[derive(Debug, PartialEq, Eq)]
enum Difference {
    None,
    Numbers,
    State,
}

fn difference(before: &Value, now: &Value) -> Difference {
    let plain = |status: &Value| {
        let mut plain = status.clone();
        if let Some(fields) = plain.as_object_mut() {
            for numbers in ["objects", "lastEvent", "observedGeneration"] {
                fields.remove(numbers);
            }
        }
        plain
    };
    if plain(before) != plain(now) {
        Difference::State
    } else if before["objects"] != now["objects"] {
        Difference::Numbers
    } else {
        Difference::None
    }
}

/// The status of a remote cluster, given the one before and the time. Times of
/// what has not changed stay.
fn status(before: &Value, remote: &RemoteStatus, now: &str) -> Value {
    let cluster = &remote.cluster;
    let state = cluster.state.to_string();
    let since = if before["state"] == json!(state) && before["since"].is_string() {
        before["since"].clone()
    } else {
        json!(now)
    };
    let overlay = match (remote.overlay, remote.overlay_reason.contains("is Enabled")) {
        (true, _) => "Enabled".to_owned(),
        (false, false) => "Disabled".to_owned(),
        (false, true) => remote.overlay_reason.clone(),
    };
    let error = cluster.error.clone().unwrap_or_default();
    let in_sync = cluster.state == RemoteState::InSync;
    let connected = in_sync || cluster.state == RemoteState::Syncing;
    let message = if error.is_empty() { format!("the state is {state}") } else { error.clone() };
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let value = if holds { "True" } else { "False" };
        let earlier = before["conditions"].as_array().into_iter().flatten();
        let mut earlier = earlier.filter(|it| it["type"] == kind && it["status"] == value);
        let at = earlier.next().map_or(json!(now), |it| it["lastTransitionTime"].clone());
        json!({
            "type": kind, "status": value, "reason": reason, "message": message,
            "lastTransitionTime": at,
        })
    };
    let reason = if remote.overlay { "Enabled" } else { "NotInForce" };
    json!({
        "state": state,
        "since": since,
        "lastError": error,
        "overlay": overlay,
        "objects": cluster.objects,
        "lastEvent": if now.is_empty() { before["lastEvent"].clone() } else { json!(now) },
        "conditions": [
            condition("Connected", connected, &state, &message),
            condition("InSync", in_sync, &state, &message),
            condition("OverlayRouting", remote.overlay, reason, &remote.overlay_reason),
        ],
    })
}

fn event(object: &DynamicObject, resource: &ApiResource, remote: &RemoteStatus) -> DynamicObject {
    let state = remote.cluster.state;
    let bad = matches!(
        state,
        RemoteState::ConfigIncomplete
            | RemoteState::Failed
            | RemoteState::Stale
            | RemoteState::Withdrawn
    );
    let name = object.metadata.name.clone().unwrap_or_default();
    let message = match &remote.cluster.error {
        Some(error) => format!("{state}: {error}"),
        None => format!("The remote cluster is {state}"),
    };
    let now = api::now();
    let mut event = DynamicObject {
        types: None,
        metadata: Default::default(),
        data: json!({
            "apiVersion": "v1",
            "kind": "Event",
            "involvedObject": {
                "apiVersion": resource.api_version,
                "kind": KIND,
                "name": name,
                "uid": object.metadata.uid,
                "resourceVersion": object.metadata.resource_version,
            },
            "type": if bad { "Warning" } else { "Normal" },
            "reason": state.to_string(),
            "message": message.chars().take(1000).collect::<String>(),
            "source": {"component": "tieline"},
            "reportingComponent": "tieline",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }),
    };
    event.metadata.generate_name = Some(format!("{name}."));
    event.metadata.namespace = Some("default".to_owned());
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::ClusterStatus;

    fn remote(state: RemoteState, pods: usize) -> RemoteStatus {
        RemoteStatus {
            cluster: ClusterStatus {
                state,
                state_for_ms: 0,
                error: (state == RemoteState::Stale).then(|| "no answer".to_owned()),
                origin: String::new(),
                uid: None,
                calico_group: None,
                objects: [("Pod".to_owned(), pods)].into(),
                ignored: BTreeMap::new(),
                last_event_ms: None,
                contact_losses: 0,
            },
            overlay: state == RemoteState::InSync,
            overlay_reason: "overlayRoutingMode is Enabled".to_owned(),
        }
    }

    #[test]
    fn times_are_those_of_the_last_change() {
        let first = status(&Value::Null, &remote(RemoteState::InSync, 3), "t1");
        assert_eq!(
            (&first["since"], &first["conditions"][1]["status"]),
            (&"t1".into(), &"True".into())
        );
        let same = status(&first, &remote(RemoteState::InSync, 4), "t2");
        assert_eq!(same["since"], "t1");
        assert_eq!(difference(&first, &same), Difference::Numbers);
        let lost = status(&same, &remote(RemoteState::Stale, 4), "t3");
        assert_eq!(difference(&same, &lost), Difference::State);
        assert_eq!((&lost["since"], &lost["lastError"]), (&"t3".into(), &"no answer".into()));
        assert_eq!(lost["conditions"][0]["lastTransitionTime"], "t3");
        let again = status(&lost, &remote(RemoteState::Stale, 4), "t4");
        assert_eq!(difference(&lost, &again), Difference::None);
    }
}
