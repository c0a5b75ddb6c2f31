//! Reading an IP packet, and the one that it quotes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::wire::packet::Packet;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Packet::parse(bytes) {
        assert!(packet.total_len as usize <= bytes.len());
        if let Some(quoted) = packet.quoted(bytes) {
            assert_eq!(quoted.src.is_v4(), packet.src.is_v4());
        }
    }
});
