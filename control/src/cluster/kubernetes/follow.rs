//! One feed: a list by pages, then a watch, again and again.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::api::Api;
use super::failure::{Cause, Failure};
use super::gathered::{Change, Denial, Step};
use super::shape::Shape;
use super::wire::{Event, page, version};

/// Objects of a page.
const PAGE: usize = 500;
/// How often it is tried again to read what may not be read.
const DENIED: Duration = Duration::from_secs(15);
/// How often it is looked whether a kind is served by now.
const ABSENT: Duration = Duration::from_secs(60);
/// How soon it is looked again whether a kind is really not served any more.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The server ends watches after this time, and up to as much later.
const WATCH: Duration = Duration::from_secs(300);
/// A server that starts, or a kind that is new to it, asks to wait a little:
/// only what lasts longer is told.
const TROUBLE: Duration = Duration::from_secs(5);
/// A watch that ends sooner is not begun again at once.
const SHORT: Duration = Duration::from_secs(1);

/// What a feed reads.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Path of the resource, as in `/api/v1/pods`.
    pub(super) path: String,
    /// Which objects of it, as a field selector; empty for all.
    pub(super) fields: String,
    /// Resource and group, as roles name them.
    pub(super) resource: String,
    pub(super) shape: &'static Shape,
}

/// How long to wait before the next of several attempts: longer each time, and
/// never as long as others.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    pub(super) fn next(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1 << self.0.min(16)).min(Self::LONGEST);
        self.0 += 1;
        jittered(pause)
    }

    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

/// From half of a time to all of it.
pub(super) fn jittered(time: Duration) -> Duration {
    // Keys that differ each time: good enough for chance.
    let chance = ahash::RandomState::new().hash_one(time) % 1024;
    time / 2 + (time / 2048).saturating_mul(chance as u32)
}

/// Where a feed tells, and as whom.
pub(super) struct Teller<K, T> {
    pub(super) key: K,
    pub(super) told: mpsc::Sender<(K, Step<T>)>,
}

impl<K: Clone, T> Teller<K, T> {
    async fn tell(&self, step: Step<T>) {
        // Nobody listens any more when the session has ended, and so has this.
        let _ = self.told.send((self.key.clone(), step)).await;
    }
}

/// Follows a resource until something happens that is not about it alone.
/// `start` is where to go on from, `renew` ends a watch to begin it anew.
pub(super) async fn follow<K: Clone, T>(
    api: Api,
    target: Target,
    start: Option<String>,
    renew: std::sync::Arc<Notify>,
    read: impl Fn(Value) -> Option<T>,
    teller: Teller<K, T>,
) -> Failure {
    let mut feed = Following { api, target, renew, read, teller, version: start };
    let mut backoff = Backoff::default();
    let mut failing = None;
    // Whether the server was past its start when it was asked.
    let mut settled = false;
    loop {
        let begun = Instant::now();
        let sure = std::mem::take(&mut settled);
        let pause = match feed.once().await {
            Ok(()) if begun.elapsed() >= SHORT => {
                (backoff, failing) = (Backoff::default(), None);
                continue;
            }
            Ok(()) => backoff.next(),
            Err(failure) => match &failure.cause {
                Cause::Gone if feed.version.take().is_some() => continue,
                // What was there is not gone because of one answer; a server that
                // starts denies all custom resources at first, and all rights.
                Cause::NotFound | Cause::Forbidden(_) if !sure => {
                    let known = feed.version.take().is_some();
                    settled = feed.api.settled().await.is_ok();
                    if known || !settled { ASK_AGAIN } else { Duration::ZERO }
                }
                Cause::NotFound => {
                    tracing::debug!(resource = feed.target.resource, "is not served");
                    feed.teller.tell(Step::Absent).await;
                    jittered(ABSENT)
                }
                Cause::Forbidden(message) => {
                    let verb = if feed.version.is_some() { "watch" } else { "list" };
                    let resource = feed.target.resource.clone();
                    let denial = Denial { verb, resource, message: message.clone() };
                    feed.version = None;
                    feed.teller.tell(Step::Forbidden(denial)).await;
                    jittered(DENIED)
                }
                cause if cause.is_of_one_resource() => {
                    let since = *failing.get_or_insert(begun);
                    if since.elapsed() >= TROUBLE {
                        let words = format!("{}: {failure}", feed.target.resource);
                        feed.teller.tell(Step::Failing(words)).await;
                    }
                    sleep(backoff.next().max(cause.retry_after().unwrap_or_default())).await;
                    continue;
                }
                _ => return failure,
            },
        };
        failing = None;
        sleep(pause).await;
    }
}

