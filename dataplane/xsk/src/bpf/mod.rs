//! BPF through bpf(2), as far as two small XDP programs need it
//! (linux/bpf.h): no ELF, no compiler, no library.
//!
//! [`asm`] puts a program together, [`map`] makes the maps that it names,
//! [`program`] loads, tests and attaches it.

use std::io;
use std::os::fd::OwnedFd;

pub mod asm;
pub mod map;
pub mod program;

pub use map::Map;
pub use program::{Action, AttachError, Link, Program};

/// Why the kernel does not take a map or program.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A map can't be made.
    #[error("the BPF map {name} can't be made: {source}{}", remedy(source))]
    Map {
        /// Its name.
        name: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// An element can't be set or removed.
    #[error("the BPF map {name} can't be changed: {source}{}", full(source, *.capacity))]
    Element {
        /// The map's name.
        name: &'static str,
        /// Elements that it has room for.
        capacity: u32,
        /// The system's error.
        source: io::Error,
    },
    /// The verifier refuses the program.
    #[error("the XDP program {name} can't be loaded: {source}{}\n{log}", remedy(source))]
    Load {
        /// Its name.
        name: &'static str,
        /// The system's error.
        source: io::Error,
        /// What the verifier says.
        log: String,
    },
    /// A test run failed.
    #[error("the XDP program can't be run: {0}")]
    Run(#[source] io::Error),
}

impl BpfError {
    /// Whether the kernel refused for want of privileges.
    pub fn is_permission(&self) -> bool {
        let (Self::Map { source, .. }
        | Self::Element { source, .. }
        | Self::Load { source, .. }
        | Self::Run(source)) = self;
        matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES))
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; XDP needs CAP_BPF and CAP_NET_ADMIN in the machine's own user namespace"
        }
        Some(libc::ENOSYS) => "; this kernel is built without BPF",
        _ => "",
    }
}

fn full(error: &io::Error, capacity: u32) -> String {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => format!("; it has room for {capacity} elements"),
        _ => String::new(),
    }
}

/// Commands of bpf(2).
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    ProgramById = 13,
    ObjectInfo = 15,
    LinkCreate = 28,
}

/// Calls bpf(2). `A` is the part of `union bpf_attr` that the command reads.
fn bpf<A>(command: Command, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is readable and writable for its size during the
    // call; pointers within it point to what its owner, our caller, borrows
    // for that long. The kernel takes missing fields for zeros.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attributes),
            size_of::<A>() as libc::c_uint,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// Calls bpf(2) for a command that makes a descriptor.
fn bpf_fd<A>(command: Command, attributes: &mut A) -> io::Result<OwnedFd> {
    crate::os::own(bpf(command, attributes)? as libc::c_int)
}

/// A name as the kernel takes it: at most 15 characters, then zeros.
fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (at, byte) in name.iter_mut().zip(text.bytes()).take(15) {
        *at = byte;
    }
    name
}

/// A pointer as the kernel takes it.
fn pointer<T>(value: *const T) -> u64 {
    value.expose_provenance() as u64
}
