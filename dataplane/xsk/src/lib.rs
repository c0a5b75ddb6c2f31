//! AF_XDP for Tieline: the only crate with `unsafe`.
//!
//! ```text
//! area      a worker's frames: one mapping, and who owns which chunk of it
//! ring      the index protocol of the kernel's rings
//! socket    an AF_XDP socket: registration, binding, the four rings in use
//! bpf       maps, programs, links through bpf(2), and an assembler
//! filter    the XDP programs and their maps
//! packet    the packet socket, where AF_XDP can't be had
//! device    what ethtool knows of devices
//! memlock   the limit on locked memory
//! hint      prefetch and the cycle counter
//! ```
//!
//! Promises: a safe interface. Bytes of a chunk are given out only while the
//! worker holds the chunk, never while the kernel may write it. Must not know:
//! what is in a frame. Start reading at [`socket`].

pub mod area;
pub mod bpf;
pub mod device;
pub mod filter;
pub mod hint;
pub mod memlock;
mod os;
pub mod packet;
pub mod ring;
pub mod socket;
