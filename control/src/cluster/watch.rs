//! A directory of manifests on disk as a [`Source`].
//!
//! The directory is read with its subdirectories; links are followed, names
//! that begin with a dot and files that are not `.yaml`, `.yml` or `.json` are
//! not read. A ConfigMap mount, which swaps the link `..data`, changes at once
//! as a whole that way.
//!
//! Kernel notifications say when to look, never what has changed; a slow poll
//! backs them up. A file that someone has open for writing is waited for, so
//! that half of it is not taken for the whole. A directory that can't be read
//! is [`SourceEvent::Lost`]: an operator who wants its objects gone deletes the
//! files in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::files::{Content, Files, Loaded, load};
use super::manifest::{MAX_FILE_BYTES, ManifestError};
use super::{Feed, Source, SourceEvent, View};
use crate::state::ClusterId;

/// How long it must be quiet after a change before the directory is read.
const QUIET: Duration = Duration::from_millis(3);
/// Changes that go on and on are not put off for longer than this.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// A file that is written to and not closed is not waited for longer than this.
const OPEN_WRITER: Duration = Duration::from_secs(1);
/// How often the directory is looked at without any notification.
const POLL: Duration = Duration::from_secs(2);
/// File systems stamp changes coarsely: what was changed this shortly before
/// it was read is read again next time.
const STAMP_GRAIN: Duration = Duration::from_secs(1);
/// How deep directories may be nested.
const MAX_DEPTH: usize = 8;
/// How many files a directory may hold.
const MAX_FILES: usize = 100_000;

/// Reads a cluster from a directory.
#[derive(Clone, Debug)]
pub struct FilesSource {
    cluster: ClusterId,
    directory: PathBuf,
}

impl FilesSource {
    /// A source for `cluster`'s manifests in `directory`.
    pub fn new(cluster: ClusterId, directory: impl Into<PathBuf>) -> Self {
        Self { cluster, directory: directory.into() }
    }

    /// Reads the directory once, for commands that don't stay.
    ///
    /// # Errors
    /// When the directory can't be read; what is wrong in its files is in the
    /// view's conditions.
    pub fn read(&self) -> Result<View, String> {
        let files = Scanner::default().scan(&self.directory)?;
        Ok(load(&Loaded::new(self.cluster.clone()), files).view().clone())
    }
}

impl Source for FilesSource {
    fn start(self: Box<Self>) -> Feed {
        let (events, receiver) = mpsc::channel(4);
        let (wakes, woken) = channel();
        let stop = Stop(wakes.clone());
        let worker = Worker {
            directory: self.directory,
            loaded: Loaded::new(self.cluster),
            scanner: Scanner::default(),
            watch: Watch { wakes, watcher: None, watched: None },
            state: State::Unknown,
            events,
        };
        // Without a thread the feed ends at once, and its consumer says so.
        let _ = std::thread::Builder::new()
            .name("tieline-files".to_owned())
            .spawn(move || worker.run(&woken));
        Feed { events: receiver, stop: Box::new(stop) }
    }
}

/// What wakes the worker.
enum Wake {
    /// Something changed at these paths.
    Changed(Vec<PathBuf>, Writing),
    /// Nobody listens any more.
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Goes,
    Ended,
}

struct Stop(Sender<Wake>);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = self.0.send(Wake::Stop);
    }
}

/// What the consumer was told last.
#[derive(PartialEq, Eq)]
enum State {
    Unknown,
    Synced,
    Lost(String),
}

struct Worker {
    directory: PathBuf,
    loaded: Loaded,
    scanner: Scanner,
    watch: Watch,
    state: State,
    events: mpsc::Sender<SourceEvent>,
}

impl Worker {
    fn run(mut self, woken: &Receiver<Wake>) {
        loop {
            // Watched before it is read: nothing falls between the two.
            self.watch.renew(&self.directory);
            if !self.look() || !wait(woken) {
                return;
            }
        }
    }

    /// Reads the directory and tells of it. Returns whether anyone listens.
    fn look(&mut self) -> bool {
        let files = match self.scanner.scan(&self.directory) {
            Ok(files) => files,
            Err(reason) => return self.lost(reason),
        };
        let next = load(&self.loaded, files);
        let changed = next.view() != self.loaded.view();
        self.loaded = next;
        let view = self.loaded.view().clone();
        if self.state == State::Synced {
            return !changed || self.tell(SourceEvent::Updated(view));
        }
        self.state = State::Synced;
        self.tell(SourceEvent::Connected) && self.tell(SourceEvent::Synced(view))
    }

    fn lost(&mut self, reason: String) -> bool {
        let state = State::Lost(reason.clone());
        if self.state == state {
            return true;
        }
        self.state = state;
        self.tell(SourceEvent::Lost(reason))
    }

    fn tell(&self, event: SourceEvent) -> bool {
        self.events.blocking_send(event).is_ok()
    }
}

/// Waits for a change to be complete, or for the poll. Returns whether to go
/// on.
fn wait(woken: &Receiver<Wake>) -> bool {
    let mut open = BTreeSet::new();
    let mut first = None;
    let mut pause = POLL;
    loop {
        match woken.recv_timeout(pause) {
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Wake::Changed(paths, Writing::Goes)) => open.extend(paths),
            Ok(Wake::Changed(paths, Writing::Ended)) => {
                for path in paths {
                    open.remove(&path);
                }
            }
        }
        let first = *first.get_or_insert_with(Instant::now);
        let (limit, quiet) = match open.is_empty() {
            true => (LONGEST_WAIT, QUIET),
            false => (OPEN_WRITER, OPEN_WRITER),
        };
        let left = limit.saturating_sub(first.elapsed());
        if left.is_zero() {
            return true;
        }
        pause = left.min(quiet);
    }
}

