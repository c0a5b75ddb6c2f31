//! Calico's guide to federation, walked from its first step to its last: three
//! clusters with real API servers, daemons with the rights that are shipped, real
//! TCP between pods.
#![forbid(unsafe_code)]

use serde_json::{Value, json};
use tieline_lab::Outcome;
use tieline_tests::federated::guide::{self, SECRETS};
use tieline_tests::federated::{Federated, Member, NAMESPACE};
use tieline_tests::kube::program;

#[test]
fn the_guide_as_it_stands() {
    let Some(program) = program() else { return };
    let world = Federated::new(program, "walk");
    for member in world.members.values() {
        member.start_daemon();
    }
    world.until("all daemons are ready", || world.members.values().all(is_ready));
    refuse(&world, "backend", "postgres", 5432);

    endpoint_identity(&world);
    policies_name_remote_labels(&world);
    multi_cluster_networking(&world);
    a_third_cluster(&world);
    labels_change(&world);
    questions_are_answered(&world);
    withdrawal(&world);
}

/// Whether the daemon knows its own cluster and its tables are in force.
fn is_ready(member: &Member) -> bool {
    let status = member.status().unwrap_or_default();
    status["ready"] == true && status["clusters"]["local"]["state"] == "InSync"
}

/// No connection, over either family.
fn refuse(world: &Federated, from: &str, to: &str, port: u16) {
    let outcomes = world.connect(from, to, port);
    assert!(!outcomes.contains(&Outcome::Connected), "{from} -> {to} {port}: {outcomes:?}");
}

/// A connection, over both families.
fn accept(world: &Federated, from: &str, to: &str, port: u16) {
    let outcomes = world.connect(from, to, port);
    let connected = [Outcome::Connected, Outcome::Connected];
    assert_eq!(outcomes, connected, "{from} -> {to} {port}\n{}", world.account());
}

/// "Configure federated endpoint identity": both ways, networks still apart.
fn endpoint_identity(world: &Federated) {
    for (local, remote) in [("app", "db"), ("db", "app")] {
        guide::join(world, local, remote, "Disabled");
        // "Verify": the kubeconfig works, and with no more rights than these.
        let remote = world.member(remote);
        let path = world.member(local).api.dir().join(format!("kubeconfig-of-{}", remote.name));
        let nodes = remote.api.kubectl_with(&path, &["get", "nodes", "-o", "name"], None);
        assert_eq!(nodes.stdout, format!("node/{}\n", remote.node().name).as_bytes());
        assert!(!remote.api.kubectl_with(&path, &["get", "secrets", "-A"], None).status.success());
    }
    world.await_state("app", "db", "InSync");
    world.await_state("db", "app", "InSync");
    let remote = world.member("app").remote("db");
    assert_eq!(remote["overlay"], false, "{remote}");
    assert_eq!(remote["overlay_reason"], "overlayRoutingMode is Disabled");
    assert_eq!(remote["objects"]["Pod"], 2, "{remote}");
    assert_eq!(remote["uid"], world.member("db").api.uid());
}

/// The guide's policy, on the side of the source and on that of the destination.
fn policies_name_remote_labels(world: &Federated) {
    world.member("db").write_policy(
        "postgres-ingress",
        &json!({
            "tier": "default", "selector": "app == 'postgres'", "types": ["Ingress"],
            "ingress": [{
                "action": "Allow", "protocol": "TCP",
                "source": {"selector": "app == 'backend-app'"},
                "destination": {"ports": [5432]},
            }],
        }),
    );
    world.member("app").write_policy(
        "backend-egress",
        &json!({
            "tier": "default", "selector": "app == 'backend-app'", "types": ["Egress"],
            "egress": [{
                "action": "Allow", "protocol": "TCP",
                "destination": {"selector": "app == 'postgres'", "ports": [22, 5432]},
            }],
        }),
    );
    let verdict = |member: &str, from: &str, to: &str, port, wanted: &str| {
        let what = format!("{member}: {from} -> {to} {port} is to {wanted}");
        let mut answer = Value::Null;
        world.until(&what, || {
            answer = world.member(member).explain(from, to, port);
            answer["verdict"] == wanted
        });
        answer
    };
    let db = |from: &str, port, wanted| verdict("db", from, "shop/postgres", port, wanted);
    let allowed = db("app:shop/backend", 5432, "allow");
    assert_eq!(allowed["ingress"]["policy"], "shop/postgres-ingress", "{allowed}");
    db("app:shop/backend", 22, "deny");
    db("app:shop/frontend", 5432, "deny");
    let app = |to: &str, port, wanted| verdict("app", "shop/backend", to, port, wanted);
    app("db:shop/postgres", 5432, "allow");
    app("db:shop/cache", 5432, "deny");
    // Identities are known, routes are not.
    refuse(world, "backend", "postgres", 5432);
    assert_eq!(world.member("app").status().unwrap()["gateway"]["routes"], 0);
}

