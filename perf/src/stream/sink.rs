//! The far end's side.

use std::time::Duration;

use anyhow::Context;
use tieline_dataplane::wire::checksum;
use tieline_dataplane::xsk::area::Area;
use tieline_dataplane::xsk::filter::{Filter, FilterConfig, Link};
use tieline_dataplane::xsk::socket::{Mode, Socket, SocketConfig};
use tieline_dataplane::xsk::traffic::{COUNT_BITS, Histogram, Seen};
use tieline_dataplane::xsk::{device, hint, memlock};

use crate::flows::{
    self, ROUTER_UNDERLAY, ROUTER_UNDERLAY_V6, SINK_UNDERLAY, SINK_UNDERLAY_V6, VXLAN_PORT,
};

use super::template::{checksum_holds, stamp_at};
use super::{Pace, Stamp, Stream, Template};

const RING: u32 = 2048;
/// Frames that are looked at in one step.
const BATCH: u32 = 64;
/// A sink stands still between runs; its program goes on handing frames to it.
const LIVENESS: Duration = Duration::from_secs(24 * 3600);

/// Takes everything that queue 0 of a device receives, and judges it.
pub(crate) struct Sink {
    area: Area,
    socket: Socket,
    filter: Filter,
    _link: Link,
    judge: Judge,
}

impl Sink {
    /// A sink on a device of the calling thread's namespace, for the packets of
    /// a stream, in VXLAN or as they were sent.
    pub(crate) fn open(name: &str, stream: Stream, in_tunnel: bool) -> anyhow::Result<Self> {
        let _ = memlock::raise();
        let area = Area::new(2 * RING, 2048)?;
        let rings = SocketConfig { fill: RING, receive: RING, transmit: 2, completion: 2 };
        let ifindex = device::index(name)?;
        let config = FilterConfig { port: VXLAN_PORT, liveness: LIVENESS, queues: 1 };
        let mut filter = Filter::gateway(&config)?;
        let link = filter.attach(ifindex, true).with_context(|| format!("sink on {name}"))?;
        let bind = |mode| Socket::bind(&area, ifindex, 0, mode, &rings);
        let socket = bind(Mode::NativeZeroCopy)
            .or_else(|_| bind(Mode::NativeCopy))
            .with_context(|| format!("sink's socket on {name}"))?;
        filter.set_socket(0, &socket)?;
        Ok(Self { area, socket, filter, _link: link, judge: Judge::new(stream, in_tunnel) })
    }

    /// Forgets everything and judges the packets of one run from now on.
    pub(crate) fn begin(&mut self, pace: &Pace) {
        // What is left of the last run.
        while self.step() > 0 {}
        self.filter.heartbeat(0).beat(hint::monotonic_ns());
        self.judge.begin(pace);
    }

    /// Looks at what has arrived. Returns the number of frames.
    pub(crate) fn step(&mut self) -> usize {
        self.socket.refill(&mut self.area);
        let mut frames = [None; BATCH as usize];
        let mut places = frames.iter_mut();
        let received = self.socket.receive(&mut self.area, BATCH, |frame| {
            if let Some(place) = places.next() {
                *place = Some(frame);
            }
        });
        if received == 0 {
            return 0;
        }
        // The time at which they are in hand: all of a batch at once.
        let now = hint::monotonic_ns();
        for frame in frames.into_iter().flatten() {
            self.judge.look(self.area.bytes(frame.chunk, frame.head, frame.len), now);
            self.area.release(frame.chunk);
        }
        received
    }

    /// Whether every packet of the run has come.
    pub(crate) fn has_all(&self) -> bool {
        self.judge.seen.received == self.judge.packets
    }

    /// All that was seen.
    pub(crate) fn seen(&self) -> Seen {
        self.judge.seen()
    }
}

