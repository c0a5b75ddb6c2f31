use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::policy::model::{Action, Entity, PolicySource, PortMatch, Rule, Tier, TierAction};
use crate::policy::selector::Selector;
use crate::state::{ClusterObjects, NamedPort, RemoteCluster};

fn selector(text: &str) -> Option<Selector> {
    Some(Selector::parse(text).expect("a selector"))
}

fn rule(action: Action, source: Entity, destination: Entity) -> Rule {
    let (protocol, not_protocol, icmp, not_icmp) = (None, None, None, None);
    let (v4, v6, origin) = (true, true, 0);
    Rule { origin, action, v4, v6, protocol, not_protocol, icmp, not_icmp, source, destination }
}

fn from(text: &str) -> Entity {
    Entity { selector: selector(text), ..Entity::default() }
}

fn port(port: u16) -> Entity {
    Entity { ports: vec![PortMatch::Range(port..=port)], ..Entity::default() }
}

fn policy(name: &str, chosen: &str, mut ingress: Vec<Rule>) -> Policy {
    for (origin, rule) in ingress.iter_mut().enumerate() {
        rule.origin = origin;
    }
    Policy {
        source: PolicySource::GlobalNetworkPolicy,
        name: ObjectName { namespace: String::new(), name: name.into() },
        staged: false,
        selector: selector(chosen).expect("a selector"),
        ingress: Some(ingress),
        egress: None,
    }
}

fn tier(name: &str, policies: Vec<Policy>) -> Tier {
    Tier::new(name, TierAction::Deny, policies)
}

fn pod(cluster: &str, name: &str, node: &str, address: &str, role: &str) -> Identity {
    let cluster = match cluster {
        "local" => ClusterId::Local,
        remote => ClusterId::Remote(remote.into()),
    };
    let local = cluster == ClusterId::Local && node == "n1";
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Identity {
        cluster,
        kind: if local { IdentityKind::LocalWorkload } else { IdentityKind::Workload },
        name: ObjectName { namespace: namespace.into(), name: name.into() },
        node: node.into(),
        labels: Arc::new([("role".to_owned(), role.to_owned())].into()),
        nets: vec![address.parse().expect("an address")],
        ports: vec![NamedPort { name: "http".into(), protocol: 6, port: 8080 }],
        profile: true,
    }
}

/// Pods web (this node), api (another node) and tmp (cluster db); the policies
/// of tiers security and default.
fn derived() -> Derived {
    let mut allow_web = rule(
        Action::Allow,
        from("role == 'web'"),
        Entity { ports: vec![PortMatch::Named("http".into())], ..Entity::default() },
    );
    allow_web.protocol = Some(6);
    let mut allow_port = rule(Action::Allow, Entity::default(), port(443));
    allow_port.protocol = Some(6);
    let pass = rule(Action::Pass, Entity::default(), Entity::default());
    let deny = rule(Action::Deny, from("role == 'tmp'"), Entity::default());
    let staged = Policy {
        source: PolicySource::StagedGlobalNetworkPolicy,
        staged: true,
        ..policy(
            "trial",
            "all()",
            vec![rule(Action::Deny, from("role == 'web'"), Entity::default())],
        )
    };
    let log = rule(Action::Log, Entity::default(), Entity::default());
    let policies = PolicySet {
        tiers: vec![
            tier("trials", vec![staged]),
            tier("security", vec![policy("quarantine", "all()", vec![log, deny, pass])]),
            tier("default", vec![policy("api", "role == 'api'", vec![allow_web, allow_port])]),
        ],
        ..PolicySet::default()
    };
    let identities = vec![
        pod("local", "a/web", "n1", "10.0.0.1", "web"),
        pod("local", "a/api", "n2", "10.0.0.2", "api"),
        pod("db", "a/tmp", "r1", "10.9.0.1", "tmp"),
        pod("db", "b/six", "r1", "fd00::9", "tmp"),
    ];
    let remote = RemoteCluster { overlay: true, objects: Arc::default() };
    let mut objects = ClusterObjects::default();
    objects.namespaces.insert("a".into(), Arc::default());
    let world = World {
        node: "n1".into(),
        include_local_vteps: false,
        local: Arc::new(objects),
        remotes: BTreeMap::from([("db".into(), remote)]),
    };
    let compiled = compile(&policies, &identities);
    let resolved = resolve(&world);
    Derived::new(Arc::new(world), resolved, identities, policies.into(), compiled)
}

