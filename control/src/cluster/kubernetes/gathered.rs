//! What is known of one cluster, from what its API server has told; pure.
//!
//! Each kind is a feed of its own: a list, then what changes. [`Gathered`]
//! takes in their [`Step`]s in whatever order the feeds come to tell them; the
//! outcome is the same. It is *complete* when every feed that may be read is
//! listed and followed; until then nothing that it knows should be told.
//!
//! What can't be read, and what follows:
//!
//! - A kind that is not served has no objects. That is no error: it may be
//!   served later.
//! - A kind that may not be read (403) keeps what was known of it, and is
//!   named with the verb that is missing. If it never was known, a remote
//!   cluster counts without it: without nodes, pools or blocks there are no
//!   routes to it. Without namespaces or service accounts its pods don't
//!   count, because a label that is unknown is not a label that is absent.
//!   The local cluster does not count without any of its kinds, because what
//!   is allowed follows from all of them; but for staged policies, which are
//!   not enforced.
//! - A kind that can't be read for any other reason keeps the cluster from
//!   being complete.
//! - A broken object keeps its last good version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::HashSet;

use super::resources::{IDENTITY, dispensable, of, unasked};
use crate::cluster::object::{self, Converted, Kind, Object};
use crate::cluster::shared::Shared;
use crate::cluster::{FieldError, Scope, View};
use crate::state::{ClusterId, ClusterObjects, Condition, ObjectName, Severity};

mod renamed;

use renamed::Renamed;

/// What a feed of `T`s tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<T> {
    /// A list begins. What it does not name is gone when it ends.
    Begin,
    /// Objects of the list.
    Page(Vec<T>),
    /// The list has ended, as of this resource version.
    Listed(String),
    /// The server tells of changes from here on.
    Watching,
    /// Changes, in the server's order, up to this resource version.
    Changed(Vec<Change<T>>, String),
    /// It is not served.
    Absent,
    /// It may not be read.
    Forbidden(Denial),
    /// It can't be read; the reason says why, and the remedy.
    Failing(String),
}

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<T> {
    /// It is like this now.
    Put(T),
    /// It is gone; this is how it was.
    Gone(T),
}

/// A right that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// `list` or `watch`.
    pub verb: &'static str,
    /// Resource and group, as roles name them.
    pub resource: String,
    /// The server's words.
    pub message: String,
}

/// An object, converted.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name as stored.
    pub written: ObjectName,
    /// What has become of it.
    pub converted: Result<Converted, FieldError>,
}

/// A feed's progress.
#[derive(Clone, Debug, Default, PartialEq)]
enum Progress {
    /// Nothing was told since contact began.
    #[default]
    Unknown,
    /// A list is being read. The names that it has had so far, if there is
    /// anything that it may leave out.
    Listing(Option<HashSet<ObjectName>>),
    Listed,
    Complete,
    Absent,
    Forbidden(Denial),
    Failing(String),
}

#[derive(Clone, Debug, Default)]
struct Progressed {
    progress: Progress,
    /// Whether it was complete once: what is known of it is worth something.
    known: bool,
    version: Option<String>,
}

/// What is known of one cluster.
#[derive(Clone, Debug)]
pub struct Gathered {
    cluster: ClusterId,
    scope: Scope,
    feeds: BTreeMap<Kind, Progressed>,
    objects: Arc<ClusterObjects>,
    renamed: Renamed,
    shared: Shared,
    /// What is wrong with objects, by kind and name as stored.
    problems: BTreeMap<(Kind, ObjectName), Vec<(Severity, String)>>,
    /// What else is to be told of the cluster.
    remark: Option<Condition>,
    calico_group: Option<Arc<str>>,
    /// Whether the view was told as it is now.
    told: bool,
    view: View,
}

impl Gathered {
    /// Nothing is known yet.
    pub fn new(cluster: ClusterId) -> Self {
        let scope = if cluster == ClusterId::Local { Scope::Local } else { Scope::Remote };
        Self {
            feeds: of(scope).map(|resource| (resource.kind, Progressed::default())).collect(),
            cluster,
            scope,
            objects: Arc::default(),
            renamed: Renamed::default(),
            shared: Shared::default(),
            problems: BTreeMap::new(),
            remark: None,
            calico_group: None,
            told: false,
            view: View::default(),
        }
    }

