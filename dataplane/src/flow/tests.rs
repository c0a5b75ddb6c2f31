use super::*;
use crate::addr::Addr;
use crate::tables::{RuleId, VtepId};

/// What a flow begins with that is not counted.
const NONE: Traffic = Traffic { packets: 0, bytes: 0 };

pub(super) fn state(vtep: u32) -> FlowState {
    FlowState {
        allow: true,
        from_low: true,
        low_is_local: true,
        replied: false,
        established: false,
        fin_initiator: false,
        fin_responder: false,
        reset: false,
        vtep: VtepId(vtep),
        rule: RuleId(vtep ^ 0xffff_0000),
        generation: 7,
    }
}

#[cfg(not(loom))]
pub(super) mod plain {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const NOW: Tick = Tick(1000);
    const TCP: u64 = protocol::TCP as u64;
    const UDP: u64 = protocol::UDP as u64;

    pub(in crate::flow) fn tuple(table: &FlowTable, number: u32, protocol: u64) -> FlowTuple {
        let key = FlowKey {
            low: Addr::from_v4_bytes(number.to_be_bytes()),
            high: Addr::from_v4_bytes([255, 0, 0, 1]),
            tuple: u64::from(number) << 48 | 80 << 32 | protocol << 24 | 4096,
            fragment: false,
        };
        let hash = table.hasher().hash(key.low, key.high, key.tuple);
        FlowTuple { key, from_low: true, hash }
    }

