//! The XDP programs over a table of named frames, in the kernel by test runs,
//! and on devices.

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use support::frames::*;
use support::*;
use tieline_xsk::area::Area;
use tieline_xsk::filter::{Action, AttachError, Filter, FilterConfig, FilterError, TestRun};
use tieline_xsk::hint;
use tieline_xsk::socket::{Mode, Socket};

fn addresses(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

/// An underlay filter that knows one peer and one own address per family, with
/// a socket on queue 0 of a veth and a worker that has just been alive.
struct Bench {
    filter: Filter,
    heartbeat: tieline_xsk::filter::Heartbeat,
    area: Area,
    socket: Socket,
    run: TestRun,
}

impl Bench {
    fn new(liveness: Duration) -> Self {
        let (a0, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let config = FilterConfig { liveness, ..CONFIG };
        let mut filter = Filter::underlay(&config).unwrap();
        let socket = Socket::bind(&area, a1, 0, Mode::Generic, &small_rings()).unwrap();
        filter.set_socket(0, &socket).unwrap();
        filter.set_peers(&addresses(&[PEER, PEER6])).unwrap();
        filter.set_underlay(&addresses(&[OWN, OWN6])).unwrap();
        let mut heartbeat = filter.heartbeat(0);
        heartbeat.beat(hint::monotonic_ns());
        let _ = a0;
        Self { filter, heartbeat, area, socket, run: TestRun::default() }
    }

    fn judge(&self, frame: &[u8]) -> Action {
        self.filter.test_run(frame, self.run).unwrap()
    }
}

#[test]
fn only_vxlan_from_a_peer_to_us_is_taken() {
    in_namespace(|| {
        let bench = Bench::new(CONFIG.liveness);
        let vlan = |ethertype| ethernet(ethertype, [&[0, 5][..], &GOOD.frame()[12..]].concat());
        let arp = ethernet(0x0806, vec![0; 46]);
        let table: Vec<(&str, Vec<u8>, Action)> = vec![
            ("IPv4", GOOD.frame(), Action::Redirect),
            ("IPv4, 4 bytes of options", V4 { options: 4, ..GOOD }.frame(), Action::Redirect),
            ("IPv4, 40 bytes of options", V4 { options: 40, ..GOOD }.frame(), Action::Redirect),
            ("may be fragmented", V4 { flags_and_offset: 0, ..GOOD }.frame(), Action::Redirect),
            ("first fragment", V4 { flags_and_offset: 0x2000, ..GOOD }.frame(), Action::Pass),
            ("later fragment", V4 { flags_and_offset: 0x2003, ..GOOD }.frame(), Action::Pass),
            ("last fragment", V4 { flags_and_offset: 0x0001, ..GOOD }.frame(), Action::Pass),
            ("largest offset", V4 { flags_and_offset: 0x1fff, ..GOOD }.frame(), Action::Pass),
            ("version 6 in IPv4", V4 { version: 6, ..GOOD }.frame(), Action::Pass),
            ("4 words of header", V4 { claimed_words: Some(4), ..GOOD }.frame(), Action::Pass),
            ("no words of header", V4 { claimed_words: Some(0), ..GOOD }.frame(), Action::Pass),
            ("options missing", V4 { claimed_words: Some(15), ..GOOD }.frame(), Action::Pass),
            ("TCP", V4 { protocol: 6, ..GOOD }.frame(), Action::Pass),
            ("UDP-Lite", V4 { protocol: 136, ..GOOD }.frame(), Action::Pass),
            ("another port", V4 { port: 53, ..GOOD }.frame(), Action::Pass),
            ("port, bytes swapped", V4 { port: 46354, ..GOOD }.frame(), Action::Pass),
            ("unknown source", V4 { source: "192.0.2.3", ..GOOD }.frame(), Action::Pass),
            ("from ourselves", V4 { source: OWN, ..GOOD }.frame(), Action::Pass),
            ("to someone else", V4 { destination: "192.0.2.9", ..GOOD }.frame(), Action::Pass),
            ("to the peer itself", V4 { destination: PEER, ..GOOD }.frame(), Action::Pass),
            ("VLAN tag", vlan(0x8100), Action::Pass),
            ("service VLAN tag", vlan(0x88a8), Action::Pass),
            ("ARP", arp, Action::Pass),
            ("IPv6", v6(6, 17, PEER6, OWN6, 4789), Action::Redirect),
            ("version 4 in IPv6", v6(4, 17, PEER6, OWN6, 4789), Action::Pass),
            ("IPv6, TCP", v6(6, 6, PEER6, OWN6, 4789), Action::Pass),
            ("IPv6, another port", v6(6, 17, PEER6, OWN6, 4790), Action::Pass),
            ("IPv6, unknown source", v6(6, 17, "2001:db8::3", OWN6, 4789), Action::Pass),
            ("IPv6, someone else's", v6(6, 17, PEER6, "2001:db8::9", 4789), Action::Pass),
            ("IPv6, hop-by-hop options", v6_extension(0), Action::Pass),
            ("IPv6, destination options", v6_extension(60), Action::Pass),
            ("IPv6 fragment", v6_extension(44), Action::Pass),
        ];
        for (name, frame, expected) in table {
            assert_eq!(bench.judge(&frame), expected, "{name}");
        }
        drop(bench.socket);
    });
}

#[test]
fn frames_that_are_cut_short_are_passed() {
    in_namespace(|| {
        let bench = Bench::new(CONFIG.liveness);
        let options = V4 { options: 8, ..GOOD }.frame();
        let whole = [
            ("IPv4", GOOD.frame(), 14 + 20 + 8),
            ("IPv4 with options", options, 14 + 28 + 8),
            ("IPv6", v6(6, 17, PEER6, OWN6, 4789), 14 + 40 + 8),
        ];
        for (name, frame, least) in whole {
            for length in 14..frame.len() {
                let expected = if length < least { Action::Pass } else { Action::Redirect };
                assert_eq!(bench.judge(&frame[..length]), expected, "{name}, {length} bytes");
            }
        }
    });
}

#[test]
fn frames_of_a_worker_that_is_not_alive_are_passed() {
    in_namespace(|| {
        let mut bench = Bench::new(Duration::from_secs(60));
        let second = 1_000_000_000;
        let frame = GOOD.frame();
        let now = hint::monotonic_ns();
        // This machine has been up for longer than it takes to get here, but
        // perhaps not for a minute.
        for (name, stamp, expected) in [
            ("just now", now, Action::Redirect),
            ("half a minute ago", now.wrapping_sub(30 * second), Action::Redirect),
            ("two minutes ago", now.wrapping_sub(120 * second), Action::Pass),
            ("ahead of the clock", now + 120 * second, Action::Redirect),
        ] {
            bench.heartbeat.beat(stamp);
            assert_eq!(bench.judge(&frame), expected, "{name}");
        }
    });
}

#[test]
fn a_worker_that_has_never_been_alive_gets_nothing() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let config = FilterConfig { liveness: Duration::from_nanos(1), ..CONFIG };
        let mut filter = Filter::gateway(&config).unwrap();
        let socket = Socket::bind(&area, a1, 0, Mode::Generic, &small_rings()).unwrap();
        filter.set_socket(0, &socket).unwrap();
        assert_eq!(filter.test_run(&GOOD.frame(), TestRun::default()).unwrap(), Action::Pass);
    });
}

