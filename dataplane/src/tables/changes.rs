//! Which flows a change of the tables concerns.
//!
//! A flow's verdict follows from what is known of its two addresses, from the
//! routes, the prefixes with a class, and the policies. Each publication notes
//! in its [`Changes`] which parts of the endpoint table differ from before, and
//! whether anything else does that verdicts follow from. A worker then judges a
//! flow again only if a part with one of its addresses has changed, or
//! something that may concern any flow. So pods that come and go elsewhere cost
//! the flows of others one look at two numbers.

use std::sync::Arc;

use super::Snapshot;
use super::shard::SHARDS;
use crate::addr::Addr;
use crate::publish::Supersede;

/// When what verdicts follow from has changed last, in generations.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Anything that may concern every flow.
    everything: u32,
    /// Parts of the endpoint table.
    parts: Arc<[u32; SHARDS]>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { everything: 0, parts: Arc::new([0; SHARDS]) }
    }
}

/// Whether generation `a` came after `b`. Only the lower halves are kept: half
/// of their range is eight months of a hundred changes a second.
const fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > 0
}

impl Snapshot {
    /// Whether a flow between these addresses that was judged by the tables of
    /// `generation` has to be judged again.
    pub fn concerns(&self, generation: u32, addrs: (Addr, Addr)) -> bool {
        let changed = |addr| after(self.changes.parts[self.endpoints.part(addr)], generation);
        after(self.changes.everything, generation) || changed(addrs.0) || changed(addrs.1)
    }

    /// Whether the tables are newer than `generation`.
    pub const fn is_newer_than(&self, generation: u32) -> bool {
        after(self.generation as u32, generation)
    }
}

impl Supersede for Snapshot {
    fn supersede(&mut self, previous: &Self) {
        let generation = self.generation as u32;
        let mut changes = previous.changes.clone();
        let same = self.routes.shares_all_with(&previous.routes)
            && self.endpoints.shares_prefixes_with(&previous.endpoints)
            && self.policies.keep(&previous.policies);
        if !same || !self.is_newer_than(previous.generation as u32) {
            changes.everything = generation;
        }
        let mut parts = self.endpoints.changed_parts(&previous.endpoints).peekable();
        if parts.peek().is_some() {
            let noted = Arc::make_mut(&mut changes.parts);
            parts.for_each(|part| noted[part] = generation);
        }
        self.changes = changes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{ClassId, Endpoint, Policies, Route};

    fn addr(last: u32) -> Addr {
        Addr::from_v4_bytes((0x0a00_0000 | last).to_be_bytes())
    }

    fn endpoint(class: u32) -> Endpoint {
        Endpoint { class: ClassId(class), policy: None, local: false }
    }

    /// The next tables, changed.
    fn next(tables: &Snapshot, change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let mut next = tables.clone();
        next.generation += 1;
        change(&mut next);
        next.supersede(tables);
        next
    }

    #[test]
    fn an_endpoint_concerns_its_own_flows() {
        let flow = (addr(1), addr(2));
        let first = next(&Snapshot::empty(), |tables| {
            (1..5).for_each(|last| tables.endpoints.insert(addr(last), endpoint(2)));
        });
        let second = next(&first, |tables| tables.endpoints.insert(addr(3), endpoint(3)));
        assert!(!second.concerns(1, flow));
        assert!(second.concerns(1, (addr(1), addr(3))));
        assert!(!second.concerns(2, (addr(1), addr(3))), "judged by these tables already");
        let third = next(&second, |tables| tables.endpoints.remove(addr(2)));
        assert!(third.concerns(1, flow) && third.concerns(2, flow) && !third.concerns(3, flow));
        // What was once missed is not forgotten.
        let fourth = next(&third, |_| ());
        assert!(fourth.concerns(2, flow) && !fourth.concerns(3, flow));
    }

    #[test]
    fn routes_prefixes_and_policies_concern_every_flow() {
        let flow = (addr(1), addr(2));
        let first = next(&Snapshot::empty(), |_| ());
        let prefix = "10.9.0.0/16".parse().unwrap();
        let route = next(&first, |tables| {
            tables.routes.insert(prefix, Route::Local);
        });
        assert!(route.concerns(1, flow));
        let class = next(&first, |tables| tables.endpoints.insert_prefix(prefix, ClassId(9)));
        assert!(class.concerns(1, flow));
        let direction =
            crate::tables::policy::Direction { by_class: Arc::new([]), programs: Arc::new([]) };
        let policy = || {
            let (ingress, egress) = (direction.clone(), direction.clone());
            Some(Arc::new(crate::tables::EndpointPolicy { ingress, egress }))
        };
        let with = next(&first, |tables| tables.policies = Policies::new([policy()]));
        assert!(!with.concerns(1, flow), "nobody had the policy before");
        let again = next(&with, |tables| tables.policies = Policies::new([policy()]));
        assert!(!again.concerns(2, flow), "the same policy, built anew");
        let without = next(&with, |tables| tables.policies = Policies::new([None]));
        assert!(without.concerns(2, flow));
        let more = next(&with, |tables| {
            tables.policies = tables.policies.extended([policy(), policy()]);
        });
        assert!(!more.concerns(2, flow), "only more policies");
    }

    #[test]
    fn tables_from_elsewhere_concern_every_flow() {
        let first = next(&Snapshot::empty(), |_| ());
        let unrelated = next(&first, |tables| {
            *tables = Snapshot { generation: tables.generation, ..Snapshot::empty() };
        });
        assert!(unrelated.concerns(1, (addr(1), addr(2))));
    }
}
