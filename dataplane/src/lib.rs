//! Tieline's packet path.
//!
//! Promises: the stages in [`encap`] and [`decap`] work on batches, never
//! allocate, lock, log or read a clock per packet, never panic on any bytes,
//! and give every frame a [`Verdict`](verdict::Verdict). Must not know:
//! Kubernetes, configuration files, async runtimes.
//!
//! Start reading at [`worker`], which runs the stages over two
//! [`Port`](port::Port)s; then [`encap`] and [`decap`]; then [`tables`].

#![forbid(unsafe_code)]

pub mod addr;
pub mod capture;
pub mod counters;
pub mod decap;
pub mod encap;
pub mod enforce;
pub mod flow;
pub mod frame;
pub mod hint;
pub mod outer;
pub mod pin;
pub mod port;
pub mod publish;
pub mod stage;
mod sync;
pub mod tables;
pub mod verdict;
pub mod wire;
pub mod worker;

#[cfg(feature = "xsk")]
pub use tieline_xsk as xsk;
