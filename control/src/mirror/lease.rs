//! Who writes: one daemon of the cluster, by a Lease.
//!
//! A pure state machine; what it says is to be done, [`super::api`] does. It
//! promises that two daemons never both believe to be the writer, as long as
//! their clocks run alike (they need not show the same time): a writer stops to
//! believe so before anybody may take over, and who takes over has seen the
//! record unchanged for a whole lease by its own clock. Every change of the
//! record is conditional on the version that was seen, so of several that try
//! one succeeds.

use std::time::{Duration, Instant};

/// How long a writer that is gone keeps others from taking over.
pub const DURATION: Duration = Duration::from_secs(15);
/// How often the writer renews.
const RENEWAL: Duration = Duration::from_secs(5);
/// How long the writer believes to be it without renewing: less than the
/// duration by more than a request takes.
const BELIEF: Duration = Duration::from_secs(10);
/// How long to wait after a request that failed.
const RETRY: Duration = Duration::from_secs(1);

/// The Lease as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `spec.holderIdentity`; empty when it was released.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub duration: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this moment, or before the next observation.
    Wait(Option<Instant>),
    /// Create the Lease with us as its holder.
    Create,
    /// Replace the Lease of this version: us as its holder.
    Take {
        /// The version that was seen.
        version: String,
        /// `spec.leaseTransitions` to write.
        transitions: i32,
        /// Whether we hold it already.
        renewal: bool,
    },
}

/// One daemon's view of who writes.
#[derive(Debug)]
pub struct Election {
    identity: String,
    /// The last record and when it was first seen so; `None` inside: there is
    /// none.
    seen: Option<(Option<Record>, Instant)>,
    /// When the last successful request of ours began.
    renewed: Option<Instant>,
    /// No request before this moment.
    not_before: Option<Instant>,
}

