//! The commands that need no daemon, as a user runs them: what they print, and
//! how they exit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tieline_dataplane::capture::{Reader, Writer};

/// Two clusters on disk: pod `shop/web` of the local one on node `na`, pod
/// `shop/db` of the remote one on node `nb`.
struct Site {
    folder: tempfile::TempDir,
}

fn cluster(node: &str, number: u8, pod: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: kube-system, uid: uid-{number}}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: v1
kind: Node
metadata:
  name: {node}
  annotations:
    projectcalico.org/IPv4Address: 192.0.2.{number}/24
    projectcalico.org/IPv4VXLANTunnelAddr: 10.{number}.0.1
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {{name: pods}}
spec: {{cidr: 10.{number}.0.0/16, vxlanMode: Always}}
---
apiVersion: projectcalico.org/v3
kind: IPAMBlock
metadata: {{name: block}}
spec: {{cidr: 10.{number}.0.0/26, affinity: "host:{node}", allocations: [], attributes: [],
  unallocated: [], strictAffinity: false}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {pod}, namespace: shop, labels: {{app: {pod}}}}}
spec: {{nodeName: {node}, serviceAccountName: default, containers: [{{name: c}}]}}
status: {{phase: Running, podIP: 10.{number}.0.5, podIPs: [{{ip: 10.{number}.0.5}}]}}
"#
    )
}

const JOINED: &str = "
apiVersion: projectcalico.org/v3
kind: RemoteClusterConfiguration
metadata: {name: far}
spec:
  clusterAccessSecret: {kind: Secret, name: far, namespace: calico-system}
  syncOptions: {overlayRoutingMode: Enabled}
";

const POLICY: &str = "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: app == 'web'
  types: [Egress]
  egress:
  - {action: Allow, protocol: TCP, destination: {selector: app == 'db', ports: [5432]}}
";

