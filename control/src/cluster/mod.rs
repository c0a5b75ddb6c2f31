//! Sources: what a cluster's objects are right now.
//!
//! A [`Source`] reads one cluster and tells a consumer each complete state of
//! it: whole [`View`]s, never differences, so a consumer needs no memory and
//! missed views do no harm. A source knows nothing of other clusters, nor
//! what its objects are used for; whether a cluster's state counts is
//! [`crate::federation`]'s to say.
//!
//! ```text
//! field     fields of an object, errors that name them
//! object    kinds, and each kind's conversion; pod and node in files of theirs
//! shared    what many pods have alike, once
//! manifest  a file's bytes -> objects, good and broken
//! files     files -> View; pure
//! watch     a directory on disk -> events
//! kubernetes  an API server -> events
//! ```
//! Start reading at [`files::load`].

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::state::{ClusterObjects, Condition};

mod field;
pub mod files;
pub mod kubernetes;
pub mod manifest;
mod node;
pub mod object;
mod pod;
mod shared;
mod watch;

pub use field::FieldError;
pub use kubernetes::KubernetesSource;
pub use watch::FilesSource;

/// Whose objects are read: of a remote cluster, policies don't count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The local cluster's: all that count.
    Local,
    /// A remote cluster's: all but policies and what only they read.
    Remote,
}

/// A complete state of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Its objects. The same `Arc` as in the view before when nothing changed.
    pub objects: Arc<ClusterObjects>,
    /// What is wrong with objects and files.
    pub conditions: Arc<[Condition]>,
    /// Objects of kinds that nothing reads: `apiVersion kind` and how many.
    pub ignored: Arc<BTreeMap<String, usize>>,
    /// Group and version in which Calico stores its objects, where an API
    /// server was asked for them and has any, as in `projectcalico.org/v3`.
    pub calico_group: Option<Arc<str>>,
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceEvent {
    /// The cluster answers; its objects are being read.
    Connected,
    /// The first complete state since the start or since [`Self::Lost`].
    Synced(View),
    /// A later complete state.
    Updated(View),
    /// The cluster can't be read; the reason says why, and the remedy. The
    /// source goes on trying.
    Lost(String),
    /// It is not known how to read the cluster; the reason says what is
    /// missing. The source goes on when it is there.
    Unconfigured(String),
}

/// A running source. Dropping it stops the source.
pub struct Feed {
    /// Events. A slow consumer slows its source down, which then skips states.
    pub events: mpsc::Receiver<SourceEvent>,
    /// Stops the source when it is dropped.
    pub stop: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

/// A way to read a cluster.
pub trait Source: Send {
    /// Starts reading, on a thread or task of its own.
    fn start(self: Box<Self>) -> Feed;
}
