//! Measured traffic: what is sent arrives as the source says, and what goes
//! wrong on the way is told by its name.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use support::*;
use tieline_xsk::area::Area;
use tieline_xsk::generator::GeneratorError;
use tieline_xsk::socket::Mode;
use tieline_xsk::traffic::{Check, CheckConfig, Run, Source, SourceConfig};

const STAMP_AT: u16 = 42;
const PATTERN: [u8; 8] = *b"tieline!";

/// 10.0.0.1 to 10.0.0.200, UDP, 66 bytes.
fn config(flows: u32) -> SourceConfig {
    let mut frame = vec![0; usize::from(STAMP_AT) + 16];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..34]
        .copy_from_slice(&[0x45, 0, 0, 52, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 200]);
    frame[34..42].copy_from_slice(&[0, 0, 0x12, 0x34, 0, 32, 0, 0]);
    frame.extend(PATTERN);
    SourceConfig { frame, stamp_at: STAMP_AT, flows, first: 0, port_at: 34, pair_at: (29, 33) }
}

fn checks(expected: Vec<(u16, [u8; 4])>) -> CheckConfig {
    CheckConfig { stamp_at: STAMP_AT, expected, pattern: PATTERN.to_vec() }
}

const RUN: Run = Run { tag: 7, packets: 5000, rate: None, first_flow: 0, batch: 64 };

#[test]
fn a_run_arrives_whole_in_order_and_at_its_rate() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let check = Check::attach(a1, true, &checks(vec![(26, [10, 0, 0, 1])])).unwrap();
        let source = Source::new(a0, &config(1)).unwrap();
        check.start(RUN.tag);
        let run = Run { rate: Some(50_000.0), ..RUN };
        let sent = source.run(&run).unwrap();
        assert_eq!((sent.packets, sent.elapsed), (5000, Duration::from_millis(100)));
        eventually("all packets", || check.received() == 5000);
        let seen = check.seen();
        let faults = [seen.missing, seen.reordered, seen.duplicated, seen.corrupt, seen.foreign];
        assert_eq!(faults, [0; 5]);
        let counted: u64 = seen.latencies.iter().map(|(_, packets)| packets).sum();
        assert_eq!(counted, 5000);
        // A latency counts from when the packet was due.
        assert!(u128::from(seen.longest_ns) >= sent.latest.as_nanos(), "{seen:?} {sent:?}");
        let (half, all) = (seen.quantile_ns(0.5).unwrap(), seen.quantile_ns(1.0).unwrap());
        assert!(half <= all && all <= seen.longest_ns, "{half} {all}");
        // So many pauses make up the time from the first to the last.
        let span = 4999 * 20_000;
        assert!(seen.longest_gap_ns * 4999 + seen.longest_ns >= span, "{seen:?}");

        // Another run's packets are told apart.
        check.start(8);
        source.run(&RUN).unwrap();
        eventually("all packets", || check.seen().foreign == 5000);
        assert_eq!(check.received(), 0);
    });
}

#[test]
fn what_differs_is_corrupt() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        for wrong in [
            checks(vec![(30, [10, 0, 0, 7])]),
            CheckConfig { pattern: b"tieline?".to_vec(), ..checks(Vec::new()) },
        ] {
            let check = Check::attach(a1, true, &wrong).unwrap();
            let source = Source::new(a0, &config(1)).unwrap();
            check.start(RUN.tag);
            source.run(&Run { packets: 10, ..RUN }).unwrap();
            eventually("ten packets", || check.seen().corrupt == 10);
            assert_eq!(check.received(), 0);
        }
    });
}

#[test]
fn lost_late_and_doubled_packets_are_told() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let check = Check::attach(a1, true, &checks(Vec::new())).unwrap();
        let mut injector = Injector::open(a0);
        check.start(7);
        let mut frame = config(1).frame;
        for number in [0u64, 1, 4, 3, 4, 5] {
            frame[42..50].copy_from_slice(&(7 << 48 | number).to_ne_bytes());
            injector.send(&frame);
        }
        frame[42..50].copy_from_slice(&(6u64 << 48).to_ne_bytes());
        injector.send(&frame);
        eventually("seven frames", || check.seen().foreign == 1);
        let seen = check.seen();
        assert_eq!((seen.received, seen.missing, seen.reordered), (5, 1, 1));
        assert_eq!((seen.duplicated, seen.corrupt), (1, 0));
    });
}

#[test]
fn flows_take_turns_and_the_ip_checksum_stays_what_it_was() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut area = Area::new(512, 2048).unwrap();
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let (mut flows, mut sums, mut count) = (BTreeSet::new(), BTreeSet::new(), 0);
        // Two halves of 64 flows; each begins anew after its last one.
        for (first, packets, all) in [(0, 32, 32), (32, 40, 72)] {
            let source = Source::new(a0, &SourceConfig { first, ..config(32) }).unwrap();
            source.run(&Run { packets, ..RUN }).unwrap();
            eventually("all packets", || {
                let mut frames = Vec::new();
                count += tap.socket.receive(&mut area, 64, |frame| frames.push(frame));
                tap.socket.refill(&mut area);
                for frame in frames {
                    let bytes = take(&mut area, frame);
                    flows.insert([&bytes[26..34], &bytes[34..36]].concat());
                    let words = bytes[26..34].chunks(2);
                    sums.insert(words.map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>());
                }
                count == all
            });
        }
        assert_eq!((flows.len(), sums.len()), (64, 1));
    });
}

#[test]
fn impossible_streams_are_refused() {
    in_namespace(|| {
        let (a0, _) = veth("a0", "a1");
        let error = Source::new(a0, &config(12)).unwrap_err();
        assert!(matches!(error, GeneratorError::Flows { flows: 12, .. }), "{error}");
        let odd = Source::new(a0, &SourceConfig { first: 16, ..config(32) }).unwrap_err();
        assert!(matches!(odd, GeneratorError::Flows { flows: 32, .. }), "{odd}");
        let short = SourceConfig { stamp_at: 60, ..config(1) };
        let error = Source::new(a0, &short).unwrap_err();
        assert!(matches!(error, GeneratorError::Short { at: 75 }), "{error}");
    });
}
