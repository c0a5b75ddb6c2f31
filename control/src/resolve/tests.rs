use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;
use tieline_dataplane::addr::Addr;

use super::*;
use crate::cluster::files::{Content, Files, Loaded, load};
use crate::policy::api::{NetworkSet, PolicyKind, PolicyObject};
use crate::state::{ClusterObjects, IdentityKind, ObjectName, RemoteCluster};

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

/// What is wrong, as `cluster object: message`.
fn told(resolved: &Resolved) -> Vec<String> {
    let tell = |c: &Condition| format!("{} {}: {}", c.cluster, c.object, c.message);
    resolved.conditions.iter().map(tell).collect()
}

fn remote(name: &str) -> ClusterId {
    ClusterId::Remote(name.into())
}

const LOCAL_ROUTES: usize = 1;

#[test]
fn our_own_place() {
    let felix = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n\
             metadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        )
    };
    let own = resolve(&world(&app(), &[])).own;
    assert_eq!((own.vni.get(), own.port, own.mtu_v4, own.mtu_v6), (4096, 4789, None, None));
    assert_eq!(own.tunnel, ["10.1.0.0".parse::<IpAddr>().unwrap()]);
    assert_eq!((own.mac_v4, own.mac_v6), (mac_v4("app-1"), mac_v6("app-1")));
    let configured = [
        app(),
        felix("default", "vxlanVNI: 5, vxlanPort: 6, vxlanMTU: 1400"),
        felix("node.app-1", "vxlanVNI: 7, vxlanMTUV6: 1380"),
        felix("node.app-2", "vxlanPort: 9"),
    ];
    let own = resolve(&world(&configured.concat(), &[])).own;
    assert_eq!((own.vni.get(), own.port), (7, 6));
    assert_eq!((own.mtu_v4, own.mtu_v6), (Some(1400), Some(1380)));
}

#[test]
fn a_node_that_is_not_there() {
    let mut world = world(&app(), &[("db", &db())]);
    world.node = "elsewhere".into();
    let resolved = resolve(&world);
    assert_eq!(
        told(&resolved),
        ["local Node elsewhere: is not among the cluster's nodes, so this node has no underlay \
         address; correct the configured node name"]
    );
    assert_eq!(resolved.own.underlay, [] as [IpAddr; 0]);
    assert_eq!(resolved.routes.len(), 3, "what is known of others stays");
}

#[test]
fn a_node_that_no_one_can_reach_is_told() {
    let bare = app().replace("projectcalico.org/IPv4VXLANTunnelAddr: 10.1.0.0\n", "x: y\n");
    assert_eq!(told(&resolve(&world(&bare, &[]))), [""; 0], "nobody wants to");
    let joined = told(&resolve(&world(&bare, &[("db", &db())])));
    assert_eq!(joined.len(), 1);
    assert!(joined[0].starts_with("local Node app-1: has no annotations"), "{joined:?}");
}

#[test]
fn local_vteps_count_when_asked_for() {
    let mut world = world(&app(), &[]);
    assert!(resolve(&world).vteps.is_empty());
    world.include_local_vteps = true;
    let resolved = resolve(&world);
    assert_eq!(routes(&resolved), ["10.1.0.0/26 here", "10.1.0.64/26 local/app-2"]);
    let key = VtepKey { cluster: ClusterId::Local, node: "app-2".into(), v6: false };
    assert_eq!(resolved.vteps.keys().collect::<Vec<_>>(), [&key]);
    assert_eq!(resolved.vteps[&key].mac, mac_v4("app-2"));
}

#[test]
fn cross_subnet_pools_leave_the_subnet_to_felix_in_the_local_cluster_only() {
    let cross = |yaml: String| yaml.replace("vxlanMode: Always", "vxlanMode: CrossSubnet");
    let wide = cross(app()).replace("172.16.1.1/24", "172.16.0.1/22");
    let mut near = world(&wide, &[("db", &cross(db()).replace("172.16.11.", "172.16.3."))]);
    near.include_local_vteps = true;
    assert_eq!(
        routes(&resolve(&near)),
        ["10.1.0.0/26 here", "10.2.0.0/26 db/db-1", "10.2.0.1/32 db/db-2", "10.2.0.64/26 db/db-2"]
    );
    let mut far = world(&cross(app()), &[]);
    far.include_local_vteps = true;
    assert_eq!(routes(&resolve(&far)), ["10.1.0.0/26 here", "10.1.0.64/26 local/app-2"]);
}

