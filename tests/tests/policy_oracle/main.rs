//! The compiled tables against a direct reading of the rules: random clusters,
//! policies and packets, everything drawn from few values so that it meets.
//!
//! `TIELINE_ORACLE_PAIRS=1000000` sets how many pairs of policy set and packet
//! are tried (in its own run, with fresh random numbers); by default a slice
//! that is always the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use tieline::derive::Derived;
use tieline::policy::compile::{Compiled, Compiler, Decision, Direction, compile};
use tieline::policy::explain::{
    Asked, DecidedBy, ExplainError, Explainer, Protocol, Query, Side, Verdict,
};
use tieline::policy::model::PolicySet;
use tieline::resolve::resolve;
use tieline::state::{Identity, IdentityKind, World};
use tieline_dataplane::tables::{Endpoints, L4, Policies};
use tieline_tests::oracle::{Oracle, Packet};

use self::random::{identity, packet, policy_set};

mod cases;
mod random;

/// Packets per policy set.
const PACKETS: usize = 64;

/// Judges packets by compiled tables, as the data plane does.
struct Tables {
    endpoints: Endpoints,
    policies: Policies,
    decisions: Arc<[Arc<Decision>]>,
}

impl Tables {
    fn new(compiled: &Compiled) -> Self {
        let Compiled { endpoints, policies, decisions } = compiled.clone();
        Self { endpoints, policies, decisions }
    }

    fn judge(&self, direction: Direction, packet: &Packet) -> Option<(bool, Decision)> {
        let (local, peer) = match direction {
            Direction::Ingress => (packet.destination, packet.source),
            Direction::Egress => (packet.source, packet.destination),
        };
        let policy = self.policies.get(self.endpoints.get(local)?.policy?)?;
        let table = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let outcome = table.judge(self.endpoints.class(peer), &packet.l4);
        Some((outcome.allow, (*self.decisions[outcome.rule.0 as usize]).clone()))
    }
}

/// The same cases every time.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    )
}

fn agree(
    compiled: &Compiled,
    policies: &PolicySet,
    identities: &[Identity],
    packets: &[Packet],
) -> Result<(), TestCaseError> {
    let tables = Tables::new(compiled);
    let oracle = Oracle { policies, identities };
    for packet in packets {
        for direction in [Direction::Ingress, Direction::Egress] {
            let (judged, expected) =
                (tables.judge(direction, packet), oracle.judge(direction, packet));
            prop_assert_eq!(judged, expected, "{:?} of {:?}", direction, packet);
        }
    }
    Ok(())
}

