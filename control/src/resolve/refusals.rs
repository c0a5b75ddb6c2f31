//! Refused routes, told together: a wrong pool may hold a thousand blocks.

use std::collections::BTreeMap;

use tieline_dataplane::addr::Prefix;

use super::Notes;
use crate::state::{ClusterId, Severity};

/// Cluster, the object to blame if it is not each route's own, and the reason.
type Key = (ClusterId, Option<String>, String);

/// Refused routes by reason.
#[derive(Default)]
pub(super) struct Refusals(BTreeMap<Key, Refused>);

struct Refused {
    origin: String,
    prefix: Prefix,
    more: usize,
}

impl Refusals {
    pub(super) fn add(
        &mut self,
        cluster: &ClusterId,
        object: Option<String>,
        origin: &str,
        prefix: &Prefix,
        reason: String,
    ) {
        let first = || Refused { origin: origin.to_owned(), prefix: *prefix, more: 0 };
        self.0
            .entry((cluster.clone(), object, reason))
            .and_modify(|refused| refused.more += 1)
            .or_insert_with(first);
    }

    pub(super) fn tell(self, notes: &mut Notes) {
        for ((cluster, object, reason), Refused { origin, prefix, more }) in self.0 {
            let others = match more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let of = object.as_ref().map(|_| format!(" of {origin}")).unwrap_or_default();
            let message = format!("no route to {prefix}{of}{others}: {reason}");
            notes.add(Severity::Error, &cluster, object.unwrap_or(origin), &message);
        }
    }
}