#[test]
fn without_overlay_there_are_identities_only() {
    let mut world = world(&app(), &[("db", &db())]);
    let name: Arc<str> = "db".into();
    world.remotes.get_mut(&name).unwrap().overlay = false;
    let resolved = resolve(&world);
    assert_eq!((resolved.vteps.len(), resolved.routes.len()), (0, LOCAL_ROUTES));
    assert_eq!(identities(&world).len(), 2);
}

#[test]
fn workload_addresses_as_routes() {
    let felix = "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n\
                 metadata: {name: default}\nspec: {routeSource: WorkloadIPs}\n";
    let local = app() + felix;
    let far = db() + felix + &pod("shop", "twin", "db-2", "10.2.0.5", "");
    let resolved = resolve(&world(&local, &[("db", &far)]));
    assert_eq!(
        routes(&resolved),
        [
            "10.1.0.0/32 here",
            "10.1.0.1/32 here",
            "10.2.0.0/32 db/db-1",
            "10.2.0.5/32 db/db-1",
            "10.2.0.64/32 db/db-2",
        ]
    );
    assert_eq!(told(&resolved), [""; 0]);
}

#[test]
fn addresses_that_the_routes_do_not_lead_to() {
    // A tunnel address borrowed from another node's block without attributes,
    // and a pod of ours outside of our blocks.
    let far = db().replace(
        "projectcalico.org/IPv4VXLANTunnelAddr: 10.2.0.64",
        "projectcalico.org/IPv4VXLANTunnelAddr: 10.2.0.9",
    );
    let local = app() + &pod("shop", "guest", "app-1", "10.1.0.70", "");
    let resolved = resolve(&world(&local, &[("db", &far)]));
    assert_eq!(
        routes(&resolved),
        [
            "10.1.0.0/26 here",
            "10.1.0.70/32 here",
            "10.2.0.0/26 db/db-1",
            "10.2.0.1/32 db/db-2",
            "10.2.0.9/32 db/db-2",
            "10.2.0.64/26 db/db-2",
        ]
    );
    let ours: Vec<String> = resolved.own.tunnel.iter().map(ToString::to_string).collect();
    assert_eq!(ours, ["10.1.0.0"]);
}

#[test]
fn blocks_that_go_or_belong_to_nobody() {
    let mut far = db();
    far += &block("10.2.1.0/26", "db-1", &[]).replace("affinity: \"host:db-1\"", "deleted: true");
    far += &block("10.2.2.0/26", "x", &["db-1"]).replace("host:x", "virtual:lb");
    far += &block("10.2.3.0/26", "gone", &["gone"]);
    let resolved = resolve(&world(&app(), &[("db", &far)]));
    assert_eq!(
        routes(&resolved)[LOCAL_ROUTES..],
        [
            "10.2.0.0/26 db/db-1",
            "10.2.0.1/32 db/db-2",
            "10.2.0.64/26 db/db-2",
            "10.2.2.0/32 db/db-1",
        ]
    );
    assert_eq!(
        told(&resolved),
        ["db Node gone: no route to 10.2.3.0/26 of IPAMBlock 10-2-3-0-26: there is no such node; \
         delete the object if the node is gone"]
    );
}

#[test]
fn a_remote_node_without_vtep_gets_no_route() {
    let far = db().replace("projectcalico.org/IPv4Address: 172.16.12.1/24\n", "x: y\n");
    let resolved = resolve(&world(&app(), &[("db", &far)]));
    assert_eq!(routes(&resolved)[LOCAL_ROUTES..], ["10.2.0.0/26 db/db-1"]);
    assert_eq!(
        told(&resolved),
        [
            "db Node db-2: no route to 10.2.0.1/32 of IPAMBlock 10-2-0-0-26 and 1 more: the node has \
         no VTEP that counts: it needs the annotations projectcalico.org/IPv4Address and \
         IPv4VXLANTunnelAddr, or those for IPv6, with addresses of its own"
        ]
    );
}

