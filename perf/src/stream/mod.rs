//! Traffic by AF_XDP sockets of our own: a generator that any device can have,
//! since it needs nothing of the driver or of the other end, and a sink that
//! looks at every packet.
//!
//! ```text
//! Stream     what is sent: frames in turn, or as a capture has them
//! Sender     sends it at fixed times         Sink   judges what arrives
//! drive      both at once -> Sent, Seen
//! ```
//!
//! Frames and what is told of them are those of
//! [`tieline_dataplane::xsk::traffic`], whose programs in the kernel are quicker
//! and take fewer kinds of frames. Packet `n` is due at a time that is fixed in
//! advance and that it carries; latency counts from then until the sink has it
//! in hand, so that what waits behind a stall is charged for it (no coordinated
//! omission). Every packet of a run is known by its number: loss and
//! duplicates are exact, and order is judged within a flow.
//!
//! Where there is a CPU for each, generator and sink run on threads of their
//! own. On a machine with two CPUs they take turns in one thread: two that poll
//! on one CPU would each stand still for a time slice of the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tieline_dataplane::xsk::traffic::{Run, Seen, Sent};

use crate::bed::{Cpus, pin};
use crate::flows::{self, LEAST, Load};

mod replay;
mod rig;
mod sender;
mod sink;
mod template;

pub(crate) use replay::{Capture, Record};
pub(crate) use rig::{Shape, StreamRig};
pub(crate) use sender::Sender;
pub(crate) use sink::Sink;
pub(crate) use template::{Stamp, Template};

/// How a run's packets are spread over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    pub(crate) run: Run,
    /// Packets that are due at the same time; the rate holds over many.
    pub(crate) burst: u32,
}

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) templates: Vec<Template>,
    pub(crate) order: Order,
}

/// Which packet is next.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Templates and flows take turns.
    Turns { flows: u32 },
    /// As a capture has it, over and over.
    Recorded { records: &'static [Record], flows: u32 },
}

/// Of twelve packets seven are small, four middling and one large: the simple
/// IMIX, spread out. Sizes are without check sequence; the largest is what fits
/// into the tunnel.
const IMIX: [usize; 12] = [64, 64, 590, 64, 64, 590, 64, 590, 64, 64, 590, 1464];

impl Stream {
    /// Frames of one size.
    pub(crate) fn plain(load: Load, to: [u8; 6]) -> Self {
        Self::of(vec![Template::new(&flows::outgoing(load, to))], load.flows)
    }

    /// Frames of one size with IPv6.
    pub(crate) fn v6(load: Load, to: [u8; 6]) -> Self {
        Self::of(vec![Template::new(&flows::outgoing_v6(load, to))], load.flows)
    }

    /// A mix of sizes.
    pub(crate) fn imix(flows: u32, to: [u8; 6]) -> Self {
        let template = |size| Template::new(&flows::outgoing(Load { flows, size }, to));
        Self::of(IMIX.into_iter().map(template).collect(), flows)
    }

    /// The lengths, flows and times of a capture.
    pub(crate) fn replay(capture: &'static Capture, to: [u8; 6]) -> Self {
        let template = |kind: &replay::Kind| {
            let load = Load { flows: 1, size: kind.size };
            let config = if kind.v6 { flows::outgoing_v6 } else { flows::outgoing };
            Template::new(&config(load, to))
        };
        Self {
            templates: capture.kinds.iter().map(template).collect(),
            order: Order::Recorded { records: &capture.records, flows: capture.flows },
        }
    }

    /// What the far end sends back of the same flows.
    pub(crate) fn answers(&self, v4: bool, v6: bool) -> Self {
        let load = Load { flows: self.flows().next_power_of_two(), size: LEAST };
        let both = [
            v4.then(|| Template::new(&flows::answers(load))),
            v6.then(|| Template::new(&flows::answers_v6(load))),
        ];
        Self::of(both.into_iter().flatten().collect(), load.flows)
    }

    fn of(templates: Vec<Template>, flows: u32) -> Self {
        Self { templates, order: Order::Turns { flows } }
    }

    /// The template of a packet.
    pub(crate) fn template(&self, count: u64) -> usize {
        match &self.order {
            Order::Turns { .. } => (count % self.templates.len() as u64) as usize,
            Order::Recorded { records, .. } => {
                let at = (count % records.len() as u64) as usize;
                records[at].kind as usize
            }
        }
    }

