//! The directories whose events tell of a change at the watched paths.
//!
//! For a file that is the directory it is in, for a directory the directory
//! itself, for a symlink the directory it is in and that of what it leads to,
//! and for what does not exist the directory it would be in.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// What tells two directories of one name apart: device and inode.
type Identity = (u64, u64);

/// The directories that are watched at present.
pub(super) struct Places {
    watcher: Option<RecommendedWatcher>,
    armed: BTreeMap<PathBuf, Identity>,
}

impl Places {
    /// Without a watcher no directory is ever watched.
    pub(super) fn new(watcher: Option<RecommendedWatcher>) -> Self {
        Self { watcher, armed: BTreeMap::new() }
    }

    /// Watches the directories that matter for these paths now, and no others.
    /// Returns whether a change may have gone without an event: if these are
    /// not the directories that were watched until now.
    pub(super) fn arm<'a>(&mut self, paths: impl IntoIterator<Item = &'a PathBuf>) -> bool {
        let wanted: BTreeMap<_, _> = paths.into_iter().flat_map(|path| places(path)).collect();
        let missed = wanted != self.armed;
        let before = std::mem::take(&mut self.armed);
        let Some(watcher) = &mut self.watcher else { return missed };
        for (path, identity) in before {
            if wanted.get(&path) != Some(&identity) {
                // Fails if the directory is gone, and its watch with it.
                let _ = watcher.unwatch(&path);
            }
        }
        for (path, identity) in wanted {
            // Also if it is watched already, which changes nothing then: the
            // directory may be another one that has got the old one's inode.
            if watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
                self.armed.insert(path, identity);
            }
        }
        missed
    }
}

/// The directories to watch for one path; none if not even its parent exists.
fn places(path: &Path) -> Vec<(PathBuf, Identity)> {
    let directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let end = path.canonicalize().ok();
    let nearest = if directory { None } else { parent(path).canonicalize().ok() };
    let furthest = end.map(|end| if end.is_dir() { end } else { parent(&end).to_owned() });
    let identified = |place: PathBuf| identify(&place).map(|identity| (place, identity));
    [nearest, furthest].into_iter().flatten().filter_map(identified).collect()
}

/// The directory that a path is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

fn identify(path: &Path) -> Option<Identity> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}
