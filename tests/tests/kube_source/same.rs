//! An API server and a directory that hold the same objects are the same
//! cluster.

use std::fs;

use serde_json::Value;
use tieline::cluster::FilesSource;
use tieline::cluster::View;
use tieline::state::ClusterId;
use tieline_lab::Lab;
use tieline_tests::kube::calico::Group;
use tieline_tests::kube::{ApiCluster, program};

use crate::follower::{Follower, remote, source};

/// Fills a cluster with one of everything.
pub(crate) fn fill(cluster: &ApiCluster, group: Group) {
    cluster.apply(&group.crds());
    let rccs = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../config/manifests/remoteclusterconfigurations.yaml"
    );
    cluster.apply(&fs::read_to_string(rccs).unwrap());
    let objects = include_str!("objects.yaml").replace("CALICO", group.api_version());
    cluster.apply(&objects);
    if group == Group::Storage {
        cluster.apply(include_str!("storage.yaml"));
    }
    let args = ["apply", "--server-side", "--subresource=status", "-f", "-"];
    let output = cluster.kubectl_with(&cluster.admin(), &args, Some(include_str!("status.yaml")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All of a cluster's objects, as kubectl writes them into files.
fn dumped(cluster: &ApiCluster, group: Group, scope: &ClusterId) -> View {
    let (suffix, _) = group.api_version().split_once('/').unwrap();
    let calico = cluster.get(&["crds"]);
    let plurals = calico["items"].as_array().unwrap().iter().filter(|crd| {
        let spec = &crd["spec"];
        spec["group"] == suffix || spec["names"]["kind"] == "RemoteClusterConfiguration"
    });
    let mut kinds = vec![
        "namespaces,serviceaccounts,pods,nodes".to_owned(),
        "networkpolicies.networking.k8s.io,endpointslices.discovery.k8s.io".to_owned(),
    ];
    kinds.extend(plurals.map(|crd| crd["metadata"]["name"].as_str().unwrap().to_owned()));
    let list: Value = cluster.get(&["-A", &kinds.join(",")]);
    let folder = cluster.dir().join(format!("dump-{scope}"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("all.json"), list.to_string()).unwrap();
    FilesSource::new(scope.clone(), folder).read().unwrap()
}

fn is_the_same(name: &str, group: Group) {
    let Some(program) = program() else { return };
    let lab = Lab::new(name).unwrap();
    let cluster = ApiCluster::alone(&lab, program, "a");
    fill(&cluster, group);
    for scope in [ClusterId::Local, remote()] {
        let mut follower = Follower::new(cluster.netns(), source(&scope, &cluster.admin()));
        let view = follower.view();
        let dumped = dumped(&cluster, group, &scope);
        let (mut ours, theirs) = ((*view.objects).clone(), (*dumped.objects).clone());
        assert_eq!(ours.uid, Some(cluster.uid()));
        assert_eq!(ours.pods.len(), 1);
        if scope != ClusterId::Local {
            // Files say nothing of what a kind that is not asked for is.
            ours.remotes = theirs.remotes.clone();
        } else {
            assert!(ours.policy.0.len() >= 10, "{:?}", ours.policy.0);
            assert_eq!(ours.remotes.len(), 2);
        }
        assert_eq!(ours, theirs);
        let warnings = |view: &View| {
            let of_objects = view.conditions.iter().filter(|c| c.object.starts_with("Node "));
            of_objects
                .map(|c| c.message.rsplit(": ").next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(warnings(&view), warnings(&dumped));
    }
}

#[test]
fn in_the_storage_group() {
    is_the_same("same-storage", Group::Storage);
}

#[test]
fn in_the_native_group() {
    is_the_same("same-native", Group::Native);
}
