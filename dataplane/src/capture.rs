//! Packet captures: the classic pcap file format, read and written.
//!
//! Format: <https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>. Both
//! byte orders and both time resolutions are read; what is written is
//! little-endian with nanoseconds. Only Ethernet captures are accepted. Pcapng,
//! which current tools write by default, is named in the error with the remedy.

use std::io::{self, ErrorKind, Read, Write};

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;
const LINKTYPE_ETHERNET: u32 = 1;

/// Longest frame that is read or written, in bytes: what tcpdump captures at
/// most.
pub const LONGEST_FRAME: u32 = 262_144;

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was seen, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its bytes, Ethernet header first.
    pub frame: Vec<u8>,
}

/// Why a capture can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file can't be read.
    #[error("can't read the capture: {0}")]
    Io(#[from] io::Error),
    /// It is a pcapng file.
    #[error("the capture is pcapng: convert it with `editcap -F pcap IN OUT`")]
    Pcapng,
    /// It is something else.
    #[error("not a pcap file: it begins with {0:#010x}")]
    NotPcap(u32),
    /// It holds no Ethernet frames.
    #[error("link type {0} is not Ethernet (1): capture on an Ethernet device")]
    LinkType(u32),
    /// It ends within a frame.
    #[error("the capture ends within frame {0}")]
    Truncated(u64),
    /// A frame was captured only in part.
    #[error("frame {number} was cut to {captured} of {length} bytes: capture with `-s 0`")]
    Snapped {
        /// Number of the frame, from 1.
        number: u64,
        /// Bytes in the file.
        captured: u32,
        /// Bytes of the frame.
        length: u32,
    },
    /// A length field is out of range.
    #[error("frame {number} claims {captured} bytes, more than {LONGEST_FRAME}")]
    TooLong {
        /// Number of the frame, from 1.
        number: u64,
        /// The length claimed.
        captured: u32,
    },
}

/// Reads the frames of a capture one by one; ends after the first error.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    swapped: bool,
    ns_per_fraction: u64,
    number: u64,
    failed: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the file header. Give it a buffered input.
    pub fn new(mut input: R) -> Result<Self, CaptureError> {
        let mut header = [0; 24];
        input.read_exact(&mut header)?;
        let [magic, _, _, _, _, link] = words(&header);
        let swapped = matches!(magic.swap_bytes(), MAGIC_MICROSECONDS | MAGIC_NANOSECONDS);
        let ns_per_fraction = match if swapped { magic.swap_bytes() } else { magic } {
            MAGIC_MICROSECONDS => 1000,
            MAGIC_NANOSECONDS => 1,
            MAGIC_PCAPNG => return Err(CaptureError::Pcapng),
            other => return Err(CaptureError::NotPcap(other)),
        };
        // The upper half may tell about frame check sequences.
        let link = if swapped { link.swap_bytes() } else { link } & 0xffff;
        if link != LINKTYPE_ETHERNET {
            return Err(CaptureError::LinkType(link));
        }
        Ok(Self { input, swapped, ns_per_fraction, number: 0, failed: false })
    }

    fn read(&mut self) -> Result<Option<Record>, CaptureError> {
        let mut header = [0; 16];
        if !self.fill(&mut header, true)? {
            return Ok(None);
        }
        self.number += 1;
        let number = self.number;
        let swap = |word: u32| if self.swapped { word.swap_bytes() } else { word };
        let [seconds, fraction, captured, length] = words(&header).map(swap);
        if captured > LONGEST_FRAME {
            return Err(CaptureError::TooLong { number, captured });
        }
        if captured < length {
            return Err(CaptureError::Snapped { number, captured, length });
        }
        let mut frame = vec![0; captured as usize];
        self.fill(&mut frame, false)?;
        let time_ns =
            u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.ns_per_fraction;
        Ok(Some(Record { time_ns, frame }))
    }

    /// Fills `bytes`. `false` when the input ends before the first of them and
    /// may do so.
    fn fill(&mut self, bytes: &mut [u8], may_end: bool) -> Result<bool, CaptureError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 && may_end => return Ok(false),
                Ok(0) => return Err(CaptureError::Truncated(self.number.max(1))),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let record = self.read().transpose();
        self.failed = matches!(record, Some(Err(_)));
        record
    }
}

