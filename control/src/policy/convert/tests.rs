use std::fmt::Write as _;

use serde_json::Value;

use super::*;
use crate::policy::api::parse;
use crate::policy::model::{Action, PortMatch};

/// The objects of a text of manifests, each in one line of flow style.
fn cluster(manifests: &str) -> ClusterObjects {
    let mut cluster = ClusterObjects::default();
    for line in manifests.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let object: Value =
            serde_saphyr::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let kind = PolicyKind::of(&text("apiVersion"), &text("kind")).unwrap();
        let (name, object) = parse(kind, &object).unwrap_or_else(|e| panic!("{line}: {e}"));
        cluster.policy.0.insert((kind, name), Arc::new(object));
    }
    cluster
}

fn set(manifests: &str) -> PolicySet {
    policy_set(&cluster(manifests))
}

/// A manifest by the short name of its kind.
fn manifest(short: &str, name: &str, spec: &str) -> String {
    let (version, kind) = match short {
        "tier" => ("projectcalico.org/v3", "Tier"),
        "np" => ("projectcalico.org/v3", "NetworkPolicy"),
        "gnp" => ("projectcalico.org/v3", "GlobalNetworkPolicy"),
        "snp" => ("projectcalico.org/v3", "StagedNetworkPolicy"),
        "sgnp" => ("projectcalico.org/v3", "StagedGlobalNetworkPolicy"),
        "sknp" => ("projectcalico.org/v3", "StagedKubernetesNetworkPolicy"),
        "knp" => ("networking.k8s.io/v1", "NetworkPolicy"),
        "cnp" => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        other => panic!("no kind {other}"),
    };
    let (namespace, name) = name.rsplit_once('/').unwrap_or(("", name));
    // YAML 1.1 reads a bare n as false.
    let namespace = if namespace.is_empty() { "null".to_owned() } else { format!("'{namespace}'") };
    format!(
        "{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}, \
         namespace: {namespace}}}, spec: {spec}}}\n"
    )
}

/// The only policy of a manifest.
fn only(short: &str, name: &str, spec: &str) -> (Policy, Vec<Condition>) {
    let set = set(&manifest(short, name, spec));
    let policies: Vec<_> = set.tiers.iter().flat_map(|tier| tier.policies.values()).collect();
    assert_eq!(policies.len(), 1, "{spec}");
    ((*policies[0]).as_ref().clone(), set.conditions.to_vec())
}

/// The rules of one direction of the only policy, one a line.
fn rules(short: &str, name: &str, direction: &str, spec: &str) -> String {
    let (policy, _) = only(short, name, spec);
    let rules = if direction == "ingress" { policy.ingress } else { policy.egress };
    rules.map_or_else(|| "none".to_owned(), |rules| shown(&rules))
}

fn ingress(short: &str, rule: &str) -> String {
    let name = if short == "np" { "n/p" } else { "p" };
    rules(short, name, "ingress", &format!("{{ingress: [{rule}]}}"))
}

fn egress(short: &str, rule: &str) -> String {
    let name = if short == "np" { "n/p" } else { "p" };
    rules(short, name, "egress", &format!("{{egress: [{rule}]}}"))
}

fn shown(rules: &[Rule]) -> String {
    rules.iter().map(show).collect::<Vec<_>>().join("\n")
}

fn show(rule: &Rule) -> String {
    let mut out = format!("{:?}", rule.action);
    match (rule.v4, rule.v6) {
        (true, true) => {}
        (true, false) => out.push_str(" v4"),
        (false, true) => out.push_str(" v6"),
        (false, false) => out.push_str(" never"),
    }
    let mut say = |text: String| write!(out, " {text}").unwrap();
    if let Some(protocol) = rule.protocol {
        say(format!("protocol {protocol}"));
    }
    if let Some(protocol) = rule.not_protocol {
        say(format!("!protocol {protocol}"));
    }
    if let Some(icmp) = rule.icmp {
        say(format!("icmp {}/{:?}", icmp.kind, icmp.code));
    }
    if let Some(icmp) = rule.not_icmp {
        say(format!("!icmp {}/{:?}", icmp.kind, icmp.code));
    }
    for (end, entity) in [("from", &rule.source), ("to", &rule.destination)] {
        let text = show_entity(entity);
        if !text.is_empty() {
            say(format!("{end}[{text}]"));
        }
    }
    out
}

