//! What Felix decides of a connection with a remote endpoint: the same policies
//! on the same evaluator, but of remote clusters only what is in the local
//! API's sets.

use serde::Serialize;

use super::story::{self, Packet, Peer};
use super::{Tables, Verdict};
use crate::derive::Derived;
use crate::mirror::mirrored_sets;
use crate::policy::compile::Direction;
use crate::policy::model::PolicySet;
use crate::state::{ClusterId, Identity};

/// What Felix decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FelixView {
    /// Its verdict.
    pub verdict: Verdict,
    /// Whether that is another verdict than ours.
    pub differs: bool,
    /// Why, in words; with `differs`, what it does not know, too.
    pub reason: String,
}

/// What Felix knows, if anything was written for it.
pub(super) fn identities(derived: &Derived) -> Option<Vec<Identity>> {
    let sets = mirrored_sets(&derived.world.local.policy);
    if sets.is_empty() {
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
    let sets: Vec<&Identity> = {
        let (_, peer) = packet.ends(direction);
        let holds = |it: &&Identity| it.nets.iter().any(|net| net.contains(peer.addr));
        known.iter().filter(holds).collect()
    };
    let names: Vec<&str> = sets.iter().map(|set| set.name.name.as_str()).collect();
    let known = match names.as_slice() {
        [] => "no set holds the address, so Felix knows no labels of it".to_owned(),
        names => format!(
            "of the address Felix knows what set {} says, and no names of ports",
            names.join(" and ")
        ),
    };
    let mut seen = packet.clone();
    let peer = match direction {
        Direction::Ingress => &mut seen.source,
        Direction::Egress => &mut seen.destination,
    };
    peer.owners = sets;
    let (allow, decision) = tables.judge(direction, &seen);
    let mut reason = story::reason(policies, direction, &seen, allow, decision);
    if allow != ours {
        reason = format!("{reason}; {known}");
    }
    FelixView { verdict: allow.into(), differs: allow != ours, reason }
}
