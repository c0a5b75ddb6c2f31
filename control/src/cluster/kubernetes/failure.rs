//! What goes wrong between us and an API server, in plain words with the
//! remedy.

use std::error::Error;
use std::io;
use std::time::Duration;

use kube::client::AuthError;
use rustls::{AlertDescription, CertificateError};

use super::wire::Status;

/// Why a request has failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{server} {cause}")]
pub struct Failure {
    /// The API server's URL.
    pub server: String,
    /// What is wrong, and the remedy.
    pub cause: Cause,
}

/// See [`Failure`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The host's name does not resolve.
    #[error("is not found ({0}); correct the host in `server`, or this node's DNS")]
    NoSuchHost(String),
    /// Nobody listens.
    #[error("refuses connections; check that the API server runs, and the port in `server`")]
    Refused,
    /// There is no way.
    #[error("can't be reached ({0}); check routes and firewalls from this node to it")]
    Unreachable(String),
    /// Nothing came for so long.
    #[error(
        "has not answered for {} s; check that the API server is not stuck, that this node's DNS \
         answers if it has a name, and that no firewall swallows packets", .0.as_secs()
    )]
    Silent(Duration),
    /// The connection has ended in the middle of something.
    #[error("has broken off the connection ({0}); check that the API server runs")]
    BrokenOff(String),
    /// The proxy before it does not let us through.
    #[error("is not reached: the proxy {0}")]
    Proxy(String),
    /// Its certificate is of an authority that is not trusted.
    #[error(
        "has a certificate of an authority that is not trusted; put the authority's certificate \
         into `certificate-authority-data`"
    )]
    Untrusted,
    /// Its certificate is for other names.
    #[error(
        "has a certificate for another name ({0}); correct the host in `server`, or set \
         `tls-server-name`"
    )]
    WrongName(String),
    /// Its certificate is out of date.
    #[error("has a certificate that is out of date ({0}); renew it, or correct this node's clock")]
    OutOfDate(String),
    /// It does not take our certificate.
    #[error("refuses the client certificate ({0}); issue a new one")]
    ClientCertificate(String),
    /// Another error of TLS.
    #[error("does not agree on TLS ({0}); check that `server` is an API server's URL")]
    Tls(String),
    /// 401.
    #[error(
        "refuses the credentials (401 Unauthorized: {0}); the token or certificate is expired, \
         revoked or another cluster's: issue a new one"
    )]
    Unauthorized(String),
    /// 403.
    #[error("forbids it (403 Forbidden: {0})")]
    Forbidden(String),
    /// 404.
    #[error("has no such resource (404 Not Found)")]
    NotFound,
    /// 410: what was seen is too long ago to go on from there.
    #[error("has forgotten what was before (410 Gone)")]
    Gone,
    /// 429.
    #[error("asks for fewer requests (429 Too Many Requests: {message}); it is asked again later")]
    TooMany {
        /// The server's words.
        message: String,
        /// `Retry-After`.
        after: Option<Duration>,
    },
    /// It answers, but not yet for all that it has.
    #[error("is starting; it is asked again soon")]
    Starting,
    /// Any other status.
    #[error("answers with an error ({code}: {message}); see the API server's log")]
    Status {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        message: String,
        /// `Retry-After`.
        after: Option<Duration>,
    },
    /// It is no API server, or sends what is none of its API.
    #[error("sends what is not understood ({0}); check that `server` is an API server's URL")]
    Nonsense(String),
    /// The client could not ask.
    #[error("can't be asked ({0})")]
    Other(String),
}

impl Cause {
    /// Whether it says something about one resource only, so that others may
    /// still be read.
    pub fn is_of_one_resource(&self) -> bool {
        matches!(
            self,
            Self::Forbidden(_)
                | Self::NotFound
                | Self::Gone
                | Self::TooMany { .. }
                | Self::Status { .. }
                | Self::Nonsense(_)
        )
    }

