//! A rule's conditions, and which of them a packet fails, in words.
//!
//! This reads the model for the sake of the story alone: the verdict is the
//! compiled tables', and the tests hold the two against each other.

use std::ops::RangeInclusive;

use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::L4;

use super::labels::{failing, has, negative, positive};
use super::query::Protocol;
use super::story::{Packet, Peer};
use crate::policy::model::{Entity, Icmp, PolicySet, PortMatch, Rule};
use crate::policy::selector::Selector;
use crate::state::Identity;

/// A rule's conditions in words.
pub(super) fn describe(rule: &Rule) -> Vec<String> {
    let mut all = Vec::new();
    match (rule.v4, rule.v6) {
        (true, false) => all.push("IPv4".to_owned()),
        (false, true) => all.push("IPv6".to_owned()),
        (true, true) | (false, false) => {}
    }
    all.extend(rule.protocol.map(|number| Protocol(number).to_string()));
    all.extend(rule.not_protocol.map(|number| format!("not {}", Protocol(number))));
    all.extend(rule.icmp.map(icmp_words));
    all.extend(rule.not_icmp.map(|icmp| format!("not {}", icmp_words(icmp))));
    for (end, entity) in [("source", &rule.source), ("destination", &rule.destination)] {
        let Entity { nets, not_nets, selector, not_selector, ports, not_ports, service } = entity;
        let mut add = |words: &str, what: String| all.push(format!("{end} {words}{what}"));
        if !nets.is_empty() {
            add("in ", list(nets));
        }
        if !not_nets.is_empty() {
            add("not in ", list(not_nets));
        }
        if let Some(selector) = selector {
            add("", positive(selector));
        }
        if let Some(selector) = not_selector {
            add("", negative(selector));
        }
        if !ports.is_empty() {
            add("port ", port_list(ports));
        }
        if !not_ports.is_empty() {
            add("port not ", port_list(not_ports));
        }
        if let Some(service) = service {
            add("is service ", service.to_string());
        }
    }
    all
}

/// The conditions of a rule that a packet fails, in words.
pub(super) fn failures(set: &PolicySet, rule: &Rule, packet: &Packet<'_>) -> Vec<String> {
    let mut failed = Vec::new();
    let L4 { protocol, .. } = packet.l4;
    let name = Protocol(protocol);
    let v4 = packet.source.addr.is_v4();
    if !(if v4 { rule.v4 } else { rule.v6 }) {
        let family = if v4 { "IPv4" } else { "IPv6" };
        failed.push(format!("the rule does not exist for {family}: by ipVersion, or its nets"));
    }
    if let Some(wanted) = rule.protocol.filter(|wanted| *wanted != protocol) {
        failed.push(format!("{name} is not {}", Protocol(wanted)));
    }
    if rule.not_protocol == Some(protocol) {
        failed.push(format!("{name} is what notProtocol excludes"));
    }
    let [kind, code] = packet.l4.destination.to_be_bytes();
    let is = |icmp: Icmp| {
        name.is_icmp() && icmp.kind == kind && icmp.code.is_none_or(|wanted| wanted == code)
    };
    let own = if name.is_icmp() { format!("type {kind} code {code}") } else { name.to_string() };
    // A failed protocol says all about types and ports.
    let comparable = rule.protocol.is_none_or(|wanted| wanted == protocol);
    if let Some(icmp) = rule.icmp.filter(|icmp| comparable && !is(*icmp)) {
        failed.push(format!("{own} is not {}", icmp_words(icmp)));
    }
    if rule.not_icmp.is_some_and(is) {
        failed.push(format!("{own} is what notICMP excludes"));
    }
    for (end, entity, peer) in [
        ("source", &rule.source, &packet.source),
        ("destination", &rule.destination, &packet.destination),
    ] {
        address_failures(end, entity, peer, &mut failed);
        if comparable {
            port_failures(end, entity, peer, &packet.l4, &mut failed);
        }
    }
    service_failures(set, rule, packet, &mut failed);
    failed
}

/// Rules for other protocols are at least this far: nobody who is denied one
/// would use another.
pub(super) const OTHER_PROTOCOL: usize = 100;

/// How far a packet is from matching a rule, given the conditions that it fails:
/// each counts, and so does every label.
pub(super) fn distance(failed: &[String], rule: &Rule, packet: &Packet<'_>) -> usize {
    let is_other = rule.protocol.is_some_and(|wanted| wanted != packet.l4.protocol);
    let other = if is_other { OTHER_PROTOCOL } else { 0 };
    let ends = [(&rule.source, &packet.source), (&rule.destination, &packet.destination)];
    let labels = ends.into_iter().filter_map(|(entity, peer)| {
        let selector = entity.selector.as_ref()?;
        let chosen = peer.owners.iter().any(|owner| selector.matches(&owner.labels));
        (!chosen).then(|| failing(selector, peer).saturating_sub(1))
    });
    other + failed.len() + labels.sum::<usize>()
}