fn show_entity(entity: &Entity) -> String {
    let mut parts = Vec::new();
    let nets = |nets: &[Prefix]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if !entity.nets.is_empty() {
        parts.push(nets(&entity.nets));
    }
    if !entity.not_nets.is_empty() {
        parts.push(format!("!{}", nets(&entity.not_nets)));
    }
    if let Some(selector) = &entity.selector {
        parts.push(selector.to_string());
    }
    if let Some(selector) = &entity.not_selector {
        parts.push(format!("not: {selector}"));
    }
    for (sign, ports) in [("", &entity.ports), ("!", &entity.not_ports)] {
        for port in ports {
            parts.push(match port {
                PortMatch::Range(range) => format!("{sign}{}:{}", range.start(), range.end()),
                PortMatch::Named(name) => format!("{sign}{name}"),
            });
        }
    }
    if let Some(service) = &entity.service {
        parts.push(format!("service {service}"));
    }
    parts.join(" ")
}

fn names(tier: &Tier) -> Vec<String> {
    tier.policies.values().map(|policy| policy.name.to_string()).collect()
}

fn place(tier: &Tier, at: usize) -> &Arc<Policy> {
    tier.policies.values().nth(at).unwrap()
}

fn tier_named<'a>(set: &'a PolicySet, name: &str) -> &'a Tier {
    set.tiers.iter().find(|tier| tier.name == name).unwrap()
}

fn messages(conditions: &[Condition]) -> Vec<String> {
    conditions.iter().map(|c| format!("{}: {}", c.object, c.message)).collect()
}

#[test]
fn every_cluster_has_three_tiers() {
    let set = set("");
    let tiers: Vec<_> =
        set.tiers.iter().map(|tier| (tier.name.as_str(), tier.default_action)).collect();
    assert_eq!(
        tiers,
        [
            ("kube-admin", TierAction::Pass),
            ("default", TierAction::Deny),
            ("kube-baseline", TierAction::Pass)
        ]
    );
    assert!(set.conditions.is_empty());
}

#[test]
fn tiers_sort_by_order_then_name_and_missing_ones_come_last() {
    let set = set(&[
        manifest("tier", "z-first", "{order: -0.0}"),
        manifest("tier", "b-first", "{order: 0, defaultAction: Pass}"),
        manifest("tier", "mid", "{order: 1000000}"),
        manifest("tier", "unordered-b", "{}"),
        manifest("tier", "unordered-a", "{defaultAction: Pass}"),
        manifest("gnp", "p", "{tier: ghost-b}"),
        manifest("np", "n/p", "{tier: ghost-a, order: 1}"),
        manifest("gnp", "q", "{tier: unordered-b}"),
    ]
    .concat());
    let tiers: Vec<_> = set.tiers.iter().map(|tier| tier.name.as_str()).collect();
    assert_eq!(
        tiers,
        [
            "b-first",
            "z-first",
            "kube-admin",
            "default",
            "mid",
            "kube-baseline",
            "unordered-a",
            "unordered-b",
            "ghost-a",
            "ghost-b"
        ]
    );
    assert_eq!(tier_named(&set, "b-first").default_action, TierAction::Pass);
    assert_eq!(tier_named(&set, "unordered-b").default_action, TierAction::Deny);
    assert_eq!(tier_named(&set, "ghost-a").default_action, TierAction::Deny);
    assert_eq!(names(tier_named(&set, "ghost-b")), ["p"]);
    let said = messages(&set.conditions);
    assert_eq!(said.len(), 2);
    assert!(said[0].starts_with("NetworkPolicy n/p: spec.tier: there is no tier ghost-a"));
    assert!(said[1].starts_with("GlobalNetworkPolicy p: spec.tier: there is no tier ghost-b"));
}

#[test]
fn policies_sort_by_order_then_by_name_namespace_and_kind_as_one_text() {
    let set = set(&[
        manifest("gnp", "web0", "{order: 5}"),
        manifest("gnp", "web", "{order: 5}"),
        manifest("np", "a/web", "{order: 5}"),
        manifest("gnp", "web-x", "{order: 5.0}"),
        manifest("gnp", "web.y", "{order: 5}"),
        manifest("gnp", "zero", "{order: 0}"),
        manifest("gnp", "aaa", "{order: -0.0}"),
        manifest("gnp", "last", "{}"),
        manifest("gnp", "also-last", "{order: null}"),
        manifest("gnp", "minus", "{order: -3.5}"),
        manifest("gnp", "kube", "{order: 1000}"),
        manifest("knp", "b/kube", "{}"),
        manifest("np", "b/kube", "{order: 1000}"),
    ]
    .concat());
    let default = tier_named(&set, "default");
    assert_eq!(
        names(default),
        [
            "minus",
            "aaa",
            "zero",
            "web-x",
            "web.y",
            "web",
            "a/web",
            "web0",
            "kube",
            "b/kube",
            "b/kube",
            "also-last",
            "last"
        ]
    );
    // Of one name and namespace, KubernetesNetworkPolicy sorts before NetworkPolicy.
    assert_eq!(place(default, 9).source, PolicySource::KubernetesNetworkPolicy);
    assert_eq!(place(default, 10).source, PolicySource::NetworkPolicy);
}