/// What is known of a run.
struct Judge {
    stream: Stream,
    in_tunnel: bool,
    /// A packet of each template, to compare with.
    made: Vec<Vec<u8>>,
    tag: u64,
    first_flow: u32,
    packets: u64,
    /// A bit for each packet that has come.
    came: Vec<u64>,
    /// The count behind the last packet of each flow.
    next: Vec<u64>,
    /// The count behind the last packet of all.
    end: u64,
    latencies: Histogram,
    /// When the last packet came.
    last_ns: Option<u64>,
    seen: Seen,
}

impl Judge {
    fn new(stream: Stream, in_tunnel: bool) -> Self {
        let made = stream.templates.iter().map(|template| template.bytes().to_vec()).collect();
        Self {
            next: vec![0; stream.flows() as usize],
            stream,
            in_tunnel,
            made,
            tag: 0,
            first_flow: 0,
            packets: 0,
            came: Vec::new(),
            end: 0,
            latencies: Histogram::default(),
            last_ns: None,
            seen: Seen::default(),
        }
    }

    fn begin(&mut self, pace: &Pace) {
        self.tag = u64::from(pace.run.tag);
        self.first_flow = pace.run.first_flow;
        self.packets = pace.run.packets;
        self.came = vec![0; pace.run.packets.div_ceil(64) as usize];
        self.next.fill(0);
        self.end = 0;
        self.latencies = Histogram::default();
        self.last_ns = None;
        self.seen = Seen::default();
    }

    fn look(&mut self, frame: &[u8], now: u64) {
        let inner = if self.in_tunnel { inside(frame) } else { Some(frame) };
        let number = inner.and_then(number_and_due);
        let (Some(inner), Some((number, due_ns))) = (inner, number) else {
            self.seen.foreign += 1;
            return;
        };
        let count = number & ((1 << COUNT_BITS) - 1);
        if number >> COUNT_BITS != self.tag || count >= self.packets {
            self.seen.foreign += 1;
            return;
        }
        let at = self.stream.template(count);
        let flow = self.stream.flow(count, self.first_flow);
        let made = &mut self.made[at];
        self.stream.templates[at].fill(made, Stamp { number, due_ns, flow });
        if !Template::matches(made, inner) {
            self.seen.corrupt += 1;
            return;
        }
        let (word, bit) = (&mut self.came[(count / 64) as usize], 1 << (count % 64));
        if *word & bit != 0 {
            self.seen.duplicated += 1;
            return;
        }
        *word |= bit;
        let next = &mut self.next[flow as usize];
        if count < *next {
            self.seen.reordered += 1;
        } else {
            *next = count + 1;
        }
        self.end = self.end.max(count + 1);
        self.seen.received += 1;
        self.latencies.record(now.saturating_sub(due_ns));
        let gap = self.last_ns.replace(now).map_or(0, |last| now.saturating_sub(last));
        self.seen.longest_gap_ns = self.seen.longest_gap_ns.max(gap);
    }

    fn seen(&self) -> Seen {
        Seen {
            missing: self.end - self.seen.received,
            longest_ns: self.latencies.longest_ns(),
            sum_ns: self.latencies.sum_ns(),
            latencies: self.latencies.buckets(),
            ..self.seen.clone()
        }
    }
}

fn number_and_due(inner: &[u8]) -> Option<(u64, u64)> {
    let at = stamp_at(inner);
    let number = inner.get(at..at + 8)?.try_into().ok()?;
    let due = inner.get(at + 8..at + 16)?.try_into().ok()?;
    Some((u64::from_ne_bytes(number), u64::from_ne_bytes(due)))
}

