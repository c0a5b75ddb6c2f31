//! One contact with an API server, from the first question until something
//! fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::api::Api;
use super::failure::{Cause, Failure};
use super::follow::{ASK_AGAIN, Target, Teller, follow, jittered};
use super::gathered::{Gathered, Item, Step};
use super::resources::{Group, Resource, of};
use super::wire::page;
use super::{Options, Outbox, Tap};
use crate::cluster::object::{Kind, convert, written_name};
use crate::state::{ClusterId, Condition, Severity};

/// How often it is looked whether Calico's objects are served by now.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Calico's groups, with their versions.
pub(super) const STORAGE: &str = "crd.projectcalico.org/v1";
pub(super) const NATIVE: &str = "projectcalico.org/v3";

/// Why a session has ended.
pub(super) enum Ended {
    /// Contact is lost.
    Failed(Failure),
    /// What is to be read has changed.
    Regroup,
    /// Credentials are about to expire.
    Renew,
}

/// Reads until something fails. Tells whole views only.
pub(super) async fn session(
    api: &Api,
    options: &Options,
    gathered: &mut Gathered,
    outbox: &mut Outbox,
    tap: Option<&Tap>,
) -> Ended {
    match prepare(api, options, gathered, outbox).await {
        Err(failure) => Ended::Failed(failure),
        Ok(groups) => run(api, options, &groups, gathered, outbox, tap).await,
    }
}

/// Where a cluster's kinds are.
struct Groups {
    calico: Option<String>,
    rcc: Option<String>,
}

/// Finds out which cluster it is and where its objects are.
async fn prepare(
    api: &Api,
    options: &Options,
    gathered: &mut Gathered,
    outbox: &mut Outbox,
) -> Result<Groups, Failure> {
    api.settled().await?;
    let identity = identity(api).await?;
    outbox.connected().await;
    let before = gathered.uid().map(str::to_owned);
    // Versions mean something only where they come from, and only if they did
    // not go back, as after a restored backup.
    let same = identity.uid.is_some() && identity.uid == before;
    let later = identity.version.is_some_and(|version| version >= gathered.newest());
    let replaced = identity.uid.as_ref().zip(before.as_ref()).filter(|(uid, before)| uid != before);
    if let Some((uid, before)) = replaced {
        let remark = replaced_by(gathered.cluster(), uid, before);
        *gathered = Gathered::new(gathered.cluster().clone());
        gathered.remark(Some(remark));
    }
    gathered.reconnect(!(same && later));
    let local = *gathered.cluster() == ClusterId::Local;
    let mut groups = find_groups(api, options, local).await?;
    if groups.calico.is_none() && gathered.calico_group().is_some() {
        // What was there is not gone because of one answer.
        sleep_until(Instant::now() + ASK_AGAIN).await;
        groups = find_groups(api, options, local).await?;
    }
    gathered.calico_in(groups.calico.as_deref());
    Ok(groups)
}

/// What was known stays in force until all of the new cluster is known: a
/// server that comes back with other data may be a cluster that was built
/// anew under its old name, which is what its kubeconfig is for; that it may
/// be a mistake is for people to see.
fn replaced_by(cluster: &ClusterId, uid: &str, before: &str) -> Condition {
    Condition {
        severity: Severity::Warning,
        cluster: cluster.clone(),
        object: "Namespace kube-system".to_owned(),
        message: format!(
            "another cluster answers than before (UID {uid}, before {before}); its objects have \
             taken the place of the other's: if that is not meant, correct where the \
             RemoteClusterConfiguration leads"
        ),
    }
}

struct Identity {
    uid: Option<String>,
    version: Option<u64>,
}

/// Which cluster it is, if that may be known.
async fn identity(api: &Api) -> Result<Identity, Failure> {
    let path = "/api/v1/namespaces?limit=1&fieldSelector=metadata.name%3Dkube-system";
    let bytes = match api.get(path).await {
        Ok(bytes) => bytes,
        Err(Failure { cause: Cause::Forbidden(_), .. }) => {
            return Ok(Identity { uid: None, version: None });
        }
        Err(failure) => return Err(failure),
    };
    let mut uid = None;
    let shape = &super::shape::Shape::All;
    let page = page(&bytes, shape, &mut |value| {
        uid = value["metadata"]["uid"].as_str().map(str::to_owned);
    })
    .map_err(|error| api.failure(Cause::Nonsense(error.to_string())))?;
    Ok(Identity { uid, version: page.resource_version.parse().ok() })
}

