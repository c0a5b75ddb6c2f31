//! Single cases with a name: what once went wrong, and what is easy to get
//! wrong. Product and reference must both decide as written.

use serde_json::Value;
use tieline::policy::explain::Explainer;
use tieline_tests::reference::{Clusters, Packet, Reference};

use super::{Sources, compare};

/// Every case's pods: `prod/web`, `prod/db`, `dev/web` and, in cluster b,
/// `prod/far`; the first two and the last also with IPv6.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: prod, labels: {team: x}}}
{apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {team: yy}}}
{apiVersion: v1, kind: ServiceAccount, metadata: {name: api, namespace: prod, labels: {role: r}}}
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: prod, labels: {app: web}}, spec: {nodeName: n1, serviceAccountName: api}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: prod, labels: {app: db}}, spec: {nodeName: n2, containers: [{ports: [{name: sql, containerPort: 5432}, {name: sql, containerPort: 5433}, {name: dns, protocol: UDP, containerPort: 53}]}]}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: dev, labels: {app: web, pcns.team: x, projectcalico.org/namespace: prod}}, spec: {nodeName: n1}, status: {podIP: 10.0.0.3}}
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: prod, labels: {app: web}}, spec: {nodeName: n1}, status: {phase: Succeeded, podIP: 10.0.0.9}}
";

const REMOTE: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: prod, labels: {team: z}}}
{apiVersion: v1, kind: Pod, metadata: {name: far, namespace: prod, labels: {app: far}}, spec: {nodeName: r1}, status: {podIPs: [{ip: 10.9.0.1}, {ip: 'fd09::1'}]}}
";

const SETS: &str = "
{apiVersion: projectcalico.org/v3, kind: NetworkSet, metadata: {name: own, namespace: prod, labels: {set: own}}, spec: {nets: [203.0.113.0/25]}}
{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: all, labels: {set: all}}, spec: {nets: [203.0.113.128/25, 192.0.2.7]}}
{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: h, labels: {set: host}}, spec: {node: n1, expectedIPs: [172.16.0.1], ports: [{name: ssh, protocol: TCP, port: 22}]}}
";

fn objects(text: &str) -> Vec<Value> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| serde_saphyr::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

/// A manifest of a policy.
fn policy(kind: &str, name: &str, spec: &str) -> String {
    let api = match kind {
        "KubernetesNetworkPolicy" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        _ => "projectcalico.org/v3",
    };
    let kind = kind.strip_prefix("Kubernetes").unwrap_or(kind);
    let meta = match name.split_once('/') {
        Some((namespace, name)) => format!("{{name: {name}, namespace: {namespace}}}"),
        None => format!("{{name: {name}}}"),
    };
    format!("{{apiVersion: {api}, kind: {kind}, metadata: {meta}, spec: {spec}}}\n")
}

/// A packet as `10.0.0.1 > 10.0.0.2 tcp 80`.
fn packet(text: &str) -> Packet {
    let words: Vec<&str> = text.split(' ').collect();
    let &[from, ">", to, protocol, number] = &words[..] else { panic!("{text}") };
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "icmpv6" => 58,
        other => other.parse().expect("a protocol"),
    };
    let number: u16 = number.parse().expect("a port or a type");
    let address = |text: &str| text.parse().expect("an address");
    let (source_port, icmp) = (40_000, (number as u8, 0));
    Packet { from: address(from), to: address(to), protocol, source_port, port: number, icmp }
}

