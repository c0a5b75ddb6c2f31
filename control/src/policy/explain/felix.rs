//! What Felix decides of a connection with a remote endpoint: the same policies
//! on the same evaluator, but of remote clusters only what is in the local
//! API's sets.

use std::collections::BTreeSet;

use serde::Serialize;

use super::story::{self, Packet, Peer};
use super::{Tables, Verdict};
use crate::derive::Derived;
use crate::mirror::{is_label_value, mirrored_sets};
use crate::policy::compile::Direction;
use crate::policy::model::{PolicySet, PortMatch, Rule};
use crate::policy::selector::Selector;
use crate::state::{ClusterId, Identity, IdentityKind};

/// What Felix decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FelixView {
    /// Its verdict.
    pub verdict: Verdict,
    /// Whether that is another verdict than ours.
    pub differs: bool,
    /// Why, in words; with `differs`, what it does not know, too.
    pub reason: String,
    /// What rules ask for and Felix does not know of the remote endpoint: it
    /// may decide otherwise where that counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// What Felix knows, if it is there.
pub(super) fn identities(derived: &Derived) -> Option<Vec<Identity>> {
    let sets = mirrored_sets(&derived.world.local.policy);
    if sets.is_empty() && derived.world.local.felix.is_empty() {
        return None;
    }
    let local = derived.identities().iter().filter(|it| it.cluster == ClusterId::Local);
    Some(local.cloned().chain(sets).collect())
}

/// Whether the two may differ about a peer. Nothing is written for a pod that
/// there is not.
pub(super) fn concerns(peer: &Peer<'_>) -> bool {
    let exists = !peer.owners.iter().any(|owner| super::is_hypothetical(owner));
    exists && peer.owners.iter().any(|owner| owner.cluster != ClusterId::Local)
}

/// Felix's verdict, from tables that were compiled with what it knows.
pub(super) fn view(
    tables: &Tables<'_>,
    known: &[Identity],
    policies: &PolicySet,
    direction: Direction,
    packet: &Packet<'_>,
    ours: bool,
) -> FelixView {
    let (_, peer) = packet.ends(direction);
    let holds = |it: &&Identity| it.nets.iter().any(|net| net.contains(peer.addr));
    let sets: Vec<&Identity> = known.iter().filter(holds).collect();
    let unknown = unknown(policies, direction, peer, &sets);
    let names: Vec<&str> = sets.iter().map(|set| set.name.name.as_str()).collect();
    let mut seen = packet.clone();
    let end = match direction {
        Direction::Ingress => &mut seen.source,
        Direction::Egress => &mut seen.destination,
    };
    end.owners = sets;
    let (allow, decision) = tables.judge(direction, &seen);
    let mut reason = story::reason(policies, direction, &seen, allow, decision);
    if allow != ours {
        let known = match (unknown.as_slice(), names.as_slice()) {
            ([], []) => "no set holds the address, so Felix knows no labels of it".to_owned(),
            ([], names) => {
                format!("of the address Felix knows what set {} says", names.join(" and "))
            }
            (unknown, _) => unknown.join("; "),
        };
        reason = format!("{reason}; {known}");
    }
    FelixView { verdict: allow.into(), differs: allow != ours, reason, unknown }
}

/// What rules ask for and no set can tell.
fn unknown(
    policies: &PolicySet,
    direction: Direction,
    peer: &Peer<'_>,
    sets: &[&Identity],
) -> Vec<String> {
    let owners = peer.owners.iter().filter(|it| it.kind != IdentityKind::NetworkSet);
    let owners: Vec<&Identity> = owners.copied().collect();
    let policies = policies.tiers.iter().flat_map(|tier| tier.policies.values());
    let rules = policies.filter(|policy| !policy.staged).flat_map(|policy| match direction {
        Direction::Ingress => policy.ingress.iter(),
        Direction::Egress => policy.egress.iter(),
    });
    let entities = rules.flatten().map(|rule: &Rule| match direction {
        Direction::Ingress => &rule.source,
        Direction::Egress => &rule.destination,
    });
    let (mut keys, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for entity in entities {
        let selectors = entity.selector.iter().chain(&entity.not_selector);
        let matches = |selector: &Selector, all: &[&Identity]| {
            all.iter().any(|it| selector.matches(&it.labels))
        };
        let apart = selectors.filter(|it| matches(it, &owners) != matches(it, sets));
        keys.extend(apart.flat_map(Selector::keys).filter(|key| {
            let mut values = owners.iter().filter_map(|owner| owner.labels.get(&***key));
            values.any(|value| !is_label_value(value))
        }));
        if direction == Direction::Egress {
            let open =
                |name: &str| owners.iter().flat_map(|it| &it.ports).any(|it| it.name == name);
            let all = entity.ports.iter().chain(&entity.not_ports);
            ports.extend(all.filter_map(|port| match port {
                PortMatch::Named(name) if open(name) => Some(name),
                _ => None,
            }));
        }
    }
    let keys = keys.into_iter().map(|key| {
        format!("the value of label {key} can't be told to Felix: it takes 63 characters at most")
    });
    let ports = ports
        .into_iter()
        .map(|name| format!("Felix knows no port {name:?} of remote endpoints: write its number"));
    keys.chain(ports).collect()
}
