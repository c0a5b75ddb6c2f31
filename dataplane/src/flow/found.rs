//! What looking for a flow, or for a place of one, leads to.

use super::counts::Traffic;
use super::line::{self, Words};
use super::{FlowKey, FlowState, Tick};
use crate::tables::{Concern, RuleId, VtepId};

/// Why a flow was not remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All lines that it may stand in hold established flows.
    #[error("no place is left for a new flow")]
    Full,
    /// Another worker was writing where it may stand, for too long.
    #[error("an entry that may be the flow's was being written")]
    Busy,
}

/// Why a flow was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// It is not known, or has been idle for too long.
    #[error("the flow is not known")]
    Unknown,
    /// Another worker was writing where it may stand, for too long: it may be
    /// known, and even denied.
    #[error("an entry that may be the flow's was being written")]
    Busy,
}

/// A flow that was found, and where.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub(super) line: usize,
    pub(super) words: Words,
    pub(super) rule: RuleId,
}

impl Found {
    /// What is remembered of the flow.
    #[inline(always)]
    pub fn state(&self) -> FlowState {
        self.words.flow(self.rule)
    }

    /// The part of it that a packet needs.
    pub fn glimpse(&self) -> Glimpse {
        Glimpse::new(self.line, &self.words)
    }
}

/// What a packet needs to know of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    pub(super) line: usize,
    pub(super) sequence: u32,
    state: u32,
    pub(super) seen: u64,
}

impl Glimpse {
    #[inline(always)]
    pub(super) fn new(line: usize, words: &Words) -> Self {
        let Words { sequence, state, seen, .. } = *words;
        Self { line, sequence, state, seen }
    }

    /// The VTEP of the remote end.
    #[inline(always)]
    pub const fn vtep(&self) -> VtepId {
        line::vtep(self.state)
    }

    /// What a change of the tables has to be about to concern the flow, which is
    /// that of `key`.
    pub fn concern(&self, key: &FlowKey) -> Concern {
        line::concern(self.state, key)
    }

    /// Low 32 bits of the generation of the tables that the flow was judged by.
    #[inline]
    pub const fn generation(&self) -> u32 {
        (self.seen >> 32) as u32
    }
}

/// A live flow, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub key: FlowKey,
    /// What is remembered of it.
    pub state: FlowState,
    /// When its last packet was noted: up to a second before it came.
    pub last: Tick,
    /// What has come from its low and from its high end; nothing where flows are
    /// not counted.
    pub traffic: [Traffic; 2],
}
