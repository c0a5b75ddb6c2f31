//! The content of a file or a directory, as a number to compare.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// Stands for a content. Equal contents have equal digests; different ones
/// have different digests but for one chance in 2^64. Whoever can write the
/// files gains nothing by finding such a pair: the older one stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u64);

impl Digest {
    /// The present content at a path, absence and lack of access included.
    pub(super) fn of(path: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => directory(path, &mut hasher),
            Ok(metadata) if metadata.is_file() => file(path, &mut hasher),
            Ok(_) => "neither file nor directory".hash(&mut hasher),
            Err(error) => failure(error.kind(), &mut hasher),
        }
        Self(hasher.finish())
    }
}

fn directory(path: &Path, hasher: &mut DefaultHasher) {
    "directory".hash(hasher);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return failure(error.kind(), hasher),
    };
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    for name in names {
        let path = path.join(&name);
        // A pipe would be read for ever.
        if fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            name.hash(hasher);
            file(&path, hasher);
        }
    }
}

fn file(path: &Path, hasher: &mut DefaultHasher) {
    "file".hash(hasher);
    let mut opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) => return failure(error.kind(), hasher),
    };
    let mut buffer = [0; 16 * 1024];
    let mut length = 0_u64;
    loop {
        match opened.read(&mut buffer) {
            Ok(0) => return length.hash(hasher),
            Ok(read) => {
                hasher.write(&buffer[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return failure(error.kind(), hasher),
        }
    }
}

fn failure(kind: ErrorKind, hasher: &mut DefaultHasher) {
    "failure".hash(hasher);
    kind.hash(hasher);
}
