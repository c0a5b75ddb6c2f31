//! A directory's files to the state of a cluster; pure.
//!
//! [`load`] takes what was in force and the files as they are now. A broken
//! object keeps its last good version in force, a broken file all that it
//! held; everything else is taken over. Files whose bytes are the same are not
//! parsed again. Without broken objects the outcome does not depend on what
//! was in force before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::manifest::{Item, ManifestError, read};
use super::object::{Kind, Object, insert};
use super::{FieldError, Scope, View};
use crate::state::{ClusterId, ClusterObjects, Condition, ObjectName, Severity};

/// The files of a directory, by path relative to it.
pub type Files = BTreeMap<String, Content>;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What it held when it was last loaded.
    Unchanged,
    /// It can't be read.
    Unreadable(ManifestError),
}

/// The files of a cluster, as read.
#[derive(Clone, Debug)]
pub struct Loaded {
    cluster: ClusterId,
    files: BTreeMap<String, Arc<File>>,
    view: View,
}

/// Kind and name of an object as users see it.
type Key = (Kind, ObjectName);

/// A file and what of it is in force.
#[derive(Clone, Debug)]
struct File {
    /// Hash of the bytes that it was made from.
    hash: Option<u64>,
    /// By name as written.
    objects: BTreeMap<Key, Entry>,
    problems: Vec<Problem>,
    ignored: BTreeMap<String, usize>,
}

/// An object in force.
#[derive(Clone, Debug)]
struct Entry {
    document: usize,
    key: Key,
    object: Option<Object>,
    /// The file holds a later, broken version.
    kept: bool,
}

/// Something wrong in a file.
#[derive(Clone, Debug)]
struct Problem {
    document: Option<usize>,
    severity: Severity,
    /// As written; the file itself when it is missing.
    object: Option<String>,
    text: String,
    /// A broken object's name, to say what is in force instead.
    key: Option<Key>,
}

impl Loaded {
    /// No files yet.
    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster, files: BTreeMap::new(), view: View::default() }
    }

    /// The state that the files add up to.
    pub fn view(&self) -> &View {
        &self.view
    }

    fn scope(&self) -> Scope {
        if self.cluster == ClusterId::Local { Scope::Local } else { Scope::Remote }
    }
}

/// The files as they are now, over what was in force.
pub fn load(previous: &Loaded, files: Files) -> Loaded {
    let scope = previous.scope();
    let (cluster, view) = (previous.cluster.clone(), previous.view.clone());
    let mut next = Loaded { cluster, files: BTreeMap::new(), view };
    for (path, content) in files {
        let file = match (previous.files.get(&path), content) {
            (Some(file), Content::Unchanged) => file.clone(),
            (Some(file), Content::Bytes(bytes)) if file.hash == Some(hash(&bytes)) => file.clone(),
            (before, content) => Arc::new(File::new(content, before.map(|file| &**file), scope)),
        };
        next.files.insert(path, file);
    }
    next.recover(previous);
    next.view = next.merge(&previous.view);
    next
}

impl File {
    fn new(content: Content, before: Option<&Self>, scope: Scope) -> Self {
        let (hash, manifest) = match content {
            Content::Bytes(bytes) => (Some(hash(&bytes)), read(&bytes, scope)),
            Content::Unreadable(error) => (None, Err(error)),
            Content::Unchanged => {
                let reason = "its content was not given".to_owned();
                (None, Err(ManifestError::Unreadable { reason }))
            }
        };
        let mut file =
            Self { hash, objects: BTreeMap::new(), problems: Vec::new(), ignored: BTreeMap::new() };
        match manifest {
            Ok(manifest) => {
                file.ignored = manifest.ignored;
                let unnamed = |item: &Item| matches!(item, Item::Broken { written: None, .. });
                let unnamed = manifest.items.iter().any(unnamed);
                for item in manifest.items {
                    file.add(item, before);
                }
                if let Some(before) = before.filter(|_| unnamed) {
                    file.keep_lost(before);
                }
            }
            Err(error) => file.keep_all(&error, before),
        }
        file
    }

    fn add(&mut self, item: Item, before: Option<&Self>) {
        match item {
            Item::Good { document, kind, written, converted } => {
                let written = (kind, written);
                for warning in converted.warnings {
                    self.problem(document, Severity::Warning, Some(&written), &warning);
                }
                let key = (kind, converted.name);
                // An equal object stays the same one, so that views share it.
                let last = before.and_then(|file| file.objects.get(&written));
                let object = match last {
                    Some(last) if last.object == converted.object => last.object.clone(),
                    _ => converted.object,
                };
                self.insert(written, Entry { document, key, object, kept: false });
            }
            Item::Broken { document, label, kind, written, error } => {
                let key = kind.zip(written);
                self.problem(document, Severity::Error, key.as_ref(), &error);
                if let Some(problem) = self.problems.last_mut() {
                    problem.object.get_or_insert(label);
                    problem.key = key.clone();
                }
                let Some(key) = key else { return };
                if let Some(entry) = before.and_then(|file| file.objects.get(&key)) {
                    self.insert(key, Entry { document, kept: true, ..entry.clone() });
                }
            }
        }
    }

    fn insert(&mut self, written: Key, entry: Entry) {
        let document = entry.document;
        if let Some(first) = self.objects.get(&written) {
            let text = format!(
                "is written in document {} already, which is in force; remove one of the two",
                first.document
            );
            self.problems.push(Problem {
                document: Some(document),
                severity: Severity::Error,
                object: Some(describe(&written)),
                text,
                key: None,
            });
        } else {
            self.objects.insert(written, entry);
        }
    }