/// "Switch to multi-cluster networking."
fn multi_cluster_networking(world: &Federated) {
    guide::switch_overlay(world.member("app"), "db", "Enabled");
    world.until("routes to db", || world.member("app").remote("db")["overlay"] == true);
    // One direction alone is not enough: the other does not know the sender.
    refuse(world, "backend", "postgres", 5432);
    let one_way = || {
        let status = world.member("app").status().unwrap_or_default();
        status["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|condition| {
                condition["cluster"] == "db"
                    && condition["message"].as_str().unwrap().contains("does not route to this one")
            })
        })
    };
    world.until("db is said not to route back", one_way);
    guide::switch_overlay(world.member("db"), "app", "Enabled");
    world.await_connection("backend", "postgres", 5432, true);
    world.until("nobody says so any more", || !one_way());
    refuse(world, "backend", "postgres", 22);
    refuse(world, "frontend", "postgres", 5432);
    refuse(world, "backend", "cache", 5432);
    accept(world, "frontend", "cache", 5432);
    accept(world, "postgres", "backend", 22);
    let status = world.member("app").status().unwrap();
    assert_eq!(status["vteps"][0]["node"], "db-1", "{status}");
    assert!(status["drops"].as_object().is_some_and(|drops| !drops.is_empty()), "{status}");
}

/// Another cluster, whose RemoteClusterConfiguration is of Calico's storage group.
fn a_third_cluster(world: &Federated) {
    for (local, remote) in [("app", "ops"), ("ops", "app")] {
        guide::join(world, local, remote, "Enabled");
    }
    world.await_connection("monitor", "frontend", 22, true);
    accept(world, "frontend", "monitor", 22);
    // Each pair is joined by itself.
    refuse(world, "monitor", "cache", 22);
    accept(world, "backend", "postgres", 5432);
}

/// A label written at the remote API server decides about the next packet.
fn labels_change(world: &Federated) {
    let db = world.member("db");
    db.relabel("cache", "postgres");
    world.await_connection("backend", "cache", 5432, true);
    let stream = world.stream("backend", "cache", 5432);
    db.relabel("cache", "redis");
    let quiet = std::time::Duration::from_secs(2);
    stream.wait_stall(quiet, tieline_tests::federated::PATIENCE).unwrap();
    world.await_connection("backend", "cache", 5432, false);
}

/// The guide's chapter on troubleshooting, as questions to `tieline status`.
fn questions_are_answered(world: &Federated) {
    let app = world.member("app");
    let remote = app.remote("db");
    assert!(remote["state_for_ms"].as_u64().is_some() && remote["last_event_ms"].is_u64());
    assert_eq!(remote["overlay_reason"], "overlayRoutingMode is Enabled");
    for (kind, count) in [("Pod", 2), ("Node", 1), ("IPPool", 2), ("IPAMBlock", 2)] {
        assert_eq!(remote["objects"][kind], count, "{remote}");
    }
    let text = app.status_text();
    assert!(text.contains("InSync"), "{text}");

    let with = |server: &str| {
        let good = std::fs::read_to_string(app.api.dir().join("kubeconfig-of-db")).unwrap();
        good.replace(&world.member("db").api.url(), server)
    };
    // What is wrong, by the words that must be in the answer.
    let nowhere = with("https://10.77.1.99:6443");
    let good = with(&world.member("db").api.url());
    let foreign = with(&world.member("ops").api.url());
    let stranger = good.replace("token: ", "token: x");
    let cases: [(&str, Option<&str>, &[&str]); 6] = [
        ("missing", None, &["missing-access", SECRETS]),
        ("broken", Some("{"), &["kubeconfig"]),
        ("empty", Some(""), &["kubeconfig"]),
        ("nowhere", Some(&nowhere), &["10.77.1.99"]),
        ("stranger", Some(&stranger), &["401"]),
        ("foreign", Some(&foreign), &["certificate"]),
    ];
    for (name, kubeconfig, words) in cases {
        if let Some(text) = kubeconfig {
            guide::write_secret_with(app, name, text);
        }
        guide::write_configuration(app, name, "Enabled");
        let told = |error: &str| words.iter().all(|word| error.contains(word));
        world.until(&format!("what is wrong with {name}: {words:?}"), || told(&app.error_of(name)));
        guide::delete_configuration(app, name);
    }
    // The same cluster twice, and the local one: neither counts, the first does.
    guide::write_secret_with(app, "twin", &good);
    guide::write_configuration(app, "twin", "Enabled");
    world.await_state("app", "twin", "Failed");
    assert!(app.error_of("twin").contains("same cluster as db"), "{}", app.error_of("twin"));
    guide::prepare_remote(app);
    guide::write_secret(app, app);
    guide::write_configuration(app, "app", "Enabled");
    world.await_state("app", "app", "Failed");
    assert!(app.error_of("app").contains("local cluster"), "{}", app.error_of("app"));
    for name in ["twin", "app"] {
        guide::delete_configuration(app, name);
    }
    accept(world, "backend", "postgres", 5432);
}

/// Deleting the RemoteClusterConfiguration takes everything back, and nothing
/// else.
fn withdrawal(world: &Federated) {
    let app = world.member("app");
    guide::delete_configuration(app, "db");
    world.until("db is withdrawn", || app.remote("db").is_null());
    world.await_connection("backend", "postgres", 5432, false);
    refuse(world, "frontend", "cache", 5432);
    accept(world, "frontend", "monitor", 22);
    let answer = app.explain(&format!("{NAMESPACE}/backend"), "db:shop/postgres", 5432);
    assert!(answer["verdict"].is_null(), "{answer}");
}