fn service_failures(set: &PolicySet, rule: &Rule, packet: &Packet<'_>, failed: &mut Vec<String>) {
    let L4 { protocol, destination, .. } = packet.l4;
    let endpoints = |name, addr: Addr| {
        let all = set.services.get(name).into_iter().flat_map(|all| all.iter());
        all.filter(move |endpoint| Addr::from(endpoint.address) == addr)
    };
    let source = packet.source.addr;
    if let Some(name) = &rule.source.service
        && endpoints(name, source).next().is_none()
    {
        failed.push(format!("source {source} is no endpoint of service {name}"));
    }
    let addr = packet.destination.addr;
    if let Some(name) = &rule.destination.service {
        let ports: Vec<_> = endpoints(name, addr).map(|endpoint| endpoint.port).collect();
        if ports.is_empty() {
            failed.push(format!("destination {addr} is no endpoint of service {name}"));
        } else if !ports.contains(&Some((protocol, destination))) {
            let own = ports.iter().flatten();
            let own = own.map(|(protocol, port)| format!("{} {port}", Protocol(*protocol)));
            let own = list(&own.collect::<Vec<_>>());
            let asked = Protocol(protocol);
            let port = if asked.has_ports() { format!(" {destination}") } else { String::new() };
            failed.push(format!("{asked}{port} is no port of service {name} ({own})"));
        }
    }
}

fn address_failures(end: &str, entity: &Entity, peer: &Peer<'_>, failed: &mut Vec<String>) {
    let Peer { addr, owners } = peer;
    let name = peer.name();
    if !entity.nets.is_empty() && !entity.nets.iter().any(|net| net.contains(*addr)) {
        failed.push(format!("{end} {addr} is {} {}", none(&entity.nets, "in"), list(&entity.nets)));
    }
    if let Some(net) = entity.not_nets.iter().find(|net| net.contains(*addr)) {
        failed.push(format!("{end} {addr} is in {net}, which the rule excludes"));
    }
    let chooses = |selector: &&Selector| owners.iter().any(|it| selector.matches(&it.labels));
    if let Some(selector) = entity.selector.as_ref().filter(|selector| !chooses(selector)) {
        failed.push(format!("{end} {name} {}{}", negative(selector), has(selector, peer)));
    }
    if let Some(selector) = entity.not_selector.as_ref().filter(chooses) {
        failed.push(format!("{end} {name} {}, which notSelector excludes", positive(selector)));
    }
}

fn port_failures(end: &str, entity: &Entity, peer: &Peer<'_>, l4: &L4, failed: &mut Vec<String>) {
    let destination = end == "destination";
    let port = if destination { l4.destination } else { l4.source };
    let protocol = Protocol(l4.protocol);
    let matches = |wanted: &PortMatch| {
        protocol.has_ports()
            && match wanted {
                PortMatch::Range(range) => range.contains(&port),
                PortMatch::Named(_) => named(wanted, entity, peer, protocol).any(|it| it == port),
            }
    };
    let own = if protocol.has_ports() { format!("port {port}") } else { protocol.to_string() };
    if !entity.ports.is_empty() && !entity.ports.iter().any(matches) {
        let wanted = entity.ports.iter().map(|wanted| {
            let open: Vec<u16> = named(wanted, entity, peer, protocol).collect();
            match wanted {
                PortMatch::Range(range) => range_words(range),
                PortMatch::Named(name) if open.is_empty() => {
                    format!("{name} (no {protocol} port of that name there)")
                }
                PortMatch::Named(name) => format!("{name} ({})", list(&open)),
            }
        });
        let wanted: Vec<String> = wanted.collect();
        failed.push(format!("{end} {own} is {} {}", none(&wanted, ""), list(&wanted)));
    }
    if entity.not_ports.iter().any(matches) {
        failed.push(format!("{end} {own} is what notPorts excludes"));
    }
}

/// The ports of a protocol that a name stands for at an address.
fn named<'p>(
    wanted: &'p PortMatch,
    entity: &'p Entity,
    peer: &'p Peer<'_>,
    protocol: Protocol,
) -> impl Iterator<Item = u16> + 'p {
    let selected = |owner: &&&Identity| {
        entity.selector.as_ref().is_none_or(|selector| selector.matches(&owner.labels))
    };
    let ports = peer.owners.iter().filter(selected).flat_map(|owner| &owner.ports);
    let ports = ports.filter(move |port| match wanted {
        PortMatch::Named(name) => port.name == *name && port.protocol == protocol.0,
        PortMatch::Range(_) => false,
    });
    ports.map(|port| port.port)
}

fn icmp_words(icmp: Icmp) -> String {
    match icmp.code {
        Some(code) => format!("type {} code {code}", icmp.kind),
        None => format!("type {}", icmp.kind),
    }
}

fn range_words(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

fn port_list(ports: &[PortMatch]) -> String {
    let words = ports.iter().map(|port| match port {
        PortMatch::Range(range) => range_words(range),
        PortMatch::Named(name) => name.clone(),
    });
    list(&words.collect::<Vec<_>>())
}

/// "not" or "none of", with a preposition.
fn none<T>(of: &[T], preposition: &str) -> String {
    match (of, preposition) {
        ([_], "") => "not".to_owned(),
        ([_], _) => format!("not {preposition}"),
        (_, "") => "none of".to_owned(),
        _ => format!("{preposition} none of"),
    }
}

/// The most members of a list that are written out.
const LISTED: usize = 6;

fn list<T: ToString>(all: &[T]) -> String {
    let mut words: Vec<String> = all.iter().take(LISTED).map(T::to_string).collect();
    if all.len() > LISTED {
        words.push(format!("{} more", all.len() - LISTED));
    }
    words.join(", ")
}
