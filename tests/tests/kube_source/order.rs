//! In which order a real server's feeds happen to tell makes no difference.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tieline::cluster::View;
use tieline::cluster::kubernetes::gathered::{Change, Gathered, Item, Step};
use tieline::cluster::object::Kind;
use tieline::resolve::resolve;
use tieline::state::{ClusterId, World};
use tieline_lab::Lab;
use tieline_tests::kube::calico::Group;
use tieline_tests::kube::{ApiCluster, program};

use crate::follower::{Follower, source};
use crate::same::fill;

type Steps = Vec<(Kind, Step<Item>)>;

/// What a server tells while its objects change.
fn record(cluster: &mut ApiCluster) -> Steps {
    let (tap, mut tapped) = tokio::sync::mpsc::unbounded_channel();
    let source = source(&ClusterId::Local, &cluster.admin()).tapped(tap);
    let mut follower = Follower::new(cluster.netns(), source);
    follower.view();
    let run = |line: &str| drop(cluster.kubectl(&line.split(' ').collect::<Vec<_>>()));
    run("-n shop label pod web-0 app=other --overwrite");
    run("-n shop delete pod finished host --force --grace-period=0");
    run("label namespace shop team=b --overwrite");
    run("delete ippools.crd.projectcalico.org pool-b");
    run("delete globalnetworkpolicies.crd.projectcalico.org default.prefixed");
    run("-n shop label pod web-0 app-");
    // Feeds that are told 410 Gone begin anew.
    cluster.expire_history();
    let run = |line: &str| drop(cluster.kubectl(&line.split(' ').collect::<Vec<_>>()));
    run("create namespace late");
    run("-n shop label pod web-0 app=last --overwrite");
    follower.view_where("the last change", |view| {
        let labeled = |value| move |app: &String| app == value;
        view.objects.namespaces.contains_key("late")
            && view.objects.pods.values().any(|p| p.labels.get("app").is_some_and(labeled("last")))
    });
    let mut steps = Vec::new();
    while let Ok(step) = tapped.try_recv() {
        steps.push(step);
    }
    steps
}

fn replay(steps: impl IntoIterator<Item = (Kind, Step<Item>)>) -> View {
    let mut gathered = Gathered::new(ClusterId::Local);
    for (kind, step) in steps {
        gathered.tell(kind, step);
        if gathered.complete() {
            gathered.view();
        }
    }
    assert!(gathered.complete(), "{:?}", gathered.trouble());
    gathered.view()
}

/// The steps of each kind, in the kind's order.
fn by_kind(steps: &Steps) -> BTreeMap<Kind, Vec<Step<Item>>> {
    let mut kinds: BTreeMap<Kind, Vec<Step<Item>>> = BTreeMap::new();
    for (kind, step) in steps {
        kinds.entry(*kind).or_default().push(step.clone());
    }
    kinds
}

/// Only the last that was told of each object, as one list.
fn squash(steps: &[Step<Item>]) -> Vec<Step<Item>> {
    let mut known = BTreeMap::new();
    let mut last = Vec::new();
    for step in steps {
        match step {
            Step::Begin => known.clear(),
            Step::Page(items) => {
                known.extend(items.iter().map(|item| (item.written.clone(), item.clone())));
            }
            Step::Changed(changes, _) => {
                for change in changes {
                    match change {
                        Change::Put(item) => drop(known.insert(item.written.clone(), item.clone())),
                        Change::Gone(item) => drop(known.remove(&item.written)),
                    }
                }
            }
            other => last = vec![other.clone()],
        }
    }
    match last[..] {
        [Step::Absent] => last,
        _ => vec![
            Step::Begin,
            Step::Page(known.into_values().collect()),
            Step::Listed("1".into()),
            Step::Watching,
        ],
    }
}

#[test]
fn makes_no_difference() {
    let Some(program) = program() else { return };
    let lab = Lab::new("kube-order").unwrap();
    let mut cluster = ApiCluster::alone(&lab, program, "a");
    fill(&cluster, Group::Storage);
    let steps = record(&mut cluster);
    assert!(steps.len() > 100, "{}", steps.len());
    let forward = replay(steps.clone());
    assert!(forward.objects.namespaces.contains_key("late"));

    let kinds = by_kind(&steps);
    let of_kinds = |kinds: Vec<(Kind, Vec<Step<Item>>)>| {
        kinds.into_iter().flat_map(|(kind, steps)| steps.into_iter().map(move |step| (kind, step)))
    };
    let reversed: Vec<_> = kinds.clone().into_iter().rev().collect();
    assert_eq!(replay(of_kinds(reversed)), forward);
    let squashed: Vec<_> = kinds.iter().map(|(kind, steps)| (*kind, squash(steps))).collect();
    assert_eq!(replay(of_kinds(squashed)), forward);

    // The kinds' steps mixed in any way, each kind's in its own order.
    let order: Vec<Kind> = steps.iter().map(|(kind, _)| *kind).collect();
    let mut runner = TestRunner::new(Config { cases: 50, ..Config::default() });
    let shuffled = Just(order).prop_shuffle();
    runner
        .run(&shuffled, |order| {
            let mut kinds = by_kind(&steps);
            let mixed = order.iter().map(|kind| (*kind, kinds.get_mut(kind).unwrap().remove(0)));
            let view = replay(mixed.collect::<Vec<_>>());
            prop_assert_eq!(&view, &forward);
            Ok(())
        })
        .unwrap();

    // And so for what follows from it.
    let world = |view: &View| World {
        node: "node-a".into(),
        include_local_vteps: true,
        local: view.objects.clone(),
        remotes: BTreeMap::new(),
    };
    let reversed: Vec<_> = by_kind(&steps).into_iter().rev().collect();
    let resolved = resolve(&world(&replay(of_kinds(reversed))));
    assert_eq!(format!("{resolved:?}"), format!("{:?}", resolve(&world(&forward))));
}