#[test]
fn tables_decide_as_the_rules_read() {
    let mut runner = match std::env::var("TIELINE_ORACLE_PAIRS") {
        Ok(pairs) => {
            let pairs: u32 = pairs.parse().expect("TIELINE_ORACLE_PAIRS is a number");
            let cases = pairs.div_ceil(PACKETS as u32);
            TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
        }
        Err(_) => runner(2000),
    };
    let cluster = (
        policy_set(),
        prop::collection::vec(identity(), 0..16),
        prop::collection::vec(packet(), PACKETS),
    );
    let result = runner.run(&cluster, |(policies, identities, packets)| {
        agree(&compile(&policies, &identities), &policies, &identities, &packets)
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// Some edits to a cluster, and what each leaves.
type Edits = Vec<(Option<PolicySet>, Vec<Identity>, prop::sample::Index)>;

#[test]
fn a_compiler_that_remembers_decides_the_same() {
    let identities = || prop::collection::vec(identity(), 0..4);
    let edit =
        (prop::option::weighted(0.3, policy_set()), identities(), any::<prop::sample::Index>());
    let start = (policy_set(), prop::collection::vec(identity(), 0..16));
    let edits = prop::collection::vec(edit, 1..6);
    let packets = prop::collection::vec(packet(), PACKETS);
    let cases = (start, edits, packets);
    let result = runner(300).run(&cases, |((mut policies, mut identities), edits, packets)| {
        let edits: Edits = edits;
        let mut compiler = Compiler::default();
        compiler.compile(&policies, &identities);
        for (new_policies, new_identities, at) in edits {
            policies = new_policies.unwrap_or(policies);
            if !identities.is_empty() {
                identities.remove(at.index(identities.len()));
            }
            identities.extend(new_identities);
            let compiled = compiler.compile(&policies, &identities);
            agree(&compiled, &policies, &identities, &packets)?;
            let again = compiler.compile(&policies, &identities);
            prop_assert!(compiled.endpoints.is_same(&again.endpoints));
            prop_assert!(compiled.policies.is_same(&again.policies));
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn the_random_packets_meet_every_kind_of_decision() {
    let mut runner = runner(1);
    let cluster = (policy_set(), prop::collection::vec(identity(), 0..16));
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..400 {
        let (policies, identities) = cluster.new_tree(&mut runner).expect("a cluster").current();
        let oracle = Oracle { policies: &policies, identities: &identities };
        for _ in 0..PACKETS {
            let packet = packet().new_tree(&mut runner).expect("a packet").current();
            let kind = match oracle.judge(Direction::Ingress, &packet) {
                Some((true, Decision::Rule { tier, .. })) if tier != "t0" => "allow, later tier",
                Some((true, Decision::Rule { .. })) => "allow",
                Some((false, Decision::Rule { .. })) => "deny",
                Some((_, Decision::TierDefault { .. })) => "tier",
                Some((_, Decision::Profile { .. })) => "profile",
                Some((_, Decision::NoProfile { .. })) => "no profile",
                Some((_, Decision::NoPolicy)) | None => "not local",
            };
            *kinds.entry(kind).or_default() += 1;
        }
    }
    println!("{kinds:?}");
    assert!(kinds.len() == 7 && kinds.values().all(|count| *count >= 300), "{kinds:?}");
}

/// What follows from a cluster, with names so that all identities differ.
fn derived(policies: PolicySet, mut identities: Vec<Identity>) -> Derived {
    for (at, identity) in identities.iter_mut().enumerate() {
        identity.name.name = format!("i{at}");
    }
    let world = World {
        node: "this".into(),
        include_local_vteps: false,
        local: Arc::default(),
        remotes: BTreeMap::new(),
    };
    let compiled = compile(&policies, &identities);
    let resolved = resolve(&world);
    Derived::new(Arc::new(world), resolved, identities, policies.into(), compiled)
}

/// One side of an answer against the oracle, and its story against its verdict.
fn side_agrees(
    side: &Side,
    judged: Option<(bool, Decision)>,
    packet: &Packet,
) -> Result<(), TestCaseError> {
    let Some((allow, decision)) = judged else {
        return Err(TestCaseError::fail(format!("{side:?} about no local pod: {packet:?}")));
    };
    prop_assert_eq!(side.verdict, Verdict::from(allow), "{:?}", packet);
    let last = side.trace.last();
    match decision {
        Decision::Rule { tier, policy, index, .. } => {
            prop_assert_eq!((side.decided_by, side.rule), (DecidedBy::Rule, Some(index + 1)));
            let last = last.and_then(|it| Some((&it.tier, it.end, it.policies.last()?)));
            let Some((told, end, told_policy)) = last else {
                return Err(TestCaseError::fail(format!("no story: {side:?}")));
            };
            prop_assert_eq!((told, &told_policy.name), (&tier, &policy.to_string()));
            prop_assert_eq!(end, if allow { "allow" } else { "deny" });
            let rule = told_policy.rules.last().map(|rule| (rule.rule, rule.failed.len()));
            prop_assert_eq!(rule, Some((index + 1, 0)));
        }
        Decision::TierDefault { tier } => {
            let told = last.map(|last| (last.tier.as_str(), last.end));
            prop_assert_eq!(told, Some((tier.as_str(), "default-deny")));
        }
        Decision::Profile { name } | Decision::NoProfile { name } => {
            prop_assert_eq!(side.profile.as_deref(), Some(name.as_str()));
            let mut ends = side.trace.iter().map(|tier| tier.end);
            prop_assert!(ends.all(|end| ["pass", "default-pass", "skipped"].contains(&end)));
        }
        Decision::NoPolicy => return Err(TestCaseError::fail("no policy asked")),
    }
    Ok(())
}

#[test]
fn explanations_fit_the_verdicts() {
    let cluster = (
        policy_set(),
        prop::collection::vec(identity(), 0..16),
        prop::collection::vec(packet(), PACKETS),
    );
    let result = runner(400).run(&cluster, |(policies, identities, packets)| {
        let derived = derived(policies, identities);
        let oracle = Oracle { policies: &derived.policies, identities: derived.identities() };
        // As the other node sees them: for addresses that only its pods have.
        let mut others = derived.identities().to_vec();
        for identity in &mut others {
            identity.kind = match identity.kind {
                IdentityKind::LocalWorkload => IdentityKind::Workload,
                IdentityKind::Workload => IdentityKind::LocalWorkload,
                kind => kind,
            };
        }
        let other = Oracle { policies: &derived.policies, identities: &others };
        let mut explainer = Explainer::new(&derived);
        for packet in &packets {
            let judge = |direction| {
                oracle.judge(direction, packet).or_else(|| other.judge(direction, packet))
            };
            let (ingress, egress) = (judge(Direction::Ingress), judge(Direction::Egress));
            let query = query(packet);
            let answer = match explainer.explain(&query) {
                Ok(answer) => answer,
                Err(ExplainError::NotLocal { .. }) => {
                    prop_assert!(ingress.is_none() && egress.is_none(), "{:?}", packet);
                    continue;
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            prop_assert_eq!(
                (answer.ingress.is_some(), answer.egress.is_some()),
                (ingress.is_some(), egress.is_some(),)
            );
            for (side, judged) in [(&answer.ingress, ingress), (&answer.egress, egress)] {
                side.as_ref().map_or(Ok(()), |side| side_agrees(side, judged, packet))?;
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn query(packet: &Packet) -> Query {
    let L4 { protocol, source, destination } = packet.l4;
    let [kind, code] = destination.to_be_bytes();
    let has_ports = [6, 17, 132].contains(&protocol);
    let is_icmp = [1, 58].contains(&protocol);
    Query {
        from: Asked::Known(packet.source.to_string()),
        to: Asked::Known(packet.destination.to_string()),
        protocol: Protocol(protocol),
        port: has_ports.then_some(destination),
        src_port: has_ports.then_some(source),
        icmp_type: is_icmp.then_some(kind),
        icmp_code: is_icmp.then_some(code),
        ..Query::default()
    }
}

#[test]
fn the_order_of_identities_does_not_matter() {
    let identities = prop::collection::vec(identity(), 0..16);
    let orders = identities.prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()));
    let result = runner(500).run(&(policy_set(), orders), |(policies, (one, other))| {
        let (one, other) = (compile(&policies, &one), compile(&policies, &other));
        let endpoints = |of: &Compiled| -> BTreeMap<_, _> {
            of.endpoints.iter().map(|(addr, endpoint)| (addr, *endpoint)).collect()
        };
        let prefixes = |of: &Compiled| -> BTreeMap<_, _> { of.endpoints.prefixes().collect() };
        let policies = |of: &Compiled| -> BTreeMap<_, _> {
            of.policies.iter().map(|(id, policy)| (id, policy.clone())).collect()
        };
        prop_assert_eq!(endpoints(&one), endpoints(&other));
        prop_assert_eq!(prefixes(&one), prefixes(&other));
        prop_assert_eq!(policies(&one), policies(&other));
        prop_assert_eq!(one.decisions, other.decisions);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