#[test]
fn types_default_to_what_the_rules_say() {
    for (spec, ingress, egress) in [
        ("{}", true, false),
        ("{types: []}", true, false),
        ("{ingress: [{action: Deny}]}", true, false),
        ("{egress: [{action: Deny}]}", false, true),
        ("{ingress: [{action: Deny}], egress: [{action: Deny}]}", true, true),
        ("{types: [Egress]}", false, true),
        ("{types: [Egress, Ingress]}", true, true),
        ("{types: [Egress], ingress: [{action: Deny}]}", false, true),
        ("{types: [Ingress], egress: [{action: Deny}]}", true, false),
    ] {
        for (short, name) in [("np", "n/p"), ("gnp", "p"), ("snp", "n/p"), ("sgnp", "p")] {
            let (policy, _) = only(short, name, spec);
            assert_eq!(policy.ingress.is_some(), ingress, "{short} {spec}");
            assert_eq!(policy.egress.is_some(), egress, "{short} {spec}");
        }
    }
    let (_, conditions) = only("gnp", "p", "{types: [Egress], ingress: [{action: Deny}]}");
    assert!(conditions[0].message.starts_with("spec.ingress: the rules have no effect"));
}

#[test]
fn main_selectors() {
    let selector = |short: &str, spec: &str| {
        let name = if short.ends_with("gnp") || short == "cnp" { "p" } else { "n/p" };
        only(short, name, spec).0.selector.to_string()
    };
    let in_n = "projectcalico.org/namespace == \"n\"";
    let k8s = "projectcalico.org/orchestrator == \"k8s\"";
    assert_eq!(selector("gnp", "{}"), "all()");
    assert_eq!(selector("np", "{}"), in_n);
    assert_eq!(selector("np", "{selector: ' all() '}"), in_n);
    assert_eq!(selector("np", "{selector: 'has(a)'}"), format!("({in_n} && has(a))"));
    assert_eq!(
        selector("np", "{selector: 'has(a) || has(b)', serviceAccountSelector: 'has(x)'}"),
        format!("(({in_n} && (has(a) || has(b))) && has(pcsa.x))")
    );
    assert_eq!(
        selector("gnp", "{namespaceSelector: \"team == 'x'\", serviceAccountSelector: '!has(x)'}"),
        "(pcns.team == \"x\" && !has(pcsa.x))"
    );
    assert_eq!(
        selector("gnp", "{selector: 'has(a)', namespaceSelector: 'all()'}"),
        "(has(a) && has(projectcalico.org/namespace))"
    );
    let account = "has(projectcalico.org/serviceaccount)";
    for (spec, wanted) in [
        ("{serviceAccountSelector: 'all()'}", account.to_owned()),
        ("{serviceAccountSelector: '!all()'}", format!("!{account}")),
        (
            "{selector: 'all()', serviceAccountSelector: '!has(x)'}",
            format!("({account} && !has(pcsa.x))"),
        ),
        (
            "{selector: 'all()', namespaceSelector: 'has(t)', serviceAccountSelector: '!has(x)'}",
            "(has(pcns.t) && !has(pcsa.x))".to_owned(),
        ),
    ] {
        assert_eq!(selector("gnp", spec), wanted, "{spec}");
    }
    assert_eq!(selector("np", "{serviceAccountSelector: 'all()'}"), in_n);
    assert_eq!(selector("knp", "{podSelector: {}}"), format!("({in_n} && {k8s})"));
    assert_eq!(
        selector(
            "knp",
            "{podSelector: {matchLabels: {b: x, a: w}, matchExpressions: [\
             {key: c, operator: NotIn, values: [q, p]}, {key: d, operator: DoesNotExist}]}}"
        ),
        format!(
            "({in_n} && ({k8s} && (((a == \"w\" && b == \"x\") && \
             c not in {{\"p\", \"q\"}}) && !has(d))))"
        )
    );
    let cnp = |subject: &str| {
        selector("cnp", &format!("{{tier: Admin, priority: 1, subject: {subject}}}"))
    };
    assert_eq!(cnp("{namespaces: {}}"), format!("(has(projectcalico.org/namespace) && {k8s})"));
    assert_eq!(
        cnp(
            "{pods: {namespaceSelector: {matchLabels: {t: x}}, podSelector: {matchLabels: {a: w}}}}"
        ),
        format!("(pcns.t == \"x\" && ({k8s} && a == \"w\"))")
    );
}

