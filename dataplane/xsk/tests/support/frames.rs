//! Frames as they come on an underlay.

pub(crate) const PEER: &str = "192.0.2.1";
pub(crate) const OWN: &str = "192.0.2.2";
pub(crate) const PEER6: &str = "2001:db8::1";
pub(crate) const OWN6: &str = "2001:db8::2";

/// A UDP header to `port`, and eight bytes for VXLAN's.
pub(crate) fn udp(port: u16) -> Vec<u8> {
    let mut bytes = vec![0xc0, 0x01];
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 16, 0, 0]);
    bytes.extend([0x08, 0, 0, 0, 0, 0x10, 0, 0]);
    bytes
}

pub(crate) fn ethernet(ethertype: u16, payload: Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What is told apart in the frames of the table.
pub(crate) struct V4 {
    pub(crate) version: u8,
    pub(crate) options: usize,
    /// The header's length in words, where it is not the true one.
    pub(crate) claimed_words: Option<u8>,
    pub(crate) flags_and_offset: u16,
    pub(crate) protocol: u8,
    pub(crate) source: &'static str,
    pub(crate) destination: &'static str,
    pub(crate) port: u16,
}

pub(crate) const GOOD: V4 = V4 {
    version: 4,
    options: 0,
    claimed_words: None,
    flags_and_offset: 0x4000,
    protocol: 17,
    source: PEER,
    destination: OWN,
    port: 4789,
};

impl V4 {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let words = self.claimed_words.unwrap_or(5 + self.options as u8 / 4);
        let mut bytes = vec![self.version << 4 | words, 0, 0, 36, 0, 1];
        bytes.extend(self.flags_and_offset.to_be_bytes());
        bytes.extend([64, self.protocol, 0, 0]);
        for address in [self.source, self.destination] {
            bytes.extend(address.parse::<std::net::Ipv4Addr>().unwrap().octets());
        }
        bytes.resize(20 + self.options, 1);
        bytes.extend(udp(self.port));
        ethernet(0x0800, bytes)
    }
}

pub(crate) fn v6(version: u8, next: u8, source: &str, destination: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![version << 4, 0, 0, 0, 0, 16, next, 64];
    for address in [source, destination] {
        bytes.extend(address.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    bytes.extend(udp(port));
    ethernet(0x86dd, bytes)
}

/// A UDP datagram behind an extension header, whose eight bytes look like UDP
/// to the VXLAN port.
pub(crate) fn v6_extension(next: u8) -> Vec<u8> {
    let mut frame = v6(6, next, PEER6, OWN6, 4789);
    let mut extension = vec![17, 0];
    extension.extend(4789u16.to_be_bytes());
    extension.extend([0; 4]);
    frame.splice(54..54, extension);
    frame
}
