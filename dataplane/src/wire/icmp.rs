//! ICMP (RFC 792) and ICMPv6 (RFC 4443), whose first eight bytes are alike.

use super::{WireError, be16, protocol};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// Echo reply of ICMP.
pub const ECHO_REPLY: u8 = 0;
/// Echo request of ICMP.
pub const ECHO_REQUEST: u8 = 8;
/// Echo request of ICMPv6.
pub const ECHO_REQUEST_V6: u8 = 128;
/// Echo reply of ICMPv6.
pub const ECHO_REPLY_V6: u8 = 129;

/// A message.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<'a> {
    header: &'a [u8; HEADER_LEN],
    body: &'a [u8],
}

impl<'a> Icmp<'a> {
    /// The view, if the bytes hold a header.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, body) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
        Ok(Self { header, body })
    }

    /// Type in the upper half, code in the lower.
    #[inline]
    pub const fn type_and_code(&self) -> u16 {
        be16(self.header, 0)
    }

    /// Identifier of an echo message; means something else in other messages.
    #[inline]
    pub const fn ident(&self) -> u16 {
        be16(self.header, 4)
    }

    /// What follows the header: in an error, the packet that it is about.
    #[inline]
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Whether a message reports an error about a packet, which it quotes:
/// destination unreachable, time exceeded, parameter problem, and too big of
/// ICMPv6. Source quench is deprecated (RFC 6633), and a redirect has no
/// meaning beyond its link; neither counts.
#[inline]
pub const fn is_error(protocol: u8, type_and_code: u16) -> bool {
    let kind = type_and_code >> 8;
    match protocol {
        protocol::ICMP => matches!(kind, 3 | 11 | 12),
        protocol::ICMPV6 => matches!(kind, 1..=4),
        _ => false,
    }
}

/// Whether a message is an echo request or reply, whose identifier names the
/// exchange.
#[inline]
pub const fn is_echo(protocol: u8, type_and_code: u16) -> bool {
    let kind = (type_and_code >> 8) as u8;
    match protocol {
        protocol::ICMP => matches!(kind, ECHO_REPLY | ECHO_REQUEST),
        protocol::ICMPV6 => matches!(kind, ECHO_REQUEST_V6 | ECHO_REPLY_V6),
        _ => false,
    }
}

/// Whether a message is an echo reply, the only one that answers another.
#[inline]
pub const fn is_echo_reply(protocol: u8, type_and_code: u16) -> bool {
    let kind = (type_and_code >> 8) as u8;
    match protocol {
        protocol::ICMP => kind == ECHO_REPLY,
        protocol::ICMPV6 => kind == ECHO_REPLY_V6,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literal_bytes() {
        let bytes = [8, 0, 0xbe, 0xef, 0x12, 0x34, 0, 1, 9];
        let view = Icmp::new_checked(&bytes).unwrap();
        assert_eq!((view.type_and_code(), view.ident(), view.body()), (0x0800, 0x1234, &[9][..]));
        assert_eq!(Icmp::new_checked(&bytes[..7]).unwrap_err(), WireError::Truncated);
    }

    #[test]
    fn kinds_of_messages() {
        assert!(is_error(1, 0x0303) && is_error(1, 0x0b00) && is_error(58, 0x0200));
        assert!(!is_error(1, 0x0500) && !is_error(58, 0x8000) && !is_error(6, 0x0303));
        assert!(is_echo(1, 0x0800) && is_echo(1, 0) && is_echo(58, 0x8100));
        assert!(!is_echo(58, 0x0800) && !is_echo(1, 0x8000) && !is_echo(17, 0));
    }

    proptest! {
        #[test]
        fn agrees_with_etherparse(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let theirs = etherparse::Icmpv6Slice::from_slice(&bytes);
            let ours = Icmp::new_checked(&bytes);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok());
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                let [kind, code] = ours.type_and_code().to_be_bytes();
                prop_assert_eq!((kind, code), (theirs.type_u8(), theirs.code_u8()));
                prop_assert_eq!(ours.ident().to_be_bytes(), &theirs.bytes5to8()[..2]);
                prop_assert_eq!(ours.body(), theirs.payload());
            }
            // For ICMPv4 they also want the twenty bytes of a timestamp message.
            if let (Ok(ours), Ok(theirs)) =
                (Icmp::new_checked(&bytes), etherparse::Icmpv4Slice::from_slice(&bytes))
            {
                prop_assert_eq!(ours.type_and_code() >> 8, u16::from(theirs.type_u8()));
                prop_assert_eq!(ours.ident().to_be_bytes(), &theirs.bytes5to8()[..2]);
            }
        }
    }
}
