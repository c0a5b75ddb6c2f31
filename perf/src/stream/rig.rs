//! A subject between a [`Sender`] and a [`Sink`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use tieline_dataplane::xsk::traffic::Run;

use crate::bed::Bed;
use crate::flows::Load;
use crate::rig::{Paced, Trial, tag};
use crate::subject::{Needs, Running, Subject};
use crate::usage;

use super::{Capture, Pace, Sender, Sink, Stream, drive, send};

/// Kinds of traffic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// One size, evenly spread.
    Plain,
    /// The same with IPv6, in a tunnel over IPv6.
    V6,
    /// A mix of sizes.
    Imix,
    /// One size, so many at a time.
    Bursts(u32),
    /// A capture's lengths, flows and times.
    Replay(&'static Capture),
}

impl Shape {
    fn families(self) -> (bool, bool) {
        match self {
            Self::Plain | Self::Imix | Self::Bursts(_) => (true, false),
            Self::V6 => (false, true),
            Self::Replay(capture) => (capture.has(false), capture.has(true)),
        }
    }

    fn stream(self, load: Load, to: [u8; 6]) -> Stream {
        match self {
            Self::Plain | Self::Bursts(_) => Stream::plain(load, to),
            Self::V6 => Stream::v6(load, to),
            Self::Imix => Stream::imix(load.flows, to),
            Self::Replay(capture) => Stream::replay(capture, to),
        }
    }

    fn burst(self) -> u32 {
        if let Self::Bursts(burst) = self { burst } else { 1 }
    }
}

/// A subject that is up, with a stream and somebody who judges it.
pub(crate) struct StreamRig<'a> {
    bed: &'a Bed,
    pub(crate) running: Box<dyn Running + 'a>,
    ends: Mutex<(Sender, Sink)>,
    shape: Shape,
}

/// Packets per second at which flows are made known.
const GENTLE: f64 = 50_000.0;

impl<'a> StreamRig<'a> {
    /// Sets a subject up, makes every flow known in both directions, and opens
    /// both ends.
    pub(crate) fn new(
        bed: &'a Bed,
        subject: &dyn Subject,
        load: Load,
        shape: Shape,
    ) -> anyhow::Result<Self> {
        let (v4, v6) = shape.families();
        if v6 {
            bed.wire_v6()?;
        }
        let stream = shape.stream(load, [0; 6]);
        let flows = stream.flows();
        let running = subject.set_up(bed, Needs { flows, v6 })?;
        let entry = running.entry();
        let stream = shape.stream(load, entry.mac);
        let mut sender = entry.netns.run(|| Sender::open(&entry.device, stream.clone()))??;
        let packets = stream.recorded().map_or(u64::from(flows), |records| records.len() as u64);
        let rate = Some(GENTLE.max(packets as f64));
        let run = Run { tag: tag(), packets, rate, first_flow: 0, batch: 16 };
        send(&mut sender, Pace { run, burst: 1 });
        if running.in_tunnel() {
            let answers = stream.answers(v4, v6);
            let packets = u64::from(answers.flows()) * 2;
            let mut back = bed.sink.run(|| Sender::open("s0", answers))??;
            let run = Run { tag: tag(), packets, rate: Some(GENTLE.max(packets as f64)), ..run };
            send(&mut back, Pace { run, burst: 1 });
        }
        let in_tunnel = running.in_tunnel();
        let sink = bed.sink.run(|| Sink::open("s0", stream, in_tunnel))??;
        Ok(Self { bed, running, ends: Mutex::new((sender, sink)), shape })
    }

    /// Sends some packets and looks whether they arrive as they should.
    ///
    /// # Errors
    /// They don't.
    pub(crate) fn verify(&self) -> anyhow::Result<()> {
        let mut trial = self.paced(10_000.0, Duration::from_millis(50))?;
        for _ in 0..3 {
            // On a machine that others use as well, some may get lost.
            if trial.loss() <= 0.05 {
                break;
            }
            trial = self.paced(10_000.0, Duration::from_millis(50))?;
        }
        let seen = &trial.seen;
        let faults = [seen.corrupt, seen.duplicated, seen.reordered];
        ensure!(
            trial.loss() <= 0.05 && faults == [0; 3],
            "of {} packets {} arrived, [damaged, twice, out of order]: {faults:?}, {} frames were \
             something else: {}",
            trial.sent.packets,
            seen.received,
            seen.foreign,
            self.running.transcript()
        );
        Ok(())
    }
}

impl Paced for StreamRig<'_> {
    fn paced(&self, rate: f64, duration: Duration) -> anyhow::Result<Trial> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, sink) = &mut *ends;
        let packets = ((rate * duration.as_secs_f64()) as u64).max(1);
        let run = Run { tag: tag(), packets, rate: Some(rate), first_flow: 0, batch: 16 };
        let used = || usage::of_router(self.bed.cpus.router, self.running.pid());
        let before = used();
        let pace = Pace { run, burst: self.shape.burst() };
        let (sent, seen) = drive(sender, sink, pace, self.bed.cpus);
        let cpu = used().since(before);
        Ok(Trial { sent, seen, cpu })
    }
}
