//! What a cluster is reached with, and when that changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Config;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Options;
use super::access::{Access, AccessError, of_secret};
use super::api::Api;
use super::exec;
use super::follow::{Backoff, Target, Teller, follow};
use super::gathered::{Change, Step};
use super::resources::SECRET;
use crate::state::ObjectName;

/// How often files that say how to reach a cluster are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A program may take as many times as long as the server may take to answer:
/// it often asks others.
const PROGRAM: u32 = 3;
/// A Secret's watch that has been silent for this long is begun anew.
const RENEW: Duration = Duration::from_secs(120);

/// A Secret, as far as it is known: its data, or why there is none. Nothing
/// when that is not known yet.
type Known = Option<Result<Arc<Value>, String>>;

/// The credentials for a cluster, kept up to date.
pub(super) struct Credentials {
    access: Access,
    exec_plugins: bool,
    /// How long a program that prints them may take.
    patience: Duration,
    /// The Secret as it is now, if they are in one.
    secret: Option<watch::Receiver<Known>>,
    /// Follows the Secret; ends with this.
    _task: JoinSet<()>,
}

/// Tells when [`Credentials::load`] would say something else.
pub(super) enum Changes {
    /// With a Secret.
    Secret(watch::Receiver<Known>),
    /// With a file, which was like this.
    File(PathBuf, Option<Vec<u8>>),
    /// Never.
    Never,
}

/// What a cluster is reached with, and when that changes.
pub(super) fn credentials(access: &Access, options: &Options) -> (Credentials, Changes) {
    let mut credentials = Credentials {
        access: access.clone(),
        exec_plugins: options.exec_plugins,
        patience: PROGRAM * options.patience,
        secret: None,
        _task: JoinSet::new(),
    };
    let file = match access {
        Access::Secret { name, through } => {
            let (sender, receiver) = watch::channel(None);
            let read = read(name.clone(), (**through).clone(), options.clone(), sender);
            credentials._task.spawn(read);
            credentials.secret = Some(receiver.clone());
            return (credentials, Changes::Secret(receiver));
        }
        Access::Kubeconfig(path) => Some(path.clone()),
        Access::Inline(inline) => inline.kubeconfig.as_ref().map(PathBuf::from),
        Access::InCluster => None,
    };
    // Tokens and authorities in files of their own are read again by the client.
    let changes = file.map_or(Changes::Never, |path| {
        let before = std::fs::read(&path).ok();
        Changes::File(path, before)
    });
    (credentials, changes)
}

impl Changes {
    /// Waits for the next change.
    pub(super) async fn next(&mut self) {
        match self {
            Self::Secret(secret) => {
                if secret.changed().await.is_err() {
                    std::future::pending().await
                }
            }
            Self::File(path, before) => loop {
                tokio::time::sleep(LOOK).await;
                let now = std::fs::read(&*path).ok();
                if now != *before {
                    *before = now;
                    return;
                }
            },
            Self::Never => std::future::pending().await,
        }
    }
}

impl Credentials {
    /// How to reach the cluster, as it is now, and when to ask again if that will
    /// not do for ever.
    pub(super) async fn load(&self) -> Result<(Config, Option<Instant>), AccessError> {
        log_in(self.config().await?, &self.access, self.patience).await
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let (Access::Secret { name, .. }, Some(secret)) = (&self.access, &self.secret) else {
            return self.access.load(self.exec_plugins).await;
        };
        // What was seen here is not a change for `changed`.
        let mut secret = secret.clone();
        let known = match secret.wait_for(Option::is_some).await {
            Ok(known) => known.clone(),
            Err(_) => None,
        };
        match known {
            Some(Ok(data)) => of_secret(name, &data, self.exec_plugins).await,
            Some(Err(reason)) => Err(AccessError { place: format!("Secret {name}"), reason }),
            None => Err(AccessError {
                place: format!("Secret {name}"),
                reason: "its reader has ended; restart the daemon".to_owned(),
            }),
        }
    }
}

/// Runs the program of a kubeconfig, if it has one.
async fn log_in(
    config: Config,
    access: &Access,
    within: Duration,
) -> Result<(Config, Option<Instant>), AccessError> {
    exec::log_in(config, within)
        .await
        .map_err(|error| AccessError { place: access.to_string(), reason: error.to_string() })
}

/// Follows a Secret.
async fn read(name: ObjectName, through: Access, options: Options, known: watch::Sender<Known>) {
    let mut backoff = Backoff::default();
    loop {
        let config = async {
            let config = through.load(options.exec_plugins).await?;
            log_in(config, &through, PROGRAM * options.patience).await
        };
        let reason = match config.await {
            Err(error) => error.to_string(),
            // A watch that outlives a token goes on; the next attempt has another.
            Ok((config, _)) => match Api::new(config, options.patience).await {
                Err(failure) => failure.to_string(),
                Ok(api) => follow_secret(&api, &name, &known, &mut backoff).await,
            },
        };
        // What is known of the Secret stays good while the local API is away.
        known.send_if_modified(|known| {
            let unknown = known.is_none();
            if unknown {
                *known = Some(Err(format!("can't be read: {reason}")));
            }
            unknown
        });
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Follows a Secret as long as contact lasts; returns why it does not.
async fn follow_secret(
    api: &Api,
    name: &ObjectName,
    known: &watch::Sender<Known>,
    backoff: &mut Backoff,
) -> String {
    let ObjectName { namespace, name: secret } = name;
    let target = Target {
        path: format!("/api/v1/namespaces/{namespace}/secrets"),
        fields: format!("metadata.name={secret}"),
        resource: format!("secrets in namespace {namespace}"),
        shape: &SECRET,
    };
    let (told, mut heard) = mpsc::channel(4);
    let teller = Teller { key: (), told };
    let renew = Arc::new(Notify::new());
    let following = follow(api.clone(), target, None, renew.clone(), Some::<Value>, teller);
    tokio::pin!(following);
    let mut listed = None;
    loop {
        let step = tokio::select! {
            failure = &mut following => return failure.to_string(),
            Some(((), step)) = heard.recv() => step,
            // A watch that has died silently would miss a change for ever.
            () = tokio::time::sleep(RENEW) => {
                renew.notify_one();
                continue;
            }
        };
        let now = match step {
            Step::Begin => {
                listed = None;
                continue;
            }
            Step::Page(items) => {
                listed = items.into_iter().next().or(listed);
                continue;
            }
            Step::Listed(_) => data(listed.take()),
            Step::Watching => {
                backoff.reset();
                continue;
            }
            Step::Changed(changes, _) => match changes.into_iter().next_back() {
                Some(Change::Put(value)) => data(Some(value)),
                Some(Change::Gone(_)) => data(None),
                None => continue,
            },
            Step::Absent => data(None),
            // What is known of the Secret stays good while it can't be read.
            Step::Forbidden(_) | Step::Failing(_) if matches!(*known.borrow(), Some(Ok(_))) => {
                continue;
            }
            Step::Forbidden(denial) => Err(denial.to_string()),
            Step::Failing(reason) => Err(reason),
        };
        known.send_if_modified(|known| {
            let now = Some(now);
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

fn data(secret: Option<Value>) -> Result<Arc<Value>, String> {
    match secret {
        Some(mut secret) => Ok(Arc::new(secret["data"].take())),
        None => Err("is not there; create it with the keys datastoreType and kubeconfig".into()),
    }
}
