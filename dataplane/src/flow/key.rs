//! What names a flow.

use std::hint::select_unpredictable;

use super::FlowHasher;
use crate::addr::Addr;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{Vni, icmp, protocol};

/// A flow's name, the same for both directions: the two ends in ascending
/// order, protocol and network. Fragments of one packet have a name of their
/// own, with the packet's identification in the place of the ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    pub(super) low: Addr,
    pub(super) high: Addr,
    /// Low end's port, high end's port, protocol, network: 16, 16, 8, 24 bits.
    pub(super) tuple: u64,
    pub(super) fragment: bool,
}

/// A flow's name as seen from one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTuple {
    /// The name.
    pub key: FlowKey,
    /// Whether the packet goes from the low end to the high end.
    pub from_low: bool,
    /// Keyed hash of the name, the same for both directions.
    pub hash: u64,
}

/// The ends' numbers that name the packet's flow: source's, destination's.
#[inline]
fn ends(packet: &Packet) -> (u16, u16) {
    match packet.protocol {
        protocol::ICMP | protocol::ICMPV6 => {
            // An exchange of echoes is named by its identifier, any other
            // message by its type and code, and with two different numbers:
            // the sender chooses the identifier, so neither may be taken for
            // the other.
            let number = packet.destination_port;
            match icmp::is_echo(packet.protocol, number) {
                true => (packet.icmp_ident, packet.icmp_ident),
                false => (number, !number),
            }
        }
        _ => (packet.source_port, packet.destination_port),
    }
}

impl FlowTuple {
    /// The flow that `packet` is of. For later fragments that is the flow of
    /// the fragments of its packet.
    #[inline]
    pub fn of(packet: &Packet, vni: Vni, hasher: &FlowHasher) -> Self {
        match packet.fragment {
            Fragment::Later { ident } => Self::of_fragments(*packet, ident, vni, hasher),
            _ => Self::of_whole(packet, vni, hasher),
        }
    }

    /// The flow that `packet`, which is no later fragment, is of.
    #[inline]
    pub fn of_whole(packet: &Packet, vni: Vni, hasher: &FlowHasher) -> Self {
        let (source, destination) = ends(packet);
        let numbers = u32::from(source) << 16 | u32::from(destination);
        Self::of_ports((packet.src, packet.dst), numbers, packet.protocol, vni, hasher)
    }

    /// The flow of a packet from the first of two addresses to the second;
    /// `ports` holds its source port and, below it, its destination port.
    #[inline(always)]
    pub fn of_ports(
        ends: (Addr, Addr),
        ports: u32,
        protocol: u8,
        vni: Vni,
        hasher: &FlowHasher,
    ) -> Self {
        let swapped = ports.rotate_left(16);
        let from_low = (ends.0, ports) <= (ends.1, swapped);
        // Which end is the low one is a matter of chance: no branches.
        let numbers = select_unpredictable(from_low, ports, swapped);
        Self::new(ends, from_low, numbers, protocol, vni, false, hasher)
    }

    /// The flow of the fragments with this identification.
    #[cold]
    pub fn of_fragments(packet: Packet, ident: u32, vni: Vni, hasher: &FlowHasher) -> Self {
        // Of IPv6, only the first fragment tells the protocol behind further
        // extension headers, and the identification is unique without it
        // (RFC 8200 section 4.5); that of IPv4 has the protocol in it.
        let (protocol, ident) = match packet.src.is_v4() {
            true => ((ident >> 16) as u8, ident & 0xffff),
            false => (protocol::FRAGMENT, ident),
        };
        let from_low = packet.src <= packet.dst;
        Self::new((packet.src, packet.dst), from_low, ident, protocol, vni, true, hasher)
    }

