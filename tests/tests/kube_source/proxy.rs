//! A proxy between two namespaces: the only way from the one into the other.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tieline_lab::Netns;

/// What it does with who asks for a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Connects to the server, whatever name is asked for.
    Pass,
    /// The same for who knows the password `me:hush@`.
    Ask,
    /// Says no.
    Refuse,
    /// Takes connections no more.
    Down,
}

/// A proxy for HTTP's CONNECT and SOCKS 5, at a port of the loopback address.
/// Ends with what it shares.
pub(crate) struct Proxy(Arc<Shared>, SocketAddr);

struct Shared {
    mode: Mutex<Mode>,
    /// Which servers were asked for.
    asked: Mutex<Vec<String>>,
    open: Mutex<Vec<TcpStream>>,
    to: Netns,
    server: SocketAddr,
}

impl Proxy {
    pub(crate) fn new(from: &Netns, to: &Netns, server: SocketAddr) -> Self {
        let listener = from.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Pass),
            asked: Mutex::default(),
            open: Mutex::default(),
            to: to.clone(),
            server,
        });
        let weak = Arc::downgrade(&shared);
        std::thread::spawn(move || {
            while let Some(shared) = weak.upgrade().filter(|shared| shared.mode() != Mode::Down) {
                match listener.accept() {
                    Ok((client, _)) => drop(std::thread::spawn(move || shared.serve(client))),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self(shared, address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.1
    }

    /// Ends what is open, and treats who comes next otherwise.
    pub(crate) fn turn(&self, mode: Mode) {
        *self.0.mode.lock().unwrap() = mode;
        for open in self.0.open.lock().unwrap().drain(..) {
            let _ = open.shutdown(Shutdown::Both);
        }
    }

    /// Which servers were asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.asked.lock().unwrap())
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap()
    }

    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let mut first = [0];
        client.read_exact(&mut first)?;
        let passed = match first {
            [5] => self.socks(&mut client)?,
            first => self.http(&mut client, first.to_vec())?,
        };
        if !passed {
            return Ok(());
        }
        let server =
            self.to.run(|| TcpStream::connect(self.server)).map_err(io::Error::other)??;
        self.open.lock().unwrap().extend([client.try_clone()?, server.try_clone()?]);
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        let back = std::thread::spawn(move || pump(server, client));
        let there = pump(from.try_clone()?, to.try_clone()?);
        let _ = (from.flush(), to.flush(), back.join());
        there
    }

    fn http(&self, client: &mut TcpStream, mut request: Vec<u8>) -> io::Result<bool> {
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            request.extend(byte);
        }
        let request = String::from_utf8_lossy(&request).into_owned();
        let server = request.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(' '));
        self.asked.lock().unwrap().push(server.map(|(name, _)| name).unwrap_or("?").to_owned());
        // The base64 of `me:hush@`.
        let known = request.contains("Proxy-Authorization: Basic bWU6aHVzaEA=\r\n");
        let (passed, answer) = match self.mode() {
            Mode::Ask if !known => (false, "407 Proxy Authentication Required"),
            Mode::Pass | Mode::Ask => (true, "200 Connection established"),
            Mode::Refuse | Mode::Down => (false, "403 Forbidden"),
        };
        client.write_all(format!("HTTP/1.1 {answer}\r\n\r\n").as_bytes())?;
        Ok(passed)
    }

    /// RFC 1928, without authentication.
    fn socks(&self, client: &mut TcpStream) -> io::Result<bool> {
        let mut read = |count: usize| {
            let mut bytes = vec![0; count];
            client.read_exact(&mut bytes).map(|()| bytes)
        };
        let methods = read(1)?[0];
        read(methods.into())?;
        client.write_all(&[5, 0])?;
        let mut read = |count: usize| {
            let mut bytes = vec![0; count];
            client.read_exact(&mut bytes).map(|()| bytes)
        };
        let host = match read(4)?[3] {
            1 => read(4)?.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
            _ => {
                let length = read(1)?[0];
                String::from_utf8_lossy(&read(length.into())?).into_owned()
            }
        };
        let port = read(2)?;
        let port = u16::from_be_bytes([port[0], port[1]]);
        self.asked.lock().unwrap().push(format!("{host}:{port}"));
        let passed = self.mode() == Mode::Pass;
        // 2: not allowed.
        client.write_all(&[5, if passed { 0 } else { 2 }, 0, 1, 0, 0, 0, 0, 0, 0])?;
        Ok(passed)
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to).map(drop);
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    copied
}
