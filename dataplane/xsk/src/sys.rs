//! System calls in the shape that the rest of the crate needs: descriptors
//! that close themselves, errors as [`io::Error`], options as plain values.

use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A structure that the kernel may read from us and write for us as bytes.
///
/// # Safety
/// Every pattern of bits, all zeros included, must be a value of the type, and
/// the type must have no padding that the kernel would read.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: an integer has no padding and no invalid values.
unsafe impl Plain for c_int {}
// SAFETY: an integer has no padding and no invalid values.
unsafe impl Plain for u32 {}
// SAFETY: four u32 and two u64, in an order that leaves no gaps.
unsafe impl Plain for libc::xdp_umem_reg {}
// SAFETY: u64 only.
unsafe impl Plain for libc::xdp_mmap_offsets {}
// SAFETY: u64 only.
unsafe impl Plain for libc::xdp_statistics {}
// SAFETY: one u32.
unsafe impl Plain for libc::xdp_options {}
// SAFETY: two u32.
unsafe impl Plain for libc::tpacket_stats {}

/// A value of the type with all bits zero.
pub(crate) fn zeroed<T: Plain>() -> T {
    // SAFETY: all bits zero is a value of every `Plain` type.
    unsafe { MaybeUninit::<T>::zeroed().assume_init() }
}

/// The result of a system call that reports failure by a negative number.
pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a long.
pub(crate) fn check_long(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of a descriptor that a system call has just returned.
///
/// # Safety
/// Nobody else may own the descriptor.
pub(crate) unsafe fn own(descriptor: c_int) -> OwnedFd {
    // SAFETY: the caller vouches that the descriptor is open and unowned.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// A new socket, closed on exec.
pub(crate) fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let descriptor = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(unsafe { own(descriptor) })
}

/// Sets a socket option.
pub(crate) fn set_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &T,
) -> io::Result<()> {
    let pointer: *const c_void = (&raw const *value).cast();
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `pointer` is valid for reading `length` bytes, all initialized
    // as the type has no padding; the kernel keeps no reference.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, length) })?;
    Ok(())
}

/// Reads a socket option; what an older kernel does not fill in stays zero.
pub(crate) fn get_option<T: Plain>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<T> {
    let mut value: T = zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    let pointer: *mut c_void = (&raw mut value).cast();
    // SAFETY: `pointer` is valid for writing `length` bytes, and whatever the
    // kernel writes is a value of the type.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut length) })?;
    Ok(value)
}

/// An instruction for classic BPF.
pub(crate) const fn filter_step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Attaches a classic BPF program to a socket.
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, steps: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        // The kernel only reads the steps; the C type lacks the const.
        filter: steps.as_ptr().cast_mut(),
    };
    let pointer: *const c_void = (&raw const program).cast();
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let descriptor = socket.as_raw_fd();
    // SAFETY: `pointer` is valid for reading, and `filter` in it for reading
    // `len` steps; the kernel copies both during the call.
    check(unsafe {
        libc::setsockopt(descriptor, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, pointer, length)
    })?;
    Ok(())
}