#[test]
fn rule_selectors_of_global_policies() {
    for (source, wanted) in [
        ("{}", "Deny"),
        ("{selector: ''}", "Deny"),
        ("{selector: 'all()'}", "Deny from[all()]"),
        ("{selector: 'has(a)'}", "Deny from[has(a)]"),
        ("{notSelector: 'has(a)'}", "Deny from[not: has(a)]"),
        ("{selector: 'all()', notSelector: 'has(a)'}", "Deny from[!has(a)]"),
        ("{selector: 'has(b)', notSelector: '!has(a)'}", "Deny from[(has(b) && has(a))]"),
        ("{namespaceSelector: 'all()'}", "Deny from[has(projectcalico.org/namespace)]"),
        ("{namespaceSelector: 'global()'}", "Deny from[!has(projectcalico.org/namespace)]"),
        ("{namespaceSelector: \"t == 'x'\"}", "Deny from[pcns.t == \"x\"]"),
        ("{namespaceSelector: 'has(t)', selector: 'has(a)'}", "Deny from[(has(pcns.t) && has(a))]"),
        (
            "{namespaceSelector: 'has(t)', notSelector: 'has(a)'}",
            "Deny from[(has(pcns.t) && !has(a))]",
        ),
        ("{serviceAccounts: {}}", "Deny"),
        (
            "{serviceAccounts: {names: [b, a]}}",
            "Deny from[projectcalico.org/serviceaccount in {\"a\", \"b\"}]",
        ),
        (
            "{serviceAccounts: {names: [a], selector: 'has(x)'}, selector: 'has(y)'}",
            "Deny from[((has(pcsa.x) && projectcalico.org/serviceaccount in {\"a\"}) && has(y))]",
        ),
        ("{serviceAccounts: {selector: 'has(x)'}}", "Deny from[has(pcsa.x)]"),
    ] {
        assert_eq!(ingress("gnp", &format!("{{action: Deny, source: {source}}}")), wanted);
    }
}

#[test]
fn rule_selectors_of_namespaced_policies() {
    let in_n = "projectcalico.org/namespace == \"n\"";
    for (end, wanted) in [
        ("{}", String::new()),
        ("{nets: [10.0.0.0/8]}", " v4 to[10.0.0.0/8]".to_owned()),
        ("{serviceAccounts: {}}", String::new()),
        ("{selector: 'all()'}", format!(" to[{in_n}]")),
        ("{selector: 'has(a)'}", format!(" to[({in_n} && has(a))]")),
        ("{notSelector: 'has(a)'}", format!(" to[({in_n} && !has(a))]")),
        (
            "{selector: 'has(a)', notSelector: 'has(b)'}",
            format!(" to[(({in_n} && has(a)) && !has(b))]"),
        ),
        (
            "{serviceAccounts: {names: [a]}}",
            format!(" to[({in_n} && projectcalico.org/serviceaccount in {{\"a\"}})]"),
        ),
        (
            "{namespaceSelector: 'global()', selector: 'has(a)'}",
            " to[(!has(projectcalico.org/namespace) && has(a))]".to_owned(),
        ),
        (
            "{namespaceSelector: 'all()', selector: 'has(a)'}",
            " to[(has(projectcalico.org/namespace) && has(a))]".to_owned(),
        ),
        (
            "{namespaceSelector: \"projectcalico.org/name == 'm'\"}",
            " to[pcns.projectcalico.org/name == \"m\"]".to_owned(),
        ),
    ] {
        let rule = format!("{{action: Pass, destination: {end}}}");
        assert_eq!(egress("np", &rule), format!("Pass{wanted}"), "{end}");
    }
}

#[test]
fn families() {
    for (rule, wanted) in [
        ("{action: Deny, ipVersion: 4}", "Deny v4"),
        ("{action: Deny, ipVersion: 6}", "Deny v6"),
        ("{action: Deny, protocol: ICMP}", "Deny v4 protocol 1"),
        ("{action: Deny, protocol: ICMPv6}", "Deny v6 protocol 58"),
        ("{action: Deny, protocol: 58}", "Deny protocol 58"),
        ("{action: Deny, protocol: '1'}", "Deny protocol 1"),
        ("{action: Deny, protocol: 1, icmp: {type: 8}}", "Deny v4 protocol 1 icmp 8/None"),
        ("{action: Deny, notProtocol: ICMP}", "Deny !protocol 1"),
        ("{action: Deny, source: {nets: ['fd00::/8']}}", "Deny v6 from[fd00::/8]"),
        ("{action: Deny, source: {notNets: [10.0.0.0/8]}}", "Deny v4 from[!10.0.0.0/8]"),
        ("{action: Deny, destination: {notNets: ['fd00::/8']}}", "Deny v6 to[!fd00::/8]"),
        (
            "{action: Deny, protocol: ICMP, source: {nets: ['fd00::/8']}}",
            "Deny never protocol 1 from[fd00::/8]",
        ),
    ] {
        assert_eq!(ingress("gnp", rule), wanted, "{rule}");
    }
    let never = "{ingress: [{action: Deny, protocol: ICMPv6, source: {nets: [10.0.0.0/8]}}]}";
    let (_, conditions) = only("gnp", "p", never);
    assert!(conditions[0].message.starts_with("spec.ingress[0]: matches nothing"));
}

