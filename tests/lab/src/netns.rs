//! A network namespace, and how to be inside it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::lab::{Inner, OnError, run_ip};
use crate::process::{Child, Process};
use crate::{Error, Result};

/// A namespace of a [`crate::Lab`]. Cheap to clone; a clone does not keep the
/// namespace's name alive when its lab ends.
#[derive(Clone, Debug)]
pub struct Netns {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    full: String,
    short: String,
    file: File,
    lab: Weak<Inner>,
}

/// Settings of every new namespace. New devices take theirs from `default`.
const BASE_SYSCTLS: [(&str, &str); 7] = [
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Group 0 is the only one that every user namespace of ours has.
    ("net/ipv4/ping_group_range", "0 0"),
];

impl Netns {
    pub(crate) fn open(full: String, short: &str, lab: &Arc<Inner>) -> Result<Self> {
        let path = Path::new("/run/netns").join(&full);
        let file = File::open(&path).map_err(Error::io(format!("open {}", path.display())))?;
        let lab = Arc::downgrade(lab);
        let netns = Self { shared: Arc::new(Shared { full, short: short.to_owned(), file, lab }) };
        netns.run(|| -> Result<()> {
            for (key, value) in BASE_SYSCTLS {
                write_sysctl(key, value)?;
            }
            run_ip(&["link set lo up".to_owned()], OnError::Stop, &netns.shared.full)
        })??;
        Ok(netns)
    }

    /// The name that `ip netns` knows.
    pub fn name(&self) -> &str {
        &self.shared.full
    }

    /// The name within the lab.
    pub fn short_name(&self) -> &str {
        &self.shared.short
    }

    /// Runs a closure inside: sockets opened and processes started there
    /// belong to the namespace. A panic of the closure goes on in the caller.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        // A thread that has changed its namespace is not used for anything
        // else: one that failed to return would haunt later tests.
        thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.shared.short.clone());
            let handle = thread
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map_err(Error::io("start a thread"))?;
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that lives inside.
    ///
    /// # Errors
    /// The thread could not be started. When the namespace can't be entered,
    /// joining the thread gives that error.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let netns = self.clone();
        let thread = thread::Builder::new().name(self.shared.short.clone());
        thread.spawn(move || netns.enter().map(|()| work())).map_err(Error::io("start a thread"))
    }

    /// Starts a process inside, its output going to `NAME.out` and `NAME.err`
    /// in the lab's directory. It is in a process group of its own, so that
    /// Ctrl-C reaches only the owner, which then cleans up.
    ///
    /// # Errors
    /// [`Error::Closed`], or the process could not be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        self.spawn_with(name, command, Stdio::null())
    }

    fn spawn_with(&self, name: &str, mut command: Command, input: Stdio) -> Result<Process> {
        let lab = self.shared.lab.upgrade().ok_or(Error::Closed)?;
        let log = lab.dir().join(name);
        self.run(|| {
            let child = lab.start(|| Child::start(&mut command, &log, lab.tag(), input))?;
            Ok(Process::new(name, child, log))
        })?
    }

    /// Runs a command inside to its end and returns what it printed, whatever
    /// its exit status.
    ///
    /// # Errors
    /// It could not be started, or did not end in time and was killed.
    pub fn output(&self, name: &str, command: Command, within: Duration) -> Result<Output> {
        outcome(&self.spawn(name, command)?, within)
    }

    /// The same for a command that reads `input` from standard input.
    ///
    /// # Errors
    /// As [`Self::output`]; the input could not be kept as `NAME.in`.
    pub fn output_of(
        &self,
        name: &str,
        command: Command,
        input: &str,
        within: Duration,
    ) -> Result<Output> {
        let lab = self.shared.lab.upgrade().ok_or(Error::Closed)?;
        let path = lab.dir().join(format!("{name}.in"));
        let file = fs::write(&path, input).and_then(|()| File::open(&path));
        let file = file.map_err(Error::io(format!("write {}", path.display())))?;
        outcome(&self.spawn_with(name, command, file.into())?, within)
    }

    /// Runs `ip` commands inside, one a line, all in one `ip -batch`; words
    /// are those of ip(8) without `ip`.
    ///
    /// # Errors
    /// [`Error::Command`] with what `ip` said; the lines before took effect.
    pub fn ip<S: AsRef<str>>(&self, lines: impl IntoIterator<Item = S>) -> Result<()> {
        let lines: Vec<String> = lines.into_iter().map(|line| line.as_ref().to_owned()).collect();
        self.run(|| run_ip(&lines, OnError::Stop, &self.shared.full))?
    }

    /// Sets a kernel parameter of the namespace; `key` is its path under
    /// `/proc/sys`, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// No such parameter, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))?
    }

    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.shared.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(Error::errno(format!("enter namespace {}", self.shared.full)))
    }
}

/// Waits for the end of a process; what it printed.
fn outcome(process: &Process, within: Duration) -> Result<Output> {
    let status = process.wait(within)?;
    Ok(Output { status, stdout: process.stdout()?, stderr: process.stderr()? })
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(key), value)
        .map_err(Error::io(format!("set {key} to {value}")))
}
