//! VXLAN (RFC 7348 section 5).

use super::{Vni, WireError};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// The flag that says that the network identifier is valid.
const FLAG_VNI: u8 = 0x08;

/// A VXLAN header and the frame in it.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    vni: Vni,
    inner: &'a [u8],
}

impl<'a> Vxlan<'a> {
    /// The view, if the bytes hold a header with a valid network identifier.
    /// All other flags and fields are reserved and ignored.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, inner) = bytes.split_first_chunk().ok_or(WireError::Truncated)?;
        let [flags, _, _, _, a, b, c, _]: [u8; HEADER_LEN] = *header;
        if flags & FLAG_VNI == 0 {
            return Err(WireError::Malformed);
        }
        let vni = Vni::new(u32::from_be_bytes([0, a, b, c])).ok_or(WireError::Malformed)?;
        Ok(Self { vni, inner })
    }

    /// The network identifier.
    #[inline]
    pub const fn vni(&self) -> Vni {
        self.vni
    }

    /// The inner frame.
    #[inline]
    pub const fn inner(&self) -> &'a [u8] {
        self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_bytes() {
        let view = |bytes: &'static [u8]| Vxlan::new_checked(bytes);
        let plain = view(&[8, 0, 0, 0, 0, 0x10, 0, 0, 0xaa]).unwrap();
        assert_eq!((plain.vni().get(), plain.inner()), (4096, &[0xaa][..]));
        // Reserved bits are ignored.
        let noisy = view(&[0xff, 1, 2, 3, 0xff, 0xff, 0xff, 9]).unwrap();
        assert_eq!((noisy.vni().get(), noisy.inner()), (0xff_ffff, &[][..]));
        assert_eq!(view(&[0xf7, 0, 0, 0, 0, 0x10, 0, 0]).unwrap_err(), WireError::Malformed);
        assert_eq!(view(&[8, 0, 0, 0, 0, 0x10, 0]).unwrap_err(), WireError::Truncated);
    }
}