/// What is said of packets: each line is a packet and, after a colon, what the
/// source's and the destination's policy decide: `+`, `-`, or `.` for no local
/// pod.
#[track_caller]
fn case(manifests: &[String], expected: &[&str]) {
    let local = objects(&[CLUSTER, &manifests.concat()].concat());
    let clusters = Clusters { local, remotes: [("b".to_owned(), objects(REMOTE))].into() };
    let reference = Reference::new(&clusters);
    for stored in [false, true] {
        let derived = Sources::default().derive(&clusters, &|_| stored).expect("good manifests");
        let mut explainer = Explainer::new(&derived).brief();
        for line in expected {
            let (text, wanted) = line.split_once(": ").expect("a colon");
            let sides = compare(&mut explainer, &reference, &packet(text));
            let sides = sides.unwrap_or_else(|error| panic!("{text}: {error}"));
            let sign = |side: &Option<(bool, _)>| match side {
                None => '.',
                Some((true, _)) => '+',
                Some((false, _)) => '-',
            };
            let found: String = sides.iter().map(sign).collect();
            assert_eq!(found, wanted, "{text}, {sides:?}");
        }
    }
}

/// One global policy that lets through to `prod/web` what its rule matches.
#[track_caller]
fn ingress(rule: &str, expected: &[&str]) {
    let spec = format!("{{selector: \"app == 'web'\", ingress: [{rule}]}}");
    case(&[SETS.to_owned(), policy("GlobalNetworkPolicy", "p", &spec)], expected);
}

/// The same in namespace prod.
#[track_caller]
fn ingress_in_prod(rule: &str, expected: &[&str]) {
    let spec = format!("{{selector: \"app == 'web'\", ingress: [{rule}]}}");
    case(&[SETS.to_owned(), policy("NetworkPolicy", "prod/p", &spec)], expected);
}

#[test]
fn a_policy_without_anything_denies_ingress_alone() {
    case(
        &[policy("NetworkPolicy", "prod/p", "{}")],
        &[
            "10.0.0.1 > 10.0.0.2 tcp 80: +-",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
            "10.0.0.1 > 10.0.0.3 tcp 80: ++",
        ],
    );
    case(
        &[policy("NetworkPolicy", "prod/p", "{egress: [{action: Allow}]}")],
        &["10.0.0.1 > 10.0.0.2 tcp 80: ++"],
    );
    case(
        &[policy("NetworkPolicy", "prod/p", "{types: [Egress]}")],
        &["10.0.0.1 > 10.0.0.2 tcp 80: -+"],
    );
    let kubernetes = |spec| [policy("KubernetesNetworkPolicy", "prod/p", spec)];
    case(&kubernetes("{}"), &["10.0.0.1 > 10.0.0.2 tcp 80: +-"]);
    case(&kubernetes("{podSelector: {}, egress: [{}]}"), &["10.0.0.1 > 10.0.0.2 tcp 80: +-"]);
    case(&kubernetes("{policyTypes: [Egress]}"), &["10.0.0.1 > 10.0.0.2 tcp 80: -+"]);
}

#[test]
fn log_decides_nothing_and_still_the_tier_ends() {
    ingress("{action: Log}", &["10.0.0.2 > 10.0.0.1 tcp 80: +-"]);
    ingress("{action: Log}, {action: Allow}", &["10.0.0.2 > 10.0.0.1 tcp 80: ++"]);
}

#[test]
fn staged_policies_and_those_for_hosts_are_not_there() {
    case(
        &[
            policy("StagedGlobalNetworkPolicy", "a", "{ingress: [{action: Deny}]}"),
            policy("StagedNetworkPolicy", "prod/b", "{}"),
            policy("StagedKubernetesNetworkPolicy", "prod/c", "{podSelector: {}}"),
            policy("GlobalNetworkPolicy", "d", "{doNotTrack: true, applyOnForward: true}"),
        ],
        &["10.0.0.2 > 10.0.0.1 tcp 80: ++"],
    );
}

