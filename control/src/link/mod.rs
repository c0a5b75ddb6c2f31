//! The kernel's side: devices, routes, neighbors.
//!
//! [`Netlink`] makes the kernel of one network namespace be what the daemon
//! needs and tells when it no longer is:
//!
//! ```text
//! ensure_gateway   the veth pair between kernel and workers     gateway
//! sync_routes      remote pod ranges point at the gateway       routes, overlap
//! underlay         the devices that VXLAN leaves by             underlay
//! receivers        the kernel's own vxlan devices beside us     vxlan
//! adjacencies      next-hop MAC of every VTEP, kept fresh       adjacency
//! changed          waits until one of these is due again        events
//! remove           the node as it was found
//! ```
//!
//! Promises: everything may be called again at any time and then changes only
//! what differs, so a start after a crash adopts what is there; nothing that
//! is not ours is changed or removed. Ours are: the gateway pair by its two
//! names, and on it the routes with our protocol number. What to do is
//! decided by pure functions of the kernel's objects (`kernel`) and of what is
//! wanted; `socket` carries it out. Knows nothing of clusters or tables.
//!
//! Start reading at [`Netlink::ensure_gateway`].

mod adjacency;
mod events;
mod gateway;
mod kernel;
mod overlap;
mod routes;
mod socket;
mod sysctl;
mod underlay;
mod vxlan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use rustix::io::Errno;
use tieline_dataplane::wire::MacAddr;

pub use events::Changed;
pub use gateway::{Gateway, GatewaySpec};
pub(crate) use overlap::is_calico;
pub use routes::{ROUTE_PROTOCOL, RouteChanges, RouteSettings};
pub use underlay::{Underlay, UnderlayDevice};
pub use vxlan::Receiver;

use kernel::{Address, Link, Neighbor};

/// How the kernel reaches an underlay address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adjacency {
    /// The next hop's MAC is known.
    Resolved {
        /// Our address towards it.
        source: IpAddr,
        /// Our device's MAC.
        source_mac: MacAddr,
        /// MAC of the next hop (the destination itself, or a gateway).
        next_hop_mac: MacAddr,
        /// Index of the device.
        device: u32,
    },
    /// It is not.
    Unresolved {
        /// Why, for `status`.
        reason: String,
    },
}

/// What can go wrong with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// The socket failed; a new [`Netlink`] must be opened.
    #[error("the netlink connection has ended")]
    Closed,
    /// The kernel refused.
    #[error("cannot {action}: {reason}{remedy}")]
    Refused {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        reason: std::io::Error,
        /// What may help, with its own punctuation; may be empty.
        remedy: &'static str,
    },
    /// The kernel is silent.
    #[error("cannot {action}: no answer from the kernel within {seconds} s")]
    Unanswered {
        /// What was tried.
        action: String,
        /// How long we waited.
        seconds: u64,
    },
    /// A table changes faster than it can be read.
    #[error("cannot {action}: the table changes faster than it can be read")]
    Interrupted {
        /// What was tried.
        action: String,
    },
    /// A device has a name that we need and is not ours.
    #[error(
        "device {device} is {found}, not one end of the gateway's veth pair {pair}; \
         remove it (ip link delete {device}) or give the gateway other names"
    )]
    ForeignDevice {
        /// The device.
        device: String,
        /// What it is.
        found: String,
        /// The names of the pair.
        pair: String,
    },
    /// The gateway does not stay as we set it.
    #[error(
        "gateway device {device} does not keep its settings; \
         exempt it from whatever else manages this node's devices"
    )]
    GatewayContested {
        /// The kernel's side of the pair.
        device: String,
    },
    /// The gateway was removed or set down meanwhile.
    #[error("gateway device {device} is gone or down; it must be set up again")]
    GatewayGone {
        /// The kernel's side of the pair.
        device: String,
    },
    /// A setting can't be written.
    #[error("cannot write {value} to {path}: {source}; run with a writable /proc/sys")]
    Sysctl {
        /// The file.
        path: std::path::PathBuf,
        /// The value.
        value: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A connection to the kernel of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    requests: socket::Requests,
    events: socket::Events,
    interest: events::Interest,
    pending: Changed,
    timers: events::Timers,
    resolver: adjacency::Resolver,
}

impl Netlink {
    /// Connects to the kernel of the calling thread's network namespace. Must
    /// be called within a tokio runtime, and later calls must come from a
    /// thread in the same namespace.
    pub fn open() -> Result<Self, LinkError> {
        let requests = socket::Requests::open().map_err(LinkError::Open)?;
        let events = socket::subscribe().map_err(LinkError::Open)?;
        Ok(Self {
            interest: events::Interest::new(requests.port()),
            requests,
            events,
            pending: Changed::default(),
            timers: events::Timers::default(),
            resolver: adjacency::Resolver::default(),
        })
    }

    async fn link_named(&self, name: &str) -> Result<Option<Link>, LinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(message, || format!("look up device {name}")).await
    }

    async fn link_at(&self, index: u32) -> Result<Option<Link>, LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.link(message, || format!("look up device {index}")).await
    }

    async fn link(
        &self,
        message: LinkMessage,
        action: impl FnOnce() -> String,
    ) -> Result<Option<Link>, LinkError> {
        match self.requests.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Link::read(&link)),
            Ok(_) => Ok(None),
            Err(refusal) if refusal.is(Errno::NODEV) => Ok(None),
            Err(refusal) => Err(refusal.of(action())),
        }
    }

    /// Name of a device for a message to the user.
    async fn device_name(&self, index: u32) -> Result<String, LinkError> {
        let link = self.link_at(index).await?;
        Ok(link.map_or_else(|| format!("of index {index}"), |link| link.name))
    }

    async fn addresses(&self) -> Result<Vec<Address>, LinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.requests.dump(request).await;
        let answers = answers.map_err(|refusal| refusal.of("list addresses"))?;
        let addresses = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Address::read(message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    async fn neighbors(&self) -> Result<BTreeMap<(u32, IpAddr), Neighbor>, LinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.requests.dump(request).await;
        let answers = answers.map_err(|refusal| refusal.of("list neighbors"))?;
        let neighbors = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Neighbor::read(message),
            _ => None,
        });
        Ok(neighbors.map(|neighbor| ((neighbor.device, neighbor.ip), neighbor)).collect())
    }
}

/// The addresses that the node holds.
fn held(addresses: &[Address]) -> BTreeSet<IpAddr> {
    addresses.iter().filter(|address| !address.duplicate).map(|address| address.ip).collect()
}
