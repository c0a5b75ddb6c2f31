//! A source of the product, followed from within a cluster's namespace.

use std::path::Path;
use std::time::{Duration, Instant};

use tieline::cluster::kubernetes::{Access, KubernetesSource, Options};
use tieline::cluster::{Feed, Source, SourceEvent, View};
use tieline::state::ClusterId;
use tieline_lab::Netns;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running source.
pub(crate) struct Follower {
    feed: Feed,
}

impl Follower {
    pub(crate) fn new(netns: &Netns, source: KubernetesSource) -> Self {
        Self { feed: netns.run(|| Box::new(source).start()).unwrap() }
    }

    /// The next thing that the source tells.
    pub(crate) fn next(&mut self) -> SourceEvent {
        let begun = Instant::now();
        loop {
            match self.feed.events.try_recv() {
                Ok(event) => return event,
                Err(tokio::sync::mpsc::error::TryRecvError::Empty) => {}
                Err(error) => panic!("the source has ended: {error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "the source says nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next view.
    pub(crate) fn view(&mut self) -> View {
        loop {
            match self.next() {
                SourceEvent::Synced(view) | SourceEvent::Updated(view) => return view,
                SourceEvent::Connected => {}
                lost => panic!("{lost:?}"),
            }
        }
    }

    /// The first view that is as wanted.
    pub(crate) fn view_where(&mut self, what: &str, wanted: impl Fn(&View) -> bool) -> View {
        self.find(what, |event| match event {
            SourceEvent::Synced(view) | SourceEvent::Updated(view) if wanted(&view) => Some(view),
            _ => None,
        })
    }

    fn find<T>(&mut self, what: &str, mut take: impl FnMut(SourceEvent) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut last = None;
        loop {
            assert!(begun.elapsed() < PATIENCE, "{what}: {last:?}");
            let event = self.next();
            last = Some(format!("{event:?}"));
            if let Some(found) = take(event) {
                return found;
            }
        }
    }
}

/// A source with short times.
pub(crate) fn source(cluster: &ClusterId, kubeconfig: &Path) -> KubernetesSource {
    let access = Access::Kubeconfig(kubeconfig.to_owned());
    KubernetesSource::new(cluster.clone(), access, options())
}

/// Short times, so that what hangs is seen soon.
pub(crate) fn options() -> Options {
    let second = Duration::from_secs(1);
    Options { patience: 2 * second, silence: 3 * second, ..Options::default() }
}

pub(crate) fn remote() -> ClusterId {
    ClusterId::Remote("remote".into())
}
