//! Verdicts: (policy of the local endpoint, class of the peer, protocol, ports).
//!
//! Control turns an endpoint's ordered rules into one [`Program`] per set of
//! peers that its rules can't tell apart. Judging a packet is then two array
//! reads and two lookups of port ranges; the number of rules and of endpoints
//! does not enter.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::endpoint::ClassId;
use super::ranges::Ranges;

/// The policy of one or more local endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyId(pub u32);

/// A rule, default action or profile that decided. The number means something
/// to control alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u32);

/// Allowed or not, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Whether the packet may pass.
    pub allow: bool,
    /// What decided.
    pub rule: RuleId,
}

/// What a rule sees of a packet besides its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct L4 {
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub source: u16,
    /// Destination port; for ICMP and ICMPv6 the type times 256 plus the code.
    pub destination: u16,
}

/// One rule as far as it concerns one set of peers: its address conditions are
/// already decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clause {
    /// Protocols that match, one bit per number: protocol `p` is bit `p % 64`
    /// of word `p / 64`.
    pub protocols: [u64; 4],
    /// Source ports that match; `None` matches all.
    pub sources: Option<Vec<RangeInclusive<u16>>>,
    /// Destination ports (or ICMP type and code) that match; `None` matches all.
    pub destinations: Option<Vec<RangeInclusive<u16>>>,
    /// What follows from a match.
    pub outcome: Outcome,
}

impl Clause {
    /// All protocols.
    pub const ANY_PROTOCOL: [u64; 4] = [u64::MAX; 4];

    /// Whether the clause matches: the plain reading that programs are tested
    /// against and that `explain` tells its story with.
    pub fn matches(&self, l4: &L4) -> bool {
        let within = |ranges: &Option<Vec<RangeInclusive<u16>>>, port: u16| {
            ranges.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&port)))
        };
        has(&self.protocols, l4.protocol)
            && within(&self.sources, l4.source)
            && within(&self.destinations, l4.destination)
    }
}

/// The decisions over all protocols and ports for one set of peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// Protocol number to place in `maps`.
    protocols: Box<[u8; 256]>,
    maps: Box<[PortMap]>,
}

/// Decisions over source and destination ports: rows of destination ranges,
/// chosen by source range.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PortMap {
    sources: Ranges,
    rows: Box<[Row]>,
}

/// Ranges of destination ports, and what holds in each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Row {
    destinations: Ranges,
    outcomes: Box<[Outcome]>,
}

impl Program {
    /// Compiles rules in their order of precedence; `default` holds where none
    /// matches.
    pub fn new(clauses: &[Clause], default: Outcome) -> Self {
        // Protocols that the same clauses match share a map. Clauses have few
        // sets of protocols among them, so these tell protocols apart.
        let mut masks: Vec<[u64; 4]> = clauses.iter().map(|clause| clause.protocols).collect();
        masks.sort_unstable();
        masks.dedup();
        let mut maps: Vec<PortMap> = Vec::new();
        let mut of_masks: HashMap<Vec<bool>, u8> = HashMap::new();
        let mut protocols = Box::new([0u8; 256]);
        for protocol in 0..=255u8 {
            let within = masks.iter().map(|mask| has(mask, protocol)).collect();
            protocols[protocol as usize] = *of_masks.entry(within).or_insert_with(|| {
                let relevant = clauses.iter().filter(|clause| has(&clause.protocols, protocol));
                maps.push(PortMap::new(&relevant.collect::<Vec<_>>(), default));
                // At most one map per protocol, so the number fits.
                (maps.len() - 1) as u8
            });
        }
        Self { protocols, maps: maps.into() }
    }

    /// The decision for one packet.
    #[inline]
    pub fn judge(&self, l4: &L4) -> Outcome {
        let map = &self.maps[self.protocols[l4.protocol as usize] as usize];
        let row = &map.rows[map.sources.of(l4.source)];
        row.outcomes[row.destinations.of(l4.destination)]
    }
}

