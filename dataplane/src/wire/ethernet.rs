//! Ethernet II (IEEE 802.3 section 3.2), without VLAN tags.

use super::{MacAddr, WireError, be16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// The view, if the bytes hold a header.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, payload) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
        Ok(Self { header, payload })
    }

    /// Destination address.
    #[inline]
    pub const fn destination(&self) -> MacAddr {
        let [a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// Source address.
    #[inline]
    pub const fn source(&self) -> MacAddr {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.header;
        MacAddr([a, b, c, d, e, f])
    }

    /// EtherType.
    #[inline]
    pub const fn ethertype(&self) -> u16 {
        be16(self.header, 12)
    }

    /// What follows the header, padding included.
    #[inline]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literal_bytes() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd, 0x60];
        let view = Ethernet::new_checked(&bytes).unwrap();
        assert_eq!(view.destination(), MacAddr([1, 2, 3, 4, 5, 6]));
        assert_eq!(view.source(), MacAddr([7, 8, 9, 10, 11, 12]));
        assert_eq!(view.ethertype(), ETHERTYPE_IPV6);
        assert_eq!(view.payload(), [0x60]);
        assert_eq!(Ethernet::new_checked(&bytes[..13]).unwrap_err(), WireError::Truncated);
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            let theirs = etherparse::Ethernet2HeaderSlice::from_slice(&bytes);
            let ours = Ethernet::new_checked(&bytes);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                prop_assert_eq!(ours.destination().0, theirs.destination());
                prop_assert_eq!(ours.source().0, theirs.source());
                prop_assert_eq!(ours.ethertype(), theirs.ether_type().0);
            }
        }
    }
}
