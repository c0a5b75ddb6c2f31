//! Runs in rounds.
//!
//! Other guests of the machine come and go within seconds, and move a figure by a
//! third. So no case is measured as a whole: the cases that are compared form a
//! group, all of its tables are made, and then in every round each of them does a
//! run that is short against such a phase. What a case costs in terms of another is
//! told from the two within a round.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use tieline_dataplane::flow::{FlowTable, Seen, Tick, Timeouts};
use tieline_dataplane::xsk::area::AreaError;

use super::bench::{self, Bench, Churn, Clock, Direction, Figures, MemoryUse};
use super::cases::{Case, ENDPOINTS, Work};
use super::floor::Floor;
use super::world::World;

/// How often, and how much.
#[derive(Clone, Copy)]
pub(super) struct Amount {
    pub(super) rounds: usize,
    /// Packets per run, where a run is not about as many flows.
    pub(super) packets: usize,
    /// Packets per batch.
    pub(super) batch: usize,
}

/// Longer runs of [`Work::Churn`], which must see several policy changes.
const CHURN: usize = 4;

/// The cases in groups: those with as many flows, known and new ones apart, each
/// with the floor as its first.
pub(super) fn groups(cases: &[Case]) -> Vec<Vec<&Case>> {
    let mut groups = Vec::new();
    for floor in cases.iter().filter(|case| case.work == Work::Floor) {
        for new in [false, true] {
            let is_in = |case: &&Case| case.flows == floor.flows && case.work.is_new() == new;
            let mut group: Vec<&Case> = cases.iter().filter(is_in).collect();
            if new && !group.is_empty() {
                group.insert(0, floor);
            }
            groups.push(group);
        }
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// The runs of each case of a group, and the memory during them.
pub(super) fn measure(
    group: &[&Case],
    amount: Amount,
    clock: &Clock,
) -> Result<(Vec<Vec<Figures>>, MemoryUse), AreaError> {
    let mut worlds = BTreeMap::new();
    for case in group {
        let world = || World::new(ENDPOINTS, case.rules, case.v6);
        worlds.entry((case.rules, case.v6)).or_insert_with(world);
    }
    let tables: Vec<_> = group.iter().map(|case| table(case)).collect();
    let mut turns = Vec::new();
    for (case, table) in group.iter().zip(&tables) {
        turns.push(Turn::new(case, &worlds[&(case.rules, case.v6)], table, amount, clock)?);
    }
    let new = group.iter().any(|case| case.work.is_new());
    // As many packets in all where a run takes one of every flow.
    let enough = (amount.rounds * amount.packets).div_ceil(group[0].flows);
    let rounds = if new { amount.rounds.min(enough) } else { amount.rounds };
    let mut runs: Vec<Vec<Figures>> = group.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds.max(1) {
        // Another one is the first in every round: the place has an influence.
        for at in (0..group.len()).map(|turn| (round + turn) % group.len()) {
            runs[at].push(turns[at].run(amount.packets));
        }
    }
    for turn in &turns {
        // A drop is cheap: figures with drops in them would flatter.
        let (name, dropped) = (turn.case.name, turn.bench.dropped);
        assert!(turn.case.work == Work::Floor || dropped == 0, "{name}: packets were dropped");
    }
    Ok((runs, bench::pages()))
}

/// The table that the case keeps.
fn table(case: &Case) -> FlowTable {
    let lines = match case.work {
        // Without one, and with a new one every time.
        Work::Floor | Work::First => 1,
        _ => case.flows * 2,
    };
    with_lines(case, lines)
}

fn with_lines(case: &Case, lines: usize) -> FlowTable {
    let table = FlowTable::new(lines, Timeouts::default());
    if case.counted { table.counting() } else { table }
}

/// A small table for packets ahead of those whose flows the case's own may not
/// know.
fn other(case: &Case) -> FlowTable {
    with_lines(case, 2 * bench::LEAST_AHEAD)
}

/// A case that takes its turn in every round.
struct Turn<'a> {
    case: &'a Case,
    bench: Bench<'a>,
    state: State<'a>,
}

/// What is kept from round to round.
enum State<'a> {
    Floor(Floor),
    Known(&'a FlowTable),
    Counted(&'a FlowTable, Reader<'a>),
    New(Option<FlowTable>),
    Aged(&'a FlowTable),
    Churn(&'a FlowTable, Box<Churn>),
}

impl<'a> Turn<'a> {
    fn new(
        case: &'a Case,
        world: &'a World,
        table: &'a FlowTable,
        amount: Amount,
        clock: &'a Clock,
    ) -> Result<Self, AreaError> {
        let direction = match case.work {
            Work::Hit(direction) => direction,
            _ => Direction::Encap,
        };
        let mut bench = Bench::new(world, direction, case.flows, amount.batch, clock)?;
        match case.work {
            Work::Floor | Work::First => {}
            Work::FirstAged => bench.age(table),
            Work::Hit(_) | Work::Churn => bench.warm(table),
        }
        let state = match case.work {
            Work::Floor => State::Floor(Floor::new(case.flows * 2)),
            Work::First => State::New(None),
            Work::FirstAged => State::Aged(table),
            Work::Hit(_) if case.counted => State::Counted(table, Reader::new(table, case.flows)),
            Work::Hit(_) => State::Known(table),
            Work::Churn => State::Churn(table, Box::new(Churn::new(world.tables.clone()))),
        };
        Ok(Self { case, bench, state })
    }

    fn run(&mut self, packets: usize) -> Figures {
        let (bench, flows) = (&mut self.bench, self.case.flows);
        match &mut self.state {
            State::Floor(floor) => {
                bench.run(bench.ahead(), |memory, batch| floor.stage(memory, batch));
                bench.run(packets, |memory, batch| floor.stage(memory, batch))
            }
            State::Known(table) => {
                bench.packets(bench.ahead(), table);
                bench.packets(packets, table)
            }
            State::Counted(table, reader) => {
                bench.packets(bench.ahead(), table);
                reader.while_read(|| bench.packets(packets, table))
            }
            State::New(table) => {
                // The last one first: memory for two at a time would be for nothing.
                *table = None;
                let table = table.insert(with_lines(self.case, flows * 2));
                bench.packets(bench::LEAST_AHEAD, &other(self.case));
                bench.packets(flows, table)
            }
            State::Aged(table) => {
                bench.turn_over(table);
                bench.packets(bench::LEAST_AHEAD, &other(self.case));
                bench.packets(flows, table)
            }
            State::Churn(table, churn) => bench.churn(CHURN * packets, table, churn),
        }
    }
}

/// Reads all flows of a table once a second, evenly: a run is shorter than that.
struct Reader<'a> {
    table: &'a FlowTable,
    /// Flows to read at a time.
    part: usize,
    rest: Box<dyn Iterator<Item = Seen> + Send + 'a>,
}

impl<'a> Reader<'a> {
    const PAUSE: Duration = Duration::from_millis(2);

    fn new(table: &'a FlowTable, flows: usize) -> Self {
        let part = flows.div_ceil((1000 / Self::PAUSE.as_millis()) as usize);
        Self { table, part, rest: Box::new(std::iter::empty()) }
    }

    /// Does the work while another thread reads.
    fn while_read<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (done, over) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while over.recv_timeout(Self::PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    self.read();
                }
            });
            let outcome = work();
            drop(done);
            outcome
        })
    }

    fn read(&mut self) {
        let read = self.rest.by_ref().take(self.part);
        let packets: Vec<u64> = read.flat_map(|flow| flow.traffic).map(|it| it.packets).collect();
        if packets.len() < 2 * self.part {
            self.rest = Box::new(self.table.iter(Tick(0)));
        }
        std::hint::black_box(packets);
    }
}
