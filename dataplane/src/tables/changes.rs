//! Which flows a change of the tables concerns.
//!
//! A flow's verdict follows from what is known of its two addresses, from the
//! routes and the prefixes with a class that hold the remote one, and from the
//! local one's policy in the flow's direction. Each publication notes in its
//! [`Changes`] which of these differ from before. A worker then judges a flow
//! again only if something has changed that it was judged by, so pods, routes
//! and policies that come and go elsewhere cost a flow one look at a few numbers.
//!
//! Some flows are judged again for nothing: those of few other addresses, which
//! [share](super::stamps) a place, and all of a policy's endpoints in the direction
//! that it was edited in. To tell which of their peers an edit is about would cost
//! the lookups that judging does.

use std::sync::Arc;

use super::stamps::{Addresses, Prefixes, after};
use super::{PolicyId, Snapshot};
use crate::addr::Addr;
use crate::publish::Supersede;

/// So many changed keys are taken for a change of everything.
const MANY: usize = 1 << 15;

/// When what verdicts follow from has changed last, in generations.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Anything that may concern every flow.
    everything: u32,
    endpoints: Addresses,
    /// Of routes, and of prefixes with a class.
    prefixes: Prefixes,
    /// By number, ingress and egress; none beyond the last that has changed.
    policies: Arc<[[u32; 2]]>,
    /// The last change of any policy.
    any_policy: u32,
}

/// A flow as far as changes may concern it.
#[derive(Clone, Copy, Debug)]
pub struct Concern {
    /// The end on this node.
    pub local: Addr,
    /// The other end.
    pub remote: Addr,
    /// Whether the local end began it, and so its egress policy has decided; `None`
    /// of fragments, which may belong to an answer.
    pub egress: Option<bool>,
}

impl Snapshot {
    /// Whether a flow that was judged by the tables of `generation` has to be
    /// judged again.
    pub fn concerns(&self, generation: u32, flow: &Concern) -> bool {
        let changes = &self.changes;
        after(changes.everything, generation)
            || changes.endpoints.changed(flow.local, generation)
            || changes.endpoints.changed(flow.remote, generation)
            || changes.prefixes.changed(flow.remote, generation)
            || after(changes.any_policy, generation) && self.policy_changed(generation, flow)
    }