    /// Whose they are.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Which of the cluster's objects count.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// UID of the cluster, when known.
    pub fn uid(&self) -> Option<&str> {
        self.objects.uid.as_deref()
    }

    /// Something to tell of the cluster as a whole.
    pub fn remark(&mut self, remark: Option<Condition>) {
        self.told &= self.remark == remark;
        self.remark = remark;
    }

    /// Where Calico's objects are, as far as it was told.
    pub fn calico_group(&self) -> Option<&str> {
        self.calico_group.as_deref()
    }

    /// Where Calico's objects are, if there are any.
    pub fn calico_in(&mut self, group: Option<&str>) {
        self.told &= self.calico_group.as_deref() == group;
        self.calico_group = group.map(Into::into);
    }

    /// The cluster is asked anew. What was followed to its end so far may be
    /// gone on from, unless the versions are `forgotten`.
    pub fn reconnect(&mut self, forgotten: bool) {
        for feed in self.feeds.values_mut() {
            // A list that was broken off leaves a mixture that only another
            // one puts right.
            if forgotten || !matches!(feed.progress, Progress::Complete) {
                feed.version = None;
            }
            feed.progress = Progress::Unknown;
        }
    }

    /// Where a kind's feed may go on from.
    pub fn version(&self, kind: Kind) -> Option<&str> {
        self.feeds.get(&kind)?.version.as_deref()
    }

    /// The greatest resource version that was told.
    pub fn newest(&self) -> u64 {
        let versions = self.feeds.values().filter_map(|feed| feed.version.as_deref());
        versions.filter_map(|version| version.parse().ok()).max().unwrap_or(0)
    }

    /// Takes in what a feed tells.
    pub fn tell(&mut self, kind: Kind, step: Step<Item>) {
        let Some(mut feed) = self.feeds.remove(&kind) else { return };
        match step {
            Step::Begin => {
                // A first list leaves nothing out.
                let sweep = !object::names(&self.objects, kind).is_empty()
                    || self.renamed.knows(kind)
                    || self.problems.keys().any(|(other, _)| *other == kind);
                feed.progress = Progress::Listing(sweep.then(HashSet::default));
                feed.version = None;
            }
            Step::Page(items) => {
                for item in items {
                    if let Progress::Listing(Some(seen)) = &mut feed.progress {
                        seen.insert(item.written.clone());
                    }
                    self.put(kind, item);
                }
            }
            Step::Listed(version) => {
                if let Progress::Listing(Some(seen)) = &feed.progress {
                    self.sweep(kind, seen);
                }
                feed.progress = Progress::Listed;
                feed.version = Some(version);
            }
            Step::Watching => {
                self.told &= feed.progress == Progress::Complete;
                feed.progress = Progress::Complete;
                feed.known = true;
            }
            Step::Changed(changes, version) => {
                for change in changes {
                    match change {
                        Change::Put(item) => self.put(kind, item),
                        Change::Gone(item) => self.remove(kind, &item.written),
                    }
                }
                if !version.is_empty() {
                    feed.version = Some(version);
                }
            }
            Step::Absent => {
                self.sweep(kind, &HashSet::default());
                self.told &= feed.progress == Progress::Absent;
                feed = Progressed { progress: Progress::Absent, known: true, version: None };
            }
            Step::Forbidden(denial) => {
                let progress = Progress::Forbidden(denial);
                self.told &= feed.progress == progress;
                feed.progress = progress;
                feed.version = None;
            }
            Step::Failing(reason) => feed.progress = Progress::Failing(reason),
        }
        self.feeds.insert(kind, feed);
    }

    /// Whether all that may be known is known and followed.
    pub fn complete(&self) -> bool {
        self.feeds.iter().all(|(kind, feed)| match &feed.progress {
            Progress::Complete | Progress::Absent => true,
            Progress::Forbidden(_) => feed.known || dispensable(*kind, self.scope),
            _ => false,
        })
    }

