//! A deriver that follows edits against one that begins anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tieline_dataplane::addr::{Addr, Prefix};
use tieline_dataplane::tables::{Concern, L4, Snapshot};

use self::edits::{Edit, Lab, addresses, edit, policies, policy_edit};
use super::*;
use crate::policy::compile::{Decision, compile};
use crate::policy::explain::{Explainer, Query};
use crate::publish::Tables;
use crate::supervise::kernel;

mod edits;

/// Addresses that anything can be said about.
fn everyone() -> Vec<Addr> {
    let mut all: Vec<Addr> = Vec::new();
    for cluster in 0..3 {
        all.extend((0..12).flat_map(|at| addresses(cluster, at)).map(Addr::from));
        all.extend([40, 104, 168].map(|n| Addr::from(IpAddr::from([10, cluster as u8, 0, n]))));
    }
    all.push(IpAddr::from([192, 0, 2, 7]).into());
    all.push(IpAddr::from([203, 0, 113, 7]).into());
    all.sort_unstable();
    all.dedup();
    all
}

const PACKETS: [L4; 3] = [
    L4 { protocol: 6, source: 1, destination: 80 },
    L4 { protocol: 6, source: 1, destination: 81 },
    L4 { protocol: 17, source: 1, destination: 80 },
];

/// What tables say, without numbers.
type Said = BTreeMap<(Addr, Addr), Vec<(bool, Decision)>>;

fn said(compiled: &Compiled, everyone: &[Addr]) -> Said {
    let mut said = Said::new();
    for local in everyone {
        let endpoint = compiled.endpoints.get(*local);
        let Some(policy) = endpoint.and_then(|it| compiled.policies.get(it.policy?)) else {
            continue;
        };
        for peer in everyone.iter().filter(|peer| peer.is_v4() == local.is_v4()) {
            let class = compiled.endpoints.class(*peer);
            let outcomes = PACKETS
                .iter()
                .flat_map(|l4| [policy.ingress.judge(class, l4), policy.egress.judge(class, l4)]);
            let outcomes =
                outcomes.map(|it| (it.allow, (*compiled.decisions[it.rule.0 as usize]).clone()));
            said.insert((*local, *peer), outcomes.collect());
        }
    }
    said
}

/// Which addresses are known, and which are this node's.
fn known(compiled: &Compiled) -> BTreeMap<Addr, (bool, bool)> {
    let all = compiled.endpoints.iter();
    all.map(|(addr, endpoint)| (addr, (endpoint.local, endpoint.policy.is_some()))).collect()
}

fn publish(tables: &mut Tables, derived: &Derived) -> Arc<Snapshot> {
    let config: tieline_config::schema::Overlay = Default::default();
    let overlay = kernel::overlay(&derived.resolved, &config, Default::default());
    tables.apply(overlay, &derived.resolved, &derived.compiled, &BTreeMap::new());
    tables.current().clone()
}

