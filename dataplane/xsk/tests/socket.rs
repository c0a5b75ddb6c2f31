//! Sockets over veth pairs.

mod support;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use support::*;
use tieline_xsk::area::{Area, Descriptor};
use tieline_xsk::filter::{Filter, FilterConfig, Link};
use tieline_xsk::generator::{Generator, GeneratorError, Sink, Vary};
use tieline_xsk::hint;
use tieline_xsk::socket::{Mode, Socket, SocketConfig, SocketError};

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

/// Two queues of a device share the memory: what comes by either leaves by the
/// other in place, and each lasts without the other.
#[test]
fn queues_of_a_device_share_memory() {
    in_namespace(|| {
        let (a0, a1) = veth_of(2, "a0", "a1");
        let mut ends: Vec<_> = [a0, a1].into_iter().map(Ends::open).collect();
        let mut near = ends.pop().unwrap();
        let mut far = ends.pop().unwrap();
        for (from, to) in [(0, 1), (1, 0)] {
            far.send(from, &numbered(from as u8));
            let frame = near.receive(from);
            assert_eq!(near.sockets[to].send(&mut near.area, [frame].into_iter()), 1);
            near.sockets[to].wake();
            let back = far.receive(to);
            assert_eq!(take(&mut far.area, back), numbered(from as u8));
            eventually("the chunk is free again", || {
                near.sockets[to].reclaim(&mut near.area);
                near.sockets[to].statistics().sent == 1
            });
        }
        let other = Area::new(64, 2048).unwrap();
        let error = near.sockets[0].beside(&other, 0, &small_rings()).unwrap_err();
        assert!(matches!(error, SocketError::OtherArea), "{error}");
        let error = near.sockets[0].beside(&near.area, 1, &small_rings()).unwrap_err();
        assert!(matches!(error, SocketError::Busy { queue: 1, .. }), "{error}");
        let error = near.sockets[0].beside(&near.area, 2, &small_rings()).unwrap_err();
        assert!(matches!(error, SocketError::Mode { queue: 2, .. }), "{error}");

        // The one that registered the memory goes first.
        let lent = near.area.lent();
        let first = near.sockets.remove(0);
        let returned = first.close(&mut near.area);
        assert!(returned > 0 && returned < lent, "{returned} of {lent}");
        far.send(1, &numbered(7));
        let frame = near.receive(0);
        assert_eq!(take(&mut near.area, frame), numbered(7));
        let second = near.sockets.remove(0);
        second.close(&mut near.area);
        assert_eq!(near.area.free(), near.area.chunks());
    });
}

/// A socket for each of two queues of a device.
struct Ends {
    area: Area,
    sockets: Vec<Socket>,
    _filter: Filter,
    _link: Link,
}

impl Ends {
    fn open(ifindex: u32) -> Self {
        let mode = Mode::NativeCopy;
        let mut area = Area::new(512, 2048).unwrap();
        let mut filter = Filter::gateway(&FilterConfig { queues: 2, ..CONFIG }).unwrap();
        let link = filter.attach(ifindex, mode.native()).unwrap();
        let first = Socket::bind(&area, ifindex, 0, mode, &small_rings()).unwrap();
        let second = first.beside(&area, 1, &small_rings()).unwrap();
        assert_eq!((second.mode(), second.queue()), (mode, (ifindex, 1)));
        let mut sockets = vec![first, second];
        for (queue, socket) in (0..).zip(&mut sockets) {
            filter.set_socket(queue, socket).unwrap();
            filter.heartbeat(queue).beat(hint::monotonic_ns());
            socket.refill(&mut area);
        }
        Self { area, sockets, _filter: filter, _link: link }
    }

    fn send(&mut self, at: usize, frame: &[u8]) {
        let frame = put(&mut self.area, frame);
        assert_eq!(self.sockets[at].send(&mut self.area, [frame].into_iter()), 1);
        self.sockets[at].wake();
    }

    /// The next frame at this socket; the others must have none.
    fn receive(&mut self, at: usize) -> Descriptor {
        let mut frames = Vec::new();
        eventually("a frame", || {
            for (number, socket) in self.sockets.iter_mut().enumerate() {
                let received = socket.receive(&mut self.area, 8, |frame| frames.push(frame));
                assert!(number == at || received == 0, "a frame at socket {number}, not {at}");
            }
            !frames.is_empty()
        });
        assert_eq!(frames.len(), 1);
        frames[0]
    }
}

#[test]
fn zero_copy_on_a_veth_is_refused() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let bind = |mode| Socket::bind(&area, a1, 0, mode, &small_rings());
        let error = bind(Mode::NativeZeroCopy).unwrap_err();
        assert!(matches!(error, SocketError::Mode { mode: Mode::NativeZeroCopy, .. }), "{error}");
        let text = error.to_string();
        let expected = format!("device {a1} can't do native zero copy on queue 0: ");
        assert!(text.starts_with(&expected), "{text}");
        // Neither the area nor the queue is any worse for it.
        assert_eq!(bind(Mode::NativeCopy).unwrap().mode(), Mode::NativeCopy);
    });
}

