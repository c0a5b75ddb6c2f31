//! Network namespaces, links, processes and traffic peers for the demo, the
//! tests and the perf harness.
//!
//! ```text
//! lab       Lab: owns what was made, removes it whatever happens
//! netns     Netns: run a closure or a process inside a namespace
//! process   Process: a child that never outlives its handle
//! link      veth pairs, the kernel's vxlan device
//! topology  router, nodes and pods wired as Calico wires them
//! tcp, stream, udp, icmp   traffic peers
//! pktgen    the kernel's packet generator
//! capture   frames seen on a device
//! ```
//!
//! Promises: whatever a [`Lab`] made is gone when it is dropped, after a panic
//! and after [`Closer::close`]; what a killed owner left behind is removed by
//! the next [`Lab::new`]; two labs never share a name; no device, route or
//! setting of the caller's own namespace is touched, but for devices that are
//! named to [`Underlay::segment_of`]. Every call of a traffic peer is bounded in time and checks the payload. It knows nothing of
//! Tieline: only of Linux. Start reading at [`Lab`].
#![forbid(unsafe_code)]

mod capture;
mod error;
mod icmp;
mod lab;
mod link;
mod netns;
mod outcome;
mod payload;
mod pktgen;
mod process;
mod stream;
mod tcp;
mod topology;
mod udp;

pub use capture::{Capture, CapturedFrame};
pub use error::{Error, Result};
pub use icmp::{ping, ping_flood};
pub use lab::{Closer, Lab, remove_kept};
pub use link::{End, KernelVxlan, VxlanPeer, veth};
pub use netns::Netns;
pub use outcome::Outcome;
pub use pktgen::{Generated, Pktgen, pktgen_missing};
pub use process::{Process, Signal};
pub use stream::{Stall, Stream};
pub use tcp::{Bulk, RoundTrips, TcpServer, bulk, connect, request_response};
pub use topology::{
    Attachment, Cluster, ClusterSpec, Node, NodeSpec, Pod, PodSpec, Segment, Underlay,
};
pub use udp::{Blast, UdpServer, udp_blast, udp_echo};
