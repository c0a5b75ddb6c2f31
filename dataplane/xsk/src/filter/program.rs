//! The two XDP programs. Their pseudo-code is in the module above; keep both
//! in step.

use crate::bpf::{
    AssembleError, Assembler, Condition, Helper, Instruction, Label, Map, Operation, Register, Size,
};
use Condition::*;
use Register::*;

/// Layout of the settings map's one value: the UDP port in network order, then
/// how long a worker may be silent, in nanoseconds.
pub(super) const SETTING_PORT: i32 = 0;
pub(super) const SETTING_LIVENESS: i32 = 8;
pub(super) const SETTINGS_SIZE: usize = 16;

/// Bytes from one queue's heartbeat to the next: a cache line, so that workers
/// do not share one.
pub(super) const HEARTBEAT_STRIDE: u32 = 64;

/// `struct xdp_md` of linux/bpf.h.
const CONTEXT_DATA: i16 = 0;
const CONTEXT_DATA_END: i16 = 4;
const CONTEXT_QUEUE: i16 = 16;

const XDP_PASS: i32 = 2;

/// Offsets from the frame's start, without VLAN tags.
const ETHERTYPE: i16 = 12;
const IP: i16 = 14;
const V4_MIN: i32 = 20;
const V6_LEN: i32 = 40;
const UDP_LEN: i32 = 8;
const UDP_DESTINATION: i16 = 2;
const PROTOCOL_UDP: i32 = 17;

/// Stack slots for map keys of 16 bytes.
const KEY_DESTINATION: i16 = -16;
const KEY_SOURCE: i16 = -32;

/// The maps that a program refers to.
pub(super) struct Maps<'a> {
    pub(super) settings: &'a Map,
    pub(super) heartbeats: &'a Map,
    pub(super) sockets: &'a Map,
    pub(super) underlay: &'a Map,
    pub(super) peers: &'a Map,
    pub(super) queues: u32,
}

/// A 16-bit number as it is loaded from a frame, where it is in network order.
fn net16(number: u16) -> i32 {
    i32::from(number.to_be())
}

/// Takes a frame only if it is VXLAN from a peer to us.
pub(super) fn underlay(maps: &Maps<'_>) -> Result<Vec<Instruction>, AssembleError> {
    let mut program = Assembler::new();
    let [v4, v6, ports, pass] = std::array::from_fn(|_| program.label());
    load_frame(&mut program);
    ensure(&mut program, R7, IP.into(), pass);
    program.load(Size::Half, R2, R7, ETHERTYPE);
    program.jump_if(Equal, R2, net16(0x0800), v4);
    program.jump_if(Equal, R2, net16(0x86dd), v6);
    program.jump(pass);

    program.place(v4);
    ipv4(&mut program, ports, pass);
    program.place(v6);
    ipv6(&mut program, pass);

    // R7 is where the UDP header is; the keys are on the stack.
    program.place(ports);
    ensure(&mut program, R7, UDP_LEN, pass);
    program.load(Size::Half, R2, R7, UDP_DESTINATION);
    program.load_map_value(R1, maps.settings, SETTING_PORT);
    program.load(Size::Half, R1, R1, 0);
    program.jump_if(NotEqual, R2, R1, pass);
    for (map, key) in [(maps.underlay, KEY_DESTINATION), (maps.peers, KEY_SOURCE)] {
        program.load_map(R1, map);
        program.set(R2, R10);
        program.compute(Operation::Add, R2, i32::from(key));
        program.call(Helper::MapLookup);
        program.jump_if(Equal, R0, 0, pass);
    }
    redirect_if_alive(&mut program, maps, pass);
    program.finish()
}

/// Takes every frame.
pub(super) fn gateway(maps: &Maps<'_>) -> Result<Vec<Instruction>, AssembleError> {
    let mut program = Assembler::new();
    let pass = program.label();
    program.set(R6, R1);
    redirect_if_alive(&mut program, maps, pass);
    program.finish()
}

/// R6: context, R7: start of the frame, R8: its end.
fn load_frame(program: &mut Assembler) {
    program.set(R6, R1);
    program.load(Size::Word, R7, R6, CONTEXT_DATA);
    program.load(Size::Word, R8, R6, CONTEXT_DATA_END);
}