    /// What keeps it from being complete other than time.
    pub fn trouble(&self) -> Option<String> {
        self.feeds.iter().find_map(|(kind, feed)| match &feed.progress {
            Progress::Failing(reason) => Some(reason.clone()),
            Progress::Forbidden(denial) if !feed.known && !dispensable(*kind, self.scope) => {
                Some(format!("{denial}, without which it is not known what is allowed"))
            }
            _ => None,
        })
    }

    /// Whether [`Self::view`] would tell anything new.
    pub fn changed(&self) -> bool {
        !self.told
    }

    /// What is known. Means nothing while it is not complete.
    pub fn view(&mut self) -> View {
        if !self.told {
            self.told = true;
            let objects = self.counting();
            let conditions = self.conditions();
            self.view = View {
                objects,
                conditions: if *self.view.conditions == *conditions {
                    self.view.conditions.clone()
                } else {
                    conditions.into()
                },
                ignored: Arc::default(),
                calico_group: self.calico_group.clone(),
            };
        }
        self.view.clone()
    }

    /// The kinds that say who endpoints are and that are not known.
    fn unknown_identity(&self) -> Vec<Kind> {
        let unknown = |kind: &Kind| self.feeds.get(kind).is_some_and(|feed| !feed.known);
        IDENTITY.into_iter().filter(unknown).collect()
    }

    fn counting(&self) -> Arc<ClusterObjects> {
        if self.objects.pods.is_empty() || self.unknown_identity().is_empty() {
            return self.objects.clone();
        }
        let mut objects = (*self.objects).clone();
        objects.pods.clear();
        Arc::new(objects)
    }
}

/// Objects.
impl Gathered {
    fn put(&mut self, kind: Kind, item: Item) {
        let Item { written, mut converted } = item;
        if let Ok(Converted { object: Some(Object::Pod(pod)), .. }) = &mut converted {
            self.shared.pod(Arc::make_mut(pod));
        }
        let known = self.known(kind, &written);
        let mut problems = Vec::new();
        match converted {
            Ok(converted) => {
                let warnings = converted.warnings.iter();
                problems.extend(warnings.map(|warning| (Severity::Warning, warning.to_string())));
                let unchanged = known.as_ref().is_some_and(|(name, object)| {
                    *name == converted.name && converted.object.as_ref() == Some(object)
                });
                let nothing = known.is_none() && converted.object.is_none();
                // An equal object stays the same one, so that views share it.
                if !unchanged && !nothing {
                    self.told = false;
                    self.set(kind, written.clone(), converted.name, converted.object);
                }
            }
            Err(error) => {
                let consequence = match known {
                    Some(_) => "its last good version stays in force",
                    None => "it is not in force",
                };
                problems.push((Severity::Error, format!("{error}; {consequence}")));
            }
        }
        self.problems_of(kind, written, problems);
    }

    fn remove(&mut self, kind: Kind, written: &ObjectName) {
        if let Some((name, _)) = self.known(kind, written) {
            self.told = false;
            self.set(kind, written.clone(), name, None);
        }
        self.problems_of(kind, written.clone(), Vec::new());
    }

    fn problems_of(&mut self, kind: Kind, written: ObjectName, new: Vec<(Severity, String)>) {
        let key = (kind, written);
        if self.problems.get(&key).map_or(&[][..], Vec::as_slice) == new {
            return;
        }
        self.told = false;
        if new.is_empty() {
            self.problems.remove(&key);
        } else {
            self.problems.insert(key, new);
        }
    }

    /// What is known of an object by its stored name: the name that users see
    /// and the object.
    fn known(&self, kind: Kind, written: &ObjectName) -> Option<(ObjectName, Object)> {
        match kind {
            Kind::Policy(policy) if Renamed::may_be(policy) => {
                let (name, object) = self.renamed.get(policy, written)?;
                Some((name.clone(), Object::Policy(object.clone())))
            }
            _ => Some((written.clone(), object::get(&self.objects, kind, written)?)),
        }
    }

