use serde_json::{Value, json};

use super::*;

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A kind by the short name that the tables use.
fn kind(short: &str) -> PolicyKind {
    match short {
        "tier" => PolicyKind::Tier,
        "np" => PolicyKind::NetworkPolicy,
        "gnp" => PolicyKind::GlobalNetworkPolicy,
        "snp" => PolicyKind::StagedNetworkPolicy,
        "sgnp" => PolicyKind::StagedGlobalNetworkPolicy,
        "sknp" => PolicyKind::StagedKubernetesNetworkPolicy,
        "ns" => PolicyKind::NetworkSet,
        "gns" => PolicyKind::GlobalNetworkSet,
        "knp" => PolicyKind::KubernetesNetworkPolicy,
        "cnp" => PolicyKind::ClusterNetworkPolicy,
        "slice" => PolicyKind::EndpointSlice,
        other => panic!("no kind {other}"),
    }
}

/// An object of the kind, otherwise good, with this `spec`.
fn with_spec(short: &str, spec: &str) -> Value {
    let kind = kind(short);
    let namespace = if kind.namespaced() { json!("prod") } else { Value::Null };
    json!({
        "apiVersion": kind.api_versions()[0],
        "kind": kind.kind(),
        "metadata": {"name": "p", "namespace": namespace},
        "spec": yaml(spec),
    })
}

/// The `spec` of a Calico policy, otherwise good, with this rule.
fn with_rule(short: &str, direction: &str, rule: &str) -> Value {
    with_spec(short, &format!("{{{direction}: [{rule}]}}"))
}

fn refused(short: &str, object: &Value) -> ApiError {
    match parse(kind(short), object) {
        Err(error) => error,
        Ok(read) => panic!("{object} was read as {read:?}"),
    }
}

fn read(short: &str, object: &Value) -> PolicyObject {
    match parse(kind(short), object) {
        Ok((_, object)) => object,
        Err(error) => panic!("{object}: {error}"),
    }
}