#[test]
fn changes_are_in_force_at_once() {
    in_namespace(|| {
        let Bench { mut filter, socket, mut area, run, .. } = Bench::new(CONFIG.liveness);
        let judge = |filter: &Filter, frame: &[u8]| filter.test_run(frame, run).unwrap();
        let (old, new) = (GOOD.frame(), V4 { port: 8472, ..GOOD }.frame());
        filter.set_port(8472).unwrap();
        assert_eq!((judge(&filter, &old), judge(&filter, &new)), (Action::Pass, Action::Redirect));
        filter.set_port(4789).unwrap();

        let other = V4 { source: "192.0.2.3", ..GOOD }.frame();
        filter.set_peers(&addresses(&["192.0.2.3"])).unwrap();
        assert_eq!(
            (judge(&filter, &old), judge(&filter, &other)),
            (Action::Pass, Action::Redirect)
        );
        filter.set_peers(&addresses(&["192.0.2.3", PEER])).unwrap();
        assert_eq!(judge(&filter, &old), Action::Redirect);
        filter.set_underlay(&BTreeSet::new()).unwrap();
        assert_eq!(judge(&filter, &old), Action::Pass);
        filter.set_underlay(&addresses(&[OWN])).unwrap();

        filter.clear_socket(0).unwrap();
        filter.clear_socket(0).unwrap();
        assert_eq!(judge(&filter, &old), Action::Pass, "no socket");
        filter.set_socket(0, &socket).unwrap();
        assert_eq!(judge(&filter, &old), Action::Redirect);
        socket.close(&mut area);
        assert_eq!(judge(&filter, &old), Action::Pass, "socket closed");
    });
}

