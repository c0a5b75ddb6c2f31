//! Random identities, selectors and edits, against the ungrouped identities.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::mirror::group::Grouper;
use crate::policy::selector::Selector;
use crate::state::{ClusterId, Identity, IdentityKind, ObjectName};

const KEYS: [&str; 4] = ["app", "team", "pcns.env", "projectcalico.org/namespace"];
const VALUES: [&str; 5] = ["a", "b", "other", "x", "web-1"];

/// What one pod of one cluster has; its place is its address.
type PodLabels = Vec<(usize, usize)>;

#[derive(Clone, Debug)]
struct State {
    /// By cluster, address and which of its owners.
    pods: BTreeMap<(u8, u8, u8), PodLabels>,
    selectors: BTreeSet<Selector>,
}

impl State {
    fn identities(&self) -> Vec<Identity> {
        let identity = |((cluster, address, owner), labels): (&(u8, u8, u8), &PodLabels)| {
            let addr = IpAddr::from([10, *cluster, 0, *address]);
            let mut own: Labels =
                labels.iter().map(|(k, v)| (KEYS[*k].into(), VALUES[*v].into())).collect();
            own.insert("projectcalico.org/orchestrator".into(), "k8s".into());
            Identity {
                cluster: ClusterId::Remote(format!("c{cluster}").into()),
                kind: IdentityKind::Workload,
                name: ObjectName { namespace: "n".into(), name: format!("{address}-{owner}") },
                node: "n".into(),
                labels: Arc::new(own),
                nets: vec![Prefix::host(addr.into())],
                ports: Vec::new(),
                profile: true,
            }
        };
        self.pods.iter().map(identity).collect()
    }

    /// What each selector in force matches, by asking it about every identity.
    fn truth(&self) -> BTreeSet<(Selector, Prefix)> {
        let identities = self.identities();
        let pairs = self.selectors.iter().flat_map(|selector| {
            let matching = identities.iter().filter(|it| selector.matches(&it.labels));
            matching.flat_map(|it| &it.nets).map(|net| (selector.clone(), *net))
        });
        pairs.collect()
    }
}

fn matched(selectors: &BTreeSet<Selector>, sets: &Sets) -> BTreeSet<(Selector, Prefix)> {
    let pairs = selectors.iter().flat_map(|selector| {
        let matching = sets.values().filter(|set| selector.matches(&set.labels));
        matching.flat_map(|set| &set.nets).map(|net| (selector.clone(), *net))
    });
    pairs.collect()
}

fn test() -> impl Strategy<Value = String> {
    let key = || proptest::sample::select(&KEYS[..]);
    let value = || proptest::sample::select(&VALUES[..]);
    prop_oneof![
        3 => (key(), value()).prop_map(|(k, v)| format!("{k} == '{v}'")),
        1 => (key(), value()).prop_map(|(k, v)| format!("{k} != '{v}'")),
        1 => key().prop_map(|k| format!("has({k})")),
        1 => (key(), value(), value()).prop_map(|(k, v, w)| format!("{k} in {{'{v}', '{w}'}}")),
        1 => (key(), value()).prop_map(|(k, v)| format!("{k} not in {{'{v}'}}")),
        1 => key().prop_map(|k| format!("{k} starts with 'web-'")),
        1 => key().prop_map(|k| format!("{k} contains 'o'")),
        1 => Just("all()".to_owned()),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let text = test().prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            3 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            1 => inner.prop_map(|a| format!("!({a})")),
        ]
    });
    text.prop_map(|text| Selector::parse(&text).unwrap())
}

fn pods() -> impl Strategy<Value = BTreeMap<(u8, u8, u8), PodLabels>> {
    let labels = proptest::collection::vec((0..KEYS.len(), 0..VALUES.len()), 0..4);
    // An address has two owners now and then.
    let owner = prop_oneof![9 => Just(0u8), 1 => Just(1u8)];
    proptest::collection::btree_map((0u8..2, 0u8..12, owner), labels, 0..20)
}

