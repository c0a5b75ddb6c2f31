//! What many pods have alike, once in memory: label sets, ports, names of nodes
//! and service accounts. It is more than half of what a pod takes.

use std::hash::Hash;
use std::sync::Arc;

use ahash::HashSet;

use crate::state::{Labels, NamedPort, Pod};

/// The values that a cluster's pods have.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    labels: Values<Labels>,
    ports: Values<[NamedPort]>,
    names: Values<str>,
}

impl Shared {
    /// Replaces what a pod has by equal values that others have.
    pub(super) fn pod(&mut self, pod: &mut Pod) {
        self.labels.share(&mut pod.labels);
        self.ports.share(&mut pod.ports);
        self.names.share(&mut pod.node);
        self.names.share(&mut pod.service_account);
    }
}

#[derive(Debug)]
struct Values<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// How many there may be until those are let go that nobody has any more.
    limit: usize,
}

impl<T: ?Sized> Default for Values<T> {
    fn default() -> Self {
        Self { known: HashSet::default(), limit: 0 }
    }
}

impl<T: ?Sized> Clone for Values<T> {
    fn clone(&self) -> Self {
        Self { known: self.known.clone(), limit: self.limit }
    }
}

impl<T: ?Sized + Eq + Hash> Values<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.known.get(value) {
            value.clone_from(known);
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = (2 * self.known.len()).max(64);
        }
        self.known.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::Values;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let mut values = Values::<str>::default();
        let mut first: std::sync::Arc<str> = "kept".into();
        values.share(&mut first);
        for n in 0..10_000 {
            values.share(&mut n.to_string().into());
        }
        let mut second = "kept".into();
        values.share(&mut second);
        assert!(std::sync::Arc::ptr_eq(&first, &second));
        assert!(values.known.len() <= 64);
    }
}