#[test]
fn queues_and_devices_that_are_not_there_are_refused() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let area = Area::new(64, 2048).unwrap();
        let bind = |ifindex, queue| {
            Socket::bind(&area, ifindex, queue, Mode::NativeCopy, &small_rings()).unwrap_err()
        };
        assert!(matches!(bind(a1, 7), SocketError::Mode { queue: 7, .. }));
        assert!(matches!(bind(9999, 0), SocketError::NoDevice { ifindex: 9999 }));
        let odd = SocketConfig { fill: 100, ..small_rings() };
        let error = Socket::bind(&area, a1, 0, Mode::NativeCopy, &odd).unwrap_err();
        assert!(matches!(error, SocketError::RingSize { size: 100 }), "{error}");
    });
}

#[test]
fn a_queue_with_a_socket_is_busy_until_that_is_closed() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let mut area = Area::new(64, 2048).unwrap();
        let bind = |area: &Area| Socket::bind(area, a1, 0, Mode::NativeCopy, &small_rings());
        let first = bind(&area).unwrap();
        let error = bind(&area).unwrap_err();
        assert!(matches!(error, SocketError::Busy { .. }), "{error}");
        first.close(&mut area);
        bind(&area).unwrap();
        // Closed by dropping: the kernel takes its time, which bind waits for.
        bind(&area).unwrap();
    });
}

#[test]
fn frames_that_can_not_be_sent_are_refused_and_freed() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let mut area = Area::new(128, 2048).unwrap();
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let free = area.free();
        let mut chunk = || area.allocate().unwrap();
        let (short, outside, twice) = (chunk(), chunk(), chunk());
        let frames = [
            Descriptor { chunk: short, head: 256, len: 13 },
            Descriptor { chunk: outside, head: 2000, len: 60 },
            Descriptor { chunk: twice, head: 256, len: 60 },
            Descriptor { chunk: twice, head: 256, len: 60 },
            Descriptor { chunk: u32::MAX, head: 256, len: 60 },
        ];
        assert_eq!(tap.socket.send(&mut area, frames.into_iter()), 5);
        tap.socket.wake();
        eventually("one completion", || {
            tap.socket.reclaim(&mut area);
            tap.socket.statistics().sent == 1
        });
        assert_eq!(tap.socket.statistics().refused, 4);
        assert_eq!((area.free(), area.held()), (free, 0));
    });
}

#[test]
fn a_full_transmit_ring_leaves_the_rest_to_the_worker() {
    in_namespace(|| {
        let (_, a1) = veth("a0", "a1");
        let mut area = Area::new(256, 2048).unwrap();
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let frames: Vec<_> = (0..100).map(|number| put(&mut area, &numbered(number))).collect();
        let taken = tap.socket.send(&mut area, frames.iter().copied());
        assert_eq!((taken, area.held()), (64, 36), "the ring has 64 slots");
        assert_eq!(tap.socket.send(&mut area, frames[64..].iter().copied()), 0);
        tap.socket.wake();
        tap.socket.reclaim(&mut area);
        assert_eq!(tap.socket.send(&mut area, frames[64..].iter().copied()), 36);
        tap.socket.wake();
        tap.socket.reclaim(&mut area);
        assert_eq!((tap.socket.statistics().sent, area.held()), (100, 0));
    });
}

#[test]
fn a_receive_ring_that_overflows_is_counted_and_recovers() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut area = Area::new(512, 2048).unwrap();
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let mut source = Injector::open(a0);
        (0..100).for_each(|number| source.send(&numbered(number)));
        // 64 fit into the fill ring.
        eventually("36 drops", || tap.socket.statistics().receive_dropped == 36);
        let mut frames = Vec::new();
        assert_eq!(tap.socket.receive(&mut area, 100, |frame| frames.push(frame)), 64);
        assert_eq!(frames.drain(..).map(|frame| take(&mut area, frame).len()).sum::<usize>(), 3840);
        tap.socket.refill(&mut area);
        source.send(&numbered(7));
        eventually("a frame after the overflow", || {
            tap.socket.receive(&mut area, 1, |frame| frames.push(frame)) == 1
        });
    });
}

#[test]
fn an_area_that_is_not_the_sockets_is_left_alone() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let (mut area, mut other) = (Area::new(64, 2048).unwrap(), Area::new(64, 2048).unwrap());
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        Injector::open(a0).send(&numbered(1));
        let frame = put(&mut other, &numbered(2));
        assert_eq!(tap.socket.send(&mut other, [frame].into_iter()), 0);
        tap.socket.reclaim(&mut other);
        tap.socket.refill(&mut other);
        assert_eq!(tap.socket.receive(&mut other, 64, |_| panic!("a frame")), 0);
        assert_eq!((other.free(), other.held()), (63, 1));
        let mut frames = Vec::new();
        eventually("the frame, with the right area", || {
            tap.socket.receive(&mut area, 64, |frame| frames.push(frame)) == 1
        });
        assert_eq!(take(&mut area, frames[0]), numbered(1));
    });
}