fn ask(query: Value) -> Result<Answer, ExplainError> {
    explain(&derived(), &serde_json::from_value(query).expect("a query"))
}

fn answer(query: Value) -> Answer {
    ask(query).expect("an answer")
}

#[test]
fn a_denial_reads_like_an_answer() {
    let answer = answer(json!({"from": "db:a/tmp", "to": "a/web", "port": 80}));
    assert_eq!(
        answer.to_string(),
        "denied: db:a/tmp (10.9.0.1) -> local:a/web (10.0.0.1), tcp port 80\n  \
         egress   not judged here: the source is no pod of this cluster\n  \
         ingress  denied by tier security, policy quarantine, rule 2 (Deny: source matches role \
         == \"tmp\", cluster db)\n           \
         without that rule it would be allowed by the profile of its namespace\n           \
         with staged policies enforced: would be denied by the default action of tier trials: policy \
         trial applies to local:a/web, and no rule allows this (the same verdict)\n  \
         route    none of ours: the kernel's own routes hold"
    );
    let side = answer.ingress.expect("ingress");
    assert_eq!(
        (side.tier.as_deref(), side.policy.as_deref()),
        (Some("security"), Some("quarantine"))
    );
    assert_eq!((side.rule, side.decided_by), (Some(2), DecidedBy::Rule));
    assert_eq!(side.trace.last().map(|tier| tier.end), Some("deny"));
}

#[test]
fn pods_of_other_nodes_are_judged_by_their_own_tables() {
    let answer = answer(json!({"id": 7, "from": "a/web", "to": "a/api", "port": 8080}));
    assert_eq!((answer.id, answer.verdict), (Some(json!(7)), Verdict::Allow));
    let egress = answer.egress.expect("egress");
    assert_eq!(egress.reason, "allowed by profile kns.a: no policy for egress applies");
    let ingress = answer.ingress.expect("ingress");
    assert_eq!(
        ingress.reason,
        "allowed by tier default, policy api, rule 1 (Allow: tcp, source matches role == \"web\", \
         destination port http)"
    );
    let staged = ingress.staged.expect("a staged policy");
    assert!(staged.changes);
    assert_eq!(
        staged.reason,
        "would be denied by tier trials, policy trial, rule 1 (Deny: source matches role == \"web\")"
    );
}

#[test]
fn what_nearly_matched_is_told() {
    let answer = answer(json!({"from": "a/web", "to": "a/api", "port": 80}));
    let ingress = answer.ingress.expect("ingress");
    assert_eq!((ingress.verdict, ingress.decided_by), (Verdict::Deny, DecidedBy::TierDefault));
    let failed: Vec<_> = ingress.near_misses.iter().map(|miss| (miss.rule, &miss.failed)).collect();
    assert_eq!(
        failed,
        [
            (1, &vec!["destination port 80 is not http (8080)".to_owned()]),
            (2, &vec!["destination port 80 is not 443".to_owned()]),
        ]
    );
}

