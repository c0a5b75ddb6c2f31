//! ICMP and ICMPv6 echo through the kernel's datagram sockets: the kernel
//! fills in checksum and identifier.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::payload::pattern;
use crate::{Error, Netns, Outcome, Result, RoundTrips};

/// Type, code, checksum, identifier, sequence number.
const HEADER_LEN: usize = 8;

/// Sends one echo request with `payload_len` bytes after the ICMP header and
/// checks the reply. A packet above the path's MTU is fragmented.
///
/// # Errors
/// [`Error::Corrupt`] when the reply's payload differs; no socket could be
/// made.
pub fn ping(from: &Netns, to: IpAddr, payload_len: usize, within: Duration) -> Result<Outcome> {
    let doing = format!("ping from {} to {to}", from.short_name());
    from.run(|| {
        let socket = open(to, within).map_err(Error::io(doing.clone()))?;
        let (request_type, reply_type) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut request = vec![0; HEADER_LEN];
        request[0] = request_type;
        request.extend(pattern().into_iter().cycle().take(payload_len));
        match exchange(&socket, &request, reply_type, within) {
            Ok(reply) if reply[HEADER_LEN..] == request[HEADER_LEN..] => Ok(Outcome::Connected),
            Ok(_) => Err(Error::Corrupt { what: doing }),
            Err(error) => Ok(Outcome::of(&error)),
        }
    })?
}

/// Sends echo requests for `duration`, each as soon as the one before is
/// answered, and gives their round trips.
///
/// # Errors
/// A request is not answered within a second; [`Error::Corrupt`] when a reply's
/// payload differs.
pub fn ping_flood(
    from: &Netns,
    to: IpAddr,
    payload_len: usize,
    duration: Duration,
) -> Result<RoundTrips> {
    const WITHIN: Duration = Duration::from_secs(1);
    let doing = format!("flood of pings from {} to {to}", from.short_name());
    let run = || -> io::Result<Option<Vec<Duration>>> {
        let socket = open(to, WITHIN)?;
        let (request_type, reply_type) = if to.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut request = vec![0; HEADER_LEN];
        request[0] = request_type;
        request.extend(pattern().into_iter().cycle().take(payload_len));
        let (start, mut all) = (Instant::now(), Vec::new());
        while start.elapsed() < duration {
            let sequence = (all.len() as u16).to_be_bytes();
            request[6..8].copy_from_slice(&sequence);
            let sent = Instant::now();
            let reply = exchange(&socket, &request, reply_type, WITHIN)?;
            all.push(sent.elapsed());
            if reply[6..] != request[6..] {
                return Ok(None);
            }
        }
        Ok(Some(all))
    };
    let all = from.run(run)?.map_err(Error::io(doing.clone()))?;
    Ok(RoundTrips::new(all.ok_or(Error::Corrupt { what: doing })?))
}

/// An ICMP datagram socket, which behaves as a UDP socket does.
fn open(to: IpAddr, within: Duration) -> io::Result<UdpSocket> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = UdpSocket::from(socket_with(family, SocketType::DGRAM, flags, Some(protocol))?);
    socket.connect(SocketAddr::new(to, 0))?;
    socket.set_read_timeout(Some(within))?;
    Ok(socket)
}

fn exchange(
    socket: &UdpSocket,
    request: &[u8],
    reply_type: u8,
    within: Duration,
) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    socket.send(request)?;
    let mut buffer = vec![0; request.len() + 1];
    loop {
        let len = socket.recv(&mut buffer)?;
        // ICMPv6 sockets also hand out errors about our request.
        if len >= HEADER_LEN && buffer[0] == reply_type {
            buffer.truncate(len);
            return Ok(buffer);
        }
        if start.elapsed() > within {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}
