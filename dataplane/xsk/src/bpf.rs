//! The part of bpf(2) that the filter needs: maps, an assembler, loading,
//! attaching, test runs, and what programs others have attached.
//!
//! Programs are put together in Rust by [`Assembler`] and loaded as they are,
//! so neither clang nor libbpf nor an ELF file is needed to build or run.
//! Everything needs `CAP_BPF` and `CAP_NET_ADMIN` (before Linux 5.8,
//! `CAP_SYS_ADMIN`).

use std::ffi::c_long;
use std::io;
use std::mem::size_of;
use std::os::fd::OwnedFd;

use crate::sys;

mod assemble;
mod link;
mod map;
mod program;

pub use assemble::{
    AssembleError, Assembler, Condition, Helper, Instruction, Label, Operand, Operation, Register,
    Size,
};
pub use link::{ForeignProgram, Link, LinkError};
pub use map::{Map, MapKind};
pub(crate) use map::{Memory as MapMemory, Number as MapNumber};
pub use program::{Action, LoadError, Program, TestRun};

/// Commands of bpf(2) (`enum bpf_cmd` in linux/bpf.h).
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    ProgramTestRun = 10,
    ProgramById = 13,
    Info = 15,
    LinkCreate = 28,
    LinkById = 30,
    LinkNextId = 31,
    LinkDetach = 34,
}

/// One command's part of `union bpf_attr`.
///
/// # Safety
/// The layout must be that of the command's structure in linux/bpf.h, without
/// padding, and possibly shorter: the kernel takes what is missing for zero.
unsafe trait Attribute {}

/// Calls bpf(2).
///
/// # Safety
/// The attribute must be that of the command, and every address in it valid
/// for what the command does with it, for the length that the attribute or the
/// map tells.
unsafe fn call<A: Attribute>(command: Command, attribute: &mut A) -> io::Result<c_long> {
    let size = size_of::<A>();
    let pointer = &raw mut *attribute;
    // SAFETY: `pointer` is valid for reading and writing `size` bytes; for the
    // addresses in it the caller vouches.
    sys::check_long(unsafe { libc::syscall(libc::SYS_bpf, command as c_long, pointer, size) })
}

/// Calls bpf(2) with a command that returns a new descriptor.
///
/// # Safety
/// As [`call`].
unsafe fn call_for_descriptor<A: Attribute>(
    command: Command,
    attribute: &mut A,
) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attribute.
    let descriptor = unsafe { call(command, attribute) }?;
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(unsafe { sys::own(descriptor as i32) })
}

/// An address as bpf(2) takes it.
fn address<T: ?Sized>(value: &T) -> u64 {
    (&raw const *value).cast::<u8>().addr() as u64
}

/// An address that the kernel writes to.
fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    (&raw mut *value).cast::<u8>().expose_provenance() as u64
}

/// An object's name as the kernel keeps it: 15 bytes of letters, digits,
/// underscores and dots.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let allowed = name.bytes().filter(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    for (to, from) in bytes[..15].iter_mut().zip(allowed) {
        *to = from;
    }
    bytes
}

/// `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttribute {
    descriptor: u32,
    length: u32,
    info: u64,
}

// SAFETY: as `info` in union bpf_attr.
unsafe impl Attribute for InfoAttribute {}

/// The first bytes of what the kernel tells of an object.
fn info<const N: usize>(descriptor: i32) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut attribute = InfoAttribute {
        descriptor: descriptor as u32,
        length: N as u32,
        info: address_mut(&mut bytes),
    };
    // SAFETY: the attribute is the command's; `info` is valid for writing
    // `length` bytes, and with zeros in it names no further buffers.
    unsafe { call(Command::Info, &mut attribute) }?;
    Ok(bytes)
}

/// A number within an info structure.
fn info_u32(info: &[u8], at: usize) -> u32 {
    let bytes = info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_ne_bytes(bytes.unwrap_or_default())
}

/// `BPF_*_GET_FD_BY_ID` and `BPF_*_GET_NEXT_ID`.
#[repr(C)]
struct IdAttribute {
    id: u32,
    next: u32,
    flags: u32,
}

// SAFETY: as `start_id`, `next_id`, `open_flags` in union bpf_attr.
unsafe impl Attribute for IdAttribute {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_cleaned() {
        assert_eq!(&object_name("tieline-underlay filter")[..], b"tielineunderlay\0");
        assert_eq!(&object_name("a_b.c")[..6], b"a_b.c\0");
    }
}
