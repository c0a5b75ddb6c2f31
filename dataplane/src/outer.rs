//! The headers around an inner frame: Ethernet, IP, UDP, VXLAN.

use crate::addr::Addr;
use crate::tables::{Overlay, Path, Vtep};
use crate::verdict::DropReason;
use crate::wire::{checksum, ethernet, protocol, udp, vxlan};

/// Bytes of the outer headers over IPv4.
pub const OVERHEAD_V4: u32 = 14 + 20 + 8 + 8;

/// Bytes of the outer headers over IPv6.
pub const OVERHEAD_V6: u32 = 14 + 40 + 8 + 8;

/// TTL or hop limit of what we send: the kernel's own default.
const TTL: u8 = 64;

const UDP_VXLAN_LEN: usize = udp::HEADER_LEN + vxlan::HEADER_LEN;

/// Bytes of the outer headers towards an underlay address.
#[inline]
pub const fn overhead(underlay: Addr) -> u32 {
    if underlay.is_v4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

/// What changes from packet to packet.
#[derive(Clone, Copy, Debug)]
pub struct Varying {
    /// ECN bits of the outer header (RFC 6040).
    pub ecn: u8,
    /// Hash of the inner flow, the same for both directions: it becomes the UDP
    /// source port (RFC 7348 section 5), so that the underlay spreads flows.
    pub hash: u64,
}

/// The UDP source port for a flow: 49152 to 65535.
#[inline]
pub const fn source_port(hash: u64) -> u16 {
    // The low bits choose the flow table's line; these are others.
    0xc000 | (hash >> 48) as u16 & 0x3fff
}

/// Writes the outer headers in front of an inner frame. `bytes` begins with
/// [`overhead`] bytes for them and goes on with the inner frame.
#[inline]
pub fn write(
    bytes: &mut [u8],
    overlay: &Overlay,
    vtep: &Vtep,
    path: &Path,
    varying: Varying,
) -> Result<(), DropReason> {
    let (destination, source) = (vtep.underlay, path.source);
    if destination.is_v4() {
        let (outer, inner) = bytes.split_first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
        write_v4(outer, inner, overlay, (source, destination), path, varying)
    } else {
        let (outer, inner) = bytes.split_first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
        write_v6(outer, inner, overlay, (source, destination), path, varying)
    }
}

fn write_v4(
    outer: &mut [u8; OVERHEAD_V4 as usize],
    inner: &[u8],
    overlay: &Overlay,
    (source, destination): (Addr, Addr),
    path: &Path,
    varying: Varying,
) -> Result<(), DropReason> {
    let udp_len = u16::try_from(UDP_VXLAN_LEN + inner.len()).map_err(|_| DropReason::TooBig)?;
    let total_len = udp_len.checked_add(20).ok_or(DropReason::TooBig)?;
    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[1] = varying.ecn;
    ip[2..4].copy_from_slice(&total_len.to_be_bytes());
    // A VTEP must not fragment (RFC 7348 section 4.3). With DF set, the
    // identification has no meaning (RFC 6864 section 4.1).
    ip[6] = 0x40;
    ip[8] = TTL;
    ip[9] = protocol::UDP;
    ip[12..16].copy_from_slice(&(source.bits() as u32).to_be_bytes());
    ip[16..20].copy_from_slice(&(destination.bits() as u32).to_be_bytes());
    let sum = checksum::finish(checksum::sum(&ip));
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    write_ethernet(&mut outer[..14], path, ethernet::ETHERTYPE_IPV4);
    outer[14..34].copy_from_slice(&ip);
    // RFC 7348 section 5: the checksum should be zero over IPv4.
    outer[34..].copy_from_slice(&udp_vxlan(overlay, udp_len, varying));
    Ok(())
}

fn write_v6(
    outer: &mut [u8; OVERHEAD_V6 as usize],
    inner: &[u8],
    overlay: &Overlay,
    (source, destination): (Addr, Addr),
    path: &Path,
    varying: Varying,
) -> Result<(), DropReason> {
    let udp_len = u16::try_from(UDP_VXLAN_LEN + inner.len()).map_err(|_| DropReason::TooBig)?;
    let mut ip = [0; 40];
    ip[0] = 0x60;
    ip[1] = varying.ecn << 4;
    ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
    ip[6] = protocol::UDP;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&source.bits().to_be_bytes());
    ip[24..40].copy_from_slice(&destination.bits().to_be_bytes());
    let mut udp = udp_vxlan(overlay, udp_len, varying);
    if overlay.udp6_checksum {
        // Each part has an even length, so the sums may be added.
        let pseudo = u64::from(udp_len) + u64::from(protocol::UDP);
        let sum = pseudo + checksum::sum(&ip[8..]) + checksum::sum(&udp) + checksum::sum(inner);
        // RFC 768: a sum of zero is sent as all ones.
        let sum = match checksum::finish(sum) {
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    write_ethernet(&mut outer[..14], path, ethernet::ETHERTYPE_IPV6);
    outer[14..54].copy_from_slice(&ip);
    outer[54..].copy_from_slice(&udp);
    Ok(())
}

fn write_ethernet(bytes: &mut [u8], path: &Path, ethertype: u16) {
    bytes[..6].copy_from_slice(&path.next_hop_mac.0);
    bytes[6..12].copy_from_slice(&path.source_mac.0);
    bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// UDP header, its checksum zero, and VXLAN header.
fn udp_vxlan(overlay: &Overlay, udp_len: u16, varying: Varying) -> [u8; UDP_VXLAN_LEN] {
    let mut bytes = [0; UDP_VXLAN_LEN];
    bytes[..2].copy_from_slice(&source_port(varying.hash).to_be_bytes());
    bytes[2..4].copy_from_slice(&overlay.port.to_be_bytes());
    bytes[4..6].copy_from_slice(&udp_len.to_be_bytes());
    // Flag I; all reserved bits are sent as zero (RFC 7348 section 5).
    bytes[8] = 0x08;
    bytes[12..16].copy_from_slice(&(overlay.vni.get() << 8).to_be_bytes());
    bytes
}