#[test]
fn protocols_icmp_and_ports() {
    for (rule, wanted) in [
        ("{action: Log, protocol: SCTP}", "Log protocol 132"),
        ("{action: Allow, protocol: UDPLite, notProtocol: 6}", "Allow protocol 136 !protocol 6"),
        (
            "{action: Allow, protocol: ICMP, icmp: {type: 0, code: 0}}",
            "Allow v4 protocol 1 icmp 0/Some(0)",
        ),
        (
            "{action: Allow, protocol: ICMPv6, notICMP: {type: 0}}",
            "Allow v6 protocol 58 !icmp 0/None",
        ),
        (
            "{action: Allow, protocol: TCP, source: {ports: [1]}, \
              destination: {ports: ['80', '8000:8080', web], notPorts: [8001, x]}}",
            "Allow protocol 6 from[1:1] to[80:80 8000:8080 web !8001:8001 !x]",
        ),
        ("{action: Allow, destination: {ports: [web]}}", "Allow to[web]"),
    ] {
        assert_eq!(ingress("gnp", rule), wanted, "{rule}");
    }
}

#[test]
fn policies_for_host_endpoints_are_not_applied() {
    for spec in
        ["{doNotTrack: true, applyOnForward: true}", "{preDNAT: true, applyOnForward: true}"]
    {
        let set = set(&manifest("gnp", "p", spec));
        assert!(set.tiers.iter().all(|tier| tier.policies.is_empty()));
        let [condition] = &set.conditions[..] else { panic!("{:?}", set.conditions) };
        assert_eq!(condition.severity, Severity::Warning);
        assert_eq!(condition.object, "GlobalNetworkPolicy p");
        assert!(condition.message.contains("never for pods"));
    }
    let (policy, conditions) = only("gnp", "p", "{applyOnForward: true}");
    assert_eq!(policy.ingress, Some(vec![]));
    assert!(conditions[0].message.starts_with("spec.applyOnForward"));
}

#[test]
fn conditions_on_requests_are_not_enforced() {
    let spec = "{ingress: [{action: Deny}, {action: Allow, http: {methods: [GET]}}]}";
    let (policy, conditions) = only("np", "n/p", spec);
    assert_eq!(shown(&policy.ingress.unwrap()), "Deny\nAllow");
    assert!(conditions[0].message.starts_with("spec.ingress[1].http: requests are not"));
}

#[test]
fn staged_policies_are_shown_and_never_enforced() {
    for (short, name) in [("snp", "n/p"), ("sgnp", "p"), ("sknp", "n/p")] {
        assert!(only(short, name, "{}").0.staged, "{short}");
        for action in ["Delete", "Learn", "Ignore"] {
            let set = set(&manifest(short, name, &format!("{{stagedAction: {action}}}")));
            assert!(set.tiers.iter().all(|tier| tier.policies.is_empty()));
            assert!(set.conditions[0].message.starts_with("spec.stagedAction"));
        }
    }
    for (short, name) in [("np", "n/p"), ("gnp", "p"), ("knp", "n/p")] {
        assert!(!only(short, name, "{}").0.staged, "{short}");
    }
    let set = set(&[
        manifest("snp", "n/p", "{order: 1, tier: kube-admin}"),
        manifest("sknp", "n/q", "{}"),
        manifest("gnp", "p", "{order: 1000}"),
    ]
    .concat());
    assert_eq!(names(tier_named(&set, "kube-admin")), ["n/p"]);
    assert_eq!(names(tier_named(&set, "default")), ["p", "n/q"]);
}

#[test]
fn kubernetes_types() {
    for (spec, ingress, egress) in [
        ("{}", true, false),
        ("{egress: [{}]}", true, true),
        ("{egress: []}", true, false),
        ("{policyTypes: [Egress]}", false, true),
        ("{policyTypes: [Ingress], egress: [{}]}", true, false),
        ("{policyTypes: [Egress, Ingress]}", true, true),
    ] {
        let (policy, _) = only("knp", "n/p", spec);
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            (ingress, egress),
            "{spec}"
        );
    }
    let (_, conditions) = only("knp", "n/p", "{policyTypes: [Ingress], egress: [{}]}");
    assert_eq!(
        messages(&conditions),
        ["KubernetesNetworkPolicy n/p: spec.egress: the rules have no effect, because \
          spec.policyTypes leaves their direction out; add it or remove them"]
    );
}

