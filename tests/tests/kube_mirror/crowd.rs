//! A server that is too busy for the writer: priority and fairness.

use super::faults::{Killable, says, settled, writes};
use super::*;

/// The API's fairness has one seat for the daemon's writes, and somebody sits
/// on it: a request that waits for a webhook that never answers.
#[test]
fn a_server_that_asks_for_patience_is_given_it() {
    let Some(program) = program() else { return };
    let lab = Lab::new("mirror-busy").unwrap();
    let (api, kubeconfig) = ready(&lab, program, Group::Storage);
    let run = || {
        let mut state = example();
        let daemon = Killable::start(&kubeconfig, "node-a", &state);
        daemon.until("all is written", writes);
        let silent = std::net::TcpListener::bind("192.0.2.1:0").unwrap();
        for object in crowding(silent.local_addr().unwrap().port()) {
            api.apply(&object.to_string());
        }
        let create = |crowd: &str| {
            let set = json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkSet",
                "metadata": {"name": "crowd", "labels": {"crowd": crowd}}, "spec": {"nets": []},
            });
            let create = ["create", "--dry-run=server", "-f", "-"];
            api.kubectl_with(&kubeconfig, &create, Some(&set.to_string()))
        };
        let begun = Instant::now();
        let until = |what: &str, line: &str| {
            while fairness(&api, line) == 0 {
                let all = api.kubectl(&["get", "--raw", "/metrics"]);
                let ours: Vec<&str> = all.lines().filter(|it| it.contains("\"crowd\"")).collect();
                assert!(begun.elapsed() < PATIENCE, "{what}: {ours:#?}");
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        // There is no seat by number, but one is let in while nobody is.
        while fairness(&api, "dispatched_requests_total") == 0 {
            assert!(begun.elapsed() < PATIENCE, "the rules are in force");
            create("no");
        }
        let rejected = std::thread::scope(|scope| {
            let sitting = scope.spawn(|| create("yes"));
            let seated = silent.accept().unwrap();
            until("the seat is taken", "current_executing_requests");
            let mut number = 40;
            let mut change = |state: &mut State| {
                number += 1;
                state.pod(1, number, "pg");
                daemon.daemon().set(state);
            };
            change(&mut state);
            daemon.until("told to wait", |it| says(it, "the API asks to wait"));
            assert!(!sitting.is_finished(), "the seat is taken");
            let (since, before) = (Instant::now(), fairness(&api, "rejected_requests_total"));
            assert!(before > 0);
            std::thread::sleep(Duration::from_secs(2));
            change(&mut state);
            std::thread::sleep(Duration::from_secs(2));
            let (after, waited) = (fairness(&api, "rejected_requests_total"), since.elapsed());
            assert!(!sitting.is_finished(), "the seat is taken");
            println!(
                "{} rejections, {} of them in {waited:.1?}; {:.1?} in all",
                after,
                after - before,
                begun.elapsed()
            );
            // Retry-After is a second.
            assert!(after - before <= waited.as_secs() + 1, "{} in {waited:?}", after - before);
            // The seat is given up.
            drop(silent);
            seated.0.shutdown(std::net::Shutdown::Both).unwrap();
            let output = sitting.join().unwrap();
            assert!(!output.status.success(), "the webhook has not answered");
            after
        });
        settled(&api, "the seat is free", &state);
        daemon.until("nothing is wrong", |it| it.conditions.is_empty());
        assert!(rejected > 0);
    };
    api.netns().run(run).unwrap();
}

/// One seat for the daemon's account, no queue; and a webhook that a request with
/// the label `crowd` has to wait for.
fn crowding(port: u16) -> [Value; 3] {
    let account = json!({"kind": "ServiceAccount",
        "serviceAccount": {"namespace": "tieline-system", "name": "tieline"}});
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "silent"},
            "webhooks": [{
                "name": "silent.crowd.test", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://192.0.2.1:{port}/")},
                "sideEffects": "None", "timeoutSeconds": 30, "failurePolicy": "Fail",
                "objectSelector": {"matchLabels": {"crowd": "yes"}},
                "rules": [{"apiGroups": ["crd.projectcalico.org"], "apiVersions": ["v1"],
                           "operations": ["CREATE"], "resources": ["globalnetworksets"]}],
            }],
        }),
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "crowd"},
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": {"type": "Reject"}}},
        }),
        json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": "crowd"},
            "spec": {
                "matchingPrecedence": 2, "priorityLevelConfiguration": {"name": "crowd"},
                "rules": [{"subjects": [account], "resourceRules": [{
                    "verbs": ["create", "patch", "delete"], "clusterScope": true,
                    "apiGroups": ["crd.projectcalico.org"], "resources": ["globalnetworksets"]}]}],
            },
        }),
    ]
}

/// What the server counts of requests under the rules of [`crowding`].
fn fairness(api: &ApiCluster, what: &str) -> u64 {
    let metrics = api.kubectl(&["get", "--raw", "/metrics"]);
    let ours = |line: &&str| {
        line.starts_with(&format!("apiserver_flowcontrol_{what}{{"))
            && line.contains("priority_level=\"crowd\"")
    };
    let counts = metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next());
    counts.filter_map(|count| count.parse::<f64>().ok()).sum::<f64>() as u64
}
