//! The wire alone: what the generator can put into a veth, looked at and
//! dropped at the other end. Nothing that routes can be faster.

use crate::bed::Bed;
use crate::flows;

use super::{Entry, Needs, Running, Subject};

/// The link between router and sink.
pub(crate) struct Wire;

impl Subject for Wire {
    fn name(&self) -> String {
        "wire".to_owned()
    }

    fn about(&self) -> String {
        "the generator straight into the sink over one veth, all on the generator's CPU: the \
         ceiling"
            .to_owned()
    }

    fn set_up<'a>(&self, bed: &'a Bed, _: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        let entry = Entry { netns: bed.router.clone(), device: "u0".to_owned(), mac: flows::S0 };
        Ok(Box::new(Up(entry)))
    }
}

struct Up(Entry);

impl Running for Up {
    fn entry(&self) -> Entry {
        self.0.clone()
    }

    fn in_tunnel(&self) -> bool {
        false
    }
}
