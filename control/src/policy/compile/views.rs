//! What rules can see of the owner of an address, each distinct view once.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::HashMap;

use super::matcher::LabelSets;
use crate::policy::selector::Selector;
use crate::state::{ClusterId, Identity, IdentityKind, Labels, NamedPort};

/// Number of a [`View`].
pub type ViewId = u32;

/// All that counts of an identity but its addresses. Thousands of pods share
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its kind.
    pub kind: IdentityKind,
    /// The labels that selectors are evaluated over.
    pub labels: Arc<Labels>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// Of a local workload the profile of its namespace.
    pub profile: Option<Profile>,
}

/// What decides about a local workload's packets when no tier does. Ordered so
/// that of an address's owners the first is the one that counts: one that
/// denies, if there is any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Profile {
    /// Whether it is there; Felix puts a denial in the place of one that is not.
    pub exists: bool,
    /// The namespace that it is of.
    pub namespace: String,
}

impl View {
    /// What rules can see of an identity.
    pub fn of(identity: &Identity) -> Self {
        let mut view = Self {
            cluster: identity.cluster.clone(),
            kind: identity.kind,
            labels: identity.labels.clone(),
            ports: identity.ports.clone(),
            profile: None,
        };
        view.profile = view.is_local().then(|| Profile {
            exists: identity.profile,
            namespace: identity.name.namespace.clone(),
        });
        view
    }

    /// Whether policies apply to it here.
    pub fn is_local(&self) -> bool {
        self.kind == IdentityKind::LocalWorkload
    }
}

/// The views that some address has.
#[derive(Debug, Default)]
pub(super) struct Views {
    ids: HashMap<Arc<View>, ViewId>,
    slots: Vec<Option<Slot>>,
    free: Vec<ViewId>,
    labels: LabelSets,
    /// By number of the label set.
    having: Vec<Vec<ViewId>>,
    locals: BTreeSet<ViewId>,
    unused: usize,
}

#[derive(Debug)]
struct Slot {
    view: Arc<View>,
    /// Number of its label set.
    labels: u32,
    uses: u32,
}

impl Views {
    /// The number of a view, once more in use.
    pub(super) fn take(&mut self, view: &View) -> ViewId {
        let id = match self.ids.get(view) {
            Some(id) => *id,
            None => self.add(view.clone()),
        };
        if let Some(slot) = &mut self.slots[id as usize] {
            self.unused -= usize::from(slot.uses == 0);
            slot.uses += 1;
        }
        id
    }

    fn add(&mut self, mut view: View) -> ViewId {
        let number = self.labels.number(&view.labels);
        view.labels = self.labels.get(number).clone();
        let view = Arc::new(view);
        let slot = Some(Slot { view: view.clone(), labels: number, uses: 0 });
        let id = self.free.pop().unwrap_or(self.slots.len() as ViewId);
        self.note(id, &view, number);
        match self.slots.get_mut(id as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.ids.insert(view, id);
        self.unused += 1;
        id
    }

    fn note(&mut self, id: ViewId, view: &View, labels: u32) {
        let place = labels as usize;
        if place >= self.having.len() {
            self.having.resize(place + 1, Vec::new());
        }
        self.having[place].push(id);
        if view.is_local() {
            self.locals.insert(id);
        }
    }

    /// The number of a view that is in use.
    pub(super) fn find(&self, view: &View) -> Option<ViewId> {
        self.ids.get(view).copied()
    }

    /// One use less. The view keeps its number until [`Self::retire`].
    pub(super) fn release(&mut self, id: ViewId) {
        if let Some(slot) = &mut self.slots[id as usize] {
            slot.uses -= 1;
            self.unused += usize::from(slot.uses == 0);
        }
    }

    /// A view and the number of its label set.
    pub(super) fn get(&self, id: ViewId) -> Option<(&Arc<View>, u32)> {
        let slot = self.slots.get(id as usize)?.as_ref()?;
        Some((&slot.view, slot.labels))
    }

    /// Whether more views are kept without use than with.
    pub(super) fn mostly_unused(&self) -> bool {
        self.unused > self.ids.len() / 2 + 1024
    }

    /// Forgets views without use, and numbers label sets anew.
    pub(super) fn retire(&mut self) {
        if std::mem::take(&mut self.unused) == 0 {
            return;
        }
        (self.labels, self.having, self.locals) = Default::default();
        let mut slots = std::mem::take(&mut self.slots);
        for (id, place) in (0..).zip(&mut slots) {
            let Some(slot) = place else { continue };
            if slot.uses == 0 {
                self.ids.remove(&slot.view);
                self.free.push(id);
                *place = None;
                continue;
            }
            slot.labels = self.labels.number(&slot.view.labels);
            self.note(id, &slot.view, slot.labels);
        }
        self.slots = slots;
    }

    /// The label sets that a selector chooses.
    pub(super) fn chosen_by(&self, selector: &Selector) -> Vec<u32> {
        self.labels.chosen_by(selector)
    }

    /// The views with a label set.
    pub(super) fn having(&self, labels: u32) -> &[ViewId] {
        &self.having[labels as usize]
    }

    /// The views of owners to which policies apply here.
    pub(super) fn locals(&self) -> impl Iterator<Item = ViewId> {
        self.locals.iter().copied()
    }

    /// All views.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ViewId, &Arc<View>)> {
        (0..).zip(&self.slots).filter_map(|(id, slot)| Some((id, &slot.as_ref()?.view)))
    }
}