#[test]
fn kubernetes_peers() {
    let in_n = "projectcalico.org/namespace == \"n\"";
    let k8s = "projectcalico.org/orchestrator == \"k8s\"";
    for (peers, wanted) in [
        ("[]", "Allow".to_owned()),
        ("[{podSelector: {}}]", format!("Allow from[({in_n} && {k8s})]")),
        (
            "[{podSelector: {matchLabels: {a: x}}}]",
            format!("Allow from[({in_n} && ({k8s} && a == \"x\"))]"),
        ),
        (
            "[{namespaceSelector: {}}]",
            format!("Allow from[(has(projectcalico.org/namespace) && {k8s})]"),
        ),
        (
            "[{namespaceSelector: {matchLabels: {t: x}}, podSelector: {matchLabels: {a: w}}}]",
            format!("Allow from[(pcns.t == \"x\" && ({k8s} && a == \"w\"))]"),
        ),
        (
            "[{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16, 10.2.3.4/16]}}]",
            "Allow v4 from[10.0.0.0/8 !10.1.0.0/16,10.2.0.0/16]".to_owned(),
        ),
        (
            "[{ipBlock: {cidr: '::/0'}}, {podSelector: {}}]",
            format!("Allow v6 from[::/0]\nAllow from[({in_n} && {k8s})]"),
        ),
    ] {
        let spec = format!("{{ingress: [{{from: {peers}}}]}}");
        assert_eq!(rules("knp", "n/p", "ingress", &spec), wanted, "{peers}");
    }
    let spec = "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1}]}]}";
    assert_eq!(rules("knp", "n/p", "egress", spec), "Allow v4 protocol 6 to[10.0.0.0/8 1:1]");
}

#[test]
fn kubernetes_ports() {
    for (ports, wanted) in [
        ("[]", "Allow"),
        ("[{}]", "Allow protocol 6"),
        ("[{protocol: UDP}]", "Allow protocol 17"),
        ("[{port: 80}, {port: web}]", "Allow protocol 6 to[web 80:80]"),
        ("[{port: 80}, {}]", "Allow protocol 6"),
        ("[{}, {port: 80}]", "Allow protocol 6"),
        ("[{port: 80, endPort: 90}, {port: 91}, {port: 85}]", "Allow protocol 6 to[80:91]"),
        ("[{port: 65535}, {port: 1, endPort: 65534}]", "Allow protocol 6 to[1:65535]"),
        ("[{port: 5}, {port: 3}, {port: 5}]", "Allow protocol 6 to[3:3 5:5]"),
        (
            "[{port: 53, protocol: UDP}, {port: 53}, {port: dns, protocol: SCTP}]",
            "Allow protocol 6 to[53:53]\nAllow protocol 17 to[53:53]\nAllow protocol 132 to[dns]",
        ),
    ] {
        let spec = format!("{{ingress: [{{ports: {ports}}}]}}");
        assert_eq!(rules("knp", "n/p", "ingress", &spec), wanted, "{ports}");
    }
    let spec = "{ingress: [{ports: [{port: 1}, {port: 2, protocol: UDP}], \
                from: [{podSelector: {}}, {namespaceSelector: {}}]}, {}]}";
    assert_eq!(rules("knp", "n/p", "ingress", spec).lines().count(), 5);
    assert_eq!(rules("knp", "n/p", "ingress", "{ingress: []}"), "");
}

fn cnp(direction: &str, list: &str) -> (String, Vec<Condition>) {
    let spec =
        format!("{{tier: Admin, priority: 7, subject: {{namespaces: {{}}}}, {direction}: {list}}}");
    let (policy, conditions) = only("cnp", "p", &spec);
    let rules = if direction == "ingress" { policy.ingress } else { policy.egress };
    (rules.map_or_else(|| "none".to_owned(), |rules| shown(&rules)), conditions)
}

#[test]
fn cluster_policies() {
    let k8s = "projectcalico.org/orchestrator == \"k8s\"";
    for (direction, list, wanted) in [
        ("ingress", "[]", "none".to_owned()),
        (
            "ingress",
            "[{action: Accept, from: [{namespaces: {}}]}]",
            "Allow from[has(projectcalico.org/namespace)]".to_owned(),
        ),
        (
            "ingress",
            "[{action: Pass, from: [{pods: {podSelector: {}}}, {namespaces: {matchLabels: {t: x}}}]}]",
            format!(
                "Pass from[(has(projectcalico.org/namespace) && {k8s})]\nPass from[pcns.t == \"x\"]"
            ),
        ),
        (
            "egress",
            "[{action: Deny, to: [{networks: [10.0.0.1/8, '::/0']}]}]",
            "Deny to[10.0.0.0/8,::/0]".to_owned(),
        ),
        (
            "egress",
            "[{action: Deny, to: [{networks: ['fd00::/8']}]}]",
            "Deny v6 to[fd00::/8]".to_owned(),
        ),
        (
            "egress",
            "[{action: Accept, to: [{namespaces: {matchLabels: {t: x}}}], protocols: [\
              {tcp: {destinationPort: {number: 80}}}, {tcp: {destinationPort: {range: {start: 81, end: 90}}}},\
              {udp: {destinationPort: {number: 53}}}, {destinationNamedPort: web}]}]",
            "Allow to[pcns.t == \"x\" web]\nAllow protocol 6 to[pcns.t == \"x\" 80:90]\n\
             Allow protocol 17 to[pcns.t == \"x\" 53:53]"
                .to_owned(),
        ),
    ] {
        let (rules, conditions) = cnp(direction, list);
        assert_eq!(rules, wanted, "{list}");
        assert_eq!(messages(&conditions), [""; 0], "{list}");
    }
    let set = set(&[
        manifest("cnp", "b", "{tier: Admin, priority: 7, subject: {namespaces: {}}}"),
        manifest("cnp", "a", "{tier: Admin, priority: 70, subject: {namespaces: {}}}"),
        manifest("cnp", "c", "{tier: Baseline, priority: 0, subject: {namespaces: {}}}"),
    ]
    .concat());
    assert_eq!(names(tier_named(&set, "kube-admin")), ["b", "a"]);
    assert_eq!(names(tier_named(&set, "kube-baseline")), ["c"]);
}