fn state() -> impl Strategy<Value = State> {
    let selectors = proptest::collection::btree_set(selector(), 0..6);
    (pods(), selectors).prop_map(|(pods, selectors)| State { pods, selectors })
}

#[derive(Clone, Debug)]
enum Edit {
    /// Another set of pods, of which most are as before.
    Pods(BTreeMap<(u8, u8, u8), PodLabels>),
    Gone(Vec<prop::sample::Index>),
    Selector(Selector),
    Without(prop::sample::Index),
    /// Somebody edits one of our sets.
    Tampered(prop::sample::Index, usize, u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => pods().prop_map(Edit::Pods),
        2 => proptest::collection::vec(index(), 0..6).prop_map(Edit::Gone),
        3 => selector().prop_map(Edit::Selector),
        2 => index().prop_map(Edit::Without),
        1 => (index(), 0..VALUES.len(), 0u8..12).prop_map(|(i, v, a)| Edit::Tampered(i, v, a)),
    ]
}

fn apply(edit: Edit, state: &mut State, sets: &mut Sets) {
    match edit {
        Edit::Pods(pods) => state.pods.extend(pods),
        Edit::Gone(which) => {
            for index in which {
                if !state.pods.is_empty() {
                    let key = *index.get(&state.pods.keys().collect::<Vec<_>>());
                    state.pods.remove(&key.clone());
                }
            }
        }
        Edit::Selector(selector) => {
            state.selectors.insert(selector);
        }
        Edit::Without(index) => {
            if !state.selectors.is_empty() {
                let all: Vec<_> = state.selectors.iter().cloned().collect();
                state.selectors.remove(index.get(&all));
            }
        }
        Edit::Tampered(index, value, address) => {
            if sets.is_empty() {
                return;
            }
            let name = index.get(&sets.keys().cloned().collect::<Vec<_>>()).clone();
            let Some(set) = sets.get_mut(&name) else { return };
            let labels = Arc::make_mut(&mut set.labels);
            labels.insert(KEYS[0].into(), VALUES[value].into());
            set.nets.insert(Prefix::host(IpAddr::from([10, 0, 0, address]).into()));
        }
    }
}

/// Carries out at most `steps` writes of the plan, `pick` saying which set comes
/// next, and checks after each.
fn follow(
    state: &State,
    sets: Sets,
    pick: &[prop::sample::Index],
    steps: usize,
) -> Result<Sets, TestCaseError> {
    let identities = state.identities();
    let groups = Grouper::default().group(&state.selectors, &identities);
    let wanted = with_largest(&groups, &sets, 3);
    let truth = state.truth();
    prop_assert_eq!(&matched(&state.selectors, &wanted), &truth, "grouped as ungrouped");
    prop_assert!(wanted.values().all(|set| set.nets.len() <= 3));

    let mut before = matched(&state.selectors, &sets);
    let mut plan = Plan::new(sets, &wanted);
    for at in 0.. {
        let differing = plan.differing();
        let possible: Vec<_> = differing
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), plan.next(name)?)))
            .collect();
        if possible.is_empty() {
            prop_assert_eq!(plan.existing(), &wanted, "nothing is left waiting");
            break;
        }
        if at == steps {
            break;
        }
        prop_assert!(at < 500, "the plan ends");
        let (name, write) = pick[at % pick.len()].get(&possible).clone();
        plan.done(&name, &write);
        let now = matched(&state.selectors, plan.existing());
        for changed in before.symmetric_difference(&now) {
            let right = now.contains(changed) == truth.contains(changed);
            prop_assert!(right, "{:?} is wrong after {} {:?}", changed, name, write);
        }
        before = now;
    }
    Ok(plan.existing.clone())
}

