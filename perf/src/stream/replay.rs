//! A capture as traffic: the lengths, families, flows and times of its packets.
//!
//! Contents are ours, so that every packet can be judged: a packet becomes UDP
//! between two pods, each flow of the capture one of ours. What is too short
//! for a stamp, or does not fit into the tunnel, is made to fit, and told.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, ensure};
use tieline_dataplane::capture::Reader;
use tieline_dataplane::xsk::traffic::MOST_FLOWS;

use crate::bed::POD_MTU;
use crate::flows::{LEAST, LEAST_V6};

/// Bytes that the tunnel takes more with IPv6.
const MORE_V6: usize = 20;

/// Packets of a kind are alike but for stamp and flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) v6: bool,
    /// Bytes of the frame.
    pub(crate) size: usize,
}

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    /// Its place in [`Capture::kinds`].
    pub(crate) kind: u32,
    pub(crate) flow: u32,
    /// When, as a part of the whole capture.
    pub(crate) at: f64,
}

/// What is replayed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Capture {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) records: Vec<Record>,
    /// Number of flows.
    pub(crate) flows: u32,
    /// Packets per second, over the whole.
    pub(crate) rate: f64,
    /// Packets whose length was changed to fit.
    pub(crate) fitted: usize,
    /// Frames that are neither IPv4 nor IPv6, and are left out.
    pub(crate) others: usize,
}

impl Capture {
    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read, is no capture, or holds no IP packets.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let context = || path.display().to_string();
        let file = File::open(path).with_context(context)?;
        let reader = Reader::new(BufReader::new(file)).with_context(context)?;
        let frames: Result<Vec<_>, _> =
            reader.map(|record| record.map(|record| (record.time_ns, record.frame))).collect();
        Self::of(frames.with_context(context)?).with_context(context)
    }

    fn of(mut frames: Vec<(u64, Vec<u8>)>) -> anyhow::Result<Self> {
        frames.sort_by_key(|(time_ns, _)| *time_ns);
        let all = frames.len();
        let packets: Vec<_> = frames
            .into_iter()
            .filter_map(|(time_ns, frame)| Some((time_ns, frame.len(), ends(&frame)?)))
            .collect();
        let (Some(first), Some(last)) = (packets.first(), packets.last()) else {
            anyhow::bail!("of {all} frames none is an IP packet");
        };
        // The last packet's gap to the first of the next round is the mean one.
        let count = packets.len() as f64;
        let span = ((last.0 - first.0) as f64 * count / (count - 1.0).max(1.0)).max(1.0);
        let begin = first.0;
        let (mut kinds, mut flows) = (HashMap::new(), HashMap::new());
        let mut fitted = 0;
        let mut records = Vec::with_capacity(packets.len());
        for (time_ns, len, (v6, ends)) in packets {
            let most = POD_MTU as usize + 14 - if v6 { MORE_V6 } else { 0 };
            let size = len.clamp(if v6 { LEAST_V6 } else { LEAST }, most);
            fitted += usize::from(size != len);
            let new = kinds.len() as u32;
            let kind = *kinds.entry(Kind { v6, size }).or_insert(new);
            let new = flows.len() as u32;
            let flow = *flows.entry(ends).or_insert(new);
            records.push(Record { kind, flow, at: (time_ns - begin) as f64 / span });
        }
        let flows = flows.len() as u32;
        ensure!(flows <= MOST_FLOWS, "{flows} flows are more than the {MOST_FLOWS} there can be");
        let mut kinds: Vec<(Kind, u32)> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, at)| *at);
        Ok(Self {
            kinds: kinds.into_iter().map(|(kind, _)| kind).collect(),
            flows,
            rate: records.len() as f64 * 1e9 / span,
            fitted,
            others: all - records.len(),
            records,
        })
    }

    /// What it is, in a line.
    pub(crate) fn about(&self) -> String {
        let Self { records, flows, fitted, others, .. } = self;
        format!(
            "{} packets of {flows} flows; {fitted} were lengthened or shortened to fit, {others} \
             frames that are not IP are left out",
            records.len()
        )
    }

    /// Whether it has packets of a family.
    pub(crate) fn has(&self, v6: bool) -> bool {
        self.kinds.iter().any(|kind| kind.v6 == v6)
    }
}

/// Family, and what tells a packet's flow from others: addresses, protocol, and
/// ports where it is not a later fragment.
fn ends(frame: &[u8]) -> Option<(bool, Vec<u8>)> {
    const PORTS: [u8; 4] = [6, 17, 33, 132];
    let v6 = match frame.get(12..14)? {
        [0x08, 0x00] => false,
        [0x86, 0xdd] => true,
        _ => return None,
    };
    let packet = &frame[14..];
    let (addresses, protocol, mut payload_at) = if v6 {
        (packet.get(8..40)?, packet[6], 40)
    } else {
        (packet.get(12..20)?, packet[9], usize::from(packet[0] & 15) * 4)
    };
    let later = !v6 && u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    if later || !PORTS.contains(&protocol) {
        payload_at = packet.len();
    }
    let ports = packet.get(payload_at..payload_at + 4).unwrap_or_default();
    Some((v6, [addresses, &[protocol], ports].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::{self, Load};
    use crate::stream::{Order, Pace, Stream};
    use tieline_dataplane::xsk::traffic::Run;

    fn frame(v6: bool, size: usize, port: u16) -> Vec<u8> {
        let load = Load { flows: 1, size };
        let config = if v6 { flows::outgoing_v6 } else { flows::outgoing };
        let mut frame = config(load, flows::D0).frame;
        let port_at = if v6 { 54 } else { 34 };
        frame[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn lengths_flows_and_times_are_the_captures() {
        let mut arp = frame(false, 80, 1);
        arp[12..14].copy_from_slice(&[8, 6]);
        let short = frame(false, 62, 2)[..50].to_vec();
        let capture = Capture::of(vec![
            (1000, frame(false, 100, 1)),
            (3000, frame(true, 200, 1)),
            // Out of order in the file.
            (2000, frame(false, 100, 2)),
            (3500, arp),
            (4000, short),
        ])
        .unwrap();
        let kind = |v6, size| Kind { v6, size };
        assert_eq!(capture.kinds, [kind(false, 100), kind(true, 200), kind(false, 62)]);
        let flows: Vec<u32> = capture.records.iter().map(|record| record.flow).collect();
        assert_eq!((flows, capture.flows), (vec![0, 1, 2, 1], 3));
        assert_eq!((capture.fitted, capture.others), (1, 1));
        // Four packets, 1000 ns apart: a million a second.
        assert_eq!(capture.rate, 1e6);
        assert!(capture.has(true) && capture.has(false));
        let stream = Stream::replay(Box::leak(Box::new(capture)), flows::D0);
        assert!(matches!(stream.order, Order::Recorded { .. }));
        let run = Run { tag: 0, packets: 9, rate: Some(1e6), first_flow: 0, batch: 1 };
        let due = |count| stream.due_ns(count, &Pace { run, burst: 1 }).unwrap();
        assert_eq!([0, 1, 3, 4, 5].map(due), [0.0, 1000.0, 3000.0, 4000.0, 5000.0]);
        assert_eq!(
            [0, 2, 4].map(|count| stream.templates[stream.template(count)].len()),
            [100, 200, 100]
        );
    }

    #[test]
    fn a_capture_without_ip_is_refused() {
        assert!(Capture::of(vec![(0, vec![0; 60])]).is_err());
        assert!(Capture::of(Vec::new()).is_err());
        assert!(Capture::read(Path::new("/nowhere.pcap")).is_err());
    }
}