    fn problem(
        &mut self,
        document: usize,
        severity: Severity,
        object: Option<&Key>,
        error: &FieldError,
    ) {
        self.problems.push(Problem {
            document: Some(document),
            severity,
            object: object.map(describe),
            text: error.to_string(),
            key: None,
        });
    }

    /// An object without a readable name may be any that the file has lost.
    fn keep_lost(&mut self, before: &Self) {
        for (written, entry) in &before.objects {
            let kept = Entry { kept: true, ..entry.clone() };
            self.objects.entry(written.clone()).or_insert(kept);
        }
    }

    fn keep_all(&mut self, error: &ManifestError, before: Option<&Self>) {
        if let Some(before) = before {
            self.objects = before.objects.clone();
            for entry in self.objects.values_mut() {
                entry.kept = true;
            }
        }
        let consequence = match self.objects.len() {
            0 => "nothing of it is in force".to_owned(),
            count => format!("the {count} objects that it last held stay in force"),
        };
        self.problems.push(Problem {
            document: None,
            severity: Severity::Error,
            object: None,
            text: format!("{error}; {consequence}"),
            key: None,
        });
    }
}

impl Loaded {
    /// A broken object that no file holds a good version of has perhaps moved
    /// here from another file, where its last good version was.
    fn recover(&mut self, previous: &Self) {
        let broken = self.files.values().any(|file| file.problems.iter().any(|p| p.key.is_some()));
        if !broken {
            return;
        }
        let known: BTreeSet<Key> =
            self.files.values().flat_map(|file| file.objects.keys().cloned()).collect();
        for file in self.files.values_mut() {
            let lost: Vec<_> = file
                .problems
                .iter()
                .filter_map(|problem| problem.key.clone().zip(problem.document))
                .filter(|(key, _)| !known.contains(key))
                .collect();
            for (key, document) in lost {
                let last = previous.files.values().find_map(|file| file.objects.get(&key));
                if let Some(entry) = last {
                    let entry = Entry { document, kept: true, ..entry.clone() };
                    Arc::make_mut(file).objects.insert(key, entry);
                }
            }
        }
    }

    fn merge(&self, previous: &View) -> View {
        let mut objects = ClusterObjects::default();
        let mut conditions = Vec::new();
        let mut ignored = BTreeMap::new();
        let winners = self.winners(&mut conditions);
        for ((kind, name), (_, entry)) in &winners {
            if let Some(object) = &entry.object {
                insert(&mut objects, *kind, name, object);
            }
        }
        for (path, file) in &self.files {
            for (label, count) in &file.ignored {
                *ignored.entry(label.clone()).or_default() += count;
            }
            for problem in &file.problems {
                conditions.push(self.condition(path, problem, &winners));
            }
        }
        conditions.sort();
        conditions.dedup();
        View {
            objects: same_or(&previous.objects, objects),
            conditions: if *previous.conditions == *conditions {
                previous.conditions.clone()
            } else {
                conditions.into()
            },
            ignored: same_or(&previous.ignored, ignored),
            calico_group: None,
        }
    }

    /// Of several files with one object, those win whose version is the latest
    /// good one; among these the first by path.
    fn winners<'a>(
        &'a self,
        conditions: &mut Vec<Condition>,
    ) -> BTreeMap<&'a Key, (&'a str, &'a Entry)> {
        let mut winners: BTreeMap<&Key, (&str, &Entry)> = BTreeMap::new();
        for kept in [false, true] {
            for (path, file) in &self.files {
                for entry in file.objects.values().filter(|entry| entry.kept == kept) {
                    let (first, _) = *winners.entry(&entry.key).or_insert((path, entry));
                    if first != path {
                        let (kind, name) = &entry.key;
                        conditions.push(Condition {
                            severity: Severity::Error,
                            cluster: self.cluster.clone(),
                            object: describe(&(*kind, name.clone())),
                            message: format!(
                                "{path} document {}: is written in {first} already, which is in \
                                 force; remove one of the two",
                                entry.document
                            ),
                        });
                    }
                }
            }
        }
        winners
    }

    fn condition(
        &self,
        path: &str,
        problem: &Problem,
        winners: &BTreeMap<&Key, (&str, &Entry)>,
    ) -> Condition {
        let place =
            problem.document.map_or_else(|| path.to_owned(), |n| format!("{path} document {n}"));
        let consequence = match &problem.key {
            None => "",
            Some(key) => match self.files[path].objects.get(key) {
                Some(entry) if entry.kept => "; its last good version stays in force",
                _ if winners.contains_key(key) => "; another file's version is in force",
                _ => "; it is not in force",
            },
        };
        Condition {
            severity: problem.severity,
            cluster: self.cluster.clone(),
            object: problem.object.clone().unwrap_or_else(|| format!("file {path}")),
            message: format!("{place}: {}{consequence}", problem.text),
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    // Fixed keys: the value is compared within one process only, but by two
    // loads.
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(bytes)
}

fn same_or<T: PartialEq>(previous: &Arc<T>, next: T) -> Arc<T> {
    if **previous == next { previous.clone() } else { Arc::new(next) }
}

/// Kind and name, as in `Pod default/web-0`.
fn describe((kind, name): &Key) -> String {
    format!("{kind} {name}")
}

#[cfg(test)]
mod tests;