/// Kind, `spec`, path that the error must name.
const REFUSED_SPECS: &[(&str, &str, &str)] = &[
    // Tiers.
    ("tier", "{order: first}", "spec.order"),
    ("tier", "{order: [1]}", "spec.order"),
    ("tier", "{defaultAction: Allow}", "spec.defaultAction"),
    ("tier", "{defaultAction: Log}", "spec.defaultAction"),
    ("tier", "{defaultAction: deny}", "spec.defaultAction"),
    ("tier", "{defaultAction: true}", "spec.defaultAction"),
    ("tier", "{prio: 1}", "spec.prio"),
    ("tier", "[]", "spec"),
    // Calico's policies as a whole.
    ("np", "null", "spec"),
    ("np", "text", "spec"),
    ("np", "{tier: Prod}", "spec.tier"),
    ("np", "{tier: 'a b'}", "spec.tier"),
    ("np", "{tier: 7}", "spec.tier"),
    ("np", "{order: '10'}", "spec.order"),
    ("np", "{order: true}", "spec.order"),
    ("np", "{selector: 'app = x'}", "spec.selector"),
    ("np", "{selector: \"app == 'x\"}", "spec.selector"),
    ("np", "{selector: \"(app == 'x'\"}", "spec.selector"),
    ("np", "{selector: \"app == 'x' &&\"}", "spec.selector"),
    ("np", "{selector: \"app == x\"}", "spec.selector"),
    ("np", "{selector: \"app in ('x')\"}", "spec.selector"),
    ("np", "{selector: \"app IN {'x'}\"}", "spec.selector"),
    ("np", "{selector: \"all ()\"}", "spec.selector"),
    ("np", "{selector: \"has (x)\"}", "spec.selector"),
    ("np", "{selector: \"has('x')\"}", "spec.selector"),
    ("np", "{selector: \"a == 'x'\\nb == 'y'\"}", "spec.selector"),
    ("np", "{selector: \"a in {,}\"}", "spec.selector"),
    ("np", "{selector: \"a && b\"}", "spec.selector"),
    ("np", "{selector: {app: x}}", "spec.selector"),
    ("np", "{selector: 'global()'}", "spec.selector"),
    ("np", "{selector: 'has(a) || global()'}", "spec.selector"),
    ("np", "{serviceAccountSelector: 'global()'}", "spec.serviceAccountSelector"),
    ("np", "{serviceAccountSelector: 'x'}", "spec.serviceAccountSelector"),
    ("np", "{namespaceSelector: 'all()'}", "spec.namespaceSelector"),
    ("np", "{types: [Ingress, ingress]}", "spec.types[1]"),
    ("np", "{types: [Both]}", "spec.types[0]"),
    ("np", "{types: [Egress, Egress]}", "spec.types[1]"),
    ("np", "{types: Ingress}", "spec.types"),
    ("np", "{policyTypes: [Ingress]}", "spec.policyTypes"),
    ("np", "{podSelector: {}}", "spec.podSelector"),
    ("np", "{Ingress: []}", "spec.Ingress"),
    ("np", "{ingress: {action: Allow}}", "spec.ingress"),
    ("np", "{ingress: [Allow]}", "spec.ingress[0]"),
    ("np", "{ingress: [{action: Allow}, null]}", "spec.ingress[1]"),
    ("np", "{doNotTrack: true, applyOnForward: true}", "spec.applyOnForward"),
    ("np", "{stagedAction: Set}", "spec.stagedAction"),
    ("gnp", "{namespaceSelector: 'global()'}", "spec.namespaceSelector"),
    ("gnp", "{namespaceSelector: \"a == \"}", "spec.namespaceSelector"),
    ("gnp", "{doNotTrack: true, preDNAT: true, applyOnForward: true}", "spec.preDNAT"),
    ("gnp", "{doNotTrack: true}", "spec.applyOnForward"),
    ("gnp", "{preDNAT: true}", "spec.applyOnForward"),
    ("gnp", "{preDNAT: true, applyOnForward: true, types: [Egress]}", "spec.types[0]"),
    ("gnp", "{preDNAT: true, applyOnForward: true, types: [Ingress, Egress]}", "spec.types[1]"),
    ("gnp", "{preDNAT: true, applyOnForward: true, egress: [{action: Deny}]}", "spec.egress"),
    ("gnp", "{doNotTrack: 'yes', applyOnForward: true}", "spec.doNotTrack"),
    ("gnp", "{applyOnForward: 1}", "spec.applyOnForward"),
    ("gnp", "{notSelector: 'has(a)'}", "spec.notSelector"),
    ("snp", "{stagedAction: Apply}", "spec.stagedAction"),
    ("snp", "{stagedAction: Delete, selector: 'all()'}", "spec.stagedAction"),
    ("snp", "{stagedAction: Delete, order: 5}", "spec.stagedAction"),
    ("snp", "{ingress: [{action: Drop}]}", "spec.ingress[0].action"),
    ("sgnp", "{stagedAction: Delete, types: [Ingress]}", "spec.stagedAction"),
    ("sgnp", "{selector: '!'}", "spec.selector"),
    // Network sets.
    ("ns", "{nets: [10.0.0.0/33]}", "spec.nets[0]"),
    ("ns", "{nets: [10.0.0.0/8, host.example]}", "spec.nets[1]"),
    ("ns", "{nets: 10.0.0.0/8}", "spec.nets"),
    ("ns", "{nets: [10]}", "spec.nets[0]"),
    ("ns", "{allowedEgressDomains: [a.example]}", "spec.allowedEgressDomains"),
    ("gns", "{nets: ['fd00::/129']}", "spec.nets[0]"),
    ("gns", "{nets: ['::ffff:10.0.0.1']}", "spec.nets[0]"),
    ("gns", "{nets: ['10.0.0.0/+8']}", "spec.nets[0]"),
    ("gns", "{nets: ['10.0.0/24']}", "spec.nets[0]"),
    ("gns", "{nets: ['']}", "spec.nets[0]"),
    // Kubernetes' NetworkPolicy.
    ("knp", "{podSelector: {matchLabels: {app: [x]}}}", "spec.podSelector.matchLabels[\"app\"]"),
    ("knp", "{podSelector: {matchLabels: {'a b': x}}}", "spec.podSelector.matchLabels[\"a b\"]"),
    ("knp", "{podSelector: {matchLabels: {a: 'x y'}}}", "spec.podSelector.matchLabels[\"a\"]"),
    ("knp", "{podSelector: {matchLabel: {a: x}}}", "spec.podSelector.matchLabel"),
    ("knp", "{podSelector: 'app == \"x\"'}", "spec.podSelector"),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [x]}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [x]}]}}",
        "spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{operator: Exists}]}}",
        "spec.podSelector.matchExpressions[0].key",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: -a, operator: Exists}]}}",
        "spec.podSelector.matchExpressions[0].key",
    ),
    (
        "knp",
        "{podSelector: {matchExpressions: [{key: a, operator: In, values: [x, 'y z']}]}}",
        "spec.podSelector.matchExpressions[0].values[1]",
    ),
    ("knp", "{policyTypes: [ingress]}", "spec.policyTypes[0]"),
    ("knp", "{policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes"),
    ("knp", "{types: [Ingress]}", "spec.types"),
    ("knp", "{ingress: [{to: []}]}", "spec.ingress[0].to"),
    ("knp", "{egress: [{from: []}]}", "spec.egress[0].from"),
    ("knp", "{ingress: [{action: Deny}]}", "spec.ingress[0].action"),
    ("knp", "{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"),
    ("knp", "{ingress: [{from: {podSelector: {}}}]}", "spec.ingress[0].from"),
    ("knp", "{ingress: [{from: [{serviceAccount: a}]}]}", "spec.ingress[0].from[0].serviceAccount"),
    (
        "knp",
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "spec.ingress[0].from[0].ipBlock",
    ),
    (
        "knp",
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}",
        "spec.ingress[0].from[0].ipBlock.cidr",
    ),
    ("knp", "{ingress: [{from: [{ipBlock: {}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr"),
    (
        "knp",
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
    ),
    (
        "knp",
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.0.0.0/8]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[1]",
    ),
    (
        "knp",
        "{egress: [{to: [{ipBlock: {cidr: '::/0', except: [10.0.0.0/8]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
    ),
    ("knp", "{ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port"),
    ("knp", "{ingress: [{ports: [{port: 65536}]}]}", "spec.ingress[0].ports[0].port"),
    ("knp", "{ingress: [{ports: [{port: '80'}]}]}", "spec.ingress[0].ports[0].port"),
    ("knp", "{ingress: [{ports: [{port: 80.5}]}]}", "spec.ingress[0].ports[0].port"),
    ("knp", "{ingress: [{ports: [{port: HTTP}]}]}", "spec.ingress[0].ports[0].port"),
    ("knp", "{ingress: [{ports: [{port: a--b}]}]}", "spec.ingress[0].ports[0].port"),
    (
        "knp",
        "{ingress: [{ports: [{port: a-much-too-long-name}]}]}",
        "spec.ingress[0].ports[0].port",
    ),
    ("knp", "{ingress: [{ports: [{port: 80, endPort: 79}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("knp", "{ingress: [{ports: [{port: web, endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("knp", "{ingress: [{ports: [{endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort"),
    (
        "knp",
        "{ingress: [{ports: [{port: 1, endPort: 70000}]}]}",
        "spec.ingress[0].ports[0].endPort",
    ),
    ("knp", "{ingress: [{ports: [{protocol: ICMP}]}]}", "spec.ingress[0].ports[0].protocol"),
    ("knp", "{ingress: [{ports: [{protocol: tcp}]}]}", "spec.ingress[0].ports[0].protocol"),
    ("knp", "{ingress: [{ports: [80]}]}", "spec.ingress[0].ports[0]"),
    ("sknp", "{stagedAction: Remove}", "spec.stagedAction"),
    ("sknp", "{stagedAction: Delete, podSelector: {matchLabels: {a: b}}}", "spec.stagedAction"),
    ("sknp", "{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"),
    // ClusterNetworkPolicy.
    ("cnp", "null", "spec"),
    ("cnp", "{priority: 1, subject: {namespaces: {}}}", "spec.tier"),
    ("cnp", "{tier: admin, priority: 1, subject: {namespaces: {}}}", "spec.tier"),
    ("cnp", "{tier: Admin, subject: {namespaces: {}}}", "spec.priority"),
    ("cnp", "{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority"),
    ("cnp", "{tier: Admin, priority: -1, subject: {namespaces: {}}}", "spec.priority"),
    ("cnp", "{tier: Admin, priority: 1.5, subject: {namespaces: {}}}", "spec.priority"),
    ("cnp", "{tier: Admin, priority: 1}", "spec.subject"),
    ("cnp", "{tier: Admin, priority: 1, subject: {}}", "spec.subject"),
    (
        "cnp",
        "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}",
        "spec.subject",
    ),
    ("cnp", "{tier: Admin, priority: 1, subject: {pods: {}}}", "spec.subject.pods.podSelector"),
    ("cnp", "{tier: Admin, priority: 1, subject: {nodes: {}}}", "spec.subject.nodes"),
    ("cnp", "{tier: Admin, priority: 1, subject: {namespaces: {}}, order: 1}", "spec.order"),
];

/// Rule of a ClusterNetworkPolicy, direction, path within the rule.
const REFUSED_CLUSTER_RULES: &[(&str, &str, &str)] = &[
    ("ingress", "{from: [{namespaces: {}}]}", ".action"),
    ("ingress", "{action: Allow, from: [{namespaces: {}}]}", ".action"),
    ("ingress", "{action: Log, from: [{namespaces: {}}]}", ".action"),
    ("ingress", "{action: Deny}", ".from"),
    ("ingress", "{action: Deny, from: []}", ".from"),
    ("ingress", "{action: Deny, to: [{namespaces: {}}]}", ".to"),
    ("ingress", "{action: Deny, from: [{}]}", ".from[0]"),
    ("ingress", "{action: Deny, from: [{namespaces: {}, pods: {podSelector: {}}}]}", ".from[0]"),
    ("ingress", "{action: Deny, from: [{namespace: {}}]}", ".from[0].namespace"),
    (
        "ingress",
        "{action: Deny, from: [{pods: {namespaceSelector: {}}}]}",
        ".from[0].pods.podSelector",
    ),
    ("ingress", "{action: Deny, from: [{namespaces: {}}], protocols: []}", ".protocols"),
    ("ingress", "{action: Deny, from: [{namespaces: {}}], protocols: [{}]}", ".protocols[0]"),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}}]}",
        ".protocols[0].tcp",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}], protocols: [{icmp: {}}]}",
        ".protocols[0].icmp",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}",
        ".protocols[0].tcp.destinationPort.number",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {}}}]}",
        ".protocols[0].udp.destinationPort",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}],
          protocols: [{sctp: {destinationPort: {range: {start: 9, end: 9}}}}]}",
        ".protocols[0].sctp.destinationPort.range.end",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}],
          protocols: [{sctp: {destinationPort: {range: {start: 9}}}}]}",
        ".protocols[0].sctp.destinationPort.range.end",
    ),
    (
        "ingress",
        "{action: Deny, from: [{namespaces: {}}],
          protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]}",
        ".protocols[0]",
    ),
    ("egress", "{action: Deny, to: [{networks: []}]}", ".to[0].networks"),
    ("egress", "{action: Deny, to: [{networks: [10.0.0.1]}]}", ".to[0].networks[0]"),
    ("egress", "{action: Deny, to: [{networks: [10.0.0.0/8, x/8]}]}", ".to[0].networks[1]"),
    (
        "egress",
        "{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]}",
        ".protocols[0].destinationNamedPort",
    ),
    (
        "egress",
        "{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: ''}]}",
        ".protocols[0].destinationNamedPort",
    ),
];