proptest! {
    /// No gap, no excess: what a selector matches changes only towards the
    /// truth, from wherever the sets are, in whatever order sets are written,
    /// however often the plan is broken off by the next change.
    #[test]
    fn every_write_brings_every_selector_nearer_to_the_truth(
        start in state(),
        edits in proptest::collection::vec((edit(), 0usize..12), 1..6),
        pick in proptest::collection::vec(any::<prop::sample::Index>(), 16),
    ) {
        let mut state = start;
        let mut sets = follow(&state, Sets::new(), &pick, usize::MAX)?;
        prop_assert_eq!(matched(&state.selectors, &sets), state.truth());
        for (edit, steps) in edits {
            apply(edit, &mut state, &mut sets);
            sets = follow(&state, sets, &pick, steps)?;
        }
        let sets = follow(&state, sets, &pick, usize::MAX)?;
        prop_assert_eq!(matched(&state.selectors, &sets), state.truth());
    }
}

fn many(count: u8, value: &str) -> Vec<Identity> {
    let state = State {
        pods: (0..count).map(|at| ((0, at, 0), vec![(0, 0)])).collect(),
        selectors: BTreeSet::new(),
    };
    let mut all = state.identities();
    for identity in &mut all {
        Arc::make_mut(&mut identity.labels).insert("app".into(), value.into());
    }
    all
}

#[test]
fn a_pod_that_comes_or_goes_changes_one_set() {
    let selectors: BTreeSet<_> = [Selector::equals("app", "a")].into();
    let group = |count| Grouper::default().group(&selectors, &many(count, "a"));
    let before = with_largest(&group(100), &Sets::new(), 40);
    assert_eq!(before.len(), 3);
    let after = with_largest(&group(101), &before, 40);
    assert_eq!(Plan::new(before.clone(), &after).differing().len(), 1);
    let fewer = with_largest(&group(99), &before, 40);
    assert_eq!(Plan::new(before.clone(), &fewer).differing().len(), 1);
    let few = with_largest(&group(10), &before, 40);
    assert_eq!(few.len(), 1);
}

#[test]
fn what_nobody_has_any_more_can_wait_for_what_comes() {
    let selectors: BTreeSet<_> = [Selector::equals("app", "a")].into();
    let group = |all: &[Identity]| Grouper::default().group(&selectors, all);
    let before = with_largest(&group(&many(3, "a")), &Sets::new(), 40);
    let name = before.keys().next().unwrap();
    let gone: HashSet<Prefix> = many(3, "a")[2].nets.iter().copied().collect();
    let fewer = with_largest(&group(&many(2, "a")), &before, 40);
    let plan = Plan::new(before.clone(), &fewer);
    assert!(plan.can_wait(name, &gone));
    assert!(!plan.can_wait(name, &HashSet::default()), "the pod has other labels now");
    // Another pod takes its place, which is one write.
    let mut replaced = many(4, "a");
    replaced.remove(2);
    let replaced = with_largest(&group(&replaced), &before, 40);
    let mut plan = Plan::new(before.clone(), &replaced);
    assert!(!plan.can_wait(name, &gone));
    let write = plan.next(name).unwrap();
    plan.done(name, &write);
    assert_eq!(plan.existing(), &replaced);
    // The last one of its kind.
    let nothing = Sets::new();
    let all = many(3, "a").iter().flat_map(|it| it.nets.clone()).collect();
    assert!(Plan::new(before.clone(), &nothing).can_wait(name, &all));
    assert!(!Plan::new(before.clone(), &nothing).can_wait(name, &gone));
}

#[test]
fn names_follow_from_the_content() {
    let selectors: BTreeSet<_> = [Selector::equals("app", "a")].into();
    let groups = Grouper::default().group(&selectors, &many(2, "a"));
    let names: Vec<_> = wanted(&groups, &Sets::new()).into_keys().collect();
    assert_eq!(names, wanted(&groups, &Sets::new()).into_keys().collect::<Vec<_>>());
    assert!(names[0].starts_with("tieline-c0-") && names[0].ends_with("-0"), "{names:?}");
}
