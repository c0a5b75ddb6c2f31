//! Sockets over veth pairs.

mod support;

use std::collections::BTreeSet;

use support::*;
use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::socket::Mode;

/// Frames come in on one veth and go out on the other with 14 bytes pushed
/// before them, without being moved, and afterwards no chunk is missing.
fn forward(mode: Mode) {
    in_namespace(move || {
        let (a0, a1) = veth("a0", "a1");
        let (b0, b1) = veth("b0", "b1");
        let mut area = Area::new(512, 2048).unwrap();
        let mut a = Tap::open(&mut area, a1, mode);
        let mut b = Tap::open(&mut area, b0, mode);
        assert_eq!((a.socket.mode(), b.socket.mode()), (mode, mode));
        let (mut source, mut sink) = (Injector::open(a0), Injector::open(b1));

        let mut arrived = BTreeSet::new();
        for round in 0..8 {
            let numbers = round * 16..(round + 1) * 16;
            numbers.clone().for_each(|number| source.send(&numbered(number)));
            let mut frames: Vec<Descriptor> = Vec::new();
            eventually("16 frames on a1", || {
                a.socket.receive(&mut area, 64, |frame| frames.push(frame));
                frames.len() == 16
            });
            for frame in &mut frames {
                assert_eq!(frame.len, 60);
                let place = area.bytes(frame.chunk, frame.head, frame.len).as_ptr();
                frame.head -= 14;
                frame.len += 14;
                let pushed = area.bytes_mut(frame.chunk, frame.head, frame.len);
                assert_eq!(pushed[14..].as_ptr(), place);
                pushed[..14].copy_from_slice(&numbered(0)[..14]);
            }
            assert_eq!(b.socket.send(&mut area, frames.drain(..)), 16);
            b.socket.wake();
            eventually("16 frames on b1", || {
                for frame in sink.received() {
                    assert_eq!(frame.len(), 74);
                    assert_eq!(frame[14..28], numbered(0)[..14]);
                    arrived.insert(frame[73]);
                }
                arrived.len() == usize::from(numbers.end)
            });
            eventually("16 completions", || {
                b.socket.reclaim(&mut area);
                b.socket.statistics().sent == u64::from(numbers.end)
            });
            a.socket.refill(&mut area);
        }

        let (a_counts, b_counts) = (a.socket.statistics(), b.socket.statistics());
        assert_eq!((a_counts.received, a_counts.receive_dropped), (128, 0));
        assert_eq!((b_counts.sent, b_counts.refused, b_counts.transmit_invalid), (128, 0, 0));
        assert!(area.lent() > 0, "fill rings are stocked");
        let lent = area.lent();
        assert_eq!(a.socket.close(&mut area) + b.socket.close(&mut area), lent);
        assert_eq!((area.free(), area.held(), area.lent()), (512, 0, 0));
    });
}

#[test]
fn frames_cross_two_sockets_in_place_in_native_copy_mode() {
    forward(Mode::NativeCopy);
}

#[test]
fn frames_cross_two_sockets_in_place_in_generic_mode() {
    forward(Mode::Generic);
}
