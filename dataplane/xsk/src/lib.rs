//! AF_XDP for Tieline: the only crate with `unsafe`.
//!
//! It gives workers frames and takes frames from them, and loads the XDP
//! programs that decide which frames those are. It knows Ethernet, IP and UDP
//! as far as the XDP program must, and nothing of VXLAN headers, routes or
//! policy. Nothing of it is asynchronous, and nothing logs.
//!
//! Where to start reading: [`area`] says who owns a frame's memory, which is
//! what keeps everything else sound; [`socket`] moves frames between an area
//! and a device queue; [`filter`] is the XDP program. [`packet`] is the port
//! for where AF_XDP can't be had.

pub mod area;
pub mod bpf;
pub mod device;
pub mod filter;
pub mod generator;
pub mod hint;
pub mod memlock;
pub mod packet;
pub mod pages;
pub mod ring;
pub mod slab;
pub mod socket;
pub mod traffic;

mod mapping;
mod sys;