#[test]
fn a_pass_goes_to_the_next_tier_and_at_last_to_the_profile() {
    let pass = |name, tier| {
        policy(
            "GlobalNetworkPolicy",
            name,
            &format!("{{tier: {tier}, ingress: [{{action: Pass}}]}}"),
        )
    };
    let baseline = policy(
        "ClusterNetworkPolicy",
        "c",
        "{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: yy}}}]}]}",
    );
    case(&[pass("p", "default")], &["10.0.0.2 > 10.0.0.1 tcp 80: ++"]);
    case(
        &[pass("p", "default"), baseline],
        &["10.0.0.2 > 10.0.0.1 tcp 80: ++", "10.0.0.3 > 10.0.0.1 tcp 80: +-"],
    );
    // A tier that is not there counts last and denies.
    let ghost = policy(
        "GlobalNetworkPolicy",
        "g",
        "{tier: ghost, ingress: [{action: Allow, protocol: TCP}]}",
    );
    case(
        &[pass("p", "default"), ghost],
        &["10.0.0.2 > 10.0.0.1 tcp 80: ++", "10.0.0.2 > 10.0.0.1 udp 80: +-"],
    );
}

#[test]
fn equal_orders_are_decided_by_one_text() {
    let one = |kind, name, action| {
        policy(kind, name, &format!("{{order: 5, ingress: [{{action: {action}}}]}}"))
    };
    let global = |name, action| one("GlobalNetworkPolicy", name, action);
    for (first, second) in [("web-x", "web"), ("web.y", "web"), ("web", "web0"), ("a", "b")] {
        case(
            &[global(second, "Deny"), global(first, "Allow")],
            &["10.0.0.2 > 10.0.0.1 tcp 80: ++"],
        );
        case(
            &[global(first, "Deny"), global(second, "Allow")],
            &["10.0.0.2 > 10.0.0.1 tcp 80: +-"],
        );
    }
    let own = one("NetworkPolicy", "prod/web", "Deny");
    case(&[own, global("web", "Allow")], &["10.0.0.2 > 10.0.0.1 tcp 80: ++"]);
    // Kubernetes' policies have order 1000; a missing one is last.
    let kubernetes = policy("KubernetesNetworkPolicy", "prod/z", "{ingress: [{}]}");
    let last = policy("GlobalNetworkPolicy", "a", "{ingress: [{action: Deny}]}");
    case(&[kubernetes, last], &["10.0.0.2 > 10.0.0.1 tcp 80: ++"]);
}

#[test]
fn all_is_what_is_known() {
    let unknown = "198.51.100.1 > 10.0.0.1 tcp 80";
    ingress(
        "{action: Allow, source: {selector: 'all()'}}",
        &[
            &format!("{unknown}: .-"),
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "10.9.0.1 > 10.0.0.1 tcp 80: .+",
            "203.0.113.1 > 10.0.0.1 tcp 80: .+",
            "172.16.0.1 > 10.0.0.1 tcp 80: .+",
            "10.0.0.9 > 10.0.0.1 tcp 80: .-",
        ],
    );
    ingress("{action: Allow}", &[&format!("{unknown}: .+")]);
    ingress("{action: Allow, source: {selector: ' '}}", &[&format!("{unknown}: .-")]);
}

#[test]
fn a_not_selector_alone_is_about_every_address_or_those_of_the_namespace() {
    let rule = "{action: Allow, source: {notSelector: \"app == 'db'\"}}";
    ingress(
        rule,
        &[
            "198.51.100.1 > 10.0.0.1 tcp 80: .+",
            "10.0.0.2 > 10.0.0.1 tcp 80: +-",
            "10.0.0.3 > 10.0.0.1 tcp 80: ++",
        ],
    );
    ingress_in_prod(
        rule,
        &[
            "198.51.100.1 > 10.0.0.1 tcp 80: .-",
            "10.0.0.2 > 10.0.0.1 tcp 80: +-",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
            "10.9.0.1 > 10.0.0.1 tcp 80: .+",
            "203.0.113.1 > 10.0.0.1 tcp 80: .+",
        ],
    );
    ingress(
        "{action: Allow, source: {selector: 'has(app)', notSelector: \"app == 'db'\"}}",
        &["198.51.100.1 > 10.0.0.1 tcp 80: .-", "10.0.0.3 > 10.0.0.1 tcp 80: ++"],
    );
}