/// Rule of a Calico policy, direction, path within the rule.
const REFUSED_RULES: &[(&str, &str, &str)] = &[
    ("ingress", "{}", ".action"),
    ("ingress", "{action: Accept}", ".action"),
    ("ingress", "{action: allow}", ".action"),
    ("ingress", "{action: null}", ".action"),
    ("ingress", "{action: Allow, ipVersion: 5}", ".ipVersion"),
    ("ingress", "{action: Allow, ipVersion: '4'}", ".ipVersion"),
    ("ingress", "{action: Allow, protocol: tcp}", ".protocol"),
    ("ingress", "{action: Allow, protocol: GRE}", ".protocol"),
    ("ingress", "{action: Allow, protocol: 0}", ".protocol"),
    ("ingress", "{action: Allow, protocol: 256}", ".protocol"),
    ("ingress", "{action: Allow, protocol: '0'}", ".protocol"),
    ("ingress", "{action: Allow, protocol: '300'}", ".protocol"),
    ("ingress", "{action: Allow, protocol: '+6'}", ".protocol"),
    ("ingress", "{action: Allow, protocol: 6.5}", ".protocol"),
    ("ingress", "{action: Allow, protocol: [TCP]}", ".protocol"),
    ("ingress", "{action: Allow, notProtocol: udp}", ".notProtocol"),
    ("ingress", "{action: Allow, notProtocol: -1}", ".notProtocol"),
    // ICMP.
    ("ingress", "{action: Allow, icmp: {type: 8}}", ".icmp"),
    ("ingress", "{action: Allow, icmp: {}}", ".icmp"),
    ("ingress", "{action: Allow, protocol: TCP, icmp: {type: 8}}", ".icmp"),
    ("ingress", "{action: Allow, protocol: UDP, notICMP: {type: 8}}", ".notICMP"),
    ("ingress", "{action: Allow, notICMP: {type: 8}}", ".notICMP"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {code: 0}}", ".icmp.code"),
    ("ingress", "{action: Allow, protocol: ICMP, notICMP: {code: 0}}", ".notICMP.code"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {type: 255}}", ".icmp.type"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {type: -1}}", ".icmp.type"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {type: 3, code: 256}}", ".icmp.code"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {type: echo}}", ".icmp.type"),
    ("ingress", "{action: Allow, protocol: ICMP, icmp: {kind: 8}}", ".icmp.kind"),
    ("ingress", "{action: Allow, protocol: ICMP, ipVersion: 6}", ".ipVersion"),
    ("ingress", "{action: Allow, protocol: ICMPv6, ipVersion: 4}", ".ipVersion"),
    ("ingress", "{action: Allow, protocol: 58, ipVersion: 4}", ".ipVersion"),
    ("ingress", "{action: Allow, notProtocol: ICMP, ipVersion: 6}", ".ipVersion"),
    ("ingress", "{action: Allow, notProtocol: ICMPv6, ipVersion: 4}", ".ipVersion"),
    // Networks.
    ("ingress", "{action: Allow, source: {nets: [10.1.0.0/8]}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: [10.0.0.0/8, 10.0.0.1/31]}}", ".source.nets[1]"),
    ("ingress", "{action: Allow, source: {nets: ['fd00::1/64']}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: [10.0.0.0/33]}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: [10.0.0]}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: [010.0.0.1]}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: [any]}}", ".source.nets[0]"),
    ("ingress", "{action: Allow, source: {nets: '10.0.0.0/8'}}", ".source.nets"),
    ("ingress", "{action: Allow, source: {notNets: [0.0.0.0/0]}}", ".source.notNets[0]"),
    ("ingress", "{action: Allow, source: {notNets: ['::/0']}}", ".source.notNets[0]"),
    ("ingress", "{action: Allow, destination: {notNets: [10.0.0.1/8]}}", ".destination.notNets[0]"),
    ("ingress", "{action: Allow, source: {nets: [10.0.0.0/8, 'fd00::/8']}}", ".source.nets[1]"),
    (
        "ingress",
        "{action: Allow, source: {nets: [10.0.0.0/8], notNets: ['fd00::/8']}}",
        ".source.notNets[0]",
    ),
    (
        "ingress",
        "{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {nets: ['fd00::/8']}}",
        ".destination.nets[0]",
    ),
    ("ingress", "{action: Allow, ipVersion: 6, source: {nets: [10.0.0.0/8]}}", ".source.nets[0]"),
    (
        "ingress",
        "{action: Allow, ipVersion: 4, destination: {notNets: ['fd00::/8']}}",
        ".destination.notNets[0]",
    ),
    // Ports.
    ("ingress", "{action: Allow, destination: {ports: [80]}}", ".destination.ports"),
    ("ingress", "{action: Allow, destination: {ports: [web, 80]}}", ".destination.ports"),
    ("ingress", "{action: Allow, source: {notPorts: ['1:2']}}", ".source.notPorts"),
    (
        "ingress",
        "{action: Allow, protocol: ICMP, destination: {ports: [80]}}",
        ".destination.ports",
    ),
    (
        "ingress",
        "{action: Allow, protocol: UDPLite, destination: {ports: [80]}}",
        ".destination.ports",
    ),
    ("ingress", "{action: Allow, protocol: UDPLite, source: {ports: [web]}}", ".source.ports"),
    (
        "ingress",
        "{action: Allow, protocol: 47, destination: {notPorts: [web]}}",
        ".destination.notPorts",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: [0]}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: [65536]}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: [-80]}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: [80.5]}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['0']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['70000']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['90:80']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['0:80']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['1:70000']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['80:']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['a:b']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: ['a b']}}",
        ".destination.ports[0]",
    ),
    (
        "ingress",
        "{action: Allow, protocol: TCP, destination: {ports: [true]}}",
        ".destination.ports[0]",
    ),
    ("ingress", "{action: Allow, protocol: TCP, destination: {ports: 80}}", ".destination.ports"),
    // Selectors.
    ("ingress", "{action: Allow, source: {selector: 'x'}}", ".source.selector"),
    ("ingress", "{action: Allow, source: {selector: 'global()'}}", ".source.selector"),
    ("ingress", "{action: Allow, source: {notSelector: 'global()'}}", ".source.notSelector"),
    ("ingress", "{action: Allow, source: {notSelector: '(('}}", ".source.notSelector"),
    (
        "ingress",
        "{action: Allow, source: {namespaceSelector: 'global() || has(a)'}}",
        ".source.namespaceSelector",
    ),
    (
        "ingress",
        "{action: Allow, source: {namespaceSelector: '!global()'}}",
        ".source.namespaceSelector",
    ),
    ("ingress", "{action: Allow, source: {podSelector: {}}}", ".source.podSelector"),
    ("ingress", "{action: Allow, source: {domains: [a.example]}}", ".source.domains"),
    (
        "ingress",
        "{action: Allow, source: {serviceAccounts: {selector: 'global()'}}}",
        ".source.serviceAccounts.selector",
    ),
    (
        "ingress",
        "{action: Allow, source: {serviceAccounts: {names: ['a b']}}}",
        ".source.serviceAccounts.names[0]",
    ),
    (
        "ingress",
        "{action: Allow, source: {serviceAccounts: {names: api}}}",
        ".source.serviceAccounts.names",
    ),
    (
        "ingress",
        "{action: Allow, source: {serviceAccounts: {name: api}}}",
        ".source.serviceAccounts.name",
    ),
    ("ingress", "{action: Allow, source: {serviceAccounts: [api]}}", ".source.serviceAccounts"),
    // Services.
    (
        "ingress",
        "{action: Allow, destination: {services: {name: a, namespace: b}}}",
        ".destination.services",
    ),
    ("egress", "{action: Allow, source: {services: {name: a, namespace: b}}}", ".source.services"),
    (
        "egress",
        "{action: Allow, destination: {services: {namespace: b}}}",
        ".destination.services.name",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: '', namespace: b}}}",
        ".destination.services.name",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: A, namespace: b}}}",
        ".destination.services.name",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b, port: 80}}}",
        ".destination.services.port",
    ),
    (
        "egress",
        "{action: Allow, protocol: TCP, destination: {services: {name: a, namespace: b}, ports: [80]}}",
        ".destination.ports",
    ),
    (
        "egress",
        "{action: Allow, protocol: TCP, destination: {services: {name: a, namespace: b}, notPorts: [80]}}",
        ".destination.notPorts",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, selector: 'all()'}}",
        ".destination.services",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, notSelector: 'all()'}}",
        ".destination.services",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, namespaceSelector: 'all()'}}",
        ".destination.services",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, nets: [10.0.0.0/8]}}",
        ".destination.services",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, notNets: [10.0.0.0/8]}}",
        ".destination.services",
    ),
    (
        "egress",
        "{action: Allow, destination: {services: {name: a, namespace: b}, serviceAccounts: {names: [x]}}}",
        ".destination.services",
    ),
    // HTTP.
    ("ingress", "{action: Deny, http: {methods: [GET]}}", ".http"),
    ("egress", "{action: Allow, http: {methods: [GET]}}", ".http"),
    ("ingress", "{action: Allow, protocol: UDP, http: {methods: [GET]}}", ".http"),
    ("ingress", "{action: Allow, http: {methods: [GET, GET]}}", ".http.methods[1]"),
    ("ingress", "{action: Allow, http: {paths: [{exact: /a, prefix: /b}]}}", ".http.paths[0]"),
    ("ingress", "{action: Allow, http: {paths: [{}]}}", ".http.paths[0]"),
    ("ingress", "{action: Allow, http: {paths: [{exact: a}]}}", ".http.paths[0].exact"),
    ("ingress", "{action: Allow, http: {paths: [{prefix: '/a?b'}]}}", ".http.paths[0].prefix"),
    ("ingress", "{action: Allow, http: {hosts: [a]}}", ".http.hosts"),
    // Fields that are not there.
    ("ingress", "{action: Allow, from: []}", ".from"),
    ("ingress", "{action: Allow, src: {}}", ".src"),
    ("ingress", "{action: Allow, ports: [80]}", ".ports"),
    ("ingress", "{action: Allow, notIcmp: {type: 8}}", ".notIcmp"),
    ("ingress", "{action: Allow, source: {notnets: []}}", ".source.notnets"),
];

