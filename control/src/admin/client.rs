//! The Unix socket's asking side: plain blocking input and output.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Request, Response};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket can't be reached.
    #[error(
        "cannot reach the daemon at {socket}: {source}; is `tieline run` up on this node, \
         and is this the `admin.socket` of its configuration?"
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon did not answer in time, or not with an answer.
    #[error("the daemon at {socket} gave no answer: {reason}")]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What came instead.
        reason: String,
    },
    /// The daemon refused the request.
    #[error("the daemon answers: {0}")]
    Refused(String),
}

/// Asks the daemon at `socket`.
pub fn ask(socket: &Path, request: &Request) -> Result<serde_json::Value, ClientError> {
    let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
    let no_answer = |reason: String| ClientError::NoAnswer { socket: socket.to_owned(), reason };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let mut text = serde_json::to_vec(request).map_err(|error| no_answer(error.to_string()))?;
    text.push(b'\n');
    stream.write_all(&text).map_err(unreachable)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(|error| no_answer(error.to_string()))?;
    match serde_json::from_str(&line) {
        Ok(Response::Answer(value)) => Ok(value),
        Ok(Response::Error(reason)) => Err(ClientError::Refused(reason)),
        Err(error) => Err(no_answer(error.to_string())),
    }
}
