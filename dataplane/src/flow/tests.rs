use super::*;
use crate::addr::Addr;
use crate::tables::{RuleId, VtepId};

fn state(vtep: u32) -> FlowState {
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
mod plain {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const NOW: Tick = Tick(1000);
    const TCP: u64 = protocol::TCP as u64;
    const UDP: u64 = protocol::UDP as u64;

    fn tuple(table: &FlowTable, number: u32, protocol: u64) -> FlowTuple {
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
    fn a_line_is_a_cache_line() {
        assert_eq!(size_of::<Line>(), 64);
        assert_eq!(align_of::<Line>(), 64);
    }

    #[test]
    fn what_goes_in_comes_out() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        assert!(table.find(&flow, NOW).is_err());
        table.insert(&flow, &state(0xabcd_1234), NOW).unwrap();
        assert_eq!(table.find(&flow, NOW).unwrap().state, state(0xabcd_1234));
        assert!(table.find(&tuple(&table, 1, UDP), NOW).is_err());
        let changed = FlowState { allow: false, generation: 8, ..state(2) };
        table.update(&table.find(&flow, NOW).unwrap(), &changed, NOW);
        assert_eq!(table.find(&flow, NOW).unwrap().state, changed);
        assert_eq!(table.iter(NOW).count(), 1);
    }

    #[test]
    fn tcp_states_follow_the_flags() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NOW).unwrap();
        let see = |from_low, flags| {
            table.touch(&table.find(&flow, NOW).unwrap(), from_low, flags, NOW);
            table.find(&flow, NOW).unwrap().state
        };
        assert!(!see(true, tcp::ACK).replied);
        assert!(see(false, tcp::SYN | tcp::ACK).replied);
        assert!(see(true, tcp::FIN | tcp::ACK).fin_initiator);
        assert!(!see(true, tcp::ACK).closing());
        assert!(see(false, tcp::FIN | tcp::ACK).closing());
        let other = tuple(&table, 2, TCP);
        table.insert(&other, &state(1), NOW).unwrap();
        table.touch(&table.find(&other, NOW).unwrap(), false, tcp::RST, NOW);
        assert!(table.find(&other, NOW).unwrap().state.closing());
    }

    #[test]
    fn idle_flows_expire_by_their_kind() {
        let timeouts = Timeouts { udp: 30, udp_replied: 120, ..Timeouts::default() };
        let table = FlowTable::new(64, timeouts);
        let after = |seconds: u32| Tick(NOW.0 + seconds * 10);
        let flow = tuple(&table, 1, UDP);
        table.insert(&flow, &state(1), NOW).unwrap();
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
            table.insert(flow, &state(1), NOW).unwrap();
            table.touch(&table.find(flow, NOW).unwrap(), false, tcp::ACK, NOW);
            table.touch(&table.find(flow, NOW).unwrap(), true, tcp::ACK, NOW);
        }
        let mut taken = 0;
        for number in 1000..50_000 {
            taken += u32::from(table.insert(&tuple(&table, number, TCP), &state(2), NOW).is_ok());
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
        assert!(table.insert(&flow, &denied, NOW).unwrap().is_none());
        let answer = FlowState { from_low: false, ..state(2) };
        assert_eq!(table.insert(&flow, &answer, NOW).unwrap().unwrap().state, denied);
        assert_eq!(table.find(&flow, NOW).unwrap().state, denied);
        table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::RST, NOW);
        assert!(table.insert(&flow, &answer, NOW).unwrap().is_none());
        assert_eq!(table.find(&flow, NOW).unwrap().state, answer);
    }

    #[test]
    fn a_flow_whose_line_is_being_written_is_not_taken_for_unknown() {
        let table = FlowTable::new(64, Timeouts::default());
        let flow = tuple(&table, 1, TCP);
        table.insert(&flow, &state(1), NOW).unwrap();
        let found = table.find(&flow, NOW).unwrap();
        let line = &table.lines[found.line];
        assert!(line.lock(&found.words));
        assert_eq!(table.find(&flow, NOW).unwrap_err(), NotFound::Busy);
        assert_eq!(table.insert(&flow, &state(2), NOW).unwrap_err(), Refused::Busy);
        line.unlock(&found.words);
        assert_eq!(table.find(&flow, NOW).unwrap().state, state(1));
    }

    #[test]
    fn a_syn_and_its_answer_make_no_lasting_flow() {
        let table = FlowTable::new(1, Timeouts::default());
        let flows: Vec<_> = (0..WINDOW as u32).map(|n| tuple(&table, n, TCP)).collect();
        let see = |flow: &FlowTuple, from_low, flags| {
            table.touch(&table.find(flow, NOW).unwrap(), from_low, flags, NOW);
        };
        for flow in &flows {
            table.insert(flow, &state(1), NOW).unwrap();
            see(flow, false, tcp::SYN | tcp::ACK);
            see(flow, true, tcp::SYN);
        }
        see(&flows[0], true, tcp::ACK);
        let later = Tick(NOW.0 + 61 * 10);
        assert!(table.find(&flows[0], later).is_ok());
        assert!(table.find(&flows[1], later).is_err(), "has the time of a SYN");
        assert!(table.insert(&tuple(&table, 99, TCP), &state(1), NOW).is_ok(), "one gives way");
        assert!(table.find(&flows[0], NOW).is_ok());
        assert!(table.find(&flows[1], NOW).is_err());
    }

    #[test]
    fn a_window_of_answered_flows_refuses_a_new_one() {
        let table = FlowTable::new(1, Timeouts::default());
        for number in 0..WINDOW as u32 {
            let flow = tuple(&table, number, TCP);
            table.insert(&flow, &state(1), NOW).unwrap();
            table.touch(&table.find(&flow, NOW).unwrap(), false, tcp::ACK, NOW);
            table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::ACK, NOW);
        }
        let late = tuple(&table, 99, TCP);
        assert_eq!(table.insert(&late, &state(1), NOW).map(|_| ()), Err(Refused::Full));
        let flow = tuple(&table, 3, TCP);
        table.touch(&table.find(&flow, NOW).unwrap(), true, tcp::RST, NOW);
        let later = Tick(NOW.0 + 10 * 11);
        assert_eq!(
            table.insert(&late, &state(1), later).map(|_| ()),
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
                prop_assert_eq!(found.map(|f| f.state), expected.map(|(state, _)| state));
                match (action, found) {
                    (0, _) => {
                        let standing = table.insert(&flow, &state(value), Tick(now)).unwrap();
                        prop_assert_eq!(standing.map(|f| f.state), expected.map(|(s, _)| s));
                        if standing.is_none() {
                            map.insert(number, (state(value), now));
                        }
                    }
                    (1, Some(found)) => {
                        table.touch(&found, false, 0, Tick(now));
                        map.insert(number, (FlowState { replied: true, ..found.state }, now));
                    }
                    (2, Some(found)) => {
                        table.update(&found, &state(value), Tick(now));
                        map.insert(number, (state(value), now));
                    }
                    _ => now += value,
                }
            }
        }
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
                                assert_eq!(found.state.vtep, VtepId(number >> 24));
                                assert_eq!(found.state.rule, state(number >> 24).rule);
                            }
                            Err(_) => {
                                let _full = table.insert(&flow, &state(number >> 24), NOW);
                            }
                        }
                    }
                });
            }
        });
    }
}

