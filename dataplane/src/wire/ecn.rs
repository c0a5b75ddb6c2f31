//! Explicit congestion notification through the tunnel (RFC 6040, normal mode).
//!
//! The two bits: 0 not capable, 1 ECT(1), 2 ECT(0), 3 congestion experienced.

use super::checksum;

/// Not capable of ECN.
pub const NOT_ECT: u8 = 0;
/// Capable, codepoint ECT(1).
pub const ECT_1: u8 = 1;
/// Capable, codepoint ECT(0).
pub const ECT_0: u8 = 2;
/// Congestion experienced.
pub const CE: u8 = 3;

/// The outer bits for a packet with these inner ones (RFC 6040 section 4.1).
#[inline]
pub const fn encapsulate(inner: u8) -> u8 {
    inner & 3
}

/// The bits of the packet that leaves the tunnel (RFC 6040 section 4.2, figure
/// 4), or `None` where it must be dropped: congestion was marked on a packet
/// whose ends would not understand the mark.
#[inline]
pub const fn decapsulate(outer: u8, inner: u8) -> Option<u8> {
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Writes the bits into an IP packet: IPv4's TOS byte with the header checksum
/// adjusted, or IPv6's traffic class. Bytes that are neither stay as they are.
pub fn set_ecn(ip: &mut [u8], mark: u8) {
    match ip {
        [first, tos, ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *tos]);
            *tos = *tos & !3 | mark & 3;
            let new = u16::from_be_bytes([*first, *tos]);
            if let Some(sum) = ip.get_mut(10..12) {
                let updated = checksum::update(u16::from_be_bytes([sum[0], sum[1]]), old, new);
                sum.copy_from_slice(&updated.to_be_bytes());
            }
        }
        // The traffic class lies across the two bytes (RFC 8200 section 3).
        [first, second, ..] if *first >> 4 == 6 => *second = *second & !0x30 | (mark & 3) << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ipv4::Ipv4;

    #[test]
    fn figure_4_of_rfc_6040() {
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            assert_eq!([NOT_ECT, ECT_0, ECT_1, CE].map(|outer| decapsulate(outer, inner)), row);
            assert_eq!(encapsulate(inner), inner);
        }
    }

    #[test]
    fn marks_are_written_and_the_checksum_follows() {
        let mut v4 = [
            0x45, 0xba, 0x00, 0x14, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb0, 0xe6, 0xac, 0x10,
            0x0a, 0x63, 0xac, 0x10, 0x0a, 0x0c,
        ];
        let sum = checksum::finish(checksum::sum(&v4[..10]) + checksum::sum(&v4[12..]));
        v4[10..12].copy_from_slice(&sum.to_be_bytes());
        for mark in [CE, NOT_ECT, ECT_1, ECT_0] {
            set_ecn(&mut v4, mark);
            assert_eq!(v4[1], 0xb8 | mark, "the upper six bits stay");
            assert!(Ipv4::new_checked(&v4).unwrap().verify_checksum());
        }
        let mut v6 = [0x6a, 0xbc, 0xde, 0xf0];
        set_ecn(&mut v6, CE);
        assert_eq!(v6, [0x6a, 0xbc, 0xde, 0xf0]);
        set_ecn(&mut v6, ECT_1);
        assert_eq!(v6, [0x6a, 0x9c, 0xde, 0xf0]);
        set_ecn(&mut [], CE);
        let mut short = [0x45, 0];
        set_ecn(&mut short, CE);
        assert_eq!(short, [0x45, 3]);
    }
}