/// The nearest miss is one that the user could mean.
#[test]
fn near_misses_are_of_the_same_protocol_and_nearest_first() {
    let mut derived = derived();
    let mut policies = (*derived.policies).clone();
    let (rank, api) = policies.tiers[2].policies.iter().next().expect("a policy");
    let (rank, mut api) = (rank.clone(), (**api).clone());
    let own = api.ingress.take().expect("rules");
    let mut dns = rule(Action::Allow, Entity::default(), Entity::default());
    dns.protocol = Some(17);
    let net = |text: &str| vec![text.parse().expect("a net")];
    let nets =
        Entity { nets: net("192.0.2.0/24"), not_nets: net("192.0.2.128/25"), ..Entity::default() };
    let block = rule(Action::Allow, nets, Entity::default());
    let rules = [vec![dns], own, vec![block]].concat();
    api.ingress =
        Some(rules.into_iter().enumerate().map(|(origin, of)| Rule { origin, ..of }).collect());
    policies.tiers[2].policies.insert(rank, Arc::new(api));
    derived.policies = Arc::new(policies);
    derived.compiled = compile(&derived.policies, derived.identities());
    let ask = |from: &str, port: u16| {
        let query = json!({"from": from, "to": "a/api", "port": port});
        let query = serde_json::from_value(query).expect("a query");
        let side = explain(&derived, &query).expect("an answer").ingress.expect("ingress");
        side.near_misses.into_iter().map(|miss| (miss.rule, miss.failed)).collect::<Vec<_>>()
    };
    let near = ask("192.0.2.200", 8080);
    assert_eq!(near.iter().map(|(rule, _)| *rule).collect::<Vec<_>>(), [3, 4, 2]);
    assert_eq!(near[1].1, ["source 192.0.2.200 is in 192.0.2.128/25, which the rule excludes"]);
}

/// Without its namespace nothing allows, and the answer says what to do.
#[test]
fn a_missing_namespace_is_said() {
    let mut derived = derived();
    let mut identities = derived.identities().to_vec();
    identities[0].profile = false;
    let compiled = compile(&derived.policies, &identities);
    let (world, resolved) = (derived.world.clone(), (*derived.resolved).clone());
    derived = Derived::new(world, resolved, identities, derived.policies.clone(), compiled);
    let query = json!({"from": "a/web", "to": "192.0.2.1", "port": 80});
    let query = serde_json::from_value(query).expect("a query");
    let egress = explain(&derived, &query).expect("an answer").egress.expect("egress");
    assert_eq!((egress.verdict, egress.decided_by), (Verdict::Deny, DecidedBy::Profile));
    assert_eq!(egress.profile.as_deref(), Some("kns.a"));
    assert_eq!(
        egress.reason,
        "denied by default: no tier decides, and profile kns.a, which would, is missing; there \
         is no object Namespace a: add it"
    );
}

#[test]
fn addresses_are_whatever_has_them() {
    let known = answer(json!({"from": "10.9.0.1", "to": "10.0.0.1", "protocol": "icmp"}));
    assert_eq!(known.from.identities[0].name, "a/tmp");
    assert_eq!((known.icmp_type, known.icmp_code), (Some(8), Some(0)));
    let unknown = answer(json!({"from": "192.0.2.1", "to": "a/api", "port": 22}));
    assert!(unknown.from.identities.is_empty());
    let misses = unknown.ingress.expect("ingress").near_misses;
    assert_eq!(
        misses[1].failed[0],
        "source 192.0.2.1 does not match role == \"web\": it is no endpoint and in no network \
         set that is known"
    );
}

#[test]
fn what_cannot_be_answered_says_why() {
    let error = |query| ask(query).expect_err("no answer").to_string();
    assert_eq!(
        error(json!({"from": "a/tmp", "to": "a/web", "port": 1})),
        "no pod a/tmp with an address in cluster local (there is a db:a/tmp); finished pods and \
         pods on the host's network have no identity"
    );
    assert_eq!(
        error(json!({"from": "mars:a/tmp", "to": "a/web", "port": 1})),
        "no cluster \"mars\": no RemoteClusterConfiguration of that name is in force"
    );
    assert_eq!(
        error(json!({"from": "db:a/tmp", "to": "192.0.2.1", "port": 1})),
        "neither db:a/tmp nor 192.0.2.1 is a pod of the local cluster: policy is enforced at the \
         pods of the local cluster only"
    );
    assert_eq!(
        error(json!({"from": "db:b/six", "to": "a/web", "port": 1})),
        "db:b/six and a/web have no address family in common"
    );
    assert_eq!(
        error(json!({"from": "web", "to": "a/web", "port": 1})),
        "\"web\" is neither namespace/pod, cluster:namespace/pod nor an address"
    );
    assert_eq!(
        error(json!({"from": "a/api", "to": "a/web"})),
        "port: tcp, udp and sctp need a destination port"
    );
    assert_eq!(
        error(json!({"from": "a/api", "to": "a/web", "protocol": "icmp", "port": 1})),
        "port: only tcp, udp and sctp have ports"
    );
}

