//! Who has which address, as far as rules can tell.
//!
//! Kept from one compilation to the next, and small: an address takes a number
//! for what rules see of its owner, and its class.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The addresses whose only owner has a view, in no order.
    having: Vec<Vec<Addr>>,
    /// All others.
    shared: BTreeSet<Addr>,
    nets: Vec<(Prefix, ViewId)>,
    /// The node's own addresses.
    own: Vec<Addr>,
    /// Addresses that have changed since the last compilation.
    touched: HashSet<Addr>,
    touched_nets: Vec<Prefix>,
}

/// What is known of an address.
#[derive(Debug, Default)]
pub(super) struct Known {
    owners: Owners,
    /// As last compiled.
    pub(super) class: Option<ClassId>,
}

impl Known {
    /// What rules see of the owners.
    pub(super) fn owners(&self) -> &[ViewId] {
        match &self.owners {
            Owners::One { view, .. } => std::slice::from_ref(view),
            Owners::Many(views) => views,
        }
    }
}

/// Nearly every address has one.
#[derive(Debug)]
enum Owners {
    /// The place is that among the addresses of the view.
    One { view: ViewId, place: u32 },
    /// Any other number, ascending; a view as often as an owner has it.
    Many(Box<[ViewId]>),
}

impl Default for Owners {
    fn default() -> Self {
        Self::Many(Box::default())
    }
}

/// What has changed since the last compilation.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) addresses: Vec<Addr>,
    /// Those of which other views are known.
    pub(super) nets: Vec<Prefix>,
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
        self.leave(addr);
        if owners.is_empty() && !self.own.contains(&addr) {
            self.addresses.remove(&addr);
            return;
        }
        let owners = self.join(addr, owners);
        self.addresses.entry(addr).or_default().owners = owners;
    }

    /// Takes an address from those of its views.
    fn leave(&mut self, addr: Addr) {
        let Some(Known { owners: Owners::One { view, place }, .. }) = self.addresses.get(&addr)
        else {
            self.shared.remove(&addr);
            return;
        };
        let (having, gap) = (&mut self.having[*view as usize], *place);
        having.swap_remove(gap as usize);
        if having.len() < having.capacity() / 4 {
            having.shrink_to(having.len() * 2);
        }
        let moved = having.get(gap as usize).and_then(|moved| self.addresses.get_mut(moved));
        if let Some(Known { owners: Owners::One { place, .. }, .. }) = moved {
            *place = gap;
        }
    }

    /// Puts an address among those of its views.
    fn join(&mut self, addr: Addr, owners: Vec<ViewId>) -> Owners {
        let [view] = *owners else {
            self.shared.insert(addr);
            return Owners::Many(owners.into());
        };
        if view as usize >= self.having.len() {
            self.having.resize(view as usize + 1, Vec::new());
        }
        let having = &mut self.having[view as usize];
        having.push(addr);
        Owners::One { view, place: having.len() as u32 - 1 }
    }

    /// The addresses that have an owner with one of these views.
    pub(super) fn having(&self, views: &BTreeSet<ViewId>) -> Vec<Addr> {
        let of_one = views.iter().filter_map(|view| self.having.get(*view as usize)).flatten();
        let has = |addr: &&Addr| self.owners(**addr).iter().any(|view| views.contains(view));
        of_one.chain(self.shared.iter().filter(has)).copied().collect()
    }

    /// The addresses in a net.
    pub(super) fn within(&self, net: Prefix) -> impl Iterator<Item = Addr> {
        let rest = u128::MAX.checked_shr(net.len128().into()).unwrap_or(0);
        let last = Addr::from_bits(net.addr().bits() | rest);
        self.addresses.range(net.addr()..=last).map(|(addr, _)| *addr)
    }

    /// The addresses to whose owners policies apply; ascending.
    pub(super) fn local_addresses(&self) -> Vec<Addr> {
        let mut addresses = self.having(&self.views.locals().collect());
        addresses.sort_unstable();
        addresses
    }

    /// Network sets and what else has more addresses than one, with what rules
    /// see of each.
    pub fn set_nets(&mut self, nets: Vec<(Prefix, View)>) {
        let nets: Vec<_> = nets.iter().map(|(net, view)| (*net, self.views.take(view))).collect();
        let old = std::mem::replace(&mut self.nets, nets);
        let (before, after): (HashSet<_>, HashSet<_>) =
            (old.iter().collect(), self.nets.iter().collect());
        let touched = before.symmetric_difference(&after).map(|(net, _)| *net);
        self.touched_nets.extend(touched);
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
                if !self.addresses.contains_key(&addr) {
                    let owners = self.join(addr, Vec::new());
                    self.addresses.insert(addr, Known { owners, class: None });
                }
            } else if self.owners(addr).is_empty() {
                self.leave(addr);
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
        Touched { addresses, nets: std::mem::take(&mut self.touched_nets) }
    }

    /// The views of an address's owners to which policies apply.
    pub(super) fn locals<'p>(
        &'p self,
        owners: &'p [ViewId],
    ) -> impl Iterator<Item = (&'p Arc<View>, u32)> {
        owners.iter().filter_map(|id| self.view(*id)).filter(|(view, _)| view.is_local())
    }
}
