//! Checksums of parts and of the whole.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::checksum::{finish, sum, update};

fuzz_target!(|bytes: &[u8]| {
    let Some((at, bytes)) = bytes.split_first() else { return };
    let (front, back) = bytes.split_at((usize::from(*at) * 2).min(bytes.len() & !1));
    assert_eq!(finish(sum(front) + sum(back)), finish(sum(bytes)));
    if let [a, b, c, d, e, f, ..] = *bytes {
        let word = |high, low| u16::from_be_bytes([high, low]);
        black_box(update(word(a, b), word(c, d), word(e, f)));
    }
});