impl Site {
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir_all(site.path("local")).unwrap();
        fs::create_dir_all(site.path("far")).unwrap();
        site.write("local/cluster.yaml", &cluster("na", 1, "web"));
        site.write("local/joined.yaml", JOINED);
        site.write("local/policy.yaml", POLICY);
        site.write("far/cluster.yaml", &cluster("nb", 2, "db"));
        let (local, far) = (site.path("local"), site.path("far"));
        let config = format!(
            "node = \"na\"\n[datastore]\npath = {local:?}\n[datastore.remotes]\nfar = {far:?}\n"
        );
        site.write("tieline.toml", &config);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tieline"));
        command.current_dir(self.folder.path()).args(arguments).env("NO_COLOR", "1");
        command.output().unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

fn exit(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn check_names_the_object_and_the_field_and_exits_accordingly() {
    let site = Site::new();
    let check = ["check", "--config", "tieline.toml", "-o", "json"];
    let good = site.run(&check);
    assert_eq!(exit(&good), 0, "{}", text(&good));
    let counts = &json(&good)["counts"];
    assert_eq!((&counts["remotes"], &counts["policies"]), (&1.into(), &1.into()));
    site.write("local/policy.yaml", &POLICY.replace("app == 'db'", "app = 'db'"));
    let bad = site.run(&check);
    assert_eq!(exit(&bad), 1);
    let conditions = json(&bad)["conditions"].to_string();
    for word in ["NetworkPolicy shop/web", "policy.yaml", "spec.egress[0].destination.selector"] {
        assert!(conditions.contains(word), "{word} is not in {conditions}");
    }
    site.write("tieline.toml", "nod = 'na'\n");
    let broken = site.run(&check);
    assert_eq!(exit(&broken), 2);
    let words = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(words.contains("tieline.toml:1:1") && words.contains("nod"), "{words}");
}

#[test]
fn explain_answers_one_and_many_without_a_daemon() {
    let site = Site::new();
    let ask = |port: &str| {
        let to = ["--from", "shop/web", "--to", "far:shop/db", "--port", port];
        site.run(&[&["explain", "--config", "tieline.toml", "-o", "json"][..], &to].concat())
    };
    let (allowed, denied) = (ask("5432"), ask("22"));
    assert_eq!((exit(&allowed), exit(&denied)), (0, 1));
    assert_eq!(json(&allowed)["verdict"], "allow");
    assert_eq!(json(&allowed)["egress"]["policy"], "shop/web");
    assert_eq!(json(&denied)["egress"]["verdict"], "deny");
    assert_eq!(json(&denied)["ingress"], Value::Null, "the destination is not local");
    site.write(
        "queries",
        r#"{"id":1,"from":"shop/web","to":"10.2.0.5","protocol":"tcp","port":5432}
           {"id":2,"from":"shop/web","to":"10.2.0.5","protocol":"udp","port":53}
           {"id":3,"from":"shop/nobody","to":"10.2.0.5","protocol":"tcp","port":1}"#,
    );
    let many =
        site.run(&["explain", "--config", "tieline.toml", "-o", "json", "--queries", "queries"]);
    assert_eq!(exit(&many), 1, "one has no answer");
    let answers: Vec<Value> =
        text(&many).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = answers.iter().map(|answer| answer["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!((&answers[0]["verdict"], &answers[1]["verdict"]), (&"allow".into(), &"deny".into()));
    assert!(answers[2]["error"].as_str().unwrap().contains("shop/nobody"));
    let unknown = site.run(&["explain", "--config", "tieline.toml", "--from", "x", "--to", "y"]);
    assert_eq!(exit(&unknown), 2);
}

#[test]
fn pods_that_there_are_not_can_be_asked_about() {
    let site = Site::new();
    let explain = |arguments: &[&str]| {
        site.run(&[&["explain", "--config", "tieline.toml", "-o", "json"], arguments].concat())
    };
    let to = ["--to-labels", "app=db,tier=data", "--to-namespace", "shop", "--to-cluster", "far"];
    let from = ["--from-labels", "app=web", "--from-namespace", "shop"];
    let allowed = explain(&[&from[..], &to, &["--port", "5432"]].concat());
    assert_eq!(exit(&allowed), 0, "{}", text(&allowed));
    let answer = json(&allowed);
    assert_eq!(answer["from"]["identities"][0]["kind"], "hypothetical-pod");
    assert_eq!(answer["to"]["identities"][0]["name"], "shop/(app=db,tier=data)");
    assert_eq!((&answer["egress"]["rule"], &answer["route"]), (&1.into(), &Value::Null));
    // The pod that there is, to one that there is not; and with another label.
    let real = explain(&[&["--from", "shop/web"], &to[..], &["--port", "5432"]].concat());
    assert_eq!(exit(&real), 0);
    let other = ["--to-labels", "app=cache", "--to-namespace", "shop", "--to-cluster", "far"];
    assert_eq!(exit(&explain(&[&from[..], &other, &["--port", "5432"]].concat())), 1);
    site.write(
        "queries",
        r#"{"from":{"namespace":"shop","labels":{"app":"web"}},"to":"far:shop/db","port":5432,"expect":"allow"}"#,
    );
    let expect = ["check", "--config", "tieline.toml", "--expect", "queries"];
    assert_eq!(exit(&site.run(&expect)), 0);
    for wrong in [
        &["--from", "shop/web", "--from-labels", "app=web", "--to", "shop/web", "--port", "1"][..],
        &["--from-labels", "app", "--from-namespace", "shop", "--to", "shop/web", "--port", "1"],
        &["--from-namespace", "nowhere", "--to", "shop/web", "--port", "1"],
        &["--from-labels", "app=web", "--from-cluster", "mars", "--to", "shop/web", "--port", "1"],
        &["--from-labels", "app=web", "--port", "1"],
        &["--from", "shop/web", "--to", "far:shop/db", "--protocol", "gre", "--port", "1"],
        &["--from", "shop/web", "--to", "far:shop/db"],
        &["--from", "shop/web", "--to", "far:shop/db", "--protocol", "icmp", "--port", "1"],
        &["--from", "shop/web", "--to", "fd00::1", "--port", "1"],
        &["--from", "shop/web", "--to", "far:shop/db", "--port", "65536"],
    ] {
        let refused = explain(wrong);
        assert_eq!(exit(&refused), 2, "{wrong:?}: {}", text(&refused));
        assert!(!refused.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn expected_verdicts_are_compared() {
    let site = Site::new();
    let connection = |port: u16, expect: &str| {
        format!(
            r#"{{"from":"shop/web","to":"far:shop/db","protocol":"tcp","port":{port},"expect":"{expect}"}}"#
        )
    };
    let check = ["check", "--config", "tieline.toml", "--expect", "expected", "-o", "json"];
    site.write("expected", &[connection(5432, "allow"), connection(22, "deny")].join("\n"));
    let same = site.run(&check);
    assert_eq!(exit(&same), 0, "{}", text(&same));
    site.write("expected", &[connection(5432, "allow"), connection(22, "allow")].join("\n"));
    let other = site.run(&check);
    assert_eq!(exit(&other), 1);
    let differences = &json(&other)["expectations"]["differences"];
    assert_eq!(
        (differences[0]["line"].as_u64(), &differences[0]["found"]),
        (Some(2), &"deny".into())
    );
    site.write("expected", &connection(22, "maybe"));
    assert_eq!(exit(&site.run(&check)), 2);
}

/// An Ethernet frame with a TCP SYN from the local pod to the remote one.
fn syn(port: u16) -> Vec<u8> {
    let mut ip = [0u8; 20];
    (ip[0], ip[3], ip[8], ip[9]) = (0x45, 40, 63, 6);
    ip[12..16].copy_from_slice(&[10, 1, 0, 5]);
    ip[16..20].copy_from_slice(&[10, 2, 0, 5]);
    let words = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut tcp = [0u8; 20];
    tcp[..2].copy_from_slice(&40_000u16.to_be_bytes());
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    (tcp[12], tcp[13]) = (0x50, 0x02);
    [&[2, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 3, 8, 0][..], &ip, &tcp].concat()
}

fn capture(path: &Path, frames: &[Vec<u8>]) {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for (time, frame) in (1_000..).zip(frames) {
        writer.write(time, frame).unwrap();
    }
    fs::write(path, writer.finish().unwrap()).unwrap();
}

#[test]
fn replay_tells_the_fate_of_each_frame() {
    let site = Site::new();
    capture(&site.path("in.pcap"), &[syn(5432), syn(22)]);
    let replay = ["replay", "--config", "tieline.toml", "--gateway", "in.pcap", "-o", "json"];
    let output = site.run(&[&replay[..], &["--to-underlay", "out.pcap"]].concat());
    assert_eq!(exit(&output), 1, "one frame is dropped: {}", text(&output));
    let report = json(&output);
    let fates: Vec<_> = report["frames"].as_array().unwrap().iter().map(|f| &f["fate"]).collect();
    assert_eq!(fates, ["sent", "dropped"]);
    assert_eq!(report["frames"][1]["reason"], "egress_denied");
    let sent = fs::read(site.path("out.pcap")).unwrap();
    let sent: Vec<_> = Reader::new(&sent[..]).unwrap().map(Result::unwrap).collect();
    assert_eq!(sent.len(), 1);
    let frame = &sent[0].frame;
    assert_eq!(frame.len(), 50 + syn(5432).len());
    assert_eq!(frame[26..34], [192, 0, 2, 1, 192, 0, 2, 2], "from our underlay address to theirs");
    assert_eq!(frame[36..38], 4789u16.to_be_bytes());
    assert_eq!(frame[64..], syn(5432)[14..], "the packet itself is untouched");
    let missing = site.run(&["replay", "--config", "tieline.toml", "--gateway", "none.pcap"]);
    assert_eq!(exit(&missing), 2);
}
