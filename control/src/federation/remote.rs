//! The life cycle of one remote cluster; pure.
//!
//! [`Remote`] takes in what its source tells; what its state is and what of it
//! counts is then a function of that, the policy and the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cluster::{SourceEvent, View};
use crate::state::ClusterObjects;

/// What becomes of a remote cluster's objects when contact is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StalePolicy {
    /// They stay until contact is back or the RemoteClusterConfiguration goes.
    #[default]
    Keep,
    /// Identities go after this time, routes stay: connections that a label
    /// allowed are no longer allowed.
    ExpireIdentities(Duration),
    /// Everything goes after this time.
    Withdraw(Duration),
}

impl StalePolicy {
    fn after(self) -> Option<Duration> {
        match self {
            Self::Keep => None,
            Self::ExpireIdentities(after) | Self::Withdraw(after) => Some(after),
        }
    }
}

/// Where a remote cluster is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RemoteState {
    /// The RemoteClusterConfiguration does not say, or not completely, how to
    /// reach it.
    ConfigIncomplete,
    /// It has not answered yet.
    Connecting,
    /// It answers; its objects are being read.
    Syncing,
    /// All its objects are known and followed.
    InSync,
    /// It no longer answers; what was known last is kept.
    Stale,
    /// It can't count, whatever it answers.
    Failed,
    /// It has not answered for so long that what was known is no longer in
    /// force.
    Withdrawn,
}

impl std::fmt::Display for RemoteState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// How much of a remote cluster counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// All of it.
    All,
    /// Its routes, without identities.
    Routes,
    /// Nothing.
    Nothing,
}

/// Contact with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    Unconfigured,
    Connecting,
    Syncing,
    InSync,
    Lost(Instant),
}

/// What is known of one cluster and of the contact with it.
#[derive(Clone, Debug)]
pub struct Remote {
    contact: Contact,
    view: Option<View>,
    without_identities: Option<Arc<ClusterObjects>>,
    /// The last error in contact, until contact is back.
    pub error: Option<String>,
    /// When its source last told anything.
    pub last_event: Option<Instant>,
    /// How often contact was lost.
    pub losses: u64,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            contact: Contact::Connecting,
            view: None,
            without_identities: None,
            error: None,
            last_event: None,
            losses: 0,
        }
    }
}

impl Remote {
    /// Takes in an event.
    pub fn step(&mut self, event: SourceEvent, now: Instant) {
        self.last_event = Some(now);
        match event {
            // What was known stays stale until the whole is known again.
            SourceEvent::Connected => {
                if self.view.is_none() {
                    self.contact = Contact::Syncing;
                    self.error = None;
                }
            }
            SourceEvent::Synced(view) | SourceEvent::Updated(view) => {
                self.contact = Contact::InSync;
                self.error = None;
                self.without_identities = None;
                self.view = Some(view);
            }
            SourceEvent::Lost(reason) => self.lose(Contact::Connecting, reason, now),
            SourceEvent::Unconfigured(reason) => self.lose(Contact::Unconfigured, reason, now),
        }
    }

    fn lose(&mut self, without_view: Contact, reason: String, now: Instant) {
        self.contact = match (self.contact, &self.view) {
            (Contact::Lost(since), _) => Contact::Lost(since),
            (_, Some(_)) => Contact::Lost(now),
            (_, None) => without_view,
        };
        self.losses += u64::from(self.error.is_none());
        self.error = Some(reason);
    }

    /// Its source is replaced by another: what is known stays in force until
    /// the new one has told all.
    pub fn restart(&mut self) {
        self.contact = Contact::Connecting;
        self.error = None;
    }

    /// The last complete state.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Its state, but for what only its configuration or other clusters can
    /// tell.
    pub fn state(&self, policy: StalePolicy, now: Instant) -> RemoteState {
        match self.contact {
            Contact::Unconfigured => RemoteState::ConfigIncomplete,
            Contact::Connecting => RemoteState::Connecting,
            Contact::Syncing => RemoteState::Syncing,
            Contact::InSync => RemoteState::InSync,
            Contact::Lost(_) if self.counts(policy, now) == Counts::Nothing => {
                RemoteState::Withdrawn
            }
            Contact::Lost(_) => RemoteState::Stale,
        }
    }

    /// How much of it counts.
    pub fn counts(&self, policy: StalePolicy, now: Instant) -> Counts {
        if self.view.is_none() {
            return Counts::Nothing;
        }
        match (self.expiry(policy), policy) {
            (Some(expiry), StalePolicy::ExpireIdentities(_)) if now >= expiry => Counts::Routes,
            (Some(expiry), StalePolicy::Withdraw(_)) if now >= expiry => Counts::Nothing,
            _ => Counts::All,
        }
    }

    /// When less of it will count if contact does not come back.
    pub fn expiry(&self, policy: StalePolicy) -> Option<Instant> {
        match self.contact {
            Contact::Lost(since) => since.checked_add(policy.after()?),
            _ => None,
        }
    }

    /// Whether it has told all that it can tell for now.
    pub fn settled(&self) -> bool {
        self.view.is_some() || self.error.is_some()
    }

    /// Those of its objects that count.
    pub fn objects(&mut self, counts: Counts) -> Option<Arc<ClusterObjects>> {
        let view = self.view.as_ref()?;
        match counts {
            Counts::All => Some(view.objects.clone()),
            Counts::Routes => {
                let trimmed = self.without_identities.get_or_insert_with(|| {
                    let mut objects = (*view.objects).clone();
                    objects.pods.clear();
                    objects.host_endpoints.clear();
                    Arc::new(objects)
                });
                Some(trimmed.clone())
            }
            Counts::Nothing => None,
        }
    }
}
