//! A router on another machine, which `tieline-perf route` has set up there.

use crate::bed::Bed;
use crate::flows;

use super::{Entry, Needs, Running, Subject};

/// Whatever is between the two cables, under the name that it is given.
pub(crate) struct Remote(pub(crate) String);

impl Subject for Remote {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn about(&self) -> String {
        "a router on another machine".to_owned()
    }

    fn set_up<'a>(&self, bed: &'a Bed, _: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        let netns = bed.generator.clone();
        Ok(Box::new(Up(Entry { netns, device: "g0".to_owned(), mac: flows::D0 })))
    }
}

struct Up(Entry);

impl Running for Up {
    fn entry(&self) -> Entry {
        self.0.clone()
    }

    fn is_here(&self) -> bool {
        false
    }
}
