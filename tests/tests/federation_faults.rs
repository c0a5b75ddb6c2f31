//! What goes wrong between clusters, one line after the other, on one federation
//! with a connection that runs across it all the time. After each line all is
//! well again, which is part of the line.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use serde_json::json;
use tieline_lab::{Outcome, Stream};
use tieline_tests::federated::guide::{self, SECRETS, secret_name};
use tieline_tests::federated::{Federated, Member, NAMESPACE, PATIENCE};
use tieline_tests::kube::{access, nodes, program};

/// What is longer has another cause than a busy machine: heartbeats are sent
/// every 20 ms, and a lost packet is sent again after 200 ms.
const SILENCE: Duration = Duration::from_secs(5);

/// A way to go wrong, and what is to come of it.
struct Line {
    name: &'static str,
    outcome: &'static str,
    /// Whether the running connection may pause, because its routes are to be
    /// withdrawn for a while.
    pauses: bool,
    check: fn(&mut Federated, &Stream),
}

const TABLE: [Line; 13] = [
    Line {
        name: "remote API hangs",
        outcome: "what is known stays",
        pauses: false,
        check: remote_hangs,
    },
    Line {
        name: "remote API is killed and comes back",
        outcome: "what is known stays; Stale meanwhile",
        pauses: false,
        check: remote_is_killed,
    },
    Line {
        name: "remote API is gone for longer than its objects are to count",
        outcome: "identities expire, or all is withdrawn, as configured at the time",
        pauses: true,
        check: stale_objects_expire,
    },
    Line {
        name: "history is compacted while a pod goes (410)",
        outcome: "read anew, what is gone is swept",
        pauses: false,
        check: history_is_compacted,
    },
    Line {
        name: "token is revoked, then replaced",
        outcome: "what is known stays; another Secret is taken over",
        pauses: false,
        check: token_is_revoked,
    },
    Line {
        name: "rights are narrowed, then restored",
        outcome: "what is known stays; what is missing is named",
        pauses: false,
        check: rights_are_narrowed,
    },
    Line {
        name: "Secret is deleted, then restored",
        outcome: "what is known stays",
        pauses: false,
        check: secret_is_deleted,
    },
    Line {
        name: "Secret is emptied, then restored",
        outcome: "what is known stays",
        pauses: false,
        check: secret_is_emptied,
    },
    Line {
        name: "Secret is broken, then restored",
        outcome: "what is known stays",
        pauses: false,
        check: secret_is_broken,
    },
    Line {
        name: "RemoteClusterConfiguration flaps 100 times",
        outcome: "withdrawn while it is not there; nothing piles up",
        pauses: true,
        check: configuration_flaps,
    },
    Line {
        name: "local API is gone for a minute",
        outcome: "what is known stays; remotes are followed",
        pauses: false,
        check: local_is_gone,
    },
    Line {
        name: "daemon is restarted while a remote is down",
        outcome: "the others count at once, the one when it is back",
        pauses: true,
        check: daemon_is_restarted,
    },
    Line {
        name: "another cluster answers at the remote's address",
        outcome: "what is known stays until the other is completely known",
        pauses: false,
        check: remote_is_replaced,
    },
];

/// `TIELINE_FAULTS=WORD,WORD` does only the lines with any of these words.
#[test]
fn connections_outlive_what_goes_wrong() {
    let Some(program) = program() else { return };
    let mut world = Federated::new(program, "faults");
    furnish(&world);
    let stream = world.stream("backend", "postgres", 5432);
    let only = std::env::var("TIELINE_FAULTS").unwrap_or_default();
    let wanted = |line: &&Line| only.split(',').any(|word| line.name.contains(word));
    for line in TABLE.iter().filter(wanted) {
        let begun = Instant::now();
        stream.longest_silence();
        let mut silence = Duration::ZERO;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            (line.check)(&mut world, &stream);
            is_well(&world, &stream);
            silence = stream.longest_silence();
            let account = world.account();
            assert!(line.pauses || silence < SILENCE, "silent for {silence:.1?}\n{account}");
        }));
        let said = if outcome.is_ok() { "ok" } else { "FAILED" };
        let took = begun.elapsed();
        let Line { name, outcome: wanted, .. } = line;
        println!("{said:6} {name} -> {wanted} (longest silence {silence:.1?}, {took:.1?} in all)");
        if let Err(panic) = outcome {
            // What comes after would not begin with all well.
            resume_unwind(panic);
        }
    }
}

