//! The Internet checksum: in full (RFC 1071), and after a change of one word
//! (RFC 1624).
//!
//! Sums are of big-endian words and may be added up, as long as every part but
//! the last has an even length.

/// Sum over `bytes`; a last odd byte counts as the upper half of a word. The
/// carries are left in the upper bits, where there is room for 2^32 bytes.
#[inline]
pub fn sum(bytes: &[u8]) -> u64 {
    // A word of 32 bits is the sum of its halves modulo 0xffff, so wider words
    // may be added just as well.
    let (quads, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = quads.iter().map(|quad| u64::from(u32::from_be_bytes(*quad))).sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        sum += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = odd {
        sum += u64::from(*last) << 8;
    }
    sum
}

/// The checksum that follows from a sum: carries folded in, complemented. Zero
/// when the sum was over bytes that hold their own right checksum.
#[inline]
pub const fn finish(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(((sum >> 16) + (sum & 0xffff)) as u16)
}

/// Whether a header that begins with other bytes than zeros holds its own right
/// checksum: quicker than [`sum`] and [`finish`].
#[inline]
pub fn is_right(header: &[u8; 20]) -> bool {
    // The sum is a multiple of 0xffff in any byte order (RFC 1071 section 2).
    let (words, _) = header.as_chunks::<4>();
    words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>() % 0xffff == 0
}

/// [`finish`] of a sum of less than 2^31 that has been folded before.
#[inline]
pub const fn finish_small(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    !(((sum >> 16) + (sum & 0xffff)) as u16)
}

/// The checksum after one of the words under it has changed (RFC 1624
/// equation 3).
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_examples() {
        // RFC 1071 section 3: the words add up to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(finish(sum(&bytes)), !0xddf2);
        // RFC 1624 section 4: the case that RFC 1141 gets wrong.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
        assert_eq!(finish(sum(&[0xab])), !0xab00);
        assert_eq!(finish(u64::MAX), 0);
        assert_eq!(finish(0), 0xffff);
        assert_eq!(finish_small(0x7fff_ffff), finish(0x7fff_ffff));
    }

    /// Word by word, as RFC 1071 section 1 says it.
    fn plain(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            _ => u16::from_be_bytes([pair[0], 0]),
        });
        !words.fold(0u16, |sum, word| {
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    proptest! {
        #[test]
        fn agrees_with_adding_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(finish(sum(&bytes)), plain(&bytes));
        }

        #[test]
        fn the_quick_forms_agree_with_the_long_ones(
            mut header in any::<[u8; 20]>(),
            wrong in any::<bool>(),
            small in 0u32..1 << 31,
        ) {
            header[0] |= 0x40;
            header[10..12].fill(0);
            let right = finish(sum(&header));
            header[10..12].copy_from_slice(&right.to_be_bytes());
            header[19] ^= u8::from(wrong);
            prop_assert_eq!(is_right(&header), !wrong);
            prop_assert_eq!(finish_small(small), finish(small.into()));
        }

        #[test]
        fn parts_of_even_length_add_up(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            at in 0usize..50,
        ) {
            let (front, back) = bytes.split_at((2 * at).min(bytes.len() & !1));
            prop_assert_eq!(finish(sum(front) + sum(back)), plain(&bytes));
        }

        #[test]
        fn a_change_of_one_word_agrees_with_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 20),
            at in 0usize..10,
            new in any::<u16>(),
        ) {
            // A header that is not all zero, as every IPv4 header.
            bytes[0] |= 0x40;
            let at = if at == 0 { 1 } else { at };
            let before = finish(sum(&bytes));
            let old = u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
            bytes[2 * at..2 * at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), finish(sum(&bytes)));
        }
    }
}