#[test]
fn unsupported_peers_fail_closed() {
    for (direction, peer) in [
        ("egress", "to: [{networks: [10.0.0.0/8]}, {nodes: {}}]"),
        ("egress", "to: [{networks: [10.0.0.0/8]}, {domainNames: [a.example.org]}]"),
        ("ingress", "from: [{namespaces: {}}, {networks: [10.0.0.0/8]}]"),
    ] {
        let (rules, conditions) = cnp(direction, &format!("[{{action: Accept, {peer}}}]"));
        assert_eq!(rules, "none", "an Accept that matches nothing leaves no rule");
        assert_eq!(conditions[0].severity, Severity::Error);
        assert!(conditions[0].message.contains(&format!("spec.{direction}[0]")));
        for action in ["Deny", "Pass"] {
            let list = format!(
                "[{{action: Accept, {peer}}}, {{action: {action}, {peer}, \
                                protocols: [{{tcp: {{destinationPort: {{number: 1}}}}}}]}}]"
            );
            assert_eq!(cnp(direction, &list).0, "Deny");
        }
    }
}

#[test]
fn services_by_their_slices() {
    let slice = |name: &str, service: &str, rest: &str| {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, \
             namespace: 'n', labels: {{kubernetes.io/service-name: {service}}}}}, {rest}}}\n"
        )
    };
    let set = set(&[
        slice(
            "web-1",
            "web",
            "addressType: IPv4, ports: [{port: 80}, {port: 53, protocol: UDP}, {name: x}], \
             endpoints: [{addresses: [10.0.0.1], conditions: {ready: false}}, {addresses: [10.0.0.2]}]",
        ),
        slice(
            "web-2",
            "web",
            "addressType: IPv6, ports: [{port: null}], endpoints: [{addresses: ['fd00::1']}]",
        ),
        slice("web-3", "web", "addressType: FQDN, ports: [{port: 1}], endpoints: [{addresses: [x]}]"),
        slice("other-1", "other", "addressType: IPv4, ports: [{port: 1}], endpoints: [{addresses: [10.0.0.9]}]"),
        manifest(
            "gnp",
            "p",
            "{egress: [{action: Allow, destination: {services: {name: web, namespace: 'n'}}}], \
              ingress: [{action: Allow, source: {services: {name: gone, namespace: 'n'}}}]}",
        ),
        manifest("np", "n/q", "{egress: [{action: Allow, destination: {services: {name: web}}}]}"),
    ]
    .concat());
    let endpoints = |name: &str| {
        let name = ObjectName { namespace: "n".into(), name: name.into() };
        set.services
            .get(&name)
            .unwrap()
            .iter()
            .map(|e| format!("{} {:?}", e.address, e.port))
            .collect::<Vec<_>>()
    };
    assert_eq!(set.services.len(), 2);
    assert_eq!(
        endpoints("web"),
        [
            "10.0.0.1 Some((6, 80))",
            "10.0.0.1 Some((17, 53))",
            "10.0.0.2 Some((6, 80))",
            "10.0.0.2 Some((17, 53))",
            "fd00::1 None"
        ]
    );
    assert_eq!(endpoints("gone"), [""; 0]);
    assert_eq!(
        messages(&set.conditions),
        [
            "NetworkPolicy n/q: spec.egress[0].destination.services: matches nothing; write the namespace"
        ]
    );
    let default = tier_named(&set, "default");
    let local = default.policies.values().find(|p| p.name.namespace == "n").unwrap();
    assert_eq!(shown(local.egress.as_ref().unwrap()), "Allow to[service web]");
    let global = default.policies.values().find(|p| p.name.namespace.is_empty()).unwrap();
    assert_eq!(shown(global.egress.as_ref().unwrap()), "Allow to[service n/web]");
    assert_eq!(shown(global.ingress.as_ref().unwrap()), "Allow from[service n/gone]");
}

