//! Kinds of traffic and where it goes, as a user asks for them, on short runs:
//! that packets arrive as they should, not how fast.
#![forbid(unsafe_code)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{PROGRAM, gaps, is_root, results, run, scratch, turn};
use tieline_dataplane::capture::Writer;
use tieline_lab::{Lab, Netns};

/// Medians of a measure, by case.
fn medians(results: &Value, subject: &str, measure: &str) -> Vec<(String, f64)> {
    let rows = results["rows"].as_array().unwrap().iter();
    rows.filter(|row| row["subject"] == subject && row["measure"] == measure)
        .map(|row| (row["case"].as_str().unwrap().to_owned(), row["median"].as_f64().unwrap()))
        .collect()
}

/// Every packet that arrived did so once, whole, and later than it was due.
fn assert_sound(results: &Value, subject: &str, cases: usize) {
    for fault in ["duplicated", "damaged", "reordered"] {
        let found = medians(results, subject, fault);
        assert_eq!(found.len(), cases, "{subject}, {fault}: {found:?}");
        assert!(found.iter().all(|(_, part)| *part == 0.0), "{subject}, {fault}: {found:?}");
    }
    let latencies = medians(results, subject, "latency p50");
    assert_eq!(latencies.len(), cases, "{subject}: {latencies:?}");
    assert!(latencies.iter().all(|(_, ns)| *ns > 0.0), "{subject}: {latencies:?}");
}

#[test]
fn streams_of_all_kinds_arrive_whole() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("streams");
    let output = run(&["streams", "--only", "wire", "--only", "kernel"], &out);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&out);
    assert_eq!(gaps(&results), Vec::<&str>::new(), "{said}");
    for subject in ["wire", "kernel"] {
        // Four kinds at two rates.
        assert_sound(&results, subject, 8);
        let latencies = medians(&results, subject, "latency p50");
        let kinds = ["64 bytes, 50 kpps", "IMIX", "IPv6", "bursts of 64"];
        for kind in kinds {
            assert!(latencies.iter().any(|(case, _)| case.contains(kind)), "{latencies:?}");
        }
    }
    fs::remove_dir_all(out).unwrap();
}

/// Three flows at 20,000 packets a second, of both families and two sizes.
fn capture(path: &Path) {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for number in 0..300u64 {
        let mut frame = vec![0; if number % 3 == 0 { 900 } else { 120 }];
        if number % 2 == 0 {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[14..34].copy_from_slice(&[
                0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
            ]);
        } else {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14] = 0x60;
            frame[20] = 17;
        }
        frame[35] = (number % 4) as u8;
        let time_ns = 1_700_000_000_000_000_000 + number * 50_000;
        writer.write(time_ns, &frame).unwrap();
    }
    fs::write(path, writer.finish().unwrap()).unwrap();
}

#[test]
fn a_capture_is_replayed_and_none_is_a_gap() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("replay");
    fs::create_dir_all(&out).unwrap();
    let file = out.join("traffic.pcap");
    capture(&file);
    let arguments = ["replay", "--only", "kernel", "--capture", file.to_str().unwrap()];
    let output = run(&arguments, &out);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let with = results(&out);
    assert_eq!(gaps(&with), Vec::<&str>::new(), "{said}");
    assert_sound(&with, "kernel", 2);
    let about = with["scenarios"][0]["about"].as_str().unwrap();
    assert!(about.contains("300 packets"), "{about}");

    assert_eq!(run(&["replay"], &out).status.code(), Some(0));
    let without = results(&out);
    assert!(without["gaps"][0]["reason"].as_str().unwrap().contains("--capture"), "{without}");
    fs::write(&file, b"no capture at all, whatever its name").unwrap();
    assert_eq!(run(&arguments, &out).status.code(), Some(2));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn iperf3_is_used_beside_our_own_peers() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("iperf3");
    let output = run(&["tcp", "--only", "kernel"], &out);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&out);
    let gaps = results["gaps"].as_array().unwrap();
    // Installed by .ci/packages; elsewhere the report says how.
    if Command::new("iperf3").arg("--version").output().is_ok() {
        let rates = medians(&results, "kernel", "TCP transfer by iperf3");
        assert!(rates.len() == 1 && rates[0].1 > 0.0 && gaps.is_empty(), "{rates:?} {gaps:?}");
    } else {
        assert!(gaps[0]["reason"].as_str().unwrap().contains("apt-get install iperf3"));
    }
    fs::remove_dir_all(out).unwrap();
}