#[test]
fn namespace_selectors_tell_what_is_in_a_namespace() {
    let all = [
        "10.0.0.3 > 10.0.0.1 tcp 80: ++",
        "203.0.113.1 > 10.0.0.1 tcp 80: .+",
        "203.0.113.200 > 10.0.0.1 tcp 80: .-",
        "172.16.0.1 > 10.0.0.1 tcp 80: .-",
    ];
    let global = [
        "10.0.0.3 > 10.0.0.1 tcp 80: +-",
        "203.0.113.1 > 10.0.0.1 tcp 80: .-",
        "203.0.113.200 > 10.0.0.1 tcp 80: .+",
        "172.16.0.1 > 10.0.0.1 tcp 80: .+",
        "198.51.100.1 > 10.0.0.1 tcp 80: .-",
    ];
    for of in [ingress, ingress_in_prod] {
        of("{action: Allow, source: {namespaceSelector: 'all()'}}", &all);
        of("{action: Allow, source: {namespaceSelector: 'global()'}}", &global);
    }
    // A pod can't say of itself that it is elsewhere.
    ingress(
        "{action: Allow, source: {namespaceSelector: \"team == 'x'\"}}",
        &[
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
            "10.9.0.1 > 10.0.0.1 tcp 80: .-",
        ],
    );
    ingress(
        "{action: Allow, source: {namespaceSelector: \"projectcalico.org/name == 'prod'\"}}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: ++", "10.9.0.1 > 10.0.0.1 tcp 80: .+"],
    );
    ingress(
        "{action: Allow, source: {namespaceSelector: '!has(team)'}}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "203.0.113.200 > 10.0.0.1 tcp 80: .+"],
    );
}

#[test]
fn a_namespaced_rule_sees_its_namespace_in_every_cluster() {
    ingress_in_prod(
        "{action: Allow, source: {selector: 'all()'}}",
        &[
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
            "10.9.0.1 > 10.0.0.1 tcp 80: .+",
            "203.0.113.1 > 10.0.0.1 tcp 80: .+",
            "203.0.113.200 > 10.0.0.1 tcp 80: .-",
        ],
    );
    ingress_in_prod(
        "{action: Allow, source: {nets: [198.51.100.0/24]}}",
        &["198.51.100.1 > 10.0.0.1 tcp 80: .+"],
    );
}

#[test]
fn what_is_stored_without_types_counts_both_ways() {
    let stored = |spec: &str| {
        policy("NetworkPolicy", "prod/p", spec)
            .replace("projectcalico.org/v3", "crd.projectcalico.org/v1")
    };
    let denied = ["10.0.0.1 > 10.0.0.3 tcp 80: -+", "10.0.0.3 > 10.0.0.1 tcp 80: +-"];
    case(&[stored("{}")], &denied);
    case(&[stored("{}").replace(", spec: {}", "")], &denied);
    case(&[stored("{ingress: [{action: Allow}]}")], &["10.0.0.1 > 10.0.0.2 tcp 80: -+"]);
    case(
        &[stored("{types: [Ingress]}")],
        &["10.0.0.1 > 10.0.0.3 tcp 80: ++", "10.0.0.3 > 10.0.0.1 tcp 80: +-"],
    );
    let host = "{preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]}";
    let host = policy("GlobalNetworkPolicy", "p", host)
        .replace("projectcalico.org/v3", "crd.projectcalico.org/v1");
    case(&[host], &["10.0.0.1 > 10.0.0.3 tcp 80: ++"]);
}

