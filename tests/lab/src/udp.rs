//! UDP peers: a server that echoes or counts, a single exchange, and a
//! small-packet run.
//!
//! A datagram whose first byte is 1 is counted and checked, any other one is
//! sent back, an empty one too.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};

use crate::payload::{PATTERN_LEN, is_pattern, pattern};
use crate::tcp::is_timeout;
use crate::{Error, Netns, Outcome, Result};

const SINK: u8 = 1;
/// Mark and sequence number.
const HEADER_LEN: usize = 9;
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Counters {
    received: AtomicU64,
    corrupt: AtomicU64,
}

/// A server on one port, both families; ends when dropped.
#[derive(Debug)]
pub struct UdpServer {
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl UdpServer {
    /// Listens on `port` of every address in the namespace.
    ///
    /// # Errors
    /// The port is in use.
    pub fn start(netns: &Netns, port: u16) -> Result<Self> {
        let open = || -> io::Result<UdpSocket> {
            let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(LOOK))?;
            // Room for bursts; a user namespace may only ask for less.
            if set_socket_recv_buffer_size_force(&socket, 8 << 20).is_err() {
                set_socket_recv_buffer_size(&socket, 8 << 20)?;
            }
            Ok(socket)
        };
        let doing = format!("listen on UDP port {port} in {}", netns.short_name());
        let socket = netns.run(open)?.map_err(Error::io(doing))?;
        let (counters, stop) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        let (theirs, stopped) = (Arc::clone(&counters), Arc::clone(&stop));
        let thread = Some(netns.thread(move || serve(&socket, &theirs, &stopped))?);
        Ok(Self { counters, stop, thread })
    }

    /// Datagrams counted so far (echoes are not).
    pub fn received(&self) -> u64 {
        self.counters.received.load(Ordering::Relaxed)
    }

    /// How many of them held other bytes than were sent.
    pub fn corrupt(&self) -> u64 {
        self.counters.corrupt.load(Ordering::Relaxed)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, counters: &Counters, stop: &AtomicBool) {
    let (pattern, mut buffer) = (pattern(), vec![0; 64 << 10]);
    while !stop.load(Ordering::Relaxed) {
        // An error is a timeout or an ICMP error about an earlier echo.
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        let datagram = &buffer[..len];
        if datagram.first() != Some(&SINK) {
            let _ = socket.send_to(datagram, from);
            continue;
        }
        let good = datagram.get(1..HEADER_LEN).is_some_and(|sequence| {
            let sequence = sequence.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            is_pattern(&pattern, sequence, &datagram[HEADER_LEN..])
        });
        counters.received.fetch_add(1, Ordering::Relaxed);
        counters.corrupt.fetch_add(u64::from(!good), Ordering::Relaxed);
    }
}

/// Sends one datagram with `payload_len` bytes to a [`UdpServer`] and checks
/// the echo.
///
/// # Errors
/// [`Error::Corrupt`] when the echo differs; no socket could be made.
pub fn udp_echo(
    from: &Netns,
    to: SocketAddr,
    payload_len: usize,
    within: Duration,
) -> Result<Outcome> {
    let doing = format!("UDP from {} to {to}", from.short_name());
    from.run(|| {
        let socket = connected(to, within).map_err(Error::io(doing.clone()))?;
        let mut payload: Vec<u8> = pattern().into_iter().cycle().take(payload_len).collect();
        if let Some(first) = payload.first_mut() {
            *first = b'e';
        }
        let mut echo = vec![0; payload_len + 1];
        match socket.send(&payload).and_then(|_| socket.recv(&mut echo)) {
            Ok(len) if echo[..len] == payload => Ok(Outcome::Connected),
            Ok(_) => Err(Error::Corrupt { what: doing }),
            Err(error) => Ok(Outcome::of(&error)),
        }
    })?
}

fn connected(to: SocketAddr, within: Duration) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0; 16], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(within))?;
    socket.set_write_timeout(Some(within))?;
    Ok(socket)
}

/// Figures of a small-packet run.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Datagrams that the receiver's program got, all checked.
    pub received: u64,
    /// From the first to the last datagram sent.
    pub elapsed: Duration,
}

impl Blast {
    /// Datagrams received per second of sending.
    pub fn received_pps(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends datagrams of `payload_len` bytes (at least 9) from one socket for
/// `duration`, as fast as it goes or `pace` datagrams per second, to a server
/// that nobody else sends to.
///
/// # Errors
/// [`Error::Corrupt`] when the receiver saw other bytes; the socket fails.
pub fn udp_blast(
    from: &Netns,
    to: SocketAddr,
    server: &UdpServer,
    payload_len: usize,
    pace: Option<u64>,
    duration: Duration,
) -> Result<Blast> {
    const SETTLE: Duration = Duration::from_millis(50);
    let doing = format!("UDP from {} to {to}", from.short_name());
    let before = (server.received(), server.corrupt());
    let (sent, elapsed) = from
        .run(|| send_for(to, payload_len.max(HEADER_LEN), pace, duration))?
        .map_err(Error::io(doing.clone()))?;
    let mut last = server.received();
    loop {
        std::thread::sleep(SETTLE);
        if server.received() == last {
            break;
        }
        last = server.received();
    }
    if server.corrupt() != before.1 {
        return Err(Error::Corrupt { what: doing });
    }
    Ok(Blast { sent, received: last - before.0, elapsed })
}

fn send_for(
    to: SocketAddr,
    len: usize,
    pace: Option<u64>,
    duration: Duration,
) -> io::Result<(u64, Duration)> {
    let socket = connected(to, duration)?;
    let pattern: Vec<u8> = pattern().into_iter().cycle().take(PATTERN_LEN + len).collect();
    let mut datagram = vec![0; len];
    datagram[0] = SINK;
    let (start, mut sequence, mut sent) = (Instant::now(), 0_u64, 0);
    while start.elapsed() < duration {
        if let Some(pace) = pace {
            let due = Duration::from_secs_f64(sequence as f64 / pace.max(1) as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        datagram[1..HEADER_LEN].copy_from_slice(&sequence.to_be_bytes());
        let at = (sequence % PATTERN_LEN as u64) as usize;
        datagram[HEADER_LEN..].copy_from_slice(&pattern[at..at + len - HEADER_LEN]);
        match socket.send(&datagram) {
            Ok(_) => sent += 1,
            // Full queues on the way are losses, not faults.
            Err(error) if is_timeout(&error) || no_buffers(&error) => {}
            Err(error) => return Err(error),
        }
        sequence += 1;
    }
    Ok((sent, start.elapsed()))
}

fn no_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}
