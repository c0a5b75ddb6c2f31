//! The limit on locked memory, which UMEM counts against.
//!
//! Registering an area pins its pages. For a process without `CAP_IPC_LOCK`
//! the kernel counts them against `RLIMIT_MEMLOCK`, once for each socket that
//! the area is registered on.

use std::fmt;
use std::io;

/// A limit on locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// At most so many bytes.
    Bytes(u64),
    /// No limit.
    Unlimited,
}

impl fmt::Display for Limit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "{bytes} bytes"),
            Self::Unlimited => formatter.write_str("unlimited"),
        }
    }
}

/// Raises the limit as far as this process may: to none with
/// `CAP_SYS_RESOURCE`, to the hard limit without. Returns what is in force.
///
/// # Errors
/// When the kernel refuses to tell or to change the limit.
pub fn raise() -> io::Result<Limit> {
    let infinite = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    if set(infinite).is_err() {
        let limit = get()?;
        set(libc::rlimit { rlim_cur: limit.rlim_max, ..limit })?;
    }
    limit()
}

/// The limit in force.
///
/// # Errors
/// When the kernel refuses to tell it.
pub fn limit() -> io::Result<Limit> {
    Ok(match get()?.rlim_cur {
        libc::RLIM_INFINITY => Limit::Unlimited,
        bytes => Limit::Bytes(bytes),
    })
}

fn get() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing.
    crate::sys::check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit)
}

fn set(limit: libc::rlimit) -> io::Result<()> {
    // SAFETY: `limit` is valid for reading.
    crate::sys::check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_never_lowers_the_limit() {
        let bytes = |limit| match limit {
            Limit::Bytes(bytes) => bytes,
            Limit::Unlimited => u64::MAX,
        };
        let before = limit().unwrap();
        let after = raise().unwrap();
        assert!(bytes(after) >= bytes(before), "{before} became {after}");
        assert_eq!(limit().unwrap(), after);
    }
}
