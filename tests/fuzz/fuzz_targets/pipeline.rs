//! The whole packet path: frames to both ports of a node, tables that change.
//!
//! The input is a list of steps: one byte for what to do, one for the length,
//! and the bytes of a frame. Steps that name a template send a well-formed
//! frame with some of its bytes replaced, so that the fuzzer gets past the
//! outer headers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::flow::{FlowHasher, FlowTable, Timeouts};
use tieline_dataplane::frame::{HeapMemory, Memory};
use tieline_dataplane::port::memory::MemoryPort;
use tieline_dataplane::publish::Publisher;
use tieline_dataplane::wire::packet::Packet;
use tieline_dataplane::worker::{Idle, Worker, WorkerConfig};

#[path = "../tables.rs"]
mod tables;

fuzz_target!(|bytes: &[u8]| {
    let v6_underlay = bytes.first().is_some_and(|byte| byte & 1 == 1);
    let (underlay_port, underlay) = MemoryPort::new();
    let (gateway_port, gateway) = MemoryPort::new();
    let mut publisher = Publisher::new(tables::tables(v6_underlay, 0));
    let hasher = FlowHasher::from_seed(1);
    let flows = FlowTable::with_hasher(16, Timeouts::default(), hasher).into();
    let mut worker = Worker::new(
        WorkerConfig { cpu: None, batch: 4, idle: Idle::Busy },
        HeapMemory::new(16, 1024),
        Box::new(underlay_port),
        Box::new(gateway_port),
        (),
        publisher.reader(),
        flows,
    );
    let mut now_ns = 1_000_000_000_000u64;
    let mut rest = bytes.get(1..).unwrap_or_default();
    while let [step, len, tail @ ..] = rest {
        let (frame, next) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = next;
        match step & 7 {
            0 => gateway.put(frame),
            1 => underlay.put(frame),
            2 => gateway.put(tables::datagram(frame)),
            3 => underlay.put(tables::tunneled(v6_underlay, frame)),
            4 => publisher.publish(tables::tables(v6_underlay, *len)),
            _ => now_ns += u64::from(*len) << 30,
        }
        if step & 0x80 == 0 {
            while worker.poll(now_ns) > 0 {}
            assert_eq!(worker.memory().free(), worker.memory().chunks(), "a frame was lost");
        }
        while let Some(frame) = gateway.take() {
            let packet = Packet::parse(&frame[14..]).expect("delivers packets");
            assert_eq!(packet.total_len as usize + 14, frame.len());
        }
        let outer = if v6_underlay { 70 } else { 50 };
        while let Some(frame) = underlay.take() {
            let packet = Packet::parse(&frame[outer + 14..]).expect("sends packets");
            assert_eq!(packet.total_len as usize + outer + 14, frame.len());
        }
    }
});
