//! Small wrappers over system calls that several modules make.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// The outcome of a system call that returns -1 on failure.
pub(crate) fn check(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// Takes ownership of a descriptor that a system call has just returned.
pub(crate) fn own(descriptor: libc::c_int) -> io::Result<OwnedFd> {
    let descriptor = check(descriptor)?;
    // SAFETY: the descriptor is not negative and was just made by the kernel
    // for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A socket.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers.
    own(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Sets a socket option to a plain value.
pub(crate) fn set_option<T: Copy>(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is readable for `len` bytes during the call; the option's
    // structures are plain data, which the kernel copies.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len)
    })?;
    Ok(())
}

/// Reads a socket option into a plain value that was filled before, and returns
/// the number of bytes that the kernel has written.
pub(crate) fn get_option<T: Copy>(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &mut T,
) -> io::Result<usize> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes during the call, and every
    // byte pattern is a value of the plain structures that this is used for.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    })?;
    Ok(len as usize)
}

/// A mapping of memory, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; what may be done
// with its bytes is up to those who use `start`.
unsafe impl Send for Mapping {}
// SAFETY: as above; the mapping itself has no state that changes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a descriptor, shared and writable.
    pub(crate) fn shared(descriptor: RawFd, offset: i64, len: usize) -> io::Result<Self> {
        Self::new(libc::MAP_SHARED | libc::MAP_POPULATE, descriptor, offset, len)
    }

    /// Maps `len` bytes of fresh memory.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        Self::new(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0, len)
    }

    fn new(flags: i32, descriptor: RawFd, offset: i64, len: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel chooses a free place, so no
        // memory in use is replaced.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, descriptor, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, len })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives the kernel advice about the whole mapping.
    pub(crate) fn advise(&self, advice: i32) -> io::Result<()> {
        // SAFETY: the range is ours, and the advice that is given here (huge
        // pages, no inheritance) does not change any byte.
        check(unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) })?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and nobody refers to
        // it any more: whoever does shares ownership of this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
