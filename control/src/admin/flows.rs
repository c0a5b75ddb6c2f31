//! The flows that the node knows, with the identities of both ends, what decided
//! about each, and what has gone through it.

use std::cmp::Reverse;

use serde::Serialize;
use tieline_dataplane::addr::Addr;
use tieline_dataplane::flow::{FlowTable, Seen, Tick, Traffic};
use tieline_dataplane::wire::protocol;

use crate::derive::Derived;
use crate::policy::explain::{EndpointInfo, ExplainError, Explainer, Protocol, Verdict};

/// Some of the flows.
#[derive(Clone, Debug, Serialize)]
pub struct Flows {
    /// Flows that were asked for, all of them.
    pub matching: usize,
    /// Those with most bytes, those first.
    pub flows: Vec<FlowInfo>,
}

/// One flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowInfo {
    /// Its protocol.
    pub protocol: Protocol,
    /// The end that began it.
    pub from: EndInfo,
    /// The other end.
    pub to: EndInfo,
    /// `new` until the other end has answered, `answered`, of TCP `established`
    /// when the first one has gone on, and `closing`; `fragments` are the later
    /// ones of a packet.
    pub state: &'static str,
    /// Whether its packets pass.
    pub verdict: Verdict,
    /// What decided that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Since its last packet, in seconds.
    pub idle_seconds: u64,
    /// From the end that began it.
    pub sent: TrafficInfo,
    /// From the other end.
    pub answered: TrafficInfo,
}

/// One end of a flow.
#[derive(Clone, Debug, Serialize)]
pub struct EndInfo {
    /// Its address, and who has it.
    #[serde(flatten)]
    pub endpoint: EndpointInfo,
    /// Its port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Packets that passed, and their bytes from the IP header on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TrafficInfo {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl From<Traffic> for TrafficInfo {
    fn from(Traffic { packets, bytes }: Traffic) -> Self {
        Self { packets, bytes }
    }
}

impl Flows {
    /// The flows at this moment, or those that `of`, a pod or an address, is an
    /// end of; `limit` at most are told of. Takes time in proportion to the table.
    pub fn new(
        derived: &Derived,
        table: &FlowTable,
        now: Tick,
        of: Option<&str>,
        limit: usize,
    ) -> Result<Self, ExplainError> {
        let explainer = Explainer::new(derived);
        let only = of.map(|end| explainer.addresses(end)).transpose()?;
        let wanted = |flow: &Seen| {
            let (low, high) = flow.key.ends();
            only.as_ref().is_none_or(|only| only.contains(&low) || only.contains(&high))
        };
        let mut all: Vec<Seen> = table.iter(now).filter(wanted).collect();
        // By name where nothing else tells them apart, so that two looks agree.
        all.sort_by_cached_key(|flow| {
            let [low, high] = flow.traffic;
            (Reverse((low + high).bytes), flow.key.ends(), flow.key.ports(), flow.key.protocol())
        });
        let flows = all.iter().take(limit).map(|flow| info(&explainer, flow, now)).collect();
        Ok(Self { matching: all.len(), flows })
    }
}

fn info(explainer: &Explainer<'_>, flow: &Seen, now: Tick) -> FlowInfo {
    let Seen { key, state, last, traffic: [from_low, from_high] } = flow;
    let protocol = Protocol(key.protocol());
    let has_ports = protocol.has_ports() && !key.is_of_fragments();
    let end = |addr: Addr, port: u16| EndInfo {
        endpoint: explainer.endpoint(addr),
        port: has_ports.then_some(port),
    };
    let ((low, high), (low_port, high_port)) = (key.ends(), key.ports());
    let (low, high) = (end(low, low_port), end(high, high_port));
    let (from, to, sent, answered) = match state.from_low {
        true => (low, high, from_low, from_high),
        false => (high, low, from_high, from_low),
    };
    FlowInfo {
        protocol,
        from,
        to,
        state: match state {
            _ if key.is_of_fragments() => "fragments",
            _ if state.closing() => "closing",
            _ if state.established && protocol.0 == protocol::TCP => "established",
            _ if state.replied => "answered",
            _ => "new",
        },
        verdict: state.allow.into(),
        decided_by: explainer.decision(state.rule),
        idle_seconds: last.seconds_until(now),
        sent: (*sent).into(),
        answered: (*answered).into(),
    }
}
