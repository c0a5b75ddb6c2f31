//! What the figures were measured on.

use std::fs;

use serde::{Deserialize, Serialize};

/// Facts that figures depend on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    /// Seconds since 1970.
    pub(crate) time: u64,
    /// Name and state of each vulnerability that costs something.
    pub(crate) mitigations: Vec<String>,
    /// Settings of the kernel that matter here.
    pub(crate) settings: Vec<String>,
    /// Runnable processes, averaged over a minute, before the run and after it:
    /// what others did meanwhile.
    pub(crate) load: [f64; 2],
    pub(crate) version: String,
}

impl Machine {
    /// This one.
    pub(crate) fn read() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            cpu: cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cpus: count(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            kernel: fs::read_to_string("/proc/version").unwrap_or_default().trim().to_owned(),
            time: now.map(|time| time.as_secs()).unwrap_or_default(),
            mitigations: mitigations(),
            settings: SETTINGS.iter().map(|path| setting(path)).collect(),
            load: [load(); 2],
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Runnable processes, averaged over a minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

const SETTINGS: [&str; 6] = [
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/net/core/netdev_budget",
    "/proc/sys/net/core/netdev_max_backlog",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource",
];

fn setting(path: &str) -> String {
    let name = path.trim_start_matches("/proc/sys/").trim_start_matches("/sys/");
    match fs::read_to_string(path) {
        Ok(value) => format!("{name} = {}", value.trim()),
        Err(error) => format!("{name}: {error}"),
    }
}

/// All of the machine's: this process may be kept to fewer.
fn count(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("processor")).count()
}

fn cpu(text: &str) -> String {
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let part = |key: &str| value(key).unwrap_or_else(|| "?".to_owned());
    format!(
        "{}, family {} model {} stepping {}, {} MHz, cache {}",
        part("model name"),
        part("cpu family"),
        part("model\t"),
        part("stepping"),
        part("cpu MHz"),
        part("cache size")
    )
}

fn mitigations() -> Vec<String> {
    let entries = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten();
    let mut all: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?;
            Some(format!("{}: {}", entry.file_name().display(), state.trim()))
        })
        .filter(|line| !line.ends_with("Not affected"))
        .collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_the_cpus_that_it_has_not_those_of_this_thread() {
        let text = "processor\t: 0\nmodel name\t: X\nprocessor\t: 1\nmodel name\t: X\n";
        assert_eq!(count(text), 2);
        assert!(cpu(text).starts_with("X, "));
        assert!(count(&fs::read_to_string("/proc/cpuinfo").unwrap()) > 0);
    }
}
