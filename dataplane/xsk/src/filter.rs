//! The XDP programs that decide which frames come to the workers, and the maps
//! that steer them.
//!
//! On the underlay, only VXLAN from a known peer to one of our addresses is
//! taken, and only while the queue's worker is alive. Everything else goes on
//! to the kernel as if nothing were there: ssh, kubelet, BGP, and the kernel's
//! own VXLAN device. A dead or stuck worker never takes the node off the
//! network.
//!
//! ```text
//! underlay(frame, queue):
//!     Ethernet type:
//!         IPv4: version 4, header length >= 20, protocol UDP, not a fragment
//!               source, destination = ::ffff:source, ::ffff:destination
//!               udp = behind the options
//!         IPv6: version 6, next header UDP
//!               udp = behind the fixed header
//!         other, VLAN tags included: pass
//!     udp.destination port == settings.port   else pass
//!     destination in underlay                 else pass
//!     source in peers                         else pass
//!     continue as gateway
//!
//! gateway(frame, queue):
//!     queue < queues                                          else pass
//!     now - heartbeats[queue] <= settings.liveness, signed    else pass
//!     redirect to sockets[queue], or pass when there is none
//! ```
//!
//! A header that is cut short is passed as well. The VNI is not looked at: a
//! known peer's frames are the workers' to judge. Frames of more than one
//! buffer are not supported: a driver whose MTU needs them refuses to attach.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::time::Duration;

pub use crate::bpf::{Action, ForeignProgram, Link, LinkError as AttachError, TestRun};
use crate::bpf::{
    AssembleError, Instruction, LoadError, Map, MapKind, MapMemory, MapNumber, Program,
};
use crate::socket::Socket;

mod program;

use program::Maps;

/// Peers that a filter can know.
pub const MAX_PEERS: u32 = 65_536;
/// Own addresses that a filter can know.
pub const MAX_UNDERLAY: u32 = 1024;
/// Queues that a filter can serve.
pub const MAX_QUEUES: u32 = 1024;

/// What a filter is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    /// VXLAN's UDP port.
    pub port: u16,
    /// How long a worker may be silent before its frames go to the kernel.
    pub liveness: Duration,
    /// Number of queues.
    pub queues: u32,
}

/// Why a filter can't be built or changed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The programs serve at most [`MAX_QUEUES`].
    #[error("{queues} queues are not possible: use 1 to {MAX_QUEUES}")]
    Queues {
        /// What was asked for.
        queues: u32,
    },
    /// A map can't be had.
    #[error(
        "map {map}: {source}; maps need CAP_BPF and CAP_NET_ADMIN, and before Linux 5.11 room under \
         the memlock limit"
    )]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The program can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program can't be put together: an error in this crate.
    #[error("the program can't be put together: {0}")]
    Assemble(#[from] AssembleError),
    /// A set has more addresses than the map holds.
    #[error("{addresses} addresses are too many for map {map}, which holds {most}")]
    Full {
        /// The map's name.
        map: &'static str,
        /// What was asked for.
        addresses: usize,
        /// What it holds.
        most: u32,
    },
    /// There is no such queue.
    #[error("queue {queue} is not one of the filter's {queues}")]
    NoQueue {
        /// What was asked for.
        queue: u32,
        /// The filter's number of queues.
        queues: u32,
    },
    /// A test run failed.
    #[error("test run of the program: {0}")]
    TestRun(io::Error),
}

/// A loaded XDP program and its maps. It is in force where it is attached, as
/// long as the [`Link`] lives, even if the filter is dropped before.
#[derive(Debug)]
pub struct Filter {
    program: Program,
    settings: Map,
    sockets: Map,
    heartbeats: MapMemory,
    underlay: AddressSet,
    peers: AddressSet,
    config: FilterConfig,
}

impl Filter {
    /// A filter that takes VXLAN from known peers to known own addresses; it
    /// knows none of either yet.
    ///
    /// # Errors
    /// When a privilege is missing, or the kernel refuses a map or the program.
    pub fn underlay(config: &FilterConfig) -> Result<Self, FilterError> {
        Self::new("tieline_under", config, program::underlay)
    }