/// Without its Namespace a pod has no profile that could allow.
#[test]
fn a_namespace_that_is_not_there_denies() {
    let pod = |namespace: &str, last: u8| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: {namespace}}}, \
             spec: {{nodeName: n1}}, status: {{podIP: 10.0.0.{last}}}}}\n"
        )
    };
    let to_lost = "{selector: \"projectcalico.org/namespace == 'lost'\", ingress: \
                   [{action: Allow, protocol: TCP, destination: {ports: [80]}}, {action: Pass}]}";
    case(
        &[pod("lost", 4), policy("GlobalNetworkPolicy", "p", to_lost)],
        &[
            "10.0.0.3 > 10.0.0.4 tcp 80: ++",
            "10.0.0.3 > 10.0.0.4 tcp 81: +-",
            "10.0.0.4 > 10.0.0.3 tcp 80: -+",
            "10.0.0.1 > 10.0.0.3 tcp 80: ++",
        ],
    );
}

/// A host endpoint has the labels of its profiles.
#[test]
fn profiles_of_host_endpoints() {
    let host = "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: p}, \
                spec: {node: n1, expectedIPs: [172.16.0.2], profiles: [kns.prod, ksa.prod.api]}}\n";
    for source in ["namespaceSelector: \"team == 'x'\"", "serviceAccounts: {selector: has(role)}"] {
        let spec = format!(
            "{{selector: \"app == 'web'\", ingress: [{{action: Allow, source: {{{source}}}}}]}}"
        );
        case(
            &[SETS.to_owned(), host.to_owned(), policy("GlobalNetworkPolicy", "p", &spec)],
            &["172.16.0.2 > 10.0.0.1 tcp 80: .+", "172.16.0.1 > 10.0.0.1 tcp 80: .-"],
        );
    }
}

#[test]
fn service_accounts() {
    ingress(
        "{action: Allow, source: {serviceAccounts: {names: [api]}}}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "10.0.0.1 > 10.0.0.3 tcp 80: ++"],
    );
    ingress(
        "{action: Allow, source: {serviceAccounts: {selector: \"role == 'r'\"}}}",
        &["10.0.0.1 > 10.0.0.3 tcp 80: ++"],
    );
    let spec = "{serviceAccountSelector: 'has(role)'}";
    case(
        &[policy("NetworkPolicy", "prod/p", spec)],
        &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "10.0.0.1 > 10.0.0.2 tcp 80: ++"],
    );
    // Of the pods only prod/web has one.
    for spec in [
        "{serviceAccountSelector: 'all()'}",
        "{selector: 'all()', serviceAccountSelector: '!has(other)'}",
    ] {
        case(
            &[policy("GlobalNetworkPolicy", "p", spec)],
            &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "10.0.0.1 > 10.0.0.3 tcp 80: ++"],
        );
    }
    let spec = "{serviceAccountSelector: '!has(other)'}";
    case(&[policy("GlobalNetworkPolicy", "p", spec)], &["10.0.0.1 > 10.0.0.3 tcp 80: +-"]);
}

#[test]
fn named_ports_are_the_destinations_own() {
    let to_db = |rule: &str| {
        let spec = format!("{{selector: \"app == 'web'\", egress: [{rule}]}}");
        [SETS.to_owned(), policy("GlobalNetworkPolicy", "p", &spec)]
    };
    case(
        &to_db("{action: Allow, destination: {ports: [sql, dns]}}"),
        &[
            "10.0.0.1 > 10.0.0.2 tcp 5432: ++",
            "10.0.0.1 > 10.0.0.2 tcp 5433: ++",
            "10.0.0.1 > 10.0.0.2 udp 53: ++",
            "10.0.0.1 > 10.0.0.2 tcp 53: -+",
            "10.0.0.1 > 198.51.100.1 tcp 5432: -.",
            "10.0.0.1 > 10.0.0.2 icmp 8: -+",
        ],
    );
    case(
        &to_db("{action: Allow, protocol: UDP, destination: {ports: [sql, dns, 99]}}"),
        &[
            "10.0.0.1 > 10.0.0.2 tcp 5432: -+",
            "10.0.0.1 > 10.0.0.2 udp 53: ++",
            "10.0.0.1 > 10.0.0.2 udp 99: ++",
        ],
    );
    case(
        &to_db("{action: Allow, destination: {notPorts: [sql]}}"),
        &[
            "10.0.0.1 > 10.0.0.2 tcp 5432: -+",
            "10.0.0.1 > 10.0.0.2 tcp 80: ++",
            "10.0.0.1 > 10.0.0.2 icmp 8: ++",
        ],
    );
    case(
        &to_db("{action: Allow, destination: {ports: [ssh]}}"),
        &["10.0.0.1 > 172.16.0.1 tcp 22: +."],
    );
}