/// Follows edits, and holds each outcome against one from the beginning.
fn check(edits: &[Edit]) -> Result<(), TestCaseError> {
    let everyone = everyone();
    let mut lab = Lab::new();
    let mut deriver = Deriver::default();
    let mut tables = Tables::default();
    let mut before: Option<(Arc<Snapshot>, Said)> = None;
    for at in 0..=edits.len() {
        if let Some(edit) = at.checked_sub(1).and_then(|at| edits.get(at)) {
            lab.apply(edit);
        }
        let world = Arc::new(lab.world.clone());
        let derived = deriver.derive(world.clone());
        let fresh = derive(world.clone());
        let resolved = resolve::resolve(&world);
        prop_assert_eq!(&derived.resolved.own, &resolved.own);
        prop_assert_eq!(&derived.resolved.vteps, &resolved.vteps);
        prop_assert_eq!(&derived.resolved.routes, &resolved.routes);
        prop_assert_eq!(derived.conditions(), fresh.conditions());
        for condition in &resolved.conditions {
            prop_assert!(derived.conditions().contains(condition), "{:?}", condition);
        }
        // The fresh one from the same differences, and one from a list of
        // identities, which knows no differences.
        let listed = compile(&derived.policies, &resolve::identities(&world));
        let says = said(&derived.compiled, &everyone);
        prop_assert_eq!(&says, &said(&fresh.compiled, &everyone));
        prop_assert_eq!(&says, &said(&listed, &everyone));
        prop_assert_eq!(known(&derived.compiled), known(&fresh.compiled));
        let unowned = |addr: &Addr| !derived.resolved.own.tunnel.contains(&addr.to_ip());
        let owned = |compiled: &Compiled| -> Vec<Addr> {
            known(compiled).into_keys().filter(unowned).collect()
        };
        prop_assert_eq!(owned(&derived.compiled), owned(&listed));
        explained(&derived, &fresh, &says)?;
        // What is not judged again must not need to be.
        let snapshot = publish(&mut tables, &derived);
        if let Some((old, said)) = &before {
            for ((local, remote), outcome) in said {
                let now = says.get(&(*local, *remote));
                // As `said` has them: for each packet what comes in, what goes out.
                for (egress, from) in [(false, 0), (true, 1)] {
                    let allows = |of: &[(bool, Decision)]| -> Vec<bool> {
                        of.iter().skip(from).step_by(2).map(|(allow, _)| *allow).collect()
                    };
                    let flow = Concern { local: *local, remote: *remote, egress: Some(egress) };
                    if !snapshot.concerns(old.generation as u32, &flow) {
                        let (now, then) = (now.map(|it| allows(it)), Some(allows(outcome)));
                        prop_assert_eq!(now, then, "{:?}", flow);
                    }
                }
            }
        }
        before = Some((snapshot, says));
    }
    Ok(())
}

/// Explanations of some connections, through both.
fn explained(one: &Derived, other: &Derived, said: &Said) -> Result<(), TestCaseError> {
    let (mut one, mut other) = (Explainer::new(one), Explainer::new(other));
    for (local, peer) in said.keys().step_by(7).take(8) {
        let query = json!({"from": peer.to_string(), "to": local.to_string(), "protocol": "tcp", "port": 80});
        let query: Query = serde_json::from_value(query).expect("a query");
        let text = |answer: Result<_, crate::policy::explain::ExplainError>| {
            answer.map(|it| serde_json::to_string(&it).expect("JSON")).map_err(|it| it.to_string())
        };
        prop_assert_eq!(text(one.explain(&query)), text(other.explain(&query)));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn following_edits_is_beginning_anew(edits in prop::collection::vec(edit(), 1..40)) {
        check(&edits)?;
    }

    /// Few policies again and again: numbers come back.
    #[test]
    fn following_edits_of_policies_is_beginning_anew(
        edits in prop::collection::vec(edit(), 20..30),
        first in 0..policies(0).len(),
        again in prop::collection::vec((0usize..3, policy_edit()), 10..30),
    ) {
        let near = again.into_iter().map(|(step, edit)| match edit {
            Edit::Policy { variant, .. } => {
                Edit::Policy { at: (first + step) % policies(0).len(), variant }
            }
            other => other,
        });
        check(&edits.into_iter().chain(near).collect::<Vec<_>>())?;
    }
}

#[test]
fn the_edits_meet_local_pods_and_remote_ones() {
    let mut lab = Lab::new();
    lab.apply(&Edit::Policy { at: 0, variant: Some(0) });
    lab.apply(&Edit::Pod { cluster: 0, namespace: 0, name: 0, pod: Some((0, 1, 0, 1)) });
    lab.apply(&Edit::Pod { cluster: 1, namespace: 0, name: 0, pod: Some((0, 1, 0, 1)) });
    let derived = derive(Arc::new(lab.world));
    let said = said(&derived.compiled, &everyone());
    let (local, far) = ([10, 0, 0, 1], [10, 1, 0, 1]);
    let outcome = &said[&(IpAddr::from(local).into(), IpAddr::from(far).into())];
    assert_eq!((outcome[0].0, outcome[2].0), (true, false), "port 80 alone: {outcome:?}");
    assert!(derived.resolved.routes.contains_key(&"10.1.0.0/26".parse::<Prefix>().unwrap()));
}
