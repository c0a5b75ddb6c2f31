use std::sync::Arc;

use super::*;
use crate::cluster::files::{Content, Files, Loaded, load};
use crate::state::{ClusterObjects, IdentityKind, RemoteCluster};

/// The objects of a cluster from one file, which must be sound.
fn objects(cluster: &ClusterId, yaml: &str) -> Arc<ClusterObjects> {
    let files = Files::from([("all.yaml".to_owned(), Content::Bytes(yaml.as_bytes().to_vec()))]);
    let loaded = load(&Loaded::new(cluster.clone()), files);
    assert_eq!(*loaded.view().conditions, [], "sound manifests");
    loaded.view().objects.clone()
}

/// The world of node `app-1` of the local cluster.
fn world(local: &str, remotes: &[(&str, &str)]) -> World {
    let remote = |(name, yaml): &(&str, &str)| {
        let name: Arc<str> = (*name).into();
        let objects = objects(&ClusterId::Remote(name.clone()), yaml);
        (name, RemoteCluster { overlay: true, objects })
    };
    World {
        node: "app-1".to_owned(),
        include_local_vteps: false,
        local: objects(&ClusterId::Local, local),
        remotes: remotes.iter().map(remote).collect(),
    }
}

fn node(name: &str, n: u8, tunnel: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  annotations:\n    \
         projectcalico.org/IPv4Address: 172.16.{n}.1/24\n    \
         projectcalico.org/IPv4VXLANTunnelAddr: {tunnel}\n"
    )
}

fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
         spec: {{cidr: {cidr}, vxlanMode: Always{more}}}\n"
    )
}

/// A block of a node, with its first allocations by the nodes given.
fn block(cidr: &str, node: &str, users: &[&str]) -> String {
    let name = cidr.replace(['.', '/', ':'], "-");
    let allocations: Vec<String> = (0..users.len()).map(|n| n.to_string()).collect();
    let attributes: Vec<String> =
        users.iter().map(|user| format!("{{secondary: {{node: {user}}}}}")).collect();
    format!(
        "---\napiVersion: crd.projectcalico.org/v1\nkind: IPAMBlock\nmetadata: {{name: {name}}}\n\
         spec: {{cidr: \"{cidr}\", affinity: \"host:{node}\", allocations: [{}], attributes: [{}]}}\n",
        allocations.join(", "),
        attributes.join(", ")
    )
}

fn pod(namespace: &str, name: &str, node: &str, addr: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, \
         labels: {{{labels}}}}}\nspec: {{nodeName: {node}, serviceAccountName: sa}}\n\
         status: {{podIPs: [{{ip: \"{addr}\"}}]}}\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
    )
}

fn app() -> String {
    [
        node("app-1", 1, "10.1.0.0"),
        node("app-2", 2, "10.1.0.64"),
        pool("app", "10.1.0.0/16", ""),
        block("10.1.0.0/26", "app-1", &["app-1", "app-1"]),
        block("10.1.0.64/26", "app-2", &["app-2"]),
        namespace("shop", "team: blue"),
        pod("shop", "backend", "app-1", "10.1.0.1", "app: backend"),
    ]
    .concat()
}

fn db() -> String {
    [
        node("db-1", 11, "10.2.0.0"),
        node("db-2", 12, "10.2.0.64"),
        pool("db", "10.2.0.0/16", ""),
        block("10.2.0.0/26", "db-1", &["db-1", "db-2"]),
        block("10.2.0.64/26", "db-2", &["db-2"]),
        namespace("shop", "team: red"),
        pod("shop", "postgres", "db-1", "10.2.0.5", "app: postgres"),
    ]
    .concat()
}

fn routes(resolved: &Resolved) -> Vec<String> {
    let target = |target: &RouteTarget| match target {
        RouteTarget::Local => "here".to_owned(),
        RouteTarget::Node { cluster, node } => format!("{cluster}/{node}"),
    };
    resolved.routes.iter().map(|(p, route)| format!("{p} {}", target(&route.target))).collect()
}

#[test]
fn two_clusters() {
    let world = world(&app(), &[("db", &db())]);
    let resolved = resolve(&world);
    assert_eq!(resolved.conditions, []);
    assert_eq!(
        routes(&resolved),
        ["10.1.0.0/26 here", "10.2.0.0/26 db/db-1", "10.2.0.1/32 db/db-2", "10.2.0.64/26 db/db-2",]
    );
    assert_eq!(resolved.vteps.len(), 2);
    assert_eq!(resolved.own.underlay, ["172.16.1.1".parse::<IpAddr>().unwrap()]);
    let identities = identities(&world);
    assert_eq!(identities.len(), 2);
    assert_eq!(identities[0].kind, IdentityKind::LocalWorkload);
    assert_eq!(identities[1].kind, IdentityKind::Workload);
    assert_eq!(identities[1].labels["pcns.team"], "red");
    assert_eq!(identities[1].labels["projectcalico.org/namespace"], "shop");
}

#[test]
fn macs_are_derived_as_felix_does() {
    let text = |mac: MacAddr| mac.to_string();
    assert_eq!(text(mac_v4("localhostname")), "66:48:f6:56:dc:f1");
    assert_eq!(text(mac_v4("remotehostname")), "66:3e:ca:a4:db:65");
    assert_eq!(text(mac_v4("remotehostname2")), "66:40:18:59:1f:16");
    assert_eq!(text(mac_v6("remotehostname")), "66:a0:68:c9:4c:79");
    assert_eq!(text(mac_v4("node1")), "66:f9:37:c3:7e:94");
    assert_eq!(text(mac_v6("node1")), "66:0f:35:f2:60:df");
}