#[test]
fn dual_stack_goes_through_the_vtep_of_the_family_or_the_other() {
    let six = "    projectcalico.org/IPv6Address: fd00:1::11/64\n    \
               projectcalico.org/IPv6VXLANTunnelAddr: 'fd00:2::'\n";
    let far = [
        node("db-1", 11, "10.2.0.0") + six,
        node("db-2", 12, "10.2.0.64"),
        pool("db", "10.2.0.0/16", ""),
        pool("db6", "\"fd00:2::/48\"", ""),
        block("10.2.0.0/26", "db-1", &[]),
        block("10.2.0.64/26", "db-2", &[]),
        block("fd00:2::/122", "db-1", &[]),
        block("fd00:2::40/122", "db-2", &[]),
    ];
    let resolved = resolve(&world(&app(), &[("db", &far.concat())]));
    assert_eq!(told(&resolved), [""; 0]);
    assert_eq!(routes(&resolved).len(), LOCAL_ROUTES + 4);
    let through = |node, v4| vtep_for(&resolved, &remote("db"), node, v4).map(|key| key.v6);
    assert_eq!(through("db-1", true), Some(false));
    assert_eq!(through("db-1", false), Some(true));
    assert_eq!(through("db-2", false), Some(false), "IPv6 over its only VTEP");
    assert_eq!(through("db-3", false), None);
    let key = VtepKey { cluster: remote("db"), node: "db-1".into(), v6: true };
    assert_eq!(resolved.vteps[&key].mac, mac_v6("db-1"));
    assert_eq!(resolved.vteps[&key].underlay, "fd00:1::11".parse::<IpAddr>().unwrap());
}

#[test]
fn pools_decide_about_encapsulation() {
    let with = |more: &str| resolve(&world(&app(), &[("db", &(db() + more))]));
    // The most specific pool counts, a disabled one too.
    let disabled = with(&pool("narrow", "10.2.0.64/26", ", disabled: true"));
    assert_eq!(disabled.routes.len(), LOCAL_ROUTES + 3);
    let plain = pool("narrow", "10.2.0.64/26", "").replace("Always", "Never");
    let resolved = with(&plain);
    assert_eq!(routes(&resolved)[LOCAL_ROUTES..], ["10.2.0.0/26 db/db-1", "10.2.0.1/32 db/db-2"]);
    assert_eq!(
        told(&resolved),
        ["db IPPool narrow: no route to 10.2.0.64/26 of IPAMBlock 10-2-0-64-26: IPPool narrow is \
         not encapsulated by VXLAN; set its vxlanMode to Always"]
    );
    // Of two pools with one range the first by name counts.
    let twice = with(&(pool("z", "10.2.0.64/26", "") + &plain));
    assert_eq!(twice.routes.len(), LOCAL_ROUTES + 2);
    let outside = with(&block("10.3.0.0/26", "db-1", &[]));
    assert_eq!(
        told(&outside),
        [
            "db IPAMBlock 10-3-0-0-26: no route to 10.3.0.0/26: it lies in no IPPool of its cluster; \
         create the IPPool, or let it be read"
        ]
    );
}

#[test]
fn local_wins_over_remote() {
    // A pool, a node's address, a pod outside of pools.
    let cases = [
        ("10.1.128.0/17", "10.1.200.0/26", "IPPool app"),
        ("172.16.2.0/24", "172.16.2.0/28", "Node app-2"),
        ("10.9.0.0/16", "10.9.0.0/26", "Pod shop/guest"),
        ("10.0.0.0/8", "10.0.0.0/12", "IPPool app"),
    ];
    let local = app() + &pod("shop", "guest", "app-2", "10.9.0.7", "");
    for (cidr, range, owner) in cases {
        let far = db() + &pool("bad", cidr, "") + &block(range, "db-1", &[]);
        let resolved = resolve(&world(&local, &[("db", &far)]));
        let bad = resolved.routes.keys().any(|prefix| prefix.to_string() == range);
        assert!(!bad, "{range} must not be routed");
        assert!(resolved.routes.len() >= LOCAL_ROUTES + 3, "the others stay");
        let expected = format!(
            "db IPPool bad: no route to {range} of IPAMBlock {}: it overlaps local {owner}, which \
             wins; give the clusters ranges of their own",
            range.replace(['.', '/'], "-")
        );
        assert!(told(&resolved).contains(&expected), "{:?}", told(&resolved));
    }
}

