//! A running connection that tells when it was cut.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tcp::is_timeout;
use crate::{Error, Netns, Result};

/// A running connection that sends a heartbeat at a steady pace and knows when
/// the last one came back.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<(Mutex<Beats>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Beats {
    answered: u64,
    last_answer: Instant,
    /// The longest time between two answers since it was last asked for.
    longest_silence: Duration,
    /// When the first heartbeat that has no answer yet was sent.
    unanswered_since: Option<Instant>,
    /// Why the connection ended, if it did.
    ended: Option<String>,
}

/// When a [`Stream`] stopped.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Arrival of the last echo.
    pub last_answer: Instant,
    /// Sending of the first heartbeat that was not answered; the cut lies
    /// between the two, give or take a round trip.
    pub first_unanswered: Instant,
    /// The connection's error, when it did not just fall silent.
    pub error: Option<String>,
}

impl Stream {
    /// Connects to a [`TcpServer`](crate::TcpServer), waits for the first echo and goes on in a
    /// thread of its own.
    ///
    /// # Errors
    /// The connection can't be made, or the first echo takes longer than
    /// `within`.
    pub fn start(
        from: &Netns,
        to: SocketAddr,
        interval: Duration,
        within: Duration,
    ) -> Result<Self> {
        let doing = format!("TCP stream from {} to {to}", from.short_name());
        let open = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&to, within)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = from.run(open)?.map_err(Error::io(doing.clone()))?;
        let beats = Beats {
            answered: 0,
            last_answer: Instant::now(),
            longest_silence: Duration::ZERO,
            unanswered_since: None,
            ended: None,
        };
        let shared = Arc::new((Mutex::new(beats), Condvar::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&shared), Arc::clone(&stop));
        let thread = Some(from.thread(move || {
            if let Err(error) = beat(&stream, interval, &theirs, &stopped) {
                lock(&theirs.0).ended = Some(error.to_string());
                theirs.1.notify_all();
            }
        })?);
        let this = Self { shared, stop, thread };
        this.wait(&doing, within, |beats| beats.answered > 0).map(drop)?;
        Ok(this)
    }

    /// Number of echoes so far.
    pub fn answered(&self) -> u64 {
        lock(&self.shared.0).answered
    }

    /// The longest time without an answer since this was last asked for, the
    /// present one included.
    pub fn longest_silence(&self) -> Duration {
        let mut beats = lock(&self.shared.0);
        let present = beats.last_answer.elapsed();
        std::mem::take(&mut beats.longest_silence).max(present)
    }

    /// Waits until the connection has been silent for `quiet` or has ended.
    ///
    /// # Errors
    /// [`Error::Deadline`] when it still runs after `within`.
    pub fn wait_stall(&self, quiet: Duration, within: Duration) -> Result<Stall> {
        let stalled = |beats: &Beats| {
            beats.ended.is_some()
                || beats.unanswered_since.is_some_and(|since| since.elapsed() >= quiet)
        };
        let beats = self.wait("the cut of a running TCP stream", within, stalled)?;
        Ok(Stall {
            last_answer: beats.last_answer,
            first_unanswered: beats.unanswered_since.unwrap_or(beats.last_answer),
            error: beats.ended.clone(),
        })
    }

    /// Waits for `count` more echoes.
    ///
    /// # Errors
    /// [`Error::Deadline`] when they do not come within `within`.
    pub fn wait_answers(&self, count: u64, within: Duration) -> Result<()> {
        let goal = self.answered() + count;
        self.wait("echoes of a TCP stream", within, |beats| beats.answered >= goal).map(drop)
    }

    fn wait(
        &self,
        what: &str,
        within: Duration,
        done: impl Fn(&Beats) -> bool,
    ) -> Result<MutexGuard<'_, Beats>> {
        let deadline = Instant::now() + within;
        let mut beats = lock(&self.shared.0);
        while !done(&beats) {
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Deadline { what: what.to_owned(), after: within });
            }
            let step = (deadline - now).min(Duration::from_millis(5));
            let waited = self.shared.1.wait_timeout(beats, step);
            beats = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(beats)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(beats: &Mutex<Beats>) -> MutexGuard<'_, Beats> {
    beats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends numbers and takes them back in order until told to stop.
fn beat(
    mut stream: &TcpStream,
    interval: Duration,
    (beats, changed): &(Mutex<Beats>, Condvar),
    stop: &AtomicBool,
) -> io::Result<()> {
    let (mut sent_at, mut sent, mut next) =
        (std::collections::VecDeque::new(), 0_u64, Instant::now());
    let (mut partial, mut buffer) = (Vec::new(), [0; 4096]);
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= next {
            next = Instant::now() + interval;
            // A full socket buffer means a long silence: nothing more to send.
            match stream.write(&sent.to_be_bytes()) {
                Ok(8) => {
                    sent += 1;
                    sent_at.push_back(Instant::now());
                }
                Ok(_) => return Err(io::Error::other("half a heartbeat was sent")),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => partial.extend_from_slice(&buffer[..len]),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        let mut state = lock(beats);
        let whole = partial.len() - partial.len() % 8;
        for echo in partial.drain(..whole).as_slice().chunks_exact(8) {
            if echo != state.answered.to_be_bytes() {
                return Err(io::Error::new(ErrorKind::InvalidData, "wrong heartbeat came back"));
            }
            state.answered += 1;
            state.longest_silence = state.longest_silence.max(state.last_answer.elapsed());
            state.last_answer = Instant::now();
            sent_at.pop_front();
        }
        state.unanswered_since = sent_at.front().copied();
        drop(state);
        changed.notify_all();
        let wait = Timespec::try_from(next.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        poll(&mut fds, wait.ok().as_ref())?;
    }
    Ok(())
}
