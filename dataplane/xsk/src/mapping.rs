//! Memory mappings that unmap themselves.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// What the kernel makes of `madvise(MADV_HUGEPAGE)` on x86-64 and most others.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A mapping of this process, readable and writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread. Its bytes are only
// reached through raw pointers, whose users answer for the absence of races.
unsafe impl Send for Mapping {}
// SAFETY: as above; the type itself gives nothing but an address and a length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of its own, on huge pages if the kernel has them for it.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let huge = len >= HUGE_PAGE;
        let len = len.next_multiple_of(if huge { HUGE_PAGE } else { page_size() });
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let mapping = if huge {
            // Huge pages only go where the address is a multiple of theirs.
            Self::new(len + HUGE_PAGE, flags, -1, 0)?.trimmed(len)
        } else {
            Self::new(len, flags, -1, 0)?
        };
        if huge {
            mapping.advise(libc::MADV_HUGEPAGE);
        }
        // A child must neither share nor copy memory that devices write to.
        mapping.advise(libc::MADV_DONTFORK);
        // All at once, now, rather than by page faults under load. A kernel
        // before 5.14 does not know this, and registering populates it then.
        mapping.advise(libc::MADV_POPULATE_WRITE);
        Ok(mapping)
    }

    /// Memory shared with the kernel through a descriptor.
    pub(crate) fn shared(descriptor: BorrowedFd<'_>, len: usize, offset: i64) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Self::new(len, flags, descriptor.as_raw_fd(), offset)
    }

    fn new(len: usize, flags: c_int, descriptor: c_int, offset: i64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let hint = std::ptr::null_mut();
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let start = unsafe { libc::mmap(hint, len, protection, flags, descriptor, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// The part of `len` bytes that begins at a huge page; unmaps the rest.
    /// The mapping must be longer than `len` by one huge page.
    fn trimmed(self, len: usize) -> Self {
        let before = self.start.addr().get().next_multiple_of(HUGE_PAGE) - self.start.addr().get();
        // SAFETY: `before` is less than HUGE_PAGE, and so within the mapping.
        let start = unsafe { self.start.add(before) };
        // SAFETY: `before + len` is at most the mapping's length.
        let end = unsafe { start.add(len) };
        let after = self.len - before - len;
        for (part, len) in [(self.start, before), (end, after)] {
            // A length of zero is refused and does nothing; that is as well.
            // SAFETY: the part is ours, not the part that stays, and nothing
            // refers to it yet.
            unsafe { libc::munmap(part.as_ptr().cast::<c_void>(), len) };
        }
        std::mem::forget(self);
        Self { start, len }
    }

    /// Advice may be refused by kernels that lack it: nothing depends on it.
    fn advise(&self, advice: c_int) {
        // SAFETY: the range is ours; none of the advice used here changes what
        // the bytes are.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) };
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and whoever holds pointers into it holds
        // the mapping as well, so there are none left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes per ordinary page.
pub(crate) fn page_size() -> usize {
    // SAFETY: takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// Bytes of `mapping` that are on transparent huge pages, as the kernel tells
/// in `/proc/self/smaps`; zero when it doesn't.
pub(crate) fn huge_bytes(mapping: &Mapping) -> usize {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    let start = mapping.start.addr().get();
    huge_bytes_of(&smaps, start..start + mapping.len)
}

fn huge_bytes_of(smaps: &str, range: std::ops::Range<usize>) -> usize {
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some(area) = address_range(line) {
            inside = area.start < range.end && range.start < area.end;
        } else if inside && let Some(value) = line.strip_prefix("AnonHugePages:") {
            let kib = value.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap_or(0);
            bytes += kib * 1024;
        }
    }
    bytes
}

/// The range that a heading of smaps names: `7f00-7f10 rw-p ...`.
fn address_range(line: &str) -> Option<std::ops::Range<usize>> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
Size:               4096 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac sd hg
7f0000500000-7f0000501000 rw-p 00000000 00:00 0  [heap]
AnonHugePages:         0 kB
";

    #[test]
    fn huge_pages_are_counted_inside_the_range_only() {
        assert_eq!(huge_bytes_of(SMAPS, 0x7f00_0000_0000..0x7f00_0040_0000), 4 << 20);
        assert_eq!(huge_bytes_of(SMAPS, 0x7f00_0050_0000..0x7f00_0050_1000), 0);
        assert_eq!(huge_bytes_of("nonsense\n-\n", 0..usize::MAX), 0);
    }

    #[test]
    fn a_large_mapping_begins_at_a_huge_page() {
        let mapping = Mapping::anonymous(HUGE_PAGE + 1).unwrap();
        assert_eq!(mapping.start().addr().get() % HUGE_PAGE, 0);
        assert_eq!(mapping.len(), 2 * HUGE_PAGE);
        assert!(huge_bytes(&mapping) <= mapping.len());
    }

    #[test]
    fn a_small_mapping_takes_no_huge_page() {
        let mapping = Mapping::anonymous(1).unwrap();
        assert_eq!(mapping.len(), page_size());
    }
}
