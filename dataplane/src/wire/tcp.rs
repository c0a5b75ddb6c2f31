//! TCP (RFC 9293), as far as policy and connection tracking look at it.

use super::{WireError, be16};

/// Bytes of the header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// FIN flag (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// A segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    header: &'a [u8; MIN_HEADER_LEN],
}

impl<'a> Tcp<'a> {
    /// The view, if the bytes hold a whole header.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let header: &[u8; MIN_HEADER_LEN] = bytes.first_chunk().ok_or(WireError::Truncated)?;
        let len = usize::from(header[12] >> 4) * 4;
        if len < MIN_HEADER_LEN {
            Err(WireError::Malformed)
        } else if len > bytes.len() {
            Err(WireError::Truncated)
        } else {
            Ok(Self { header })
        }
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

    /// The eight flags.
    #[inline]
    pub const fn flags(&self) -> u8 {
        self.header[13]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literal_bytes() {
        let mut bytes = [
            0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x12, 0xfa, 0xf0, 0xbe, 0xef, 0,
            0, 2, 4, 5, 0xb4,
        ];
        let view = Tcp::new_checked(&bytes).unwrap();
        assert_eq!((view.source_port(), view.destination_port()), (40000, 5432));
        assert_eq!(view.flags(), SYN | ACK);
        assert_eq!(Tcp::new_checked(&bytes[..23]).unwrap_err(), WireError::Truncated);
        assert_eq!(Tcp::new_checked(&bytes[..19]).unwrap_err(), WireError::Truncated);
        bytes[12] = 0x40;
        assert_eq!(Tcp::new_checked(&bytes).unwrap_err(), WireError::Malformed);
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let theirs = etherparse::TcpHeaderSlice::from_slice(&bytes);
            let ours = Tcp::new_checked(&bytes);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.source_port(), theirs.source_port());
                prop_assert_eq!(ours.destination_port(), theirs.destination_port());
                let flag = |at: u8| ours.flags() & at != 0;
                prop_assert_eq!(flag(FIN), theirs.fin());
                prop_assert_eq!(flag(SYN), theirs.syn());
                prop_assert_eq!(flag(RST), theirs.rst());
                prop_assert_eq!(flag(ACK), theirs.ack());
            }
        }
    }
}
