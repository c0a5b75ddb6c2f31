//! Memory mappings that unmap themselves.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::{hint, pages};

/// What the kernel makes of `madvise(MADV_HUGEPAGE)` on x86-64 and most others.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// A mapping of this process, readable and writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// On huge pages that the machine has set aside.
    reserved: bool,
}

/// Memory that belongs to nobody else.
const ANONYMOUS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

// SAFETY: a mapping belongs to the process, not to a thread. Its bytes are only
// reached through raw pointers, whose users answer for the absence of races.
unsafe impl Send for Mapping {}
// SAFETY: as above; the type itself gives nothing but an address and a length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed memory of its own, all of it there: on huge pages that the machine
    /// has set aside, else on such as the kernel makes, else on ordinary ones.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let len = len.next_multiple_of(page_size());
        if len < HUGE_PAGE {
            let mapping = Self::new(len, ANONYMOUS, -1, 0)?;
            mapping.advise(libc::MADV_DONTFORK);
            mapping.populate();
            return Ok(mapping);
        }
        match Self::reserved(len.next_multiple_of(HUGE_PAGE)) {
            Some(mapping) => Ok(mapping),
            None => Self::transparent(len),
        }
    }

    /// Huge pages that the machine has set aside, if so many are free.
    fn reserved(len: usize) -> Option<Self> {
        // SAFETY: takes no pointers. Who wants no huge pages, wants none of any kind.
        if unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } == 1 {
            return None;
        }
        let flags = ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        // Pages are promised here and now, so this fails if there are too few.
        let mut mapping = Self::new(len, flags, -1, 0).ok()?;
        mapping.reserved = true;
        mapping.advise(libc::MADV_DONTFORK);
        // A cgroup may still have a limit of its own: hitting that is a signal
        // for who touches the page, but an error here.
        mapping.populate().then_some(mapping)
    }

    /// Huge pages that the kernel makes if it can; what is left at the end, less
    /// than one, is on ordinary ones.
    fn transparent(len: usize) -> io::Result<Self> {
        let flags = ANONYMOUS | libc::MAP_NORESERVE;
        // Huge pages only go where the address is a multiple of theirs.
        let mapping = Self::new(len + HUGE_PAGE, flags, -1, 0)?.trimmed(len);
        mapping.advise(libc::MADV_HUGEPAGE);
        mapping.advise(libc::MADV_DONTFORK);
        mapping.populate();
        // Where no huge page was free at first, the kernel may make one.
        mapping.advise(hint::MADV_COLLAPSE);
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
        Ok(Self { start, len, reserved: false })
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
        Self { start, len, reserved: false }
    }

    /// Advice may be refused by kernels that lack it. A child must neither share
    /// nor copy memory that devices write to: hence MADV_DONTFORK.
    fn advise(&self, advice: c_int) -> bool {
        // SAFETY: the range is ours; none of the advice used here changes what
        // the bytes are.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) == 0 }
    }

    /// All at once, now, rather than by page faults under load. A kernel before
    /// 5.14 does not know this, and registering populates it then.
    fn populate(&self) -> bool {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    /// What kind of pages the memory is on.
    pub(crate) fn pages(&self) -> &'static str {
        if self.reserved {
            return "2 MiB reserved";
        }
        let start = self.start.addr().get();
        match pages::huge_bytes(std::slice::from_ref(&(start..start + self.len))) {
            0 => "4 KiB",
            huge if huge >= self.len => "2 MiB transparent",
            _ => "2 MiB transparent in part",
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_mapping_begins_at_a_huge_page() {
        let mapping = Mapping::anonymous(HUGE_PAGE + 1).unwrap();
        assert_eq!(mapping.start().addr().get() % HUGE_PAGE, 0);
        assert!([HUGE_PAGE + page_size(), 2 * HUGE_PAGE].contains(&mapping.len()));
        let kinds = ["2 MiB reserved", "2 MiB transparent", "2 MiB transparent in part", "4 KiB"];
        assert!(kinds.contains(&mapping.pages()), "{}", mapping.pages());
    }

    #[test]
    fn a_small_mapping_takes_no_huge_page() {
        let mapping = Mapping::anonymous(1).unwrap();
        assert_eq!(mapping.len(), page_size());
        assert_eq!(mapping.pages(), "4 KiB");
    }
}
