//! What rules can ask about an address, and the answers.
//!
//! [`Atoms`] numbers the questions: is it of an identity that this selector
//! chooses, is it in this net, is it behind this service, which ports have this
//! name. [`Facts`] are the answers for one address. Two addresses of a family
//! with equal facts can't be told apart, which is what makes a class.

use std::sync::Arc;

use tieline_dataplane::addr::Prefix;

use super::numbers::{Interner, Memory};
use crate::policy::model::{Entity, PortMatch, Rule};
use crate::policy::selector::Selector;
use crate::state::ObjectName;

/// The questions that rules ask about one end of a packet.
#[derive(Debug, Default)]
pub(super) struct Atoms {
    /// Selectors.
    pub(super) selectors: Interner<Selector>,
    /// Nets.
    pub(super) nets: Interner<Prefix>,
    /// Services.
    pub(super) services: Interner<ObjectName>,
    /// Port names. Beside a selector, a name stands only for ports of
    /// identities that the selector chooses: the owner of an address that has
    /// the port must be an owner that is selected.
    pub(super) names: Interner<(Option<u32>, String)>,
}

/// How many questions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) selectors: u32,
    pub(super) nets: u32,
    pub(super) services: u32,
    pub(super) names: u32,
}

/// The conditions on one end of a packet, with their questions' numbers.
#[derive(Clone, Debug)]
pub(super) struct BoundEntity {
    rule: Arc<Rule>,
    is_source: bool,
    /// The question about `entity.service`.
    pub(super) service: Option<u32>,
    /// The questions about names in `entity.ports`.
    pub(super) names: Vec<u32>,
    /// The questions about names in `entity.not_ports`.
    pub(super) not_names: Vec<u32>,
    /// Conditions on the address alone.
    address: AddressCondition,
}

/// Conditions on an address, whatever the ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct AddressCondition {
    /// One of these nets must hold the address; empty asks nothing.
    pub(super) nets: Vec<u32>,
    /// None of these may.
    pub(super) not_nets: Vec<u32>,
    /// This selector must choose an owner.
    pub(super) selector: Option<u32>,
    /// This one must not.
    pub(super) not_selector: Option<u32>,
    /// This service must be at the address.
    pub(super) service: Option<u32>,
}

impl AddressCondition {
    /// Whether the address with these facts meets the conditions.
    pub(super) fn holds(&self, facts: &Facts) -> bool {
        let has = |sorted: &[u32], id: u32| sorted.binary_search(&id).is_ok();
        self.selector.is_none_or(|id| has(&facts.selectors, id))
            && !self.not_selector.is_some_and(|id| has(&facts.selectors, id))
            && (self.nets.is_empty() || self.nets.iter().any(|id| has(&facts.nets, *id)))
            && !self.not_nets.iter().any(|id| has(&facts.nets, *id))
            && self.service.is_none_or(|id| facts.is_behind(id))
    }
}

impl BoundEntity {
    /// The conditions.
    pub(super) fn entity(&self) -> &Entity {
        if self.is_source { &self.rule.source } else { &self.rule.destination }
    }

    /// Conditions on the address alone.
    pub(super) fn address(&self) -> &AddressCondition {
        &self.address
    }

    /// What of an address the ports that match depend on. As a source, a
    /// service's address counts with any port.
    pub(super) fn port_facts(&self, facts: &Facts, is_destination: bool) -> PortFacts {
        let names = self.names.iter().chain(&self.not_names);
        let mut ports: Vec<_> = names.flat_map(|name| facts.named(*name)).copied().collect();
        ports.sort_unstable();
        let service = self.service.filter(|_| is_destination);
        PortFacts {
            ports,
            service: service.map(|id| facts.behind(id).to_vec()).unwrap_or_default(),
        }
    }
}

/// The facts about an address that say which ports match.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortFacts {
    ports: Vec<NamedPortFact>,
    service: Vec<ServiceFact>,
}

/// A rule, with its questions' numbers.
#[derive(Clone, Debug)]
pub(super) struct BoundRule {
    /// The rule.
    pub(super) rule: Arc<Rule>,
    /// Conditions on the source.
    pub(super) source: BoundEntity,
    /// Conditions on the destination.
    pub(super) destination: BoundEntity,
}

impl Atoms {
    pub(super) fn asked(&self) -> Asked {
        Asked {
            selectors: self.selectors.values().len() as u32,
            nets: self.nets.values().len() as u32,
            services: self.services.values().len() as u32,
            names: self.names.values().len() as u32,
        }
    }

