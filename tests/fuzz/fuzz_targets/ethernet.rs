//! The Ethernet view.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::ethernet::Ethernet;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Ethernet::new_checked(bytes) {
        assert_eq!(view.payload().len() + 14, bytes.len());
        black_box((view.destination(), view.source(), view.ethertype()));
    }
});
