//! Reading a capture file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline_dataplane::capture::Reader;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(reader) = Reader::new(bytes) {
        let frames: usize = reader.map_while(Result::ok).map(|record| record.frame.len()).sum();
        assert!(frames <= bytes.len());
    }
});
