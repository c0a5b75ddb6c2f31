//! A subject under another name.

use crate::bed::Bed;

use super::{Needs, Running, Subject};

/// Under the name that its line in a sweep has: what the sweep is over is no
/// part of it.
pub(crate) fn renamed(
    name: &'static str,
    about: &'static str,
    subject: Box<dyn Subject>,
) -> Box<dyn Subject> {
    Box::new(Renamed { name, about, subject })
}

struct Renamed {
    name: &'static str,
    about: &'static str,
    subject: Box<dyn Subject>,
}

impl Subject for Renamed {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn about(&self) -> String {
        self.about.to_owned()
    }

    fn cpus(&self) -> u32 {
        self.subject.cpus()
    }

    fn set_up<'a>(&self, bed: &'a Bed, needs: Needs) -> anyhow::Result<Box<dyn Running + 'a>> {
        self.subject.set_up(bed, needs)
    }
}
