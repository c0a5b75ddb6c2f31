//! Tells when files or directories have other content than before.
//!
//! What is watched is content, not events: whatever happens in the file system
//! only leads to a comparison, so that lost, doubled and misleading events do
//! no harm, and writing the same again is no change. A Kubernetes ConfigMap is
//! a directory whose `..data` symlink is swapped, so it is always directories
//! that are watched (`place`), also for a file; and those that are gone,
//! come back, or can't be watched at all are looked at every [`POLL`].
//!
//! Must not know: what the content means. Start reading at [`Watch::start`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::RecommendedWatcher;
use notify::event::{AccessKind, AccessMode, EventKind};

mod content;
mod place;

use content::Digest;
use place::Places;

/// How long the file system must be quiet before content is compared: a
/// ConfigMap swap and an editor's save are several events.
pub const QUIET: Duration = Duration::from_millis(50);

/// Longest that a comparison is put off while the file system is not quiet.
pub const LONGEST_DELAY: Duration = Duration::from_millis(500);

/// How often places that can't be watched are looked at, and those that can
/// are checked for still being the same.
pub const POLL: Duration = Duration::from_secs(1);

/// Why nothing can be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No thread can be started.
    #[error("no thread to watch files with: {0}; raise the limit of processes")]
    Thread(#[source] std::io::Error),
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

enum Wake {
    Event,
    Stop,
}

impl Watch {
    /// Calls `changed` whenever the content of any of `paths` is other than at
    /// the call before (or than at this call of `start`, for the first time),
    /// with the paths that it holds of.
    ///
    /// Each path is a file or a directory and need not exist: absence is a
    /// content too. The content of a directory is that of the files directly in
    /// it, symlinks to files included, hidden names excluded. Start to
    /// watch before reading, so that no change falls in between.
    ///
    /// `changed` is called on a thread of the watch's own, never by two at a
    /// time. While it runs nothing is missed: changes are reported afterwards.
    /// When the kernel has no inotify instance left, content is
    /// compared every [`POLL`] instead.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start<I>(
        paths: I,
        changed: impl FnMut(&[PathBuf]) + Send + 'static,
    ) -> Result<Self, WatchError>
    where
        I: IntoIterator<Item: Into<PathBuf>>,
    {
        let (wake, woken) = channel();
        let mut places = Places::new(watcher(wake.clone()));
        let paths: Vec<PathBuf> = paths.into_iter().map(Into::into).collect();
        // First the places, then the content: a change in between is an event.
        places.arm(&paths);
        let seen = paths.into_iter().map(|path| (Digest::of(&path), path));
        let seen = seen.map(|(digest, path)| (path, digest)).collect();
        let watching = Watching { places, seen, woken, changed };
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watching.run())
            .map_err(WatchError::Thread)?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for Watch {
    /// Ends the watch. No call of `changed` runs afterwards, unless this is one.
    fn drop(&mut self) {
        // The thread has ended already if nobody receives.
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of `changed` has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// An inotify instance that wakes the thread, if there is one to be had.
fn watcher(wake: Sender<Wake>) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        // Comparing opens files, which must not lead to comparing again.
        let reading = matches!(
            event,
            Ok(notify::Event { kind: EventKind::Access(kind), .. })
                if kind != AccessKind::Close(AccessMode::Write)
        );
        if !reading {
            // The watch may have ended.
            let _ = wake.send(Wake::Event);
        }
    };
    notify::recommended_watcher(handler).ok()
}

/// The thread's side of a watch.
struct Watching<F> {
    places: Places,
    seen: BTreeMap<PathBuf, Digest>,
    woken: Receiver<Wake>,
    changed: F,
}

impl<F: FnMut(&[PathBuf])> Watching<F> {
    fn run(mut self) {
        loop {
            let heard = match self.woken.recv_timeout(POLL) {
                Ok(Wake::Event) => {
                    if self.settle().is_break() {
                        return;
                    }
                    true
                }
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => false,
            };
            let missed = self.places.arm(self.seen.keys());
            if heard || missed {
                self.compare();
            }
        }
    }

    /// Waits until the file system is quiet.
    fn settle(&self) -> std::ops::ControlFlow<()> {
        let latest = Instant::now() + LONGEST_DELAY;
        loop {
            let left = latest.saturating_duration_since(Instant::now());
            match self.woken.recv_timeout(QUIET.min(left)) {
                Ok(Wake::Event) if left > Duration::ZERO => {}
                Ok(Wake::Event) | Err(RecvTimeoutError::Timeout) => {
                    return std::ops::ControlFlow::Continue(());
                }
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return std::ops::ControlFlow::Break(());
                }
            }
        }
    }

    fn compare(&mut self) {
        let mut changed = Vec::new();
        for (path, seen) in &mut self.seen {
            let now = Digest::of(path);
            if now != *seen {
                *seen = now;
                changed.push(path.clone());
            }
        }
        if !changed.is_empty() {
            (self.changed)(&changed);
        }
    }
}

#[cfg(test)]
mod tests;