    fn policy_changed(&self, generation: u32, flow: &Concern) -> bool {
        let policy = self.endpoints.get(flow.local).and_then(|endpoint| endpoint.policy);
        let changed = |PolicyId(id)| self.changes.policies.get(id as usize);
        policy.and_then(changed).is_some_and(|[ingress, egress]| {
            flow.egress != Some(true) && after(*ingress, generation)
                || flow.egress != Some(false) && after(*egress, generation)
        })
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
        let addresses: Vec<_> = self.endpoints.changed(&previous.endpoints).take(MANY).collect();
        let mut prefixes = self.routes.changed(&previous.routes);
        prefixes.extend(self.endpoints.changed_prefixes(&previous.endpoints));
        if !self.is_newer_than(previous.generation as u32)
            || addresses.len().max(prefixes.len()) >= MANY
        {
            changes.everything = generation;
        } else {
            addresses.iter().for_each(|addr| changes.endpoints.note(*addr, generation));
            prefixes.iter().for_each(|prefix| changes.prefixes.note(prefix, generation));
        }
        let policies: Vec<_> = self.policies.changed(&previous.policies).collect();
        if let Some((PolicyId(last), _)) = policies.last() {
            changes.any_policy = generation;
            let mut noted = changes.policies.to_vec();
            noted.resize(noted.len().max(*last as usize + 1), [0; 2]);
            for (PolicyId(id), directions) in policies {
                let noted = noted[id as usize].iter_mut().zip(directions);
                noted.filter(|(_, changed)| *changed).for_each(|(noted, _)| *noted = generation);
            }
            changes.policies = noted.into();
        }
        self.changes = changes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Prefix;
    use crate::tables::policy::Direction;
    use crate::tables::{
        ClassId, Endpoint, EndpointPolicy, Outcome, Policies, Program, Route, RuleId, VtepId,
    };
    use proptest::prelude::*;

    fn addr(last: u32) -> Addr {
        Addr::from_v4_bytes((0x0a00_0000 | last).to_be_bytes())
    }

    fn endpoint(class: u32) -> Endpoint {
        Endpoint { class: ClassId(class), policy: None, local: false }
    }

    fn flow(local: u32, remote: u32) -> Concern {
        Concern { local: addr(local), remote: addr(remote), egress: Some(true) }
    }

    /// The next tables, changed.
    fn next(tables: &Snapshot, change: impl FnOnce(&mut Snapshot)) -> Snapshot {
        let mut next = tables.clone();
        next.generation += 1;
        change(&mut next);
        next.supersede(tables);
        next
    }

    fn direction(rule: u32) -> Direction {
        let outcome = Outcome { allow: true, rule: RuleId(rule) };
        let programs = Arc::new([Arc::new(Program::new(&[], outcome))]);
        Direction { by_class: Arc::new([]), programs }
    }

    fn policy(ingress: u32, egress: u32) -> Option<Arc<EndpointPolicy>> {
        let (ingress, egress) = (direction(ingress), direction(egress));
        Some(Arc::new(EndpointPolicy { ingress, egress }))
    }

    #[test]
    fn an_endpoint_concerns_its_own_flows() {
        let first = next(&Snapshot::empty(), |tables| {
            (1..5).for_each(|last| tables.endpoints.insert(addr(last), endpoint(2)));
        });
        let second = next(&first, |tables| tables.endpoints.insert(addr(3), endpoint(3)));
        assert!(!second.concerns(1, &flow(1, 2)));
        assert!(second.concerns(1, &flow(1, 3)) && second.concerns(1, &flow(3, 1)));
        assert!(!second.concerns(2, &flow(1, 3)), "judged by these tables already");
        let third = next(&second, |tables| tables.endpoints.remove(addr(2)));
        let flow = &flow(1, 2);
        assert!(third.concerns(1, flow) && third.concerns(2, flow) && !third.concerns(3, flow));
        // What was once missed is not forgotten.
        let fourth = next(&third, |_| ());
        assert!(fourth.concerns(2, flow) && !fourth.concerns(3, flow));
    }

    #[test]
    fn routes_and_prefixes_concern_the_remote_ends_in_them() {
        let first = next(&Snapshot::empty(), |_| ());
        for prefix in ["10.0.1.64/26", "10.0.0.0/16"] {
            let prefix: Prefix = prefix.parse().unwrap();
            let route = next(&first, |tables| {
                tables.routes.insert(prefix, Route::Local);
            });
            let class = next(&first, |tables| tables.endpoints.insert_prefix(prefix, ClassId(9)));
            let gone = next(&next(&class, |_| ()), |tables| {
                tables.endpoints.remove_prefix(&prefix);
            });
            for (tables, before) in [(route, 1), (class, 1), (gone, 3)] {
                assert!(tables.concerns(before, &flow(0x1_0000, 0x0170)), "{prefix}");
                assert!(!tables.concerns(before + 1, &flow(0x1_0000, 0x0170)), "{prefix}");
                assert!(!tables.concerns(before, &flow(0x0170, 0x1_0000)), "{prefix}");
            }
        }
    }

    #[test]
    fn a_policy_concerns_its_endpoints_in_its_direction() {
        let local = |id| Endpoint { policy: Some(PolicyId(id)), local: true, ..endpoint(2) };
        let first = next(&Snapshot::empty(), |tables| {
            (1..4).for_each(|last| tables.endpoints.insert(addr(last), local(last)));
            tables.policies = Policies::new([None, policy(1, 1), policy(1, 1)]);
        });
        let [one, two] = [1, 2].map(|last| flow(last, 9));
        let answered = Concern { egress: Some(false), ..one };
        let fragments = Concern { egress: None, ..one };
        let same = next(&first, |tables| {
            tables.policies = Policies::new([None, policy(1, 1), policy(1, 1), policy(1, 1)]);
        });
        assert!(!same.concerns(1, &one), "the same policy, built anew, and one more");
        assert!(!same.concerns(1, &flow(3, 9)), "nobody was judged by it before");
        let second = next(&first, |tables| {
            tables.policies = Policies::new([None, policy(1, 2), policy(1, 1)]);
        });
        assert!(second.concerns(1, &one) && !second.concerns(2, &one));
        assert!(!second.concerns(1, &answered) && !second.concerns(1, &two));
        assert!(second.concerns(1, &fragments) && !second.concerns(2, &fragments));
        let without = next(&second, |tables| {
            tables.policies = Policies::new([None, policy(1, 2)]);
        });
        assert!(without.concerns(2, &two) && !without.concerns(2, &one));
        let more = next(&first, |tables| {
            tables.policies = tables.policies.extended([None, policy(7, 7), policy(7, 7)]);
        });
        assert!(!more.concerns(1, &one), "said to say only more");
    }

    #[test]
    fn tables_from_elsewhere_concern_every_flow() {
        let first = next(&Snapshot::empty(), |_| ());
        let unrelated = next(&first, |tables| {
            *tables = Snapshot { generation: tables.generation, ..Snapshot::empty() };
            tables.generation = 1;
        });
        assert!(unrelated.concerns(0, &flow(1, 2)));
        let all = next(&first, |tables| {
            (0..MANY as u32).for_each(|last| tables.endpoints.insert(addr(last), endpoint(2)));
        });
        assert!(all.concerns(1, &flow(0xff_ffff, 0xff_fffe)));
    }

    /// All that a flow is judged by, as [`crate::enforce`] looks it up; `None` if
    /// by that it is dropped without being remembered.
    fn judged_by(
        tables: &Snapshot,
        flow: &Concern,
    ) -> Option<impl PartialEq + std::fmt::Debug + use<>> {
        let local = tables.endpoints.get(flow.local)?;
        let direction = match local.policy {
            Some(policy) => {
                let policy = tables.policies.get(policy)?;
                let ingress = (flow.egress != Some(true)).then(|| policy.ingress.clone());
                let egress = (flow.egress != Some(false)).then(|| policy.egress.clone());
                Some((ingress, egress))
            }
            None => None,
        };
        let route = *tables.routes.get(flow.remote)?;
        Some((local.local, direction, tables.endpoints.class(flow.remote), route))
    }

    /// A change of one kind, made with three numbers.
    fn change(tables: &mut Snapshot, kind: u8, (a, b, c): (u32, u32, u32)) {
        let prefix = |len: u8| Prefix::new(addr(a % 4 * 64).to_ip(), len).unwrap();
        let lengths = [0, 8, 20, 24, 26, 30, 32];
        let prefix = prefix(lengths[b as usize % lengths.len()]);
        let policy_id = (c % 4 > 0).then_some(PolicyId(c % 4));
        match kind {
            0 => tables.endpoints.remove(addr(a)),
            1 => tables.endpoints.insert(
                addr(a),
                Endpoint { class: ClassId(b % 3), policy: policy_id, local: policy_id.is_some() },
            ),
            2 => tables.endpoints.remove_prefix(&prefix),
            3 => tables.endpoints.insert_prefix(prefix, ClassId(c % 3)),
            4 => drop(tables.routes.remove(&prefix)),
            5 => drop(tables.routes.insert(prefix, Route::Vtep(VtepId(c % 3)))),
            _ => {
                let mut all: Vec<_> =
                    (0..4).map(|id| tables.policies.get(PolicyId(id)).cloned()).collect();
                all[a as usize % 4] = if kind == 6 { None } else { policy(b % 2, c % 2) };
                tables.policies = Policies::new(all);
            }
        }
    }

    proptest! {
        #[test]
        fn what_concerns_no_flow_changes_nothing_for_it(
            steps in prop::collection::vec(
                prop::collection::vec((0u8..9, (0u32..256, 0u32..64, 0u32..64)), 0..4),
                1..12,
            ),
        ) {
            let mut history = vec![next(&Snapshot::empty(), |tables| {
                (0..256).for_each(|at| change(tables, 1, (at, at, at)));
                (0..4).for_each(|at| change(tables, 7, (at, 0, 0)));
                change(tables, 5, (0, 1, 1));
            })];
            for step in &steps {
                let last = history.last().expect("there is one");
                let changed = next(last, |tables| {
                    step.iter().for_each(|(kind, numbers)| change(tables, *kind, *numbers));
                });
                history.push(changed);
            }
            let now = history.last().expect("there is one");
            for (local, remote) in (0..256u32).map(|at| (at, (at * 7 + 3) % 256)) {
                for egress in [Some(false), Some(true), None] {
                    let flow = Concern { egress, ..flow(local, remote) };
                    for then in &history {
                        let by = judged_by(then, &flow);
                        if by.is_some() && !now.concerns(then.generation as u32, &flow) {
                            prop_assert_eq!(by, judged_by(now, &flow));
                        }
                    }
                }
            }
        }
    }
}
