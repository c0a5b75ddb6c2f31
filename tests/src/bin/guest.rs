//! What a guest runs: one daemon on the first network card, the kernel's vxlan
//! device on the second, and traffic between their pods. Prints what it saw as
//! one JSON object on a line that begins with `GUEST`; whoever started the guest
//! judges.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tieline_lab::{Netns, Pktgen, Pod, Signal, TcpServer, bulk, connect};
use tieline_tests::joined::{Daemon, Joined, Outer, PATIENCE, Setup};

const PORT: u16 = 5001;

/// Packets of one run of the kernel's packet generator.
const GENERATED: u64 = 2000;

fn main() {
    let setup = Setup { cpus: Some("1"), ..Setup::new(Outer::Both) };
    let joined = Joined::over(setup, ["eth0", "eth1"]);
    let daemon = joined.start("daemon");
    daemon.wait_ready();
    let _servers =
        [joined.client(), joined.server()].map(|pod| TcpServer::start(&pod.netns, PORT).unwrap());
    let tcp = tcp(&joined, &daemon);
    let status = settled(&daemon);
    let generated = [
        generated(&joined, &daemon, joined.server(), joined.client()),
        generated(&joined, &daemon, joined.client(), joined.server()),
    ];
    lose_packets(&joined.their_node().netns);
    let lossy = self::tcp(&joined, &daemon);
    let cpus = cpus(&daemon);
    daemon.process.signal(Signal::Term).unwrap();
    let end = daemon.process.wait(PATIENCE).expect("the daemon's end");
    let report = json!({
        "kernel": rustix::system::uname().release().to_string_lossy(),
        "tcp": tcp,
        "status": status,
        "generated": generated,
        "lossy": lossy,
        "isolated": read("/sys/devices/system/cpu/isolated"),
        "cpus": cpus,
        "exit_code": end.code(),
        "log": daemon.process.transcript(),
    });
    println!("GUEST {report}");
}

/// Connections both ways in both families: what became of each, and how many
/// bytes a transfer of half a second moved, all compared.
fn tcp(joined: &Joined, daemon: &Daemon) -> Vec<Value> {
    let pods: [&Pod; 2] = [joined.client(), joined.server()];
    let mut seen = Vec::new();
    for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
        for address in to.addresses() {
            let peer = SocketAddr::new(address, PORT);
            let outcome = connect(&from.netns, peer, PATIENCE).unwrap();
            let moved = bulk(&from.netns, peer, Duration::from_millis(500));
            let moved = moved.unwrap_or_else(|error| {
                panic!(
                    "{} to {peer}: {outcome:?}, then {error}\n{:#?}\n{}",
                    from.name,
                    daemon.status(),
                    daemon.process.transcript()
                )
            });
            seen.push(json!({
                "from": from.name,
                "to": address,
                "outcome": format!("{outcome:?}"),
                "bytes": moved.bytes,
            }));
        }
    }
    seen
}

/// The status once nothing moves any more. The stages' counts are of the
/// moment, those of the ports up to a second old.
fn settled(daemon: &Daemon) -> Value {
    let mut last = Value::Null;
    let start = Instant::now();
    loop {
        let status = daemon.status().expect("a status");
        let packets = |name: &str| status["counters"][name].clone();
        let now = json!([
            packets("encapsulated_packets"),
            packets("decapsulated_packets"),
            status["workers"],
        ]);
        if now == last || start.elapsed() > PATIENCE {
            return status;
        }
        last = now;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Where the worker is, and what is reported of it: at first, while the daemon's
/// cpuset leaves out the worker's CPU, and after that.
fn cpus(daemon: &Daemon) -> Vec<Value> {
    let cgroups = Path::new("/sys/fs/cgroup");
    let mounted = Command::new("mount").args(["-t", "cgroup2", "none"]).arg(cgroups).status();
    assert!(mounted.unwrap().success());
    let group = cgroups.join("daemon");
    let write = |path: PathBuf, text: &str| {
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    write(cgroups.join("cgroup.subtree_control"), "+cpuset");
    fs::create_dir(&group).unwrap();
    write(group.join("cgroup.procs"), &daemon.process.pid().to_string());
    // Workers look twice a second, and placement follows within another one.
    let seen = |list: &str, awaited: Value| {
        write(group.join("cpuset.cpus"), list);
        let start = Instant::now();
        loop {
            let status = daemon.status().expect("a status");
            let (worker, objects) = (&status["workers"][0], objects(&status));
            let (is, wanted) = (&worker["cpu"], &worker["cpu_wanted"]);
            let found = json!({"cpu": is, "wanted": wanted, "conditions": objects});
            if found == awaited || start.elapsed() > PATIENCE {
                return found;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let there = json!({"cpu": 1, "wanted": 1, "conditions": []});
    let elsewhere = json!({"cpu": 0, "wanted": null, "conditions": ["workers.cpus"]});
    vec![seen("0-1", there.clone()), seen("0", elsewhere), seen("0-1", there)]
}

/// What conditions are about.
fn objects(status: &Value) -> Vec<Value> {
    let conditions = status["conditions"].as_array().expect("conditions");
    conditions.iter().map(|condition| condition["object"].clone()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Sends packets with the kernel's generator from one pod to the other and
/// counts them on the way.
fn generated(joined: &Joined, daemon: &Daemon, from: &Pod, to: &Pod) -> Value {
    let their_node = &joined.their_node().netns;
    let count = || {
        let status = settled(daemon);
        let counter = |name: &str| status["counters"][name].as_u64().unwrap();
        let worker = &status["workers"][0];
        let dropped = |port: &str| worker[port]["receive_dropped"].as_u64().unwrap();
        [
            counter("decapsulated_packets") + dropped("underlay_port"),
            counter("encapsulated_packets") + dropped("gateway_port"),
            counter("encapsulated_packets"),
            received(their_node, "vxlan.calico"),
        ]
    };
    let before = count();
    let sent = generate(from, to.v4);
    let after = count();
    let [down, up, encapsulated, arrived] = std::array::from_fn(|at| after[at] - before[at]);
    json!({
        "sent": sent,
        "decapsulated_or_dropped": down,
        "encapsulated_or_dropped": up,
        "encapsulated": encapsulated,
        "arrived": arrived,
    })
}

/// Runs pktgen on a pod's device and returns how many packets it sent.
fn generate(from: &Pod, to: Ipv4Addr) -> u64 {
    let pktgen = Pktgen {
        device: "eth0".to_owned(),
        cpu: 0,
        packets: GENERATED,
        size: 200,
        // A veth's queue of 256 has room for what comes while the emulated CPU is
        // away, up to a quarter of a second.
        rate: Some(1000),
        mac: "ee:ee:ee:ee:ee:ee".to_owned(),
        addresses: (from.v4, to),
        source_ports: (9, 9),
        port: 9,
    };
    let generated = pktgen.run(&from.netns).unwrap();
    assert_eq!(generated.errors, 0, "{generated:?}");
    generated.sent
}

/// Packets that a device has received (/proc/net/dev).
fn received(netns: &Netns, device: &str) -> u64 {
    let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    packets.unwrap_or_else(|| panic!("no {device} in {table}"))
}

/// Makes a node lose, delay and reorder some of what it sends.
fn lose_packets(netns: &Netns) {
    let mut command = Command::new("tc");
    command.args("qdisc add dev eth0 root netem loss 2% delay 2ms 1ms".split(' '));
    let output = netns.output("tc", command, PATIENCE).unwrap();
    assert!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr));
}
