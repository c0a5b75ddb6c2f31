//! What the daemon, as it is run, tells Felix of remote clusters: on real API
//! servers, with the rights that are shipped, from the join to the uninstall.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tieline_tests::federated::guide;
use tieline_tests::federated::{Federated, Member, NAMESPACE};
use tieline_tests::kube::program;

const OWNER: &str = "tieline/remote-cluster";

#[test]
fn felix_is_told_of_remote_pods_until_the_uninstall() {
    let Some(program) = program() else { return };
    let mut world = Federated::new(program, "felix");
    for (name, variant) in [("app", ""), ("db", "Calico"), ("ops", "TigeraSecureEnterprise")] {
        furnish(world.member(name), variant);
    }
    allow_by_label(&world);
    for (local, remote) in [("app", "db"), ("db", "app"), ("ops", "app")] {
        guide::join(&world, local, remote, "Enabled");
        world.await_state(local, remote, "InSync");
    }

    identities_come(&world);
    it_is_told_what_was_told(&world);
    labels_are_followed(&world);
    switches_are_live(&world);
    a_restart_writes_nothing(&mut world);
    another_authority_is_taken_over(&mut world);
    strict_filters_are_loosened(&world);
    leaving_takes_all_along(&world);
    an_uninstall_leaves_nothing(&world);
}

/// Starts a daemon where Felix runs and masquerades.
fn furnish(member: &Member, variant: &str) {
    let api_version = member.calico_group();
    let information = json!({
        "apiVersion": api_version, "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"calicoVersion": "v3.32.1", "variant": variant, "datastoreReady": true},
    });
    member.api.apply(&information.to_string());
    let masquerade = r#"{"spec": {"natOutgoing": true}}"#;
    let pool = ["patch", &member.calico("ippools"), "default-ipv4-ippool", "--type=merge", "-p"];
    member.api.kubectl(&[&pool[..], &[masquerade]].concat());
    let theirs = json!({
        "apiVersion": api_version, "kind": "GlobalNetworkSet",
        "metadata": {"name": "theirs", "labels": {"app": "postgres"}},
        "spec": {"nets": ["192.0.2.0/24"]},
    });
    member.api.apply(&theirs.to_string());
    member.start_daemon();
}

fn allow_by_label(world: &Federated) {
    let selector = |app: &str| json!({"selector": format!("app == '{app}'")});
    let egress = json!({
        "tier": "default", "selector": "app == 'backend-app'", "types": ["Egress"],
        "egress": [{"action": "Allow", "protocol": "TCP", "destination": selector("postgres")}],
    });
    let ingress = json!({
        "tier": "default", "selector": "all()", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "protocol": "TCP", "source": selector("backend-app")}],
    });
    world.member("app").write_policy("to-postgres", &egress);
    world.member("db").write_policy("from-backend", &ingress);
    world.member("ops").write_policy("from-backend", &ingress);
}

/// Our sets in a cluster: labels but the owner's, and addresses, by remote.
fn sets(member: &Member) -> Vec<(String, BTreeMap<String, String>, BTreeSet<String>)> {
    let list = member.api.get(&[&member.calico("globalnetworksets"), "-l", OWNER]);
    let read = |set: &Value| {
        let mut labels: BTreeMap<String, String> =
            serde_json::from_value(set["metadata"]["labels"].clone()).unwrap();
        let nets = serde_json::from_value(set["spec"]["nets"].clone()).unwrap();
        (labels.remove(OWNER).unwrap(), labels, nets)
    };
    list["items"].as_array().unwrap().iter().map(read).collect()
}

