//! Namespaces, links, processes and TCP peers do what they promise, and are
//! gone afterwards.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tieline_lab::{
    End, Error, KernelVxlan, Lab, Netns, Outcome, Signal, Stream, TcpServer, VxlanPeer, bulk,
    connect, request_response, veth,
};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(300);

/// Two namespaces with one link, 10.0.0.1 and .2, fd00::1 and ::2.
fn pair(lab: &Lab) -> Result<(Netns, Netns)> {
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    veth(
        1500,
        &End::new(&a, "eth0").address("10.0.0.1/24").address("fd00::1/64"),
        &End::new(&b, "eth0").address("10.0.0.2/24").address("fd00::2/64"),
    )?;
    Ok((a, b))
}

fn to(address: &str) -> SocketAddr {
    address.parse().expect("a socket address")
}

fn exists(netns: &str) -> bool {
    Path::new("/run/netns").join(netns).exists()
}

#[test]
fn tcp_over_a_veth_in_both_families() -> Result {
    let lab = Lab::new("core")?;
    let (a, b) = pair(&lab)?;
    let _server = TcpServer::start(&b, 5432)?;
    for address in ["10.0.0.2", "fd00::2"] {
        let at = |port: u16| SocketAddr::new(address.parse().expect("an address"), port);
        assert_eq!(connect(&a, at(5432), SOON)?, Outcome::Connected);
        assert_eq!(connect(&a, at(22), SOON)?, Outcome::Refused);
        let sent = bulk(&a, at(5432), SHORT)?;
        assert!(sent.bytes > 0 && sent.elapsed >= SHORT);
        let trips = request_response(&a, at(5432), 64, SHORT)?;
        assert!(trips.count() > 0 && trips.quantile(0.5) <= trips.quantile(1.0));
    }
    assert!(matches!(connect(&a, to("192.0.2.1:1"), SHORT)?, Outcome::Unreachable(_)));
    a.ip(["route add 192.0.2.0/24 via 10.0.0.2"])?;
    b.ip(["route add blackhole 192.0.2.0/24"])?;
    assert_eq!(connect(&a, to("192.0.2.1:1"), SHORT)?, Outcome::TimedOut);
    Ok(())
}

#[test]
fn a_running_stream_knows_when_it_was_cut() -> Result {
    let lab = Lab::new("core")?;
    let (a, b) = pair(&lab)?;
    let _server = TcpServer::start(&b, 5432)?;
    let stream = Stream::start(&a, to("10.0.0.2:5432"), Duration::from_millis(5), SOON)?;
    stream.wait_answers(10, SOON)?;
    assert!(matches!(stream.wait_stall(SHORT, SHORT), Err(Error::Deadline { .. })));
    b.ip(["link set eth0 down"])?;
    let stall = stream.wait_stall(SHORT, SOON)?;
    assert!(stall.last_answer <= stall.first_unanswered + SHORT);
    b.ip(["link set eth0 up"])?;
    stream.wait_answers(10, SOON)?;
    Ok(())
}

#[test]
fn kernel_vxlan_devices_talk_over_both_outer_families() -> Result {
    let lab = Lab::new("core")?;
    let (a, b) = pair(&lab)?;
    let _server = TcpServer::start(&b, 80)?;
    let outers = [("10.0.0.1", "10.0.0.2", 4096, 4789), ("fd00::1", "fd00::2", 7, 8472)];
    for (left, right, vni, port) in outers {
        let device = |local: &str, mac: &str, address: &str| KernelVxlan {
            device: format!("vx{vni}"),
            vni,
            port,
            local: local.parse().expect("an address"),
            mac: mac.to_owned(),
            mtu: 1400,
            addresses: vec![format!("{address}/32")],
        };
        let peer = |outer: &str, mac: &str, tunnel: &str| VxlanPeer {
            outer: outer.parse().expect("an address"),
            mac: mac.to_owned(),
            tunnel: tunnel.parse().expect("an address"),
            routes: vec![format!("{tunnel}/32")],
        };
        let (mac1, mac2) = ("66:00:00:00:00:01", "66:00:00:00:00:02");
        let (in1, in2) = (format!("10.1.{}.1", vni % 256), format!("10.1.{}.2", vni % 256));
        let (d1, d2) = (device(left, mac1, &in1), device(right, mac2, &in2));
        d1.create(&a)?;
        d2.create(&b)?;
        d1.add_peer(&a, &peer(right, mac2, &in2))?;
        d2.add_peer(&b, &peer(left, mac1, &in1))?;
        assert_eq!(connect(&a, to(&format!("{in2}:80")), SOON)?, Outcome::Connected);
    }
    Ok(())
}

