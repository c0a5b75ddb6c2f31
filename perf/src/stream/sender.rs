//! The generator's side.

use std::time::Duration;

use anyhow::Context;
use tieline_dataplane::xsk::area::{Area, Descriptor, HEADROOM};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig};
use tieline_dataplane::xsk::traffic::{COUNT_BITS, LATE_NS, Run, Sent};
use tieline_dataplane::xsk::{device, hint, memlock};

use super::{Pace, Stamp, Stream};

/// Frames in the transmit ring.
const RING: u32 = 512;

/// Sends a stream out of queue 0 of a device.
pub(crate) struct Sender {
    area: Area,
    socket: Socket,
    stream: Stream,
    /// Which template each chunk holds a packet of.
    holds: Vec<Option<usize>>,
    /// Made, and not taken by the socket yet.
    waiting: Vec<Descriptor>,
    pace: Pace,
    start_ns: u64,
    made: u64,
    sent: Sent,
}

impl Sender {
    /// A sender on a device of the calling thread's namespace.
    pub(crate) fn open(name: &str, stream: Stream) -> anyhow::Result<Self> {
        // Where it can't be raised, registering memory says so.
        let _ = memlock::raise();
        let area = Area::new(2 * RING, 2048)?;
        let rings = SocketConfig { fill: 2, receive: 2, transmit: RING, completion: RING };
        let ifindex = device::index(name)?;
        let bind = |mode| Socket::bind(&area, ifindex, 0, mode, &rings);
        let socket = bind(Mode::NativeZeroCopy)
            .or_else(|_| bind(Mode::NativeCopy))
            .with_context(|| format!("generator's socket on {name}"))?;
        let holds = vec![None; area.chunks() as usize];
        let run = Run { tag: 0, packets: 0, rate: None, first_flow: 0, batch: 1 };
        Ok(Self {
            area,
            socket,
            stream,
            holds,
            waiting: Vec::with_capacity(RING as usize),
            pace: Pace { run, burst: 1 },
            start_ns: 0,
            made: 0,
            sent: Sent::default(),
        })
    }

    /// Makes a run ready, whose first packet is due at a time.
    pub(crate) fn begin(&mut self, pace: Pace, start_ns: u64) {
        self.pace = pace;
        self.start_ns = start_ns;
        self.made = 0;
        self.sent = Sent::default();
    }

    /// Sends what is due, a batch at most. `true` when all packets are with the
    /// device.
    pub(crate) fn step(&mut self) -> bool {
        self.socket.reclaim(&mut self.area);
        let now = hint::monotonic_ns();
        let Run { packets, batch, .. } = self.pace.run;
        while self.waiting.len() < batch as usize && self.made < packets {
            let due_ns = match self.stream.due_ns(self.made, &self.pace) {
                Some(after) => self.start_ns + after as u64,
                None => now,
            };
            if due_ns > now || !self.make(due_ns) {
                break;
            }
            let behind = now - due_ns;
            self.sent.latest = self.sent.latest.max(Duration::from_nanos(behind));
            self.sent.late += u64::from(behind >= u64::from(LATE_NS));
        }
        let taken = self.socket.send(&mut self.area, self.waiting.iter().copied());
        self.waiting.drain(..taken);
        self.sent.packets += taken as u64;
        self.socket.wake();
        self.sent.elapsed = Duration::from_nanos(now.saturating_sub(self.start_ns));
        self.sent.packets == packets
    }

    fn make(&mut self, due_ns: u64) -> bool {
        let Some(chunk) = self.area.allocate() else { return false };
        let Run { tag, first_flow, .. } = self.pace.run;
        let number = u64::from(tag) << COUNT_BITS | self.made;
        let flow = self.stream.flow(self.made, first_flow);
        let at = self.stream.template(self.made);
        let template = &self.stream.templates[at];
        let len = template.len() as u32;
        let bytes = self.area.bytes_mut(chunk, HEADROOM, len);
        if self.holds[chunk as usize] != Some(at) {
            bytes.copy_from_slice(template.bytes());
            self.holds[chunk as usize] = Some(at);
        }
        template.fill(bytes, Stamp { number, due_ns, flow });
        self.waiting.push(Descriptor { chunk, head: HEADROOM, len });
        self.made += 1;
        true
    }

    /// Takes back what has been sent, and sends what still waits.
    pub(crate) fn reclaim(&mut self) {
        self.socket.reclaim(&mut self.area);
        self.socket.wake();
    }

    /// What was sent since [`begin`](Self::begin).
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }
}
