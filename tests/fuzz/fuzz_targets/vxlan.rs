//! The VXLAN view.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::vxlan::Vxlan;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(view) = Vxlan::new_checked(bytes) {
        assert!(view.vni().get() < 1 << 24);
        assert_eq!(view.inner().len() + 8, bytes.len());
    }
});