/// The kernel's notifications, as long as the directory is the same one.
struct Watch {
    wakes: Sender<Wake>,
    watcher: Option<RecommendedWatcher>,
    watched: Option<Identity>,
}

/// Which directory it is: device, inode and, because inode numbers are used
/// again, when it was made.
type Identity = (u64, u64, Option<SystemTime>);

impl Watch {
    fn renew(&mut self, directory: &Path) {
        let identity = |m: Metadata| (m.dev(), m.ino(), m.created().ok());
        let found = fs::metadata(directory).ok().map(identity);
        if found == self.watched && self.watcher.is_some() == found.is_some() {
            return;
        }
        self.watcher = None;
        self.watched = found;
        if found.is_none() {
            return;
        }
        let wakes = self.wakes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if let Some(wake) = wake(event) {
                let _ = wakes.send(wake);
            }
        });
        let watching = watcher.and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::Recursive).map(|()| watcher)
        });
        match watching {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!(
                directory = %directory.display(),
                %error,
                "no change notifications, so changes are seen within two seconds; \
                 raise fs.inotify.max_user_watches or max_user_instances"
            ),
        }
    }
}

fn wake(event: notify::Result<notify::Event>) -> Option<Wake> {
    // An error, such as too many events at once, means: look.
    let Ok(event) = event else { return Some(Wake::Changed(Vec::new(), Writing::Ended)) };
    let writing = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Writing::Ended,
        EventKind::Access(_) => return None,
        EventKind::Modify(ModifyKind::Data(_)) => Writing::Goes,
        // Names come and go, of directories and of the link `..data` too.
        _ => return Some(Wake::Changed(event.paths, Writing::Ended)),
    };
    // An editor's hidden file may be written to and stay open for hours.
    let manifest = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| !name.starts_with('.') && is_manifest(name))
    };
    event.paths.iter().any(manifest).then_some(Wake::Changed(event.paths, writing))
}

/// Reads a directory, and of files that are as they were only that.
#[derive(Default)]
struct Scanner {
    known: BTreeMap<String, Stamp>,
}

/// By what a file is known to be unchanged.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change right after `now` would show.
    fn settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).map(Duration::from_secs).unwrap_or_default();
        now.checked_sub(changed).is_some_and(|age| age > 2 * STAMP_GRAIN)
    }
}

impl Scanner {
    fn scan(&mut self, directory: &Path) -> Result<Files, String> {
        let mut walk = Walk::default();
        walk.enter(directory, "", 0)?;
        let mut known = BTreeMap::new();
        let mut files = Files::new();
        for (name, path) in walk.files {
            let content = self.content(&name, &path, &mut known);
            // A file that has gone since it was listed has gone.
            if let Some(content) = content {
                files.insert(name, content);
            }
        }
        self.known = known;
        Ok(files)
    }

    fn content(
        &self,
        name: &str,
        path: &Path,
        known: &mut BTreeMap<String, Stamp>,
    ) -> Option<Content> {
        let now = SystemTime::now();
        let unreadable = |error: io::Error| {
            let reason = error.to_string();
            (error.kind() != io::ErrorKind::NotFound)
                .then_some(Content::Unreadable(ManifestError::Unreadable { reason }))
        };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => return unreadable(error),
        };
        if !metadata.is_file() {
            return Some(Content::Unreadable(ManifestError::NoFile));
        }
        let stamp = Stamp::new(&metadata);
        let before = self.known.get(name);
        if before == Some(&stamp) {
            known.insert(name.to_owned(), stamp);
            return Some(Content::Unchanged);
        }
        if stamp.size > MAX_FILE_BYTES as u64 {
            let error = ManifestError::TooLarge { bytes: stamp.size };
            return Some(Content::Unreadable(error));
        }
        match fs::read(path) {
            Ok(bytes) => {
                if stamp.settled(now) {
                    known.insert(name.to_owned(), stamp);
                }
                Some(Content::Bytes(bytes))
            }
            Err(error) => unreadable(error),
        }
    }
}

/// The manifest files of a directory.
#[derive(Default)]
struct Walk {
    files: Vec<(String, PathBuf)>,
    entered: BTreeSet<(u64, u64)>,
}

impl Walk {
    /// A subdirectory that can't be read fails the whole: its objects must not
    /// be taken for deleted.
    fn enter(&mut self, directory: &Path, prefix: &str, depth: usize) -> Result<(), String> {
        let error = |error: io::Error| {
            let remedy = "create it, or correct its name or permissions";
            format!("directory {}: {error}; {remedy}", directory.display())
        };
        let metadata = fs::metadata(directory).map_err(error)?;
        // A link may lead back to where we came from.
        if !self.entered.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        let entries: Result<Vec<_>, _> = fs::read_dir(directory).map_err(error)?.collect();
        let mut entries = entries.map_err(error)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let name = format!("{prefix}{name}");
            let path = entry.path();
            // What can't be looked at is a file as far as its name says so.
            let is_dir = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if is_dir && depth < MAX_DEPTH {
                let entered = self.enter(&path, &format!("{name}/"), depth + 1);
                // Gone since it was listed is gone.
                if path.exists() {
                    entered?;
                }
            } else if !is_dir && is_manifest(&name) {
                self.files.push((name, path));
            }
        }
        if self.files.len() > MAX_FILES {
            let directory = directory.display();
            return Err(format!("directory {directory}: more than {MAX_FILES} files; join some"));
        }
        Ok(())
    }
}

fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests;
