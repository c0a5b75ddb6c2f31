//! The ICMP view.
#![no_main]

use std::hint::black_box;

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::icmp::{self, Icmp};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Icmp::new_checked(bytes) {
        assert_eq!(view.body().len() + 8, bytes.len());
        let kind = view.type_and_code();
        assert!(!(icmp::is_echo(58, kind) && icmp::is_error(58, kind)));
        assert!(!(icmp::is_echo(1, kind) && icmp::is_error(1, kind)));
        black_box(view.ident());
    }
});