#[test]
fn several_rules_from_one_have_its_number() {
    let mut derived = derived();
    let mut policies = (*derived.policies).clone();
    let (rank, api) = policies.tiers[2].policies.iter().next().expect("a policy");
    let (rank, mut api) = (rank.clone(), (**api).clone());
    for rule in api.ingress.iter_mut().flatten() {
        rule.origin = 6;
    }
    policies.tiers[2].policies.insert(rank, Arc::new(api));
    derived.policies = Arc::new(policies);
    derived.compiled = compile(&derived.policies, derived.identities());
    let ask = |port: u16| {
        let query = json!({"from": "a/web", "to": "a/api", "port": port});
        let query = serde_json::from_value(query).expect("a query");
        explain(&derived, &query).expect("an answer").ingress.expect("ingress")
    };
    let allowed = ask(443);
    assert_eq!(allowed.rule, Some(7));
    assert!(allowed.reason.contains("policy api, rule 7 (Allow: tcp"), "{}", allowed.reason);
    let numbers = allowed.trace.iter().flat_map(|tier| &tier.policies).last().expect("a policy");
    assert_eq!(numbers.rules.iter().map(|rule| rule.rule).collect::<Vec<_>>(), [7, 7]);
    assert_eq!(ask(80).near_misses.iter().map(|miss| miss.rule).collect::<Vec<_>>(), [7]);
}

#[test]
fn pods_that_there_are_not() {
    let from = json!({"namespace": "a", "labels": "role=web"});
    let to = json!({"namespace": "a", "labels": {"role": "api"}, "ports": {"http": "8081"}});
    let allowed = answer(json!({"from": from, "to": "a/api", "port": 443}));
    assert_eq!(allowed.verdict, Verdict::Allow);
    assert_eq!(allowed.from.identities[0].kind, "hypothetical-pod");
    assert_eq!(allowed.from.identities[0].name, "a/(role=web)");
    let text = allowed.to_string();
    assert!(
        text.starts_with("allowed: a pod local:a/(role=web) -> local:a/api (10.0.0.2)"),
        "{text}"
    );
    assert!(allowed.egress.is_some(), "it is taken to be on this node");
    let both = answer(json!({"from": from, "to": to, "port": 8081}));
    assert_eq!(both.ingress.expect("ingress").rule, Some(1), "by its named port");
    let remote = json!({"cluster": "db", "namespace": "a", "labels": "role=tmp"});
    let denied = answer(json!({"from": remote, "to": to, "port": 8081}));
    assert_eq!((denied.verdict, denied.egress, denied.route), (Verdict::Deny, None, None));
    assert_eq!(denied.ingress.expect("ingress").policy.as_deref(), Some("quarantine"));
    // Its address is nobody's, so it is no known address by itself.
    let other = json!({"namespace": "a", "labels": {"role": "other"}});
    let denied = answer(json!({"from": other, "to": "a/api", "port": 8080}));
    assert_eq!(denied.verdict, Verdict::Deny);
    let six = answer(json!({"from": "db:b/six", "to": to, "port": 1}));
    assert!(six.to.address.is_ipv6());

    let error = |query| ask(query).expect_err("no answer").to_string();
    assert_eq!(
        error(json!({"from": {"namespace": "nowhere"}, "to": "a/api", "port": 1})),
        "no namespace \"nowhere\" in cluster local: what a pod there inherits is not known; add \
         the Namespace or name another"
    );
    assert!(error(json!({"from": {"cluster": "mars"}, "to": "a/api", "port": 1})).contains("mars"));
    let wrong = |value: Value| {
        let query = json!({"from": value, "to": "a/api", "port": 1});
        serde_json::from_value::<Query>(query).expect_err("refused").to_string()
    };
    assert!(wrong(json!({"label": "a=b"})).contains("unknown field `label`"));
    assert!(wrong(json!({"labels": "a"})).contains("\"a\" has no value"));
    assert!(wrong(json!({"labels": {"a": []}})).contains("a is []"));
    assert!(wrong(json!(7)).contains("7 is no end of a connection"));
    let port = json!({"namespace": "a", "ports": "http=x"});
    assert!(error(json!({"from": port, "to": "a/api", "port": 1})).starts_with("ports: a port is"));
}