/// The chunks of a socket that was dropped stay lent, for the kernel may still
/// write to them; the memory outlives its area until the socket is closed.
#[test]
fn nothing_is_given_back_silently() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut area = Area::new(128, 2048).unwrap();
        let tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        drop(tap);
        assert_eq!((area.free(), area.held(), area.lent()), (64, 0, 64));
        let tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        drop(area);
        let mut source = Injector::open(a0);
        (0..64).for_each(|number| source.send(&numbered(number)));
        let mut other = Area::new(1, 2048).unwrap();
        assert_eq!(tap.socket.close(&mut other), 0);
    });
}

fn send_one(tap: &mut Tap, area: &mut Area) {
    if area.free() > 0 {
        let frame = put(area, &numbered(1));
        tap.socket.send(area, [frame].into_iter());
    }
    tap.socket.wake();
    tap.socket.reclaim(area);
    tap.socket.refill(area);
    tap.socket.receive(area, 64, |_| {});
}

#[test]
fn a_device_that_goes_down_is_noted_and_comes_back() {
    in_namespace(|| {
        for mode in [Mode::NativeCopy, Mode::Generic] {
            let (a0, a1) = veth("a0", "a1");
            let mut area = Area::new(512, 2048).unwrap();
            let mut tap = Tap::open(&mut area, a1, mode);
            assert!(!tap.socket.is_down());
            ip("link set a1 down");
            (0..10).for_each(|_| send_one(&mut tap, &mut area));
            assert!(tap.socket.is_down(), "{mode}: {:?}", tap.socket.fault());
            let mut sink = Injector::open(a0);
            ip("link set a1 up");
            let mut arrived = 0;
            eventually("what waited and more", || {
                send_one(&mut tap, &mut area);
                arrived += sink.received().len();
                arrived > 10
            });
            assert!(!tap.socket.is_down(), "{mode}: {:?}", tap.socket.fault());
            tap.socket.close(&mut area);
            ip("link del a0");
        }
    });
}

#[test]
fn a_device_that_vanishes_is_noted() {
    in_namespace(|| {
        for mode in [Mode::NativeCopy, Mode::Generic] {
            let (_, a1) = veth("a0", "a1");
            let mut area = Area::new(512, 2048).unwrap();
            let mut tap = Tap::open(&mut area, a1, mode);
            ip("link del a0");
            assert!(tap.socket.is_down(), "{mode}: without a frame");
            (0..10).for_each(|_| send_one(&mut tap, &mut area));
            assert!(tap.socket.is_down(), "{mode}: {:?}", tap.socket.fault());
            tap.filter.heartbeat(0).beat(0);
            assert!(tap.socket.close(&mut area) > 0);
            assert_eq!(area.lent(), 0);
        }
    });
}

/// Descriptors can be slept on: a frame wakes a poller.
#[test]
fn a_frame_wakes_a_sleeper() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut area = Area::new(128, 2048).unwrap();
        let tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let mut poll =
            libc::pollfd { fd: tap.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut ready = |timeout| {
            // SAFETY: one pollfd, valid for reading and writing.
            unsafe { libc::poll(&raw mut poll, 1, timeout) }
        };
        assert_eq!(ready(0), 0);
        Injector::open(a0).send(&numbered(1));
        assert_eq!(ready(10_000), 1);
    });
}

/// Many frames through one system call after another, from the kernel's own
/// generator into a counting sink.
#[test]
fn generated_frames_are_counted_at_the_far_end() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let sink = Sink::attach(a1, true).unwrap();
        let generator = Generator::new(a0, Some(Vary { at: 30, values: 16 })).unwrap();
        generator.send(&numbered(0), 1000).unwrap();
        eventually("a thousand frames", || sink.frames() == 1000);
        let error = Generator::new(a0, Some(Vary { at: 30, values: 12 })).unwrap_err();
        assert!(matches!(error, GeneratorError::Vary { values: 12, .. }), "{error}");
    });
}

#[test]
fn generated_frames_vary_where_they_are_told_to() {
    in_namespace(|| {
        let (a0, a1) = veth("a0", "a1");
        let mut area = Area::new(256, 2048).unwrap();
        let mut tap = Tap::open(&mut area, a1, Mode::NativeCopy);
        let generator = Generator::new(a0, Some(Vary { at: 30, values: 4 })).unwrap();
        generator.send(&numbered(9), 60).unwrap();
        let (mut seen, mut count) = (BTreeSet::new(), 0);
        eventually("60 frames", || {
            let mut frames = Vec::new();
            count += tap.socket.receive(&mut area, 64, |frame| frames.push(frame));
            for frame in frames {
                let mut bytes = take(&mut area, frame);
                seen.insert(u16::from_ne_bytes([bytes[30], bytes[31]]));
                bytes[30..32].copy_from_slice(&[9, 9]);
                assert_eq!(bytes, numbered(9));
            }
            count == 60
        });
        assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
    });
}