/// Joins app to both others, and lets policies name remote labels, so that a
/// lost identity is seen as well as a lost route.
fn furnish(world: &Federated) {
    for member in world.members.values() {
        member.start_daemon();
    }
    for (local, remote) in [("app", "db"), ("db", "app"), ("app", "ops"), ("ops", "app")] {
        guide::join(world, local, remote, "Enabled");
    }
    write_policies(world.member("app"));
    write_policies(world.member("db"));
    world.await_connection("backend", "postgres", 5432, true);
    world.await_connection("frontend", "monitor", 22, true);
    world.await_connection("frontend", "cache", 22, true);
}

fn write_policies(member: &Member) {
    let allow = |direction: &str, side: &str, subject: &str, peer: &str| {
        let types = if direction == "ingress" { "Ingress" } else { "Egress" };
        let rule = json!({"action": "Allow", "protocol": "TCP", side: {"selector": peer}});
        let selector = format!("app == '{subject}'");
        let spec =
            json!({"tier": "default", "selector": selector, "types": [types], direction: [rule]});
        member.write_policy(subject, &spec);
    };
    if member.name == "db" {
        allow("ingress", "source", "postgres", "app == 'backend-app'");
    } else {
        allow("egress", "destination", "backend-app", "app == 'postgres'");
        allow("egress", "destination", "frontend", "app in {'redis', 'monitor'}");
    }
}

/// All is as it was at first.
fn is_well(world: &Federated, stream: &Stream) {
    for (local, remote) in [("app", "db"), ("db", "app"), ("app", "ops"), ("ops", "app")] {
        world.await_state(local, remote, "InSync");
    }
    goes_on(stream);
    is_followed(world, "db");
    is_followed(world, "ops");
}

/// The running connection is answered: 2 s of its heartbeats.
fn goes_on(stream: &Stream) {
    stream.wait_answers(100, PATIENCE).unwrap();
}

/// A label that changes at a remote decides about the next packet.
fn is_followed(world: &Federated, remote: &str) {
    let (pod, app) = if remote == "db" { ("cache", "redis") } else { ("monitor", "monitor") };
    world.await_connection("frontend", pod, 22, true);
    world.member(remote).relabel(pod, "other");
    world.await_connection("frontend", pod, 22, false);
    world.member(remote).relabel(pod, app);
    world.await_connection("frontend", pod, 22, true);
}

/// Waits for what the daemon on app-1 says is wrong with db.
fn is_told(world: &Federated, words: &[&str]) {
    let app = world.member("app");
    let what = format!("{words:?} in the error");
    world.until(&what, || words.iter().all(|word| app.error_of("db").contains(word)));
}

fn remote_hangs(world: &mut Federated, stream: &Stream) {
    world.member("db").api.pause();
    goes_on(stream);
    // It holds up neither the other remote nor the own cluster.
    is_followed(world, "ops");
    let app = world.member("app");
    app.relabel("frontend", "backend-app");
    world.await_connection("frontend", "monitor", 22, false);
    app.relabel("frontend", "frontend");
    world.await_state("app", "db", "Stale");
    goes_on(stream);
    world.member("db").api.resume();
}

fn remote_is_killed(world: &mut Federated, stream: &Stream) {
    world.member_mut("db").api.kill();
    world.await_state("app", "db", "Stale");
    is_told(world, &["10.77.2."]);
    goes_on(stream);
    is_followed(world, "ops");
    world.member_mut("db").api.revive();
}

