//! IPv6 (RFC 8200), and the walk over extension headers to the transport.

use super::{WireError, be16, protocol};

/// Bytes of the header.
pub const HEADER_LEN: usize = 40;

/// Extension headers that one packet may have. RFC 8504 section 5.3 lets a
/// node limit them; real packets have one or two.
const MAX_EXTENSIONS: usize = 8;

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// The view of a whole packet. Bytes beyond its length (padding) are not
    /// part of it. A jumbogram (RFC 2675) counts as one without payload.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let view = Self::new_cut(bytes)?;
        if view.payload.len() < usize::from(view.payload_len()) {
            return Err(WireError::Truncated);
        }
        Ok(view)
    }

    /// The view of a packet whose end may be cut off, as ICMP errors quote it.
    #[inline]
    pub fn new_cut(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
        let header: &[u8; HEADER_LEN] = header;
        if header[0] >> 4 != 6 {
            return Err(WireError::Malformed);
        }
        let payload = rest.get(..usize::from(be16(header, 4))).unwrap_or(rest);
        Ok(Self { header, payload })
    }

    /// ECN bits of the traffic class.
    #[inline]
    pub const fn ecn(&self) -> u8 {
        self.header[1] >> 4 & 3
    }

    /// Bytes after the header.
    #[inline]
    pub const fn payload_len(&self) -> u16 {
        be16(self.header, 4)
    }

    /// Protocol of what follows the header.
    #[inline]
    pub const fn next_header(&self) -> u8 {
        self.header[6]
    }

    /// Hop limit.
    #[inline]
    pub const fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.header[8 + at])
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.header[24 + at])
    }

    /// What follows the header, to the packet's end.
    #[inline]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// What the packet carries behind its extension headers.
    #[inline]
    pub fn upper(&self) -> Result<Upper<'a>, WireError> {
        let first = self.next_header();
        if is_extension(first) {
            walk(first, self.payload)
        } else {
            Ok(Upper { protocol: first, payload: self.payload, fragment: None })
        }
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper<'a> {
    /// Protocol of the payload. In a fragment that is not its packet's first:
    /// what the fragment header names, which may be another extension.
    pub protocol: u8,
    /// The bytes.
    pub payload: &'a [u8],
    /// Where in its packet this fragment belongs.
    pub fragment: Option<Part>,
}

/// A fragment header's fields (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Identification.
    pub ident: u32,
    /// Place in units of 8 bytes.
    pub offset: u16,
}

const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

#[cold]
fn walk(mut protocol: u8, mut payload: &[u8]) -> Result<Upper<'_>, WireError> {
    let mut fragment = None;
    for at in 0..=MAX_EXTENSIONS {
        if !is_extension(protocol) {
            return Ok(Upper { protocol, payload, fragment });
        }
        let [next, len, third, fourth, ..] = *payload else { return Err(WireError::Truncated) };
        let bytes = match protocol {
            // RFC 8200 section 4.1: only right behind the IPv6 header.
            protocol::HOP_BY_HOP if at > 0 => return Err(WireError::Malformed),
            // With segments left, the destination address is not where the
            // packet ends, so policy would judge the wrong one (RFC 5095).
            protocol::ROUTING if fourth != 0 => return Err(WireError::Unsupported),
            protocol::FRAGMENT if fragment.is_some() => return Err(WireError::Malformed),
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => authentication_len(len)?,
            _ => 8 + 8 * usize::from(len),
        };
        let (header, rest) = payload.split_at_checked(bytes).ok_or(WireError::Truncated)?;
        if let (protocol::FRAGMENT, [_, _, _, _, ident @ ..]) = (protocol, header)
            && let Ok(ident) = <[u8; 4]>::try_from(ident)
        {
            let place = u16::from_be_bytes([third, fourth]);
            // A lone fragment is a whole packet (RFC 6946).
            if place & !0b110 != 0 {
                fragment = Some(Part { ident: u32::from_be_bytes(ident), offset: place >> 3 });
            }
            if place >> 3 != 0 {
                return Ok(Upper { protocol: next, payload: rest, fragment });
            }
        }
        (protocol, payload) = (next, rest);
    }
    Err(WireError::Malformed)
}

