//! May this packet pass, and through which VTEP does its remote end sit?
//!
//! A packet of a known flow costs one line of the flow table, and most packets
//! nothing else: they are whole, neither begin nor end anything, and are let
//! pass at a glance. All others go the long way, which alone says why a packet
//! is dropped.
//!
//! A packet of no known flow is judged by the tables: the sender must be who it
//! claims to be, the destination must be somewhere, and the policy of the local
//! end must allow it. Policy is stateful: it judges the packet that begins a
//! flow, and answers pass with it. When what a flow was judged by has changed
//! since, its next packet has it judged again, as it was begun; a flow that is
//! now denied is remembered as such, so that its answers can't begin it anew.

use crate::addr::Addr;
use crate::counters::Tally;
use crate::flow::{
    FlowState, FlowTable, FlowTuple, Found, Glimpse, NotFound, Refused, Tick, Traffic,
};
use crate::stage::{Work, parse_inner};
use crate::tables::{L4, NodeId, Outcome, Route, RuleId, Snapshot, VtepId};
use crate::verdict::DropReason;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{ethernet, icmp, protocol, tcp};

/// What judging needs, read once per batch.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The tables.
    pub tables: &'a Snapshot,
    /// The flows of all workers.
    pub flows: &'a FlowTable,
    /// The time.
    pub now: Tick,
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From this node, through the gateway.
    Gateway,
    /// From the underlay, sent by whoever has this underlay address.
    Underlay(Addr),
}

/// The packet that begins a flow, as far as judging it needs.
struct Opening {
    source: Addr,
    destination: Addr,
    l4: L4,
    /// Whether the source is the end on this node.
    source_is_local: bool,
}

/// Decides on one packet; `frame` gives its bytes from the inner Ethernet
/// header on. Returns the VTEP of its remote end.
#[inline(always)]
pub(crate) fn enforce<'f>(
    cx: &Context<'_>,
    work: &Work,
    frame: impl FnOnce() -> &'f [u8],
    origin: Origin,
    tally: &mut Tally,
) -> Result<VtepId, DropReason> {
    if work.ordinary
        && let Some(found) =
            cx.flows.glance(work.line, &work.tuple, origin == Origin::Gateway, cx.now)
        && (found.generation() == cx.tables.generation as u32 || holds(cx, &work.tuple, found))
        && is_sender(cx, origin, found.vtep())
    {
        tally.flow_hits += 1;
        cx.flows.count(&found, work.tuple.from_low, work.total_len);
        return Ok(found.vtep());
    }
    enforce_any(cx, &work.tuple, frame(), origin, tally)
}

/// Whether the packet comes from this VTEP, if it comes from any.
#[inline(always)]
fn is_sender(cx: &Context<'_>, origin: Origin, vtep: VtepId) -> bool {
    match origin {
        Origin::Gateway => true,
        Origin::Underlay(sender) => {
            cx.tables.vteps.get(vtep).is_some_and(|spec| spec.underlay == sender)
        }
    }
}

/// Whether what was decided about a flow holds by the tables of now, too. By
/// value: what is lent out has to be in memory.
#[inline(never)]
fn holds(cx: &Context<'_>, tuple: &FlowTuple, found: Glimpse) -> bool {
    if !cx.tables.is_newer_than(found.generation()) {
        return true;
    }
    let holds = !cx.tables.concerns(found.generation(), &found.concern(&tuple.key));
    if holds {
        cx.flows.confirm(&found, cx.tables.generation as u32);
    }
    holds
}

/// [`enforce`] for packets of all kinds and flows in any state.
#[inline(never)]
fn enforce_any(
    cx: &Context<'_>,
    tuple: &FlowTuple,
    frame: &[u8],
    origin: Origin,
    tally: &mut Tally,
) -> Result<VtepId, DropReason> {
    let packet = &parse_inner(frame)?;
    match cx.flows.find(tuple, cx.now) {
        Ok(found) if !is_apart(packet, tuple, &found.state()) => {
            tally.flow_hits += 1;
            known(cx, packet, tuple, origin, &found, tally)
        }
        Err(NotFound::Busy) => Err(DropReason::FlowBusy),
        _ => {
            tally.flow_misses += 1;
            cx.flows.expect(tuple);
            unknown(cx, packet, frame, tuple, origin)
        }
    }
}