#[test]
fn no_remote_range_lies_in_a_local_nodes_network() {
    let six = "    projectcalico.org/IPv6Address: fd00:1::2/64\n";
    let two = node("app-2", 2, "10.1.0.64");
    let local = app().replace(&two, &(two.clone() + six));
    let cases = [("172.16.2.128/26", "172.16.2.0/24"), ("fd00:1::40/122", "fd00:1::/64")];
    for (range, network) in cases {
        let far = db() + &pool("bad", &format!("\"{range}\""), "") + &block(range, "db-1", &[]);
        let resolved = resolve(&world(&local, &[("db", &far)]));
        assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3, "{range}");
        assert_eq!(
            told(&resolved),
            [format!(
                "db IPPool bad: no route to {range} of IPAMBlock {}: it overlaps network {network} \
                 of local Node app-2, to which the node's own route leads; give the pool a range \
                 outside of the nodes' networks, or correct the node's annotated prefix length",
                range.replace(['.', '/', ':'], "-")
            )]
        );
    }
}

#[test]
fn nodes_of_all_clusters_may_share_a_network() {
    let shared = db().replace("172.16.11.1", "172.16.1.11").replace("172.16.12.1", "172.16.1.12");
    let resolved = resolve(&world(&app(), &[("db", &shared)]));
    assert_eq!((told(&resolved).len(), resolved.vteps.len()), (0, 2));
    assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3);
    // A length of one address, or of all, makes no network.
    let far = db() + &pool("near", "172.16.2.128/26", "") + &block("172.16.2.128/26", "db-1", &[]);
    for len in ["/32", "/0"] {
        let resolved = resolve(&world(&app().replace("/24", len), &[("db", &far)]));
        assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 4, "{len}: {:?}", told(&resolved));
    }
}

#[test]
fn a_disabled_local_pool_claims_nothing_but_its_blocks() {
    let disabled = pool("far", "10.2.0.0/16", ", disabled: true");
    let resolved = resolve(&world(&(app() + &disabled), &[("db", &db())]));
    assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3);
    let drained = app() + &disabled + &block("10.2.0.64/26", "app-2", &[]);
    let resolved = resolve(&world(&drained, &[("db", &db())]));
    assert_eq!(routes(&resolved)[LOCAL_ROUTES..], ["10.2.0.0/26 db/db-1", "10.2.0.1/32 db/db-2"]);
}

#[test]
fn ranges_that_no_cluster_owns() {
    let ranges = [
        "0.0.0.0/0",
        "0.0.0.0/26",
        "127.0.0.0/26",
        "169.254.0.0/26",
        "224.0.0.0/26",
        "240.0.0.0/26",
        "255.255.255.255/32",
        "::/0",
        "::1/128",
        "fe80::/64",
        "ff02::/64",
        "::/64",
    ];
    for range in ranges {
        let far = db() + &pool("bad", &format!("\"{range}\""), "") + &block(range, "db-1", &[]);
        let resolved = resolve(&world(&app(), &[("db", &far)]));
        assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3, "{range}");
        let told = told(&resolved);
        assert!(
            told.iter().any(|told| told.contains("belongs to no cluster")),
            "{range}: {told:?}"
        );
    }
}

#[test]
fn no_range_holds_a_node() {
    let far = db() + &pool("bad", "172.16.0.0/16", "") + &block("172.16.12.0/26", "db-1", &[]);
    let resolved = resolve(&world(&app(), &[("db", &far)]));
    assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3);
    assert_eq!(
        told(&resolved),
        ["db IPPool bad: no route to 172.16.12.0/26 of IPAMBlock 172-16-12-0-26: it holds node \
         address 172.16.12.1; give nodes addresses outside of pools"]
    );
}

/// A second remote cluster, with a block of its own and one more.
fn third(pool_range: &str, range: &str) -> String {
    [
        node("log-1", 21, "10.3.0.0"),
        pool("log", "10.3.0.0/16", ""),
        block("10.3.0.0/26", "log-1", &[]),
        pool("shared", pool_range, ""),
        block(range, "log-1", &[]),
    ]
    .concat()
}