#[test]
fn rules_keep_their_places() {
    let spec = "{ingress: [{action: Log}, {action: Deny, protocol: ICMP, source: {nets: ['::/0']}}, \
                {action: Allow}]}";
    let (policy, _) = only("gnp", "p", spec);
    let actions: Vec<_> = policy.ingress.unwrap().iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [Action::Log, Action::Deny, Action::Allow]);
}

#[test]
fn rules_name_the_one_that_the_user_wrote() {
    let origins = |policy: &Policy| {
        let rules = policy.ingress.iter().chain(&policy.egress).flatten();
        rules.map(|rule| rule.origin).collect::<Vec<_>>()
    };
    let spec = "{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}], \
                ports: [{port: 1}, {port: 2, protocol: UDP}]}, {}, {ports: [{port: x}, {port: 3}]}], \
                egress: [{}, {}]}";
    assert_eq!(origins(&only("knp", "n/p", spec).0), [0, 0, 0, 0, 1, 2, 0, 1]);
    let peer = "from: [{namespaces: {}}, {pods: {podSelector: {}}}]";
    let rules = format!(
        "[{{action: Pass, {peer}}}, {{action: Accept, from: [{{nodes: {{}}}}]}}, \
          {{action: Deny, from: [{{nodes: {{}}}}]}}, {{action: Accept, {peer}}}]"
    );
    let spec =
        format!("{{tier: Admin, priority: 7, subject: {{namespaces: {{}}}}, ingress: {rules}}}");
    assert_eq!(origins(&only("cnp", "p", &spec).0), [0, 0, 2, 3, 3]);
    let spec = "{ingress: [{action: Log}, {action: Deny}], egress: [{action: Deny}]}";
    assert_eq!(origins(&only("gnp", "p", spec).0), [0, 1, 0]);
}

/// A few objects that name each other's tiers and services.
const POOL: &[(&str, &str, &[&str])] = &[
    ("tier", "sec", &["{order: 5}", "{order: 2000000, defaultAction: Pass}"]),
    ("gnp", "a", &["{tier: sec}", "{order: 1}", "{types: [Egress], ingress: [{action: Deny}]}"]),
    ("np", "m/a", &["{tier: sec, order: 3}", "{egress: [{action: Allow}]}"]),
    (
        "gnp",
        "b",
        &["{egress: [{action: Deny, destination: {services: {name: s, namespace: m}}}]}", "{}"],
    ),
    ("knp", "m/a", &["{}", "{egress: [{}]}"]),
    ("cnp", "c", &["{tier: Admin, priority: 1, subject: {namespaces: {}}}"]),
    ("snp", "m/d", &["{}", "{stagedAction: Learn}"]),
];

const SLICES: &[&str] = &["10.0.0.1", "10.0.0.2"];

proptest::proptest! {
    #[test]
    fn edits_lead_where_a_fresh_conversion_does(
        edits in proptest::collection::vec((0..=POOL.len(), 0..4_usize), 1..40)
    ) {
        let mut local = ClusterObjects::default();
        let mut converter = Converter::default();
        for (place, version) in edits {
            let text = match POOL.get(place) {
                Some((short, name, versions)) => {
                    manifest(short, name, versions[version % versions.len()])
                }
                None => format!(
                    "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s-1, \
                     namespace: m, labels: {{kubernetes.io/service-name: s}}}}, addressType: IPv4, \
                     ports: [{{port: 80}}], endpoints: [{{addresses: [{}]}}]}}",
                    SLICES[version % SLICES.len()]
                ),
            };
            let before = converter.policy_set(&local);
            proptest::prop_assert!(Arc::ptr_eq(&before, &converter.policy_set(&local)));
            for (key, object) in &cluster(&text).policy.0 {
                if version == 3 {
                    local.policy.0.remove(key);
                } else {
                    local.policy.0.insert(key.clone(), object.clone());
                }
            }
            proptest::prop_assert_eq!(&*converter.policy_set(&local), &policy_set(&local));
        }
    }
}

#[test]
fn unchanged_policies_stay_the_same_allocation() {
    let mut local = cluster(&[manifest("gnp", "a", "{}"), manifest("gnp", "b", "{}")].concat());
    let mut converter = Converter::default();
    let before = converter.policy_set(&local);
    let edited = cluster(&manifest("gnp", "b", "{order: 1}")).policy.0;
    local.policy.0.extend(edited.iter().map(|(key, object)| (key.clone(), object.clone())));
    let after = converter.policy_set(&local);
    let policy = |set: &PolicySet, at: usize| place(tier_named(set, "default"), at).clone();
    assert!(Arc::ptr_eq(&policy(&before, 0), &policy(&after, 1)));
    assert_eq!(policy(&after, 0).name.name, "b");
}