    #[inline(always)]
    fn new(
        ends: (Addr, Addr),
        from_low: bool,
        numbers: u32,
        protocol: u8,
        vni: Vni,
        fragment: bool,
        hasher: &FlowHasher,
    ) -> Self {
        let low = select_unpredictable(from_low, ends.0, ends.1);
        let high = select_unpredictable(from_low, ends.1, ends.0);
        let tuple = u64::from(numbers) << 32 | u64::from(protocol) << 24 | u64::from(vni.get());
        let key = FlowKey { low, high, tuple, fragment };
        Self { key, from_low, hash: hasher.hash(low, high, tuple) }
    }
}

impl FlowKey {
    /// The low and the high end.
    pub fn ends(&self) -> (Addr, Addr) {
        (self.low, self.high)
    }

    /// The low end's and the high end's port; the ICMP echo identifier twice;
    /// of other ICMP messages type and code, and their complement.
    pub fn ports(&self) -> (u16, u16) {
        ((self.tuple >> 48) as u16, (self.tuple >> 32) as u16)
    }

    /// Whether this names the later fragments of a packet.
    pub fn is_of_fragments(&self) -> bool {
        self.fragment
    }

    /// IP protocol number.
    pub fn protocol(&self) -> u8 {
        (self.tuple >> 24) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(src: [u8; 4], dst: [u8; 4], source_port: u16, destination_port: u16) -> Packet {
        Packet {
            src: Addr::from_v4_bytes(src),
            dst: Addr::from_v4_bytes(dst),
            protocol: 6,
            source_port,
            destination_port,
            ..Packet::default()
        }
    }

    #[test]
    fn both_directions_have_one_name() {
        let hasher = FlowHasher::random();
        let vni = Vni::new(4096).unwrap();
        let there = FlowTuple::of(&packet([10, 0, 0, 1], [10, 0, 0, 2], 9, 80), vni, &hasher);
        let back = FlowTuple::of(&packet([10, 0, 0, 2], [10, 0, 0, 1], 80, 9), vni, &hasher);
        assert_eq!((there.key, there.hash), (back.key, back.hash));
        assert!(there.from_low && !back.from_low);
        assert_eq!(there.key.ports(), (9, 80));
        assert_eq!(there.key.protocol(), 6);
        // A pod that talks to itself through a service has two equal addresses.
        let there = FlowTuple::of(&packet([10, 0, 0, 1], [10, 0, 0, 1], 9, 80), vni, &hasher);
        let back = FlowTuple::of(&packet([10, 0, 0, 1], [10, 0, 0, 1], 80, 9), vni, &hasher);
        assert_eq!((there.key, there.hash), (back.key, back.hash));
    }

    #[test]
    fn echo_request_and_reply_are_one_flow_and_fragments_another() {
        let hasher = FlowHasher::random();
        let vni = Vni::new(1).unwrap();
        let mut request = packet([10, 0, 0, 1], [10, 0, 0, 2], 0, 8 << 8);
        (request.protocol, request.icmp_ident) = (protocol::ICMP, 7);
        let mut reply = packet([10, 0, 0, 2], [10, 0, 0, 1], 0, 0);
        (reply.protocol, reply.icmp_ident) = (protocol::ICMP, 7);
        let there = FlowTuple::of(&request, vni, &hasher);
        assert_eq!(there.key, FlowTuple::of(&reply, vni, &hasher).key);
        let first = FlowTuple::of_fragments(request, 0x1_0007, vni, &hasher);
        request.fragment = Fragment::Later { ident: 0x1_0007 };
        assert_eq!(first, FlowTuple::of(&request, vni, &hasher));
        assert_ne!(first.key, there.key);
    }

    #[test]
    fn fragments_of_ipv6_have_one_name_whatever_header_they_show() {
        let hasher = FlowHasher::random();
        let vni = Vni::new(1).unwrap();
        let src = Addr::from_bits(0xfd << 120 | 1);
        let first = Packet { src, protocol: protocol::UDP, ..Packet::default() };
        let later = Packet {
            protocol: protocol::DESTINATION_OPTIONS,
            fragment: Fragment::Later { ident: 9 },
            ..first
        };
        let name = FlowTuple::of_fragments(first, 9, vni, &hasher);
        assert_eq!(name, FlowTuple::of(&later, vni, &hasher));
    }
}