    #[test]
    fn packets_are_counted_by_direction_from_the_first_one_of_a_flow() {
        let table = FlowTable::new(64, Timeouts::default()).counting();
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), Traffic::packet(60), NOW).unwrap();
        let found = table.find(&flow, NOW).unwrap().glimpse();
        for (from_low, bytes) in [(true, 40), (false, 1500), (true, 52)] {
            table.count(&found, from_low == flow.from_low, bytes);
        }
        let there = Traffic { packets: 3, bytes: 152 };
        let back = Traffic { packets: 1, bytes: 1500 };
        let expected = if flow.from_low { [there, back] } else { [back, there] };
        let seen: Vec<Seen> = table.iter(NOW).collect();
        assert_eq!((seen[0].key, seen[0].last, seen[0].traffic), (flow.key, NOW, expected));
        // Another flow in the same line.
        let later = Tick(NOW.0 + 10 * 24 * 36_000);
        table.insert(&flow, &state(1), Traffic::packet(60), later).unwrap();
        let traffic: Vec<_> = table.iter(later).map(|seen| seen.traffic).collect();
        assert_eq!(
            traffic.iter().flatten().copied().fold(NONE, |sum, more| sum + more),
            Traffic::packet(60)
        );
        assert_eq!(table.bytes(), table.lines.len() * 100 + size_of_val(table.tags.words()));
    }

    /// Totals take over what the line's words have no room for, packet by packet
    /// the same as plain addition.
    #[test]
    fn counts_have_no_end() {
        let table = FlowTable::new(64, Timeouts::default()).counting();
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NONE, NOW).unwrap();
        let found = table.find(&flow, NOW).unwrap().glimpse();
        let mut expected = [NONE, NONE];
        for (number, bytes) in (0..).zip([0, 20, 40, 1500, 9000, 65_575].repeat(2000)) {
            let way = usize::from(number % 3 == 0);
            table.count(&found, way == 0, bytes);
            expected[way] = expected[way] + Traffic::packet(bytes);
            if number % 101 == 0 {
                assert_eq!(table.iter(NOW).next().unwrap().traffic, expected);
            }
        }
        assert!(expected[0].packets > 1 << 11 && expected[0].bytes > 1 << 21, "{expected:?}");
    }

    /// What a packet tells is kept, whatever other workers note at the same time.
    #[test]
    fn nothing_that_packets_tell_is_lost() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NONE, NOW).unwrap();
        // Both workers and control's judgement go by the same reading.
        let found = table.find(&flow, NOW).unwrap();
        table.touch(&found, false, tcp::FIN | tcp::ACK, NOW);
        table.touch(&found, true, tcp::FIN | tcp::ACK, NOW);
        assert!(table.find(&flow, NOW).unwrap().state().closing());
        table.update(&found, &FlowState { generation: 8, ..state(3) }, NOW);
        let now = table.find(&flow, NOW).unwrap().state();
        assert!(now.closing() && now.replied && (now.vtep, now.generation) == (VtepId(3), 8));
        // The line has been judged anew: an old reading tells nothing more.
        table.touch(&found, true, tcp::RST, NOW);
        assert!(!table.find(&flow, NOW).unwrap().state().reset);
    }

    #[test]
    fn a_vtep_beyond_the_last_number_is_none() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(VtepId::NONE.0 + 5), NONE, NOW).unwrap();
        assert_eq!(table.find(&flow, NOW).unwrap().state().vtep, VtepId::NONE);
    }

    #[test]
    fn a_line_is_a_cache_line() {
        assert_eq!(size_of::<Line>(), 64);
        assert_eq!(align_of::<Line>(), 64);
    }

    #[test]
    fn what_goes_in_comes_out() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        assert!(table.find(&flow, NOW).is_err());
        table.insert(&flow, &state(0x2b_cd12), NONE, NOW).unwrap();
        assert_eq!(table.find(&flow, NOW).unwrap().state(), state(0x2b_cd12));
        assert!(table.find(&tuple(&table, 1, UDP), NOW).is_err());
        let changed = FlowState { allow: false, generation: 8, ..state(2) };
        table.update(&table.find(&flow, NOW).unwrap(), &changed, NOW);
        assert_eq!(table.find(&flow, NOW).unwrap().state(), changed);
        assert_eq!(table.iter(NOW).count(), 1);
    }

    #[test]
    fn a_glance_sees_flows_about_which_nothing_is_to_be_done() {
        let mut seen = 0;
        for bits in 0..512u32 {
            let table = FlowTable::new(64, Timeouts::default());
            let bit = |at: u32| bits >> at & 1 == 1;
            let kept = FlowState {
                allow: bit(0),
                from_low: bit(1),
                low_is_local: bit(2),
                replied: bit(3),
                // Only an answer makes it so.
                established: bit(3) && bit(4),
                ..state(7)
            };
            let flow =
                FlowTuple { from_low: bit(5), ..tuple(&table, 1, if bit(8) { TCP } else { UDP }) };
            // Seen just now, or ten seconds ago, or too long ago.
            let idle = if bit(6) { 100 } else { 0 } * if bit(7) { 10_000_000 } else { 1 };
            let now = Tick(NOW.0 + idle);
            table.insert(&flow, &kept, NONE, NOW).unwrap();
            let found = table.find(&flow, now).map(|found| found.state()).ok();
            for outward in [true, false] {
                let glimpse = table.glance(table.prefetch(&flow), &flow, outward, now);
                let may_pass = kept.allow && outward == (kept.low_is_local == flow.from_low);
                let known = glimpse.is_some();
                if let Some(glimpse) = glimpse {
                    assert_eq!(found, Some(kept));
                    assert_eq!((glimpse.vtep(), glimpse.generation()), (VtepId(7), 7));
                }
                if known {
                    assert!(may_pass);
                    assert!(table.find(&flow, Tick(now.0 + 299)).is_ok(), "it was seen just now");
                    table.touch(&table.find(&flow, now).unwrap(), flow.from_low, tcp::ACK, now);
                    assert_eq!(table.find(&flow, now).unwrap().state(), kept);
                    seen += 1;
                } else if may_pass && found.is_some() {
                    table.touch(&table.find(&flow, now).unwrap(), flow.from_low, tcp::ACK, now);
                    assert_ne!(table.find(&flow, now).unwrap().state(), kept);
                }
            }
        }
        assert!(seen > 40, "{seen}");
        let table = FlowTable::new(64, Timeouts::default());
        let unknown = tuple(&table, 1, UDP);
        assert_eq!(table.glance(table.prefetch(&unknown), &unknown, true, NOW), None);
        table.stall();
        assert_eq!(table.glance(table.prefetch(&unknown), &unknown, true, NOW), None);
    }

    #[test]
    fn tcp_states_follow_the_flags() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NONE, NOW).unwrap();
        let see = |from_low, flags| {
            table.touch(&table.find(&flow, NOW).unwrap(), from_low, flags, NOW);
            table.find(&flow, NOW).unwrap().state()
        };
        assert!(!see(true, tcp::ACK).replied);
        assert!(see(false, tcp::SYN | tcp::ACK).replied);
        assert!(see(true, tcp::FIN | tcp::ACK).fin_initiator);
        assert!(!see(true, tcp::ACK).closing());
        assert!(see(false, tcp::FIN | tcp::ACK).closing());
        let other = tuple(&table, 2, TCP);
        table.insert(&other, &state(1), NONE, NOW).unwrap();
        table.touch(&table.find(&other, NOW).unwrap(), false, tcp::RST, NOW);
        assert!(table.find(&other, NOW).unwrap().state().closing());
    }

    #[test]
    fn idle_flows_expire_by_their_kind() {
        let timeouts = Timeouts { udp: 30, udp_replied: 120, ..Timeouts::default() };
        let table = FlowTable::new(64, timeouts);
        let after = |seconds: u32| Tick(NOW.0 + seconds * 10);
        let flow = tuple(&table, 1, UDP);
        table.insert(&flow, &state(1), NONE, NOW).unwrap();
        assert!(table.find(&flow, after(30)).is_ok());
        assert!(table.find(&flow, after(31)).is_err());
        table.touch(&table.find(&flow, after(29)).unwrap(), false, 0, after(29));
        assert!(table.find(&flow, after(29 + 119)).is_ok(), "answered: lives longer");
        assert!(table.find(&flow, after(29 + 121)).is_err());
        assert_eq!(table.iter(after(29 + 121)).count(), 0);
        // A worker whose clock is behind sees it as fresh, not as ancient.
        assert!(table.find(&flow, Tick(NOW.0 - 1)).is_ok());
    }

    #[test]
    fn established_flows_survive_a_flood() {
        let table = FlowTable::new(256, Timeouts::default());
        let keep: Vec<_> = (0..64).map(|n| tuple(&table, n, TCP)).collect();
        for flow in &keep {
            table.insert(flow, &state(1), NONE, NOW).unwrap();
            table.touch(&table.find(flow, NOW).unwrap(), false, tcp::ACK, NOW);
            table.touch(&table.find(flow, NOW).unwrap(), true, tcp::ACK, NOW);
        }
        let mut taken = 0;
        for number in 1000..50_000 {
            taken +=
                u32::from(table.insert(&tuple(&table, number, TCP), &state(2), NONE, NOW).is_ok());
        }
        assert!(taken > 40_000, "unanswered flows give way to each other");
        for flow in &keep {
            assert!(table.find(flow, NOW).is_ok());
        }
    }

    #[test]
    fn a_live_flow_is_not_overwritten_but_one_that_is_over() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        let denied = FlowState { allow: false, ..state(1) };
        assert!(table.insert(&flow, &denied, NONE, NOW).unwrap().is_none());
        let answer = FlowState { from_low: false, ..state(2) };
        assert_eq!(table.insert(&flow, &answer, NONE, NOW).unwrap().unwrap().state(), denied);
        assert_eq!(table.find(&flow, NOW).unwrap().state(), denied);
        table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::RST, NOW);
        assert!(table.insert(&flow, &answer, NONE, NOW).unwrap().is_none());
        assert_eq!(table.find(&flow, NOW).unwrap().state(), answer);
    }

    #[test]
    fn a_flow_whose_line_is_being_written_is_not_taken_for_unknown() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NONE, NOW).unwrap();
        let found = table.find(&flow, NOW).unwrap();
        let line = &table.lines[found.line];
        assert!(line.lock(found.words.sequence));
        assert_eq!(table.find(&flow, NOW).unwrap_err(), NotFound::Busy);
        assert_eq!(table.insert(&flow, &state(2), NONE, NOW).unwrap_err(), Refused::Busy);
        line.unlock(&found.words);
        assert_eq!(table.find(&flow, NOW).unwrap().state(), state(1));
    }

    #[test]
    fn a_syn_and_its_answer_make_no_lasting_flow() {
        let table = FlowTable::new(1, Timeouts::default());
        let flows: Vec<_> = (0..WINDOW as u32).map(|n| tuple(&table, n, TCP)).collect();
        let see = |flow: &FlowTuple, from_low, flags| {
            table.touch(&table.find(flow, NOW).unwrap(), from_low, flags, NOW);
        };
        for flow in &flows {
            table.insert(flow, &state(1), NONE, NOW).unwrap();
            see(flow, false, tcp::SYN | tcp::ACK);
            see(flow, true, tcp::SYN);
        }
        see(&flows[0], true, tcp::ACK);
        let later = Tick(NOW.0 + 61 * 10);
        assert!(table.find(&flows[0], later).is_ok());
        assert!(table.find(&flows[1], later).is_err(), "has the time of a SYN");
        assert!(
            table.insert(&tuple(&table, 99, TCP), &state(1), NONE, NOW).is_ok(),
            "one gives way"
        );
        assert!(table.find(&flows[0], NOW).is_ok());
        assert!(table.find(&flows[1], NOW).is_err());
    }

    #[test]
    fn a_window_of_answered_flows_refuses_a_new_one() {
        let table = FlowTable::new(1, Timeouts::default());
        for number in 0..WINDOW as u32 {
            let flow = tuple(&table, number, TCP);
            table.insert(&flow, &state(1), NONE, NOW).unwrap();
            table.touch(&table.find(&flow, NOW).unwrap(), false, tcp::ACK, NOW);
            table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::ACK, NOW);
        }
        let late = tuple(&table, 99, TCP);
        assert_eq!(table.insert(&late, &state(1), NONE, NOW).map(|_| ()), Err(Refused::Full));
        let flow = tuple(&table, 3, TCP);
        table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::RST, NOW);
        let later = Tick(NOW.0 + 10 * 11);
        assert_eq!(
            table.insert(&late, &state(1), NONE, later).map(|_| ()),
            Ok(()),
            "a finished one gives way"
        );
    }

    proptest! {
        /// As long as no window is full, the table is a map with expiry.
        #[test]
        fn agrees_with_a_map(
            steps in prop::collection::vec((0u32..40, 0u32..4, 0u32..400), 1..300),
        ) {
            let table = FlowTable::new(4096, Timeouts::default());
            let mut map: HashMap<u32, (FlowState, u32)> = HashMap::new();
            let mut now = 1000;
            for (number, action, value) in steps {
                let flow = tuple(&table, number, UDP);
                let limit = |state: &FlowState| if state.replied { 1200 } else { 300 };
                let live = |(state, seen): &(FlowState, u32)| now - seen <= limit(state);
                let expected = map.get(&number).copied().filter(live);
                let found = table.find(&flow, Tick(now)).ok();
                prop_assert_eq!(found.map(|f| f.state()), expected.map(|(state, _)| state));
                match (action, found) {
                    (0, _) => {
                        let standing = table.insert(&flow, &state(value), NONE, Tick(now)).unwrap();
                        prop_assert_eq!(standing.map(|f| f.state()), expected.map(|(s, _)| s));
                        if standing.is_none() {
                            map.insert(number, (state(value), now));
                        }
                    }
                    (1, Some(found)) => {
                        table.touch(&found, false, 0, Tick(now));
                        map.insert(number, (FlowState { replied: true, ..found.state() }, now));
                    }
                    (2, Some(found)) => {
                        table.update(&found, &state(value), Tick(now));
                        let replied = found.state().replied;
                        map.insert(number, (FlowState { replied, ..state(value) }, now));
                    }
                    _ => now += value,
                }
            }
        }
    }

    /// Lines that a lookup of an unknown flow reads.
    fn lines_of_a_miss(table: &FlowTable, flow: &FlowTuple) -> usize {
        let window = &table.lines[table.home(flow.hash)..][..WINDOW];
        let vacant = window.iter().position(|line| line.read().expect("is at rest").vacant());
        vacant.map_or(WINDOW, |at| at + 1)
    }

    fn mean_miss(table: &FlowTable) -> f64 {
        const FLOWS: u32 = 10_000;
        let unknown = (0..FLOWS).map(|n| tuple(table, !n, UDP));
        let lines: usize = unknown.map(|flow| lines_of_a_miss(table, &flow)).sum();
        lines as f64 / f64::from(FLOWS)
    }

    /// Two hours of coming and going, with a second between the rounds: the
    /// table agrees with a map throughout, and misses stay short.
    #[test]
    fn a_table_in_long_use_is_a_map_and_stays_sparse() {
        const NEW_PER_SECOND: u32 = 40;
        let table = |seed| {
            FlowTable::with_hasher(1 << 13, Timeouts::default(), FlowHasher::from_seed(seed))
        };
        let (swept, never_swept) = (table(1), table(1));
        let mut map: HashMap<u32, (FlowState, u32)> = HashMap::new();
        let (mut random, mut now, mut number, mut taken) = (1u32, 1000, 0, 0);
        for _ in 0..7200 {
            now += 10;
            for _ in 0..NEW_PER_SECOND {
                number += 1;
                let flow = tuple(&swept, number, UDP);
                assert!(swept.insert(&flow, &state(number), NONE, Tick(now)).unwrap().is_none());
                never_swept.insert(&flow, &state(number), NONE, Tick(now)).unwrap();
                map.insert(number, (state(number), now));
            }
            let live =
                |state: &FlowState, seen: u32| now - seen <= if state.replied { 1200 } else { 300 };
            for _ in 0..2 * NEW_PER_SECOND {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let known = number - (random >> 8) % 4000.min(number);
                let flow = tuple(&swept, known, UDP);
                let expected = map.get(&known).filter(|(state, seen)| live(state, *seen));
                let found = swept.find(&flow, Tick(now)).ok();
                assert_eq!(found.map(|f| f.state()), expected.map(|(state, _)| *state));
                // One in eight is answered, and lasts longer.
                if let Some(found) = found
                    && known.is_multiple_of(8)
                {
                    swept.touch(&found, false, 0, Tick(now));
                    map.insert(known, (FlowState { replied: true, ..found.state() }, now));
                }
            }
            taken += swept.sweep(Tick(now));
            map.retain(|_, (state, seen)| live(state, *seen));
        }
        assert!(taken > number as usize / 2, "{taken} of {number} flows were swept away");
        let fresh = table(2);
        for flow in map.keys() {
            fresh.insert(&tuple(&fresh, *flow, UDP), &state(1), NONE, Tick(now)).unwrap();
        }
        let [swept, never_swept, fresh] = [&swept, &never_swept, &fresh].map(mean_miss);
        println!("lines of a miss: {fresh:.2} fresh, {swept:.2} swept, {never_swept:.2} never");
        assert!(never_swept > 15.0 && swept < 2.0 * fresh);
    }

    /// One client that takes one port after the other fills a quarter of the
    /// table: all its flows find a place, whatever the key.
    #[test]
    fn ports_in_a_row_do_not_stand_in_heaps() {
        for seed in 0..1000 {
            let table =
                FlowTable::with_hasher(512, Timeouts::default(), FlowHasher::from_seed(seed));
            for port in 0..128u64 {
                let key = FlowKey {
                    low: Addr::from_v4_bytes([10, 0, 0, 1]),
                    high: Addr::from_v4_bytes([10, 0, 0, 2]),
                    tuple: (1000 + port) << 48 | 443 << 32 | TCP << 24 | 4096,
                    fragment: false,
                };
                let hash = table.hasher().hash(key.low, key.high, key.tuple);
                let flow = FlowTuple { key, from_low: true, hash };
                let lasting = FlowState { replied: true, established: true, ..state(1) };
                assert!(
                    table.insert(&flow, &lasting, NONE, NOW).is_ok(),
                    "seed {seed}, port {port}"
                );
            }
        }
    }

    #[test]
    fn what_was_swept_is_vacant_and_what_is_needed_stays() {
        let table = FlowTable::new(1, Timeouts::default());
        let flow = |n| tuple(&table, n, UDP);
        let after = |seconds: u32| Tick(NOW.0 + seconds * 10);
        let pass = |now| (0..SLICES).map(|_| table.sweep(now)).sum::<usize>();
        for (n, seconds) in [(1, 0), (2, 20), (3, 0)] {
            table.insert(&flow(n), &state(1), NONE, after(seconds)).unwrap();
        }
        assert_eq!(pass(after(30)), 0);
        assert_eq!(pass(after(31)), 0, "a worker may be a second behind");
        assert_eq!(pass(after(32)), 1, "the last one; the second stands behind the first");
        assert!(table.find(&flow(2), after(32)).is_ok());
        assert_eq!(lines_of_a_miss(&table, &flow(9)), 3);
        assert_eq!(pass(after(53)), 2);
        assert_eq!(lines_of_a_miss(&table, &flow(9)), 1);
        table.insert(&flow(4), &state(4), NONE, after(53)).unwrap();
        assert_eq!(table.find(&flow(4), after(53)).unwrap().state(), state(4));
        let words = table.lines[1].read().expect("is at rest");
        assert!(table.lines[1].lock(words.sequence));
        assert_eq!(pass(after(90)), 0, "someone may be putting a flow behind it");
    }

    #[test]
    fn workers_never_see_a_mixture() {
        // Every flow's state is a function of its number; four threads insert,
        // overwrite and read in a table that is far too small.
        let table = FlowTable::new(64, Timeouts::default());
        std::thread::scope(|scope| {
            for seed in 0..4u32 {
                let table = &table;
                scope.spawn(move || {
                    let mut number = seed;
                    for _ in 0..100_000 {
                        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let flow = tuple(table, number >> 24, TCP);
                        match table.find(&flow, NOW) {
                            Ok(found) => {
                                assert_eq!(found.state().vtep, VtepId(number >> 24));
                                assert_eq!(found.state().rule, state(number >> 24).rule);
                            }
                            Err(_) => {
                                let _full = table.insert(&flow, &state(number >> 24), NONE, NOW);
                            }
                        }
                    }
                });
            }
        });
    }
}

#[cfg(loom)]
mod loom_tests;
