//! Our objects as the API has them, followed by a watch and by the answers to
//! our own writes, whichever is newer.

use std::collections::{BTreeMap, BTreeSet};

use ahash::HashMap;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event;

use super::api::Seen;
use super::object::{self, Storage};
use super::pools::{Pool, Pools};
use super::sets::{Set, Sets};

/// Objects of one kind.
#[derive(Debug)]
pub(super) struct Owned<T> {
    read: fn(Storage, &DynamicObject) -> Option<T>,
    /// What they hold, and the version of it.
    pub(super) objects: BTreeMap<String, (Seen, T)>,
    /// Versions up to which news of deleted objects are old.
    gone: HashMap<String, u64>,
    listing: Option<BTreeSet<String>>,
    /// Whether all of them are known.
    pub(super) complete: bool,
}

fn number(seen: &Seen) -> u64 {
    seen.version.parse().unwrap_or(u64::MAX)
}

impl<T> Owned<T> {
    fn new(read: fn(Storage, &DynamicObject) -> Option<T>) -> Self {
        Self {
            read,
            objects: BTreeMap::new(),
            gone: HashMap::default(),
            listing: None,
            complete: false,
        }
    }

    /// Takes in what the watch tells.
    pub(super) fn event(&mut self, storage: Storage, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                if let (Some(listing), Some(name)) = (&mut self.listing, &object.metadata.name) {
                    listing.insert(name.clone());
                }
                self.take(storage, &object);
            }
            Event::InitDone => {
                if let Some(listing) = self.listing.take() {
                    self.objects.retain(|name, _| listing.contains(name));
                }
                self.gone.clear();
                self.complete = true;
            }
            Event::Apply(object) => self.take(storage, &object),
            Event::Delete(object) => {
                let name = object.metadata.name.clone().unwrap_or_default();
                let known = self.objects.get(&name).map(|(seen, _)| number(seen));
                if known.is_none_or(|known| known <= number(&Seen::of(&object))) {
                    self.objects.remove(&name);
                    self.gone.remove(&name);
                }
            }
        }
    }

    /// Takes in an object, unless newer is known of it.
    pub(super) fn take(&mut self, storage: Storage, object: &DynamicObject) {
        let (name, seen) = (object.metadata.name.clone().unwrap_or_default(), Seen::of(object));
        let known = self.objects.get(&name).map(|(seen, _)| number(seen));
        let newest = known.max(self.gone.get(&name).copied());
        if newest.is_some_and(|newest| newest >= number(&seen)) {
            return;
        }
        self.gone.remove(&name);
        match (self.read)(storage, object) {
            Some(read) => {
                self.objects.insert(name, (seen, read));
            }
            None => {
                self.objects.remove(&name);
            }
        }
    }

    /// We have deleted an object.
    pub(super) fn deleted(&mut self, name: &str) {
        if let Some((seen, _)) = self.objects.remove(name) {
            self.gone.insert(name.to_owned(), number(&seen));
        }
    }

    pub(super) fn seen(&self, name: &str) -> Option<&Seen> {
        self.objects.get(name).map(|(seen, _)| seen)
    }
}

impl Owned<Set> {
    pub(super) fn sets() -> Self {
        Self::new(object::read_set)
    }

    pub(super) fn present(&self) -> Sets {
        self.objects.iter().map(|(name, (_, set))| (name.clone(), set.clone())).collect()
    }
}

impl Owned<Result<Pool, ()>> {
    pub(super) fn pools() -> Self {
        Self::new(object::read_pool)
    }

    /// Those that are as they were written.
    pub(super) fn present(&self) -> Pools {
        let pools = self.objects.iter();
        pools.filter_map(|(name, (_, pool))| Some((name.clone(), pool.clone().ok()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(version: u32, net: &str) -> DynamicObject {
        let metadata = json!({
            "name": "s", "uid": "u", "resourceVersion": version.to_string(),
            "labels": {"tieline/remote-cluster": "db"},
        });
        let set = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
            "metadata": metadata, "spec": {"nets": [net]},
        });
        serde_json::from_value(set).unwrap()
    }

    fn nets(owned: &Owned<Set>) -> Vec<String> {
        owned.present().values().flat_map(|set| &set.nets).map(ToString::to_string).collect()
    }

    #[test]
    fn late_news_change_nothing() {
        let mut owned = Owned::sets();
        let storage = Storage::V3;
        owned.event(storage, Event::Init);
        owned.event(storage, Event::InitApply(object(3, "10.0.0.1/32")));
        owned.event(storage, Event::InitDone);
        assert!(owned.complete);
        owned.take(storage, &object(7, "10.0.0.2/32"));
        owned.event(storage, Event::Apply(object(5, "10.0.0.3/32")));
        assert_eq!(nets(&owned), ["10.0.0.2/32"]);
        owned.deleted("s");
        owned.event(storage, Event::Apply(object(7, "10.0.0.2/32")));
        assert!(nets(&owned).is_empty());
        owned.event(storage, Event::Apply(object(9, "10.0.0.4/32")));
        assert_eq!(nets(&owned), ["10.0.0.4/32"], "somebody has made it again");
        owned.event(storage, Event::Delete(object(10, "10.0.0.4/32")));
        assert!(nets(&owned).is_empty());
    }
}
