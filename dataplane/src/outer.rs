//! The headers around an inner frame: Ethernet, IP, UDP, VXLAN.
//!
//! What does not change from packet to packet is laid out once per VTEP, when
//! the tables are built ([`Header::new`]); a packet copies it and fills in
//! lengths, checksum, ECN bits and source port. Building the headers field by
//! field and copying them afterwards costs more than twice as much, because
//! wide loads have to wait for the narrow stores before them.

use crate::tables::{Overlay, Path, VtepSpec};
use crate::verdict::DropReason;
use crate::wire::{checksum, ethernet, protocol, udp, vxlan};

/// Bytes of the outer headers over IPv4.
pub const OVERHEAD_V4: u32 = 14 + 20 + 8 + 8;

/// Bytes of the outer headers over IPv6.
pub const OVERHEAD_V6: u32 = 14 + 40 + 8 + 8;

const V4: usize = OVERHEAD_V4 as usize;
const V6: usize = OVERHEAD_V6 as usize;

/// Bytes of the inner MAC addresses, which change with the outer headers.
const MACS: usize = 12;

/// Where the IP header begins.
const IP: usize = ethernet::HEADER_LEN;

/// TTL or hop limit of what we send: the kernel's own default.
const TTL: u8 = 64;

const UDP_VXLAN_LEN: usize = udp::HEADER_LEN + vxlan::HEADER_LEN;

/// What changes from packet to packet, besides lengths.
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

/// The headers towards one VTEP with what is the same in every packet; lengths,
/// checksums, ports, VNI and the inner source MAC are zero.
#[repr(align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; V6 + MACS],
    v4: bool,
    /// IPv4: sum of the IP header. IPv6: sum of the pseudo header without the
    /// length. The carries are folded in.
    sum: u16,
}

impl Header {
    /// The headers towards a VTEP over a path.
    pub fn new(vtep: &VtepSpec, path: &Path) -> Self {
        let mut bytes = [0; V6 + MACS];
        bytes[..6].copy_from_slice(&path.next_hop_mac.0);
        bytes[6..12].copy_from_slice(&path.source_mac.0);
        let (source, destination) = (path.source.bits(), vtep.underlay.bits());
        let v4 = vtep.underlay.is_v4();
        let (ethertype, overhead) = if v4 {
            let ip = &mut bytes[IP..][..20];
            ip[0] = 0x45;
            // A VTEP must not fragment (RFC 7348 section 4.3). With DF set, the
            // identification has no meaning (RFC 6864 section 4.1).
            ip[6] = 0x40;
            (ip[8], ip[9]) = (TTL, protocol::UDP);
            ip[12..16].copy_from_slice(&(source as u32).to_be_bytes());
            ip[16..20].copy_from_slice(&(destination as u32).to_be_bytes());
            (ethernet::ETHERTYPE_IPV4, V4)
        } else {
            let ip = &mut bytes[IP..][..40];
            ip[0] = 0x60;
            (ip[6], ip[7]) = (protocol::UDP, TTL);
            ip[8..24].copy_from_slice(&source.to_be_bytes());
            ip[24..40].copy_from_slice(&destination.to_be_bytes());
            (ethernet::ETHERTYPE_IPV6, V6)
        };
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        // Flag I; all reserved bits are sent as zero (RFC 7348 section 5).
        bytes[overhead - vxlan::HEADER_LEN] = 0x08;
        bytes[overhead..overhead + 6].copy_from_slice(&vtep.mac.0);
        let sum = if v4 {
            checksum::sum(&bytes[IP..][..20])
        } else {
            checksum::sum(&bytes[IP + 8..][..32]) + u64::from(protocol::UDP)
        };
        Self { bytes, v4, sum: !checksum::finish(sum) }
    }

    /// Bytes that the headers put in front of a frame.
    #[inline]
    pub const fn overhead(&self) -> u32 {
        if self.v4 { OVERHEAD_V4 } else { OVERHEAD_V6 }
    }

    /// Writes the headers and the inner MACs. `bytes` begins with
    /// [`overhead`](Self::overhead) bytes for them and goes on with the inner
    /// frame.
    #[inline]
    pub fn write(
        &self,
        bytes: &mut [u8],
        overlay: &Overlay,
        varying: Varying,
    ) -> Result<(), DropReason> {
        if self.v4 {
            self.write_v4(bytes, overlay, varying)
        } else {
            self.write_v6(bytes, overlay, varying)
        }
    }

    #[inline]
    fn write_v4(
        &self,
        bytes: &mut [u8],
        overlay: &Overlay,
        varying: Varying,
    ) -> Result<(), DropReason> {
        let len = bytes.len();
        let front: &mut [u8; V4 + MACS] = bytes.first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
        let total_len = u16::try_from(len - IP).map_err(|_| DropReason::TooBig)?;
        front.copy_from_slice(&self.bytes[..V4 + MACS]);
        front[IP + 1] = varying.ecn;
        front[IP + 2..IP + 4].copy_from_slice(&total_len.to_be_bytes());
        let sum = u32::from(self.sum) + u32::from(total_len) + u32::from(varying.ecn);
        front[IP + 10..IP + 12].copy_from_slice(&checksum::finish_small(sum).to_be_bytes());
        // RFC 7348 section 5: the UDP checksum should be zero over IPv4.
        fill_udp_vxlan(&mut front[IP + 20..V4], total_len - 20, overlay, varying);
        front[V4 + 6..].copy_from_slice(&overlay.mac_v4.0);
        Ok(())
    }

    #[inline]
    fn write_v6(
        &self,
        bytes: &mut [u8],
        overlay: &Overlay,
        varying: Varying,
    ) -> Result<(), DropReason> {
        let len = bytes.len();
        let front: &mut [u8; V6 + MACS] = bytes.first_chunk_mut().ok_or(DropReason::NoHeadroom)?;
        let udp_len = u16::try_from(len - V6 + UDP_VXLAN_LEN).map_err(|_| DropReason::TooBig)?;
        front.copy_from_slice(&self.bytes);
        front[IP + 1] = varying.ecn << 4;
        front[IP + 4..IP + 6].copy_from_slice(&udp_len.to_be_bytes());
        fill_udp_vxlan(&mut front[IP + 40..V6], udp_len, overlay, varying);
        front[V6 + 6..].copy_from_slice(&overlay.mac_v6.0);
        if overlay.udp6_checksum {
            let sum = u64::from(self.sum) + u64::from(udp_len) + checksum::sum(&bytes[IP + 40..]);
            // RFC 768: a sum of zero is sent as all ones.
            let sum = match checksum::finish(sum) {
                0 => 0xffff,
                sum => sum,
            };
            bytes[IP + 46..IP + 48].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(())
    }
}

/// Fills in ports, length and network of the UDP and VXLAN headers.
#[inline]
fn fill_udp_vxlan(bytes: &mut [u8], udp_len: u16, overlay: &Overlay, varying: Varying) {
    bytes[..2].copy_from_slice(&source_port(varying.hash).to_be_bytes());
    bytes[2..4].copy_from_slice(&overlay.port.to_be_bytes());
    bytes[4..6].copy_from_slice(&udp_len.to_be_bytes());
    bytes[12..16].copy_from_slice(&(overlay.vni.get() << 8).to_be_bytes());
}
