//! Removes everything that was ever written for Felix, when no daemon runs any
//! more.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams};
use serde::Serialize;

use super::announce;
use super::api::{self, Failure, LEASE, Requests};
use super::lease::DURATION;
use super::object::{Storage, Written};
use crate::policy::api::OWNER;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// GlobalNetworkSets.
    pub sets: usize,
    /// IPPools.
    pub pools: usize,
    /// Whether there was a Lease.
    pub lease: bool,
    /// Whether the namespace had labels that say which clusters are joined.
    pub labels: bool,
}

/// Why nothing, or not all, was removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UninstallError {
    /// A daemon would write all of it again.
    #[error("daemon {0} still writes; delete the DaemonSet first")]
    Running(String),
    /// The API has refused something or does not answer.
    #[error("{what}: {reason}")]
    Api {
        /// The object or kind.
        what: String,
        /// What the API says.
        reason: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(Failure) -> UninstallError {
    let what = what.into();
    move |failure| UninstallError::Api { what, reason: failure.to_string() }
}

/// Removes sets and pools of all remote clusters, and in `namespace` the Lease
/// and the namespace's own labels of ours.
pub async fn uninstall(client: kube::Client, namespace: String) -> Result<Removed, UninstallError> {
    let requests = Requests { client, namespace };
    let leases = requests.leases();
    let lease = || async {
        match api::in_time(leases.get(LEASE)).await {
            Ok(lease) => Ok(Some(api::record(&lease))),
            Err(Failure::NotFound(_)) => Ok(None),
            Err(failure) => Err(failed("Lease tieline")(failure)),
        }
    };
    let before = lease().await?;
    if let Some(record) = before.as_ref().filter(|record| !record.holder.is_empty()) {
        // Whoever writes renews it before it ends.
        tokio::time::sleep(DURATION + Duration::from_secs(1)).await;
        if lease().await?.is_some_and(|now| now.version != record.version) {
            return Err(UninstallError::Running(record.holder.clone()));
        }
    }
    let mut removed = Removed::default();
    for storage in Storage::ALL {
        removed.sets += remove(&requests, storage, Written::Set).await?;
        removed.pools += remove(&requests, storage, Written::Pool).await?;
    }
    let what = || format!("Namespace {}", requests.namespace);
    removed.labels = announce::withdraw(&requests).await.map_err(failed(what()))?;
    if before.is_some() {
        match api::in_time(leases.delete(LEASE, &DeleteParams::default())).await {
            Ok(_) => removed.lease = true,
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failed("Lease tieline")(failure)),
        }
    }
    Ok(removed)
}

async fn remove(
    requests: &Requests,
    storage: Storage,
    kind: Written,
) -> Result<usize, UninstallError> {
    let resource = storage.resource(kind.kind());
    let objects = requests.all(&resource);
    let ours = ListParams::default().labels(OWNER);
    let what = || format!("{} of {}", kind.kind(), storage.api_version());
    let list = match api::in_time(objects.list(&ours)).await {
        Ok(list) => list,
        Err(Failure::NotFound(_)) => return Ok(0),
        Err(failure) => return Err(failed(what())(failure)),
    };
    let mut count = 0;
    for object in list {
        let name = object.metadata.name.unwrap_or_default();
        match api::in_time(objects.delete(&name, &DeleteParams::default())).await {
            Ok(_) => count += 1,
            Err(Failure::NotFound(_)) => {}
            Err(failure) => return Err(failed(format!("{} {name}", kind.kind()))(failure)),
        }
        // In nftables mode many at once stall Felix.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(count)
}