#[cfg(loom)]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use loom::thread;

    /// Two writers fight for the only line while a reader looks: whatever the
    /// reader finds is one of the two flows, whole.
    #[test]
    fn loom_a_line_is_read_whole_or_not_at_all() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let line = Arc::new(Line::new());
            let key = |n: u64| FlowKey {
                low: Addr::from_bits(u128::from(n)),
                high: Addr::from_bits(u128::from(n) << 64),
                tuple: n,
                fragment: false,
            };
            let writers: Vec<_> = (1..=2u32)
                .map(|n| {
                    let line = line.clone();
                    thread::spawn(move || {
                        if let Some(old) = line.read()
                            && line.lock(&old)
                        {
                            let key = key(u64::from(n));
                            line.unlock(&Words::new(&key, &state(n), Tick(n), old.sequence));
                        }
                    })
                })
                .collect();
            if let Some(words) = line.read()
                && !words.never_used()
            {
                let n = words.tuple;
                assert!(n == 1 || n == 2);
                assert!(words.is(&key(n)));
                assert_eq!(words.flow(), state(n as u32));
                assert_eq!(words.last_seen(), Tick(n as u32));
            }
            for writer in writers {
                writer.join().unwrap();
            }
            assert!(line.read().is_some_and(|words| !words.never_used()));
        });
    }
}
