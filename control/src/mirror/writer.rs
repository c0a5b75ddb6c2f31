//! The daemon's part in the mirror: it stands by, or writes.
//!
//! One task, [`Task::run`]: it waits for the next thing to happen (the world,
//! the Lease, our objects, a time that was set) and then does what is due. All
//! requests are short and one after the other; between two of them the lease is
//! looked at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::HashMap;
use futures::StreamExt;
use kube::core::DynamicObject;
use kube::runtime::watcher;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::announce::Announcer;
use super::api::{Failure, LEASE, Requests};
use super::follow::{follow_lease, follow_objects};
use super::group::Grouper;
use super::lease::{Election, Record, Step};
use super::object::{Storage, Written};
use super::owned::Owned;
use super::pace::Pace;
use super::pools::Pool;
use super::report::Reporter;
use super::sets::{Plan, Set};
use super::status::MirrorStatus;
use super::wanted::{Asked, Input, Modes, Wanted, work_out};
use super::{checks, tell};
use crate::policy::api::OWNER;

/// Changes of the world within this time are one change.
const GATHER: Duration = Duration::from_millis(50);
/// When to look again for what is not there, or not allowed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Longest wait after failures of the API.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where the mirror writes, and who it is.
#[derive(Clone)]
pub struct Place {
    /// Client of the local cluster's API; another when it is reached in
    /// another way.
    pub client: watch::Receiver<kube::Client>,
    /// The daemon's own namespace: the Lease is there.
    pub namespace: String,
    /// The node.
    pub node: String,
}