fn has(protocols: &[u64; 4], protocol: u8) -> bool {
    protocols[protocol as usize / 64] >> (protocol % 64) & 1 == 1
}

/// The ports at which some range begins or has just ended.
fn cuts<'a>(ranges: impl Iterator<Item = &'a Option<Vec<RangeInclusive<u16>>>>) -> Vec<u16> {
    let mut cuts = vec![0];
    for range in ranges.flatten().flatten() {
        cuts.push(*range.start());
        cuts.extend(range.end().checked_add(1));
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

impl PortMap {
    fn new(clauses: &[&Clause], default: Outcome) -> Self {
        let mut source_starts = Vec::new();
        let mut rows: Vec<Row> = Vec::new();
        for source in cuts(clauses.iter().map(|clause| &clause.sources)) {
            let live = clauses.iter().filter(|clause| match &clause.sources {
                Some(ranges) => ranges.iter().any(|range| range.contains(&source)),
                None => true,
            });
            let row = Row::new(live.copied(), default);
            if rows.last() != Some(&row) {
                source_starts.push(source);
                rows.push(row);
            }
        }
        Self { sources: Ranges::new(source_starts), rows: rows.into() }
    }
}

impl Row {
    /// Walks over the ports once, with the clauses that begin at or before the
    /// port in a heap, the first on top; thousands of clauses stay affordable.
    fn new<'a>(clauses: impl Iterator<Item = &'a Clause> + Clone, default: Outcome) -> Self {
        let mut begins: Vec<(u16, Reverse<usize>, u16, Outcome)> = Vec::new();
        for (at, clause) in clauses.clone().enumerate() {
            let outcome = clause.outcome;
            match &clause.destinations {
                None => begins.push((0, Reverse(at), u16::MAX, outcome)),
                Some(ranges) => begins.extend(
                    ranges.iter().map(|range| (*range.start(), Reverse(at), *range.end(), outcome)),
                ),
            }
        }
        begins.sort_unstable_by_key(|(start, at, ..)| (*start, *at));
        let mut begins = begins.into_iter().peekable();
        let mut live = BinaryHeap::new();
        let mut starts = Vec::new();
        let mut outcomes: Vec<Outcome> = Vec::new();
        for start in cuts(clauses.map(|clause| &clause.destinations)) {
            while let Some((_, at, end, outcome)) = begins.next_if(|begin| begin.0 <= start) {
                live.push((at, end, outcome.allow, outcome.rule));
            }
            while live.peek().is_some_and(|(_, end, ..)| *end < start) {
                live.pop();
            }
            let outcome = live
                .peek()
                .map_or(default, |(.., allow, rule)| Outcome { allow: *allow, rule: *rule });
            if outcomes.last() != Some(&outcome) {
                starts.push(start);
                outcomes.push(outcome);
            }
        }
        Self { destinations: Ranges::new(starts), outcomes: outcomes.into() }
    }
}

/// One direction of an endpoint's policy: which program holds for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direction {
    /// By class of the peer; classes beyond the end have program 0.
    pub by_class: Arc<[u32]>,
    /// The programs that `by_class` points to; never empty.
    pub programs: Arc<[Arc<Program>]>,
}

impl Direction {
    /// The decision for a packet from or to a peer of this class.
    #[inline]
    pub fn judge(&self, peer: ClassId, l4: &L4) -> Outcome {
        let program = self.by_class.get(peer.0 as usize).copied().unwrap_or(0);
        self.programs[program as usize].judge(l4)
    }
}

/// What applies to a local endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Packets to the endpoint; the peer is their source.
    pub ingress: Direction,
    /// Packets from the endpoint; the peer is their destination.
    pub egress: Direction,
}

/// The policies of this node's endpoints.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    by_id: Arc<[Option<Arc<EndpointPolicy>>]>,
    /// Shared by policies of which each extends the one before.
    line: Arc<()>,
}