/// What is in a tunnel's packet of ours, all of whose headers are as they should
/// be.
fn inside(frame: &[u8]) -> Option<&[u8]> {
    let be = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let udp = match be(12)? {
        0x0800 => {
            let header: &[u8; 20] = frame.get(14..)?.first_chunk()?;
            let ends = header[12..16] == ROUTER_UNDERLAY.octets()
                && header[16..] == SINK_UNDERLAY.octets();
            let whole = usize::from(be(16)?) + 14 == frame.len();
            let ours = header[0] == 0x45 && header[9] == 17 && ends;
            (whole && ours && checksum::is_right(header)).then_some(34)?
        }
        0x86dd => {
            let ends = frame.get(22..38)? == ROUTER_UNDERLAY_V6.octets()
                && frame.get(38..54)? == SINK_UNDERLAY_V6.octets();
            let whole = usize::from(be(18)?) + 54 == frame.len();
            let ours = frame[20] == 17 && ends;
            (whole && ours && frame.len() > 62 && checksum_holds(&frame[14..])).then_some(54)?
        }
        _ => return None,
    };
    let headers = be(udp + 2)? == VXLAN_PORT
        && usize::from(be(udp + 4)?) + udp == frame.len()
        && frame.get(udp + 8..udp + 16)? == flows::vxlan();
    headers.then_some(&frame[udp + 16..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Load;
    use tieline_dataplane::xsk::traffic::Run;

    const LOAD: Load = Load { flows: 4, size: 100 };

    fn judge() -> (Judge, Stream) {
        let stream = Stream::plain(LOAD, flows::D0);
        let mut judge = Judge::new(stream.clone(), false);
        let run = Run { tag: 3, packets: 100, rate: None, first_flow: 0, batch: 16 };
        judge.begin(&Pace { run, burst: 1 });
        (judge, stream)
    }

    fn packet(stream: &Stream, number: u64, due_ns: u64) -> Vec<u8> {
        let count = number & ((1 << COUNT_BITS) - 1);
        let template = &stream.templates[0];
        let mut frame = template.bytes().to_vec();
        template.fill(&mut frame, Stamp { number, due_ns, flow: stream.flow(count, 0) });
        frame
    }

    const TAG: u64 = 3 << COUNT_BITS;

    #[test]
    fn loss_order_copies_and_damage_are_told_apart() {
        let (mut judge, stream) = judge();
        // Flow 0 has packets 0, 4, 8; 4 comes behind 8. Packet 5 is of another
        // flow, and behind nothing of its own.
        for count in [0, 1, 8, 4, 5, 5] {
            judge.look(&packet(&stream, TAG | count, 10), 60);
        }
        let mut damaged = packet(&stream, TAG | 6, 10);
        *damaged.last_mut().unwrap() ^= 1;
        judge.look(&damaged, 60);
        judge.look(&packet(&stream, 4 << COUNT_BITS, 10), 60);
        judge.look(&packet(&stream, TAG | 100, 10), 60);
        judge.look(&[0; 30], 60);
        let seen = judge.seen();
        assert_eq!((seen.received, seen.missing, seen.reordered), (5, 4, 1));
        assert_eq!((seen.duplicated, seen.corrupt, seen.foreign), (1, 1, 3));
        assert_eq!((seen.longest_ns, seen.quantile_ns(0.5)), (50, Some(50)));
    }

    #[test]
    fn only_whole_tunnels_between_the_two_nodes_are_looked_into() {
        for config in [flows::answers(LOAD), flows::answers_v6(LOAD)] {
            // Answers go the other way: with the ends exchanged they are what
            // arrives.
            let template = Template::new(&config);
            let mut frame = template.bytes().to_vec();
            template.fill(&mut frame, Stamp { number: 1, due_ns: 2, flow: 3 });
            assert!(inside(&frame).is_none());
            let (ends, half, inner) =
                if frame[12] == 8 { (26..34, 4, 50) } else { (22..54, 16, 70) };
            frame[ends].rotate_left(half);
            let found = inside(&frame).unwrap();
            assert_eq!(found.len(), LOAD.size);
            assert_eq!(number_and_due(found), Some((1, 2)));
            // Port, VNI and length.
            for at in [inner - 14, inner - 2, inner - 11] {
                let mut other = frame.clone();
                other[at] ^= 1;
                assert!(inside(&other).is_none(), "byte {at}");
            }
            for len in 0..frame.len() {
                assert!(inside(&frame[..len]).is_none(), "{len}");
            }
        }
    }
}
