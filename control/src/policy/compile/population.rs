//! Who has which address, as far as rules can tell.
//!
//! Kept from one compilation to the next, and small: an address takes a number
//! for what rules see of its owner, and its class.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::HashSet;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::ClassId;

use super::views::{View, ViewId, Views};

/// Addresses and what rules can see of their owners.
#[derive(Debug, Default)]
pub struct Population {
    pub(super) views: Views,
    pub(super) addresses: BTreeMap<Addr, Known>,
    nets: Vec<(Prefix, ViewId)>,
    /// The node's own addresses.
    own: Vec<Addr>,
    /// Addresses that have changed since the last compilation.
    touched: HashSet<Addr>,
    nets_changed: bool,
}

/// What is known of an address.
#[derive(Debug)]
pub(super) struct Known {
    owners: Owners,
    /// As last compiled.
    pub(super) class: Option<ClassId>,
}

impl Known {
    /// What rules see of the owners.
    pub(super) fn owners(&self) -> &[ViewId] {
        match &self.owners {
            Owners::One(view) => std::slice::from_ref(view),
            Owners::Many(views) => views,
        }
    }
}

/// Nearly every address has one.
#[derive(Debug)]
enum Owners {
    One(ViewId),
    /// Any other number, ascending; a view as often as an owner has it.
    Many(Box<[ViewId]>),
}

/// What has changed since the last compilation.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) addresses: Vec<Addr>,
    pub(super) nets: bool,
}

impl Population {
    /// What rules see of the owners of an address.
    pub fn owners(&self, addr: Addr) -> &[ViewId] {
        self.addresses.get(&addr).map_or(&[], Known::owners)
    }

    /// All addresses that have owners.
    pub fn addresses(&self) -> impl Iterator<Item = Addr> {
        self.addresses.keys().copied()
    }

    /// A view and the number of its label set.
    pub fn view(&self, id: ViewId) -> Option<(&Arc<View>, u32)> {
        self.views.get(id)
    }

    /// The number of a view that some owner has.
    pub fn find(&self, view: &View) -> Option<ViewId> {
        self.views.find(view)
    }

    /// The number of a view, once more in use: to be given to
    /// [`Self::set_owners`], [`Self::set_nets`] or [`Self::release`].
    pub fn take(&mut self, view: &View) -> ViewId {
        self.views.take(view)
    }

    /// One use of a view less.
    pub fn release(&mut self, view: ViewId) {
        self.views.release(view);
    }

    /// Says who has an address; uses of views are the caller's affair.
    pub fn set_owners(&mut self, addr: Addr, mut owners: Vec<ViewId>) {
        owners.sort_unstable();
        if self.owners(addr) == owners {
            return;
        }
        self.touched.insert(addr);
        if owners.is_empty() && !self.own.contains(&addr) {
            self.addresses.remove(&addr);
            return;
        }
        let owners = match *owners {
            [view] => Owners::One(view),
            _ => Owners::Many(owners.into()),
        };
        let none = || Known { owners: Owners::Many(Box::default()), class: None };
        self.addresses.entry(addr).or_insert_with(none).owners = owners;
    }

    /// Network sets and what else has more addresses than one, with what rules
    /// see of each.
    pub fn set_nets(&mut self, nets: Vec<(Prefix, View)>) {
        let nets: Vec<_> = nets.iter().map(|(net, view)| (*net, self.views.take(view))).collect();
        let old = std::mem::replace(&mut self.nets, nets);
        self.nets_changed |= old != self.nets;
        old.iter().for_each(|(_, view)| self.views.release(*view));
    }

    /// The node's own addresses: known even if they have no owner.
    pub fn set_own(&mut self, mut own: Vec<Addr>) {
        own.sort_unstable();
        own.dedup();
        if self.own == own {
            return;
        }
        let old = std::mem::replace(&mut self.own, own);
        for addr in old.into_iter().chain(self.own.clone()) {
            self.touched.insert(addr);
            if self.own.contains(&addr) {
                let none = || Known { owners: Owners::Many(Box::default()), class: None };
                self.addresses.entry(addr).or_insert_with(none);
            } else if self.owners(addr).is_empty() {
                self.addresses.remove(&addr);
            }
        }
    }

    /// Whether an address is the node's own.
    pub(super) fn is_own(&self, addr: Addr) -> bool {
        self.own.contains(&addr)
    }

    pub(super) fn nets(&self) -> &[(Prefix, ViewId)] {
        &self.nets
    }

    /// What has changed; ascending.
    pub(super) fn changes(&mut self) -> Touched {
        let mut addresses: Vec<Addr> = self.touched.drain().collect();
        addresses.sort_unstable();
        // Draining keeps the room that a large change took.
        self.touched = HashSet::default();
        Touched { addresses, nets: std::mem::take(&mut self.nets_changed) }
    }

    /// The views of an address's owners to which policies apply.
    pub(super) fn locals<'p>(
        &'p self,
        owners: &'p [ViewId],
    ) -> impl Iterator<Item = (&'p Arc<View>, u32)> {
        owners.iter().filter_map(|id| self.view(*id)).filter(|(view, _)| view.is_local())
    }
}
