//! IPv4 (RFC 791).

use super::{WireError, be16, checksum};

/// Bytes of the header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    header: &'a [u8; MIN_HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// The view of a whole packet. Bytes beyond its length (padding) are not
    /// part of it.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let view = Self::new_cut(bytes)?;
        if usize::from(view.total_len()) > bytes.len() {
            return Err(WireError::Truncated);
        }
        Ok(view)
    }

    /// The view of a packet whose end may be cut off, as ICMP errors quote it.
    #[inline]
    pub fn new_cut(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
        let header: &[u8; MIN_HEADER_LEN] = header;
        let total_len = usize::from(be16(header, 2));
        // Almost every packet has no options.
        let options_len = match header[0] {
            0x45 => 0,
            0x46..=0x4f => usize::from(header[0] & 0xf) * 4 - MIN_HEADER_LEN,
            _ => return Err(WireError::Malformed),
        };
        let rest_len = total_len.checked_sub(MIN_HEADER_LEN).ok_or(WireError::Malformed)?;
        if options_len > rest_len {
            return Err(WireError::Malformed);
        }
        let rest = rest.get(..rest_len).unwrap_or(rest);
        let (options, payload) = rest.split_at_checked(options_len).ok_or(WireError::Truncated)?;
        Ok(Self { header, options, payload })
    }

    /// Whether the header's checksum is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        if self.options.is_empty() {
            return checksum::is_right(self.header);
        }
        checksum::finish(checksum::sum(self.header) + checksum::sum(self.options)) == 0
    }

    /// ECN bits (RFC 3168 section 5).
    #[inline]
    pub const fn ecn(&self) -> u8 {
        self.header[1] & 3
    }

    /// Bytes of the header with its options.
    #[inline]
    pub const fn header_len(&self) -> usize {
        MIN_HEADER_LEN + self.options.len()
    }

    /// Bytes of the whole packet.
    #[inline]
    pub const fn total_len(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Identification.
    #[inline]
    pub const fn ident(&self) -> u16 {
        be16(self.header, 4)
    }

    /// Whether more fragments follow.
    #[inline]
    pub const fn more_fragments(&self) -> bool {
        self.header[6] & 0x20 != 0
    }

    /// Place of the fragment in its packet, in units of 8 bytes.
    #[inline]
    pub const fn fragment_offset(&self) -> u16 {
        be16(self.header, 6) & 0x1fff
    }

    /// Whether this is only a part of a packet.
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        be16(self.header, 6) & 0x3fff != 0
    }

    /// Time to live.
    #[inline]
    pub const fn ttl(&self) -> u8 {
        self.header[8]
    }

    /// Protocol of the payload.
    #[inline]
    pub const fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// Source address.
    #[inline]
    pub const fn source(&self) -> [u8; 4] {
        let [.., a, b, c, d, _, _, _, _] = *self.header;
        [a, b, c, d]
    }

    /// Destination address.
    #[inline]
    pub const fn destination(&self) -> [u8; 4] {
        let [.., a, b, c, d] = *self.header;
        [a, b, c, d]
    }

    /// What follows the header, to the packet's end.
    #[inline]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Whether the sender prescribes the way (RFC 791 section 3.1, loose and
    /// strict source route). The destination address is then not where the
    /// packet ends.
    #[inline]
    pub fn is_source_routed(&self) -> bool {
        !self.options.is_empty() && has_source_route(self.options)
    }
}

