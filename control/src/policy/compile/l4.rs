//! What a rule demands of protocol, ports and ICMP type, once both addresses
//! are known.

use tieline_dataplane::tables::{Clause, Outcome};

use super::atoms::{BoundEntity, BoundRule, Facts};
use super::ports::PortSet;
use crate::policy::model::{Icmp, PortMatch};

/// ICMP.
const ICMP: u8 = 1;
/// ICMPv6.
const ICMPV6: u8 = 58;
/// TCP, UDP and SCTP: the protocols that ports in a rule can match.
const WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Packets by protocol and ports: those that have one of the protocols *and*
/// a source of the one set *and* a destination of the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct L4Match {
    protocols: [u64; 4],
    sources: PortSet,
    destinations: PortSet,
}

impl L4Match {
    /// Whether every packet matches.
    pub(super) fn is_all(&self) -> bool {
        self.protocols == Clause::ANY_PROTOCOL
            && self.sources.is_all()
            && self.destinations.is_all()
    }

    /// The packets that match both; `None` when there are none.
    pub(super) fn intersection(&self, other: &Self) -> Option<Self> {
        let both = Self {
            protocols: std::array::from_fn(|at| self.protocols[at] & other.protocols[at]),
            sources: self.sources.intersection(&other.sources),
            destinations: self.destinations.intersection(&other.destinations),
        };
        let empty =
            both.protocols == [0; 4] || both.sources.is_empty() || both.destinations.is_empty();
        (!empty).then_some(both)
    }

    /// The packets that match either, if that is again a product of three sets.
    pub(super) fn union(&self, other: &Self) -> Option<Self> {
        let same_protocols = self.protocols == other.protocols;
        let same_sources = self.sources == other.sources;
        let same_destinations = self.destinations == other.destinations;
        let mut union = self.clone();
        if same_sources && same_destinations {
            union.protocols = std::array::from_fn(|at| self.protocols[at] | other.protocols[at]);
        } else if same_protocols && same_sources {
            union.destinations = self.destinations.union(&other.destinations);
        } else if same_protocols && same_destinations {
            union.sources = self.sources.union(&other.sources);
        } else {
            return None;
        }
        Some(union)
    }

    /// A clause for these packets.
    pub(super) fn clause(&self, outcome: Outcome) -> Clause {
        Clause {
            protocols: self.protocols,
            sources: self.sources.to_clause(),
            destinations: self.destinations.to_clause(),
            outcome,
        }
    }
}

/// The packets between two addresses that match a rule whose conditions on the
/// addresses hold.
pub(super) fn matches(rule: &BoundRule, source: &Facts, destination: &Facts) -> Vec<L4Match> {
    let asked = protocols(rule.rule.protocol, rule.rule.not_protocol);
    let mut found: Vec<L4Match> = Vec::new();
    // All protocols that are not named here have neither ports nor types.
    let mut rest = asked;
    for protocol in WITH_PORTS.into_iter().chain([ICMP, ICMPV6]) {
        rest[usize::from(protocol / 64)] &= !(1 << (protocol % 64));
        if !has(&asked, protocol) {
            continue;
        }
        let (sources, destinations) = if WITH_PORTS.contains(&protocol) {
            if rule.rule.icmp.is_some() {
                continue;
            }
            let mut destinations = ports(&rule.destination, destination, protocol);
            if let Some(service) = rule.destination.service {
                let open = destination.service_ports(service, protocol);
                destinations = destinations.intersection(&PortSet::of(open.map(|p| (p, p))));
            }
            (ports(&rule.source, source, protocol), destinations)
        } else if asks_for_ports(rule) {
            continue;
        } else {
            (PortSet::all(), types(rule.rule.icmp, rule.rule.not_icmp))
        };
        add(&mut found, bit(protocol), sources, destinations);
    }
    if !asks_for_ports(rule) && rule.rule.icmp.is_none() {
        add(&mut found, rest, PortSet::all(), PortSet::all());
    }
    found
}

/// Adds a match unless it is empty; protocols with the same ports share one.
fn add(found: &mut Vec<L4Match>, protocols: [u64; 4], sources: PortSet, destinations: PortSet) {
    if protocols == [0; 4] || sources.is_empty() || destinations.is_empty() {
        return;
    }
    let new = L4Match { protocols, sources, destinations };
    match found
        .iter_mut()
        .find(|old| old.sources == new.sources && old.destinations == new.destinations)
    {
        Some(old) => (0..4).for_each(|at| old.protocols[at] |= new.protocols[at]),
        None => found.push(new),
    }
}

/// Whether only packets with ports can match.
fn asks_for_ports(rule: &BoundRule) -> bool {
    !rule.rule.source.ports.is_empty()
        || !rule.rule.destination.ports.is_empty()
        || rule.destination.service.is_some()
}

/// The ports of one end that match, in packets of one protocol that has ports.
fn ports(entity: &BoundEntity, facts: &Facts, protocol: u8) -> PortSet {
    let set = |matches: &[PortMatch], names: &[u32]| {
        let numbers = matches.iter().filter_map(|port| match port {
            PortMatch::Range(range) => Some((*range.start(), *range.end())),
            PortMatch::Named(_) => None,
        });
        let named = names.iter().flat_map(|name| facts.named_ports(*name, protocol));
        PortSet::of(numbers.chain(named.map(|port| (port, port))))
    };
    let wanted = match entity.entity().ports.as_slice() {
        [] => PortSet::all(),
        ports => set(ports, &entity.names),
    };
    match entity.entity().not_ports.as_slice() {
        [] => wanted,
        ports => wanted.intersection(&set(ports, &entity.not_names).complement()),
    }
}

/// ICMP types and codes that match.
fn types(icmp: Option<Icmp>, not_icmp: Option<Icmp>) -> PortSet {
    let set = |icmp: Icmp| {
        let first = u16::from(icmp.kind) << 8;
        PortSet::of([match icmp.code {
            Some(code) => (first | u16::from(code), first | u16::from(code)),
            None => (first, first | 0xff),
        }])
    };
    let wanted = icmp.map_or_else(PortSet::all, set);
    match not_icmp {
        Some(icmp) => wanted.intersection(&set(icmp).complement()),
        None => wanted,
    }
}

fn protocols(wanted: Option<u8>, unwanted: Option<u8>) -> [u64; 4] {
    let wanted = wanted.map_or(Clause::ANY_PROTOCOL, bit);
    let unwanted = unwanted.map_or([0; 4], bit);
    std::array::from_fn(|at| wanted[at] & !unwanted[at])
}

fn bit(protocol: u8) -> [u64; 4] {
    let mut bits = [0; 4];
    bits[usize::from(protocol / 64)] = 1 << (protocol % 64);
    bits
}

fn has(bits: &[u64; 4], protocol: u8) -> bool {
    bits[usize::from(protocol / 64)] >> (protocol % 64) & 1 == 1
}
