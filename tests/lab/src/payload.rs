//! Bytes whose loss, doubling or shift shows.

/// Payload bytes: a pattern of prime length, so that a lost, doubled or
/// shifted chunk never fits.
pub(crate) const PATTERN_LEN: usize = 65_521;

/// The pattern once. Its first byte is not 1, which servers take for a command.
pub(crate) fn pattern() -> Vec<u8> {
    let mut x = 0x9e37_79b9_u32;
    let next = |_| {
        // xorshift32
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x.to_be_bytes()[0]
    };
    (0..PATTERN_LEN).map(next).collect()
}

/// Whether `bytes` are the pattern from stream offset `offset` on.
pub(crate) fn is_pattern(pattern: &[u8], offset: u64, mut bytes: &[u8]) -> bool {
    let mut at = (offset % PATTERN_LEN as u64) as usize;
    while !bytes.is_empty() {
        let len = bytes.len().min(PATTERN_LEN - at);
        if bytes[..len] != pattern[at..at + len] {
            return false;
        }
        bytes = &bytes[len..];
        at = 0;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_tells_shifts_and_goes_round() {
        let all = pattern();
        assert!(all.len() == PATTERN_LEN && all[0] != 1);
        let twice = [&all[..], &all[..]].concat();
        assert!(is_pattern(&all, 0, &twice) && is_pattern(&all, 70_000, &twice[4479..80_000]));
        assert!(is_pattern(&all, 5, &[]));
        assert!(!is_pattern(&all, 1, &twice) && !is_pattern(&all, 0, &twice[1..]));
    }
}