#[cold]
fn has_source_route(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        options = match *options {
            [LOOSE | STRICT, ..] => return true,
            [] | [END, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => rest,
            // Every step takes at least two bytes.
            [_, len, ..] => options.get(usize::from(len.max(2))..).unwrap_or_default(),
            [_] => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 172.16.10.99 to 172.16.10.12, TCP, two bytes of payload and one of padding.
    const PACKET: [u8; 23] = [
        0x45, 0x02, 0x00, 0x16, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb1, 0xfe, 0xac, 0x10, 0x0a,
        0x63, 0xac, 0x10, 0x0a, 0x0c, 0xaa, 0xbb, 0xcc,
    ];

    #[test]
    fn literal_bytes() {
        let mut bytes = PACKET;
        let view = Ipv4::new_checked(&bytes).unwrap();
        let sum = checksum::finish(checksum::sum(&bytes[..10]) + checksum::sum(&bytes[12..20]));
        assert_eq!((view.total_len(), view.ident(), view.ttl()), (22, 0x1c46, 64));
        assert_eq!((view.protocol(), view.ecn(), view.payload()), (6, 2, &[0xaa, 0xbb][..]));
        assert_eq!((view.source(), view.destination()), ([172, 16, 10, 99], [172, 16, 10, 12]));
        assert!(!view.is_fragment());
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(Ipv4::new_checked(&bytes).unwrap().verify_checksum());
        bytes[8] -= 1;
        assert!(!Ipv4::new_checked(&bytes).unwrap().verify_checksum());
        bytes[6..8].copy_from_slice(&[0x20, 0x05]);
        let view = Ipv4::new_checked(&bytes).unwrap();
        assert!(view.is_fragment() && view.more_fragments());
        assert_eq!(view.fragment_offset(), 5);
    }

    #[test]
    fn lengths_are_checked() {
        let refused = |change: fn(&mut [u8; 23])| {
            let mut bytes = PACKET;
            change(&mut bytes);
            Ipv4::new_checked(&bytes).unwrap_err()
        };
        assert_eq!(refused(|b| b[0] = 0x65), WireError::Malformed);
        assert_eq!(refused(|b| b[0] = 0x44), WireError::Malformed);
        assert_eq!(refused(|b| b[0] = 0x46), WireError::Malformed, "header beyond the packet");
        assert_eq!(refused(|b| b[3] = 19), WireError::Malformed);
        assert_eq!(refused(|b| b[3] = 24), WireError::Truncated);
        assert_eq!(Ipv4::new_checked(&PACKET[..19]).unwrap_err(), WireError::Truncated);
        assert_eq!(Ipv4::new_cut(&PACKET[..21]).unwrap().payload(), [0xaa]);
    }

    #[test]
    fn source_routes_are_found_among_options() {
        let routed = |options: &[u8]| {
            let mut bytes = PACKET[..20].to_vec();
            bytes.extend(options);
            bytes[0] = 0x45 + options.len() as u8 / 4;
            bytes[3] = bytes.len() as u8;
            Ipv4::new_checked(&bytes).unwrap().is_source_routed()
        };
        assert!(!routed(&[]));
        assert!(!routed(&[148, 4, 0, 0]), "router alert");
        assert!(!routed(&[0, 131, 3, 4]), "after the end of the list");
        assert!(!routed(&[7, 0, 9, 1]), "a wrong length does not stop the walk");
        assert!(routed(&[1, 131, 7, 4, 10, 0, 0, 1]));
        assert!(routed(&[148, 4, 0, 0, 137, 3, 4, 0]));
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(
            mut bytes in prop::collection::vec(any::<u8>(), 0..90),
            ihl in 4u8..=15,
            short in any::<bool>(),
        ) {
            if let [first, _, high, low, ..] = &mut bytes[..] {
                *first = 0x40 | ihl;
                if short {
                    (*high, *low) = (0, *low % 96);
                }
            }
            // Their sum leaves the reserved flag out.
            if let Some(flags) = bytes.get_mut(6) {
                *flags &= 0x7f;
            }
            let theirs = etherparse::Ipv4Slice::from_slice(&bytes);
            let Ok(ours) = Ipv4::new_checked(&bytes) else {
                prop_assert!(theirs.is_err());
                return Ok(());
            };
            // They look into the payload as well, for an authentication header.
            let Ok(theirs) = theirs else {
                prop_assert_eq!(ours.protocol(), 51);
                return Ok(());
            };
            let header = theirs.header();
            prop_assert_eq!(ours.source(), header.source());
            prop_assert_eq!(ours.destination(), header.destination());
            prop_assert_eq!(ours.protocol(), header.protocol().0);
            prop_assert_eq!(ours.ttl(), header.ttl());
            prop_assert_eq!(ours.ecn(), header.ecn().value());
            prop_assert_eq!(ours.ident(), header.identification());
            prop_assert_eq!(ours.total_len(), header.total_len());
            prop_assert_eq!(ours.more_fragments(), header.more_fragments());
            prop_assert_eq!(ours.fragment_offset(), header.fragments_offset().value());
            prop_assert_eq!(ours.is_fragment(), header.is_fragmenting_payload());
            let right = header.to_header().calc_header_checksum() == header.header_checksum();
            // 0xffff and 0 are the same number to a sum.
            prop_assert!(ours.verify_checksum() == right || header.header_checksum() == 0xffff);
            if ours.protocol() != 51 {
                prop_assert_eq!(ours.payload(), theirs.payload().payload);
            }
        }
    }
}