/// Little-endian words, as many as the bytes hold.
fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    const { assert!(BYTES == 4 * WORDS) };
    let (quads, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| u32::from_le_bytes(quads[at]))
}

/// Writes a capture.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Writes the file header. Give it a buffered output.
    pub fn new(mut output: W) -> io::Result<Self> {
        // Version 2.4; the two words for time zone and accuracy are unused.
        for word in [MAGIC_NANOSECONDS, 4 << 16 | 2, 0, 0, LONGEST_FRAME, LINKTYPE_ETHERNET] {
            output.write_all(&word.to_le_bytes())?;
        }
        Ok(Self { output })
    }

    /// Writes one frame, seen at this time in nanoseconds since 1970.
    pub fn write(&mut self, time_ns: u64, frame: &[u8]) -> io::Result<()> {
        let len = u32::try_from(frame.len())
            .ok()
            .filter(|len| *len <= LONGEST_FRAME)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "frame too long for pcap"))?;
        let seconds = (time_ns / 1_000_000_000) as u32;
        let fraction = (time_ns % 1_000_000_000) as u32;
        for word in [seconds, fraction, len, len] {
            self.output.write_all(&word.to_le_bytes())?;
        }
        self.output.write_all(frame)
    }

    /// Flushes and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Big-endian, microseconds, one frame of three bytes.
    const FOREIGN: [u8; 43] = [
        0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0,
        1, // file
        0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 3, 9, 8, 7,
    ];

    fn read(bytes: &[u8]) -> Result<Vec<Record>, CaptureError> {
        Reader::new(bytes)?.collect()
    }

    #[test]
    fn captures_of_other_machines_are_read() {
        let expected = Record { time_ns: 5_000_007_000, frame: vec![9, 8, 7] };
        assert_eq!(read(&FOREIGN).unwrap(), [expected]);
    }

    #[test]
    fn bad_files_are_named() {
        let changed = |at: usize, value: u8| {
            let mut bytes = FOREIGN;
            bytes[at] = value;
            read(&bytes).unwrap_err().to_string()
        };
        assert!(changed(0, 0).starts_with("not a pcap file"));
        assert!(changed(23, 101).contains("link type 101"));
        assert!(changed(35, 2).contains("frame 1 was cut to 2 of 3 bytes"));
        assert!(changed(32, 1).contains("more than 262144"));
        assert!(matches!(read(&FOREIGN[..42]), Err(CaptureError::Truncated(1))));
        assert!(matches!(read(&FOREIGN[..30]), Err(CaptureError::Truncated(1))));
        assert!(matches!(read(&FOREIGN[..20]), Err(CaptureError::Io(_))));
        let mut pcapng = [0; 24];
        pcapng[..4].copy_from_slice(&[0x0a, 0x0d, 0x0d, 0x0a]);
        assert!(matches!(read(&pcapng), Err(CaptureError::Pcapng)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            frames in prop::collection::vec(
                (0u64..u64::from(u32::MAX) * 1_000_000_000, prop::collection::vec(any::<u8>(), 0..90)),
                0..9,
            ),
        ) {
            let mut writer = Writer::new(Vec::new()).unwrap();
            for (time_ns, frame) in &frames {
                writer.write(*time_ns, frame).unwrap();
            }
            let bytes = writer.finish().unwrap();
            let records = frames.into_iter().map(|(time_ns, frame)| Record { time_ns, frame });
            prop_assert_eq!(read(&bytes).unwrap(), records.collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = bytes;
            let _not_a_capture = read(&bytes);
            bytes.splice(0..0, FOREIGN[..24].iter().copied());
            let _cut_somewhere = read(&bytes);
        }
    }
}