#[test]
fn the_gateway_takes_everything_of_a_live_worker() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let mut filter = Filter::gateway(&CONFIG).unwrap();
        let socket = Socket::bind(&area, a1, 0, Mode::Generic, &small_rings()).unwrap();
        let arp = ethernet(0x0806, vec![0; 46]);
        let judge = |filter: &Filter| filter.test_run(&arp, TestRun::default()).unwrap();
        let mut heartbeat = filter.heartbeat(0);
        heartbeat.beat(hint::monotonic_ns());
        assert_eq!(judge(&filter), Action::Pass, "no socket");
        filter.set_socket(0, &socket).unwrap();
        assert_eq!(judge(&filter), Action::Redirect);
        heartbeat.beat(hint::monotonic_ns().wrapping_sub(7200 * 1_000_000_000));
        assert_eq!(judge(&filter), Action::Pass, "not alive");
    });
}

#[test]
fn each_queue_has_its_own_worker() {
    in_namespace(|| {
        ip(
            "link add a0 numtxqueues 2 numrxqueues 2 type veth peer name a1 numtxqueues 2 numrxqueues 2",
        );
        ip("link set a0 up");
        ip("link set a1 up");
        let a1 = tieline_xsk::device::index("a1").unwrap();
        assert_eq!(tieline_xsk::device::channels("a1").unwrap(), 2);
        let area = Area::new(64, 2048).unwrap();
        let mut filter = Filter::gateway(&FilterConfig { queues: 2, ..CONFIG }).unwrap();
        let _link = filter.attach(a1, true).unwrap();
        let sockets: Vec<_> = (0..2)
            .map(|queue| Socket::bind(&area, a1, queue, Mode::NativeCopy, &small_rings()).unwrap())
            .collect();
        for (queue, socket) in (0..).zip(&sockets) {
            filter.set_socket(queue, socket).unwrap();
        }
        let judge = |queue| {
            let run = TestRun { ingress: Some((a1, queue)) };
            filter.test_run(&GOOD.frame(), run).unwrap()
        };
        filter.heartbeat(1).beat(hint::monotonic_ns());
        filter.heartbeat(2).beat(hint::monotonic_ns());
        assert_eq!(judge(1), Action::Redirect);
        filter.heartbeat(0).beat(hint::monotonic_ns().wrapping_sub(7200 * 1_000_000_000));
        assert_eq!((judge(0), judge(1)), (Action::Pass, Action::Redirect));
    });
}

#[test]
fn impossible_filters_are_refused() {
    in_namespace(|| {
        for queues in [0, 1025] {
            let error = Filter::gateway(&FilterConfig { queues, ..CONFIG }).unwrap_err();
            assert!(matches!(error, FilterError::Queues { .. }), "{error}");
        }
        let mut filter = Filter::gateway(&CONFIG).unwrap();
        let many = (0..1025u32).map(|host| IpAddr::V4((0x0a00_0000 + host).into())).collect();
        let error = filter.set_underlay(&many).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1025 addresses are too many for map underlay, which holds 1024"
        );
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let socket = Socket::bind(&area, a1, 0, Mode::Generic, &small_rings()).unwrap();
        let error = filter.set_socket(1, &socket).unwrap_err();
        assert_eq!(error.to_string(), "queue 1 is not one of the filter's 1");
    });
}