    /// The flow of a packet.
    pub(crate) fn flow(&self, count: u64, first: u32) -> u32 {
        match &self.order {
            Order::Turns { flows } => ((count + u64::from(first)) % u64::from(*flows)) as u32,
            Order::Recorded { records, .. } => {
                let at = (count % records.len() as u64) as usize;
                records[at].flow
            }
        }
    }

    /// Number of flows.
    pub(crate) fn flows(&self) -> u32 {
        match self.order {
            Order::Turns { flows } | Order::Recorded { flows, .. } => flows,
        }
    }

    /// Packets of a capture, if it is one.
    pub(crate) fn recorded(&self) -> Option<&'static [Record]> {
        match self.order {
            Order::Turns { .. } => None,
            Order::Recorded { records, .. } => Some(records),
        }
    }

    /// When a packet is due, in nanoseconds from the start; `None`: at once. A
    /// capture is stretched or shortened to the rate.
    pub(crate) fn due_ns(&self, count: u64, pace: &Pace) -> Option<f64> {
        let interval = 1e9 / pace.run.rate?.max(1.0);
        match self.order {
            Order::Turns { .. } => {
                let burst = u64::from(pace.burst.max(1));
                Some((count / burst * burst) as f64 * interval)
            }
            Order::Recorded { records, .. } => {
                let len = records.len() as u64;
                let round = (count / len * len) as f64;
                Some((round + records[(count % len) as usize].at * len as f64) * interval)
            }
        }
    }
}

/// How long nothing arrives at the end of a run until what is missing is lost.
const SETTLE: Duration = Duration::from_millis(100);
/// Time from the call to the first packet, in nanoseconds.
const LEAD_NS: u64 = 1_000_000;

/// One run: everything sent, and judged where it arrives.
pub(crate) fn drive(sender: &mut Sender, sink: &mut Sink, pace: Pace, cpus: Cpus) -> (Sent, Seen) {
    sink.begin(&pace);
    let start = tieline_dataplane::xsk::hint::monotonic_ns() + LEAD_NS;
    pin(cpus.traffic);
    sender.begin(pace, start);
    if cpus.sink == cpus.traffic {
        while !sender.step() {
            sink.step();
        }
        let mut quiet = Instant::now();
        while !sink.has_all() && quiet.elapsed() < SETTLE {
            sender.reclaim();
            if sink.step() > 0 {
                quiet = Instant::now();
            }
        }
    } else {
        let sent = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let judging = scope.spawn(|| {
                pin(cpus.sink);
                let mut quiet = Instant::now();
                while !sent.load(Ordering::Relaxed) || quiet.elapsed() < SETTLE {
                    if sink.step() > 0 {
                        quiet = Instant::now();
                    } else if sink.has_all() {
                        return;
                    }
                }
            });
            while !sender.step() {}
            sent.store(true, Ordering::Relaxed);
            while !judging.is_finished() {
                sender.reclaim();
            }
        });
    }
    (sender.sent(), sink.seen())
}

/// Sends a run that nobody looks at.
pub(crate) fn send(sender: &mut Sender, pace: Pace) -> Sent {
    sender.begin(pace, tieline_dataplane::xsk::hint::monotonic_ns() + LEAD_NS);
    while !sender.step() {}
    let sent = Instant::now();
    while sent.elapsed() < Duration::from_millis(30) {
        sender.reclaim();
    }
    sender.sent()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        run: Run { tag: 1, packets: 10, rate: Some(1e6), first_flow: 0, batch: 16 },
        burst: 1,
    };

    #[test]
    fn a_mix_has_seven_small_four_middling_and_one_large() {
        let stream = Stream::imix(64, flows::D0);
        let mut sizes: Vec<usize> =
            (0..12).map(|count| stream.templates[stream.template(count)].len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [[64; 7].as_slice(), &[590; 4], &[1464]].concat());
        assert_eq!((stream.flow(65, 0), stream.flow(0, 7)), (1, 7));
    }

    #[test]
    fn bursts_are_due_together_and_keep_the_rate() {
        let stream = Stream::plain(Load { flows: 1, size: 64 }, flows::D0);
        let due = |count, burst| stream.due_ns(count, &Pace { burst, ..PACE }).unwrap();
        assert_eq!([0, 1, 5].map(|count| due(count, 1)), [0.0, 1000.0, 5000.0]);
        assert_eq!([0, 3, 4, 7, 8].map(|count| due(count, 4)), [0.0, 0.0, 4000.0, 4000.0, 8000.0]);
        let flood = Pace { run: Run { rate: None, ..PACE.run }, ..PACE };
        assert_eq!(stream.due_ns(3, &flood), None);
    }
}
