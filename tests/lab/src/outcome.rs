//! What becomes of an attempt to talk to somebody.

use std::io::{self, ErrorKind};

/// What became of an attempt to talk to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Connected, and payload came back unharmed.
    Connected,
    /// A reset or ICMP port unreachable came back.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// The kernel or an ICMP error said why it can't be reached.
    Unreachable(String),
    /// The handshake went through but no payload came back (TCP only).
    Silent,
}

impl Outcome {
    /// Sorts a socket's error into an outcome.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Unreachable(error.to_string()),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Refused => f.write_str("refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreachable(why) => write!(f, "unreachable ({why})"),
            Self::Silent => f.write_str("connected but silent"),
        }
    }
}