/// Metadata, path.
const REFUSED_METADATA: &[(&str, &str, &str)] = &[
    ("np", "null", "metadata"),
    ("np", "{}", "metadata.name"),
    ("np", "{name: ''}", "metadata.name"),
    ("np", "{name: 7}", "metadata.name"),
    ("np", "{name: Web}", "metadata.name"),
    ("np", "{name: a_b}", "metadata.name"),
    ("np", "{name: -a}", "metadata.name"),
    ("np", "{name: a.}", "metadata.name"),
    ("np", "{name: a.b.c}", "metadata.name"),
    ("np", "{name: a, namespace: A}", "metadata.namespace"),
    ("np", "{name: a, namespace: a.b}", "metadata.namespace"),
    ("np", "{name: a, labels: [x]}", "metadata.labels"),
    ("np", "{name: a, labels: {x: 1}}", "metadata.labels[\"x\"]"),
    ("gnp", "{name: a.b.c}", "metadata.name"),
    ("gnp", "{name: a, namespace: b}", "metadata.namespace"),
    ("snp", "{name: a.b.c}", "metadata.name"),
    ("sgnp", "{name: 'a b'}", "metadata.name"),
    ("tier", "{name: a.b}", "metadata.name"),
    ("gns", "{name: A}", "metadata.name"),
    (
        "gns",
        "{name: a, labels: {projectcalico.org/namespace: x}}",
        "metadata.labels[\"projectcalico.org/namespace\"]",
    ),
    (
        "ns",
        "{name: a, labels: {projectcalico.org/namespace: a}}",
        "metadata.labels[\"projectcalico.org/namespace\"]",
    ),
    ("knp", "{name: A}", "metadata.name"),
    ("cnp", "{name: a/b}", "metadata.name"),
];

