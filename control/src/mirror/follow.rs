//! The watches: of the Lease, and of our objects.

use futures::StreamExt;
use kube::core::DynamicObject;
use kube::runtime::watcher;
use tokio::sync::mpsc;

use super::api::{self, Failure};
use super::object::Written;
use super::writer::{Event, wait};

pub(super) type Stream =
    futures::stream::BoxStream<'static, watcher::Result<watcher::Event<DynamicObject>>>;

pub(super) async fn follow_lease(mut stream: Stream, sender: mpsc::Sender<Event>) {
    let (mut failures, mut found) = (0, false);
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(watcher::Event::Init) => {
                found = false;
                continue;
            }
            Ok(watcher::Event::InitDone) if found => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => Event::Lease(None),
            Ok(watcher::Event::InitApply(lease) | watcher::Event::Apply(lease)) => {
                found = true;
                Event::Lease(Some(api::record(&lease)))
            }
            Err(error) => {
                failures = failed("lease", error, failures, &sender).await;
                continue;
            }
        };
        failures = 0;
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

pub(super) async fn follow_objects(kind: Written, mut stream: Stream, sender: mpsc::Sender<Event>) {
    let mut failures = 0;
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                if !matches!(event, watcher::Event::Init) {
                    failures = 0;
                }
                if sender.send(Event::Object(kind, Box::new(event))).await.is_err() {
                    return;
                }
            }
            Err(error) => failures = failed("watch", error, failures, &sender).await,
        }
    }
}

/// Tells of a watch's failure and waits; the number of failures.
async fn failed(
    what: &'static str,
    error: watcher::Error,
    failures: u32,
    sender: &mpsc::Sender<Event>,
) -> u32 {
    let failure = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error.into(),
        // A watch that is too old is begun anew; nothing is wrong.
        watcher::Error::WatchError(status) if status.code == 410 => return failures,
        other => Failure::Unreachable(other.to_string()),
    };
    let _ = sender.send(Event::Failed(what, failure)).await;
    tokio::time::sleep(wait(failures)).await;
    failures + 1
}