/// Whether a packet that has the name of a known flow is not of it.
///
/// A SYN after the end of a connection reuses its ports for another one. The
/// only ICMP message that answers is an echo reply: any other one from the end
/// that did not begin the flow is that end's own.
#[inline]
fn is_apart(packet: &Packet, tuple: &FlowTuple, state: &FlowState) -> bool {
    match packet.protocol {
        protocol::ICMP | protocol::ICMPV6 => {
            tuple.from_low != state.from_low
                && !matches!(packet.fragment, Fragment::Later { .. })
                && !icmp::is_echo_reply(packet.protocol, packet.destination_port)
        }
        _ => state.closing() && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
    }
}

#[inline(always)]
fn known(
    cx: &Context<'_>,
    packet: &Packet,
    tuple: &FlowTuple,
    origin: Origin,
    found: &Found,
    tally: &mut Tally,
) -> Result<VtepId, DropReason> {
    let state = found.state();
    if !holds(cx, tuple, found.glimpse()) {
        tally.flow_rejudged += 1;
        return known_anew(cx, packet, tuple, origin, *found);
    }
    pass(cx, packet, tuple, origin, found, &state)
}

/// The same for a flow that has to be judged again first.
#[cold]
fn known_anew(
    cx: &Context<'_>,
    packet: &Packet,
    tuple: &FlowTuple,
    origin: Origin,
    found: Found,
) -> Result<VtepId, DropReason> {
    let state = judge_again(cx, packet, tuple, &found)?;
    // What the packet tells is to be noted in the line as it is now.
    let found = cx.flows.find(tuple, cx.now).unwrap_or(found);
    pass(cx, packet, tuple, origin, &found, &state)
}

/// Whether a packet of a flow in this state may pass.
#[inline(always)]
fn pass(
    cx: &Context<'_>,
    packet: &Packet,
    tuple: &FlowTuple,
    origin: Origin,
    found: &Found,
    state: &FlowState,
) -> Result<VtepId, DropReason> {
    let from_local = tuple.from_low == state.low_is_local;
    match origin {
        Origin::Gateway if !from_local => return Err(DropReason::SourceNotLocal),
        Origin::Underlay(_) if from_local => return Err(DropReason::SourceNotOwned),
        Origin::Underlay(sender) => check_sender(cx, sender, state.vtep)?,
        Origin::Gateway => {}
    }
    if !state.allow {
        let began_here = state.from_low == state.low_is_local;
        return Err(denied(began_here));
    }
    cx.flows.touch(found, tuple.from_low, packet.tcp_flags, cx.now);
    if let Fragment::First { ident } = packet.fragment {
        remember_fragments(cx, packet, ident, *state, tuple.from_low)?;
    }
    cx.flows.count(&found.glimpse(), tuple.from_low, packet.total_len);
    Ok(state.vtep)
}

/// The sender must be the flow's VTEP, or another one of its node: the two
/// families of a node have a VTEP each.
#[inline]
fn check_sender(cx: &Context<'_>, sender: Addr, vtep: VtepId) -> Result<(), DropReason> {
    match cx.tables.vteps.get(vtep) {
        Some(spec) if spec.underlay == sender => Ok(()),
        other => check_node(cx, sender, other.map(|spec| spec.node)),
    }
}

#[cold]
fn check_node(cx: &Context<'_>, sender: Addr, node: Option<NodeId>) -> Result<(), DropReason> {
    if node == Some(node_of(cx, sender)?) { Ok(()) } else { Err(DropReason::SourceNotOwned) }
}

/// The node whose VTEP has this underlay address.
fn node_of(cx: &Context<'_>, sender: Addr) -> Result<NodeId, DropReason> {
    let vteps = &cx.tables.vteps;
    let spec = vteps.by_underlay(sender).and_then(|vtep| vteps.get(vtep));
    spec.map(|spec| spec.node).ok_or(DropReason::UnknownVtep)
}

const fn denied(source_is_local: bool) -> DropReason {
    if source_is_local { DropReason::EgressDenied } else { DropReason::IngressDenied }
}