/// The names of the resources that a group serves; `None` without the group.
async fn served(api: &Api, group: &str) -> Result<Option<BTreeSet<String>>, Failure> {
    #[derive(Deserialize)]
    struct Resources {
        resources: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    match api.get(&format!("/apis/{group}")).await {
        Ok(bytes) => {
            let read: Resources = serde_json::from_slice(&bytes)
                .map_err(|error| api.failure(Cause::Nonsense(error.to_string())))?;
            Ok(Some(read.resources.into_iter().map(|named| named.name).collect()))
        }
        // Calico's own API server may be down; what it serves is not stored there.
        Err(failure) if failure.cause.is_of_one_resource() => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn find_groups(api: &Api, options: &Options, local: bool) -> Result<Groups, Failure> {
    let (storage, native) = tokio::join!(served(api, STORAGE), served(api, NATIVE));
    let (storage, native) = (storage?, native?);
    let both = [&storage, &native].iter().all(|group| serves(group.as_ref(), "ipamblocks"));
    let in_use = both && has_pools(api).await;
    let calico = match &options.calico_group {
        Some(group) if local => Some(group.as_str()),
        _ => calico_group(storage.as_ref(), native.as_ref(), in_use),
    };
    let rcc = "remoteclusterconfigurations";
    let rcc = match &options.rcc_group {
        Some(group) => Some(group.as_str()),
        // Beside the other objects it is the vendor's own.
        None => [calico.unwrap_or(STORAGE), NATIVE, STORAGE].into_iter().find(|group| {
            serves(if *group == STORAGE { storage.as_ref() } else { native.as_ref() }, rcc)
        }),
    };
    Ok(Groups { calico: calico.map(str::to_owned), rcc: rcc.map(str::to_owned) })
}

fn serves(group: Option<&BTreeSet<String>>, resource: &str) -> bool {
    group.is_some_and(|names| names.contains(resource))
}

/// The group that Calico stores its objects in. The newer one may be served by
/// Calico's API server, which only shows what is stored in the older one. It
/// then lacks address blocks, which are no business of users: so whether it
/// has these tells what it is. Where both are stores, the objects are being
/// moved to the newer one, which counts as soon as it has any pool.
fn calico_group(
    storage: Option<&BTreeSet<String>>,
    native: Option<&BTreeSet<String>>,
    native_in_use: bool,
) -> Option<&'static str> {
    match (serves(storage, "ipamblocks"), serves(native, "ipamblocks")) {
        (true, true) => Some(if native_in_use { NATIVE } else { STORAGE }),
        (true, false) => Some(STORAGE),
        (false, true) => Some(NATIVE),
        (false, false) => None,
    }
}

/// Whether there is any pool in the newer group. Who may not look takes it for
/// unused.
async fn has_pools(api: &Api) -> bool {
    let mut any = false;
    if let Ok(bytes) = api.get(&format!("/apis/{NATIVE}/ippools?limit=1")).await {
        let _ = page(&bytes, &super::shape::Shape::All, &mut |_| any = true);
    }
    any
}

fn target(resource: &Resource, groups: &Groups) -> Target {
    let group = match resource.group {
        Group::Core => "",
        Group::Named(group) => group,
        // Where they would be: once they are, that is looked for anew.
        Group::Calico => groups.calico.as_deref().unwrap_or(STORAGE),
        Group::Rcc => groups.rcc.as_deref().unwrap_or(NATIVE),
    };
    let plural = resource.plural;
    let (path, name) = match group.split_once('/') {
        None => (format!("/api/v1/{plural}"), plural.to_owned()),
        Some((name, _)) => (format!("/apis/{group}/{plural}"), format!("{plural}.{name}")),
    };
    let fields = resource.fields.to_owned();
    Target { path, fields, resource: name, shape: resource.shape }
}

/// Converts an object of a kind; one without a name, which there is none of in
/// an API server, is passed over.
fn item(kind: Kind, value: &Value) -> Option<Item> {
    let written = written_name(kind, value).ok()?;
    Some(Item { written, converted: convert(kind, value) })
}

async fn run(
    api: &Api,
    options: &Options,
    groups: &Groups,
    gathered: &mut Gathered,
    outbox: &mut Outbox,
    tap: Option<&Tap>,
) -> Ended {
    let (told, mut heard) = mpsc::channel::<(Kind, Step<Item>)>(8);
    let renew = Arc::new(Notify::new());
    let mut feeds = JoinSet::new();
    for resource in of(gathered.scope()) {
        let kind = resource.kind;
        let teller = Teller { key: kind, told: told.clone() };
        let start = gathered.version(kind).map(str::to_owned);
        // One watch is enough to see whether the server is alive.
        let renew = if kind == Kind::Namespace { renew.clone() } else { Arc::default() };
        let read = move |value| item(kind, &value);
        feeds.spawn(follow(api.clone(), target(resource, groups), start, renew, read, teller));
    }
    let mut quiet_until = Instant::now() + options.silence;
    let local = *gathered.cluster() == ClusterId::Local;
    let lacking = groups.calico.is_none() || (local && groups.rcc.is_none());
    let look_again = Instant::now() + jittered(LOOK_AGAIN);
    loop {
        let complete = gathered.complete();
        if let Some(trouble) = gathered.trouble() {
            outbox.lost(trouble).await;
        } else if complete && (gathered.changed() || !outbox.is_synced()) {
            outbox.view(gathered.view()).await;
        }
        tokio::select! {
            biased;
            Some((kind, step)) = heard.recv() => {
                take(gathered, kind, step, tap);
                // What has come in the meantime goes into the same view.
                while let Ok((kind, step)) = heard.try_recv() {
                    take(gathered, kind, step, tap);
                }
                quiet_until = Instant::now() + options.silence;
            }
            Some(ended) = feeds.join_next() => match ended {
                Ok(failure) => return Ended::Failed(failure),
                Err(error) => {
                    return Ended::Failed(api.failure(Cause::Other(error.to_string())));
                }
            },
            () = sleep_until(quiet_until) => {
                renew.notify_one();
                quiet_until = Instant::now() + options.silence;
            }
            () = sleep_until(look_again), if lacking => return Ended::Regroup,
        }
    }
}

fn take(gathered: &mut Gathered, kind: Kind, step: Step<Item>, tap: Option<&Tap>) {
    if let Some(tap) = tap {
        let _ = tap.send((kind, step.clone()));
    }
    gathered.tell(kind, step);
}

#[cfg(test)]
mod tests;
