//! The UDP view.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::udp::Udp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Udp::new_checked(bytes) {
        assert_eq!(view.bytes().len(), usize::from(view.length()));
        assert_eq!(view.payload().len() + 8, view.bytes().len());
        black_box((view.source_port(), view.destination_port(), view.checksum()));
    }
});
