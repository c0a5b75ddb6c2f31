//! The TCP view.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::tcp::Tcp;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Tcp::new_checked(bytes) {
        black_box((view.source_port(), view.destination_port(), view.flags()));
    }
});
