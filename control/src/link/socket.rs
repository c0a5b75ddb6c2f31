//! Requests to the kernel's routing socket, and its events.
//!
//! Promises: a request ends, whatever the kernel does, and a short lack of
//! memory or a table that changes while it is read is tried again. Knows
//! nothing of what is asked.

use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{
    Handle, MulticastGroup, new_connection_with_strict_check, new_multicast_connection,
};
use rustix::io::Errno;

use super::LinkError;

/// How long the kernel may take to answer; it normally takes microseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Tries of a request that met a passing condition.
const TRIES: u32 = 5;

/// What the node's kernel tells of.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// An event as it came from the kernel.
pub(super) type Event = NetlinkMessage<RouteNetlinkMessage>;

/// The kernel's events, without end while the connection lives.
pub(super) type Events = UnboundedReceiver<(Event, SocketAddr)>;

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The kernel's own answer.
    Errno(Errno),
    /// The connection has ended.
    Closed,
    /// No answer in time.
    Timeout,
    /// The table changed while it was read.
    Interrupted,
}

impl Refusal {
    /// Whether the kernel answered with this error.
    pub(super) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Errno(given) if *given == errno)
    }

    /// The error for the user: what could not be done, and the remedy.
    pub(super) fn of(self, action: impl Into<String>) -> LinkError {
        let action = action.into();
        match self {
            Self::Errno(errno) => {
                LinkError::Refused { action, reason: errno.into(), remedy: remedy(errno) }
            }
            Self::Closed => LinkError::Closed,
            Self::Timeout => LinkError::Unanswered { action, seconds: ANSWER_TIMEOUT.as_secs() },
            Self::Interrupted => LinkError::Interrupted { action },
        }
    }
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; run as root or with CAP_NET_ADMIN",
        Errno::OPNOTSUPP => "; the kernel lacks support for this, load its module",
        Errno::NOBUFS | Errno::NOMEM => "; the node is short of memory",
        _ => "",
    }
}

/// A connection for requests.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    handle: Handle,
    port: u32,
}

impl Requests {
    /// Connects to the kernel of the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let (mut connection, handle, _) = new_connection_with_strict_check()?;
        let address = connection.socket_mut().socket_mut().bind_auto()?;
        tokio::spawn(connection);
        Ok(Self { handle, port: address.port_number() })
    }

    /// Our port: events that our own requests brought about carry it.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// Reads a whole table.
    pub(super) async fn dump(
        &self,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.ask(request, NLM_F_DUMP).await
    }

    /// Reads one object.
    pub(super) async fn get(
        &self,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        Ok(self.ask(request, 0).await?.pop())
    }

    /// Creates an object that must not be there yet.
    pub(super) async fn create(&self, request: RouteNetlinkMessage) -> Result<(), Refusal> {
        self.ask(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).await.map(drop)
    }

    /// Creates an object or replaces what is there.
    pub(super) async fn replace(&self, request: RouteNetlinkMessage) -> Result<(), Refusal> {
        self.ask(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
    }

    /// Changes or deletes an object.
    pub(super) async fn change(&self, request: RouteNetlinkMessage) -> Result<(), Refusal> {
        self.ask(request, NLM_F_ACK).await.map(drop)
    }

    async fn ask(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut pause = Duration::from_millis(5);
        for _ in 1..TRIES {
            match self.ask_once(request.clone(), flags).await {
                Err(Refusal::Interrupted | Refusal::Errno(Errno::NOBUFS | Errno::INTR)) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
        self.ask_once(request, flags).await
    }

    async fn ask_once(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self.handle.clone().request(message).map_err(|_| Refusal::Closed)?;
        let read = async {
            let mut objects = Vec::new();
            while let Some(answer) = answers.next().await {
                if answer.header.flags & NLM_F_DUMP_INTR != 0 {
                    return Err(Refusal::Interrupted);
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) => {
                        let errno = Errno::from_raw_os_error(error.raw_code().saturating_abs());
                        return Err(Refusal::Errno(errno));
                    }
                    NetlinkPayload::Overrun(_) => return Err(Refusal::Interrupted),
                    _ => {}
                }
            }
            Ok(objects)
        };
        tokio::time::timeout(ANSWER_TIMEOUT, read).await.unwrap_or(Err(Refusal::Timeout))
    }
}

/// Subscribes to what the kernel tells of.
pub(super) fn subscribe() -> io::Result<Events> {
    let (connection, _, events) = new_multicast_connection(&GROUPS)?;
    tokio::spawn(connection);
    Ok(events)
}
