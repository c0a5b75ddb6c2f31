//! What can go wrong.

use std::io;
use std::time::Duration;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of the lab itself. That a connection is refused or times out is an
/// outcome, not an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file operation failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the object's name.
        doing: String,
        /// The cause.
        source: io::Error,
    },
    /// A command ended with an error.
    #[error("{command} in {netns} failed ({status}): {stderr}")]
    Command {
        /// Command line, or the batch that was fed to it.
        command: String,
        /// Namespace it ran in.
        netns: String,
        /// Exit status in words.
        status: String,
        /// What it printed to standard error.
        stderr: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// Bytes arrived that were not sent.
    #[error("{what}: payload differs from what was sent")]
    Corrupt {
        /// Which exchange.
        what: String,
    },
    /// The lab was closed, by a signal for example; nothing new can be made.
    #[error("the lab is closed")]
    Closed,
    /// A name that can't be part of a namespace's or a file's name.
    #[error("name {0:?} may only hold lower-case letters, digits and inner dashes")]
    Name(String),
    /// More nodes than devices on a segment of devices.
    #[error("segment {0} has no device left for another node")]
    Devices(u8),
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn errno(doing: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, source: errno.into() }
    }
}
