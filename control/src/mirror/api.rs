//! The requests that the mirror makes, and what is to be concluded from their
//! failures.

use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use super::lease::{DURATION, Record};
use super::object::{self, Storage, Written};

/// The field manager of what we write.
pub(super) const MANAGER: &str = "tieline";
/// Name of the Lease.
pub const LEASE: &str = "tieline";
/// How long a request may take: less than a lease outlasts its renewal.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a request did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The object is of another version than was seen.
    #[error("the object was changed meanwhile")]
    Changed,
    /// An object of that name is somebody else's.
    #[error("there is an object of this name that Tieline has not made; rename or delete it")]
    Foreign,
    /// There is no such object, or kind.
    #[error("not found: {0}")]
    NotFound(String),
    /// A right is missing.
    #[error("{0}")]
    Forbidden(String),
    /// The object is not valid to the API.
    #[error("refused: {0}")]
    Refused(String),
    /// The API asks for patience.
    #[error("the API asks to wait {} s", .0.as_secs())]
    Busy(Duration),
    /// The API does not answer, or not as it should.
    #[error("{0}")]
    Unreachable(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unreachable(crate::causes::with_causes(&error.into()));
        };
        let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        match status.code {
            404 => Self::NotFound(status.message),
            409 => Self::Changed,
            401 | 403 => Self::Forbidden(status.message),
            429 => Self::Busy(Duration::from_secs(u64::from(asked.max(1)))),
            400 | 405 | 406 | 413 | 415 | 422 => Self::Refused(status.message),
            _ if asked > 0 => Self::Busy(Duration::from_secs(u64::from(asked))),
            code => Self::Unreachable(format!("{code} {}", status.message)),
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

pub(super) async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let seconds = PATIENCE.as_secs();
            Err(Failure::Unreachable(format!("no answer within {seconds} s")))
        }
    }
}

/// The version and identity of an object that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) version: String,
    pub(super) uid: String,
}

impl Seen {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        Self { version, uid: object.metadata.uid.clone().unwrap_or_default() }
    }
}

/// Talks to the local cluster's API.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) client: kube::Client,
    /// Namespace of the Lease.
    pub(super) namespace: String,
}

impl Requests {
    pub(super) fn all(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), resource)
    }

    /// Whether a group has what is to be written.
    pub(super) async fn has_sets(&self, storage: Storage) -> Result<bool> {
        match in_time(self.client.list_api_group_resources(storage.api_version())).await {
            Ok(list) => Ok(list.resources.iter().any(|it| it.kind == Written::Set.kind())),
            Err(Failure::NotFound(_)) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// `spec` of ClusterInformation `default`.
    pub(super) async fn cluster_information(&self, storage: Storage) -> Result<Option<Value>> {
        let api = self.all(&storage.resource("ClusterInformation"));
        match in_time(api.get("default")).await {
            Ok(object) => Ok(Some(object.data["spec"].clone())),
            Err(Failure::NotFound(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Applies an object: a new one, or one of the version that was seen. Never
    /// takes over what somebody else has made.
    pub(super) async fn apply(
        &self,
        resource: &ApiResource,
        name: &str,
        mut body: Value,
        seen: Option<&Seen>,
    ) -> Result<DynamicObject> {
        let api = self.all(resource);
        let params = PatchParams::apply(MANAGER);
        let wanted = body.clone();
        let applied = match seen {
            Some(seen) => {
                body["metadata"]["resourceVersion"] = json!(seen.version);
                in_time(api.patch(name, &params.force(), &Patch::Apply(&body))).await
            }
            None => match in_time(api.patch(name, &params, &Patch::Apply(&body))).await {
                // Something else is there.
                Err(Failure::Changed) => {
                    let present = in_time(api.get(name)).await?;
                    if !object::is_ours(&present) {
                        return Err(Failure::Foreign);
                    }
                    body["metadata"]["resourceVersion"] = json!(Seen::of(&present).version);
                    in_time(api.patch(name, &params.force(), &Patch::Apply(&body))).await
                }
                answer => answer,
            },
        }?;
        let added = object::added_labels(&applied, &wanted);
        if added.is_empty() {
            return Ok(applied);
        }
        // Applying leaves what others have added; a label more is another set.
        let nothing: serde_json::Map<_, _> =
            added.into_iter().map(|key| (key, Value::Null)).collect();
        let version = Seen::of(&applied).version;
        let patch = json!({"metadata": {"labels": nothing, "resourceVersion": version}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        in_time(api.patch(name, &params, &Patch::Merge(&patch))).await
    }

    /// Deletes the object that was seen. One that is gone is as good.
    pub(super) async fn delete(
        &self,
        resource: &ApiResource,
        name: &str,
        seen: &Seen,
    ) -> Result<()> {
        let preconditions = Preconditions {
            resource_version: Some(seen.version.clone()),
            uid: Some(seen.uid.clone()),
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match in_time(self.all(resource).delete(name, &params)).await {
            Ok(_) | Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The object as it is now.
    pub(super) async fn get(
        &self,
        resource: &ApiResource,
        name: &str,
    ) -> Result<Option<DynamicObject>> {
        match in_time(self.all(resource).get(name)).await {
            Ok(object) => Ok(Some(object)),
            Err(Failure::NotFound(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    pub(super) fn leases(&self) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "coordination.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "coordination.k8s.io/v1".to_owned(),
            kind: "Lease".to_owned(),
            plural: "leases".to_owned(),
        };
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    /// Writes the Lease: a new one, or in the place of the version that was
    /// seen.
    pub(super) async fn write_lease(
        &self,
        holder: &str,
        transitions: i32,
        version: Option<&str>,
    ) -> Result<Record> {
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": LEASE, "resourceVersion": version},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": DURATION.as_secs(),
                "leaseTransitions": transitions,
                "renewTime": now(),
            },
        });
        let lease: DynamicObject =
            serde_json::from_value(body).map_err(|it| Failure::Refused(it.to_string()))?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        let api = self.leases();
        let written = match version {
            None => in_time(api.create(&params, &lease)).await?,
            Some(_) => in_time(api.replace(LEASE, &params, &lease)).await?,
        };
        Ok(record(&written))
    }
}

/// What a Lease says.
pub(super) fn record(lease: &DynamicObject) -> Record {
    let spec = &lease.data["spec"];
    let seconds = spec["leaseDurationSeconds"].as_u64().unwrap_or(DURATION.as_secs());
    Record {
        holder: spec["holderIdentity"].as_str().unwrap_or_default().to_owned(),
        duration: Duration::from_secs(seconds.min(3600)),
        transitions: spec["leaseTransitions"]
            .as_i64()
            .and_then(|count| i32::try_from(count).ok())
            .unwrap_or(0),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// The time as the API writes it, RFC 3339 with microseconds.
pub(super) fn now() -> String {
    format!("{:.6}", k8s_openapi::jiff::Timestamp::now())
}