struct Following<K, T, R> {
    api: Api,
    target: Target,
    renew: std::sync::Arc<Notify>,
    read: R,
    teller: Teller<K, T>,
    /// Where to go on from; a list is due if it is not known.
    version: Option<String>,
}

impl<K: Clone, T, R: Fn(Value) -> Option<T>> Following<K, T, R> {
    fn path(&self, query: &str) -> String {
        let Target { path, fields, .. } = &self.target;
        if fields.is_empty() {
            format!("{path}?{query}")
        } else {
            format!("{path}?{query}&fieldSelector={}", escaped(fields))
        }
    }

    /// A list, if one is due, and a watch until it ends.
    async fn once(&mut self) -> Result<(), Failure> {
        if self.version.is_none() {
            self.list().await?;
        }
        self.watch().await
    }

    async fn list(&mut self) -> Result<(), Failure> {
        self.teller.tell(Step::Begin).await;
        let mut more = String::new();
        loop {
            let mut query = format!("limit={PAGE}");
            if !more.is_empty() {
                query += &format!("&continue={}", escaped(&more));
            }
            let bytes = self.api.get(&self.path(&query)).await?;
            let mut items = Vec::new();
            let page = page(&bytes, self.target.shape, &mut |value| {
                items.extend((self.read)(value));
            })
            .map_err(|error| self.api.failure(Cause::Nonsense(error.to_string())))?;
            drop(bytes);
            self.teller.tell(Step::Page(items)).await;
            if page.r#continue.is_empty() {
                self.version = Some(page.resource_version.clone());
                self.teller.tell(Step::Listed(page.resource_version)).await;
                return Ok(());
            }
            more = page.r#continue;
        }
    }

    async fn watch(&mut self) -> Result<(), Failure> {
        let version = self.version.clone().unwrap_or_default();
        let seconds = WATCH.as_secs() + jittered(WATCH).as_secs();
        let query = format!(
            "watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}"
        );
        let mut lines = self.api.watch(&self.path(&query)).await?;
        self.teller.tell(Step::Watching).await;
        loop {
            let lines = tokio::select! {
                biased;
                lines = lines.next() => lines,
                () = self.renew.notified() => return Ok(()),
            };
            let lines = match lines {
                Ok(Some(lines)) => lines,
                Ok(None) => return Ok(()),
                // Whether the server is gone or only the connection shows when
                // it is asked again.
                Err(Failure { cause: Cause::BrokenOff(_) | Cause::Other(_), .. }) => return Ok(()),
                Err(failure) => return Err(failure),
            };
            let (step, refusal) = self.changes(&lines)?;
            self.teller.tell(step).await;
            if let Some(cause) = refusal {
                return Err(self.api.failure(cause));
            }
        }
    }

    /// What some lines tell, and why the watch has ended if it has.
    fn changes(&mut self, lines: &[u8]) -> Result<(Step<T>, Option<Cause>), Failure> {
        let mut changes = Vec::new();
        let mut refusal = None;
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event = Event::read(line, self.target.shape)
                .map_err(|error| self.api.failure(Cause::Nonsense(error.to_string())))?;
            let mut take = |value: Value, change: fn(T) -> Change<T>| {
                if let Some(version) = version(&value) {
                    self.version = Some(version.to_owned());
                }
                changes.extend((self.read)(value).map(change));
            };
            match event {
                Event::Put(value) => take(value, Change::Put),
                Event::Gone(value) => take(value, Change::Gone),
                Event::Bookmark(version) if version.is_empty() => {}
                Event::Bookmark(version) => self.version = Some(version),
                Event::Error(status) => {
                    refusal = Some(Cause::of_status(status.code, status, None));
                    break;
                }
            }
        }
        Ok((Step::Changed(changes, self.version.clone().unwrap_or_default()), refusal))
    }
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}
