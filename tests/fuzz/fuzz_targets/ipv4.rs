//! The IPv4 view.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::ipv4::Ipv4;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Ipv4::new_checked(bytes) {
        assert_eq!(view.header_len() + view.payload().len(), usize::from(view.total_len()));
        black_box((view.verify_checksum(), view.is_source_routed(), view.is_fragment()));
    }
    if let Ok(view) = Ipv4::new_cut(bytes) {
        assert!(view.header_len() + view.payload().len() <= bytes.len());
        black_box((view.verify_checksum(), view.is_source_routed(), view.source()));
    }
});