#[test]
fn refused_tables() {
    let mut rows = 0;
    let mut check = |short: &str, object: Value, field: &str| {
        let error = refused(short, &object);
        assert_eq!(error.field, field, "{object}: {error}");
        assert!(error.reason.len() < 400, "{error}");
        assert!(!error.reason.ends_with('.'), "{error}");
        rows += 1;
    };
    for (short, spec, field) in REFUSED_SPECS {
        check(short, with_spec(short, spec), field);
    }
    for (direction, rule, field) in REFUSED_RULES {
        for short in ["np", "gnp", "snp"] {
            let object = with_rule(short, direction, &format!("{{action: Pass}}, {rule}"));
            check(short, object, &format!("spec.{direction}[1]{field}"));
        }
    }
    for (direction, rule, field) in REFUSED_CLUSTER_RULES {
        let spec = format!(
            "{{tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, {direction}: [{rule}]}}"
        );
        check("cnp", with_spec("cnp", &spec), &format!("spec.{direction}[0]{field}"));
    }
    for (short, metadata, field) in REFUSED_METADATA {
        let mut object = with_spec(short, "{}");
        object["metadata"] = yaml(metadata);
        check(short, object, field);
    }
    assert!(rows >= 400, "{rows}");
}

/// A good version of what the tables refuse.
fn good(short: &str) -> Value {
    let cluster = "{tier: Admin, priority: 5, subject: {namespaces: {}}}";
    with_spec(short, if short == "cnp" { cluster } else { "{}" })
}

#[test]
fn a_good_version_stays_in_force_when_a_broken_one_follows() {
    use crate::cluster::files::{Content, Loaded, load};
    use crate::state::ClusterId;

    let file = |objects: &[&Value]| {
        let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
        [("policies.json".to_owned(), Content::Bytes(lines.into_bytes()))].into()
    };
    let mut other = good("np");
    other["metadata"]["name"] = json!("other");
    let check = |short: &str, broken: &Value, field: &str| {
        let before = load(&Loaded::new(ClusterId::Local), file(&[&other, &good(short)]));
        assert_eq!(*before.view().conditions, [], "{short}");
        let mut new_other = other.clone();
        new_other["spec"]["order"] = json!(7);
        let after = load(&before, file(&[&new_other, broken]));
        let policies = |loaded: &Loaded| loaded.view().objects.policy.0.clone();
        let name = |name: &str, kind: PolicyKind| {
            let namespace = if kind.namespaced() { "prod" } else { "" };
            (kind, ObjectName { namespace: namespace.into(), name: name.into() })
        };
        let (own, beside) = (name("p", kind(short)), name("other", PolicyKind::NetworkPolicy));
        assert_eq!(policies(&after).get(&own), policies(&before).get(&own), "{broken}");
        assert_ne!(
            policies(&after).get(&beside),
            policies(&before).get(&beside),
            "it is taken over"
        );
        let [condition] = &*after.view().conditions else {
            panic!("{broken}: {:#?}", after.view().conditions);
        };
        let end = "; its last good version stays in force";
        assert!(condition.message.ends_with(end), "{broken}: {}", condition.message);
        assert!(condition.message.contains(field), "{field}: {}", condition.message);
        assert!(condition.object.ends_with(&own.1.to_string()), "{}", condition.object);
        // Without a good version there is nothing to keep.
        let fresh = load(&Loaded::new(ClusterId::Local), file(&[&new_other, broken]));
        assert!(!policies(&fresh).contains_key(&own));
        assert!(fresh.view().conditions[0].message.ends_with("; it is not in force"));
    };
    for (short, spec, field) in REFUSED_SPECS {
        check(short, &with_spec(short, spec), field);
    }
    for (direction, rule, field) in REFUSED_RULES {
        check("gnp", &with_rule("gnp", direction, rule), &format!("spec.{direction}[0]{field}"));
    }
    let mut bombs = [with_spec("np", "{}"), with_spec("np", "{}"), with_spec("knp", "{}")];
    bombs[0]["spec"] = json!({"selector": "(!".repeat(5_000_000)});
    bombs[1]["spec"] = json!({"ingress": vec![json!({"action": "Allow"}); 100_000]});
    bombs[2]["spec"] = json!({"ingress": vec![json!({"from": [{}]}); 100_000]});
    check("np", &bombs[0], "spec.selector");
    check("np", &bombs[1], "spec.ingress");
    check("knp", &bombs[2], "spec.ingress[0].from[0]");
}

#[test]
fn refused_for_its_size() {
    let long = |len: usize| format!("has({})", "a".repeat(len - 5));
    for (short, field, spec) in [
        ("np", "spec.selector", json!({"selector": "x".repeat(10_000_000)})),
        ("np", "spec.selector", json!({"selector": "(".repeat(10_000_000)})),
        ("np", "spec.selector", json!({"selector": "(".repeat(1024)})),
        ("np", "spec.selector", json!({"selector": format!("has(a) || {}", long(1015))})),
        ("np", "spec.ingress", json!({"ingress": vec![json!({"action": "Allow"}); 100_000]})),
        ("gnp", "spec.egress", json!({"egress": vec![json!({"action": "Allow"}); 1025]})),
        (
            "gnp",
            "spec.ingress[0].source.nets",
            json!({"ingress": [{"action": "Deny", "source": {"nets": vec!["10.0.0.1/32"; 257]}}]}),
        ),
        (
            "gnp",
            "spec.ingress[0].source.notNets",
            json!({"ingress": [{"action": "Deny", "source": {"notNets": vec!["10.0.0.1/32"; 257]}}]}),
        ),
        (
            "gnp",
            "spec.ingress[0].source.ports",
            json!({"ingress": [{"action": "Deny", "protocol": "TCP", "source": {"ports": vec![80; 51]}}]}),
        ),
        (
            "gnp",
            "spec.ingress[0].destination.ports[0]",
            json!({"ingress": [{"action": "Deny", "destination": {"ports": ["p".repeat(129)]}}]}),
        ),
        (
            "gnp",
            "spec.ingress[0].http.methods",
            json!({"ingress": [{"action": "Allow", "http": {"methods": vec!["GET"; 21]}}]}),
        ),
        ("gnp", "spec", json!({"x".repeat(100_000): 1})),
    ] {
        let mut object = with_spec(short, "{}");
        object["spec"] = spec;
        let error = refused(short, &object);
        assert_eq!(error.field, field, "{error}");
        assert!(error.to_string().len() < 500, "{} bytes", error.to_string().len());
    }
    for (list, peer) in [("ingress", "from"), ("egress", "to")] {
        let rule = json!({"action": "Deny", peer: [{"namespaces": {}}]});
        let mut object = with_spec("cnp", "{tier: Admin, priority: 1, subject: {namespaces: {}}}");
        object["spec"][list] = json!(vec![rule.clone(); 26]);
        assert_eq!(refused("cnp", &object).field, format!("spec.{list}"));
        object["spec"][list] = json!([rule]);
        object["spec"][list][0][peer] = json!(vec![json!({"namespaces": {}}); 26]);
        assert_eq!(refused("cnp", &object).field, format!("spec.{list}[0].{peer}"));
        object["spec"][list][0][peer] = json!([{"namespaces": {}}]);
        object["spec"][list][0]["name"] = json!("n".repeat(101));
        assert_eq!(refused("cnp", &object).field, format!("spec.{list}[0].name"));
    }
    let mut object = with_spec("tier", "{}");
    object["metadata"]["name"] = json!("a".repeat(64));
    assert_eq!(refused("tier", &object).field, "metadata.name");
    let mut object = with_spec("knp", "{}");
    object["metadata"]["name"] = json!("a".repeat(254));
    assert_eq!(refused("knp", &object).field, "metadata.name");
}