    /// A filter that takes everything, for the gateway device.
    ///
    /// # Errors
    /// As [`underlay`](Self::underlay).
    pub fn gateway(config: &FilterConfig) -> Result<Self, FilterError> {
        Self::new("tieline_gateway", config, program::gateway)
    }

    fn new(
        name: &str,
        config: &FilterConfig,
        code: impl FnOnce(&Maps<'_>) -> Result<Vec<Instruction>, AssembleError>,
    ) -> Result<Self, FilterError> {
        let queues = config.queues;
        if queues == 0 || queues > MAX_QUEUES {
            return Err(FilterError::Queues { queues });
        }
        let settings = new_map(MapKind::Array, "settings", 4, program::SETTINGS_SIZE as u32, 1)?;
        let sockets = new_map(MapKind::Sockets, "sockets", 4, 4, queues)?;
        // One value with a line for each queue: the program reaches it without
        // a lookup.
        let size = queues * program::HEARTBEAT_STRIDE;
        let heartbeats = new_map(MapKind::MappableArray, "heartbeats", 4, size, 1)?;
        let underlay = AddressSet::new("underlay", MAX_UNDERLAY)?;
        let peers = AddressSet::new("peers", MAX_PEERS)?;
        let code = code(&Maps {
            settings: &settings,
            heartbeats: &heartbeats,
            sockets: &sockets,
            underlay: &underlay.map,
            peers: &peers.map,
            queues,
        })?;
        let program = Program::load(name, &code)?;
        let heartbeats =
            heartbeats.memory().map_err(|source| FilterError::Map { map: "heartbeats", source })?;
        let filter =
            Self { program, settings, sockets, heartbeats, underlay, peers, config: *config };
        filter.write_settings()?;
        Ok(filter)
    }

    /// Changes VXLAN's UDP port; the next frame is judged by it.
    ///
    /// # Errors
    /// The kernel's, for the map.
    pub fn set_port(&mut self, port: u16) -> Result<(), FilterError> {
        self.config.port = port;
        self.write_settings()
    }

    fn write_settings(&self) -> Result<(), FilterError> {
        let mut value = [0; program::SETTINGS_SIZE];
        let liveness = u64::try_from(self.config.liveness.as_nanos()).unwrap_or(u64::MAX);
        // The program compares with sign.
        let liveness = liveness.min(i64::MAX as u64);
        let (port_at, liveness_at) =
            (program::SETTING_PORT as usize, program::SETTING_LIVENESS as usize);
        value[port_at..port_at + 2].copy_from_slice(&self.config.port.to_be_bytes());
        value[liveness_at..liveness_at + 8].copy_from_slice(&liveness.to_ne_bytes());
        self.settings
            .update(&0u32.to_ne_bytes(), &value)
            .map_err(|source| FilterError::Map { map: "settings", source })
    }

    /// Takes frames from exactly these peers from now on. Only what differs is
    /// changed, so frames of a peer that stays are never passed by.
    ///
    /// # Errors
    /// When there are more than [`MAX_PEERS`], or the kernel refuses; what was
    /// changed by then stays.
    pub fn set_peers(&mut self, peers: &BTreeSet<IpAddr>) -> Result<(), FilterError> {
        self.peers.become_set(peers)
    }

    /// Takes frames to exactly these own addresses from now on, under the same
    /// rule.
    ///
    /// # Errors
    /// As [`set_peers`](Self::set_peers), with [`MAX_UNDERLAY`].
    pub fn set_underlay(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), FilterError> {
        self.underlay.become_set(addresses)
    }

    /// Sends a queue's frames to a socket, which must be bound to that queue.
    /// When the socket is closed the kernel removes it by itself.
    ///
    /// # Errors
    /// When the filter has no such queue, or the kernel refuses.
    pub fn set_socket(&mut self, queue: u32, socket: &Socket) -> Result<(), FilterError> {
        self.check_queue(queue)?;
        let value = (socket.as_raw_fd() as u32).to_ne_bytes();
        self.sockets
            .update(&queue.to_ne_bytes(), &value)
            .map_err(|source| FilterError::Map { map: "sockets", source })
    }

    /// Passes a queue's frames on to the kernel from now on.
    ///
    /// # Errors
    /// As [`set_socket`](Self::set_socket).
    pub fn clear_socket(&mut self, queue: u32) -> Result<(), FilterError> {
        self.check_queue(queue)?;
        match self.sockets.delete(&queue.to_ne_bytes()) {
            Ok(_) => Ok(()),
            Err(source) if source.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Err(source) => Err(FilterError::Map { map: "sockets", source }),
        }
    }

    fn check_queue(&self, queue: u32) -> Result<(), FilterError> {
        let queues = self.config.queues;
        if queue < queues { Ok(()) } else { Err(FilterError::NoQueue { queue, queues }) }
    }

    /// Where the worker of a queue shows that it is alive. Until its first
    /// beat, and when it stops, the queue's frames are passed on. Nobody looks
    /// at the heartbeat of a queue that the filter does not have.
    pub fn heartbeat(&self, queue: u32) -> Heartbeat {
        let offset = u64::from(queue) * u64::from(program::HEARTBEAT_STRIDE);
        let number =
            (queue < self.config.queues).then(|| self.heartbeats.number(offset as usize)).flatten();
        Heartbeat { number }
    }

    /// Attaches the program to a device of the calling thread's network
    /// namespace, in the driver or in the network stack.
    ///
    /// # Errors
    /// When another program is there, which is never replaced; when the driver
    /// can't do it; or when the privilege or the device is missing.
    pub fn attach(&self, ifindex: u32, native: bool) -> Result<Link, AttachError> {
        Link::attach(&self.program, ifindex, native)
    }

    /// Runs the program over a frame and tells what it decides.
    ///
    /// # Errors
    /// The kernel's: for a frame shorter than an Ethernet header, or a device
    /// or queue that is not there.
    pub fn test_run(&self, frame: &[u8], run: TestRun) -> Result<Action, FilterError> {
        self.program.test_run(frame, run).map_err(FilterError::TestRun)
    }
}

fn new_map(
    kind: MapKind,
    name: &'static str,
    key: u32,
    value: u32,
    entries: u32,
) -> Result<Map, FilterError> {
    Map::new(kind, name, key, value, entries)
        .map_err(|source| FilterError::Map { map: name, source })
}

/// A worker's sign of life for one queue. It keeps the memory that the program
/// reads it from.
#[derive(Debug)]
pub struct Heartbeat {
    number: Option<MapNumber>,
}

impl Heartbeat {
    /// The worker is alive at this time of `CLOCK_MONOTONIC`, in nanoseconds.
    #[inline]
    pub fn beat(&mut self, monotonic_ns: u64) {
        if let Some(number) = &self.number {
            number.store(monotonic_ns);
        }
    }
}

/// A hash map with addresses as keys, and what is in it.
#[derive(Debug)]
struct AddressSet {
    map: Map,
    name: &'static str,
    present: BTreeSet<IpAddr>,
}

impl AddressSet {
    fn new(name: &'static str, most: u32) -> Result<Self, FilterError> {
        let map = new_map(MapKind::Hash, name, 16, 1, most)?;
        Ok(Self { map, name, present: BTreeSet::new() })
    }

    fn become_set(&mut self, wanted: &BTreeSet<IpAddr>) -> Result<(), FilterError> {
        let most = self.map.max_entries();
        if wanted.len() > most as usize {
            return Err(FilterError::Full { map: self.name, addresses: wanted.len(), most });
        }
        let failed = |map| move |source| FilterError::Map { map, source };
        // Removal first: it makes the room that the others may need.
        let superfluous: Vec<_> = self.present.difference(wanted).copied().collect();
        for address in superfluous {
            self.map.delete(&key(address)).map_err(failed(self.name))?;
            self.present.remove(&address);
        }
        let missing: Vec<_> = wanted.difference(&self.present).copied().collect();
        for address in missing {
            self.map.update(&key(address), &[1]).map_err(failed(self.name))?;
            self.present.insert(address);
        }
        Ok(())
    }
}

/// An address as the maps have it: an IPv4 address as `::ffff:a.b.c.d`.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => Ipv6Addr::octets(&v6),
    }
}
