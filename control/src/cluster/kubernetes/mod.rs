//! A cluster's Kubernetes API server as a [`Source`].
//!
//! Promises: one watch for each kind and nothing else while nothing happens;
//! objects are trimmed page by page, so that memory follows from what counts;
//! a change goes on as soon as it has come, with all that came with it; a view
//! is told only when every kind that may be read is known and followed, also
//! after contact was lost. It must not know what its objects are for.
//!
//! ```text
//! access     kubeconfigs, Secrets and fields -> how to reach a server
//! secret     the Secret of a RemoteClusterConfiguration, followed
//! exec       programs that print credentials
//! api        requests to one server          failure   what goes wrong, in words
//! follow     one kind: lists and watches
//! wire       pages and events, shape: what is read of an object
//! session    one contact: which cluster is it, all kinds, when to tell
//! gathered   what all kinds together amount to; pure
//! resources  the kinds
//! ```
//! What may be missing, and what follows, is said in [`gathered`]. Start
//! reading at [`KubernetesSource`], go on with `session`.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::object::Kind;
use super::{Feed, Source, SourceEvent, View};
use crate::state::ClusterId;

pub mod access;
mod api;
mod exec;
pub mod failure;
mod follow;
pub mod gathered;
mod resources;
mod secret;
mod session;
pub mod shape;
pub mod wire;

pub use access::Access;

use access::AccessError;
use api::Api;
use follow::Backoff;
use gathered::{Gathered, Item, Step};
use secret::{Credentials, credentials};
use session::{Ended, session};

/// How a cluster's API is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Group and version that the local cluster's Calico objects are read
    /// from, if not found out.
    pub calico_group: Option<String>,
    /// Group and version of RemoteClusterConfigurations, if not found out.
    pub rcc_group: Option<String>,
    /// Whether kubeconfigs may run programs.
    pub exec_plugins: bool,
    /// How long the server may take to answer.
    pub patience: Duration,
    /// How long it may be silent before it is asked whether it is there.
    pub silence: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            calico_group: None,
            rcc_group: None,
            exec_plugins: false,
            patience: Duration::from_secs(10),
            silence: Duration::from_secs(30),
        }
    }
}

/// Tells apart what clients are made of: another one is made with another.
pub type Fingerprint = [u8; 20];

/// A client for the API that `access` leads to, or why there is none. `None`
/// when it would be made as the one `before`.
pub async fn client(
    access: &Access,
    options: &Options,
    before: Option<Fingerprint>,
) -> Result<Option<(kube::Client, Fingerprint)>, String> {
    let mut config = access.load(options.exec_plugins).await.map_err(|error| error.to_string())?;
    // Who asks decides what to ask again, and when: by then it may be something
    // else.
    config.default_retry = false;
    let fingerprint = access::fingerprint(&config);
    if before == Some(fingerprint) {
        return Ok(None);
    }
    let client = api::client(config, options.patience).await;
    Ok(Some((client.map_err(|failure| failure.to_string())?, fingerprint)))
}

/// What feeds tell, for who wants to see it.
pub type Tap = mpsc::UnboundedSender<(Kind, Step<Item>)>;

/// Reads a cluster from its API server.
#[derive(Debug)]
pub struct KubernetesSource {
    cluster: ClusterId,
    access: Access,
    options: Options,
    tap: Option<Tap>,
}

impl KubernetesSource {
    /// A source for the cluster that `access` leads to.
    pub fn new(cluster: ClusterId, access: Access, options: Options) -> Self {
        Self { cluster, access, options, tap: None }
    }

    /// Shows all that is told by the server to `tap` as well.
    pub fn tapped(mut self, tap: Tap) -> Self {
        self.tap = Some(tap);
        self
    }
}

impl Source for KubernetesSource {
    fn start(self: Box<Self>) -> Feed {
        // One view at a time: a slow consumer gets the latest.
        let (events, receiver) = mpsc::channel(1);
        // Objects are converted on a thread of the cluster's own, so that
        // no cluster delays another, nor the daemon.
        // Without a thread the feed ends at once, and its consumer says so.
        let _ = std::thread::Builder::new().name("tieline-kube".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let closed = events.clone();
                tokio::select! {
                    () = closed.closed() => {}
                    () = self.run(events) => {}
                }
            });
            // A program that hangs must not keep the thread.
            runtime.shutdown_background();
        });
        Feed { events: receiver, stop: Box::new(()) }
    }
}

impl KubernetesSource {
    async fn run(self, events: mpsc::Sender<SourceEvent>) {
        let mut outbox = Outbox { events, said: Said::Nothing };
        let mut gathered = Gathered::new(self.cluster.clone());
        let (credentials, mut changes) = credentials(&self.access, &self.options);
        let mut backoff = Backoff::default();
        loop {
            let ended = tokio::select! {
                biased;
                ended = self.contact(&credentials, &mut gathered, &mut outbox) => ended,
                () = changes.next() => {
                    backoff.reset();
                    gathered.remark(None);
                    continue;
                }
            };
            if outbox.is_synced() {
                backoff.reset();
            }
            let mut pause = backoff.next();
            match ended {
                Err(error) => outbox.unconfigured(error.to_string()).await,
                Ok(Ended::Regroup | Ended::Renew) => {}
                Ok(Ended::Failed(failure)) => {
                    pause = pause.max(failure.cause.retry_after().unwrap_or_default());
                    outbox.lost(format!("{}: {failure}", self.access)).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changes.next() => backoff.reset(),
            }
        }
    }

    /// One contact, with the credentials of this moment.
    async fn contact(
        &self,
        credentials: &Credentials,
        gathered: &mut Gathered,
        outbox: &mut Outbox,
    ) -> Result<Ended, AccessError> {
        let (config, renewal) = credentials.load().await?;
        let api = match Api::new(config, self.options.patience).await {
            Err(failure) => return Ok(Ended::Failed(failure)),
            Ok(api) => api,
        };
        let session = session(&api, &self.options, gathered, outbox, self.tap.as_ref());
        Ok(match renewal {
            None => session.await,
            // What is known stays, as with a Secret that has changed.
            Some(at) => timeout_at(at, session).await.unwrap_or(Ended::Renew),
        })
    }
}

/// What the consumer was told last.
#[derive(PartialEq, Eq)]
enum Said {
    Nothing,
    Connected,
    Synced,
    Lost(String),
    Unconfigured(String),
}

/// Tells each thing once.
struct Outbox {
    events: mpsc::Sender<SourceEvent>,
    said: Said,
}

impl Outbox {
    fn is_synced(&self) -> bool {
        self.said == Said::Synced
    }

    async fn say(&mut self, said: Said, event: SourceEvent) {
        if self.said != said {
            self.said = said;
            // Without a consumer the source ends by itself.
            let _ = self.events.send(event).await;
        }
    }

    async fn connected(&mut self) {
        if !self.is_synced() {
            self.say(Said::Connected, SourceEvent::Connected).await;
        }
    }

    async fn view(&mut self, view: View) {
        let event = match self.said {
            Said::Synced => SourceEvent::Updated(view),
            _ => SourceEvent::Synced(view),
        };
        self.said = Said::Synced;
        let _ = self.events.send(event).await;
    }

    async fn lost(&mut self, reason: String) {
        self.say(Said::Lost(reason.clone()), SourceEvent::Lost(reason)).await;
    }

    async fn unconfigured(&mut self, reason: String) {
        self.say(Said::Unconfigured(reason.clone()), SourceEvent::Unconfigured(reason)).await;
    }
}