#[test]
fn of_two_remote_clusters_neither_gets_what_both_claim() {
    let worlds = |range: &str| {
        resolve(&world(&app(), &[("db", &db()), ("log", &third("10.2.0.0/16", range))]))
    };
    // Pools may overlap as long as blocks don't.
    let apart = worlds("10.2.0.128/26");
    assert_eq!((apart.routes.len(), told(&apart).len()), (LOCAL_ROUTES + 5, 0));
    let equal = worlds("10.2.0.64/26");
    assert_eq!(
        routes(&equal)[LOCAL_ROUTES..],
        ["10.2.0.0/26 db/db-1", "10.2.0.1/32 db/db-2", "10.3.0.0/26 log/log-1"]
    );
    assert_eq!(
        told(&equal),
        [
            "db IPPool db: no route to 10.2.0.64/26 of IPAMBlock 10-2-0-64-26: cluster log claims it \
         too, so neither gets it; give the clusters ranges of their own",
            "log IPPool shared: no route to 10.2.0.64/26 of IPAMBlock 10-2-0-64-26: cluster db claims \
         it too, so neither gets it; give the clusters ranges of their own",
        ]
    );
    // Only the overlap is lost, and no less specific route covers it.
    let within = worlds("10.2.0.0/28");
    assert_eq!(
        routes(&within)[LOCAL_ROUTES..],
        [
            "10.2.0.16/28 db/db-1",
            "10.2.0.32/27 db/db-1",
            "10.2.0.64/26 db/db-2",
            "10.3.0.0/26 log/log-1"
        ]
    );
    let around = worlds("10.2.0.0/24");
    assert_eq!(
        routes(&around)[LOCAL_ROUTES..],
        ["10.2.0.128/25 log/log-1", "10.3.0.0/26 log/log-1"]
    );
}

#[test]
fn two_nodes_at_one_address() {
    let near = db().replace("172.16.11.1", "172.16.2.1");
    let resolved = resolve(&world(&app(), &[("db", &near)]));
    assert_eq!(routes(&resolved)[LOCAL_ROUTES..], ["10.2.0.1/32 db/db-2", "10.2.0.64/26 db/db-2"]);
    assert!(told(&resolved).contains(&
        "db Node db-1: address 172.16.2.1 lies in local Node app-2, so the node is not reached; \
         give the clusters addresses of their own".to_owned()
    ), "{:?}", told(&resolved));
    // Of two remote clusters neither, of one cluster the first by name.
    let clash = third("10.3.0.0/16", "10.3.0.64/26").replace("172.16.21.1", "172.16.11.1");
    let resolved = resolve(&world(&app(), &[("db", &db()), ("log", &clash)]));
    let reached: Vec<&str> = resolved.vteps.keys().map(|key| key.node.as_str()).collect();
    assert_eq!(reached, ["db-2"]);
    let told = told(&resolved);
    for (node, other) in
        [("db Node db-1", "log-1 of cluster log"), ("log Node log-1", "db-1 of cluster db")]
    {
        let expected = format!(
            "{node}: has the address 172.16.11.1 of node {other}, so it is not \
                                reached; give each node an address of its own"
        );
        assert!(told.contains(&expected), "{told:?}");
    }
    let lingering = db() + &node("db-0", 12, "10.2.0.200");
    let resolved = resolve(&world(&app(), &[("db", &lingering)]));
    let reached: Vec<&str> = resolved.vteps.keys().map(|key| key.node.as_str()).collect();
    assert_eq!(reached, ["db-0", "db-1"]);
}

#[test]
fn equal_names_and_macs_are_told() {
    let same = db().replace("db-2", "app-2");
    let resolved = resolve(&world(&app(), &[("db", &same)]));
    assert_eq!(resolved.routes.len(), LOCAL_ROUTES + 3, "they work all the same");
    assert_eq!(
        told(&resolved),
        ["db Node app-2: has the name of a node of cluster local; rename one: node names must be \
         unique over all clusters"]
    );
    let mac = format!(
        "name: db-2\n  annotations:\n    projectcalico.org/VXLANTunnelMACAddr: {}",
        mac_v4("app-1")
    );
    let resolved =
        resolve(&world(&app(), &[("db", &db().replace("name: db-2\n  annotations:", &mac))]));
    assert_eq!(
        told(&resolved),
        [format!(
            "db Node db-2: has the VTEP MAC {} of node app-1 of cluster local; annotate one \
                 of the two with another MAC",
            mac_v4("app-1")
        )]
    );
}

