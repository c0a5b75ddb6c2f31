//! An IP packet as far as forwarding and policy need it.
//!
//! [`Packet::parse`] reads one packet of either family. It refuses what would
//! let policy judge something else than what the receiver acts on: IPv4-mapped
//! addresses in IPv6 ([`Addr`] holds IPv4 in that form), routes prescribed by
//! the sender, and first fragments that end within the transport header.
//! Whether an address may be forwarded at all is not asked here but where a
//! flow begins ([`Addr::is_forwardable`]).

use super::icmp::{self, Icmp};
use super::ipv4::Ipv4;
use super::ipv6::{self, Ipv6};
use super::tcp::Tcp;
use super::{WireError, be16, protocol, udp};
use crate::addr::Addr;

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Bytes from the IP header to the packet's end.
    pub total_len: u32,
    /// Whether this is a part of a packet.
    pub fragment: Fragment,
    /// Source port; 0 where the protocol has none, and in later fragments.
    pub source_port: u16,
    /// Destination port; of ICMP and ICMPv6 the type times 256 plus the code;
    /// 0 where the protocol has none, and in later fragments.
    pub destination_port: u16,
    /// ICMP and ICMPv6: the identifier of an echo message.
    pub icmp_ident: u16,
    /// Protocol behind extension and authentication headers.
    pub protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// ECN bits.
    pub ecn: u8,
    /// TTL or hop limit.
    pub ttl: u8,
}

/// Whether a packet is whole.
///
/// The identification of an IPv4 packet is its 16 bits, and above them the
/// protocol of its IP header, without which it is not unique (RFC 791): later
/// fragments tell no other one, although an authentication header may have
/// stood before [`Packet::protocol`] in the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    #[default]
    None,
    /// It is the first part, with the transport header.
    First {
        /// Identification of the packet that it is a part of.
        ident: u32,
    },
    /// It is a later part, without any ports.
    Later {
        /// Identification of the packet that it is a part of.
        ident: u32,
    },
}

impl Packet {
    /// Reads the IPv4 packet at the beginning of `ip`; bytes after its end
    /// (padding) are ignored. The header's checksum is verified, no other one.
    #[inline(always)]
    pub fn parse_v4(ip: &[u8]) -> Result<Self, WireError> {
        let view = Ipv4::new_checked(ip)?;
        if !view.verify_checksum() {
            return Err(WireError::Checksum);
        }
        let (mut packet, payload) = Self::of_v4(&view)?;
        packet.read_transport(payload)?;
        Ok(packet)
    }

    /// Reads the IPv6 packet at the beginning of `ip`; bytes after its end
    /// (padding) are ignored.
    #[inline(always)]
    pub fn parse_v6(ip: &[u8]) -> Result<Self, WireError> {
        let (mut packet, payload) = Self::of_v6(&Ipv6::new_checked(ip)?)?;
        packet.read_transport(payload)?;
        Ok(packet)
    }

    /// Reads a packet of either family.
    #[inline]
    pub fn parse(ip: &[u8]) -> Result<Self, WireError> {
        match ip.first().ok_or(WireError::Truncated)? >> 4 {
            4 => Self::parse_v4(ip),
            6 => Self::parse_v6(ip),
            _ => Err(WireError::Malformed),
        }
    }

