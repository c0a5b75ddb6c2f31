//! The limit on locked memory, which frames registered with the kernel count
//! against.

use std::io;

use crate::os::check;

/// Raises the limit of this process as far as it may be raised: without bounds
/// if we have CAP_SYS_RESOURCE, else to the hard limit. Returns the limit in
/// bytes; `None` means that there is none.
pub fn raise() -> io::Result<Option<u64>> {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    if set(&unlimited).is_err() {
        let mut limit = get()?;
        limit.rlim_cur = limit.rlim_max;
        set(&limit)?;
    }
    let limit = get()?.rlim_cur;
    Ok((limit != libc::RLIM_INFINITY).then_some(limit))
}

/// What to do when memory can't be registered for the limit.
pub const REMEDY: &str = "raise the limit on locked memory (RLIMIT_MEMLOCK): LimitMEMLOCK=infinity \
     for the container runtime or service, or give the process CAP_IPC_LOCK";

fn set(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: `limit` is readable during the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, limit) })?;
    Ok(())
}

fn get() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable during the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_is_raised_and_stays() {
        let first = super::raise().unwrap();
        assert_eq!(super::raise().unwrap(), first);
    }
}
