//! Network settings under `/proc/sys/net`.
//!
//! The files are those of the network namespace of the thread that opens them,
//! so everything here runs on the calling thread and never on a pool.

use std::io;
use std::path::{Path, PathBuf};

use super::LinkError;

const ROOT: &str = "/proc/sys/net";

/// Reads a setting; `None` when the kernel has no such setting (IPv6 switched
/// off at boot, the device gone).
pub(super) fn read(name: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(ROOT).join(name)).ok().map(|text| text.trim().to_owned())
}

/// Makes a setting have a value; writes only when it differs, so that a
/// read-only `/proc/sys` with the right values is fine.
pub(super) fn ensure(name: &str, value: &str) -> Result<(), LinkError> {
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = PathBuf::from(ROOT).join(name);
    let error = |source: io::Error| LinkError::Sysctl {
        path: path.clone(),
        value: value.to_owned(),
        source,
    };
    std::fs::write(&path, value).map_err(error)
}

/// Whether the kernel speaks IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").is_dir()
}
