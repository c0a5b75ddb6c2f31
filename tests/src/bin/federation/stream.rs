//! A steady stream of numbered packets from the pod here to the one there, and
//! when each arrived.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::setup::Setup;

/// Nanoseconds of Unix time.
pub(crate) type UnixNanos = i64;

const PORT: u16 = 7000;
/// How long packets may be on their way.
const LAST: Duration = Duration::from_millis(500);

/// A running stream.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<usize>,
    receiver: JoinHandle<Vec<UnixNanos>>,
}

/// What became of a stream.
pub(crate) struct Report {
    /// Packets sent.
    pub(crate) sent: usize,
    /// When packets arrived, one each, ascending.
    pub(crate) arrivals: Vec<UnixNanos>,
}

impl Stream {
    /// Starts to send one packet every `gap`.
    pub(crate) fn start(setup: &Setup, gap: Duration) -> Self {
        let (here, there) = (setup.client().netns.clone(), setup.server().netns.clone());
        let to = (setup.server().v4, PORT);
        let socket = there.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
        socket.set_read_timeout(Some(LAST)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sending, receiving) = (stop.clone(), stop.clone());
        let receiver = std::thread::spawn(move || receive(&socket, &receiving));
        let socket = here.run(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
        socket.connect(to).unwrap();
        let sender = std::thread::spawn(move || send(&socket, gap, &sending));
        Self { stop, sender, receiver }
    }

    /// Ends it, when the last packets have arrived.
    pub(crate) fn end(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        Report { sent, arrivals: self.receiver.join().unwrap() }
    }
}

fn send(socket: &UdpSocket, gap: Duration, stop: &AtomicBool) -> usize {
    let (begun, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        socket.send(&u64::to_be_bytes(sent as u64)).unwrap();
        sent += 1;
        std::thread::sleep((begun + gap * sent as u32).saturating_duration_since(Instant::now()));
    }
    sent
}

/// Receives until nothing has come for a while after the end.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<UnixNanos> {
    let (mut arrivals, mut packet) = (Vec::new(), [0; 8]);
    loop {
        match socket.recv(&mut packet) {
            Ok(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                arrivals.push(now.as_nanos() as UnixNanos);
            }
            Err(_) if stop.load(Ordering::Relaxed) => return arrivals,
            Err(_) => {}
        }
    }
}