/// Goes to `otherwise` unless the frame has `bytes` from `base` on.
fn ensure(program: &mut Assembler, base: Register, bytes: i32, otherwise: Label) {
    program.set(R1, base);
    program.compute(Operation::Add, R1, bytes);
    program.jump_if(Greater, R1, R8, otherwise);
}

fn ipv4(program: &mut Assembler, ports: Label, pass: Label) {
    ensure(program, R7, i32::from(IP) + V4_MIN, pass);
    program.load(Size::Byte, R2, R7, IP);
    program.set(R3, R2);
    program.compute(Operation::And, R3, 0xf0);
    program.jump_if(NotEqual, R3, 0x40, pass);
    // R2: length of the header with its options, in bytes.
    program.compute(Operation::And, R2, 0x0f);
    program.compute(Operation::ShiftLeft, R2, 2);
    program.jump_if(Less, R2, V4_MIN, pass);
    program.load(Size::Byte, R3, R7, IP + 9);
    program.jump_if(NotEqual, R3, PROTOCOL_UDP, pass);
    // "More fragments" or an offset.
    program.load(Size::Half, R3, R7, IP + 6);
    program.jump_if(AnySet, R3, net16(0x3fff), pass);
    for (key, field) in [(KEY_SOURCE, IP + 12), (KEY_DESTINATION, IP + 16)] {
        // ::ffff:a.b.c.d
        program.store(Size::Double, R10, key, 0);
        program.store(Size::Half, R10, key + 8, 0);
        program.store(Size::Half, R10, key + 10, 0xffff_u16 as i16 as i32);
        program.load(Size::Word, R3, R7, field);
        program.store(Size::Word, R10, key + 12, R3);
    }
    program.compute(Operation::Add, R7, i32::from(IP));
    program.compute(Operation::Add, R7, R2);
    program.jump(ports);
}

/// UDP must follow the fixed header; falls through to the UDP header.
fn ipv6(program: &mut Assembler, pass: Label) {
    ensure(program, R7, i32::from(IP) + V6_LEN, pass);
    program.load(Size::Byte, R2, R7, IP);
    program.compute(Operation::And, R2, 0xf0);
    program.jump_if(NotEqual, R2, 0x60, pass);
    program.load(Size::Byte, R3, R7, IP + 6);
    program.jump_if(NotEqual, R3, PROTOCOL_UDP, pass);
    for (key, field) in [(KEY_SOURCE, IP + 8), (KEY_DESTINATION, IP + 24)] {
        for word in [0, 4, 8, 12] {
            program.load(Size::Word, R3, R7, field + word);
            program.store(Size::Word, R10, key + word, R3);
        }
    }
    program.compute(Operation::Add, R7, i32::from(IP) + V6_LEN);
}

/// The end of both programs. R6: context.
fn redirect_if_alive(program: &mut Assembler, maps: &Maps<'_>, pass: Label) {
    program.load(Size::Word, R7, R6, CONTEXT_QUEUE);
    program.jump_if(GreaterOrEqual, R7, maps.queues as i32, pass);
    // R8: when this queue's worker was last alive.
    program.set(R2, R7);
    program.compute(Operation::ShiftLeft, R2, HEARTBEAT_STRIDE.trailing_zeros() as i32);
    program.load_map_value(R1, maps.heartbeats, 0);
    program.compute(Operation::Add, R1, R2);
    program.load(Size::Double, R8, R1, 0);
    program.call(Helper::MonotonicTime);
    // With sign: the stamp may be newer than the clock was when it was read.
    program.compute(Operation::Subtract, R0, R8);
    program.load_map_value(R1, maps.settings, SETTING_LIVENESS);
    program.load(Size::Double, R1, R1, 0);
    program.jump_if(SignedGreater, R0, R1, pass);
    program.load_map(R1, maps.sockets);
    program.set(R2, R7);
    program.set(R3, XDP_PASS);
    program.call(Helper::RedirectMap);
    program.exit();
    program.place(pass);
    program.set(R0, XDP_PASS);
    program.exit();
}