#[test]
fn nested_bombs_are_refused() {
    let mut value = json!({});
    for _ in 0..100 {
        value = json!({"action": "Allow", "source": value});
    }
    let mut object = with_spec("np", "{}");
    object["spec"] = json!({"ingress": [value]});
    assert_eq!(refused("np", &object).field, "spec.ingress[0].source.action");
}

#[test]
fn refused_built_in_tiers() {
    for (name, spec, field) in [
        ("default", "{order: 5}", "spec.order"),
        ("default", "{}", "spec.order"),
        ("default", "null", "spec.order"),
        ("default", "{order: 1000000, defaultAction: Pass}", "spec.defaultAction"),
        ("kube-admin", "{order: 1000000}", "spec.order"),
        ("kube-admin", "{order: 1000, defaultAction: Deny}", "spec.defaultAction"),
        ("kube-baseline", "{order: 1}", "spec.order"),
        ("kube-baseline", "{order: 10000000, defaultAction: Deny}", "spec.defaultAction"),
    ] {
        let mut object = with_spec("tier", spec);
        object["metadata"]["name"] = json!(name);
        assert_eq!(refused("tier", &object).field, field, "{name} {spec}");
    }
    for (name, spec) in [
        ("default", "{order: 1000000}"),
        ("default", "{order: 1e6, defaultAction: Deny}"),
        ("kube-admin", "{order: 1000, defaultAction: Pass}"),
        ("kube-baseline", "{order: 10000000.0}"),
    ] {
        let mut object = with_spec("tier", spec);
        object["metadata"]["name"] = json!(name);
        read("tier", &object);
    }
}

#[test]
fn refused_envelopes() {
    for (short, change, field) in [
        ("np", json!({"apiVersion": "networking.k8s.io/v1"}), "apiVersion"),
        ("knp", json!({"apiVersion": "projectcalico.org/v3"}), "apiVersion"),
        ("cnp", json!({"apiVersion": "policy.networking.k8s.io/v1alpha1"}), "apiVersion"),
        ("np", json!({"kind": "GlobalNetworkPolicy"}), "kind"),
        ("np", json!({"kind": 5}), "kind"),
        ("np", json!({"specs": {}}), "specs"),
        ("gnp", json!({"Spec": {}}), "Spec"),
        ("knp", json!({"rules": []}), "rules"),
        ("tier", json!({"order": 5}), "order"),
        ("gns", json!({"nets": []}), "nets"),
    ] {
        let mut object = with_spec(short, "{}");
        object.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(refused(short, &object).field, field, "{object}");
    }
    for value in [json!(null), json!([]), json!("x"), json!(1)] {
        for kind in PolicyKind::ALL {
            assert!(parse(kind, &value).is_err());
        }
    }
}

#[test]
fn services_of_global_policies_need_a_namespace() {
    let rule = "{action: Allow, destination: {services: {name: a}}}";
    let error = refused("gnp", &with_rule("gnp", "egress", rule));
    assert_eq!(error.field, "spec.egress[0].destination.services.namespace");
    read("np", &with_rule("np", "egress", rule));
    let rule = "{action: Allow, source: {services: {name: a}}}";
    let error = refused("sgnp", &with_rule("sgnp", "ingress", rule));
    assert_eq!(error.field, "spec.ingress[0].source.services.namespace");
}

#[test]
fn accepted_specs() {
    for (short, spec) in [
        ("tier", "{}"),
        ("tier", "null"),
        ("tier", "{order: 10.5, defaultAction: Pass}"),
        ("tier", "{order: -1, defaultAction: Deny}"),
        ("np", "{}"),
        ("np", "{tier: sec, order: 1e3, selector: '', types: []}"),
        ("np", "{ingress: null, egress: [], types: [Egress, Ingress]}"),
        ("np", "{selector: \"in in {'x',}\", serviceAccountSelector: 'all()'}"),
        ("np", "{performanceHints: [AssumeNeededOnEveryNode]}"),
        ("gnp", "{namespaceSelector: \"has(team) && projectcalico.org/name != 'x'\"}"),
        ("gnp", "{doNotTrack: true, applyOnForward: true, types: [Ingress, Egress]}"),
        ("gnp", "{preDNAT: true, applyOnForward: true, ingress: [{action: Deny}]}"),
        ("gnp", "{applyOnForward: true, doNotTrack: false, preDNAT: null}"),
        ("snp", "{stagedAction: Delete}"),
        ("snp", "{stagedAction: Delete, tier: sec}"),
        ("snp", "{stagedAction: Learn, selector: 'all()'}"),
        ("sgnp", "{stagedAction: Set, namespaceSelector: 'has(a)', egress: [{action: Log}]}"),
        ("ns", "{nets: [10.0.0.1, 10.0.0.0/8, 'fd00::/8', 10.9.9.9/8]}"),
        ("ns", "null"),
        ("gns", "{nets: [0.0.0.0/0, '::/0']}"),
        ("gns", "{}"),
        ("knp", "null"),
        ("knp", "{podSelector: {}}"),
        ("knp", "{podSelector: {matchLabels: {a: '', 'x.y/Z_1': v-1.0}}}"),
        ("knp", "{policyTypes: [Ingress, Ingress]}"),
        ("knp", "{ingress: [{}], egress: [{to: [], ports: []}]}"),
        (
            "knp",
            "{ingress: [{ports: [{}, {port: web}, {protocol: SCTP, port: 1, endPort: 65535}]}]}",
        ),
        ("knp", "{egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16]}}]}]}"),
        ("knp", "{ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]}"),
        ("sknp", "{stagedAction: Delete}"),
        ("sknp", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"),
        ("cnp", "{tier: Admin, priority: 0, subject: {namespaces: {}}}"),
        (
            "cnp",
            "{tier: Baseline, priority: 1000, subject: {pods: {podSelector: {}}},
              ingress: [{name: x, action: Pass, from: [{pods: {podSelector: {}}}],
                protocols: [{destinationNamedPort: web}, {tcp: {destinationPort: {number: 1}}}]}],
              egress: [{action: Accept, to: [{networks: [10.0.0.1/8, '::/0']}, {nodes: {}}]},
                {action: Accept, to: [{domainNames: ['*.example.org']}]}]}",
        ),
    ] {
        read(short, &with_spec(short, spec));
    }
}

