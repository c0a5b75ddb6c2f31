//! Who owns what was made, and how it goes away.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::{Pid, Signal as Sig, kill_process, test_kill_process};

use crate::process::{Child, TAG_VARIABLE};
use crate::{Error, Netns, Result};

const NETNS_DIR: &str = "/run/netns";
const MARK: &str = "tl-";
/// File that marks a lab which outlives its owner.
const KEPT: &str = "kept";
/// File with the ids of all processes that were started.
const PIDS: &str = "pids";

/// A set of namespaces, links and processes with one life.
///
/// Namespaces are called `tl-PREFIX-PID-N.NAME` (`ip netns list` shows them)
/// and files are kept in a directory of the same name under the system's
/// temporary directory.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    tag: String,
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    namespaces: Vec<String>,
    children: Vec<Weak<Child>>,
}

/// Ends a lab from elsewhere: from the thread that waits for SIGINT and
/// SIGTERM, which then ends the process.
#[derive(Clone, Debug)]
pub struct Closer(Weak<Inner>);

impl Closer {
    /// Kills the lab's processes and removes all that it made. What runs in
    /// the lab at this moment fails with [`Error::Closed`] or an I/O error.
    pub fn close(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.close();
        }
    }
}

impl Lab {
    /// An empty lab. Removes what labs of ended processes left behind.
    ///
    /// # Errors
    /// [`Error::Name`] for a prefix that can't be part of a name, otherwise
    /// the directory of the lab could not be made.
    pub fn new(prefix: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        check_name(prefix)?;
        sweep();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{MARK}{prefix}-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(&tag);
        // The same tag can only be of an earlier process with our id.
        remove(&dir, &namespaces_of(&tag));
        let inner = Inner { tag, dir, state: Mutex::default() };
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&inner.dir)
            .map_err(Error::io(format!("make directory {}", inner.dir.display())))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes a namespace: loopback up, both families on, addresses usable at
    /// once (no duplicate address detection), reverse path filter off,
    /// unprivileged ICMP sockets on.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Name`], or the kernel's refusal.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        check_name(name)?;
        let full = format!("{}.{name}", self.inner.tag);
        {
            // Registered first: a signal between the two leaves nothing behind.
            let mut state = self.inner.state();
            if state.closed {
                return Err(Error::Closed);
            }
            state.namespaces.push(full.clone());
            run_ip(&[format!("netns add {full}")], OnError::Stop, "the caller's namespace")?;
        }
        Netns::open(full, name, &self.inner)
    }

    /// Where the lab keeps its files; removed with it.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Start of the names of all of this lab's namespaces, without the dot.
    pub fn tag(&self) -> &str {
        &self.inner.tag
    }

    /// A handle to end this lab from a signal handler's thread.
    pub fn closer(&self) -> Closer {
        Closer(Arc::downgrade(&self.inner))
    }

    /// Leaves namespaces, processes and files up when this process ends. They
    /// stay until [`remove_kept`] is called, by a later process for example.
    ///
    /// # Errors
    /// [`Error::Closed`], or the mark could not be written.
    pub fn keep(self) -> Result<()> {
        let mut state = self.inner.state();
        if state.closed {
            return Err(Error::Closed);
        }
        let path = self.inner.dir.join(KEPT);
        fs::write(&path, "").map_err(Error::io(format!("write {}", path.display())))?;
        for child in state.children.iter().filter_map(Weak::upgrade) {
            child.forget();
        }
        state.closed = true;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Cleaning up after a panic is the point: a poisoned lock is fine.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a child under the lock, so that a lab that is being closed
    /// either kills it or refuses it.
    pub(crate) fn start(&self, start: impl FnOnce() -> Result<Child>) -> Result<Arc<Child>> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::Closed);
        }
        let child = Arc::new(start()?);
        let path = self.dir.join(PIDS);
        let pids = fs::OpenOptions::new().append(true).create(true).open(&path);
        pids.and_then(|mut file| writeln!(file, "{}", child.pid()))
            .map_err(Error::io(format!("write {}", path.display())))?;
        state.children.retain(|child| child.strong_count() > 0);
        state.children.push(Arc::downgrade(&child));
        Ok(child)
    }

    fn close(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        for child in state.children.drain(..).filter_map(|child| child.upgrade()) {
            child.kill();
        }
        remove(&self.dir, &state.namespaces);
    }
}

