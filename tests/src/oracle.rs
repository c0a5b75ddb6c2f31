//! Policy read directly: one packet against every rule in order, for clarity
//! alone. It is the judge of the compiled tables and must share nothing with
//! them but the model that both read.

use tieline::policy::compile::{Decision, Direction};
use tieline::policy::model::{
    Action, Entity, Icmp, Policy, PolicySet, PortMatch, Rule, TierAction,
};
use tieline::state::{Identity, IdentityKind};
use tieline_dataplane::addr::Addr;
use tieline_dataplane::tables::L4;

/// A packet as far as policy can see it. For ICMP and ICMPv6 the destination
/// "port" is the type times 256 plus the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Addr,
    /// Destination address, of the same family.
    pub destination: Addr,
    /// Protocol and ports.
    pub l4: L4,
}

/// Everything that the verdict depends on.
#[derive(Clone, Copy, Debug)]
pub struct Oracle<'a> {
    /// Policies in order.
    pub policies: &'a PolicySet,
    /// All identities.
    pub identities: &'a [Identity],
}

impl Oracle<'_> {
    /// Whether the endpoint at one end of the packet allows it, and why; `None`
    /// when no local workload has that address.
    pub fn judge(&self, direction: Direction, packet: &Packet) -> Option<(bool, Decision)> {
        let local = match direction {
            Direction::Ingress => packet.destination,
            Direction::Egress => packet.source,
        };
        let endpoints: Vec<&Identity> =
            self.owners(local).filter(|owner| owner.kind == IdentityKind::LocalWorkload).collect();
        // Of several namespaces one that is not there counts first.
        let profile = endpoints.iter().map(|owner| (owner.profile, &owner.name.namespace)).min();
        let (allows, namespace) = profile?;

        'tiers: for tier in &self.policies.tiers {
            let mut any_applies = false;
            for policy in tier.policies.values().filter(|policy| !policy.staged) {
                let selected = endpoints.iter().any(|owner| policy.selector.matches(&owner.labels));
                let Some(rules) = rules(policy, direction).filter(|_| selected) else { continue };
                any_applies = true;
                for (index, rule) in rules.iter().enumerate() {
                    if !self.rule_matches(rule, packet) {
                        continue;
                    }
                    let decision = Decision::Rule {
                        tier: tier.name.clone(),
                        source: policy.source,
                        policy: policy.name.clone(),
                        direction,
                        index,
                    };
                    match rule.action {
                        Action::Allow => return Some((true, decision)),
                        Action::Deny => return Some((false, decision)),
                        Action::Pass => continue 'tiers,
                        Action::Log => {}
                    }
                }
            }
            if any_applies && tier.default_action == TierAction::Deny {
                return Some((false, Decision::TierDefault { tier: tier.name.clone() }));
            }
        }
        let name = format!("kns.{namespace}");
        let decision =
            if allows { Decision::Profile { name } } else { Decision::NoProfile { name } };
        Some((allows, decision))
    }

    /// The identities that an address is one of. Network sets hold addresses
    /// too.
    fn owners(&self, addr: Addr) -> impl Iterator<Item = &Identity> {
        self.identities
            .iter()
            .filter(move |identity| identity.nets.iter().any(|net| net.contains(addr)))
    }

    fn rule_matches(&self, rule: &Rule, packet: &Packet) -> bool {
        let exists = if packet.source.is_v4() { rule.v4 } else { rule.v6 };
        exists
            && rule.protocol.is_none_or(|protocol| protocol == packet.l4.protocol)
            && rule.not_protocol.is_none_or(|protocol| protocol != packet.l4.protocol)
            && rule.icmp.is_none_or(|icmp| is_icmp(icmp, &packet.l4))
            && !rule.not_icmp.is_some_and(|icmp| is_icmp(icmp, &packet.l4))
            && self.entity_matches(&rule.source, packet, false)
            && self.entity_matches(&rule.destination, packet, true)
    }

    fn entity_matches(&self, entity: &Entity, packet: &Packet, is_destination: bool) -> bool {
        let L4 { protocol, source, destination } = packet.l4;
        let (addr, port) = if is_destination {
            (packet.destination, destination)
        } else {
            (packet.source, source)
        };
        let port_matches = |wanted: &PortMatch| {
            [6, 17, 132].contains(&protocol)
                && match wanted {
                    PortMatch::Range(range) => range.contains(&port),
                    PortMatch::Named(name) => self.owners(addr).any(|owner| {
                        let selected =
                            entity.selector.as_ref().is_none_or(|it| it.matches(&owner.labels));
                        let named = |of: &tieline::state::NamedPort| {
                            of.name == *name && of.protocol == protocol && of.port == port
                        };
                        selected && owner.ports.iter().any(named)
                    }),
                }
        };
        let service_matches = |name| {
            let endpoints = self.policies.services.get(name).into_iter().flat_map(|all| all.iter());
            let mut here = endpoints.filter(|endpoint| Addr::from(endpoint.address) == addr);
            here.any(|endpoint| !is_destination || endpoint.port == Some((protocol, port)))
        };
        let chooses = |selector: &tieline::policy::selector::Selector| {
            self.owners(addr).any(|owner| selector.matches(&owner.labels))
        };
        (entity.nets.is_empty() || entity.nets.iter().any(|net| net.contains(addr)))
            && !entity.not_nets.iter().any(|net| net.contains(addr))
            && entity.selector.as_ref().is_none_or(chooses)
            && !entity.not_selector.as_ref().is_some_and(chooses)
            && (entity.ports.is_empty() || entity.ports.iter().any(port_matches))
            && !entity.not_ports.iter().any(port_matches)
            && entity.service.as_ref().is_none_or(service_matches)
    }
}

fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

fn is_icmp(icmp: Icmp, l4: &L4) -> bool {
    let [kind, code] = l4.destination.to_be_bytes();
    [1, 58].contains(&l4.protocol)
        && icmp.kind == kind
        && icmp.code.is_none_or(|wanted| wanted == code)
}