#[test]
fn unequal_settings_are_told() {
    let felix = "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n\
                 metadata: {name: default}\nspec: {vxlanVNI: 5, vxlanPort: 6, routeSource: WorkloadIPs}\n";
    let told = told(&resolve(&world(&app(), &[("db", &(db() + felix))])));
    assert_eq!(
        told,
        [
            "db FelixConfiguration default: spec.routeSource is WorkloadIPs there and CalicoIPAM here; \
         set it to the same value in both clusters",
            "db FelixConfiguration default: spec.vxlanPort is 6 there and 4789 here; set it to the \
         same value in both clusters",
            "db FelixConfiguration default: spec.vxlanVNI is 5 there and 4096 here; set it to the same \
         value in both clusters",
        ]
    );
}

#[test]
fn masquerade_is_told() {
    let nat = app() + &pool("nat", "10.4.0.0/16", ", natOutgoing: true");
    let message = "masquerades packets from pods of local IPPool nat (natOutgoing) to 10.2.0.0/16 \
                   as its node's tunnel address, so egress rules of these pods are not applied to \
                   them here, and the pods' labels don't count there; create a local IPPool with \
                   cidr 10.2.0.0/16 and disabled: true";
    let without = resolve(&world(&nat, &[("db", &db())]));
    assert_eq!(told(&without), [format!("db IPPool db: Felix, where it runs, {message}")]);
    assert_eq!(without.conditions[0].severity, Severity::Warning);
    let felix = "---\napiVersion: projectcalico.org/v3\nkind: FelixConfiguration\n\
                 metadata: {name: default}\n";
    let with = resolve(&world(&(nat.clone() + felix), &[("db", &db())]));
    assert_eq!(told(&with), [format!("db IPPool db: Felix {message}")]);
    assert_eq!(with.conditions[0].severity, Severity::Error);
    // What keeps a third cluster's addresses from being masqueraded over there.
    let third = db() + &pool("third", "10.8.0.0/16", ", disabled: true");
    let with = resolve(&world(&(nat.clone() + felix), &[("db", &third)]));
    assert_eq!(told(&with), [format!("db IPPool db: Felix {message}")]);
    let nat = nat + felix;
    let known = nat + &pool("db", "10.2.0.0/15", ", disabled: true");
    assert_eq!(told(&resolve(&world(&known, &[("db", &db())]))), [""; 0]);
}

#[test]
fn labels_of_identities() {
    let account = |namespace: &str, name: &str, labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: \
             {namespace}, labels: {{{labels}}}}}\n"
        )
    };
    let spoof = "app: x, pcns.team: evil, pcsa.role: evil, projectcalico.org/namespace: evil";
    let local = [
        node("app-1", 1, "10.1.0.0"),
        namespace("shop", "team: blue, projectcalico.org/name: evil"),
        account("shop", "sa", "role: web"),
        account("other", "sa", "role: no"),
        pod("shop", "a", "app-1", "10.1.0.1", spoof),
        pod("bare", "b", "app-2", "10.1.0.2", ""),
    ];
    let world = world(&local.concat(), &[]);
    let identities = identities(&world);
    let labels = |n: usize| {
        let labels = identities[n].labels.iter();
        labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    assert_eq!(identities[1].name.name, "a");
    assert_eq!(
        labels(1),
        [
            "app=x",
            "pcns.projectcalico.org/name=shop",
            "pcns.team=blue",
            "pcsa.projectcalico.org/name=sa",
            "pcsa.role=web",
            "projectcalico.org/namespace=shop",
            "projectcalico.org/orchestrator=k8s",
            "projectcalico.org/serviceaccount=sa",
        ]
    );
    assert_eq!(identities[0].kind, IdentityKind::Workload);
    assert_eq!(
        labels(0),
        [
            "projectcalico.org/namespace=bare",
            "projectcalico.org/orchestrator=k8s",
            "projectcalico.org/serviceaccount=sa",
        ]
    );
    assert_eq!(
        told(&resolve(&world)),
        [
            "local Namespace bare: there is no such object, so the namespace's pods inherit no labels \
         from it, and what no policy decides about them is denied; add it"
        ]
    );
}