/// A running mirror.
#[derive(Debug)]
pub struct Mirror {
    status: watch::Receiver<Arc<MirrorStatus>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Mirror {
    /// Starts on the current runtime. What is to be mirrored comes by `input`,
    /// and can come often.
    pub fn start(
        place: Place,
        modes: watch::Receiver<Modes>,
        input: watch::Receiver<Option<Input>>,
    ) -> Self {
        let (told, status) = watch::channel(Arc::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(Task::new(place, modes, input, told).run(stopped));
        Self { status, stop, task }
    }

    /// What there is to tell.
    pub fn status(&self) -> Arc<MirrorStatus> {
        self.status.borrow().clone()
    }

    /// Stops and lets another daemon take over at once.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// What watches tell.
pub(super) enum Event {
    Lease(Option<Record>),
    Object(Written, Box<watcher::Event<DynamicObject>>),
    Failed(&'static str, Failure),
}

/// An object that can't be written for now.
pub(super) struct Held {
    pub(super) until: Instant,
    pub(super) times: u32,
    /// Why, unless it will do by itself.
    pub(super) reason: Option<Failure>,
}

pub(super) struct Task {
    pub(super) requests: Requests,
    clients: watch::Receiver<kube::Client>,
    modes: watch::Receiver<Modes>,
    input: watch::Receiver<Option<Input>>,
    told: watch::Sender<Arc<MirrorStatus>>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    pub(super) election: Election,
    lease_watch: JoinHandle<()>,
    /// What only the writer knows.
    pub(super) leading: Option<Leading>,
    pub(super) writes: u64,
    pub(super) last_write: Option<String>,
    /// The last failure of what is not about one object, and when it was.
    failure: Option<(&'static str, Failure, Instant)>,
}

/// The writer's knowledge: gathered anew by every writer.
pub(super) struct Leading {
    pub(super) storage: Option<Storage>,
    /// Whether anything is to be mirrored; nothing before that is known.
    pub(super) applies: Option<Result<(), String>>,
    information: Option<Value>,
    look_again: Instant,
    watches: Vec<JoinHandle<()>>,
    pub(super) sets: Owned<Set>,
    pub(super) pools: Owned<Result<Pool, ()>>,
    grouper: Grouper,
    pub(super) wanted: Option<Wanted>,
    asked: Asked,
    /// Whether sets still have to follow a policy that may match too much until
    /// they have.
    pub(super) trails: bool,
    /// When what is wanted is to be worked out again.
    due: Option<Instant>,
    /// Not before this moment.
    rested: Instant,
    pub(super) pace: Pace,
    pub(super) failures: u32,
    pub(super) held: HashMap<(Written, String), Held>,
    pub(super) written: HashMap<String, Instant>,
    pub(super) differs_since: HashMap<String, Instant>,
    pub(super) waiting: usize,
    reporter: Reporter,
    announcer: Announcer,
}

impl Leading {
    fn new(now: Instant) -> Self {
        Self {
            storage: None,
            applies: None,
            information: None,
            look_again: now,
            watches: Vec::new(),
            sets: Owned::sets(),
            pools: Owned::pools(),
            grouper: Grouper::default(),
            wanted: None,
            asked: Asked::default(),
            trails: false,
            due: Some(now),
            rested: now,
            pace: Pace::new(now),
            failures: 0,
            held: HashMap::default(),
            written: HashMap::default(),
            differs_since: HashMap::default(),
            waiting: 0,
            reporter: Reporter::default(),
            announcer: Announcer::default(),
        }
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.watches.iter().for_each(JoinHandle::abort);
    }
}

impl Task {
    fn new(
        place: Place,
        modes: watch::Receiver<Modes>,
        input: watch::Receiver<Option<Input>>,
        told: watch::Sender<Arc<MirrorStatus>>,
    ) -> Self {
        let mut clients = place.client;
        let client = clients.borrow_and_update().clone();
        let requests = Requests { client, namespace: place.namespace };
        let (sender, events) = mpsc::channel(256);
        let lease_watch = watch_lease(&requests, &sender);
        // A restarted daemon is another one: the old one may not be dead yet.
        let unique = std::process::id() ^ subsecond();
        let election = Election::new(format!("{}_{unique:08x}", place.node));
        Self {
            requests,
            clients,
            modes,
            input,
            told,
            sender,
            events,
            election,
            lease_watch,
            leading: None,
            writes: 0,
            last_write: None,
            failure: None,
        }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let elect = self.elect().await;
            let leads = self.leads();
            let report = if leads { self.report().await } else { None };
            let write = if leads { self.write().await } else { None };
            self.told.send_replace(Arc::new(tell::status(&self)));
            let belief = self.leading.as_ref().and_then(|_| self.election.valid_until());
            let wake = [elect, report, write, belief].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| Instant::now() + LOOK_AGAIN);
            tokio::select! {
                _ = &mut stopped => break,
                Some(event) = self.events.recv() => {
                    self.take(event);
                    while let Ok(event) = self.events.try_recv() {
                        self.take(event);
                    }
                }
                Ok(()) = self.clients.changed() => self.take_client(),
                Ok(()) = self.input.changed() => self.work_out_soon(),
                Ok(()) = self.modes.changed() => self.work_out_soon(),
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        self.lease_watch.abort();
        self.leading = None;
        if let Some(Record { transitions, version, .. }) = self.election.resign() {
            let released = self.requests.write_lease("", transitions, Some(&version)).await;
            if let Err(failure) = released {
                warn!(%failure, "the lease is not released; another daemon waits until it ends");
            }
        }
    }

    /// Goes on with another client. What is followed is followed anew; we are
    /// the same to others, so whoever writes goes on writing.
    fn take_client(&mut self) {
        info!("the local cluster's API is reached in another way from now on");
        self.requests.client = self.clients.borrow_and_update().clone();
        self.lease_watch.abort();
        self.lease_watch = watch_lease(&self.requests, &self.sender);
        if let Some(leading) = &mut self.leading {
            *leading = Leading::new(Instant::now());
        }
    }

    pub(super) fn fail(&mut self, what: &'static str, failure: Failure) {
        self.failure = Some((what, failure, Instant::now()));
    }

    /// What has failed works again.
    pub(super) fn settle(&mut self, what: &'static str) {
        self.failure.take_if(|(failed, ..)| *failed == what);
    }

    /// What does not work at present. A watch that goes on says nothing of it,
    /// but one that does not is begun again and again.
    pub(super) fn failure(&self) -> Option<(&'static str, &Failure)> {
        let (what, failure, at) = self.failure.as_ref()?;
        (*what != "watch" || at.elapsed() < 3 * LONGEST_WAIT).then_some((*what, failure))
    }

    fn work_out_soon(&mut self) {
        if let Some(leading) = &mut self.leading {
            let soon = (Instant::now() + GATHER).max(leading.rested);
            leading.due.get_or_insert(soon);
        }
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Lease(record) => {
                self.election.observe(record, now);
                self.settle("lease");
            }
            Event::Object(kind, event) => {
                let Some(leading) = &mut self.leading else { return };
                let Some(storage) = leading.storage else { return };
                match kind {
                    Written::Set => leading.sets.event(storage, *event),
                    Written::Pool => leading.pools.event(storage, *event),
                }
                self.settle("watch");
            }
            Event::Failed(what, failure) => self.fail(what, failure),
        }
    }

    /// Does what the election asks for; when it next does.
    async fn elect(&mut self) -> Option<Instant> {
        let begun = Instant::now();
        let written = match self.election.step(begun) {
            Step::Wait(at) => return at,
            Step::Create => self.requests.write_lease(self.election.identity(), 0, None).await,
            Step::Take { version, transitions, .. } => {
                let identity = self.election.identity();
                self.requests.write_lease(identity, transitions, Some(&version)).await
            }
        };
        match written {
            Ok(record) => {
                self.election.succeeded(record, begun);
                self.settle("lease");
            }
            Err(failure) => {
                self.election.failed(Instant::now());
                if failure != Failure::Changed {
                    self.fail("lease", failure);
                }
            }
        }
        match self.election.step(Instant::now()) {
            Step::Wait(at) => at,
            _ => Some(Instant::now()),
        }
    }

    /// Whether we are the writer; begins and ends to be it.
    fn leads(&mut self) -> bool {
        let now = Instant::now();
        let holds = self.election.holds(now);
        if holds && self.leading.is_none() {
            info!("this daemon writes what Felix must know of remote clusters");
            self.leading = Some(Leading::new(now));
        } else if !holds && self.leading.take().is_some() {
            info!("this daemon no longer writes what Felix must know");
        }
        holds
    }

    /// Tells what becomes of remote clusters; when there is more to tell.
    async fn report(&mut self) -> Option<Instant> {
        let input = self.input.borrow().clone()?;
        let leading = self.leading.as_mut()?;
        let (report, failure) = leading.reporter.report(&self.requests, &input.remotes).await;
        let (announce, unannounced) = leading.announcer.announce(&self.requests, &input).await;
        for (what, failure) in [("status", failure), ("announce", unannounced)] {
            match failure {
                Some(failure) => self.fail(what, failure),
                None => self.settle(what),
            }
        }
        [report, announce].into_iter().flatten().min()
    }

    /// Does what is due as the writer; when there is more to do.
    async fn write(&mut self) -> Option<Instant> {
        let input = self.input.borrow().clone()?;
        if let Err(again) = self.find_out(input.storage).await {
            return Some(again);
        }
        let now = Instant::now();
        let leading = self.leading.as_mut()?;
        if !leading.sets.complete || !leading.pools.complete {
            return None;
        }
        let applies = checks::applies(&input.derived.world.local, leading.information.as_ref());
        let mut modes = *self.modes.borrow();
        if applies.is_err() {
            modes = Modes { mirror: false, pools: false };
        }
        leading.applies = Some(applies);
        match leading.due {
            Some(due) if due > now => return Some(due),
            Some(_) => self.work_out(input, modes).await,
            None => {}
        }
        let pools = self.write_pools().await;
        let sets = self.write_sets().await;
        // A write of which no answer came may have been carried out.
        if self.leading.as_ref().is_some_and(|leading| leading.waiting == 0) {
            self.settle("write");
        }
        let due = self.leading.as_ref().and_then(|leading| leading.due);
        [pools, sets, due].into_iter().flatten().min()
    }

    /// Finds out whether to write, and watches our objects where Calico stores
    /// its own. Else, when to try again.
    async fn find_out(&mut self, storage: Option<Storage>) -> Result<(), Instant> {
        let now = Instant::now();
        let Some(leading) = &mut self.leading else { return Err(now + LOOK_AGAIN) };
        if leading.storage.is_some() {
            if leading.storage == storage {
                return Ok(());
            }
            // Calico has moved: all is to be known and written anew.
            *leading = Leading::new(now);
        }
        if leading.look_again > now {
            return Err(leading.look_again);
        }
        let found = async {
            let Some(storage) = storage else { return Ok(None) };
            if !self.requests.has_sets(storage).await? {
                return Ok(None);
            }
            Ok(Some((storage, self.requests.cluster_information(storage).await?)))
        };
        match found.await {
            Ok(Some((storage, information))) => {
                leading.storage = Some(storage);
                leading.information = information;
                for kind in [Written::Set, Written::Pool] {
                    let ours = watcher::Config::default().labels(OWNER);
                    let objects = self.requests.all(&storage.resource(kind.kind()));
                    let stream = watcher(objects, ours).boxed();
                    let task = follow_objects(kind, stream, self.sender.clone());
                    leading.watches.push(tokio::spawn(task));
                }
                self.settle("kinds");
                Ok(())
            }
            Ok(None) => {
                leading.look_again = now + LOOK_AGAIN;
                let again = leading.look_again;
                let what = "the API has no kind GlobalNetworkSet of Calico's";
                self.fail("kinds", Failure::NotFound(what.into()));
                Err(again)
            }
            Err(failure) => {
                leading.look_again = now + wait(leading.failures);
                leading.failures += 1;
                let again = leading.look_again;
                self.fail("kinds", failure);
                Err(again)
            }
        }
    }

    /// Works out what is wanted, off this thread.
    async fn work_out(&mut self, input: Input, modes: Modes) {
        let Some(leading) = &mut self.leading else { return };
        leading.due = None;
        let begun = Instant::now();
        let mut grouper = std::mem::take(&mut leading.grouper);
        let (sets, pools) = (leading.sets.present(), leading.pools.present());
        let worked = tokio::task::spawn_blocking(move || {
            let wanted = work_out(&mut grouper, &input, modes, (&sets, &pools));
            (wanted, grouper)
        });
        let Ok((wanted, grouper)) = worked.await else { return };
        let now = Instant::now();
        // Many pods take a while; their unrest is no reason to do nothing else.
        leading.rested = now + (now - begun);
        leading.grouper = grouper;
        if let Some(before) = &leading.wanted {
            leading.pace.changes(wanted.changes_since(before), now);
        }
        if leading.asked != wanted.asked || leading.wanted.is_none() {
            // Of each set at most one write that adds, and one that takes away.
            let differing = Plan::new(leading.sets.present(), &wanted.sets).differing().len();
            leading.pace.grant(2 * differing + wanted.pools.len() + leading.pools.objects.len());
            leading.trails |= wanted.asked.denies_labels_since(&leading.asked);
            leading.asked = wanted.asked.clone();
        }
        leading.held.retain(|_, held| held.until > now);
        leading.wanted = Some(wanted);
    }
}

fn watch_lease(requests: &Requests, sender: &mpsc::Sender<Event>) -> JoinHandle<()> {
    let only = watcher::Config::default().fields(&format!("metadata.name={LEASE}"));
    let stream = watcher(requests.leases(), only).boxed();
    tokio::spawn(follow_lease(stream, sender.clone()))
}

/// How long to wait after so many failures.
pub(super) fn wait(failures: u32) -> Duration {
    let wait = Duration::from_millis(500 << failures.min(6)).min(LONGEST_WAIT);
    wait.mul_f64(0.75 + f64::from(subsecond() % 1000) / 2000.0)
}

/// Something that differs from one daemon to the next.
fn subsecond() -> u32 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}
