//! TCP peers: one server that plays every part, and the clients.
//!
//! The server sends back every byte, unless the first byte of a connection is
//! 1: then it takes everything, checks it and answers how much it was. So
//! people who type into a connection by hand get an echo.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::payload::{is_pattern, pattern};
use crate::{Error, Netns, Outcome, Result};

const SINK: u8 = 1;

/// How often a blocked thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);

/// A server on one port, both families; ends when dropped.
#[derive(Debug)]
pub struct TcpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens on `port` of every address in the namespace.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(netns: &Netns, port: u16) -> Result<Self> {
        netns.run(|| Self::here(port))?
    }

    /// Listens on `port` of every address in the caller's own namespace.
    ///
    /// # Errors
    /// The port is in use.
    pub fn here(port: u16) -> Result<Self> {
        let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let listener = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listener.map_err(Error::io(format!("listen on TCP port {port}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // Threads inherit the namespace; the listener belongs to it anyway.
        let thread = Some(std::thread::spawn(move || serve(&listener, &stopped)));
        Ok(Self { stop, thread })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let pattern = pattern();
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            let _ = poll(&mut fds, Timespec::try_from(LOOK).ok().as_ref());
            while let Ok((stream, _)) = listener.accept() {
                let pattern = &pattern;
                // A connection that ends in an error has a client that sees it.
                scope.spawn(move || drop(serve_one(stream, pattern, stop)));
            }
        }
    });
}

fn serve_one(mut stream: TcpStream, pattern: &[u8], stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))?;
    let mut mode = [0];
    if read_some(&mut stream, &mut mode, stop)? == 0 {
        return Ok(());
    }
    let (mut buffer, mut count, mut good) = (vec![0; 256 << 10], 0_u64, true);
    if mode[0] != SINK {
        write_all(&mut stream, &mode, stop)?;
        loop {
            match read_some(&mut stream, &mut buffer, stop)? {
                0 => return Ok(()),
                len => write_all(&mut stream, &buffer[..len], stop)?,
            }
        }
    }
    loop {
        let len = read_some(&mut stream, &mut buffer, stop)?;
        if len == 0 {
            let mut answer = [0; 9];
            answer[..8].copy_from_slice(&count.to_be_bytes());
            answer[8] = u8::from(good);
            return write_all(&mut stream, &answer, stop);
        }
        good &= is_pattern(pattern, count, &buffer[..len]);
        count += len as u64;
    }
}

fn stopped() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "the server ends")
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn read_some(stream: &mut TcpStream, buffer: &mut [u8], stop: &AtomicBool) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if is_timeout(&error) && !stop.load(Ordering::Relaxed) => {}
            Err(error) if is_timeout(&error) => return Err(stopped()),
            other => return other,
        }
    }
}

fn write_all(stream: &mut TcpStream, mut bytes: &[u8], stop: &AtomicBool) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if is_timeout(&error) && !stop.load(Ordering::Relaxed) => {}
            Err(error) if is_timeout(&error) => return Err(stopped()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Connects from inside the namespace and, if that works, sends a message and
/// checks what comes back. `within` bounds connecting and the exchange each.
///
/// # Errors
/// [`Error::Corrupt`] when the echo differs; the namespace can't be entered.
pub fn connect(from: &Netns, to: SocketAddr, within: Duration) -> Result<Outcome> {
    from.run(|| {
        let mut stream = match TcpStream::connect_timeout(&to, within) {
            Ok(stream) => stream,
            Err(error) => return Ok(Outcome::of(&error)),
        };
        match exchange(&mut stream, within) {
            Ok(true) => Ok(Outcome::Connected),
            Ok(false) => Err(Error::Corrupt { what: format!("TCP echo from {to}") }),
            Err(_) => Ok(Outcome::Silent),
        }
    })?
}

fn exchange(stream: &mut TcpStream, within: Duration) -> io::Result<bool> {
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    let pattern = pattern();
    // More than one segment, with odd ends.
    let sent = &pattern[..4099];
    stream.write_all(sent)?;
    let mut got = vec![0; sent.len()];
    stream.read_exact(&mut got)?;
    Ok(got == sent)
}

/// Figures of a bulk transfer.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Payload bytes that arrived, all checked.
    pub bytes: u64,
    /// From the first byte sent to the receiver's answer.
    pub elapsed: Duration,
}

impl Bulk {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

/// Sends for `duration` as fast as one connection goes.
///
/// # Errors
/// The connection fails or stalls for more than 5 seconds; [`Error::Corrupt`]
/// when the receiver saw other bytes.
pub fn bulk(from: &Netns, to: SocketAddr, duration: Duration) -> Result<Bulk> {
    const STALL: Duration = Duration::from_secs(5);
    let transfer = || -> io::Result<(u64, [u8; 9], Duration)> {
        let mut stream = TcpStream::connect_timeout(&to, STALL)?;
        stream.set_write_timeout(Some(STALL))?;
        stream.set_read_timeout(Some(STALL))?;
        let pattern = pattern();
        stream.write_all(&[SINK])?;
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < duration {
            stream.write_all(&pattern)?;
            sent += pattern.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer)?;
        Ok((sent, answer, start.elapsed()))
    };
    let doing = format!("bulk TCP from {} to {to}", from.short_name());
    let (sent, answer, elapsed) = from.run(transfer)?.map_err(Error::io(doing.clone()))?;
    let (count, good) = answer.split_at(8);
    let bytes = count.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if bytes != sent || good != [1] {
        return Err(Error::Corrupt { what: doing });
    }
    Ok(Bulk { bytes, elapsed })
}

/// Latencies of requests, each answered before the next was sent.
#[derive(Clone, Debug)]
pub struct RoundTrips {
    sorted: Vec<Duration>,
}

impl RoundTrips {
    pub(crate) fn new(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self { sorted: all }
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The latency that `share` (0 to 1) of the requests stayed under; zero
    /// when there were none.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.sorted.len().saturating_sub(1);
        let index = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
        self.sorted.get(index).copied().unwrap_or_default()
    }
}

/// Sends requests of `size` bytes over one connection for `duration` and waits
/// for each echo.
///
/// # Errors
/// The connection fails or an answer takes more than 5 seconds;
/// [`Error::Corrupt`] when an answer differs.
pub fn request_response(
    from: &Netns,
    to: SocketAddr,
    size: usize,
    duration: Duration,
) -> Result<RoundTrips> {
    const STALL: Duration = Duration::from_secs(5);
    let doing = format!("TCP requests from {} to {to}", from.short_name());
    let run = || -> io::Result<Option<Vec<Duration>>> {
        let mut stream = TcpStream::connect_timeout(&to, STALL)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
        let request: Vec<u8> = pattern().into_iter().cycle().take(size).collect();
        let mut answer = vec![0; size];
        let (start, mut all) = (Instant::now(), Vec::new());
        while start.elapsed() < duration {
            let sent = Instant::now();
            stream.write_all(&request)?;
            stream.read_exact(&mut answer)?;
            all.push(sent.elapsed());
            if answer != request {
                return Ok(None);
            }
        }
        Ok(Some(all))
    };
    let all = from.run(run)?.map_err(Error::io(doing.clone()))?;
    Ok(RoundTrips::new(all.ok_or(Error::Corrupt { what: doing })?))
}
