//! CPU time and memory that a router uses, from /proc.

use std::fs;
use std::time::Duration;

/// A tick of /proc: `USER_HZ` is 100 on every machine that this runs on.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of a router since some moment: what its CPU spent on packets in the
/// kernel (interrupts and postponed work), and its process, if it has one. Time
/// of other processes on the CPU is not in it. Ticks are samples: good to a few
/// percent over a second.
pub(crate) fn of_router(cpu: usize, process: Option<u32>) -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let process = process.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let ticks = interrupts(&stat, cpu).unwrap_or(0)
        + process.and_then(|text| of_process(&text)).unwrap_or(0);
    TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
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
    fn this_process_has_some_memory() {
        assert!(resident(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(resident(u32::MAX), None);
    }
}