#[test]
fn host_endpoints_and_network_sets() {
    let host = "---\napiVersion: projectcalico.org/v3\nkind: HostEndpoint\n\
                metadata: {name: h, labels: {role: db}}\n\
                spec: {node: db-1, expectedIPs: [172.16.11.1, 172.16.1.1]}\n";
    let mut world = world(&app(), &[("db", &(db() + host))]);
    let set = |labels: &[(&str, &str)]| {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let nets = vec!["203.0.113.0/24".parse().unwrap()];
        let labels = labels.iter().map(own).collect();
        Arc::new(PolicyObject::NetworkSet(NetworkSet { labels, nets }))
    };
    let mut local = (*world.local).clone();
    let named =
        |namespace: &str, name: &str| ObjectName { namespace: namespace.into(), name: name.into() };
    local.policy.0.insert((PolicyKind::GlobalNetworkSet, named("", "g")), set(&[("a", "b")]));
    local.policy.0.insert((PolicyKind::NetworkSet, named("shop", "n")), set(&[("a", "c")]));
    world.local = Arc::new(local);
    let identities = identities(&world);
    let find = |kind, name: &str| {
        identities.iter().find(|i| i.kind == kind && i.name.name == name).expect("there")
    };
    let labels = |identity: &Identity| {
        let labels = identity.labels.iter();
        labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
    };
    let h = find(IdentityKind::Host, "h");
    assert_eq!(labels(h), ["role=db"]);
    assert_eq!(h.nets, ["172.16.11.1/32".parse().unwrap()], "not a local node's address");
    assert_eq!(labels(find(IdentityKind::NetworkSet, "g")), ["a=b"]);
    assert_eq!(
        labels(find(IdentityKind::NetworkSet, "n")),
        [
            "a=c",
            "pcns.projectcalico.org/name=shop",
            "pcns.team=blue",
            "projectcalico.org/namespace=shop",
        ]
    );
}

#[test]
fn identities_do_not_take_what_others_own() {
    let bad = db()
        + &pod("shop", "thief", "db-1", "10.1.0.1", "app: backend")
        + &pod("shop", "thief2", "db-1", "10.1.9.9", "")
        + &pod("shop", "shared", "db-1", "10.7.0.1", "");
    let log = namespace("shop", "") + &pod("shop", "shared", "log-1", "10.7.0.1", "");
    let world = world(&app(), &[("db", &bad), ("log", &log)]);
    let names: Vec<String> =
        identities(&world).iter().map(|i| format!("{} {}", i.cluster, i.name)).collect();
    assert_eq!(names, ["local shop/backend", "db shop/postgres"]);
    assert_eq!(
        told(&resolve(&world)),
        [
            "db Pod shop/shared: address 10.7.0.1 is claimed by another remote cluster too, so neither \
         gets it: no rule sees labels there; give the clusters ranges of their own",
            "db Pod shop/thief: address 10.1.0.1 and 1 more lies in local IPPool app, which wins: no \
         rule sees labels there; give the clusters ranges of their own",
            "log Pod shop/shared: address 10.7.0.1 is claimed by another remote cluster too, so \
         neither gets it: no rule sees labels there; give the clusters ranges of their own",
        ]
    );
}

/// Objects of clusters that overlap a lot.
fn any_cluster(first: &'static str) -> impl Strategy<Value = String> {
    let addr = (0..3u8, 0..4u8).prop_map(|(net, n)| (net, n));
    let object =
        (0..6usize, addr, 0..3usize, 26..33u8).prop_map(move |(kind, (net, n), at, len)| {
            let at = format!("{first}-{at}");
            match kind {
                0 => node(&at, net * 4 + n, &format!("10.{net}.0.{n}")),
                1 => pool(&format!("p{net}"), &format!("10.{net}.0.0/16"), ""),
                2 => block(&format!("10.{net}.0.{}/{len}", n * 64), &at, &[]),
                3 => {
                    block(&format!("10.{net}.0.{}/26", n * 64), &at, &[&at, &format!("{first}-2")])
                }
                4 => pod("shop", &format!("{net}-{n}"), &at, &format!("10.{net}.0.{n}"), ""),
                _ => pool(&format!("w{net}"), "10.0.0.0/14", ""),
            }
        });
    let always = pool("all", "10.0.0.0/12", "")
        + &node(&format!("{first}-0"), 50 + first.as_bytes()[0] % 50, "10.8.0.1");
    prop::collection::vec(object, 0..24).prop_map(move |all| always.clone() + &all.concat())
}