#[test]
fn processes_are_bounded_signaled_and_reaped() -> Result {
    let lab = Lab::new("core")?;
    let a = lab.netns("a")?;
    let mut links = Command::new("ip");
    links.args(["-o", "link"]);
    let output = a.output("links", links, SOON)?;
    let text = String::from_utf8(output.stdout)?;
    assert!(output.status.success() && text.contains("lo:") && text.lines().count() == 1, "{text}");

    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let sleep = a.spawn("sleep", sleep)?;
    assert!(matches!(sleep.wait(SHORT), Err(Error::Deadline { .. })));
    assert!(sleep.try_wait()?.is_none());
    sleep.signal(Signal::Term)?;
    assert!(!sleep.wait(SOON)?.success());
    sleep.signal(Signal::Kill)?;

    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]);
    let shell = a.spawn("shell", shell)?;
    let pid = shell.pid();
    while shell.stdout()?.is_empty() {
        assert!(shell.try_wait()?.is_none(), "{}", shell.transcript());
        std::thread::yield_now();
    }
    let child = String::from_utf8(shell.stdout()?)?;
    assert!(Path::new("/proc").join(child.trim()).exists());
    drop(shell);
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    Ok(())
}

#[test]
fn a_lab_leaves_nothing_behind() -> Result {
    let lab = Lab::new("core")?;
    let (a, _b) = pair(&lab)?;
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let sleep = a.spawn("sleep", sleep)?;
    let (name, dir, pid) = (a.name().to_owned(), lab.dir().to_owned(), sleep.pid());
    assert!(exists(&name) && dir.exists());
    let closer = lab.closer();
    closer.close();
    assert!(!exists(&name) && !dir.exists() && !Path::new(&format!("/proc/{pid}")).exists());
    assert!(matches!(lab.netns("c"), Err(Error::Closed)));
    assert!(matches!(a.spawn("late", Command::new("true")), Err(Error::Closed)));
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result {
    let (tx, rx) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = Lab::new("core").expect("a lab");
        let (a, _b) = pair(&lab).expect("two namespaces");
        tx.send((a.name().to_owned(), lab.dir().to_owned())).expect("a receiver");
        a.run(|| panic!("on purpose")).expect("to be inside");
    })
    .join();
    assert!(panicked.is_err());
    let (name, dir) = rx.recv()?;
    assert!(!exists(&name) && !dir.exists());
    Ok(())
}

#[test]
fn two_labs_at_once_do_not_meet() -> Result {
    let (one, two) = (Lab::new("core")?, Lab::new("core")?);
    let ((_a1, b1), (a2, _b2)) = (pair(&one)?, pair(&two)?);
    let _server = TcpServer::start(&b1, 5432)?;
    assert_eq!(connect(&a2, to("10.0.0.2:5432"), SOON)?, Outcome::Refused);
    drop(one);
    assert_eq!(connect(&a2, to("10.0.0.2:5432"), SOON)?, Outcome::Refused);
    Ok(())
}

#[test]
fn leftovers_of_an_ended_process_are_swept() -> Result {
    // A process id that was surely in use and is not any more.
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    let name = format!("tl-swept-{pid}-0.a");
    let status = Command::new("ip").args(["netns", "add", &name]).status()?;
    assert!(status.success() && exists(&name));
    let _lab = Lab::new("core")?;
    assert!(!exists(&name));
    Ok(())
}

#[test]
fn names_are_checked() -> Result {
    assert!(matches!(Lab::new("../x"), Err(Error::Name(_))));
    let lab = Lab::new("core")?;
    for name in ["", "-a", "a-", "A", "a b", "a\nb", "a/b", "a.b"] {
        assert!(matches!(lab.netns(name), Err(Error::Name(_))), "{name}");
    }
    assert!(matches!(
        lab.netns("a").and_then(|a| a.ip(["link set nope up"])),
        Err(Error::Command { .. })
    ));
    Ok(())
}

#[test]
fn a_kept_lab_stays_until_it_is_removed() -> Result {
    let lab = Lab::new("kept")?;
    let a = lab.netns("a")?;
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let sleep = a.spawn("sleep", sleep)?;
    let (name, dir, proc) =
        (a.name().to_owned(), lab.dir().to_owned(), format!("/proc/{}", sleep.pid()));
    lab.keep()?;
    drop(sleep);
    assert!(exists(&name) && dir.exists() && Path::new(&proc).exists());
    assert_eq!(tieline_lab::remove_kept("kept")?, 1);
    assert!(!exists(&name) && !dir.exists());
    // Killed, and waiting for its parent, which is this process.
    while !std::fs::read_to_string(format!("{proc}/stat"))?.contains(") Z ") {
        std::thread::yield_now();
    }
    assert_eq!(tieline_lab::remove_kept("kept")?, 0);
    Ok(())
}