#[test]
fn icmp_types_and_protocols() {
    ingress(
        "{action: Allow, protocol: ICMP, icmp: {type: 0, code: 0}}",
        &[
            "10.0.0.2 > 10.0.0.1 icmp 0: ++",
            "10.0.0.2 > 10.0.0.1 icmp 8: +-",
            "fd00::2 > fd00::1 icmpv6 0: +-",
        ],
    );
    ingress(
        "{action: Allow, protocol: ICMPv6, notICMP: {type: 128}}",
        &[
            "fd00::2 > fd00::1 icmpv6 128: +-",
            "fd00::2 > fd00::1 icmpv6 1: ++",
            "10.0.0.2 > 10.0.0.1 icmp 8: +-",
        ],
    );
    ingress(
        "{action: Allow, notProtocol: TCP}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "10.0.0.2 > 10.0.0.1 47 0: ++"],
    );
}

#[test]
fn a_list_of_one_family_makes_the_rule_one_of_it() {
    ingress(
        "{action: Allow, source: {notNets: [192.0.2.0/24]}}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: ++", "fd00::2 > fd00::1 tcp 80: +-"],
    );
    ingress(
        "{action: Deny, source: {notNets: [192.0.2.0/24]}}, {action: Allow}",
        &["10.0.0.2 > 10.0.0.1 tcp 80: +-", "fd00::2 > fd00::1 tcp 80: ++"],
    );
    let networks = "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.2/32, 'fd00::2/128']}]}]}";
    case(
        &[policy("ClusterNetworkPolicy", "c", networks)],
        &[
            "10.0.0.1 > 10.0.0.2 tcp 80: -+",
            "fd00::1 > fd00::2 tcp 80: -+",
            "10.0.0.1 > 10.0.0.3 tcp 80: ++",
        ],
    );
}

#[test]
fn services_are_their_slices() {
    let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s-1, namespace: prod, labels: {kubernetes.io/service-name: s}}, addressType: IPv4, ports: [{port: 5432}, {protocol: UDP}], endpoints: [{addresses: [10.0.0.2], conditions: {ready: false}}]}\n";
    let to = |namespace: &str| {
        let rule = format!(
            "{{egress: [{{action: Allow, destination: {{services: {{name: s{namespace}}}}}}}]}}"
        );
        [slice.to_owned(), policy("NetworkPolicy", "prod/p", &rule)]
    };
    case(
        &to(", namespace: prod"),
        &[
            "10.0.0.1 > 10.0.0.2 tcp 5432: ++",
            "10.0.0.1 > 10.0.0.2 tcp 80: -+",
            "10.0.0.1 > 10.0.0.2 udp 5432: -+",
            "10.0.0.1 > 10.0.0.2 icmp 8: -+",
        ],
    );
    // Nothing fills the policy's namespace in.
    case(&to(""), &["10.0.0.1 > 10.0.0.2 tcp 5432: -+"]);
    let from = "{ingress: [{action: Allow, source: {services: {name: s, namespace: prod}}}]}";
    case(
        &[slice.to_owned(), policy("GlobalNetworkPolicy", "p", from)],
        &[
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "10.0.0.2 > 10.0.0.1 icmp 8: ++",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
        ],
    );
}