/// As [`objects`], with duplicates, of which the first counts.
fn any_objects(cluster: &ClusterId, yaml: &str) -> Arc<ClusterObjects> {
    let files = Files::from([("all.yaml".to_owned(), Content::Bytes(yaml.as_bytes().to_vec()))]);
    load(&Loaded::new(cluster.clone()), files).view().objects.clone()
}

proptest! {
    /// Against a reading of the rules address by address.
    #[test]
    fn every_address_leads_where_the_rules_say(
        local in any_cluster("app"),
        b in any_cluster("bb"),
        c in any_cluster("cc"),
        include_local_vteps: bool,
    ) {
        let far = |name: &str, yaml: &str| {
            let name: Arc<str> = name.into();
            let objects = any_objects(&ClusterId::Remote(name.clone()), yaml);
            (name, RemoteCluster { overlay: true, objects })
        };
        let mut local = (*any_objects(&ClusterId::Local, &local)).clone();
        // Else everything remote is refused.
        let own = local.pools.iter().filter(|(name, _)| name.starts_with('p'));
        local.pools = own.map(|(name, pool)| (name.clone(), pool.clone())).collect();
        let world = World {
            node: "app-0".into(),
            include_local_vteps,
            local: Arc::new(local),
            remotes: [far("b", &b), far("c", &c)].into(),
        };
        let resolved = resolve(&world);
        let lookup = |resolved: &Resolved, addr: Addr| {
            let holding = resolved.routes.iter().filter(|(prefix, _)| prefix.contains(addr));
            let longest = holding.max_by_key(|(prefix, _)| prefix.len128());
            longest.map(|(_, route)| route.target.clone())
        };
        let alone = |name: &str| {
            let mut alone = world.clone();
            alone.remotes.retain(|remote, _| &**remote == name);
            resolve(&alone)
        };
        let (alone_b, alone_c) = (alone("b"), alone("c"));
        let claimed = |resolved: &Resolved, addr| {
            matches!(lookup(resolved, addr), Some(RouteTarget::Node { cluster, .. }) if cluster != ClusterId::Local)
        };
        for net in 0..3u8 {
            for n in 0..=255u8 {
                let addr = Addr::from(Ipv4Addr::new(10, net, 0, n));
                let target = lookup(&resolved, addr);
                let (by_b, by_c) = (claimed(&alone_b, addr), claimed(&alone_c, addr));
                if by_b && by_c {
                    prop_assert!(!claimed(&resolved, addr), "{addr}: both claim it");
                }
                match target {
                    None => {}
                    Some(RouteTarget::Local) => prop_assert!(!claimed(&resolved, addr)),
                    Some(RouteTarget::Node { cluster, node }) => {
                        prop_assert!(vtep_for(&resolved, &cluster, &node, true).is_some());
                        if cluster != ClusterId::Local {
                            let mut pools = world.local.pools.values();
                            prop_assert!(pools.all(|pool| !pool.cidr.contains(addr)));
                            prop_assert!(!resolved.own.tunnel.contains(&addr.to_ip()));
                        }
                    }
                }
            }
        }
        for identity in identities(&world).iter().filter(|i| i.cluster != ClusterId::Local) {
            for net in &identity.nets {
                let mut pools = world.local.pools.values();
                prop_assert!(pools.all(|pool| !pool.cidr.overlaps(net)));
            }
        }
        // Nothing depends on anything but the world.
        prop_assert_eq!(&resolve(&world.clone()), &resolved);
    }
}

#[test]
fn a_cluster_that_does_not_join_back_is_named() {
    let kube_system = |uid: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: kube-system, uid: {uid}}}\n"
        )
    };
    let local = app() + &kube_system("a");
    let said = |labels: &str| {
        let remote = db() + &kube_system("d") + &namespace("tieline-system", labels);
        let world = world(&local, &[("db", &remote)]);
        let all = resolve(&world).conditions;
        assert!(mutual::keys(&world).contains("tieline/joined.d"));
        all.into_iter().filter(|it| it.message.contains("does not route")).collect::<Vec<_>>()
    };
    // One that says nothing may well join.
    assert_eq!(said("a: b"), []);
    assert_eq!(said("tieline/joined: '', tieline/joined.x: '', tieline/joined.a: ''"), []);
    let [condition] = &said("tieline/joined: '', tieline/joined.x: ''")[..] else { panic!() };
    assert_eq!(condition.object, "Namespace tieline-system");
    assert_eq!(condition.cluster, ClusterId::Remote("db".into()));
}
