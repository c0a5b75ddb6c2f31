//! The IPv6 view and the walk over extension headers.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::ipv6::Ipv6;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Ipv6::new_checked(bytes) {
        assert_eq!(view.payload().len(), usize::from(view.payload_len()));
        black_box((view.source(), view.destination(), view.ecn(), view.hop_limit()));
        if let Ok(upper) = view.upper() {
            assert!(upper.payload.len() <= view.payload().len());
        }
    }
    if let Ok(view) = Ipv6::new_cut(bytes) {
        let _cut = black_box(view.upper());
    }
});
