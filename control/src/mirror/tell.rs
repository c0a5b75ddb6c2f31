//! The writer's state, told.

use super::api::Failure;
use super::object::{Storage, Written};
use super::status::{MirrorStatus, MirroredCluster};
use super::writer::{Leading, Task};
use crate::state::{ClusterId, Condition, Severity};

/// What there is to tell.
pub(super) fn status(task: &Task) -> MirrorStatus {
    let mut status = MirrorStatus {
        state: "standby".to_owned(),
        writer: task.election.holder().map(str::to_owned),
        writes: task.writes,
        last_write: task.last_write.clone(),
        ..MirrorStatus::default()
    };
    if let Some((what, failure)) = task.failure() {
        status.reason = Some(failure.to_string());
        status.conditions.push(condition(what, failure));
    }
    if let Some(leading) = &task.leading {
        tell_writer(leading, &mut status);
    }
    status
}

fn tell_writer(leading: &Leading, status: &mut MirrorStatus) {
    status.state = match &leading.applies {
        None => "starting",
        Some(Err(_)) => "off",
        Some(Ok(())) => "writing",
    }
    .to_owned();
    if let Some(Err(why)) = &leading.applies {
        status.reason = Some(why.clone());
    }
    status.storage = leading.storage.map(Storage::api_version).map(str::to_owned);
    for (_, set) in leading.sets.objects.values() {
        let cluster: &mut MirroredCluster =
            status.clusters.entry(set.cluster.to_string()).or_default();
        cluster.sets += 1;
        cluster.addresses += set.nets.len();
    }
    status.pools = leading.pools.objects.keys().cloned().collect();
    status.waiting = leading.waiting;
    status.conditions.extend(leading.wanted.iter().flat_map(|it| it.conditions.iter().cloned()));
    if leading.trails && leading.waiting > 0 {
        status.conditions.push(Condition {
            severity: Severity::Warning,
            cluster: ClusterId::Local,
            object: Written::Set.kind().to_owned(),
            message: format!(
                "policies have changed, and {} sets are still to follow: until then, rules that \
                 ask for a label not to be there or not to have a value (!has, !=, not in) may \
                 match remote endpoints in Felix that they should not; where that matters, stage \
                 such a policy first: sets follow staged policies too",
                leading.waiting
            ),
        });
    }
    for ((kind, name), held) in &leading.held {
        let Some(reason) = &held.reason else { continue };
        status.conditions.push(local(format!("{} {name}", kind.kind()), reason.to_string()));
    }
    status.conditions.sort();
}

fn local(object: String, message: String) -> Condition {
    Condition { severity: Severity::Error, cluster: ClusterId::Local, object, message }
}

fn condition(what: &str, failure: &Failure) -> Condition {
    let object = match what {
        "lease" => format!("Lease {}", super::LEASE),
        "announce" => "labels of Tieline's Namespace".to_owned(),
        "status" => "RemoteClusterConfiguration status".to_owned(),
        "kinds" => "Calico's kinds".to_owned(),
        _ => Written::Set.kind().to_owned(),
    };
    let remedy = match failure {
        Failure::Forbidden(_) => "; apply the daemon's ClusterRole and Role of this version",
        Failure::NotFound(_) => "; Felix learns nothing of remote clusters without it",
        _ => "; it is tried again",
    };
    local(object, format!("{failure}{remedy}"))
}
