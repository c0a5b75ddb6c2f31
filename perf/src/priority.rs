//! A machine that others use as well: our processes come first while we measure.
//!
//! A router alone on its CPU is what is to be measured, so what else runs must
//! not take it away: neither from our own processes, nor from the kernel's
//! thread for postponed packet work (`ksoftirqd`), which the kernel's side of
//! the comparison needs. Both are put back when the [`First`] is dropped.

use std::fs;

use rustix::process::{Pid, getpriority_process, setpriority_process};

const AUTOGROUP: &str = "/proc/self/autogroup";
const HIGHEST: i32 = -20;

/// In force until it is dropped.
#[derive(Debug)]
pub(crate) struct First {
    autogroup: Option<i32>,
    threads: Vec<(Pid, i32)>,
    own: Option<i32>,
}

impl First {
    /// Puts this program, what it starts, and the postponed packet work first.
    pub(crate) fn take() -> Self {
        // Processes of one session share a group (sched(7)), whose niceness is
        // what counts against others.
        let text = fs::read_to_string(AUTOGROUP).unwrap_or_default();
        let before = text.rsplit(' ').next().and_then(|word| word.trim().parse().ok());
        let autogroup = before.filter(|_| fs::write(AUTOGROUP, HIGHEST.to_string()).is_ok());
        let own = getpriority_process(None).ok();
        let own = own.filter(|_| setpriority_process(None, HIGHEST).is_ok());
        let threads = postponed_work()
            .filter_map(|pid| {
                let before = getpriority_process(Some(pid)).ok()?;
                setpriority_process(Some(pid), HIGHEST).ok()?;
                Some((pid, before))
            })
            .collect();
        Self { autogroup, threads, own }
    }

    fn put_back(&mut self) {
        for (pid, before) in self.threads.drain(..) {
            let _ = setpriority_process(Some(pid), before);
        }
        if let Some(before) = self.own.take() {
            let _ = setpriority_process(None, before);
        }
        if let Some(before) = self.autogroup.take() {
            let _ = fs::write(AUTOGROUP, before.to_string());
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.put_back();
    }
}

fn postponed_work() -> impl Iterator<Item = Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        name.starts_with("ksoftirqd/").then(|| Pid::from_raw(pid)).flatten()
    })
}
