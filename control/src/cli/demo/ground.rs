//! What this machine lets us do, and how to step down when it is less.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;

/// Where the clusters can live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// We are root of the machine.
    Root,
    /// We are root of a user namespace only: no BPF there.
    UserNamespace,
    /// We are nobody, but may make ourselves a user namespace.
    Unprivileged,
    /// We may not even do that; why.
    Nothing(String),
}

/// Set for the process that runs in the user namespace that we made.
const INSIDE: &str = "TIELINE_DEMO_INSIDE";
/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (linux/capability.h).
const NEEDED: u64 = 1 << 12 | 1 << 21;

const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];

/// Finds out what we may do.
pub(super) fn ground() -> Ground {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid_map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if std::env::var_os(INSIDE).is_some() {
        return Ground::UserNamespace;
    }
    if has_capabilities(&status) {
        let initial = is_initial(&uid_map);
        return if initial { Ground::Root } else { Ground::UserNamespace };
    }
    let tried = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", &format!("{PREPARE} && ip netns add tieline-try")])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ground::Unprivileged,
        Ok(output) => Ground::Nothing(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Ground::Nothing(format!("unshare (util-linux): {error}")),
    }
}

fn has_capabilities(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits & NEEDED == NEEDED)
}

/// The initial user namespace maps all ids to themselves.
fn is_initial(uid_map: &str) -> bool {
    let words: Vec<&str> = uid_map.split_whitespace().collect();
    words == ["0", "0", "4294967295"]
}

/// `ip netns` keeps its names in `/run`, which is not ours: in the new mount
/// namespace an empty one takes its place.
const PREPARE: &str = "mount -t tmpfs tmpfs /run";

/// Becomes the same command in a user namespace of its own. Returns only when
/// that fails.
pub(super) fn enter_user_namespace() -> anyhow::Error {
    let exe = match std::env::current_exe().context("cannot find this program's own file") {
        Ok(exe) => exe,
        Err(error) => return error,
    };
    let error = Command::new("unshare")
        .args(UNSHARE)
        .args(["sh", "-c", &format!("{PREPARE} && exec \"$0\" \"$@\"")])
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    anyhow::Error::new(error).context("cannot start unshare (util-linux)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_and_user_namespaces_are_told_apart() {
        assert!(has_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_capabilities("CapEff:\t0000000000001000\n"));
        assert!(!has_capabilities("CapEff:\t0000000000000000\n") && !has_capabilities(""));
        assert!(is_initial("         0          0 4294967295\n"));
        assert!(!is_initial("         0       1000          1\n") && !is_initial(""));
    }
}