    /// A hash of what facts say, whatever the numbers of the questions.
    pub(super) fn content(&self, facts: &Facts, memory: &Memory) -> u64 {
        let selectors = facts.selectors.iter().map(|id| &self.selectors.values()[*id as usize]);
        let nets = facts.nets.iter().map(|id| self.nets.values()[*id as usize]);
        let services = facts
            .services
            .iter()
            .map(|(id, port)| memory.hash((&self.services.values()[*id as usize], port)));
        let ports = facts.ports.iter().map(|(id, protocol, port)| {
            let (selector, name) = &self.names.values()[*id as usize];
            let selector = selector.map(|id| &self.selectors.values()[id as usize]);
            memory.hash((selector, name, protocol, port))
        });
        let hashes = selectors.map(|it| memory.hash(it)).chain(nets.map(|it| memory.hash(it)));
        // A sum, because the order is that of the numbers.
        hashes.chain(services).chain(ports).fold(0, u64::wrapping_add)
    }

    /// Numbers what one end of a rule asks.
    pub(super) fn bind(&mut self, rule: &Arc<Rule>, is_source: bool) -> BoundEntity {
        let entity = if is_source { &rule.source } else { &rule.destination };
        let mut nets = |nets: &[Prefix]| {
            let mut ids: Vec<u32> = nets.iter().map(|net| self.nets.id(*net)).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let (nets, not_nets) = (nets(&entity.nets), nets(&entity.not_nets));
        let mut selectors = |it: &Option<Selector>| it.clone().map(|it| self.selectors.id(it));
        let (selector, not_selector) =
            (selectors(&entity.selector), selectors(&entity.not_selector));
        let service = entity.service.clone().map(|name| self.services.id(name));
        let mut names = |ports: &[PortMatch]| {
            let names = ports.iter().filter_map(|port| match port {
                PortMatch::Named(name) => Some(self.names.id((selector, name.clone()))),
                PortMatch::Range(_) => None,
            });
            names.collect()
        };
        BoundEntity {
            rule: rule.clone(),
            is_source,
            service,
            names: names(&entity.ports),
            not_names: names(&entity.not_ports),
            address: AddressCondition { nets, not_nets, selector, not_selector, service },
        }
    }
}

/// Name (the number of the question), protocol and port.
pub(super) type NamedPortFact = (u32, u8, u16);

/// Service (the number of the question), protocol and port.
pub(super) type ServiceFact = (u32, Option<(u8, u16)>);

/// The answers for one address: numbers of questions, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    /// Selectors that choose an owner.
    pub(super) selectors: Vec<u32>,
    /// Nets that hold the address.
    pub(super) nets: Vec<u32>,
    /// Services at the address: protocol and port.
    pub(super) services: Vec<ServiceFact>,
    /// Named ports: name, protocol, port.
    pub(super) ports: Vec<NamedPortFact>,
}

impl Facts {
    /// What is known of an address by two ways together.
    pub(super) fn union(&self, other: &Self) -> Self {
        fn union<T: Ord + Copy>(a: &[T], b: &[T]) -> Vec<T> {
            let mut all = [a, b].concat();
            all.sort_unstable();
            all.dedup();
            all
        }
        Self {
            selectors: union(&self.selectors, &other.selectors),
            nets: union(&self.nets, &other.nets),
            services: union(&self.services, &other.services),
            ports: union(&self.ports, &other.ports),
        }
    }

    fn behind(&self, service: u32) -> &[ServiceFact] {
        let start = self.services.partition_point(|(id, _)| *id < service);
        let end = self.services.partition_point(|(id, _)| *id <= service);
        &self.services[start..end]
    }

    fn is_behind(&self, service: u32) -> bool {
        !self.behind(service).is_empty()
    }

    /// The ports of a protocol that a service has at this address.
    pub(super) fn service_ports(&self, service: u32, protocol: u8) -> impl Iterator<Item = u16> {
        let open = self.behind(service).iter().filter_map(|(_, port)| *port);
        open.filter(move |(of, _)| *of == protocol).map(|(_, port)| port)
    }

    fn named(&self, name: u32) -> &[NamedPortFact] {
        let start = self.ports.partition_point(|(id, ..)| *id < name);
        let end = self.ports.partition_point(|(id, ..)| *id <= name);
        &self.ports[start..end]
    }

    /// The ports of a protocol that have this name.
    pub(super) fn named_ports(&self, name: u32, protocol: u8) -> impl Iterator<Item = u16> {
        let named = self.named(name).iter().filter(move |(_, of, _)| *of == protocol);
        named.map(|(.., port)| *port)
    }
}