fn judge_again(
    cx: &Context<'_>,
    packet: &Packet,
    tuple: &FlowTuple,
    found: &Found,
) -> Result<FlowState, DropReason> {
    let old = found.state();
    let (low, high) = tuple.key.ends();
    let (source, destination) = if old.from_low { (low, high) } else { (high, low) };
    let opening = Opening {
        source,
        destination,
        l4: opening_l4(packet, tuple, old.from_low),
        source_is_local: old.from_low == old.low_is_local,
    };
    // Later fragments have no ports to be judged by: the packet is lost.
    if matches!(packet.fragment, Fragment::Later { .. }) {
        return Err(DropReason::FragmentUnmatched);
    }
    let (vtep, outcome) = judge(cx, &opening)?;
    let state = FlowState {
        allow: outcome.allow,
        rule: outcome.rule,
        vtep,
        generation: cx.tables.generation as u32,
        ..old
    };
    cx.flows.update(found, &state, cx.now);
    Ok(state)
}

/// Ports, or ICMP type and code, of the packet that began the flow which
/// `packet` is of.
fn opening_l4(packet: &Packet, tuple: &FlowTuple, from_low: bool) -> L4 {
    let as_seen = l4(packet);
    match (packet.protocol, (packet.destination_port >> 8) as u8) {
        // An echo reply answers a request; other messages are never answers.
        (protocol::ICMP, icmp::ECHO_REPLY) => {
            L4 { destination: u16::from(icmp::ECHO_REQUEST) << 8, ..as_seen }
        }
        (protocol::ICMPV6, icmp::ECHO_REPLY_V6) => {
            L4 { destination: u16::from(icmp::ECHO_REQUEST_V6) << 8, ..as_seen }
        }
        (protocol::ICMP | protocol::ICMPV6, _) => as_seen,
        _ if tuple.from_low == from_low => as_seen,
        _ => L4 { source: as_seen.destination, destination: as_seen.source, ..as_seen },
    }
}

const fn l4(packet: &Packet) -> L4 {
    L4 {
        protocol: packet.protocol,
        source: packet.source_port,
        destination: packet.destination_port,
    }
}

#[cold]
fn unknown(
    cx: &Context<'_>,
    packet: &Packet,
    frame: &[u8],
    tuple: &FlowTuple,
    origin: Origin,
) -> Result<VtepId, DropReason> {
    let source_is_local = origin == Origin::Gateway;
    // The sender's node must own the source.
    if let Origin::Underlay(sender) = origin
        && cx.tables.owner(packet.src) != Some(node_of(cx, sender)?)
    {
        return Err(DropReason::SourceNotOwned);
    }
    if !packet.src.is_forwardable() || !packet.dst.is_forwardable() {
        return Err(DropReason::NeverForwarded);
    }
    let opening =
        Opening { source: packet.src, destination: packet.dst, l4: l4(packet), source_is_local };
    if matches!(packet.fragment, Fragment::Later { .. }) {
        return Err(DropReason::FragmentUnmatched);
    }
    let error = packet.is_icmp_error();
    let (vtep, outcome) = match error.then(|| about_known_flow(cx, packet, frame)).flatten() {
        Some(rule) => (judge_places(cx, &opening)?, Outcome { allow: true, rule }),
        None => judge(cx, &opening)?,
    };
    if !outcome.allow {
        return Err(denied(source_is_local));
    }
    let state = FlowState {
        allow: true,
        from_low: tuple.from_low,
        low_is_local: tuple.from_low == source_is_local,
        replied: false,
        established: false,
        fin_initiator: false,
        fin_responder: false,
        reset: false,
        vtep,
        rule: outcome.rule,
        generation: cx.tables.generation as u32,
    };
    // An error or an echo reply answers a flow; it never begins one, or what
    // is allowed to answer could ask.
    if !error && !icmp::is_echo_reply(packet.protocol, packet.destination_port) {
        let standing = cx
            .flows
            .insert(tuple, &state, Traffic::packet(packet.total_len), cx.now)
            .map_err(refused)?;
        // Another worker may have remembered it meanwhile, or it is apart from
        // a flow with its name; one that is denied stays denied.
        if let Some(found) = standing {
            let FlowState { allow, from_low, low_is_local, .. } = found.state();
            if !allow {
                return Err(denied(from_low == low_is_local));
            }
            cx.flows.count(&found.glimpse(), tuple.from_low, packet.total_len);
        }
    }
    if let Fragment::First { ident } = packet.fragment {
        remember_fragments(cx, packet, ident, state, tuple.from_low)?;
    }
    Ok(vtep)
}

