//! What a device is asked to finish on a frame that this machine has sent.

/// `struct virtio_net_hdr` (linux/virtio_net.h), which comes before each frame
/// with `PACKET_VNET_HDR`, in the machine's byte order. Zeros ask for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

const NEEDS_CHECKSUM: u8 = 1;
/// Where UDP has its checksum, in which zero means that there is none.
const UDP_CHECKSUM: u16 = 6;

impl VnetHeader {
    /// Whether the frame is several packets that the device was to cut apart.
    pub(super) fn is_super_frame(&self) -> bool {
        self.gso_type != 0
    }

    /// Finishes the checksum if that was left to the device: the field holds
    /// the sum of the pseudo-header so far (Documentation/networking/
    /// checksum-offloads.rst). `false` when the places lie outside the frame.
    pub(super) fn finish_checksum(&self, frame: &mut [u8]) -> bool {
        if self.flags & NEEDS_CHECKSUM == 0 {
            return true;
        }
        let start = usize::from(self.checksum_start);
        let Some(covered) = frame.get_mut(start..) else { return false };
        let mut sum = !sum(covered);
        if sum == 0 && self.checksum_offset == UDP_CHECKSUM {
            sum = 0xffff;
        }
        let at = usize::from(self.checksum_offset);
        match covered.get_mut(at..at + 2) {
            Some(field) => {
                field.copy_from_slice(&sum.to_be_bytes());
                true
            }
            None => false,
        }
    }
}

/// The one's complement sum of RFC 1071, not inverted.
fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    if let [last] = rest {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(start: u16, offset: u16) -> VnetHeader {
        VnetHeader {
            flags: NEEDS_CHECKSUM,
            checksum_start: start,
            checksum_offset: offset,
            ..VnetHeader::default()
        }
    }

    #[test]
    fn a_complete_frame_stays_as_it_is() {
        let mut frame = [1, 2, 3];
        assert!(VnetHeader::default().finish_checksum(&mut frame));
        assert_eq!(frame, [1, 2, 3]);
    }

    /// UDP from 10.0.0.1:1 to 10.0.0.2:2 with the payload `abc`: the sum of
    /// the pseudo-header is 0x1400 + 3 + 0x11 + 11 = 0x141f.
    #[test]
    fn udp_is_finished_from_the_pseudo_header_on() {
        let mut frame = [9, 9, 0, 1, 0, 2, 0, 11, 0x14, 0x1f, b'a', b'b', b'c'];
        assert!(header(2, 6).finish_checksum(&mut frame));
        // 0x0001 + 0x0002 + 0x000b + 0x141f + 0x6162 + 0x6300 = 0xd88f
        assert_eq!(frame[8..10], (!0xd88f_u16).to_be_bytes());
        assert_eq!(frame[..2], [9, 9]);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        let mut frame = [0, 0, 0, 0, 0, 0, 0xff, 0xff];
        assert!(header(0, 6).finish_checksum(&mut frame));
        assert_eq!(frame[6..], [0xff, 0xff]);
        let mut frame = [0, 0, 0, 0, 0xff, 0xff];
        assert!(header(0, 4).finish_checksum(&mut frame));
        assert_eq!(frame[4..], [0, 0]);
    }

    #[test]
    fn places_outside_the_frame_are_refused() {
        let mut frame = [0; 10];
        assert!(!header(11, 0).finish_checksum(&mut frame));
        assert!(!header(2, 7).finish_checksum(&mut frame));
        assert!(!header(u16::MAX, u16::MAX).finish_checksum(&mut frame));
        assert_eq!(frame, [0; 10]);
    }
}
