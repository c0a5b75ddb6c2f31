//! Another overlay on the ranges of ours, with the kernel's own devices, routes
//! and rules.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use tieline::link::{Gateway, GatewaySpec, Netlink, RouteSettings};
use tieline::state::{Condition, Severity};
use tieline_lab::{Lab, Netns};

/// How long something may take that normally takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn run<T: Send>(netns: &Netns, test: impl AsyncFnOnce() -> T + Send) -> T {
    let inside = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test())
    };
    netns.run(inside).unwrap()
}

async fn conditions(netlink: &mut Netlink, gateway: &Gateway) -> Vec<Condition> {
    let wanted = ["10.60.0.0/26", "10.60.0.64/26", "10.70.0.0/16", "fd00:60::/122"];
    let wanted: BTreeSet<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
    let settings = RouteSettings::default();
    netlink.sync_routes(&wanted, gateway, &settings).await.unwrap().conditions
}

async fn routes_change(netlink: &mut Netlink) {
    let change = async { while !netlink.changed().await.unwrap().routes {} };
    tokio::time::timeout(PATIENCE, change).await.expect("it is noticed");
}

#[test]
fn is_named_with_the_remedy() {
    let lab = Lab::new("overlap").unwrap();
    let netns = lab.netns("node").unwrap();
    netns.sysctl("net/ipv4/ip_forward", "1").unwrap();
    netns.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    // Calico's device, whose route is to the ranges of this cluster, and a way
    // to everywhere: neither is another overlay.
    netns
        .ip([
            "link add eth0 type veth peer name eth1",
            "link set eth0 up",
            "link set eth1 up",
            "address add 192.0.2.2/24 dev eth0",
            "route add default via 192.0.2.1",
            "route add 10.0.0.0/8 via 192.0.2.1",
            "link add vxlan.calico type vxlan id 4096 dstport 4789 dev eth0",
            "link set vxlan.calico up",
            "route add 10.48.0.0/12 dev vxlan.calico proto 80",
            "link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
            "link set flannel.1 up",
            "link add vx-other type vxlan id 100 dstport 4800 dev eth0",
            "link set vx-other up",
        ])
        .unwrap();
    run(&netns, async || {
        let mut netlink = Netlink::open().unwrap();
        let spec = GatewaySpec { queues: Some(1), ..GatewaySpec::new(1450) };
        let gateway = netlink.ensure_gateway(&spec).await.unwrap();
        assert_eq!(conditions(&mut netlink, &gateway).await, []);

        // One that has more than our range, and loses.
        netns.ip(["route add 10.70.0.0/15 dev flannel.1"]).unwrap();
        routes_change(&mut netlink).await;
        let [more] = &conditions(&mut netlink, &gateway).await[..] else { panic!("one") };
        assert_eq!((more.severity, &*more.object), (Severity::Warning, "route 10.70.0.0/15"));
        let words = "another overlay has the remote pod range 10.70.0.0/16 too: the node routes \
                     10.70.0.0/15 dev flannel.1 ";
        assert!(more.message.starts_with(words), "{more:?}");
        netns.ip(["route del 10.70.0.0/15 dev flannel.1"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await, []);

        // One that has parts of our ranges, and wins there.
        netns
            .ip([
                "route add 10.70.3.0/24 dev flannel.1 proto bird",
                "route add 10.70.4.0/24 dev flannel.1 proto bird",
                "route add fd00:60::8/125 dev vx-other",
            ])
            .unwrap();
        routes_change(&mut netlink).await;
        let found = conditions(&mut netlink, &gateway).await;
        assert!(found.iter().all(|it| it.severity == Severity::Error), "{found:?}");
        let of = |object: &str| {
            let condition = found.iter().find(|it| it.object == object);
            condition.unwrap_or_else(|| panic!("{object} in {found:?}")).message.clone()
        };
        let words = of("route 10.70.3.0/24");
        assert!(words.starts_with("is a part of the remote pod range 10.70.0.0/16"), "{words}");
        assert!(words.contains("dev flannel.1 proto 12 metric 0"), "{words}");
        assert!(words.contains("(and 1 more of this kind)"), "{words}");
        assert!(words.contains("(ip route del 10.70.3.0/24)"), "{words}");
        assert!(of("route fd00:60::8/125").contains("dev vx-other"));
        assert_eq!(found.len(), 2);
        netns.ip(["route del fd00:60::8/125"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await.len(), 1);
        // Of an IPv4 route that goes with its device no event tells.
        netns.ip(["link del flannel.1"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await, []);

        // One in a table of its own, which nobody asks at first.
        netns.ip(["route add 10.60.0.0/16 dev vx-other table 1500"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await, []);
        netns.ip(["rule add fwmark 1 lookup 1500 priority 140"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await, []);
        netns.ip(["rule add lookup 1500 priority 150"]).unwrap();
        routes_change(&mut netlink).await;
        let [first] = &conditions(&mut netlink, &gateway).await[..] else { panic!("one") };
        assert_eq!((first.severity, &*first.object), (Severity::Error, "route 10.60.0.0/16"));
        for words in ["dev vx-other", "by table 1500, ", "(ip rule del priority 150)"] {
            assert!(first.message.contains(words), "{words}: {first:?}");
        }
        netns.ip(["link set vx-other down"]).unwrap();
        routes_change(&mut netlink).await;
        assert_eq!(conditions(&mut netlink, &gateway).await, []);
    });
}