#[test]
fn kubernetes_peers_are_pods_and_blocks() {
    let from = |peers: &str| {
        let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{peers}]}}]}}");
        [SETS.to_owned(), policy("KubernetesNetworkPolicy", "prod/p", &spec)]
    };
    case(
        &from("{podSelector: {}}"),
        &[
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
            "10.9.0.1 > 10.0.0.1 tcp 80: .+",
            "203.0.113.1 > 10.0.0.1 tcp 80: .-",
        ],
    );
    case(
        &from("{namespaceSelector: {}}"),
        &["10.0.0.3 > 10.0.0.1 tcp 80: ++", "203.0.113.1 > 10.0.0.1 tcp 80: .-"],
    );
    case(
        &from("{ipBlock: {cidr: 10.0.0.9/24, except: [10.0.0.2/32]}}"),
        &[
            "10.0.0.3 > 10.0.0.1 tcp 80: ++",
            "10.0.0.2 > 10.0.0.1 tcp 80: +-",
            "fd00::2 > fd00::1 tcp 80: +-",
        ],
    );
    let ports = "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 82}, {protocol: UDP}, {port: sql}]}]}";
    case(
        &[policy("KubernetesNetworkPolicy", "prod/p", ports)],
        &[
            "10.0.0.3 > 10.0.0.1 tcp 82: ++",
            "10.0.0.3 > 10.0.0.1 tcp 83: +-",
            "10.0.0.3 > 10.0.0.1 udp 9: ++",
            "10.0.0.3 > 10.0.0.2 tcp 5433: ++",
            "10.0.0.3 > 10.0.0.1 tcp 5433: +-",
            "10.0.0.3 > 10.0.0.1 icmp 8: +-",
        ],
    );
}

#[test]
fn a_named_port_is_that_of_an_owner_that_the_peer_chooses() {
    // The host endpoint has the port, but it is no pod.
    let host = "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: h}, spec: {node: n2, expectedIPs: [10.0.0.2], ports: [{name: ssh, protocol: TCP, port: 22}]}}\n";
    let to = |peers: &str| {
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{to: [{peers}], ports: [{{port: ssh}}, {{port: sql}}]}}]}}"
        );
        [host.to_owned(), policy("KubernetesNetworkPolicy", "prod/p", &spec)]
    };
    case(
        &to("{podSelector: {}}"),
        &["10.0.0.1 > 10.0.0.2 tcp 22: -+", "10.0.0.1 > 10.0.0.2 tcp 5432: ++"],
    );
    case(&to("{ipBlock: {cidr: 10.0.0.0/24}}"), &["10.0.0.1 > 10.0.0.2 tcp 22: ++"]);
}

#[test]
fn cluster_network_policies() {
    let rule = |action: &str, peer: &str| {
        let spec = format!(
            "{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{{action: {action}, from: [{peer}]}}]}}"
        );
        let deny = policy("KubernetesNetworkPolicy", "prod/p", "{podSelector: {}}");
        [SETS.to_owned(), policy("ClusterNetworkPolicy", "c", &spec), deny]
    };
    // A network set is in its namespace; it is no pod.
    case(
        &rule("Accept", "{namespaces: {matchLabels: {team: x}}}"),
        &[
            "10.0.0.2 > 10.0.0.1 tcp 80: ++",
            "203.0.113.1 > 10.0.0.1 tcp 80: .+",
            "10.0.0.3 > 10.0.0.1 tcp 80: +-",
        ],
    );
    case(
        &rule("Accept", "{pods: {podSelector: {}}}"),
        &["10.0.0.3 > 10.0.0.1 tcp 80: ++", "203.0.113.1 > 10.0.0.1 tcp 80: .-"],
    );
    // What can't be told lets nothing through.
    case(&rule("Accept", "{namespaces: {}}, {nodes: {}}"), &["10.0.0.2 > 10.0.0.1 tcp 80: +-"]);
    for action in ["Deny", "Pass"] {
        let rules = rule(action, "{nodes: {}}");
        case(&rules[..2], &["198.51.100.1 > 10.0.0.1 47 0: .-", "10.0.0.2 > 10.0.0.3 tcp 1: +-"]);
    }
}
