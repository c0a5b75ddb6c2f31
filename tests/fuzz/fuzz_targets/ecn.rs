//! Marking congestion in a packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::{ecn, ipv4::Ipv4};

fuzz_target!(|bytes: &[u8]| {
    let Some((mark, ip)) = bytes.split_first() else { return };
    let mut ip = ip.to_vec();
    let right = Ipv4::new_checked(&ip).is_ok_and(|view| view.verify_checksum());
    ecn::set_ecn(&mut ip, *mark);
    if right {
        let view = Ipv4::new_checked(&ip).expect("as well-formed as before");
        assert!(view.verify_checksum());
        assert_eq!(view.ecn(), mark & 3);
    }
});