#[test]
fn a_program_that_is_there_is_never_replaced_but_named() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (ours, foreign) =
            (Filter::underlay(&CONFIG).unwrap(), Filter::gateway(&CONFIG).unwrap());
        for (device, native) in [(a0, true), (a1, false)] {
            let link = foreign.attach(device, native).unwrap();
            assert_eq!((link.ifindex(), link.native()), (device, native));
            // In either mode: a device has room for one.
            for wanted in [native, !native] {
                let error = ours.attach(device, wanted).unwrap_err();
                let AttachError::Foreign { ifindex, programs } = &error else { panic!("{error}") };
                assert_eq!(*ifindex, device);
                let [program] = &programs[..] else { panic!("{error}") };
                assert_eq!(program.name, "tieline_gateway");
                assert_eq!(program.hook, if native { "native" } else { "generic" });
                assert!(program.link.is_some());
                let text = error.to_string();
                assert!(
                    text.contains("tieline_gateway") && text.contains("stop its owner"),
                    "{text}"
                );
            }
            drop(link);
            ours.attach(device, native).expect("dropping the link detaches the program");
        }
    });
}

#[test]
fn a_device_that_is_not_there_can_not_be_attached_to() {
    in_namespace(|| {
        let error = Filter::gateway(&CONFIG).unwrap().attach(9999, true).unwrap_err();
        assert!(matches!(error, AttachError::NoDevice { ifindex: 9999 }), "{error}");
    });
}

#[test]
fn a_driver_without_xdp_says_so() {
    in_namespace(|| {
        let lo = tieline_xsk::device::index("lo").unwrap();
        let filter = Filter::gateway(&CONFIG).unwrap();
        let error = filter.attach(lo, true).unwrap_err();
        assert!(matches!(error, AttachError::Unsupported { hook: "native", .. }), "{error}");
        filter.attach(lo, false).expect("any device has generic mode");
    });
}

/// The whole way: what the filter takes comes to the socket, and the rest to
/// the kernel, which answers.
#[test]
fn what_is_not_taken_goes_on_to_the_kernel() {
    in_namespace(|| {
        for native in [true, false] {
            let (a0, a1) = veth("a0", "a1");
            let mode = if native { Mode::NativeCopy } else { Mode::Generic };
            let mut area = Area::new(256, 2048).unwrap();
            let mut filter = Filter::underlay(&CONFIG).unwrap();
            filter.set_peers(&addresses(&[PEER])).unwrap();
            filter.set_underlay(&addresses(&[OWN])).unwrap();
            filter.heartbeat(0).beat(hint::monotonic_ns());
            let link = filter.attach(a1, native).unwrap();
            let mut socket = Socket::bind(&area, a1, 0, mode, &small_rings()).unwrap();
            filter.set_socket(0, &socket).unwrap();
            socket.refill(&mut area);
            let mut kernel = Injector::open(a1);
            let mut source = Injector::open(a0);
            source.send(&GOOD.frame());
            source.send(&V4 { port: 53, ..GOOD }.frame());
            let mut taken = Vec::new();
            let mut passed = Vec::new();
            eventually("one frame on each way", || {
                socket.receive(&mut area, 16, |frame| taken.push(frame));
                passed.extend(kernel.received());
                !taken.is_empty() && !passed.is_empty()
            });
            let taken: Vec<_> = taken.into_iter().map(|frame| take(&mut area, frame)).collect();
            assert_eq!(taken, [GOOD.frame()], "{mode}");
            assert_eq!(passed, [V4 { port: 53, ..GOOD }.frame()], "{mode}");
            drop(link);
            source.send(&GOOD.frame());
            eventually("the kernel gets all without the link", || {
                passed.extend(kernel.received());
                passed.len() == 2
            });
            socket.close(&mut area);
            ip("link del a0");
        }
    });
}