#[test]
fn selectors_are_told_in_the_users_words() {
    let k8s = "projectcalico.org/orchestrator == 'k8s'";
    let in_shop = "projectcalico.org/namespace == 'shop'";
    for (selector, wanted) in [
        ("role == 'x'".to_owned(), "matches role == \"x\""),
        ("has(a) || has(b)".to_owned(), "matches has(a) || has(b)"),
        (format!("{in_shop} && (has(a) || has(b))"), "matches has(a) || has(b) in namespace shop"),
        (format!("{in_shop} && ({k8s} && has(a))"), "matches has(a) in namespace shop"),
        (format!("{in_shop} && {k8s}"), "in namespace shop"),
        (
            "pcns.team == 'x' && has(a)".to_owned(),
            "matches has(a) in namespaces with team == \"x\"",
        ),
        ("has(projectcalico.org/namespace)".to_owned(), "in any namespace"),
        ("!has(projectcalico.org/namespace)".to_owned(), "in no namespace"),
        (
            "has(pcsa.x) && projectcalico.org/serviceaccount in {'a'}".to_owned(),
            "whose service account matches has(x) and with service account a",
        ),
        (
            "pcns.t == 'x' && projectcalico.org/serviceaccount in {'a', 'b'}".to_owned(),
            "in namespaces with t == \"x\" and with service account a or b",
        ),
        ("has(projectcalico.org/serviceaccount)".to_owned(), "with any service account"),
        ("all()".to_owned(), "matches all()"),
        (k8s.to_owned(), "matches projectcalico.org/orchestrator == \"k8s\""),
    ] {
        assert_eq!(labels::positive(&Selector::parse(&selector).expect("a selector")), wanted);
    }
}

#[test]
fn odd_queries_say_what_is_wrong() {
    let wrong = |field: &str, value: Value| {
        let mut query = json!({"from": "a/web", "to": "a/api", "port": 1});
        query[field] = value;
        match serde_json::from_value::<Query>(query) {
            Err(error) => error.to_string(),
            Ok(query) => explain(&derived(), &query).expect_err("no answer").to_string(),
        }
    };
    for (field, value, wanted) in [
        ("protocol", json!(256), "\"256\" is not a protocol"),
        ("protocol", json!(-1), "\"-1\" is not a protocol"),
        ("protocol", json!(6.5), "\"6.5\" is not a protocol"),
        ("protocol", json!("+6"), "\"+6\" is not a protocol"),
        ("protocol", json!(""), "\"\" is not a protocol"),
        ("protocol", json!(["tcp"]), "is not a protocol"),
        ("protocol", json!(47), "port: only tcp, udp and sctp have ports"),
        ("protocol", json!("icmp"), "port: only tcp, udp and sctp have ports"),
        ("port", json!(null), "port: tcp, udp and sctp need a destination port"),
        ("port", json!(65536), "65536"),
        ("port", json!("80"), "expected u16"),
        ("icmp-type", json!(8), "icmp_type: only ICMP has types and codes"),
        ("icmp_code", json!(0), "icmp_type: only ICMP has types and codes"),
        ("from", json!(""), "\"\" is neither"),
        ("from", json!("a/b/c"), "\"a/b/c\" is neither"),
        ("from", json!("a/"), "\"a/\" is neither"),
        ("from", json!("fd00::1"), "no address family in common"),
    ] {
        let error = wrong(field, value.clone());
        assert!(error.contains(wanted), "{field}: {value}: {error}");
    }
    let default = json!({"from": "a/web", "to": "a/api", "port": 443, "protocol": null});
    assert_eq!(answer(default).protocol, Protocol(6));
}

