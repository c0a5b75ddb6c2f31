//! UDP (RFC 768).

use super::{WireError, be16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A datagram.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    header: &'a [u8; HEADER_LEN],
    /// Header and payload, as long as the length field says.
    bytes: &'a [u8],
}

impl<'a> Udp<'a> {
    /// The view of a whole datagram. Bytes beyond its length are not part of
    /// it. The length 0 of jumbograms (RFC 2675) is refused.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(WireError::Truncated)?;
        let len = usize::from(be16(header, 4));
        if len < HEADER_LEN {
            return Err(WireError::Malformed);
        }
        let bytes = bytes.get(..len).ok_or(WireError::Truncated)?;
        Ok(Self { header, bytes })
    }

    /// Source port.
    #[inline]
    pub const fn source_port(&self) -> u16 {
        be16(self.header, 0)
    }

    /// Destination port.
    #[inline]
    pub const fn destination_port(&self) -> u16 {
        be16(self.header, 2)
    }

    /// Bytes of header and payload.
    #[inline]
    pub const fn length(&self) -> u16 {
        be16(self.header, 4)
    }

    /// Checksum; 0 means none was computed.
    #[inline]
    pub const fn checksum(&self) -> u16 {
        be16(self.header, 6)
    }

    /// Header and payload.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The payload.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literal_bytes() {
        let mut bytes = [0xc0, 0x01, 0x12, 0xb5, 0x00, 0x0a, 0xbe, 0xef, 1, 2, 3];
        let view = Udp::new_checked(&bytes).unwrap();
        assert_eq!((view.source_port(), view.destination_port()), (0xc001, 4789));
        assert_eq!((view.length(), view.checksum(), view.payload()), (10, 0xbeef, &[1, 2][..]));
        assert_eq!(view.bytes().len(), 10);
        bytes[5] = 7;
        assert_eq!(Udp::new_checked(&bytes).unwrap_err(), WireError::Malformed);
        bytes[5] = 12;
        assert_eq!(Udp::new_checked(&bytes).unwrap_err(), WireError::Truncated);
        assert_eq!(Udp::new_checked(&bytes[..7]).unwrap_err(), WireError::Truncated);
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(
            mut bytes in prop::collection::vec(any::<u8>(), 0..40),
            len in 1u8..45,
        ) {
            if let [_, _, _, _, high, low, ..] = &mut bytes[..] {
                (*high, *low) = (0, len);
            }
            let theirs = etherparse::UdpSlice::from_slice(&bytes);
            let ours = Udp::new_checked(&bytes);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.source_port(), theirs.source_port());
                prop_assert_eq!(ours.destination_port(), theirs.destination_port());
                prop_assert_eq!(ours.length(), theirs.length());
                prop_assert_eq!(ours.checksum(), theirs.checksum());
                prop_assert_eq!(ours.payload(), theirs.payload());
            }
        }
    }
}