/// Our pools in a cluster, each of which must be disabled.
fn pools(member: &Member) -> Vec<String> {
    let list = member.api.get(&[&member.calico("ippools"), "-l", OWNER]);
    let pools = list["items"].as_array().unwrap().iter();
    pools
        .map(|pool| {
            assert_eq!(pool["spec"]["disabled"], true, "{pool}");
            pool["spec"]["cidr"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn nets(world: &Federated, pods: &[&str]) -> BTreeSet<String> {
    let addresses = pods.iter().flat_map(|pod| world.pod(pod).1.addresses());
    addresses.map(|it| format!("{it}/{}", if it.is_ipv4() { 32 } else { 128 })).collect()
}

/// Waits until a cluster has one set, of the pods of one remote cluster.
fn await_set(world: &Federated, local: &str, remote: &str, app: &str, pods: &[&str]) {
    let (member, wanted) = (world.member(local), nets(world, pods));
    let labels: BTreeMap<String, String> = [
        ("app", app),
        ("projectcalico.org/namespace", NAMESPACE),
        ("projectcalico.org/orchestrator", "k8s"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let wanted = [(remote.to_owned(), labels, wanted)];
    world.until(&format!("{local}: {wanted:?}"), || sets(member) == wanted);
}

fn felix(member: &Member) -> Value {
    member.status().map(|status| status["felix"].clone()).unwrap_or_default()
}

fn identities_come(world: &Federated) {
    await_set(world, "app", "db", "postgres", &["postgres"]);
    await_set(world, "db", "app", "backend-app", &["backend"]);
    // Only where a pool of that family masquerades.
    world.until("disabled pools", || {
        pools(world.member("app")) == ["10.20.0.0/24"]
            && pools(world.member("db")) == ["10.10.0.0/24"]
    });
    // The vendor's own federation does it all.
    let ops = world.member("ops");
    world.until("the vendor's cluster is left alone", || felix(ops)["state"] == "off");
    let reason = felix(ops)["reason"].clone();
    assert!(reason.as_str().unwrap().contains("TigeraSecureEnterprise"), "{reason}");
    assert!(sets(ops).is_empty() && pools(ops).is_empty());
}

fn it_is_told_what_was_told(world: &Federated) {
    let groups = [("app", "db", "crd.projectcalico.org/v1"), ("db", "app", "projectcalico.org/v3")];
    for (local, remote, group) in groups {
        let member = world.member(local);
        world.until("all is written", || {
            let felix = felix(member);
            felix["state"] == "writing" && felix["waiting"] == 0 && felix["writes"] == 2
        });
        let status = member.status().unwrap();
        let felix = &status["felix"];
        assert_eq!(felix["storage"], group, "{felix}");
        assert_eq!(felix["clusters"][remote], json!({"sets": 1, "addresses": 2}), "{felix}");
        assert_eq!(felix["pools"].as_array().map(Vec::len), Some(1), "{felix}");
        let writer = felix["writer"].as_str().unwrap();
        assert!(writer.starts_with(&member.node().name), "{writer}");
        assert_eq!(status["clusters"]["local"]["calico_group"], group, "{status}");
        // What was written is an error's end only when the watch has told of it.
        world.until("no errors", || {
            let status = member.status().unwrap_or_default();
            let errors = status["conditions"].as_array();
            errors.is_some_and(|all| all.iter().all(|it| it["severity"] != "error"))
        });

        let text = member.status_text();
        for words in [
            "told to Felix",
            &format!("{remote}: 2 addresses in 1 set"),
            &format!("written to  {group}"),
            &format!("Calico's in {group}"),
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
    }
    // Both enforcers are asked.
    for (pod, verdict) in [("postgres", "allow"), ("cache", "deny")] {
        world.until(&format!("felix: {pod}: {verdict}"), || {
            let to = format!("db:shop/{pod}");
            let answer = world.member("app").explain("shop/backend", &to, 5432);
            let felix = &answer["egress"]["felix"];
            felix["verdict"] == verdict && felix["differs"] == false
        });
    }
}

fn labels_are_followed(world: &Federated) {
    world.member("db").relabel("cache", "postgres");
    await_set(world, "app", "db", "postgres", &["cache", "postgres"]);
    world.member("db").relabel("cache", "redis");
    await_set(world, "app", "db", "postgres", &["postgres"]);
    // A pod that is gone.
    world.member("db").relabel("cache", "postgres");
    await_set(world, "app", "db", "postgres", &["cache", "postgres"]);
    let delete = ["-n", NAMESPACE, "delete", "pod", "cache", "--force", "--grace-period=0"];
    world.member("db").api.kubectl(&delete);
    await_set(world, "app", "db", "postgres", &["postgres"]);
}

fn switches_are_live(world: &Federated) {
    let app = world.member("app");
    app.configure("[felix]\nmirror = 'off'\n");
    world.until("mirror = off takes the sets away", || sets(app).is_empty());
    world.until("half of it is told", || felix(app)["reason"] == "felix.mirror is off");
    assert_eq!(pools(app), ["10.20.0.0/24"]);
    app.configure("[felix]\nmirror = 'off'\npools = 'off'\n");
    world.until("pools = off takes the pools away", || pools(app).is_empty());
    world.until("off is told", || {
        let felix = felix(app);
        felix["state"] == "off" && felix["reason"] == "felix.mirror and felix.pools are off"
    });
    let words = "felix.mirror and felix.pools are off";
    world.until("off is told to people", || app.status_text().contains(words));
    app.configure("");
    await_set(world, "app", "db", "postgres", &["postgres"]);
    world.until("pools again", || pools(app) == ["10.20.0.0/24"]);
}

/// Versions of all that is ours.
fn versions(member: &Member) -> Vec<String> {
    let kinds = format!("{},{}", member.calico("globalnetworksets"), member.calico("ippools"));
    let list = member.api.get(&[&kinds, "-l", OWNER]);
    let items = list["items"].as_array().unwrap().iter();
    items.map(|it| it["metadata"]["resourceVersion"].to_string()).collect()
}

/// A daemon is killed; the next one takes over and finds all as it is to be,
/// though it does not know the remote cluster at first.
fn a_restart_writes_nothing(world: &mut Federated) {
    let before = versions(world.member("app"));
    world.member("app").kill_daemon();
    world.member_mut("db").api.kill();
    let app = world.member("app");
    app.start_daemon();
    world.until("the next daemon writes", || {
        let felix = felix(app);
        felix["state"] == "writing" && felix["clusters"]["db"]["addresses"] == 2
    });
    assert_eq!(app.state_of("db"), "Connecting", "{}", world.account());
    nothing_is_written(app, &before);
    world.member_mut("db").api.revive();
    world.await_state("app", "db", "InSync");
    nothing_is_written(world.member("app"), &before);
}

fn nothing_is_written(member: &Member, before: &[String]) {
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(felix(member)["writes"], 0, "{}", felix(member));
    assert_eq!(versions(member), before);
}

/// The local API server has another certificate, of another authority. Whoever
/// manages the node writes that down where the daemon reads it.
fn another_authority_is_taken_over(world: &mut Federated) {
    let before = world.member("app").pid();
    let app = world.member_mut("app");
    app.api.rotate_certificate();
    app.renew_account();
    // A connection that is there would not tell.
    app.api.kill();
    app.api.revive();
    world.member("db").write_pod("cache");
    world.member("db").relabel("cache", "postgres");
    await_set(world, "app", "db", "postgres", &["cache", "postgres"]);
    world.member("db").relabel("cache", "redis");
    await_set(world, "app", "db", "postgres", &["postgres"]);
    assert_eq!(world.member("app").pid(), before);
}

/// Somebody makes new devices strict, after us.
fn strict_filters_are_loosened(world: &Federated) {
    let netns = &world.member("app").node().netns;
    let filter = "/proc/sys/net/ipv4/conf/tieline0/rp_filter";
    netns.run(|| std::fs::write(filter, "1")).unwrap().unwrap();
    world.until("rp_filter is loose again", || {
        netns.run(|| std::fs::read_to_string(filter)).unwrap().unwrap() == "2\n"
    });
}

fn leaving_takes_all_along(world: &Federated) {
    let app = world.member("app");
    guide::delete_configuration(app, "db");
    world.until("all of db is gone", || sets(app).is_empty() && pools(app).is_empty());
    guide::write_configuration(app, "db", "Enabled");
    await_set(world, "app", "db", "postgres", &["postgres"]);
    world.until("pools again", || pools(app) == ["10.20.0.0/24"]);
}

/// While a daemon runs nothing is taken away, for it would come back.
fn an_uninstall_leaves_nothing(world: &Federated) {
    for (name, running) in [("app", true), ("db", false)] {
        let member = world.member(name);
        if running {
            let refused = member.uninstall();
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(1), "{said}");
            assert!(said.contains("still writes; delete the DaemonSet first"), "{said}");
            assert_eq!(sets(member).len(), 1);
        }
        member.kill_daemon();
        let done = member.uninstall();
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert_eq!(done.status.code(), Some(0), "{said}");
        assert!(said.contains("removed 1 GlobalNetworkSets and 1 IPPools"), "{said}");
        assert!(sets(member).is_empty() && pools(member).is_empty());
        let leases = member.api.kubectl(&["-n", "tieline-system", "get", "leases", "-o", "name"]);
        assert_eq!(leases, "");
        // And nothing else.
        let theirs = member.api.get(&[&member.calico("globalnetworksets"), "theirs"]);
        assert_eq!(theirs["spec"]["nets"], json!(["192.0.2.0/24"]));
        let own = member.api.get(&[&member.calico("ippools")]);
        assert_eq!(own["items"].as_array().map(Vec::len), Some(2), "{own}");
        let configurations = member.api.kubectl(&["get", &member.rcc_plural(), "-o", "name"]);
        assert!(!configurations.is_empty());
    }
}
