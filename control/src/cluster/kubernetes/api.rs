//! Requests to one API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::header::{ACCEPT_ENCODING, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use kube::{Client, Config};
use tokio::time::{Instant, sleep, timeout};

use super::failure::{Cause, Failure};
use super::wire::Status;

/// The largest answer that is read, in bytes.
const LARGEST_PAGE: usize = 256 << 20;
/// The longest line of a watch, in bytes; objects have at most some two
/// megabytes.
const LONGEST_LINE: usize = 16 << 20;
/// How much of an error's text is read, in bytes.
const LONGEST_REFUSAL: usize = 64 << 10;

/// What `/readyz` says is not done while custom resources, or what is told of
/// them, are not all known: its own hooks, which each start goes through once.
const STARTING: [&str; 2] = ["poststarthook/", "autoregister-completion"];
/// How long a server may take, from its first answer, to know its roles. Until
/// then it forbids everything to everybody, `/readyz` too; one that forbids it
/// for longer has been told to.
const ROLES: Duration = Duration::from_secs(10);
/// Between two questions for it.
const ROLES_AGAIN: Duration = Duration::from_millis(500);

/// An API server, as reached in one way.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    server: String,
    /// How long it may take to answer.
    patience: Duration,
    /// Whether `/readyz` stays forbidden, so that nobody can tell when it starts.
    readyz_forbidden: Arc<AtomicBool>,
}

impl Api {
    /// The server that a configuration names.
    pub(super) async fn new(mut config: Config, patience: Duration) -> Result<Self, Failure> {
        let server = named(&config);
        config.connect_timeout = Some(patience);
        // Watches are silent for minutes; who asks minds the time by itself.
        config.read_timeout = None;
        config.default_retry = false;
        let client = client(config, patience).await?;
        Ok(Self { client, server, patience, readyz_forbidden: Arc::default() })
    }

    pub(super) fn failure(&self, cause: Cause) -> Failure {
        Failure { server: self.server.clone(), cause }
    }

    /// The answer to a request, whatever its status.
    async fn ask(&self, path: &str) -> Result<Response<Body>, Failure> {
        let request = Request::get(path).header(ACCEPT_ENCODING, "identity").body(Body::empty());
        let request = request.map_err(|e| self.failure(Cause::Other(e.to_string())))?;
        let sent = timeout(self.patience, self.client.send(request)).await;
        match sent {
            Err(_) => Err(self.failure(Cause::Silent(self.patience))),
            Ok(Err(error)) => Err(self.failure(Cause::of_error(&error, self.patience))),
            Ok(Ok(response)) => Ok(response),
        }
    }

    async fn send(&self, path: &str) -> Result<Response<Body>, Failure> {
        let response = self.ask(path).await?;
        let code = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let text = self.body(response, LONGEST_REFUSAL).await.unwrap_or_default();
        let status = serde_json::from_slice(&text).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&text).into_owned(),
            ..Status::default()
        });
        Err(self.failure(Cause::of_status(code, status, after)))
    }

    async fn body(&self, response: Response<Body>, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut body, Some(self.patience)).await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > limit {
                let cause = Cause::Nonsense(format!("more than {limit} bytes at once"));
                return Err(self.failure(cause));
            }
        }
        Ok(bytes)
    }

    async fn chunk(
        &self,
        body: &mut Body,
        patience: Option<Duration>,
    ) -> Result<Option<hyper::body::Bytes>, Failure> {
        loop {
            let frame = match patience {
                None => body.frame().await,
                Some(patience) => match timeout(patience, body.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => return Err(self.failure(Cause::Silent(patience))),
                },
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(self.failure(Cause::of_error(&error, self.patience)));
                }
                // Trailers are not data.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Fails while the server starts and does not know its custom resources or
    /// roles yet: what it says that it has not, or forbids, it may well have or
    /// allow. Everybody may ask, by Kubernetes' own roles. Where that was changed,
    /// it can't be told after the first seconds.
    pub(super) async fn settled(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        while !self.readyz_forbidden.load(Relaxed) {
            let response = self.ask("/readyz").await?;
            let status = response.status();
            if status == StatusCode::FORBIDDEN {
                self.readyz_forbidden.store(begun.elapsed() >= ROLES, Relaxed);
                sleep(ROLES_AGAIN).await;
                continue;
            }
            if !status.is_server_error() {
                break;
            }
            let text = self.body(response, LONGEST_REFUSAL).await?;
            let starting = is_starting(&String::from_utf8_lossy(&text));
            return if starting { Err(self.failure(Cause::Starting)) } else { Ok(()) };
        }
        Ok(())
    }

    /// The whole answer to a request.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let response = self.send(path).await?;
        self.body(response, LARGEST_PAGE).await
    }

    /// An answer that goes on, line by line.
    pub(super) async fn watch(&self, path: &str) -> Result<Lines, Failure> {
        let response = self.send(path).await?;
        Ok(Lines { api: self.clone(), body: response.into_body(), buffer: Vec::new() })
    }
}

/// A client for the server that a configuration names.
pub(super) async fn client(config: Config, patience: Duration) -> Result<Client, Failure> {
    let server = named(&config);
    // Making a client may run a program, which may take its time.
    let made = tokio::task::spawn_blocking(move || Client::try_from(config));
    let cause = match timeout(3 * patience, made).await {
        Ok(Ok(Ok(client))) => return Ok(client),
        Ok(Ok(Err(error))) => unmade(&error, patience),
        Ok(Err(error)) => Cause::Other(error.to_string()),
        Err(_) => Cause::Other("the program that gets its credentials has not ended".to_owned()),
    };
    Err(Failure { server, cause })
}

/// The server, and what else is between. A proxy's URL may have a password.
fn named(config: &Config) -> String {
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let Some(proxy) = &config.proxy_url else { return server };
    let (scheme, host) = (proxy.scheme_str().unwrap_or("http"), proxy.host().unwrap_or_default());
    let port = proxy.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{server} (through the proxy {scheme}://{host}{port})")
}

/// Why there is no client.
fn unmade(error: &kube::Error, patience: Duration) -> Cause {
    match error {
        kube::Error::RustlsTls(error) => Cause::Other(format!(
            "the client certificate, its key or the authority can't be used: {error}; correct \
             client-certificate-data, client-key-data or certificate-authority-data"
        )),
        error => Cause::of_error(error, patience),
    }
}

/// The lines of a watch.
pub(super) struct Lines {
    api: Api,
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next whole lines, as many as have come; `None` when the server has
    /// ended the watch. Loses nothing when it is dropped half-way.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            if self.buffer.len() > LONGEST_LINE {
                let cause = Cause::Nonsense(format!("a line of more than {LONGEST_LINE} bytes"));
                return Err(self.api.failure(cause));
            }
            match self.api.chunk(&mut self.body, None).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                // What is left is half a line.
                None => return Ok(None),
            }
        }
    }
}

/// Whether the text of `/readyz` says so. What else may be amiss has no bearing on
/// what is served.
fn is_starting(text: &str) -> bool {
    let mut open = text.lines().filter_map(|line| line.strip_prefix("[-]"));
    open.any(|check| STARTING.iter().any(|start| check.starts_with(start)))
}

#[cfg(test)]
mod tests;
