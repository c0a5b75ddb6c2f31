//! CPU time and memory that a router uses, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A tick of /proc: `USER_HZ` is 100 on every machine that this runs on.
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a router has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    /// Counted by the scheduler in nanoseconds, not in ticks.
    pub(crate) exact: bool,
}

impl Used {
    /// What was used since.
    pub(crate) fn since(self, before: Self) -> Self {
        let seconds = (self.seconds - before.seconds).max(0.0);
        Self { seconds, exact: self.exact && before.exact }
    }
}

/// CPU time of a router since some moment. Of a process: that of its threads,
/// interrupts and postponed packet work that come upon them included, and of the
/// thread for postponed work on its CPU; the scheduler counts both exactly, at
/// the latest when a tick passes. Of the kernel as a router: what its CPU spent
/// in interrupts and postponed work, which is told by ticks only, so that short
/// runs say nothing. Adding that to a process's would count twice what came upon
/// its threads.
pub(crate) fn of_router(cpu: usize, process: Option<u32>) -> Used {
    if let Some(ns) = process.and_then(of_threads) {
        let postponed = postponed_work(cpu).and_then(of_threads).unwrap_or(0);
        return Used { seconds: (ns + postponed) as f64 / 1e9, exact: true };
    }
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let process = process.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let ticks = match process {
        Some(text) => of_process(&text),
        None => interrupts(&stat, cpu),
    };
    let ticks = u32::try_from(ticks.unwrap_or(0)).unwrap_or(u32::MAX);
    Used { seconds: (TICK * ticks).as_secs_f64(), exact: false }
}

/// Nanoseconds of all threads of a process; `None` where the kernel does not
/// count them. What a thread used that has ended is not in it.
fn of_threads(pid: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut all =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    let first = on_cpu(&all.next()?)?;
    Some(first + all.filter_map(|text| on_cpu(&text)).sum::<u64>())
}

/// Nanoseconds on a CPU, the first of three numbers.
fn on_cpu(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The kernel's thread for postponed work on a CPU.
fn postponed_work(cpu: usize) -> Option<u32> {
    static FOUND: Mutex<BTreeMap<usize, Option<u32>>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let find = || {
        let name = format!("ksoftirqd/{cpu}\n");
        let mut processes = fs::read_dir("/proc").ok()?.flatten();
        processes.find_map(|entry| {
            let is = fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm == name);
            entry.file_name().to_str().filter(|_| is)?.parse().ok()
        })
    };
    *found.entry(cpu).or_insert_with(find)
}

/// Ticks in interrupts and postponed work.
fn interrupts(text: &str, cpu: usize) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Some(ticks.get(5)? + ticks.get(6)?)
}

/// Ticks in user and system mode: fields 14 and 15, counted behind the name,
/// which may hold anything.
fn of_process(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(") ")?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Bytes that a process has in memory.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_packets_and_of_the_process() {
        let text = "cpu  9 9 9 9 9 9 9 9\ncpu0 1 2 3 400 5 6 7 8 0 0\ncpu1 0 0 0 1 0 0 2 0 0 0\n";
        assert_eq!([0, 1, 2].map(|cpu| interrupts(text, cpu)), [Some(13), Some(2), None]);
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 40 2 0 0 20 0 3 0 100 1 1";
        assert_eq!(of_process(text), Some(42));
    }

    #[test]
    fn work_of_a_process_is_counted_finer_than_in_ticks() {
        assert_eq!([on_cpu("12 34 5\n"), on_cpu("")], [Some(12), None]);
        let own = std::process::id();
        // The last CPU number that there can be has no thread of the kernel's.
        let used = || of_router(usize::MAX, Some(own));
        let before = used();
        assert!(before.exact && before.seconds > 0.0, "{before:?}");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let since = used().since(before).seconds;
            if since > 0.0 && seen.last() != Some(&since) {
                seen.push(since);
            }
        }
        // Ticks would be multiples.
        let part = seen.iter().map(|seconds| (seconds / TICK.as_secs_f64()).fract());
        assert!(part.into_iter().any(|part| part > 1e-6 && part < 1.0 - 1e-6), "{seen:?}");
        assert!(!of_router(0, None).exact);
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident(u32::MAX), None);
    }
}