#[test]
fn queries_are_read_in_either_spelling() {
    let read = |value: Value| serde_json::from_value::<Query>(value).expect("a query");
    let one = read(json!({"from": "a/x", "to": "b/y", "src_port": 5, "icmp_type": 3}));
    let other = read(json!({"from": "a/x", "to": "b/y", "src-port": 5, "icmp-type": 3}));
    assert_eq!(one, other);
    let protocol = |value: Value| read(json!({"from": "", "to": "", "protocol": value})).protocol.0;
    let numbers = [json!("TCP"), json!(17), json!("132"), json!("ICMPv6"), json!("udplite")];
    assert_eq!(numbers.map(protocol), [6, 17, 132, 58, 136]);
    let wrong = json!({"from": "", "to": "", "protocol": "carrier pigeon"});
    assert!(serde_json::from_value::<Query>(wrong).is_err());
    let answer = answer(json!({"from": "a/api", "to": "a/web", "port": 1, "prot": "udp"}));
    assert_eq!(answer.ignored, ["prot"]);
}

#[test]
fn a_batch_keeps_its_order_and_its_errors() {
    let derived = derived();
    let input = "{\"id\":1,\"from\":\"a/web\",\"to\":\"a/api\",\"port\":443}\n\n\
                 {\"id\":\"two\",\"from\":\"a/none\",\"to\":\"a/api\",\"port\":443}\n\
                 nonsense\n\
                 {\"id\":3,\"to\":\"a/api\"}\n\
                 {\"id\":4,\"from\":\"db:a/tmp\",\"to\":\"a/api\",\"protocol\":\"udp\",\"port\":53}";
    let mut output = Vec::new();
    let mut explainer = Explainer::new(&derived).brief();
    let summary = explain_lines(&mut explainer, input.as_bytes(), &mut output).expect("no error");
    assert_eq!(summary, Summary { allowed: 1, denied: 1, errors: 3 });
    let output = String::from_utf8(output).expect("text");
    let lines: Vec<Value> =
        output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["id"], 1);
    assert_eq!(lines[0]["verdict"], "allow");
    assert_eq!(lines[0]["egress"]["verdict"], "allow");
    assert_eq!(lines[0]["ingress"]["rule"], 2);
    assert_eq!(lines[0]["ingress"].get("trace"), None);
    assert_eq!(lines[1]["id"], "two");
    assert!(lines[1]["error"].as_str().is_some_and(|error| error.starts_with("no pod a/none")));
    assert!(lines[2]["error"].as_str().is_some_and(|it| it.starts_with("not a JSON object")));
    assert_eq!((&lines[3]["id"], &lines[3]["error"]), (&json!(3), &json!("missing field `from`")));
    assert_eq!((&lines[4]["verdict"], &lines[4]["egress"]), (&json!("deny"), &Value::Null));
}

/// The same, with a set as it is written for Felix.
fn mirrored(address: &str, labels: Value) -> Derived {
    let mut derived = derived();
    let mut labels = labels;
    labels["tieline/remote-cluster"] = json!("db");
    labels["projectcalico.org/namespace"] = json!("a");
    let set = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
        "metadata": {"name": "tieline-db-0", "labels": labels},
        "spec": {"nets": [address]},
    });
    let kind = crate::policy::api::PolicyKind::GlobalNetworkSet;
    let (name, set) = crate::policy::api::parse(kind, &set).expect("a set");
    let mut local = ClusterObjects::default();
    local.policy.0.insert((kind, name), Arc::new(set));
    let world = Arc::make_mut(&mut derived.world);
    world.local = Arc::new(local);
    derived
}

fn one(query: Value, derived: &Derived) -> Answer {
    let query: Query = serde_json::from_value(query).expect("a query");
    explain(derived, &query).expect("an answer")
}