/// The rule that allowed the flow which an ICMP error quotes, as far as is known
/// without judging that again.
fn about_known_flow(cx: &Context<'_>, packet: &Packet, frame: &[u8]) -> Option<RuleId> {
    let quoted = packet.quoted(frame.get(ethernet::HEADER_LEN..)?)?;
    // The error goes to the one who sent the quoted packet.
    if quoted.src != packet.dst {
        return None;
    }
    let tuple = FlowTuple::of(&quoted, cx.tables.overlay.vni, cx.flows.hasher());
    let found = cx.flows.find(&tuple, cx.now).ok()?;
    let allowed = found.state().allow && holds(cx, &tuple, found.glimpse());
    allowed.then_some(found.state().rule)
}

/// The later fragments of this packet pass with it.
#[cold]
fn remember_fragments(
    cx: &Context<'_>,
    packet: &Packet,
    ident: u32,
    state: FlowState,
    from_low: bool,
) -> Result<(), DropReason> {
    let vni = cx.tables.overlay.vni;
    let tuple = FlowTuple::of_fragments(*packet, ident, vni, cx.flows.hasher());
    let source_is_local = from_low == state.low_is_local;
    let state = FlowState {
        from_low: tuple.from_low,
        low_is_local: tuple.from_low == source_is_local,
        replied: false,
        established: false,
        generation: cx.tables.generation as u32,
        ..state
    };
    // An earlier packet may have had the same identification.
    if let Some(earlier) =
        cx.flows.insert(&tuple, &state, Traffic::default(), cx.now).map_err(refused)?
    {
        cx.flows.update(&earlier, &state, cx.now);
    }
    Ok(())
}

const fn refused(why: Refused) -> DropReason {
    match why {
        Refused::Full => DropReason::FlowTableFull,
        Refused::Busy => DropReason::FlowBusy,
    }
}

/// Both ends must be where they claim to be; returns the VTEP of the remote
/// one.
fn judge_places(cx: &Context<'_>, opening: &Opening) -> Result<VtepId, DropReason> {
    let is_local = |addr| cx.tables.endpoints.get(addr).is_some_and(|endpoint| endpoint.local);
    if opening.source_is_local {
        if !is_local(opening.source) {
            return Err(DropReason::SourceNotLocal);
        }
        match cx.tables.routes.get(opening.destination) {
            Some(Route::Vtep(vtep)) => Ok(*vtep),
            Some(Route::Local) => Err(DropReason::DestinationLocal),
            None => Err(DropReason::NoRoute),
        }
    } else {
        if !is_local(opening.destination) {
            return Err(DropReason::DestinationNotLocal);
        }
        match cx.tables.routes.get(opening.source) {
            Some(Route::Vtep(vtep)) => Ok(*vtep),
            _ => Err(DropReason::SourceNotOwned),
        }
    }
}

/// Judges the packet that begins a flow. The VTEP is that of the remote end.
fn judge(cx: &Context<'_>, opening: &Opening) -> Result<(VtepId, Outcome), DropReason> {
    let vtep = judge_places(cx, opening)?;
    let (local, remote) = if opening.source_is_local {
        (opening.source, opening.destination)
    } else {
        (opening.destination, opening.source)
    };
    let endpoints = &cx.tables.endpoints;
    let Some(policy) = endpoints.get(local).and_then(|endpoint| endpoint.policy) else {
        // An address of the node itself: its host firewall decides.
        return Ok((vtep, Outcome { allow: true, rule: RuleId(0) }));
    };
    let Some(policy) = cx.tables.policies.get(policy) else {
        return Err(denied(opening.source_is_local));
    };
    let direction = if opening.source_is_local { &policy.egress } else { &policy.ingress };
    Ok((vtep, direction.judge(endpoints.class(remote), &opening.l4)))
}