const DEVICES: [&str; 8] =
    ["run", "--generator", "cable0", "--router", "cable1,cable2", "--sink", "cable3", "--quick"];

/// Name, address, MTU and state of each device of a namespace.
fn devices(machine: &Netns) -> Vec<String> {
    let mut command = Command::new("ip");
    command.args(["-j", "link"]);
    let output = machine.output("link", command, Duration::from_secs(10)).unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    let links = links.as_array().unwrap().iter();
    let mut all: Vec<String> = links
        .map(|link| {
            let up = link["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
            format!("{} {} {} {up}", link["ifname"], link["address"], link["mtu"])
        })
        .collect();
    all.sort();
    all
}

#[test]
fn named_devices_are_used_and_given_back_as_they_were() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("devices");
    let lab = Lab::new("perfdev").unwrap();
    // Two cables of a machine, as far as the program can see.
    let machine = lab.netns("machine").unwrap();
    machine
        .ip([
            "link add cable0 mtu 1400 address 02:00:00:00:aa:00 type veth peer name cable1",
            "link add cable2 mtu 2000 type veth peer name cable3",
            "link set cable0 up",
            "link set cable1 up",
        ])
        .unwrap();
    let before = devices(&machine);
    assert_eq!(before.len(), 5, "{before:?}");
    let perf = |more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(DEVICES).args(["--runs", "1", "--out"]).arg(&out).args(more);
        machine.output("perf", command, Duration::from_secs(120)).unwrap()
    };
    let output = perf(&["flood", "streams", "--only", "kernel"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&out);
    assert_eq!(gaps(&results), Vec::<&str>::new(), "{said}");
    assert!(results["placement"].as_str().unwrap().contains("cable2 for u0"), "{results}");
    assert_eq!(medians(&results, "kernel", "forwarded").len(), 2);
    assert_sound(&results, "kernel", 8);
    assert_eq!(devices(&machine), before);

    // Nothing that somebody uses is taken.
    machine.ip(["address add 192.0.2.1/24 dev cable1"]).unwrap();
    let output = perf(&["flood"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cable1 is in use") && said.contains("192.0.2.1"), "{said}");
    assert_eq!(devices(&machine), before);
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn the_router_can_be_another_machines() {
    if !is_root() {
        return;
    }
    let _turn = turn();
    let out = scratch("remote");
    let lab = Lab::new("perftwo").unwrap();
    let (here, there) = (lab.netns("here").unwrap(), lab.netns("there").unwrap());
    for (near, far) in [("cable0", "cable1"), ("cable3", "cable2")] {
        let pair = format!("link add {near} type veth peer name {far} netns {}", there.name());
        here.ip([pair]).unwrap();
    }
    let before = [devices(&here), devices(&there)];
    let mut command = Command::new(PROGRAM);
    command.args(["route", "kernel", "--router", "cable1,cable2", "--flows", "1000"]);
    let router = there.spawn("router", command).unwrap();
    let started = std::time::Instant::now();
    while !router.transcript().contains("kernel routes") {
        let ended = router.try_wait().unwrap();
        assert!(
            ended.is_none() && started.elapsed() < Duration::from_secs(30),
            "{}",
            router.transcript()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut command = Command::new(PROGRAM);
    command.args(["run", "streams", "tcp", "--generator", "cable0", "--sink", "cable3"]);
    command.args(["--remote", "theirs", "--quick", "--runs", "1", "--out"]).arg(&out);
    let output = here.output("perf", command, Duration::from_secs(120)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let results = results(&out);
    assert_sound(&results, "theirs", 8);
    assert!(medians(&results, "theirs", "TCP transfer")[0].1 > 0.0, "{said}");
    let cpu = medians(&results, "theirs", "CPU time");
    assert!(cpu.is_empty(), "that of another machine is not known: {cpu:?}");
    router.signal(tieline_lab::Signal::Int).unwrap();
    router.wait(Duration::from_secs(30)).unwrap();
    assert_eq!([devices(&here), devices(&there)], before);
    fs::remove_dir_all(out).unwrap();
}