impl Election {
    /// Begins as one who knows nothing.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed: None, not_before: None }
    }

    /// Our name as a holder.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The holder as last seen.
    pub fn holder(&self) -> Option<&str> {
        let (record, _) = self.seen.as_ref()?;
        record.as_ref().map(|record| record.holder.as_str()).filter(|holder| !holder.is_empty())
    }

    /// Whether we are the writer at this moment.
    pub fn holds(&self, now: Instant) -> bool {
        self.valid_until().is_some_and(|until| now < until)
    }

    /// Until when we are, without another renewal.
    pub fn valid_until(&self) -> Option<Instant> {
        self.renewed.map(|renewed| renewed + BELIEF)
    }

    /// Takes in the Lease as it is; `None` when there is none. What is older than
    /// what we have written ourselves is late news.
    pub fn observe(&mut self, record: Option<Record>, now: Instant) {
        let number = |record: &Record| record.version.parse::<u64>().ok();
        if let (Some(new), Some((Some(seen), _))) = (&record, &self.seen)
            && number(new).zip(number(seen)).is_some_and(|(new, seen)| new < seen)
            && self.renewed.is_some_and(|renewed| now < renewed + BELIEF)
        {
            return;
        }
        if record.as_ref().is_none_or(|record| record.holder != self.identity) {
            self.renewed = None;
        }
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record, now));
        }
    }

    /// What to do now.
    pub fn step(&self, now: Instant) -> Step {
        let Some((record, since)) = &self.seen else { return Step::Wait(None) };
        if let Some(at) = self.not_before.filter(|at| *at > now) {
            return Step::Wait(Some(at));
        }
        let Some(record) = record else { return Step::Create };
        let renewal = record.holder == self.identity && self.renewed.is_some();
        let due = if renewal {
            self.renewed.map(|renewed| renewed + RENEWAL)
        } else if record.holder.is_empty() || record.holder == self.identity {
            // Released, or ours from an earlier life.
            None
        } else {
            // However long the holder says that it keeps it.
            Some(*since + record.duration.max(DURATION))
        };
        match due.filter(|due| *due > now) {
            Some(due) => Step::Wait(Some(due)),
            None => Step::Take {
                version: record.version.clone(),
                transitions: record.transitions + i32::from(!renewal),
                renewal,
            },
        }
    }

    /// A request that began at `begun` has succeeded; the Lease is now so.
    pub fn succeeded(&mut self, record: Record, begun: Instant) {
        self.not_before = None;
        self.renewed = (record.holder == self.identity).then_some(begun);
        self.seen = Some((Some(record), begun));
    }

    /// A request has failed: somebody else was faster, or the API does not
    /// answer. Whether we are still the writer, the time tells.
    pub fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY);
    }

    /// Stops to be the writer, whatever the Lease says. The Lease to be released,
    /// if it is ours.
    pub fn resign(&mut self) -> Option<Record> {
        self.renewed.take()?;
        let (record, _) = self.seen.as_ref()?;
        record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Lease in an API that takes only changes of the version that was seen.
    #[derive(Default)]
    struct Server(Option<Record>, u64);

    impl Server {
        fn put(&mut self, seen: Option<&str>, holder: &str, transitions: i32) -> Option<Record> {
            let current = self.0.as_ref().map(|record| record.version.as_str());
            if current != seen {
                return None;
            }
            self.1 += 1;
            let (holder, version) = (holder.to_owned(), self.1.to_string());
            self.0 = Some(Record { holder, duration: DURATION, transitions, version });
            self.0.clone()
        }
    }

    fn act(election: &mut Election, server: &mut Server, now: Instant) {
        let id = election.identity.clone();
        let written = match election.step(now) {
            Step::Wait(_) => return,
            Step::Create => server.put(None, &id, 0),
            Step::Take { version, transitions, .. } => server.put(Some(&version), &id, transitions),
        };
        match written {
            Some(record) => election.succeeded(record, now),
            None => election.failed(now),
        }
    }

    #[test]
    fn one_writes_and_another_takes_over_when_it_is_silent() {
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let mut server = Server::default();
        let start = Instant::now();
        let mut both = 0;
        let mut taken_at = None;
        for tenth in 0..600 {
            let now = start + Duration::from_millis(100 * tenth);
            // The API is lost to `a` after 20 seconds.
            let lost = tenth > 200;
            if !lost {
                a.observe(server.0.clone(), now);
                act(&mut a, &mut server, now);
            }
            b.observe(server.0.clone(), now);
            act(&mut b, &mut server, now);
            both += u32::from(a.holds(now) && b.holds(now));
            if b.holds(now) && taken_at.is_none() {
                taken_at = Some(tenth);
            }
            assert!(lost || a.holds(now), "{tenth}");
        }
        assert_eq!(both, 0);
        let taken = taken_at.expect("b takes over") * 100;
        assert!(taken <= 20_000 + 15_000 + 200, "{taken}");
        assert_eq!(server.0.as_ref().map(|record| record.transitions), Some(1));
    }

    #[test]
    fn of_two_that_find_none_one_writes() {
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let (mut server, now) = (Server::default(), Instant::now());
        assert_eq!(a.step(now), Step::Wait(None), "nothing is known yet");
        a.observe(None, now);
        b.observe(None, now);
        act(&mut a, &mut server, now);
        act(&mut b, &mut server, now);
        assert!(a.holds(now) && !b.holds(now));
        // Who has lost tries no more until the lease has run out.
        b.observe(server.0.clone(), now);
        let Step::Wait(Some(at)) = b.step(now) else { panic!("b tries at once") };
        assert!(at > now);
    }

    #[test]
    fn a_clean_stop_hands_over_at_once() {
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        let (mut server, now) = (Server::default(), Instant::now());
        a.observe(None, now);
        act(&mut a, &mut server, now);
        let record = a.resign().expect("it was the writer");
        assert!(!a.holds(now));
        server.put(Some(&record.version), "", record.transitions);
        b.observe(server.0.clone(), now);
        act(&mut b, &mut server, now);
        assert!(b.holds(now));
        assert_eq!(a.resign(), None);
    }

    #[test]
    fn a_restarted_writer_goes_on_at_once() {
        let (mut server, now) = (Server::default(), Instant::now());
        server.put(None, "a", 3);
        let mut a = Election::new("a".into());
        a.observe(server.0.clone(), now);
        assert!(!a.holds(now), "an earlier life's lease is no reason to write");
        act(&mut a, &mut server, now);
        assert!(a.holds(now));
    }

    #[test]
    fn who_sees_another_holder_stops() {
        let (mut server, now) = (Server::default(), Instant::now());
        let mut a = Election::new("a".into());
        a.observe(None, now);
        act(&mut a, &mut server, now);
        let mut other = server.0.clone().expect("created");
        other.holder = "b".into();
        a.observe(Some(other), now);
        assert!(!a.holds(now));
    }
}