fn stale_objects_expire(world: &mut Federated, _stream: &Stream) {
    let routes = |world: &Federated| {
        let status = world.member("app").status().unwrap_or_default();
        status["gateway"]["routes"].as_u64().unwrap_or_default()
    };
    let after = |world: &Federated, stale: &str| {
        let section = format!("[federation]\nstale = '{stale}'\nstale-after-seconds = 5\n");
        world.member("app").configure(&section);
    };
    let before = routes(world);
    after(world, "expire-identities");
    world.member_mut("db").api.kill();
    world.await_connection("frontend", "cache", 22, false);
    assert_eq!(routes(world), before);
    after(world, "withdraw");
    world.until("routes are withdrawn", || routes(world) < before);
    // It was not forgotten.
    world.member("app").configure("");
    world.await_connection("frontend", "cache", 22, true);
    assert_eq!(routes(world), before);
    world.member_mut("db").api.revive();
}

/// Takes the way from app's node to db's API server away, or gives it back.
fn part(world: &Federated, apart: bool) {
    let url = world.member("db").api.url();
    let address = url.strip_prefix("https://").and_then(|rest| rest.split_once(':')).unwrap().0;
    let word = if apart { "add" } else { "del" };
    let node = &world.member("app").node().netns;
    node.ip([format!("route {word} prohibit {address}")]).unwrap();
}

fn history_is_compacted(world: &mut Federated, stream: &Stream) {
    let pods = |world: &Federated| world.member("app").remote("db")["objects"]["Pod"].clone();
    let db = world.member("db");
    let mut ghost = db.cluster.pod("cache").unwrap().clone();
    ghost.name = "ghost".to_owned();
    ghost.v4 = [10, 20, 0, 60].into();
    ghost.v6 = "fd00:20::3c".parse().unwrap();
    nodes::write_pod(&db.api, db.node(), &ghost, &[("app", "redis")]);
    world.until("the new pod is known", || pods(world) == 3);

    part(world, true);
    // Ends the connections, whose server can't be reached again.
    world.member_mut("db").api.expire_history();
    world.await_state("app", "db", "Stale");
    let db = world.member("db");
    db.api.kubectl(&["-n", NAMESPACE, "delete", "pod", "ghost", "--force"]);
    db.relabel("cache", "other");
    world.member_mut("db").api.expire_history();
    goes_on(stream);
    assert_eq!(pods(world), 3);
    world.await_connection("frontend", "cache", 22, true);
    part(world, false);
    world.await_connection("frontend", "cache", 22, false);
    world.until("the pod that is gone is forgotten", || pods(world) == 2);
    world.member("db").relabel("cache", "redis");
}

fn token_is_revoked(world: &mut Federated, stream: &Stream) {
    let account = "tigera-federation-remote-cluster";
    let delete = ["delete", "serviceaccount,secret", account, "--ignore-not-found"];
    world.member("db").api.kubectl(&[&["-n", "kube-system"], &delete[..]].concat());
    // A watch that runs is not ended by it.
    break_connections(world);
    is_told(world, &["401"]);
    goes_on(stream);
    guide::prepare_remote(world.member("db"));
    guide::write_secret(world.member("app"), world.member("db"));
}

/// Ends what is connected to db's API server.
fn break_connections(world: &mut Federated) {
    world.member_mut("db").api.kill();
    world.member_mut("db").api.revive();
}

fn rights_are_narrowed(world: &mut Federated, stream: &Stream) {
    let role = "tigera-federation-remote-cluster";
    let kept = access::keep(&world.member("db").api, "clusterrole", role);
    access::narrow(&world.member("db").api, role, "pods");
    break_connections(world);
    world.until("what is missing is named", || {
        let status = world.member("app").status().unwrap_or_default();
        status["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                condition["cluster"] == "db"
                    && condition["object"] == "pods"
                    && message.contains("may not be read")
                    && message.contains("grant `list` on pods")
            })
        })
    });
    goes_on(stream);
    access::restore(&world.member("db").api, &kept);
}