#[test]
fn what_felix_decides_by_what_is_written_for_it() {
    let felix = |derived: &Derived| {
        let query = json!({"from": "db:a/tmp", "to": "a/api", "protocol": "tcp", "port": 443});
        let answer = one(query, derived);
        assert_eq!(answer.verdict, Verdict::Deny);
        answer.ingress.and_then(|side| side.felix)
    };
    let tmp = || json!({"role": "tmp"});
    assert_eq!(felix(&derived()), None, "there is no Felix");
    let same = felix(&mirrored("10.9.0.1/32", tmp())).expect("Felix's view");
    assert_eq!((same.verdict, same.differs), (Verdict::Deny, false));
    assert!(same.unknown.is_empty(), "{same:?}");
    let other = felix(&mirrored("10.9.0.2/32", tmp())).expect("Felix's view");
    assert_eq!((other.verdict, other.differs), (Verdict::Allow, true));
    assert!(other.reason.contains("no set holds the address"), "{}", other.reason);
    // With Felix there, but nothing told to it.
    let mut untold = derived();
    let mut local = (*untold.world.local).clone();
    local.felix.insert("default".into(), Default::default());
    Arc::make_mut(&mut untold.world).local = Arc::new(local);
    let other = felix(&untold).expect("Felix's view");
    assert_eq!((other.verdict, other.differs), (Verdict::Allow, true));
}

/// The policies of [`derived`] and one for egress, with these conditions on the
/// destination, which the pod tmp of cluster db meets with a label of this value.
fn towards(destination: Entity, value: &str, labels: Value) -> Derived {
    let before = mirrored("10.9.0.1/32", labels);
    let mut identities = before.identities().to_vec();
    for identity in identities.iter_mut().filter(|it| it.cluster != ClusterId::Local) {
        Arc::make_mut(&mut identity.labels).insert("team".into(), value.into());
    }
    let mut allow = rule(Action::Allow, Entity::default(), destination);
    allow.protocol = Some(6);
    let mut egress = policy("egress", "role == 'api'", vec![]);
    (egress.ingress, egress.egress) = (None, Some(vec![allow]));
    let mut policies = (*before.policies).clone();
    policies.tiers.push(tier("egress", vec![egress]));
    let compiled = compile(&policies, &identities);
    let (world, resolved) = (before.world.clone(), (*before.resolved).clone());
    Derived::new(world, resolved, identities, Arc::new(policies), compiled)
}

#[test]
fn where_felix_decides_otherwise_it_is_said_why() {
    let ask = |derived: &Derived, port: u16| {
        let answer = one(json!({"from": "a/api", "to": "db:a/tmp", "port": port}), derived);
        let text = answer.to_string();
        let side = answer.egress.expect("a side");
        (side.verdict, side.felix.expect("Felix's view"), text)
    };
    let told = || json!({"role": "tmp", "team": "short"});
    // A port by its name.
    let http = || PortMatch::Named("http".into());
    let named = Entity { ports: vec![http()], ..from("role == 'tmp'") };
    let (ours, felix, text) = ask(&towards(named, "short", told()), 8080);
    assert_eq!((ours, felix.verdict, felix.differs), (Verdict::Allow, Verdict::Deny, true));
    assert!(text.contains("but not in Felix: denied by the default action"), "{text}");
    assert!(text.contains("Felix knows no port \"http\" of remote endpoints"), "{text}");
    // The same verdict, by another port that is written as a number.
    let either = Entity { ports: vec![http(), PortMatch::Range(80..=80)], ..Entity::default() };
    let (ours, felix, text) = ask(&towards(either, "short", told()), 80);
    assert_eq!((ours, felix.differs), (Verdict::Allow, false));
    assert!(text.contains("where it may differ: Felix knows no port \"http\""), "{text}");
    // A value that no set can have.
    let long = "v".repeat(70);
    let team = format!("team == '{long}'");
    let (ours, felix, _) = ask(&towards(from(&team), &long, json!({"role": "tmp"})), 80);
    assert_eq!((ours, felix.verdict, felix.differs), (Verdict::Allow, Verdict::Deny, true));
    assert!(felix.reason.contains("the value of label team can't be told"), "{}", felix.reason);
    // One that it need not have: another says the same.
    let (ours, felix, _) = ask(&towards(from("has(team)"), &long, told()), 80);
    assert_eq!((ours, felix.differs), (Verdict::Allow, false));
    assert!(felix.unknown.is_empty(), "{felix:?}");
}
