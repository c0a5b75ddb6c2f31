//! One address type for both families.
//!
//! Tables, flow keys and ownership checks work on 128 bits throughout; an IPv4
//! address is held in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 section
//! 2.5.5.2). A packet that carries a mapped address on the wire is refused by
//! the parser, so the two families can't be confused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAPPED: u128 = 0xffff_0000_0000;

/// An IPv4 or IPv6 address as 128 bits in host order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr(u128);

impl Addr {
    /// The unspecified IPv6 address, which no packet is forwarded to or from.
    pub const UNSPECIFIED: Self = Self(0);

    /// An IPv4 address given as four bytes in network order.
    #[inline]
    pub const fn from_v4_bytes(bytes: [u8; 4]) -> Self {
        Self(MAPPED | u32::from_be_bytes(bytes) as u128)
    }

    /// An IPv6 address given as sixteen bytes in network order.
    #[inline]
    pub const fn from_v6_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The 128 bits in host order.
    #[inline]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The address with these 128 bits (host order).
    #[inline]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Whether this is an IPv4 address.
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == MAPPED >> 32
    }

    /// Whether packets from or to this address may be forwarded at all. They
    /// may not when it is unspecified, loopback, link-local, multicast or
    /// broadcast (RFC 1122 section 3.2.1.3, RFC 3927 section 7, RFC 4291
    /// sections 2.5 and 2.7). The formerly reserved 240.0.0.0/4 may: clusters
    /// use it for pods.
    pub const fn is_forwardable(self) -> bool {
        if self.is_v4() {
            let [a, b, ..] = (self.0 as u32).to_be_bytes();
            let never = matches!((a, b), (0 | 127 | 224..=239, _) | (169, 254));
            !never && self.0 as u32 != u32::MAX
        } else {
            // ::/96 holds the unspecified and the loopback address, and the
            // deprecated IPv4-compatible ones.
            self.0 >> 32 != 0 && self.0 >> 120 != 0xff && self.0 >> 118 != 0xfe80 >> 6
        }
    }

    /// The address in the standard library's form.
    pub fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from(self.0 as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => ip.into(),
            IpAddr::V6(ip) => ip.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_bytes(ip.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self::from_v6_bytes(ip.octets())
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

/// An address prefix; the length counts from the left of the 128 bits, so an
/// IPv4 `/26` is stored as 122.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// The prefix of `addr` with a length in its own family's terms (0 to 32,
    /// or 0 to 128); host bits are cleared. `None` when the length is too long.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let (max, offset) = if addr.is_ipv4() { (32, 96) } else { (128, 0) };
        (len <= max).then(|| Self::from_bits(Addr::from(addr).bits(), len + offset))
    }

    /// The prefix that holds just this address.
    pub const fn host(addr: Addr) -> Self {
        Self { bits: addr.bits(), len: 128 }
    }

    pub(crate) const fn from_bits(bits: u128, len: u8) -> Self {
        Self { bits: bits & mask(len), len }
    }

    /// The first address of the prefix.
    pub const fn addr(&self) -> Addr {
        Addr::from_bits(self.bits)
    }

    /// The length over 128 bits (IPv4 lengths plus 96).
    pub const fn len128(&self) -> u8 {
        self.len
    }

    /// The length in the address's own family's terms.
    pub const fn len(&self) -> u8 {
        if self.is_v4() { self.len - 96 } else { self.len }
    }

    /// Whether the prefix holds every address of its family.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is an IPv4 prefix.
    pub const fn is_v4(&self) -> bool {
        self.len >= 96 && self.addr().is_v4()
    }

    /// Whether `addr` lies in the prefix.
    pub const fn contains(&self, addr: Addr) -> bool {
        addr.bits() & mask(self.len) == self.bits && self.is_v4() == addr.is_v4()
    }

    /// Whether one of the two prefixes holds the other.
    pub const fn overlaps(&self, other: &Self) -> bool {
        if self.is_v4() != other.is_v4() {
            return false;
        }
        let len = if self.len < other.len { self.len } else { other.len };
        (self.bits ^ other.bits) & mask(len) == 0
    }
}

/// The network mask of a length from 0 to 128, as bits in host order.
#[inline]
pub(crate) const fn mask(len: u8) -> u128 {
    if len == 0 { 0 } else { u128::MAX << (128 - len as u32) }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or a CIDR such as 10.0.0.0/8 or fd00::/64")]
pub struct PrefixError(pub String);

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `ADDRESS` or `ADDRESS/LENGTH`; host bits are cleared.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let error = || PrefixError(text.to_owned());
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| error())?;
        let full = if addr.is_ipv4() { 32 } else { 128 };
        Self::new(addr, len.unwrap_or(full)).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_stay_apart() {
        let v4 = Addr::from(Ipv4Addr::new(10, 0, 0, 1));
        assert!(v4.is_v4());
        assert_eq!(v4.to_ip(), "10.0.0.1".parse::<IpAddr>().unwrap());
        let v6 = Addr::from("fd00::1".parse::<Ipv6Addr>().unwrap());
        assert!(!v6.is_v4());
        assert_eq!(v6.to_string(), "fd00::1");
        assert!(!"::/0".parse::<Prefix>().unwrap().is_v4());
        assert!("0.0.0.0/0".parse::<Prefix>().unwrap().is_v4());
        assert!(!"0.0.0.0/0".parse::<Prefix>().unwrap().contains(v6));
        assert!(!"::/0".parse::<Prefix>().unwrap().contains(v4));
    }

    #[test]
    fn some_addresses_are_never_forwarded() {
        let forwardable = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap()).is_forwardable();
        for text in ["10.0.0.1", "1.0.0.0", "223.255.255.255", "240.0.0.1", "169.253.0.1"] {
            assert!(forwardable(text), "{text}");
        }
        for text in ["0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "255.255.255.255"] {
            assert!(!forwardable(text), "{text}");
        }
        for text in ["fd00::1", "2001:db8::1", "fec0::1", "::1:0:0:1"] {
            assert!(forwardable(text), "{text}");
        }
        for text in ["::", "::1", "fe80::1", "febf::1", "ff02::1", "::10.0.0.1", "169.254.1.1"] {
            assert!(!forwardable(text), "{text}");
        }
    }

    #[test]
    fn prefixes_contain_and_overlap() {
        let p: Prefix = "10.1.2.70/26".parse().unwrap();
        assert_eq!(p.to_string(), "10.1.2.64/26");
        assert!(p.contains("10.1.2.127".parse::<IpAddr>().unwrap().into()));
        assert!(!p.contains("10.1.2.128".parse::<IpAddr>().unwrap().into()));
        assert!(p.overlaps(&"10.1.0.0/16".parse().unwrap()));
        assert!(!p.overlaps(&"10.1.2.128/26".parse().unwrap()));
        assert!("10.1.2.3/33".parse::<Prefix>().is_err());
        assert!("fd00::/129".parse::<Prefix>().is_err());
        assert!("pod/3".parse::<Prefix>().is_err());
    }
}