/// Removes labs of this prefix that were left up with [`Lab::keep`]; returns
/// how many.
///
/// # Errors
/// The temporary directory can't be read.
pub fn remove_kept(prefix: &str) -> Result<usize> {
    let temp = std::env::temp_dir();
    let entries = fs::read_dir(&temp).map_err(Error::io(format!("read {}", temp.display())))?;
    let mut removed = 0;
    for entry in entries.filter_map(io::Result::ok) {
        let tag = entry.file_name().to_string_lossy().into_owned();
        let dir = entry.path();
        if parse_tag(&tag).is_some_and(|(of, _)| of == prefix) && dir.join(KEPT).exists() {
            remove(&dir, &namespaces_of(&tag));
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes what labs whose process ended without cleaning up left behind.
fn sweep() {
    let temp = std::env::temp_dir();
    let mut tags: HashSet<String> = HashSet::new();
    for dir in [Path::new(NETNS_DIR), &temp] {
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(io::Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            tags.insert(name.split('.').next().unwrap_or_default().to_owned());
        }
    }
    for tag in tags {
        let Some((_, owner)) = parse_tag(&tag) else { continue };
        let dir = temp.join(&tag);
        let gone = test_kill_process(owner) == Err(rustix::io::Errno::SRCH);
        if gone && !dir.join(KEPT).exists() {
            remove(&dir, &namespaces_of(&tag));
        }
    }
}

/// Prefix and owner of a lab's tag.
fn parse_tag(tag: &str) -> Option<(&str, Pid)> {
    let mut parts = tag.strip_prefix(MARK)?.rsplitn(3, '-');
    let _count: u32 = parts.next()?.parse().ok()?;
    let pid = parts.next()?.parse().ok().and_then(Pid::from_raw)?;
    Some((parts.next()?, pid))
}

fn namespaces_of(tag: &str) -> Vec<String> {
    let names = fs::read_dir(NETNS_DIR).into_iter().flatten().filter_map(io::Result::ok);
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.strip_prefix(tag).is_some_and(|rest| rest.starts_with('.')))
        .collect()
}

/// Kills whoever still lives in the namespaces, then removes them and the
/// directory. A namespace without a name ends with its last socket.
fn remove(dir: &Path, namespaces: &[String]) {
    kill_noted(dir);
    kill_inhabitants(namespaces);
    let existing = namespaces.iter().filter(|name| Path::new(NETNS_DIR).join(name).exists());
    let lines: Vec<_> = existing.map(|name| format!("netns del {name}")).collect();
    if !lines.is_empty()
        && let Err(error) = run_ip(&lines, OnError::GoOn, "the caller's namespace")
    {
        eprintln!("tieline-lab: {error}");
    }
    if dir.exists()
        && let Err(error) = fs::remove_dir_all(dir)
    {
        eprintln!("tieline-lab: remove {}: {error}", dir.display());
    }
}

/// Kills the processes that a lab noted. Its namespaces may be in another mount
/// namespace, out of sight from here, so they are known by their id; an id that
/// was given to someone else since is told by its environment.
fn kill_noted(dir: &Path) {
    let Some(tag) = dir.file_name() else { return };
    let pids = fs::read_to_string(dir.join(PIDS)).unwrap_or_default();
    let wanted = format!("{TAG_VARIABLE}={}", tag.display());
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            let _ = kill_process(pid, Sig::KILL);
        }
    }
}

fn kill_inhabitants(namespaces: &[String]) {
    let inodes: HashSet<(u64, u64)> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect();
    if inodes.is_empty() {
        return;
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().filter_map(io::Result::ok) {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        let inside = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|meta| inodes.contains(&(meta.dev(), meta.ino())));
        if inside {
            let _ = kill_process(pid, Sig::KILL);
        }
    }
}

/// What `ip -batch` does after a line that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    Stop,
    GoOn,
}

/// Feeds lines to `ip -batch`, in the namespace of the calling thread, which
/// `netns` names for the error message.
pub(crate) fn run_ip(lines: &[String], on_error: OnError, netns: &str) -> Result<()> {
    let force = (on_error == OnError::GoOn).then_some("-force");
    let mut child = Command::new("ip")
        .args(force)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start ip (iproute2)"))?;
    let text = lines.join("\n") + "\n";
    if let Some(mut stdin) = child.stdin.take() {
        // An ip that ended early says why in its exit status.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io("run ip"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("ip -batch <<\n{text}"),
        netns: netns.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Names become parts of file names and of `ip` batch lines.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || !ends || !name.chars().all(good) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}
