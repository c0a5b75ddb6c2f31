//! Network namespaces, links, processes and traffic peers for the demo, the
//! tests and the perf harness.
//!
//! ```text
//! lab       Lab: owns what was made, removes it whatever happens
//! netns     Netns: run a closure or a process inside a namespace
//! process   Process: a child that never outlives its handle
//! link      veth pairs, bridges, routes, the kernel's vxlan device

//! ```
//!
//! Promises: whatever a [`Lab`] made is gone when it is dropped, after a panic
//! and after [`Closer::close`]; what a killed owner left behind is removed by
//! the next [`Lab::new`]; two labs never share a name; no device, route or
//! setting of the caller's own namespace is touched. It knows nothing of
//! Tieline: only of Linux. Start reading at [`Lab`].
#![forbid(unsafe_code)]

mod error;
mod lab;
mod link;
mod netns;
mod process;
mod tcp;

pub use error::{Error, Result};
pub use lab::{Closer, Lab, remove_kept};
pub use link::{End, KernelVxlan, VxlanPeer, veth};
pub use netns::Netns;
pub use process::{Process, Signal};
pub use tcp::{
    Bulk, Outcome, RoundTrips, Stall, Stream, TcpServer, bulk, connect, request_response,
};