fn secret_is_deleted(world: &mut Federated, stream: &Stream) {
    let secret = secret_name("db");
    world.member("app").api.kubectl(&["-n", SECRETS, "delete", "secret", &secret]);
    is_told(world, &[&secret]);
    goes_on(stream);
    guide::write_secret(world.member("app"), world.member("db"));
}

fn secret_is_emptied(world: &mut Federated, stream: &Stream) {
    let patch = "[{\"op\": \"remove\", \"path\": \"/data\"}]";
    let secret = secret_name("db");
    let args = ["-n", SECRETS, "patch", "secret", &secret, "--type=json", "-p", patch];
    world.member("app").api.kubectl(&args);
    is_told(world, &[&secret, "datastoreType"]);
    goes_on(stream);
    guide::write_secret(world.member("app"), world.member("db"));
}

fn secret_is_broken(world: &mut Federated, stream: &Stream) {
    guide::write_secret_with(world.member("app"), "db", "apiVersion: v1\nkind: Config\nusers: [");
    is_told(world, &[&secret_name("db"), "kubeconfig"]);
    goes_on(stream);
    guide::write_secret(world.member("app"), world.member("db"));
}

fn configuration_flaps(world: &mut Federated, _stream: &Stream) {
    let app = world.member("app");
    let count =
        |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", app.pid())).unwrap().count();
    let before = (count("fd"), count("task"));
    for _ in 0..100 {
        guide::delete_configuration(app, "db");
        guide::write_configuration(app, "db", "Enabled");
    }
    world.await_state("app", "db", "InSync");
    guide::delete_configuration(app, "db");
    world.await_connection("frontend", "cache", 22, false);
    guide::write_configuration(app, "db", "Enabled");
    world.await_state("app", "db", "InSync");
    let after = (count("fd"), count("task"));
    assert!(after.0 <= before.0 + 4 && after.1 <= before.1 + 4, "{before:?} -> {after:?}");
}

fn local_is_gone(world: &mut Federated, stream: &Stream) {
    world.member_mut("app").api.kill();
    let app = |world: &Federated| world.member("app").status().unwrap_or_default();
    world.until("it is noticed", || app(world)["clusters"]["local"]["state"] == "Stale");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        goes_on(stream);
        is_followed(world, "db");
    }
    assert_eq!(app(world)["ready"], true);
    world.member_mut("app").api.revive();
    world.until("it is back", || app(world)["clusters"]["local"]["state"] == "InSync");
}

fn daemon_is_restarted(world: &mut Federated, _stream: &Stream) {
    world.member_mut("db").api.kill();
    world.member("app").kill_daemon();
    world.member("app").start_daemon();
    world.await_state("app", "ops", "InSync");
    world.await_connection("frontend", "monitor", 22, true);
    is_told(world, &["10.77.2."]);
    // Nothing of db counts before all of it is known.
    let outcomes = world.connect("backend", "postgres", 5432);
    assert!(!outcomes.contains(&Outcome::Connected), "{outcomes:?}");
    world.member_mut("db").api.revive();
}

fn remote_is_replaced(world: &mut Federated, stream: &Stream) {
    let old = world.member("db").api.uid();
    world.member_mut("db").api.replace();
    is_told(world, &["401"]);
    goes_on(stream);
    // The same pods in another cluster: they count once all of it is known. Its
    // own daemon is told how to reach it, as everybody is.
    let db = world.member("db");
    db.furnish();
    write_policies(db);
    guide::join(world, "db", "app", "Enabled");
    db.renew_account();
    guide::prepare_remote(db);
    guide::write_secret(world.member("app"), db);
    let new = db.api.uid();
    assert_ne!(new, old);
    world.until("the other is known", || world.member("app").remote("db")["uid"] == new.as_str());
}