    /// How long the server asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { after, .. } | Self::Status { after, .. } => *after,
            _ => None,
        }
    }

    /// From an answer's status and what is said with it.
    pub(super) fn of_status(code: u16, status: Status, after: Option<Duration>) -> Self {
        let message = match status.message.trim() {
            "" => "no reason given".to_owned(),
            // Whole pages come from proxies.
            text => text.chars().take(300).collect(),
        };
        match code {
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden(message),
            404 => Self::NotFound,
            410 => Self::Gone,
            429 => Self::TooMany { message, after },
            code => Self::Status { code, message, after },
        }
    }

    /// From an error of the client, which waits no longer than `patience`.
    pub(super) fn of_error(error: &kube::Error, patience: Duration) -> Self {
        let mut found = None;
        visit(error, &mut |error| {
            let cause = if let Some(error) = error.downcast_ref::<AuthError>() {
                Some(Self::Other(format!("its credentials can't be had: {}", unhad(error))))
            } else if let Some(words) = of_proxy(error) {
                Some(Self::Proxy(words))
            } else if let Some(error) = error.downcast_ref::<rustls::Error>() {
                Some(Self::of_tls(error))
            } else if let Some(error) = error.downcast_ref::<io::Error>() {
                Self::of_io(error)
            } else if error.is::<tokio::time::error::Elapsed>() {
                Some(Self::Silent(patience))
            } else if error.to_string() == "dns error" {
                let words = error.source().map(ToString::to_string);
                Some(Self::NoSuchHost(words.unwrap_or_default()))
            } else {
                None
            };
            found = found.take().or(cause);
        });
        found.unwrap_or_else(|| Self::Other(chain(error)))
    }

    fn of_io(error: &io::Error) -> Option<Self> {
        use io::ErrorKind as E;
        // One that only wraps another says less than that.
        if error.get_ref().is_some() {
            return None;
        }
        match error.kind() {
            E::ConnectionRefused => Some(Self::Refused),
            E::HostUnreachable | E::NetworkUnreachable | E::NetworkDown | E::AddrNotAvailable => {
                Some(Self::Unreachable(error.to_string()))
            }
            E::TimedOut => Some(Self::Unreachable(error.to_string())),
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe | E::UnexpectedEof => {
                Some(Self::BrokenOff(error.to_string()))
            }
            _ => None,
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(invalid) => match invalid {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Untrusted,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongName(invalid.to_string())
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    Self::OutOfDate(invalid.to_string())
                }
                _ => Self::Tls(error.to_string()),
            },
            E::AlertReceived(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate),
            ) => Self::ClientCertificate(format!("{alert:?}")),
            _ => Self::Tls(error.to_string()),
        }
    }
}

/// Why there are no credentials: what a program has printed is not repeated,
/// nor its arguments and environment.
fn unhad(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { out, .. } => {
            let said = String::from_utf8_lossy(&out.stderr);
            format!("a program of the kubeconfig has failed ({}) and says: {}", out.status, said)
        }
        AuthError::AuthExecParse(_) | AuthError::ParseTokenKey(_) => {
            "a program of the kubeconfig prints no credentials".to_owned()
        }
        error => error.to_string(),
    }
}

/// What is wrong with a proxy, if an error comes from there. The types of
/// these errors can't be named, so they are known by what they say.
fn of_proxy(error: &(dyn Error + 'static)) -> Option<String> {
    const CHECK: &str = "check that it runs, and `proxy-url`";
    let said = error.to_string();
    if let Some(words) = said.strip_prefix("SOCKS error: ") {
        return Some(match words {
            "failed to create underlying connection" => format!("can't be reached; {CHECK}"),
            words => format!("refuses ({words}); see its log, and check `proxy-url`"),
        });
    }
    Some(match said.strip_prefix("tunnel error: ")? {
        "proxy authorization required" => "asks for credentials (407 Proxy Authentication \
                                           Required); put them into `proxy-url`, as in \
                                           http://USER:PASSWORD@HOST:PORT"
            .to_owned(),
        "unsuccessful" => "does not connect to the API server; see its log, and check that it \
                           allows CONNECT to `server` and reaches it"
            .to_owned(),
        words => {
            let mut cause = None;
            visit(error, &mut |inner| {
                let io = inner.downcast_ref::<io::Error>().and_then(Cause::of_io);
                let found = match io {
                    Some(Cause::Refused) => Some("refuses connections".to_owned()),
                    Some(Cause::Unreachable(words)) => Some(format!("can't be reached ({words})")),
                    Some(Cause::BrokenOff(words)) => {
                        Some(format!("has broken off the connection ({words})"))
                    }
                    _ if inner.to_string() == "dns error" => Some("is not found".to_owned()),
                    _ => None,
                };
                cause = cause.take().or(found);
            });
            let cause = cause.unwrap_or_else(|| match error.source() {
                None => format!("does not connect ({words})"),
                Some(inner) => format!("can't be reached ({})", chain(inner)),
            });
            format!("{cause}; {CHECK}")
        }
    })
}

/// Shows an error and its causes, those too that are only wrapped.
fn visit(error: &(dyn Error + 'static), see: &mut impl FnMut(&(dyn Error + 'static))) {
    see(error);
    if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        visit(wrapped, see);
    } else if let Some(cause) = error.source() {
        visit(cause, see);
    }
}

/// An error's words and those of its causes.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    visit(error, &mut |error| {
        let said = error.to_string();
        if !words.iter().any(|words| words.contains(&said)) {
            words.push(said);
        }
    });
    words.join(": ")
}

#[cfg(test)]
mod tests;
