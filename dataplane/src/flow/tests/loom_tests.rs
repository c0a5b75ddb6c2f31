//! Models of what workers do to one line at the same time.

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
                        && line.lock(old.sequence)
                    {
                        let key = key(u64::from(n));
                        line.unlock(&Words::new(&key, &state(n), Tick(n), old.sequence));
                    }
                })
            })
            .collect();
        if let Some(words) = line.read()
            && !words.vacant()
        {
            let n = words.tuple;
            assert!(n == 1 || n == 2);
            assert!(words.is(&key(n)));
            assert_eq!(words.flow(state(n as u32).rule), state(n as u32));
            assert_eq!(words.last_seen(), Tick(n as u32));
        }
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(line.read().is_some_and(|words| !words.vacant()));
    });
}

fn flow(n: u64) -> FlowTuple {
    FlowTuple {
        key: FlowKey { tuple: n | 17 << 24, ..FlowKey::default() },
        from_low: true,
        hash: 0,
    }
}

fn table() -> FlowTable {
    FlowTable::with_hasher(1, Timeouts::default(), FlowHasher::from_seed(1))
}

/// A worker counts past the room of the line's word while another thread
/// reads: it sees a sum that was right at some moment.
#[test]
fn loom_counts_are_read_right_or_not_at_all() {
    loom::model(|| {
        let table = Arc::new(table().counting());
        table.insert(&flow(1), &state(1), NONE, Tick(0)).unwrap();
        let found = table.find(&flow(1), Tick(0)).unwrap().glimpse();
        for _ in 0..16 {
            table.count(&found, true, 65_535);
        }
        let worker = {
            let table = table.clone();
            thread::spawn(move || table.count(&found, true, 65_535))
        };
        let read = |table: &FlowTable| table.lines[0].recent[1].read(&table.totals[0][1]);
        let before = Traffic { packets: 16, bytes: 16 * 65_535 };
        let after = before + Traffic::packet(65_535);
        if let Some(traffic) = read(&table) {
            assert!(traffic == before || traffic == after, "{traffic:?}");
        }
        worker.join().unwrap();
        assert_eq!(read(&table), Some(after));
    });
}

/// A verdict is confirmed whose line gets another flow just then, seen at the
/// same time and judged by the same tables: that one is not confirmed with it.
#[test]
fn loom_a_flow_is_not_confirmed_in_the_place_of_another() {
    loom::model(|| {
        let table = Arc::new(table());
        table.insert(&flow(1), &state(1), NONE, Tick(0)).unwrap();
        let found = table.find(&flow(1), Tick(0)).unwrap();
        let worker = {
            let table = table.clone();
            thread::spawn(move || table.confirm(&found.glimpse(), 8))
        };
        let line = &table.lines[0];
        if line.lock(found.words.sequence) {
            line.unlock(&Words::new(&flow(2).key, &state(2), Tick(0), found.words.sequence));
        }
        worker.join().unwrap();
        assert_eq!(line.read().unwrap().flow(state(2).rule), state(2));
    });
}

/// A flow is swept away that is not yet over by the clock of a worker, which
/// puts another one behind it just then: that one is found.
#[test]
fn loom_a_sweep_hides_no_flow() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let table = Arc::new(table());
        table.insert(&flow(1), &state(1), NONE, Tick(0)).unwrap();
        let worker = {
            let table = table.clone();
            thread::spawn(move || table.insert(&flow(2), &state(2), NONE, Tick(300)).is_ok())
        };
        table.vacate(0, Tick(330));
        if worker.join().unwrap() {
            let found = table.find(&flow(2), Tick(330)).map(|found| found.state());
            assert_eq!(found, Ok(state(2)));
        }
    });
}
