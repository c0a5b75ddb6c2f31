//! Asking the daemon: a Unix socket for the command line, and HTTP for
//! Prometheus and the kubelet.
//!
//! On the socket each line is one JSON [`Request`], answered by one line of
//! JSON, a [`Response`]; a connection may ask any number of times. Requests go
//! to the daemon's own loop ([`Asked`]), so that an answer is of one moment.
//! The socket belongs to root alone: whoever may ask may see every identity.

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::derive::Derived;
use crate::policy::explain::{Explainer, explain_lines, explain_text};

pub mod client;
pub mod flows;
pub mod http;
pub mod metrics;
pub mod server;
pub mod status;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Request {
    /// The state of the daemon: a [`status::Status`].
    Status,
    /// Whether tables are in force and every worker runs: `true` or `false`.
    Ready,
    /// Why connections are allowed or denied: an [`Explained`].
    Explain {
        /// The connections, as JSON lines.
        lines: String,
        /// Whether the answers are for people.
        text: bool,
    },
    /// The flows that are known: [`flows::Flows`].
    Flows {
        /// Only those that this pod or address is an end of.
        #[serde(default)]
        of: Option<String>,
        /// How many at most: those with most bytes.
        limit: usize,
    },
}

/// Answers to [`Request::Explain`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// One answer or error for each connection: JSON lines, or text.
    pub output: String,
    /// Connections that are allowed.
    pub allowed: usize,
    /// Connections that are denied.
    pub denied: usize,
    /// Lines without an answer.
    pub errors: usize,
}

impl Explained {
    /// Answers in one state of the world.
    pub fn new(derived: &Derived, lines: &str, text: bool) -> Self {
        let mut explainer = Explainer::new(derived);
        let mut output = Vec::new();
        // Neither reading nor writing memory fails.
        let summary = if text {
            explain_text(&mut explainer, lines.as_bytes(), &mut output)
        } else {
            explain_lines(&mut explainer, lines.as_bytes(), &mut output)
        }
        .unwrap_or_default();
        Self {
            output: String::from_utf8_lossy(&output).into_owned(),
            allowed: summary.allowed,
            denied: summary.denied,
            errors: summary.errors,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// What was asked for.
    Answer(serde_json::Value),
    /// Why there is no answer.
    Error(String),
}

/// A request on its way to the daemon's loop, and where the answer goes.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes; the asker may be gone.
    pub reply: oneshot::Sender<Response>,
}

impl Asked {
    /// Sends the answer.
    pub fn answer(self, answer: &impl Serialize) {
        let response = match serde_json::to_value(answer) {
            Ok(answer) => Response::Answer(answer),
            Err(error) => Response::Error(format!("the answer can't be written: {error}")),
        };
        // The asker may have gone.
        let _ = self.reply.send(response);
    }

    /// Says why there is no answer.
    pub fn refuse(self, reason: &str) {
        let _ = self.reply.send(Response::Error(reason.to_owned()));
    }
}

/// Hands requests to the daemon's loop.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Asked>);

impl Desk {
    /// A desk, and the end from which the daemon takes requests.
    pub fn new() -> (Self, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(16);
        (Self(sender), receiver)
    }

    /// Asks and waits for the answer.
    pub async fn ask(&self, request: Request) -> Response {
        let (reply, answer) = oneshot::channel();
        let stopping = || Response::Error("the daemon is stopping".into());
        if self.0.send(Asked { request, reply }).await.is_err() {
            return stopping();
        }
        answer.await.unwrap_or_else(|_| stopping())
    }
}