/// Bytes of an authentication header with this length field (RFC 4302 section
/// 2.2), which has at least its fixed part.
pub(super) const fn authentication_len(field: u8) -> Result<usize, WireError> {
    match field {
        0 => Err(WireError::Malformed),
        words => Ok((words as usize + 2) * 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0x30, 0, 0];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([next_header, 64]);
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend(payload);
        bytes
    }

    fn upper(next_header: u8, payload: &[u8]) -> Result<(u8, usize, Option<Part>), WireError> {
        let bytes = packet(next_header, payload);
        let upper = Ipv6::new_checked(&bytes).unwrap().upper()?;
        Ok((upper.protocol, upper.payload.len(), upper.fragment))
    }

    #[test]
    fn literal_bytes() {
        let mut bytes = packet(17, &[1, 2, 3]);
        let view = Ipv6::new_checked(&bytes).unwrap();
        assert_eq!((view.payload_len(), view.next_header(), view.hop_limit()), (3, 17, 64));
        assert_eq!((view.ecn(), view.payload()), (3, &[1, 2, 3][..]));
        assert_eq!((view.source()[15], view.destination()[15]), (1, 2));
        bytes[0] = 0x40;
        assert_eq!(Ipv6::new_checked(&bytes).unwrap_err(), WireError::Malformed);
        bytes[0] = 0x60;
        bytes[5] = 4;
        assert_eq!(Ipv6::new_checked(&bytes).unwrap_err(), WireError::Truncated);
        assert_eq!(Ipv6::new_cut(&bytes).unwrap().payload().len(), 3);
        assert_eq!(Ipv6::new_checked(&bytes[..39]).unwrap_err(), WireError::Truncated);
    }

    #[test]
    fn extensions_are_walked_to_the_transport() {
        assert_eq!(upper(6, &[0; 20]), Ok((6, 20, None)));
        // Hop-by-hop, destination options of 16 bytes, then UDP.
        let mut chain = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 1];
        chain.resize(24, 0);
        chain.extend([9; 8]);
        assert_eq!(upper(0, &chain), Ok((17, 8, None)));
        // A routing header that has done its work, and one that has not.
        assert_eq!(upper(43, &[6, 0, 4, 0, 0, 0, 0, 0]), Ok((6, 0, None)));
        assert_eq!(upper(43, &[6, 0, 4, 1, 0, 0, 0, 0]), Err(WireError::Unsupported));
        // Authentication header of 24 bytes.
        let mut chain = vec![6, 4];
        chain.resize(25, 0);
        assert_eq!(upper(51, &chain), Ok((6, 1, None)));
        // Encryption ends the walk, and so does "no next header".
        assert_eq!(upper(50, &[1; 9]), Ok((50, 9, None)));
        assert_eq!(upper(60, &[59, 0, 1, 4, 0, 0, 0, 0]), Ok((59, 0, None)));
    }

    #[test]
    fn fragments() {
        let part = |offset| Some(Part { ident: 0x0102_0304, offset });
        assert_eq!(upper(44, &[17, 0, 0, 1, 1, 2, 3, 4, 9, 9]), Ok((17, 2, part(0))));
        assert_eq!(upper(44, &[17, 0, 0, 8, 1, 2, 3, 4, 9, 9]), Ok((17, 2, part(1))));
        // What a later fragment holds is no header, whatever the number says.
        assert_eq!(upper(44, &[60, 0, 1, 1, 1, 2, 3, 4, 9]), Ok((60, 1, part(32))));
        assert_eq!(upper(44, &[17, 0, 0, 0, 1, 2, 3, 4, 9]), Ok((17, 1, None)));
        let twice = [44, 0, 0, 1, 1, 2, 3, 4, 17, 0, 0, 1, 1, 2, 3, 4];
        assert_eq!(upper(44, &twice), Err(WireError::Malformed));
    }

    #[test]
    fn bad_chains_are_refused() {
        assert_eq!(upper(0, &[]), Err(WireError::Truncated));
        assert_eq!(upper(60, &[6, 1, 0, 0, 0, 0, 0, 0]), Err(WireError::Truncated));
        assert_eq!(upper(44, &[6, 0, 0, 0, 0, 0, 0]), Err(WireError::Truncated));
        let hop_by_hop_later = [0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(upper(60, &hop_by_hop_later), Err(WireError::Malformed));
        assert_eq!(upper(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)), Err(WireError::Malformed));
    }

    proptest! {
        #[test]
        fn the_header_agrees_with_etherparse(
            mut bytes in prop::collection::vec(any::<u8>(), 0..60),
            six in prop::bool::weighted(0.9),
        ) {
            if let (Some(first), true) = (bytes.first_mut(), six) {
                *first = 0x60 | *first & 0xf;
            }
            let theirs = etherparse::Ipv6HeaderSlice::from_slice(&bytes);
            let ours = Ipv6::new_cut(&bytes);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.source(), theirs.source());
                prop_assert_eq!(ours.destination(), theirs.destination());
                prop_assert_eq!(ours.next_header(), theirs.next_header().0);
                prop_assert_eq!(ours.hop_limit(), theirs.hop_limit());
                prop_assert_eq!(ours.payload_len(), theirs.payload_length());
                prop_assert_eq!(ours.ecn(), theirs.ecn().value());
            }
        }

        /// Chains of whatever kinds, in whatever order, some cut short.
        #[test]
        fn the_walk_agrees_with_etherparse(
            kinds in prop::collection::vec(
                prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60), Just(6)], 0..5),
            fields in prop::collection::vec(any::<[u8; 8]>(), 5),
            cut in 0usize..200,
        ) {
            let mut chain = Vec::new();
            for (at, kind) in kinds.iter().enumerate() {
                let mut header = fields[at];
                header[0] = *kinds.get(at + 1).unwrap_or(&17);
                match kind {
                    43 => (header[1], header[3]) = (header[1] % 2, 0),
                    44 => header[2] = 0,
                    _ => header[1] %= 3,
                }
                chain.extend(header);
                chain.resize(chain.len() + header_tail(*kind, header[1]), 0);
            }
            chain.extend([7; 12]);
            chain.truncate(chain.len().saturating_sub(cut / 10).max(1));
            let first = *kinds.first().unwrap_or(&17);
            let bytes = packet(first, &chain);
            let Ok(ours) = Ipv6::new_checked(&bytes).unwrap().upper() else { return Ok(()) };
            let Ok(theirs) = etherparse::Ipv6Slice::from_slice(&bytes) else {
                // They look into what later fragments hold.
                prop_assert!(ours.fragment.is_some());
                return Ok(());
            };
            prop_assert_eq!(ours.fragment.is_some(), theirs.is_payload_fragmented());
            if ours.fragment.is_none_or(|part| part.offset == 0) {
                prop_assert_eq!(ours.protocol, theirs.payload().ip_number.0);
                prop_assert_eq!(ours.payload, theirs.payload().payload);
            }
        }
    }

    /// Bytes of the header after its first eight.
    fn header_tail(kind: u8, len: u8) -> usize {
        match kind {
            44 | 6 => 0,
            51 => authentication_len(len).map_or(0, |len| len - 8),
            _ => 8 * usize::from(len),
        }
    }
}