#[test]
fn accepted_rules() {
    for (direction, rule) in [
        ("ingress", "{action: Allow}"),
        ("ingress", "{action: Log, metadata: {annotations: {a: b}}}"),
        ("ingress", "{action: Pass, ipVersion: 4, protocol: 255, notProtocol: UDPLite}"),
        (
            "ingress",
            "{action: Deny, protocol: '6', destination: {ports: [80, '81', '82:90', web]}}",
        ),
        ("ingress", "{action: Deny, destination: {ports: [web], notPorts: [Web.1_x]}}"),
        ("ingress", "{action: Deny, protocol: 132, source: {ports: ['1:65535']}}"),
        ("ingress", "{action: Deny, protocol: TCP, source: {ports: ['80:80']}}"),
        ("ingress", "{action: Deny, protocol: ICMP, icmp: {type: 0, code: 0}, notICMP: {type: 3}}"),
        ("ingress", "{action: Deny, protocol: ICMPv6, icmp: {type: 254, code: 255}}"),
        ("ingress", "{action: Deny, protocol: ICMP, icmp: {}}"),
        ("ingress", "{action: Deny, protocol: 1, icmp: {type: 8}}"),
        ("ingress", "{action: Deny, protocol: ICMP, ipVersion: 4}"),
        ("ingress", "{action: Deny, notProtocol: ICMP}"),
        ("ingress", "{action: Allow, source: {nets: [0.0.0.0/0, 10.0.0.1, 10.0.0.0/31]}}"),
        ("ingress", "{action: Allow, source: {nets: [], notNets: [0.0.0.0/1, 10.0.0.0/8]}}"),
        (
            "ingress",
            "{action: Allow, source: {nets: ['::/0']}, destination: {notNets: ['fd00::/8']}}",
        ),
        ("ingress", "{action: Allow, source: {selector: '', namespaceSelector: ' global( ) '}}"),
        ("ingress", "{action: Allow, source: {namespaceSelector: 'all()', notSelector: 'has(a)'}}"),
        ("ingress", "{action: Allow, source: {serviceAccounts: {}}}"),
        (
            "ingress",
            "{action: Allow, source: {serviceAccounts: {names: [a, b.c], selector: 'has(x)'}}}",
        ),
        ("ingress", "{action: Allow, source: {services: {name: a, namespace: b}}}"),
        (
            "ingress",
            "{action: Allow, protocol: TCP, source: {services: {name: a, namespace: b}}, destination: {ports: [80]}}",
        ),
        ("egress", "{action: Allow, destination: {services: {name: a, namespace: b}}}"),
        (
            "egress",
            "{action: Allow, protocol: TCP, source: {ports: [99]}, destination: {services: {name: a, namespace: b}, ports: []}}",
        ),
        (
            "ingress",
            "{action: Allow, protocol: TCP, http: {methods: [GET, PUT], paths: [{exact: /a}, {prefix: /}]}}",
        ),
        ("ingress", "{action: Allow, source: null, destination: {}, icmp: null, protocol: null}"),
    ] {
        for short in ["np", "gnp", "snp", "sgnp"] {
            read(short, &with_rule(short, direction, rule));
        }
    }
}

#[test]
fn selectors_of_1024_characters_fit() {
    let value = "é".repeat(1024 - "a == ''".len());
    let mut object = with_spec("np", "{}");
    object["spec"]["selector"] = json!(format!("a == '{value}'"));
    read("np", &object);
    object["spec"]["selector"] = json!(format!("a == '{value}x'"));
    assert_eq!(refused("np", &object).field, "spec.selector");
}

#[test]
fn kinds_of_both_storage_groups() {
    for group in ["projectcalico.org/v3", "crd.projectcalico.org/v1"] {
        for kind in [
            "Tier",
            "NetworkPolicy",
            "GlobalNetworkPolicy",
            "StagedNetworkPolicy",
            "StagedGlobalNetworkPolicy",
            "StagedKubernetesNetworkPolicy",
            "NetworkSet",
            "GlobalNetworkSet",
        ] {
            assert_eq!(PolicyKind::of(group, kind).map(PolicyKind::kind), Some(kind));
        }
        assert_eq!(PolicyKind::of(group, "ClusterNetworkPolicy"), None);
        assert_eq!(PolicyKind::of(group, "EndpointSlice"), None);
    }
    assert_eq!(
        PolicyKind::of("networking.k8s.io/v1", "NetworkPolicy"),
        Some(PolicyKind::KubernetesNetworkPolicy)
    );
    assert_eq!(
        PolicyKind::of("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
        Some(PolicyKind::ClusterNetworkPolicy)
    );
    assert_eq!(
        PolicyKind::of("discovery.k8s.io/v1", "EndpointSlice"),
        Some(PolicyKind::EndpointSlice)
    );
    assert_eq!(PolicyKind::of("policy.networking.k8s.io/v1alpha1", "ClusterNetworkPolicy"), None);
    assert_eq!(PolicyKind::of("v1", "Pod"), None);
}

fn name(short: &str, object: &Value) -> String {
    let (name, _) = parse(kind(short), object).unwrap_or_else(|e| panic!("{object}: {e}"));
    name.to_string()
}

#[test]
fn names_that_users_see() {
    let storage = |stored: &str, annotation: Option<&str>, tier: &str| {
        let annotations = match annotation {
            Some(text) => json!({"projectcalico.org/metadata": text}),
            None => json!({}),
        };
        json!({
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": "GlobalNetworkPolicy",
            "metadata": {"name": stored, "annotations": annotations},
            "spec": {"tier": tier},
        })
    };
    assert_eq!(name("gnp", &storage("default.web", None, "default")), "web");
    assert_eq!(name("gnp", &storage("default.web", None, "")), "web");
    assert_eq!(name("gnp", &storage("default.web", Some("{}"), "default")), "web");
    assert_eq!(name("gnp", &storage("web", None, "default")), "web");
    assert_eq!(name("gnp", &storage("sec.web", None, "sec")), "sec.web");
    assert_eq!(name("gnp", &storage("default.web", None, "sec")), "default.web");
    let named = Some(r#"{"name":"default.web"}"#);
    assert_eq!(name("gnp", &storage("default.web", named, "default")), "default.web");
    let named = Some(r#"{"name":"web","labels":{"a":"b"}}"#);
    assert_eq!(name("gnp", &storage("default.default.web", named, "default")), "web");
    let error = refused("gnp", &storage("web", Some("{"), "default"));
    assert_eq!(error.field, "metadata.annotations[\"projectcalico.org/metadata\"]");
    let error = refused("gnp", &storage("web", Some("{\"name\": 5}"), "default"));
    assert_eq!(error.field, "metadata.annotations[\"projectcalico.org/metadata\"].name");

    let mut native = with_spec("gnp", "{}");
    native["metadata"]["name"] = json!("default.web");
    assert_eq!(name("gnp", &native), "default.web");
    for (stored, seen) in [("knp.default.a.b.c", true), ("ossg.default.a.b.c", true), ("a.b", true)]
    {
        let mut object = with_spec("np", "{}");
        object["metadata"]["name"] = json!(stored);
        assert_eq!(parse(PolicyKind::NetworkPolicy, &object).is_ok(), seen);
    }
    let mut object = with_spec("np", "{}");
    object["metadata"] = json!({"name": "p"});
    assert_eq!(name("np", &object), "default/p");
}

#[test]
fn labels_of_network_sets() {
    let set = |version: &str| {
        json!({
            "apiVersion": version,
            "kind": "NetworkSet",
            "metadata": {
                "name": "s",
                "namespace": "n",
                "labels": {"projectcalico.org/orchestrator": "k8s", "a": "plain"},
                "annotations": {
                    "projectcalico.org/metadata": r#"{"labels":{"a":"kept","b":"x"}}"#,
                },
            },
            "spec": {"nets": ["10.0.0.7/8"]},
        })
    };
    let labels = |version: &str| match read("ns", &set(version)) {
        PolicyObject::NetworkSet(set) => {
            assert_eq!(set.nets, ["10.0.0.0/8".parse().unwrap()]);
            set.labels.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(labels("crd.projectcalico.org/v1"), "a=kept,b=x,projectcalico.org/orchestrator=k8s");
    assert_eq!(labels("projectcalico.org/v3"), "a=plain,projectcalico.org/orchestrator=k8s");
    // What is written for Felix is as Calico has a pod.
    let mut set = set("projectcalico.org/v3");
    set["metadata"]["labels"]["projectcalico.org/namespace"] = json!("n");
    let field = "metadata.labels[\"projectcalico.org/namespace\"]";
    assert_eq!(refused("ns", &set).field, field);
    set["metadata"]["labels"]["tieline/remote-cluster"] = json!("db");
    read("ns", &set);
}

#[test]
fn endpoint_slices() {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-x7",
            "namespace": "n",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false}, "zone": "a"},
            {"addresses": ["10.0.0.2"]},
        ],
        "ports": [{"name": "http", "port": 80}, {"protocol": "UDP"}, {"port": 53, "protocol": "UDP"}],
    });
    let PolicyObject::EndpointSlice(read_slice) = read("slice", &slice) else { panic!() };
    assert_eq!(read_slice.service.as_deref(), Some("web"));
    assert_eq!(read_slice.addresses.len(), 2);
    assert_eq!(
        read_slice.ports,
        [
            SlicePort { protocol: 6, port: Some(80) },
            SlicePort { protocol: 17, port: None },
            SlicePort { protocol: 17, port: Some(53) },
        ]
    );
    for (change, field) in [
        (json!({"addressType": null}), "addressType"),
        (json!({"addressType": "IPv6"}), "endpoints[0].addresses[0]"),
        (json!({"endpoints": [{"addresses": ["x"]}]}), "endpoints[0].addresses[0]"),
        (json!({"ports": [{"port": 70000}]}), "ports[0].port"),
        (json!({"ports": [{"port": 1, "protocol": "ICMP"}]}), "ports[0].protocol"),
    ] {
        let mut slice = slice.clone();
        slice.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(refused("slice", &slice).field, field);
    }
    let mut names = slice.clone();
    names["addressType"] = json!("FQDN");
    names["endpoints"] = json!([{"addresses": ["a.example.org"]}]);
    names["ports"] = Value::Null;
    let PolicyObject::EndpointSlice(names) = read("slice", &names) else { panic!() };
    assert!(names.addresses.is_empty() && names.ports.is_empty());
}