impl Policies {
    /// Policies by number; a gap is a number that is not in use.
    pub fn new(policies: impl IntoIterator<Item = Option<Arc<EndpointPolicy>>>) -> Self {
        Self { by_id: policies.into_iter().collect(), line: Arc::default() }
    }

    /// Policies that decide as these do about every endpoint and class that
    /// was in use: they only say more about endpoints and classes that were
    /// not. No flow needs to be judged again because of them.
    #[must_use]
    pub fn extended(
        &self,
        policies: impl IntoIterator<Item = Option<Arc<EndpointPolicy>>>,
    ) -> Self {
        Self { by_id: policies.into_iter().collect(), line: self.line.clone() }
    }

    /// The policy with this number.
    #[inline]
    pub fn get(&self, id: PolicyId) -> Option<&Arc<EndpointPolicy>> {
        self.by_id.get(id.0 as usize)?.as_ref()
    }

    /// Whether the two are the same version.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.by_id, &other.by_id)
    }

    /// The policies of `previous` that decide otherwise now, in order: whether for
    /// ingress, and whether for egress.
    pub(super) fn changed<'a>(
        &'a self,
        previous: &'a Self,
    ) -> impl Iterator<Item = (PolicyId, [bool; 2])> + 'a {
        let extended = Arc::ptr_eq(&self.line, &previous.line);
        let previous = previous.iter().filter(move |_| !extended);
        previous.filter_map(|(id, old)| {
            let differs = |direction: fn(&EndpointPolicy) -> &Direction| match self.get(id) {
                Some(new) => !Arc::ptr_eq(new, old) && direction(new) != direction(old),
                None => true,
            };
            let directions = [differs(|policy| &policy.ingress), differs(|policy| &policy.egress)];
            directions.contains(&true).then_some((id, directions))
        })
    }

    /// All numbers and policies.
    pub fn iter(&self) -> impl Iterator<Item = (PolicyId, &Arc<EndpointPolicy>)> {
        (0..)
            .zip(self.by_id.iter())
            .filter_map(|(id, policy)| Some((PolicyId(id), policy.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Option<Vec<RangeInclusive<u16>>>> {
        let port = prop_oneof![0u16..20, 65530u16..=65535];
        let range = (port.clone(), port).prop_map(|(a, b)| a.min(b)..=a.max(b));
        prop::option::of(prop::collection::vec(range, 0..4))
    }

    fn clause() -> impl Strategy<Value = Clause> {
        let protocols = prop_oneof![
            Just(Clause::ANY_PROTOCOL),
            Just([1 << 6, 0, 0, 0]),
            Just([1 << 17 | 1 << 6, 0, 0, 0]),
            Just([0, 0, 1 << 4, 1 << 63]),
        ];
        (protocols, ranges(), ranges(), any::<bool>(), 1u32..9).prop_map(
            |(protocols, sources, destinations, allow, rule)| Clause {
                protocols,
                sources,
                destinations,
                outcome: Outcome { allow, rule: RuleId(rule) },
            },
        )
    }

    proptest! {
        #[test]
        fn a_program_agrees_with_reading_the_clauses_in_order(
            clauses in prop::collection::vec(clause(), 0..12),
            packets in prop::collection::vec(
                (
                    prop_oneof![Just(6u8), Just(17), Just(132), Just(255), Just(0)],
                    prop_oneof![0u16..22, 65528u16..=65535],
                    prop_oneof![0u16..22, 65528u16..=65535],
                ),
                1..40,
            ),
        ) {
            let default = Outcome { allow: false, rule: RuleId(0) };
            let program = Program::new(&clauses, default);
            for (protocol, source, destination) in packets {
                let l4 = L4 { protocol, source, destination };
                let expected = clauses.iter().find(|clause| clause.matches(&l4));
                prop_assert_eq!(program.judge(&l4), expected.map_or(default, |c| c.outcome));
            }
        }
    }
}
