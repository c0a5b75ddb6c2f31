//! A child process that never outlives its handle.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal as Sig, kill_process_group, pidfd_open};

use crate::{Error, Result};

/// Environment variable with the tag of the lab that a process belongs to.
pub(crate) const TAG_VARIABLE: &str = "TIELINE_LAB";

/// Signals that a test sends to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ask to end.
    Term,
    /// End at once.
    Kill,
    /// Freeze.
    Stop,
    /// Go on after [`Signal::Stop`].
    Cont,
    /// Ctrl-C.
    Int,
    /// Reload, by convention.
    Hup,
}

/// A running or ended process. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Arc<Child>,
}

impl Process {
    pub(crate) fn new(name: &str, child: Arc<Child>, log: PathBuf) -> Self {
        Self { name: name.to_owned(), log, child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Sends a signal to it and to what it started. Does nothing when it has
    /// ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let signal = match signal {
            Signal::Term => Sig::TERM,
            Signal::Kill => Sig::KILL,
            Signal::Stop => Sig::STOP,
            Signal::Cont => Sig::CONT,
            Signal::Int => Sig::INT,
            Signal::Hup => Sig::HUP,
        };
        self.child.signal(signal).map_err(Error::io(format!("signal {}", self.name)))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Deadline`] when it still runs after `within`.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus> {
        if !self.child.ended_within(within).map_err(Error::io(format!("wait for {}", self.name)))? {
            let what = format!("the end of {}", self.name);
            return Err(Error::Deadline { what, after: within });
        }
        self.child.wait().map_err(Error::io(format!("wait for {}", self.name)))
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(Error::io(format!("wait for {}", self.name)))
    }

    /// What it has printed to standard output so far.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn stdout(&self) -> Result<Vec<u8>> {
        read(&with_suffix(&self.log, "out"))
    }

    /// What it has printed to standard error so far.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn stderr(&self) -> Result<Vec<u8>> {
        read(&with_suffix(&self.log, "err"))
    }

    /// Standard output, then standard error, for a failure's message.
    pub fn transcript(&self) -> String {
        let text = |bytes: Result<Vec<u8>>| bytes.unwrap_or_default();
        let all = [text(self.stdout()), text(self.stderr())].concat();
        String::from_utf8_lossy(&all).into_owned()
    }
}

/// The child proper, shared with the lab that kills it when it is closed.
#[derive(Debug)]
pub(crate) struct Child {
    pid: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: process::Child,
    forgotten: bool,
}

impl Child {
    /// `tag` goes into its environment: a later process finds it by that.
    pub(crate) fn start(
        command: &mut Command,
        log: &Path,
        tag: &str,
        input: Stdio,
    ) -> Result<Self> {
        let create = |suffix| {
            let path = with_suffix(log, suffix);
            File::create(&path).map_err(Error::io(format!("create {}", path.display())))
        };
        let child = command
            .env(TAG_VARIABLE, tag)
            .stdin(input)
            .stdout(create("out")?)
            .stderr(create("err")?)
            .process_group(0)
            .spawn()
            .map_err(Error::io(format!("start {}", command.get_program().display())))?;
        Ok(Self { pid: child.id(), state: Mutex::new(State { child, forgotten: false }) })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets it live on.
    pub(crate) fn forget(&self) {
        self.lock().forgotten = true;
    }

    /// Ends and reaps it.
    pub(crate) fn kill(&self) {
        let _ = self.signal(Sig::KILL);
        let _ = self.wait();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is held from the look to the signal: an ended child that
    /// nobody has reaped keeps its id, so no stranger can be hit.
    fn signal(&self, signal: Sig) -> io::Result<()> {
        let mut state = self.lock();
        if state.child.try_wait()?.is_some() {
            return Ok(());
        }
        Ok(kill_process_group(Pid::from_child(&state.child), signal)?)
    }

    fn ended_within(&self, within: Duration) -> io::Result<bool> {
        let fd = {
            let mut state = self.lock();
            if state.child.try_wait()?.is_some() {
                return Ok(true);
            }
            pidfd_open(Pid::from_child(&state.child), PidfdFlags::empty())?
        };
        let timeout = Timespec::try_from(within).map_err(io::Error::other)?;
        Ok(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout))? > 0)
    }

    fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.lock().child.try_wait()
    }

    fn wait(&self) -> io::Result<ExitStatus> {
        self.lock().child.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let forgotten = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).forgotten;
        if !forgotten {
            self.kill();
        }
    }
}

fn with_suffix(log: &Path, suffix: &str) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(format!("read {}", path.display())))
}