#[test]
fn messages_give_the_remedy() {
    let message = |short: &str, direction: &str, rule: &str| {
        refused(short, &with_rule(short, direction, rule)).to_string()
    };
    assert_eq!(
        message("np", "ingress", "{action: Allow, source: {nets: [10.1.0.0/8]}}"),
        "spec.ingress[0].source.nets[0]: host bits are set in 10.1.0.0/8; write 10.0.0.0/8"
    );
    assert_eq!(
        message("np", "ingress", "{action: Allow, protocol: TCP, source: {ports: ['9:8']}}"),
        "spec.ingress[0].source.ports[0]: 9:8 is upside down; write 8:9"
    );
    assert_eq!(
        message("np", "ingress", "{action: Accept}"),
        "spec.ingress[0].action: \"Accept\" is not one of Allow, Deny, Log, Pass"
    );
    assert_eq!(
        message("np", "ingress", "{action: Allow, source: {selector: \"app = 'x'\"}}"),
        "spec.ingress[0].source.selector: not a selector: '=' where '==', '!=', 'in', 'not in', \
         'contains', 'starts with' or 'ends with' after the label should be at offset 4"
    );
}

/// Good objects of every kind, to break.
fn good_objects() -> Vec<(PolicyKind, Value)> {
    let rule = "{action: Allow, ipVersion: 4, protocol: TCP, notProtocol: 17, source: {nets: \
                [10.0.0.0/8], notNets: [10.1.0.0/16], selector: 'has(a)', notSelector: 'has(b)', \
                namespaceSelector: 'all()', serviceAccounts: {names: [a], selector: 'has(c)'}, \
                ports: [1, '2:3', web], notPorts: [4]}, http: {methods: [GET], paths: [{exact: /a}]}}";
    let peers = "[{podSelector: {matchExpressions: [{key: a, operator: In, values: [x]}]}}, \
                 {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]";
    let ports = "[{port: 80, endPort: 90, protocol: TCP}, {port: web}]";
    [
        ("tier", "{order: 5, defaultAction: Pass}".to_owned()),
        (
            "np",
            format!(
                "{{tier: t, order: 1, types: [Ingress], selector: 'has(a)', ingress: [{rule}]}}"
            ),
        ),
        ("gnp", format!("{{doNotTrack: true, applyOnForward: true, ingress: [{rule}]}}")),
        ("sgnp", "{stagedAction: Delete, tier: t}".to_owned()),
        ("gns", "{nets: [10.0.0.0/8]}".to_owned()),
        ("knp", format!("{{policyTypes: [Egress], egress: [{{to: {peers}, ports: {ports}}}]}}")),
        (
            "cnp",
            "{tier: Admin, priority: 1, subject: {pods: {podSelector: {matchLabels: {a: b}}}}, \
              egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}, {namespaces: {}}], \
              protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}]}]}"
                .to_owned(),
        ),
    ]
    .into_iter()
    .map(|(short, spec)| (kind(short), with_spec(short, &spec)))
    .collect()
}

/// Every place in a value, as a JSON pointer.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{key}"), out);
            }
        }
        Value::Array(list) => {
            for (place, value) in list.iter().enumerate() {
                places(value, &format!("{at}/{place}"), out);
            }
        }
        _ => {}
    }
}

fn wrong_values() -> Vec<Value> {
    vec![
        json!({}),
        json!([]),
        json!([[]]),
        json!({"": 1}),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(true),
        json!("\u{0}é\n"),
        json!("a".repeat(5000)),
        json!(["10.0.0.0/8", 5]),
    ]
}

#[test]
fn no_wrong_value_panics_or_is_refused_elsewhere() {
    let mut refusals = 0;
    for (kind, good) in good_objects() {
        assert!(parse(kind, &good).is_ok(), "{kind}: {:?}", parse(kind, &good));
        let mut all = Vec::new();
        places(&good, "", &mut all);
        for place in all {
            for wrong in wrong_values() {
                let mut broken = good.clone();
                *broken.pointer_mut(&place).unwrap() = wrong;
                if let Err(error) = parse(kind, &broken) {
                    assert!(error.to_string().len() < 500, "{error}");
                    let top = place.split('/').nth(1).unwrap_or_default();
                    assert!(error.field.starts_with(top), "{place}: {error}");
                    refusals += 1;
                }
            }
        }
    }
    assert!(refusals > 1000, "{refusals}");
}