    /// What the IP header says, and what it carries.
    #[inline(always)]
    fn of_v4<'a>(view: &Ipv4<'a>) -> Result<(Self, &'a [u8]), WireError> {
        let ident = u32::from(view.protocol()) << 16 | u32::from(view.ident());
        let fragment = match (view.fragment_offset(), view.more_fragments()) {
            (0, false) => Fragment::None,
            (0, true) => Fragment::First { ident },
            // It would overwrite the flags of its first fragment (RFC 3128).
            (1, _) if view.protocol() == protocol::TCP => return Err(WireError::Malformed),
            _ => Fragment::Later { ident },
        };
        if view.is_source_routed() {
            return Err(WireError::Unsupported);
        }
        let mut packet = Self {
            src: Addr::from_v4_bytes(view.source()),
            dst: Addr::from_v4_bytes(view.destination()),
            total_len: view.total_len().into(),
            fragment,
            protocol: view.protocol(),
            ecn: view.ecn(),
            ttl: view.ttl(),
            ..Self::default()
        };
        let mut payload = view.payload();
        if packet.protocol == protocol::AUTHENTICATION && !packet.is_later_fragment() {
            (packet.protocol, payload) = skip_authentication(payload)?;
        }
        Ok((packet, payload))
    }

    #[inline(always)]
    fn of_v6<'a>(view: &Ipv6<'a>) -> Result<(Self, &'a [u8]), WireError> {
        let upper = view.upper()?;
        let fragment = match upper.fragment {
            None => Fragment::None,
            Some(part) if part.offset == 0 => Fragment::First { ident: part.ident },
            Some(part) => Fragment::Later { ident: part.ident },
        };
        let packet = Self {
            src: Addr::from_v6_bytes(view.source()),
            dst: Addr::from_v6_bytes(view.destination()),
            total_len: ipv6::HEADER_LEN as u32 + u32::from(view.payload_len()),
            fragment,
            protocol: upper.protocol,
            ecn: view.ecn(),
            ttl: view.hop_limit(),
            ..Self::default()
        };
        if packet.src.is_v4() || packet.dst.is_v4() {
            return Err(WireError::Malformed);
        }
        Ok((packet, upper.payload))
    }

    #[inline(always)]
    fn read_transport(&mut self, payload: &[u8]) -> Result<(), WireError> {
        if self.is_later_fragment() {
            return Ok(());
        }
        match self.protocol {
            protocol::TCP => {
                let tcp = Tcp::new_checked(payload)?;
                self.source_port = tcp.source_port();
                self.destination_port = tcp.destination_port();
                self.tcp_flags = tcp.flags();
            }
            protocol::UDP | protocol::SCTP => self.read_ports(payload)?,
            protocol::ICMP | protocol::ICMPV6 => {
                let icmp = Icmp::new_checked(payload)?;
                self.destination_port = icmp.type_and_code();
                self.icmp_ident = icmp.ident();
            }
            _ => {}
        }
        Ok(())
    }

    /// The ports of UDP, SCTP, and a TCP header that is cut off: their place is
    /// the same, and eight bytes are the least that each of them has.
    #[inline]
    fn read_ports(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let header: &[u8; udp::HEADER_LEN] = payload.first_chunk().ok_or(WireError::Truncated)?;
        self.source_port = be16(header, 0);
        self.destination_port = be16(header, 2);
        Ok(())
    }

    #[inline]
    const fn is_later_fragment(&self) -> bool {
        matches!(self.fragment, Fragment::Later { .. })
    }

    /// Whether this is an ICMP error about another packet.
    #[inline]
    pub const fn is_icmp_error(&self) -> bool {
        icmp::is_error(self.protocol, self.destination_port) && !self.is_later_fragment()
    }

    /// The packet that this ICMP error is about, as far as its own sender wrote
    /// it into the error; `ip` are this packet's bytes. At least eight bytes of
    /// its transport must be there (RFC 792; RFC 4443 sends more). Neither its
    /// checksum nor its length is held to: both may have changed on the way.
    #[cold]
    pub fn quoted(&self, ip: &[u8]) -> Option<Self> {
        if !self.is_icmp_error() {
            return None;
        }
        let (mut quoted, payload) = if self.src.is_v4() {
            let (_, payload) = Self::of_v4(&Ipv4::new_checked(ip).ok()?).ok()?;
            Self::of_v4(&Ipv4::new_cut(Icmp::new_checked(payload).ok()?.body()).ok()?).ok()?
        } else {
            let (_, payload) = Self::of_v6(&Ipv6::new_checked(ip).ok()?).ok()?;
            Self::of_v6(&Ipv6::new_cut(Icmp::new_checked(payload).ok()?.body()).ok()?).ok()?
        };
        let read = match quoted.protocol {
            protocol::TCP if !quoted.is_later_fragment() => quoted.read_ports(payload),
            _ => quoted.read_transport(payload),
        };
        read.ok()?;
        Some(quoted)
    }
}

/// What an authentication header (RFC 4302) names as next, and the bytes there.
#[cold]
fn skip_authentication(payload: &[u8]) -> Result<(u8, &[u8]), WireError> {
    let [next, len, ..] = *payload else { return Err(WireError::Truncated) };
    let rest = payload.get(ipv6::authentication_len(len)?..).ok_or(WireError::Truncated)?;
    Ok((next, rest))
}

#[cfg(test)]
mod tests;