    fn set(&mut self, kind: Kind, written: ObjectName, name: ObjectName, object: Option<Object>) {
        let objects = Arc::make_mut(&mut self.objects);
        match (kind, object) {
            (Kind::Policy(policy), object) if Renamed::may_be(policy) => {
                let object = match object {
                    Some(Object::Policy(object)) => Some(object),
                    _ => None,
                };
                for name in self.renamed.set(policy, written, name, object) {
                    match self.renamed.winner(policy, &name) {
                        Some(object) => {
                            let object = Object::Policy(object.clone());
                            object::insert(objects, kind, &name, &object);
                        }
                        None => object::remove(objects, kind, &name),
                    }
                }
            }
            (_, Some(object)) => object::insert(objects, kind, &name, &object),
            (_, None) => object::remove(objects, kind, &name),
        }
    }

    /// Removes all objects of a kind that a list did not name.
    fn sweep(&mut self, kind: Kind, seen: &HashSet<ObjectName>) {
        let mut known: BTreeSet<ObjectName> = match kind {
            Kind::Policy(policy) if Renamed::may_be(policy) => self.renamed.written(policy),
            _ => object::names(&self.objects, kind).into_iter().collect(),
        };
        let broken = self.problems.keys().filter(|(other, _)| *other == kind);
        known.extend(broken.map(|(_, written)| written.clone()));
        for written in known.iter().filter(|written| !seen.contains(written)) {
            self.remove(kind, written);
        }
    }
}

/// What is told beside the objects.
impl Gathered {
    fn conditions(&self) -> Vec<Condition> {
        let condition = |severity, object: String, message: String| Condition {
            severity,
            cluster: self.cluster.clone(),
            object,
            message,
        };
        let mut all: Vec<Condition> = self.remark.iter().cloned().collect();
        for ((kind, written), problems) in &self.problems {
            for (severity, message) in problems {
                all.push(condition(*severity, format!("{kind} {written}"), message.clone()));
            }
        }
        for (kind, name, written) in self.renamed.rivals() {
            let message = format!(
                "is stored more than once, as {}; the first counts, delete the others",
                written.join(", ")
            );
            let kind = Kind::Policy(kind);
            all.push(condition(Severity::Error, format!("{kind} {name}"), message));
        }
        let absent = self.feeds.iter().filter(|(_, feed)| feed.progress == Progress::Absent);
        for (kind, _) in absent {
            let (severity, message) = match kind {
                Kind::IpPool => (
                    Severity::Error,
                    "neither crd.projectcalico.org nor projectcalico.org serves it, so there are \
                     no routes; check that Calico and its custom resources are installed",
                ),
                Kind::RemoteClusterConfiguration => (
                    Severity::Warning,
                    "is not served, so nothing can be joined; apply \
                     config/manifests/remoteclusterconfigurations.yaml",
                ),
                _ => continue,
            };
            all.push(condition(severity, kind.to_string(), message.to_owned()));
        }
        for (kind, feed) in &self.feeds {
            let Progress::Forbidden(denial) = &feed.progress else { continue };
            if unasked(*kind, self.scope) {
                continue;
            }
            let (severity, consequence) = match (feed.known, kind) {
                (true, _) => (Severity::Warning, "what was last known of them stays in force"),
                (false, Kind::Namespace | Kind::ServiceAccount) => {
                    (Severity::Error, "its pods have no identity without their labels")
                }
                (false, Kind::Pod) => (Severity::Error, "its pods have no identity"),
                (false, Kind::Node | Kind::IpPool | Kind::IpamBlock) => {
                    (Severity::Error, "there are no routes to it")
                }
                (false, _) => (Severity::Warning, "they don't count"),
            };
            let message = format!("{denial}; {consequence}");
            all.push(condition(severity, denial.resource.clone(), message));
        }
        all.sort();
        all
    }
}

impl std::fmt::Display for Denial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, resource, message } = self;
        write!(f, "may not be read ({message}); grant `{verb}` on {resource}")
    }
}

#[cfg(test)]
mod tests;
